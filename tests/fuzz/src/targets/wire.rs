//! What peers and probes send: the messages of the protocol, their framing, probe packets.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::ops::RangeInclusive;

use bytes::Bytes;
use longhaul_proto::handoff::Message;
use longhaul_proto::wire::*;
use longhaul_proto::{Epoch, JobId};
use mobility_proto::probe::stats::WINDOW;
use mobility_proto::probe::{PACKET_BYTES, Packet, StreamStats};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The message that these bytes are. Written again it is no longer, reads the same, and neither less nor more of it is
/// this message.
fn message<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) -> Option<T> {
    let message = from_bytes::<T>(bytes).ok()?;
    let written = frame(&message).expect("what was read can be sent");
    let (prefix, payload) = written.split_first_chunk::<4>().expect("a frame has a length");
    assert_eq!(frame_len(*prefix), Ok(payload.len()));
    assert!(payload.len() <= bytes.len());
    let again = from_bytes::<T>(payload).expect("what is sent can be read");
    assert_eq!(again, message);
    assert_eq!(frame(&again), Ok(written.clone()));
    if let Some((_, shorter)) = payload.split_last() {
        assert_ne!(from_bytes(shorter).as_ref(), Ok(&message));
    }
    assert!(from_bytes::<T>(&[payload, &[0]].concat()).is_err());
    Some(message)
}

const NAME: RangeInclusive<usize> = 0..=MAX_NAME_BYTES;
const BATCH: RangeInclusive<usize> = 0..=MAX_BATCH_EXTENTS;

pub(super) fn open(bytes: &[u8]) {
    let names = match message::<Open>(bytes) {
        Some(Open::Transfer { target: Target::Base { name }, .. }) => vec![name],
        Some(Open::Transfer {
            target:
                Target::Replica { vm, disk } | Target::Estimate { vm, disk } | Target::ReplicaSet { vm, disk, .. },
            ..
        }) => {
            vec![vm, disk]
        }
        Some(Open::Handoff { message: Message::Offer { vm, plan, .. }, .. }) => {
            assert!(plan.len() <= MAX_PLAN_BYTES);
            vec![vm]
        }
        Some(Open::Handoff { message: Message::Final { roots }, .. }) => {
            assert!(roots.len() <= MAX_DISKS);
            Vec::new()
        }
        Some(Open::Fetch { names }) => {
            assert!(BATCH.contains(&names.len()));
            Vec::new()
        }
        _ => Vec::new(),
    };
    assert!(names.iter().all(|name| NAME.contains(&name.len())), "{names:?}");
}

pub(super) fn to_receiver(bytes: &[u8]) {
    match message::<ToReceiver>(bytes) {
        Some(ToReceiver::Extents { extents, .. }) => assert!(BATCH.contains(&extents.len())),
        Some(ToReceiver::Chunks { indices, .. }) => assert!(BATCH.contains(&indices.len())),
        Some(ToReceiver::Delta { runs, .. }) => assert!(BATCH.contains(&runs.len())),
        _ => {}
    }
}

pub(super) fn to_sender(bytes: &[u8]) {
    if let Some(ToSender::Want { indices, .. }) = message::<ToSender>(bytes) {
        assert!(BATCH.contains(&indices.len()));
    }
}

/// The messages that come alone.
pub(super) fn answers(bytes: &[u8]) {
    message::<Taken>(bytes);
    message::<Fetched>(bytes);
    if let Some(status) = message::<PeerStatus>(bytes) {
        assert!(NAME.contains(&status.name.len()) && NAME.contains(&status.version.len()));
    }
}

/// A stream from its first byte, as the receiving end of a transfer reads it.
pub(super) fn frames(mut stream: &[u8]) {
    let mut opened = false;
    while let Some((prefix, rest)) = stream.split_first_chunk::<4>() {
        let length = frame_len(*prefix);
        assert_eq!(length.is_ok(), u32::from_le_bytes(*prefix) as usize <= MAX_FRAME_BYTES);
        let Ok(length) = length else { return };
        // Its receiver makes room for it before it comes.
        let mut frame = vec![0; length];
        let Some((payload, rest)) = rest.split_at_checked(length) else { return };
        frame.copy_from_slice(payload);
        let read = match opened {
            false => message::<Open>(&frame).is_some(),
            true => message::<ToReceiver>(&frame).is_some(),
        };
        if !read {
            return;
        }
        (opened, stream) = (true, rest);
    }
}

fn payloads<T: Serialize>(messages: impl IntoIterator<Item = T>) -> Vec<Vec<u8>> {
    let payload = |message| frame(&message).expect("it can be sent").split_off(4);
    messages.into_iter().map(payload).collect()
}

/// Seeds are at a limit and one beyond it: a mutation seldom makes a length and what it counts agree.
fn longest_name() -> String {
    "n".repeat(MAX_NAME_BYTES)
}

fn too_long_name() -> String {
    "n".repeat(MAX_NAME_BYTES + 1)
}

fn open_messages() -> Vec<Open> {
    let job = JobId(*b"0123456789abcdef");
    let (vm, disk) = ("web".to_owned(), "root".to_owned());
    let transfer = |target| Open::Transfer { target, size: 1 << 40 };
    let targets = [
        Target::Base { name: longest_name() },
        Target::Base { name: too_long_name() },
        Target::Replica { vm: vm.clone(), disk: disk.clone() },
        Target::Migration { job, disk: 255 },
        Target::ReplicaSet { vm: vm.clone(), disk: disk.clone(), set: job, disks: 2 },
        Target::Estimate { vm: vm.clone(), disk },
    ];
    let messages = [
        Message::Offer { vm, epoch: Epoch(1), plan: b"{}".to_vec() },
        Message::Accepted,
        Message::StartMemory,
        Message::MemoryReady,
        Message::Final { roots: vec![[1; 32]; 2] },
        Message::Final { roots: vec![[0; 32]; MAX_DISKS] },
        Message::Final { roots: vec![[0; 32]; MAX_DISKS + 1] },
        Message::Ready { sealed_us: 1 << 20 },
        Message::Release { epoch: Epoch(u64::MAX) },
        Message::Resumed,
        Message::Abort { reason: "because".into() },
        Message::Query,
        Message::Unknown,
        Message::Preparing,
    ];
    let handoff = messages.into_iter().map(|message| Open::Handoff { job, message });
    let fetch = |count| Open::Fetch { names: vec![[5; 32]; count] };
    let alone = [
        Open::Memory { job },
        Open::Status,
        Open::Striped { token: [6; 16], lanes: 1024 },
        Open::Lane { token: [6; 16], index: 1023 },
        fetch(2),
        fetch(MAX_BATCH_EXTENTS),
        fetch(MAX_BATCH_EXTENTS + 1),
    ];
    targets.map(transfer).into_iter().chain(handoff).chain(alone).collect()
}

pub(super) fn opens() -> Vec<Vec<u8>> {
    payloads(open_messages())
}

fn receiver_messages() -> Vec<ToReceiver> {
    let data = Packed { codec: 1, plain_len: 300, bytes: Bytes::from_static(b"some bytes") };
    let chunk = Extent::Chunk { len: 65536, name: [7; 32] };
    let run = |offset: u64, zero: bool| Run { offset, len: 4096, zero };
    vec![
        ToReceiver::Extents { batch: 0, extents: vec![chunk, Extent::Hole { len: 1 << 33 }] },
        ToReceiver::Extents { batch: 9, extents: vec![Extent::Hole { len: 1 }; MAX_BATCH_EXTENTS] },
        ToReceiver::Extents { batch: 9, extents: vec![Extent::Hole { len: 1 }; MAX_BATCH_EXTENTS + 1] },
        ToReceiver::Chunks { batch: 1, indices: vec![2, 0], data: data.clone() },
        ToReceiver::Chunks { batch: 1, indices: vec![2; MAX_BATCH_EXTENTS + 1], data: data.clone() },
        ToReceiver::Delta { runs: vec![run(0, false), run(1 << 40, true)], data: data.clone() },
        ToReceiver::Delta { runs: vec![run(0, true); MAX_BATCH_EXTENTS], data: data.clone() },
        ToReceiver::Delta { runs: vec![run(0, true); MAX_BATCH_EXTENTS + 1], data },
        ToReceiver::Sync { mark: FINAL_MARK },
        ToReceiver::Commit { root: [3; 32], after: 7, taken_unix_ms: 1_700_000_000_000 },
        ToReceiver::Alive,
    ]
}

pub(super) fn to_receivers() -> Vec<Vec<u8>> {
    payloads(receiver_messages())
}

pub(super) fn to_senders() -> Vec<Vec<u8>> {
    let refused = Refusal { kind: RefusalKind::Diverged, reason: "another".into() };
    payloads([
        ToSender::Accepted(TargetStatus { generation: 3, root: Some([1; 32]) }),
        ToSender::Accepted(TargetStatus { generation: 0, root: None }),
        ToSender::Refused(refused),
        ToSender::Want { batch: 1, indices: vec![0, 5, 1000] },
        ToSender::Want { batch: 1, indices: vec![1; MAX_BATCH_EXTENTS] },
        ToSender::Want { batch: 1, indices: vec![1; MAX_BATCH_EXTENTS + 1] },
        ToSender::Synced { mark: 1 },
        ToSender::Committed { generation: u64::MAX },
    ])
}

pub(super) fn answer_seeds() -> Vec<Vec<u8>> {
    let status = |name| PeerStatus { name, version: "0.1.0".into(), free_bytes: 1 << 40, gateway: None };
    let statuses = payloads([status("a".into()), status(longest_name()), status(too_long_name())]);
    let data = Packed { codec: 0, plain_len: 3, bytes: Bytes::from_static(b"abc") };
    let fetched = payloads([Fetched { data: None }, Fetched { data: Some(data) }]);
    [statuses, payloads([Taken { bytes: 1 << 33 }]), fetched].concat()
}

pub(super) fn frame_seeds() -> Vec<Vec<u8>> {
    // Those beyond a limit would end the stream.
    let short = |frame: &Vec<u8>| frame.len() < 256;
    let frames: Vec<Vec<u8>> = receiver_messages()
        .iter()
        .map(|message| frame(message).expect("it can be sent"))
        .filter(short)
        .collect();
    let open = |open: &Open| frame(open).expect("it can be sent");
    open_messages().iter().skip(2).take(3).map(|message| [open(message), frames.concat()].concat()).collect()
}

/// A datagram of the probe's length is a packet; otherwise the input is arrivals: how long after the one before (2
/// bytes), number and time of sending (8 each).
pub(super) fn probe(bytes: &[u8]) {
    match Packet::parse(bytes) {
        Ok(packet) => {
            let written = packet.encode();
            assert!(written[..64] == bytes[..64] && written[64..].iter().all(|byte| *byte == 0));
            assert_eq!(Packet::parse(&written), Ok(packet));
        }
        Err(_) => assert!(bytes.len() != PACKET_BYTES || !bytes.starts_with(b"LHPROBE1")),
    }
    arrivals(bytes);
}

/// The statistics of a stream are those of the set of its numbers, as long as none of them is out of the window.
fn arrivals(bytes: &[u8]) {
    let mut stats = StreamStats::new();
    let (mut now_ns, mut seen, mut duplicated, mut reordered) = (0, BTreeSet::new(), 0, 0);
    for arrival in bytes.chunks_exact(18) {
        let number = |at: usize, len: usize| {
            arrival[at..at + len].iter().fold(0_u64, |value, byte| value << 8 | u64::from(*byte))
        };
        now_ns += number(0, 2) << 20;
        let (seq, sent_ns) = (number(2, 8), number(10, 8));
        stats.arrived(now_ns, &Packet { stream: 1, seq, sent_ns, words: [seq; 4] });
        let highest = seen.last().copied();
        if !seen.insert(seq) {
            duplicated += 1;
        } else if highest.is_some_and(|highest| seq < highest) {
            reordered += 1;
        }
    }
    let now = stats.snapshot();
    assert_eq!(now.received, bytes.len() as u64 / 18);
    let (Some(&first), Some(&last)) = (seen.first(), seen.last()) else { return };
    assert!(now.last_seq == last && now.word_max == [last; 4] && now.last_arrival_ns == now_ns);
    assert!(now.stale == 0 || last - first >= WINDOW);
    if now.stale == 0 {
        let lost = (last - first).saturating_add(1) - seen.len() as u64;
        assert_eq!((now.first_seq, now.lost), (first, lost));
        assert_eq!((now.duplicated, now.reordered), (duplicated, reordered));
    }
}

pub(super) fn probes() -> Vec<Vec<u8>> {
    let packet = Packet { stream: 1, seq: 2, sent_ns: 3, words: [4, 5, 6, 7] };
    let arrivals = |numbers: &[u64]| -> Vec<u8> {
        let arrival =
            |seq: &u64| [&[0, 20][..], &seq.to_be_bytes(), &(seq * 20_000_000).to_be_bytes()].concat();
        numbers.iter().flat_map(arrival).collect()
    };
    vec![packet.encode().into(), arrivals(&[1, 2, 3, 5, 4, 4, 9]), arrivals(&[70_000, 1, 140_000, 140_001])]
}
