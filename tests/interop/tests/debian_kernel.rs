//! Our Home Address option, type 2 routing header and checksum against Debian's kernel, which has Mobile IPv6: it takes what
//! our mobile node and our home agent send, and nothing that is not right; and we read what it makes. It is a guest in QEMU.

use std::net::Ipv6Addr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::lab::apt;
use harness::lab::peer::KernelPeer;
use harness::{Lab, Namespace, shell};
use interop::to_hex;
use mobility_lab::Raw;
use mobility_lab::raw::{ICMPV6, packet};
use mobility_proto::anchor::{self, Anchor, Authorization, Registrant};
use mobility_proto::auth::{Algorithm, SharedKey};
use mobility_proto::node::{self, MobileNode};
use mobility_proto::wire::*;

/// The kernel, by its address on the link; and the home address that it has itself when it is a mobile node.
const KERNEL: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 2);
const KERNELS_HOME: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x99);
/// Ours: care-of address, home address, one of which the kernel knows nothing, and another host's.
const CARE_OF: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1);
const HOME: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10);
const STRANGER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x66);

const DESTINATION_OPTIONS: u8 = 60;
const ROUTING: u8 = 43;
const ECHO_REQUEST: u8 = 128;
const ECHO_REPLY: u8 = 129;
const PARAMETER_PROBLEM: u8 = 4;
const BOOT: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_millis(500);

/// A link with the kernel at its other end. It knows our home address as that of a mobile node at our care-of address, both
/// ways, and is itself a mobile node to the host at our care-of address.
fn script() -> String {
    // What the kernel takes off or puts on for a binding (XFRM): a state says how, a policy for what.
    let binding = |direction: &str, from: Ipv6Addr, to: Ipv6Addr, header: &str, care_of: Ipv6Addr| {
        format!(
            "/host/ip xfrm state add src {from} dst {to} proto {header} mode ro coa {care_of}\n\
             /host/ip xfrm policy add src {from} dst {to} dir {direction} \
             tmpl src {from} dst {to} proto {header} mode ro level use\n"
        )
    };
    let as_correspondent =
        binding("in", HOME, KERNEL, "hao", CARE_OF) + &binding("out", KERNEL, HOME, "route2", CARE_OF);
    let as_mobile_node = binding("in", CARE_OF, KERNELS_HOME, "route2", KERNEL)
        + &binding("out", KERNELS_HOME, CARE_OF, "hao", KERNEL);
    format!(
        "echo 0 > /proc/sys/net/ipv6/conf/eth0/dad_transmits\n/host/ip link set eth0 up\n\
         /host/ip addr add {KERNEL}/64 dev eth0 nodad\n/host/ip -6 route add default via {CARE_OF}\n\
         /host/ip addr add {KERNELS_HOME}/128 dev lo home nodad\n\
         {as_correspondent}{as_mobile_node}/host/listen & echo READY\nsleep 1000"
    )
}

struct Peer {
    kernel: KernelPeer,
    namespace: Namespace,
    sender: Raw,
    _dir: tempfile::TempDir,
}

impl Peer {
    fn start() -> Result<Self> {
        apt::setup()?;
        let lab = Lab::open()?;
        let dir = tempfile::Builder::new().prefix("lh-peer-").tempdir()?;
        let listen = dir.path().join("listen");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("listen.c");
        shell::run(Command::new("gcc").args(["-O1", "-o"]).arg(&listen).arg(source))?;
        let namespace = Namespace::new()?;
        for words in [
            "tuntap add dev tap mode tap",
            &format!("address add {CARE_OF}/64 dev tap nodad"),
            "link set tap up",
            &format!("address add {HOME}/128 dev lo nodad"),
            &format!("address add {STRANGER}/128 dev lo nodad"),
        ] {
            namespace.ip(words)?;
        }
        let ip = ["/sbin/ip", "/bin/ip", "/usr/sbin/ip"].map(Path::new);
        let ip = ip.into_iter().find(|path| path.exists()).context("no ip on this host: install iproute2")?;
        let modules = ["virtio_pci", "virtio_net", "xfrm_user", "mip6"];
        let mut kernel = KernelPeer::boot(&lab, &namespace, &modules, &[ip, &listen], &script(), dir.path())?;
        kernel.until("READY", BOOT)?;
        let sender = Raw::sender(&namespace)?;
        Ok(Self { kernel, namespace, sender, _dir: dir })
    }

    fn socket(&self, protocol: u8) -> Result<Raw> {
        Raw::open(&self.namespace, protocol)
    }

    /// The kernel has given this message, as from there, to who listens in it.
    fn heard(&mut self, from: Ipv6Addr, message: &[u8]) -> Result<()> {
        self.kernel.until(&format!("HEARD {from} {}.", to_hex(message)), PATIENCE)
    }
}

/// An ICMPv6 message with its checksum for these ends.
fn echo_request(source: Ipv6Addr, destination: Ipv6Addr, number: u16) -> Vec<u8> {
    let mut message = vec![ECHO_REQUEST, 0, 0, 0, 0x4c, 0x48];
    message.extend(number.to_be_bytes());
    let pseudo = [
        &source.octets()[..],
        &destination.octets(),
        &(message.len() as u32).to_be_bytes(),
        &[0, 0, 0, ICMPV6],
    ];
    let bytes = [pseudo.concat(), message.clone()].concat();
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// The next ICMPv6 message of this type, if one comes in time.
fn next(socket: &Raw, patience: Duration, kind: u8) -> Result<Option<(Ipv6Addr, Vec<u8>)>> {
    while let Some((from, message)) = socket.hear(patience)? {
        if message.first() == Some(&kind) {
            return Ok(Some((from, message)));
        }
    }
    Ok(None)
}

/// The kernel, as a home agent or a correspondent, takes our Home Address option for a binding that it has and for no other,
/// and answers with a type 2 routing header that we read.
fn as_a_correspondent(peer: &Peer) -> Result<()> {
    let (routed, plain) = (peer.socket(ROUTING)?, peer.socket(ICMPV6)?);
    let ask = |home: Ipv6Addr, number| {
        let options = DestinationOptions { next_header: ICMPV6, home_address: Some(home) }.emit();
        let payload = [options, echo_request(home, KERNEL, number)].concat();
        peer.sender.send(&packet(CARE_OF, KERNEL, DESTINATION_OPTIONS, &payload))
    };
    ask(HOME, 1)?;
    let (from, answer) =
        routed.hear(PATIENCE)?.context("the kernel does not take our Home Address option")?;
    let (header, len) = RoutingHeader::parse(&answer)?;
    assert_eq!((from, header.home_address, header.segments_left), (KERNEL, HOME, 1));
    assert_eq!((header.next_header, answer[len], &answer[len + 6..]), (ICMPV6, ECHO_REPLY, &[0, 1][..]));
    // What we would have sent in its place.
    assert_eq!(header.emit(), answer[..len]);
    ask(STRANGER, 2)?;
    assert_eq!(routed.hear(SILENCE)?, None);
    assert_eq!(next(&plain, SILENCE, ECHO_REPLY)?, None);
    Ok(())
}

fn key() -> SharedKey {
    SharedKey::new(4096, Algorithm::HmacSha1_96, b"0123456789abcdef")
}

/// The update of our node comes through the kernel's checks: its Home Address option, its length, and a checksum over the
/// home address. One over the care-of address does not, nor does a malformed one.
fn an_update(peer: &mut Peer) -> Result<()> {
    let mut node = MobileNode::new(node::Config {
        home_address: HOME,
        home_agent: KERNEL,
        name: b"node@example.org".to_vec(),
        key: key(),
        lifetime: BindingLifetime::from_secs(60),
    });
    node.attach(Duration::ZERO, 1_700_000_000_000_000_000, CARE_OF);
    let Some(node::Output::Send(update)) = node.poll_output() else {
        anyhow::bail!("the node sends nothing")
    };
    peer.sender.send(&update)?;
    let message = Signalling::parse(&update)?.message.to_vec();
    peer.heard(HOME, &message)?;

    let options = DestinationOptions { next_header: 135, home_address: Some(HOME) }.emit();
    let refresh = Repr { message: Message::HomeTestInit(*b"careless"), options: vec![] };
    let wrong = refresh.emit(Endpoints { source: CARE_OF, destination: KERNEL })?;
    peer.sender.send(&packet(CARE_OF, KERNEL, DESTINATION_OPTIONS, &[&options[..], &wrong].concat()))?;
    // A Home Test Init has 16 bytes; this one says 8.
    let mut short = wrong[..8].to_vec();
    short[1] = 0;
    let plain = peer.socket(ICMPV6)?;
    peer.sender.send(&packet(CARE_OF, KERNEL, DESTINATION_OPTIONS, &[&options[..], &short].concat()))?;
    let (from, problem) = next(&plain, PATIENCE, PARAMETER_PROBLEM)?.context("no Parameter Problem")?;
    // Erroneous header field: Header Len, behind the IPv6 header and the destination options.
    let pointer = u32::from_be_bytes(problem[4..8].try_into()?);
    assert_eq!((from, problem[1], pointer), (KERNEL, 0, 40 + 24 + 1));
    // Later than those two, so they would have been heard by now.
    let right = refresh.emit(Endpoints { source: HOME, destination: KERNEL })?;
    peer.sender.send(&packet(CARE_OF, KERNEL, DESTINATION_OPTIONS, &[&options[..], &right].concat()))?;
    peer.heard(HOME, &right)?;
    ensure!(
        !peer.kernel.console().contains(&to_hex(&wrong)),
        "a checksum over the care-of address was taken"
    );
    ensure!(
        !peer.kernel.console().contains(&format!("{}.", to_hex(&short))),
        "a message cut short was taken"
    );
    Ok(())
}

/// The kernel as a mobile node takes the acknowledgement of our home agent, with its type 2 routing header, for its own home
/// address and no other.
fn an_acknowledgement(peer: &mut Peer) -> Result<()> {
    let acknowledge = |home: Ipv6Addr, lifetime_s| -> Result<Vec<u8>> {
        let mut anchor = Anchor::new(anchor::Config {
            address: CARE_OF,
            max_nodes: 1,
            max_lifetime: BindingLifetime::from_secs(600),
            max_transient: TransientLifetime::from_ms(1000),
            restart_counter: 1,
            started_unix_ns: 0,
            user_plane: None,
        });
        let prefix = Ipv6Prefix::new(home, 128).context("128 is a length")?;
        let (node, registrant) = (b"kernel".to_vec(), Registrant::MobileNode);
        anchor.authorize(Authorization { key: key(), node: node.clone(), prefix, ipv4: None, registrant })?;
        let mut mobile = MobileNode::new(node::Config {
            home_address: home,
            home_agent: CARE_OF,
            name: node,
            key: key(),
            lifetime: BindingLifetime::from_secs(lifetime_s),
        });
        mobile.attach(Duration::ZERO, 1_700_000_000_000_000_000, KERNEL);
        let Some(node::Output::Send(update)) = mobile.poll_output() else { anyhow::bail!("no update") };
        anchor.handle_packet(Duration::ZERO, 1_700_000_000_000_000_000, &update)?;
        let told = std::iter::from_fn(|| anchor.poll_output()).find_map(|output| match output {
            anchor::Output::Send(packet) => Some(packet),
            _ => None,
        });
        let told = told.context("no acknowledgement")?;
        peer.sender.send(&told)?;
        Ok(Signalling::parse(&told)?.message.to_vec())
    };
    let not_its_own = acknowledge(STRANGER, 76)?;
    let message = acknowledge(KERNELS_HOME, 80)?;
    peer.heard(CARE_OF, &message)?;
    ensure!(!peer.kernel.console().contains(&to_hex(&not_its_own)), "another's routing header was taken");
    Ok(())
}

/// What the kernel sends as a mobile node: a Home Address option that we read, and would write the same.
fn as_a_mobile_node(peer: &Peer) -> Result<()> {
    let homed = peer.socket(DESTINATION_OPTIONS)?;
    let routing = RoutingHeader { next_header: ICMPV6, segments_left: 1, home_address: KERNELS_HOME }.emit();
    let payload = [routing, echo_request(CARE_OF, KERNELS_HOME, 3)].concat();
    peer.sender.send(&packet(CARE_OF, KERNEL, ROUTING, &payload))?;
    let (from, answer) = homed.hear(PATIENCE)?.context("the kernel does not take our routing header")?;
    let (options, len) = DestinationOptions::parse(&answer)?;
    assert_eq!((from, options.home_address, options.next_header), (KERNEL, Some(KERNELS_HOME), ICMPV6));
    assert_eq!((answer[len], options.emit()), (ECHO_REPLY, answer[..len].to_vec()));
    Ok(())
}

#[test]
fn debians_kernel_and_we_understand_each_other() -> Result<()> {
    let mut peer = Peer::start()?;
    as_a_correspondent(&peer)?;
    an_update(&mut peer)?;
    an_acknowledgement(&mut peer)?;
    as_a_mobile_node(&peer)
}
