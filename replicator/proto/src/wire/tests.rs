//! Every message there and back, and bytes that are no message. What hostile lengths cost in memory is measured in
//! `tests/hostile_lengths.rs`, which needs an allocator of its own.

use std::fmt::Debug;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::handoff::{Message, Record};
use crate::ids::Epoch;

fn name() -> impl Strategy<Value = String> {
    "[a-zäß€0-9_-]{0,60}"
}

fn root() -> impl Strategy<Value = Root> {
    any::<[u8; 32]>()
}

fn job() -> impl Strategy<Value = JobId> {
    any::<[u8; 16]>().prop_map(JobId)
}

fn epoch() -> impl Strategy<Value = Epoch> {
    any::<u64>().prop_map(Epoch)
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        (name(), epoch(), vec(any::<u8>(), 0..300)).prop_map(|(vm, epoch, plan)| Message::Offer {
            vm,
            epoch,
            plan
        }),
        Just(Message::Accepted),
        Just(Message::StartMemory),
        Just(Message::MemoryReady),
        vec(root(), 0..5).prop_map(|roots| Message::Final { roots }),
        any::<u64>().prop_map(|sealed_us| Message::Ready { sealed_us }),
        epoch().prop_map(|epoch| Message::Release { epoch }),
        Just(Message::Resumed),
        ".{0,200}".prop_map(|reason| Message::Abort { reason }),
        Just(Message::Query),
        Just(Message::Unknown),
        Just(Message::Preparing),
    ]
}

pub(crate) fn record() -> impl Strategy<Value = Record> {
    prop_oneof![
        (name(), name(), epoch()).prop_map(|(vm, peer, epoch)| Record::Started { vm, peer, epoch }),
        epoch().prop_map(|epoch| Record::Released { epoch }),
        Just(Record::Retired),
        ".{0,100}".prop_map(|reason| Record::RolledBack { reason }),
        (name(), name(), epoch(), vec(any::<u8>(), 0..200))
            .prop_map(|(vm, peer, epoch, plan)| Record::Accepted { vm, peer, epoch, plan }),
        Just(Record::Ready),
        epoch().prop_map(|epoch| Record::Owned { epoch }),
        Just(Record::Resumed),
        ".{0,100}".prop_map(|reason| Record::Discarded { reason }),
        Just(Record::Rebound),
    ]
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        name().prop_map(|name| Target::Base { name }),
        (name(), name()).prop_map(|(vm, disk)| Target::Estimate { vm, disk }),
        (name(), name()).prop_map(|(vm, disk)| Target::Replica { vm, disk }),
        (job(), any::<u32>()).prop_map(|(job, disk)| Target::Migration { job, disk }),
        (name(), name()).prop_map(|(vm, disk)| Target::Estimate { vm, disk }),
        (name(), name(), job(), any::<u32>()).prop_map(|(vm, disk, set, disks)| Target::ReplicaSet {
            vm,
            disk,
            set,
            disks
        }),
    ]
}

fn open() -> impl Strategy<Value = Open> {
    prop_oneof![
        (target(), any::<u64>()).prop_map(|(target, size)| Open::Transfer { target, size }),
        job().prop_map(|job| Open::Memory { job }),
        (job(), message()).prop_map(|(job, message)| Open::Handoff { job, message }),
        Just(Open::Status),
        vec(root(), 0..40).prop_map(|names| Open::Fetch { names }),
        name().prop_map(|vm| Open::Claim { vm }),
        (name(), any::<u64>(), vec(any::<u8>(), 0..100)).prop_map(|(vm, epoch, plan)| Open::Judge {
            vm,
            epoch: Epoch(epoch),
            plan
        }),
        (any::<[u8; 16]>(), any::<u16>()).prop_map(|(token, lanes)| Open::Striped { token, lanes }),
        (any::<[u8; 16]>(), any::<u16>()).prop_map(|(token, index)| Open::Lane { token, index }),
    ]
}

fn relation() -> impl Strategy<Value = Relation> {
    use Relation::*;
    prop_oneof![Just(Stranger), Just(Owner), Just(Elsewhere), Just(Undecided), Just(Removed)]
}

fn packed() -> impl Strategy<Value = Packed> {
    (any::<u8>(), any::<u32>(), vec(any::<u8>(), 0..500)).prop_map(|(codec, plain_len, bytes)| Packed {
        codec,
        plain_len,
        bytes: bytes.into(),
    })
}

fn extent() -> impl Strategy<Value = Extent> {
    prop_oneof![
        (any::<u32>(), root()).prop_map(|(len, name)| Extent::Chunk { len, name }),
        any::<u64>().prop_map(|len| Extent::Hole { len }),
    ]
}

fn to_receiver() -> impl Strategy<Value = ToReceiver> {
    let run = (any::<u64>(), any::<u32>(), any::<bool>());
    prop_oneof![
        (any::<u32>(), vec(extent(), 0..40))
            .prop_map(|(batch, extents)| ToReceiver::Extents { batch, extents }),
        (any::<u32>(), vec(any::<u32>(), 0..40), packed())
            .prop_map(|(batch, indices, data)| ToReceiver::Chunks { batch, indices, data }),
        (vec(run.prop_map(|(offset, len, zero)| Run { offset, len, zero }), 0..40), packed())
            .prop_map(|(runs, data)| ToReceiver::Delta { runs, data }),
        any::<u32>().prop_map(|mark| ToReceiver::Sync { mark }),
        (root(), any::<u64>(), any::<u64>()).prop_map(|(root, after, taken_unix_ms)| ToReceiver::Commit {
            root,
            after,
            taken_unix_ms
        }),
        Just(ToReceiver::Alive),
    ]
}

fn target_status() -> impl Strategy<Value = TargetStatus> {
    (any::<u64>(), option::of(root())).prop_map(|(generation, root)| TargetStatus { generation, root })
}

fn peer_status() -> impl Strategy<Value = PeerStatus> {
    (name(), name(), any::<u64>()).prop_map(|(name, version, free_bytes)| PeerStatus {
        gateway: Some([7; 16]),
        name,
        version,
        free_bytes,
    })
}

fn to_sender() -> impl Strategy<Value = ToSender> {
    let kind = prop_oneof![
        Just(RefusalKind::Busy),
        Just(RefusalKind::Unknown),
        Just(RefusalKind::NoSpace),
        Just(RefusalKind::Protocol),
        Just(RefusalKind::Diverged),
        Just(RefusalKind::Failed),
    ];
    prop_oneof![
        target_status().prop_map(ToSender::Accepted),
        (kind, ".{0,80}").prop_map(|(kind, reason)| ToSender::Refused(Refusal { kind, reason })),
        (any::<u32>(), vec(any::<u32>(), 0..60))
            .prop_map(|(batch, indices)| ToSender::Want { batch, indices }),
        any::<u32>().prop_map(|mark| ToSender::Synced { mark }),
        any::<u64>().prop_map(|generation| ToSender::Committed { generation }),
    ]
}

/// There and back; and neither a part of it nor more than it is this or any other message... of the same length.
fn there_and_back<T: Serialize + DeserializeOwned + PartialEq + Debug>(
    message: &T,
) -> Result<(), TestCaseError> {
    let frame = frame(message).unwrap();
    let (prefix, payload) = frame.split_first_chunk::<4>().unwrap();
    prop_assert_eq!(frame_len(*prefix), Ok(payload.len()));
    prop_assert_eq!(&from_bytes::<T>(payload).unwrap(), message);
    for end in 0..payload.len() {
        prop_assert!(from_bytes::<T>(&payload[..end]).is_err(), "cut at {}", end);
    }
    let mut longer = payload.to_vec();
    longer.push(0);
    prop_assert!(from_bytes::<T>(&longer).is_err());
    Ok(())
}

/// Whatever these bytes are: an error, or a message that says the same when it is written again.
fn judge<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(message) = from_bytes::<T>(bytes) {
        let again = to_bytes(&message).unwrap();
        prop_assert!(again.len() <= bytes.len(), "{} bytes became {}", bytes.len(), again.len());
        prop_assert_eq!(from_bytes::<T>(&again).unwrap(), message);
    }
    Ok(())
}

fn judge_as_any(bytes: &[u8]) -> Result<(), TestCaseError> {
    judge::<Open>(bytes)?;
    judge::<ToReceiver>(bytes)?;
    judge::<ToSender>(bytes)?;
    judge::<PeerStatus>(bytes)?;
    judge::<ClaimAnswer>(bytes)?;
    judge::<Judgement>(bytes)?;
    judge::<Fetched>(bytes)?;
    judge::<TargetStatus>(bytes)?;
    judge::<Record>(bytes)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn opens(message in open()) { there_and_back(&message)?; }

    #[test]
    fn what_a_sender_says(message in to_receiver()) { there_and_back(&message)?; }

    #[test]
    fn what_a_receiver_says(message in to_sender()) { there_and_back(&message)?; }

    #[test]
    fn what_is_answered(peer in peer_status(), target in target_status(), bytes in any::<u64>()) {
        there_and_back(&Taken { bytes })?;
        there_and_back(&peer)?;
        there_and_back(&target)?;
    }

    #[test]
    fn claims(epoch in epoch(), relation in relation()) {
        there_and_back(&ClaimAnswer { epoch, relation })?;
    }

    #[test]
    fn records(message in record()) { there_and_back(&message)?; }

    #[test]
    fn random_bytes(bytes in vec(any::<u8>(), 0..200)) { judge_as_any(&bytes)?; }

    /// Likelier to get past the first byte.
    #[test]
    fn small_bytes(bytes in vec(0..6u8, 0..60)) { judge_as_any(&bytes)?; }

    #[test]
    fn a_changed_byte(message in to_receiver(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = to_bytes(&message).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        judge_as_any(&bytes)?;
    }

    #[test]
    fn any_prefix(prefix in any::<[u8; 4]>()) {
        let length = u32::from_le_bytes(prefix) as usize;
        prop_assert_eq!(frame_len(prefix).is_ok(), length <= MAX_FRAME_BYTES);
    }
}

#[test]
fn frames_end_at_their_bound() {
    let within = (MAX_FRAME_BYTES as u32).to_le_bytes();
    assert_eq!(frame_len(within), Ok(MAX_FRAME_BYTES));
    let beyond = (MAX_FRAME_BYTES as u32 + 1).to_le_bytes();
    assert_eq!(frame_len(beyond), Err(FrameError::TooLong(MAX_FRAME_BYTES + 1)));
    let data = |len: usize| {
        let data = Packed { codec: 0, plain_len: 0, bytes: vec![0; len].into() };
        ToReceiver::Chunks { batch: 0, indices: vec![0], data }
    };
    let overhead = to_bytes(&data(1 << 20)).unwrap().len() - (1 << 20);
    assert!(frame(&data(MAX_FRAME_BYTES - overhead)).is_ok());
    assert!(matches!(frame(&data(MAX_FRAME_BYTES - overhead + 1)), Err(FrameError::TooLong(_))));
}

/// The largest message of each kind that the limits allow fits a frame and can be read again.
#[test]
fn the_largest_messages_fit() {
    let bytes = |len: usize| Packed { codec: 1, plain_len: u32::MAX, bytes: vec![0xa5; len].into() };
    let most = |run| vec![run; MAX_BATCH_EXTENTS];
    let runs = most(Run { offset: u64::MAX, len: u32::MAX, zero: true });
    let extents = vec![Extent::Chunk { len: u32::MAX, name: [7; 32] }; MAX_BATCH_EXTENTS];
    let largest = [
        ToReceiver::Extents { batch: u32::MAX, extents },
        // What zstd makes of data that does not compress is a little longer than the data.
        ToReceiver::Chunks {
            batch: u32::MAX,
            indices: vec![u32::MAX; MAX_BATCH_EXTENTS],
            data: bytes(MAX_GROUP_BYTES + 65536),
        },
        ToReceiver::Delta { runs, data: bytes(MAX_DELTA_BYTES + 65536) },
    ];
    for message in largest {
        assert_eq!(from_bytes::<ToReceiver>(&frame(&message).unwrap()[4..]).unwrap(), message);
    }
    let want = ToSender::Want { batch: u32::MAX, indices: vec![u32::MAX; MAX_BATCH_EXTENTS] };
    assert_eq!(from_bytes::<ToSender>(&frame(&want).unwrap()[4..]).unwrap(), want);
    let plan = vec![0xff; MAX_PLAN_BYTES];
    let message =
        Message::Offer { vm: "v".repeat(MAX_NAME_BYTES), epoch: Epoch(u64::MAX), plan: plan.clone() };
    let offer = Open::Handoff { job: JobId([9; 16]), message };
    assert_eq!(from_bytes::<Open>(&frame(&offer).unwrap()[4..]).unwrap(), offer);
    let (vm, peer) = ("v".repeat(MAX_NAME_BYTES), "p".repeat(MAX_NAME_BYTES));
    let record = Record::Accepted { vm, peer, epoch: Epoch(u64::MAX), plan };
    assert!(crate::journal::encode(&record).is_ok(), "an offer that can be read can be written down");
}

#[test]
fn what_is_beyond_a_limit_is_no_message() {
    let refused = |bytes: Vec<u8>| from_bytes::<ToReceiver>(&bytes).is_err();
    let hole = Extent::Hole { len: 1 };
    let extents = |count| ToReceiver::Extents { batch: 0, extents: vec![hole; count] };
    assert!(!refused(to_bytes(&extents(MAX_BATCH_EXTENTS)).unwrap()));
    assert!(refused(to_bytes(&extents(MAX_BATCH_EXTENTS + 1)).unwrap()));
    let run = Run { offset: 0, len: 1, zero: true };
    let data = Packed { codec: 0, plain_len: 0, bytes: Bytes::new() };
    let runs = vec![run; MAX_BATCH_EXTENTS + 1];
    assert!(refused(to_bytes(&ToReceiver::Delta { runs, data }).unwrap()));
    let want = ToSender::Want { batch: 0, indices: vec![0; MAX_BATCH_EXTENTS + 1] };
    assert!(from_bytes::<ToSender>(&to_bytes(&want).unwrap()).is_err());
    let job = JobId([0; 16]);
    let too_much = [
        Open::Transfer { target: Target::Base { name: "n".repeat(MAX_NAME_BYTES + 1) }, size: 1 },
        Open::Handoff { job, message: Message::Final { roots: vec![[0; 32]; MAX_DISKS + 1] } },
        Open::Handoff {
            job,
            message: Message::Offer { vm: String::new(), epoch: Epoch(1), plan: vec![0; MAX_PLAN_BYTES + 1] },
        },
        Open::Handoff {
            job,
            message: Message::Offer { vm: "v".repeat(MAX_NAME_BYTES + 1), epoch: Epoch(1), plan: Vec::new() },
        },
    ];
    for open in too_much {
        assert!(from_bytes::<Open>(&to_bytes(&open).unwrap()).is_err());
    }
    let status = |name: usize, version: usize| PeerStatus {
        name: "n".repeat(name),
        version: "v".repeat(version),
        free_bytes: 0,
        gateway: None,
    };
    let read = |status| from_bytes::<PeerStatus>(&to_bytes(&status).unwrap());
    assert!(read(status(MAX_NAME_BYTES, MAX_NAME_BYTES)).is_ok());
    assert!(read(status(MAX_NAME_BYTES + 1, 1)).is_err() && read(status(1, MAX_NAME_BYTES + 1)).is_err());
}

/// What PROTOCOL.md gives as examples, and with it numbers of variants: a change here is another protocol.
#[test]
fn the_examples_of_the_document() {
    let document = include_str!("../../../PROTOCOL.md");
    assert!(document.contains(&format!("\nVersion: {PROTOCOL_VERSION}\n")));
    assert_eq!(ALPN, format!("longhaul/{PROTOCOL_VERSION}").as_bytes());
    let told = |bytes: Vec<u8>| {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(document.contains(&format!("`{hex}`")), "PROTOCOL.md does not have {hex}");
    };
    let job = JobId(*b"0123456789abcdef");
    told(frame(&Open::Status).unwrap());
    told(frame(&Fetched { data: None }).unwrap());
    told(frame(&Open::Transfer { target: Target::Base { name: "deb".into() }, size: 4 << 30 }).unwrap());
    told(frame(&Open::Handoff { job, message: Message::Release { epoch: Epoch(2) } }).unwrap());
    told(frame(&Open::Striped { token: *b"0123456789abcdef", lanes: MAX_LANES }).unwrap());
    told(frame(&Open::Lane { token: *b"0123456789abcdef", index: 2 }).unwrap());
    let extents = vec![Extent::Hole { len: 65536 }, Extent::Chunk { len: 300, name: [0xab; 32] }];
    let mut batch = frame(&ToReceiver::Extents { batch: 1, extents }).unwrap();
    assert_eq!(batch.split_off(batch.len() - 32), [0xab; 32]);
    told(batch);
    told(crate::journal::encode(&Record::Ready).unwrap());
}

/// The tables of PROTOCOL.md number every variant; here they are counted.
#[test]
fn the_numbers_of_the_document() {
    let number = |bytes: Vec<u8>| bytes[0];
    let text = String::new;
    let root = [0; 32];
    let messages = [
        Message::Offer { vm: text(), epoch: Epoch(0), plan: Vec::new() },
        Message::Accepted,
        Message::StartMemory,
        Message::MemoryReady,
        Message::Final { roots: Vec::new() },
        Message::Ready { sealed_us: 0 },
        Message::Release { epoch: Epoch(0) },
        Message::Resumed,
        Message::Abort { reason: text() },
        Message::Query,
        Message::Unknown,
        Message::Preparing,
    ];
    let records = [
        Record::Started { vm: text(), peer: text(), epoch: Epoch(0) },
        Record::Released { epoch: Epoch(0) },
        Record::Retired,
        Record::RolledBack { reason: text() },
        Record::Accepted { vm: text(), peer: text(), epoch: Epoch(0), plan: Vec::new() },
        Record::Ready,
        Record::Owned { epoch: Epoch(0) },
        Record::Resumed,
        Record::Discarded { reason: text() },
        Record::Rebound,
    ];
    let targets = [
        Target::Base { name: text() },
        Target::Replica { vm: text(), disk: text() },
        Target::Migration { job: JobId([0; 16]), disk: 0 },
        Target::Estimate { vm: text(), disk: text() },
        Target::ReplicaSet { vm: text(), disk: text(), set: JobId([0; 16]), disks: 0 },
    ];
    let data = Packed { codec: 0, plain_len: 0, bytes: Bytes::new() };
    let to_receiver = [
        ToReceiver::Extents { batch: 0, extents: Vec::new() },
        ToReceiver::Chunks { batch: 0, indices: Vec::new(), data: data.clone() },
        ToReceiver::Delta { runs: Vec::new(), data },
        ToReceiver::Sync { mark: 0 },
        ToReceiver::Commit { root, after: 0, taken_unix_ms: 0 },
        ToReceiver::Alive,
    ];
    let kinds = [
        RefusalKind::Busy,
        RefusalKind::Unknown,
        RefusalKind::NoSpace,
        RefusalKind::Protocol,
        RefusalKind::Diverged,
        RefusalKind::Failed,
    ];
    let to_sender = [
        ToSender::Accepted(TargetStatus { generation: 0, root: None }),
        ToSender::Refused(Refusal { kind: RefusalKind::Busy, reason: text() }),
        ToSender::Want { batch: 0, indices: Vec::new() },
        ToSender::Synced { mark: 0 },
        ToSender::Committed { generation: 0 },
        ToSender::Working,
    ];
    assert!((0..).zip(messages).all(|(index, one)| number(to_bytes(&one).unwrap()) == index));
    assert!((0..).zip(records).all(|(index, one)| number(to_bytes(&one).unwrap()) == index));
    assert!((0..).zip(targets).all(|(index, one)| number(to_bytes(&one).unwrap()) == index));
    assert!((0..).zip(to_receiver).all(|(index, one)| number(to_bytes(&one).unwrap()) == index));
    assert!((0..).zip(to_sender).all(|(index, one)| number(to_bytes(&one).unwrap()) == index));
    assert!((0..).zip(kinds).all(|(index, one)| number(to_bytes(&one).unwrap()) == index));
}
