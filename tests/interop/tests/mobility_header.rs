//! Our Mobility Header against scapy, pypcapkit and tshark, both ways; and what these do wrong, so that we notice when they
//! no longer do. Needs no VM: `cargo test -p interop`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use interop::cases::{AGENT, CARE_OF, HOME, case, cases};
use interop::{Oracles, from_hex, to_hex};
use mobility_proto::auth::{Algorithm, Covered, SharedKey};
use mobility_proto::wire::*;
use serde_json::Value;

const ENDS: Endpoints = Endpoints { source: CARE_OF, destination: AGENT };

fn entries(value: &Value) -> Result<impl Iterator<Item = (&String, &Value)>> {
    Ok(value.as_object().context("an object was expected")?.iter())
}

/// A header without a right checksum: its writer makes none.
fn summed(header: &[u8]) -> Vec<u8> {
    let mut header = header.to_vec();
    header[4..6].fill(0);
    let mut sum = 135 + header.len() as u32;
    for part in [&ENDS.source.octets()[..], &ENDS.destination.octets(), &header] {
        sum += part.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum::<u32>();
    }
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    header[4..6].copy_from_slice(&(!sum as u16).to_be_bytes());
    header
}

#[test]
fn scapy_makes_the_same_packets_byte_for_byte() -> Result<()> {
    let made = Oracles::open()?.python("build", "")?;
    let mut count = 0;
    for (name, packet) in entries(&made["scapy"])? {
        let (case, packet) = (case(name), from_hex(packet)?);
        assert_eq!(to_hex(&case.packet()), to_hex(&packet), "{name}");
        let found = Signalling::parse(&packet)?;
        assert_eq!(found.addresses, case.addresses, "{name}");
        let header = MobilityHeader::new_checked(found.message)?;
        assert_eq!(Repr::parse(&header, found.addresses.endpoints())?, case.repr, "{name}");
        count += 1;
    }
    ensure!(count == 10, "scapy made {count} packets");
    Ok(())
}

#[test]
fn pypcapkit_and_we_read_each_other() -> Result<()> {
    let oracles = Oracles::open()?;
    let made = oracles.python("build", "")?;
    let mut ours = BTreeMap::new();
    for (name, header) in entries(&made["pypcapkit"])? {
        let (case, header) = (case(name), summed(&from_hex(header)?));
        assert_eq!(Repr::parse(&MobilityHeader::new_checked(&header)?, ENDS)?, case.repr, "{name}");
        ours.insert(name.clone(), to_hex(&case.message()));
    }
    let told = oracles.python("read", &serde_json::to_string(&ours)?)?;
    for (name, difference) in entries(&told)? {
        assert_eq!(difference, &Value::Null, "{name}");
    }
    // Beside the cases that scapy alone is given.
    ensure!(ours.len() + 1 == cases().len(), "pypcapkit was given {} of {} cases", ours.len(), cases().len());
    Ok(())
}

#[test]
fn pythons_hmac_makes_the_same_proof() -> Result<()> {
    let packet = from_hex(&Oracles::open()?.python("build", "")?["proved"])?;
    let found = Signalling::parse(&packet)?;
    let key = SharedKey::new(0x1234, Algorithm::HmacSha1_96, b"0123456789abcdef");
    let covered = Covered { care_of: CARE_OF, peer: HOME };
    key.verify(&MobilityHeader::new_checked(found.message)?, covered)?;

    let mut repr = case("authenticated update").repr;
    repr.options.pop();
    let ours = key.emit(&repr, found.addresses.endpoints(), covered)?;
    // Python put the proof in after scapy had made the checksum.
    assert_eq!(to_hex(&ours[6..]), to_hex(&found.message[6..]));
    Ok(())
}

/// What tshark shows of our packets: the case, and fields with their values.
const SHOWN: &[(&str, &[(&str, &str)])] = &[
    ("refresh request", &[("mip6.mhtype", "0"), ("mip6.hlen", "0"), ("mip6.proto", "59")]),
    ("home test init", &[("mip6.hoti.cookie", "0x636f6f6b69653031")]),
    ("care-of test init", &[("mip6.coti.cookie", "0x636f6f6b69653032")]),
    (
        "home test",
        &[
            ("mip6.hot.nindex", "4660"),
            ("mip6.hot.cookie", "0x636f6f6b69653031"),
            ("mip6.hot.token", "0x746f6b656e2e2e31"),
        ],
    ),
    ("care-of test", &[("mip6.cot.nindex", "4660"), ("mip6.hot.token", "0x746f6b656e2e2e31")]),
    (
        "binding update",
        &[
            ("ipv6.opt.mipv6.home_address", "2001:db8:1::10"),
            ("mip6.bu.seqnr", "258"),
            ("mip6.bu.a_flag", "1"),
            ("mip6.bu.k_flag", "1"),
            ("mip6.bu.m_flag", "0"),
            ("mip6.bu.p_flag", "0"),
            ("mip6.bu.lifetime", "105"),
            ("mip6.acoa.acoa", "2001:db8:2::20"),
        ],
    ),
    (
        "authenticated update",
        &[("mip6.mnid.identifier", "node@example.org"), ("mip6.auth.mobility_spi", "4660")],
    ),
    (
        "router's update",
        &[("mip6.nemo.bu.r_flag", "1"), ("mip6.nemo.mnp.pfl", "64"), ("mip6.nemo.mnp.mnp", "2001:db8:a::")],
    ),
    (
        "acknowledgement",
        &[
            ("ipv6.routing.mipv6.home_address", "2001:db8:1::10"),
            ("mip6.ba.status", "135"),
            ("mip6.ba.k_flag", "1"),
            ("mip6.ba.seqnr", "258"),
            ("mip6.ba.lifetime", "9"),
            ("mip6.bra.interval", "7"),
        ],
    ),
    ("binding error", &[("mip6.be.status", "2"), ("mip6.be.haddr", "2001:db8:1::10")]),
    ("nonces", &[("mip6.ni.hni", "2571"), ("mip6.ni.cni", "3085")]),
    (
        "all flags",
        &[
            ("mip6.bu.m_flag", "1"),
            ("mip6.bu.p_flag", "1"),
            ("mip6.bu.f_flag", "1"),
            ("mip6.bu.t_flag", "1"),
            ("mip6.bu.b_flag", "1"),
        ],
    ),
    (
        "proxy update",
        &[
            ("mip6.bu.p_flag", "1"),
            ("mip6.mnid.identifier", "vm@example.org"),
            ("mip6.nemo.mnp.mnp", "2001:db8:a::"),
            ("mip6.hi", "3"),
            ("mip6.att", "3"),
            ("mip6.mnlli.lli", "020000000001"),
            ("mip6.lila_lla", "fe80::1"),
            ("mip6.timestamp_tmp", "Nov 14, 2023 22:13:20.500000000 UTC"),
            ("mip6.mobility_opt", "43"),
        ],
    ),
    (
        "proxy acknowledgement",
        &[
            ("mip6.ba.status", "157"),
            ("mip6.ba.p_flag", "1"),
            ("mip6.vsm.vendorId", "32473"),
            ("mip6.vsm.subtype", "5"),
        ],
    ),
    (
        "IPv4",
        &[
            ("mip6.ipv4ha.preflen", "24,24,24,24"),
            ("mip6.ipv4ha.p_flag", "1"),
            ("mip6.ipv4ha.ha", "192.0.2.1,192.0.2.1,192.0.2.1,192.0.2.1"),
            ("mip6.ipv4aa.sts", "131,131"),
            ("mip6.natd.f_flag", "1"),
            ("mip6.natd.refresh_t", "110"),
            ("mip6.ipv4coa.addr", "192.0.2.9"),
            ("mip6.ipv4dra.dra", "192.0.2.254"),
        ],
    ),
    (
        "heartbeat",
        &[("mip6.hb.u_flag", "1"), ("mip6.hb.r_flag", "1"), ("mip6.hb.seqnr", "16909060"), ("mip6.rc", "9")],
    ),
    (
        "handover initiate",
        &[
            ("mip6.hi.seqnr", "258"),
            ("mip6.hi.s_flag", "0"),
            ("mip6.hi.u_flag", "1"),
            ("mip6.hi.code", "2"),
            ("mip6.lmaa.opt_code", "1,2"),
            ("mip6.lmaa.ipv6", "2001:db8:1::1"),
            ("mip6.lmaa.ipv4", "192.0.2.7"),
            ("mip6.mhipv6ap.len", "64"),
            ("mip6.mhipv6ap.ipv6_address", "2001:db8:2::20"),
        ],
    ),
    (
        "handover acknowledge",
        &[
            ("mip6.hack.seqnr", "258"),
            ("mip6.hack.code", "6"),
            ("mip6.cr.req_type", "22,19"),
            ("mip6.cr.req_length", "0,5"),
            ("mip6.vsm.vendorId", "32473"),
        ],
    ),
    (
        "revocation",
        &[
            ("mip6.bri_br.type", "1"),
            ("mip6.bri_r.trigger", "2"),
            ("mip6.bri_seqnr", "258"),
            ("mip6.bri_ip", "1"),
            ("mip6.bri_iv", "0"),
        ],
    ),
    (
        "revocation acknowledged",
        &[
            ("mip6.bri_br.type", "2"),
            ("mip6.bri_status", "128"),
            ("mip6.bri_ap", "1"),
            ("mip6.bri_av", "1"),
            ("mip6.bri_ag", "1"),
        ],
    ),
];

/// What tshark shows wrong. It leaves the last two bytes of a proof out, takes the time of the replay protection for one
/// since 1970 and its fraction for a signed number, reads the messages of RFC 6705 from the start of the header, and knows
/// none of RFC 7077.
const SHOWN_WRONG: &[(&str, &[(&str, &str)])] = &[
    ("authenticated update", &[("mip6.auth.auth_data", "61757468656e74696361")]),
    ("replay protection", &[("mip6.mseg_id.timestamp", "Aug  9, 1970 22:25:43.-1985229329 UTC")]),
    ("localized routing", &[("mip6.lri.sequence", "15107"), ("mip6.lri.reserved", "0x1100")]),
    ("localized routing acknowledged", &[("mip6.lra.sequence", "15105")]),
    ("notification", &[("mip6.mhtype", "19"), ("mip6.unknown_type_data", "01020001c00001020000")]),
    (
        "notification acknowledged",
        &[("mip6.mhtype", "20"), ("mip6.unknown_type_data", "01028000000001020000")],
    ),
];

fn check_shown(oracles: &Oracles, name: &str, cases: &[(&str, &[(&str, &str)])]) -> Result<()> {
    let packets: Vec<Vec<u8>> = cases.iter().map(|(name, _)| case(name).packet()).collect();
    let mut fields: Vec<&str> =
        cases.iter().flat_map(|(_, fields)| fields.iter().map(|(field, _)| *field)).collect();
    fields.sort_unstable();
    fields.dedup();
    let shown = oracles.tshark(name, &packets, &fields)?;
    for ((name, expected), shown) in cases.iter().zip(&shown) {
        for (field, value) in *expected {
            let at = fields.iter().position(|known| known == field).context("a field that was asked for")?;
            assert_eq!(&shown[at], value, "{name}: {field}");
        }
    }
    Ok(())
}

#[test]
fn tshark_shows_what_we_say() -> Result<()> {
    let oracles = Oracles::open()?;
    check_shown(&oracles, "shown", SHOWN)?;
    let packets: Vec<Vec<u8>> = SHOWN.iter().map(|(name, _)| case(name).packet()).collect();
    let complaints = complaints(&oracles, "sound", &packets)?;
    ensure!(complaints.iter().all(|count| *count == 0), "{complaints:?}");
    Ok(())
}

/// For each packet how many warnings and errors tshark has: a wrong length, an option beyond the end. Notes say only what it
/// does not show in full.
fn complaints(oracles: &Oracles, name: &str, packets: &[Vec<u8>]) -> Result<Vec<usize>> {
    let note = 0x0040_0000;
    let shown = oracles.tshark(name, packets, &["_ws.expert.severity"])?;
    let severities = shown.iter().map(|fields| fields[0].split(',').filter(|severity| !severity.is_empty()));
    severities
        .map(|severities| {
            let severities = severities.map(str::parse::<u32>).collect::<Result<Vec<_>, _>>()?;
            Ok(severities.iter().filter(|severity| **severity > note).count())
        })
        .collect()
}

#[test]
fn what_tshark_shows_wrong_is_still_wrong() -> Result<()> {
    let oracles = Oracles::open()?;
    check_shown(&oracles, "wrong", SHOWN_WRONG)?;
    // It checks no checksum, and complains of what it reads at the wrong place.
    let mut unsummed = case("proxy update").packet();
    unsummed[44] ^= 1;
    let packets = [unsummed, case("localized routing").packet()];
    assert_eq!(complaints(&oracles, "complaints", &packets)?, [0, 1]);
    Ok(())
}

#[test]
fn what_scapy_and_pypcapkit_make_wrong_is_still_wrong() -> Result<()> {
    let defects = Oracles::open()?.python("build", "")?["defects"].clone();
    let option = |name: &str| -> Result<Vec<u8>> { from_hex(&defects[name]) };
    // Lengths of 16 instead of 4 and 12, with data of 4 and 12.
    assert_eq!(option("scapy: nonce indices")?, [4, 16, 0, 1, 0, 2]);
    assert_eq!(option("scapy: authorization data")?[..2], [5, 16]);
    assert_eq!(defects["scapy: option 22"], "MIP6OptUnknown");
    for name in ["pypcapkit: option 9 of 17 bytes", "pypcapkit: option 5 of 12 bytes"] {
        assert_eq!(defects[name], "ProtocolError", "{name}");
    }
    // Its checksum covers the home address only when that is the header's first option.
    let intact = |name: &str| -> Result<bool> {
        let packet = from_hex(&defects[name])?;
        let found = Signalling::parse(&packet)?;
        assert_eq!(found.addresses.home_address, Some(HOME));
        Ok(MobilityHeader::new_checked(found.message)?.is_intact(found.addresses.endpoints()))
    };
    assert!(intact("scapy: home address alone")?);
    assert!(!intact("scapy: home address behind another option")?);
    Ok(())
}
