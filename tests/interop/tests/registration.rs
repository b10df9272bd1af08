//! A mobile node's home registration, with its proof of RFC 4285, against scapy and Python's own HMAC: they read what our node
//! and our home agent send, and both of ours take what scapy makes. Needs no VM: `cargo test -p interop`.

use std::time::Duration;

use anyhow::{Context, Result};
use interop::cases::{AGENT, CARE_OF, HOME};
use interop::{Oracles, from_hex, to_hex};
use mobility_proto::anchor::{self, Anchor, Authorization, Registrant};
use mobility_proto::auth::{Algorithm, SharedKey};
use mobility_proto::node::{self, Happened, MobileNode};
use mobility_proto::wire::*;
use serde_json::json;

const NAME: &str = "node@example.org";
const SPI: u32 = 0x1234;
const KEY: &[u8] = b"0123456789abcdef";
const NOW: Duration = Duration::ZERO;
const UNIX_NS: u64 = 1_700_000_000_500_000_000;

fn key(algorithm: Algorithm) -> SharedKey {
    SharedKey::new(SPI, algorithm, KEY)
}

fn home_agent(algorithm: Algorithm) -> Result<Anchor> {
    let mut anchor = Anchor::new(anchor::Config {
        address: AGENT,
        user_plane: None,
        max_nodes: 1,
        max_lifetime: BindingLifetime::from_secs(600),
        max_transient: TransientLifetime::from_ms(1000),
        restart_counter: 1,
        started_unix_ns: 0,
    });
    let prefix = Ipv6Prefix::new(HOME, 128).context("128 is a length")?;
    let (key, node, registrant) = (key(algorithm), NAME.as_bytes().to_vec(), Registrant::MobileNode);
    anchor.authorize(Authorization { key, node, prefix, ipv4: None, registrant })?;
    Ok(anchor)
}

/// What the home agent answers to this packet.
fn answer(anchor: &mut Anchor, packet: &[u8]) -> Result<Vec<u8>> {
    anchor.handle_packet(NOW, UNIX_NS, packet)?;
    let sent = std::iter::from_fn(|| anchor.poll_output()).find_map(|output| match output {
        anchor::Output::Send(packet) => Some(packet),
        _ => None,
    });
    sent.context("the home agent answers nothing")
}

/// A node that has just come to its care-of address, and its update.
fn mobile_node(algorithm: Algorithm) -> Result<(MobileNode, Vec<u8>)> {
    let mut node = MobileNode::new(node::Config {
        home_address: HOME,
        home_agent: AGENT,
        name: NAME.as_bytes().to_vec(),
        key: key(algorithm),
        lifetime: BindingLifetime::from_secs(60),
    });
    node.attach(NOW, UNIX_NS, CARE_OF);
    match node.poll_output() {
        Some(node::Output::Send(packet)) => Ok((node, packet)),
        other => anyhow::bail!("an update was expected, not {other:?}"),
    }
}

fn registration_agrees(algorithm: Algorithm, digest: &str, bytes: usize) -> Result<()> {
    let (mut node, update) = mobile_node(algorithm)?;
    let acknowledgement = answer(&mut home_agent(algorithm)?, &update)?;
    node.handle_packet(NOW, UNIX_NS, &acknowledgement)?;
    assert_eq!(node.poll_output(), Some(node::Output::Event(Happened::Registered(CARE_OF))));
    // 1900 to 1970, then ours.
    let time: u64 = ((1_700_000_000 + 2_208_988_800) << 32) + (1 << 31);
    let asked = json!({
        "key": to_hex(KEY), "digest": digest, "bytes": bytes, "spi": SPI, "name": NAME, "time": time, "seq": 1,
        "packets": { "update": to_hex(&update), "acknowledgement": to_hex(&acknowledgement) },
    });
    let told = Oracles::open()?.python("register", &asked.to_string())?;

    let common = json!({
        "home": HOME.to_string(), "care_of": CARE_OF.to_string(), "seq": 1, "lifetime": 15, "spi": SPI, "subtype": 1,
        "name": NAME, "time": time, "checksum": true, "proof": true,
    });
    for (case, field, value) in [("update", "flags", json!("HA")), ("acknowledgement", "status", json!(0))] {
        let mut expected = common.clone();
        expected[field] = value;
        assert_eq!(told["read"][case], expected, "{case}");
    }

    // The other way round: ours take what scapy makes, and nothing of it that was changed.
    let theirs = from_hex(&told["update"])?;
    assert_eq!(to_hex(&theirs), to_hex(&update));
    let mut anchor = home_agent(algorithm)?;
    for at in (8..40).chain(46..theirs.len()) {
        let mut forged = theirs.clone();
        forged[at] ^= 1;
        assert!(anchor.handle_packet(NOW, UNIX_NS, &forged).is_err(), "byte {at}");
    }
    answer(&mut anchor, &theirs)?;
    assert_eq!(anchor.binding(NAME.as_bytes()), Some((CARE_OF, 0)));
    let (mut node, _) = mobile_node(algorithm)?;
    node.handle_packet(NOW, UNIX_NS, &from_hex(&told["acknowledgement"])?)?;
    assert_eq!(node.poll_output(), Some(node::Output::Event(Happened::Registered(CARE_OF))));
    Ok(())
}

#[test]
fn scapy_and_python_agree_on_a_registration_of_rfc_4285() -> Result<()> {
    registration_agrees(Algorithm::HmacSha1_96, "sha1", 12)
}

#[test]
fn scapy_and_python_agree_on_a_registration_with_sha_256() -> Result<()> {
    registration_agrees(Algorithm::HmacSha256_128, "sha256", 16)
}
