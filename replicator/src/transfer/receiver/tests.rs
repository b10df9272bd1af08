//! What a receiver takes and what it refuses, message by message: a sender may be broken or hostile.

use std::sync::{Arc, Mutex};

use chunkstore::Encoded;
use longhaul_proto::handoff::Root;
use longhaul_proto::wire::FINAL_MARK;

use super::*;
use crate::service::net::lanes::LaneSend;
use crate::service::net::testing::{Pair, pair, striped};
use crate::transfer::pack;
use crate::transfer::sender::Sender;

const SIZE: u64 = 64 << 10;

/// An image in memory that holds no chunk beforehand.
#[derive(Clone, Default)]
struct Image(Arc<Mutex<Vec<u8>>>);

impl Image {
    fn put(&self, offset: u64, bytes: &[u8]) {
        let mut image = self.0.lock().unwrap();
        image.resize(SIZE as usize, 0);
        image[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }
}

impl Sink for Image {
    fn place(&mut self, _: u64, _: u32, _: ChunkId) -> Result<bool, Refusal> {
        Ok(false)
    }

    fn expect(&mut self, _: u64, _: u32, _: ChunkId) -> Result<(), Refusal> {
        Ok(())
    }

    fn hole(&mut self, offset: u64, len: u64) -> Result<(), Refusal> {
        self.put(offset, &vec![0; len as usize]);
        Ok(())
    }

    fn chunks(&mut self, group: &Group, offsets: &[Vec<u64>]) -> Result<(), Refusal> {
        for (chunk, offsets) in group.chunks().iter().zip(offsets) {
            offsets.iter().for_each(|offset| self.put(*offset, chunk.plain()));
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.put(offset, bytes);
        Ok(())
    }

    fn sync(&mut self, _: u32) -> Result<(), Refusal> {
        Ok(())
    }

    fn commit(&mut self, _: Root, _: u64, _: u64, whole: bool) -> Result<u64, Refusal> {
        assert!(whole, "nothing commits a part");
        Ok(1)
    }
}

fn receiver() -> (Receiver, Image) {
    let image = Image::default();
    (Receiver::new(SIZE, Box::new(image.clone())), image)
}

fn packed(bytes: &[u8]) -> Packed {
    pack(Encoded::encode(Bytes::copy_from_slice(bytes), 1))
}

fn extent(bytes: &[u8]) -> Extent {
    Extent::Chunk { len: bytes.len() as u32, name: *ChunkId::of(bytes).as_bytes() }
}

fn extents(batch: u32, extents: Vec<Extent>) -> ToReceiver {
    ToReceiver::Extents { batch, extents }
}

fn refused(receiver: &mut Receiver, message: ToReceiver) -> RefusalKind {
    receiver.handle(message).unwrap_err().kind
}

#[test]
fn a_chunk_is_asked_for_once_and_stands_wherever_it_was_named() {
    let (mut receiver, image) = receiver();
    let (a, b) = (vec![7; 20_000], vec![8; 10_000]);
    let rest = SIZE - 50_000;
    let asked = receiver
        .handle(extents(0, vec![extent(&a), extent(&b), extent(&a), Extent::Hole { len: rest }]))
        .unwrap();
    assert_eq!(asked, Some(ToSender::Want { batch: 0, indices: vec![0, 1] }));
    receiver.handle(ToReceiver::Chunks { batch: 0, indices: vec![1], data: packed(&b) }).unwrap();
    receiver.handle(ToReceiver::Chunks { batch: 0, indices: vec![0], data: packed(&a) }).unwrap();
    let runs =
        vec![Run { offset: 4096, len: 4096, zero: false }, Run { offset: 8192, len: 4096, zero: true }];
    receiver.handle(ToReceiver::Delta { runs, data: packed(&[9; 4096]) }).unwrap();
    let committed =
        receiver.handle(ToReceiver::Commit { root: [0; 32], after: 0, taken_unix_ms: 0 }).unwrap();
    assert_eq!(committed, Some(ToSender::Committed { generation: 1 }));
    receiver.ended().unwrap();

    let mut expected = [&a[..], &b, &a, &vec![0; rest as usize]].concat();
    expected[4096..8192].fill(9);
    expected[8192..12288].fill(0);
    assert!(*image.0.lock().unwrap() == expected);
}

#[test]
fn chunks_that_travel_together_are_told_apart() {
    let (a, b, c) = (vec![1; 3000], vec![2; 5000], vec![3; 100]);
    let scan = extents(0, vec![extent(&a), extent(&b), extent(&c), Extent::Hole { len: SIZE - 8100 }]);
    let group = |indices: &[u32], bytes: &[u8]| ToReceiver::Chunks {
        batch: 0,
        indices: indices.to_vec(),
        data: packed(bytes),
    };
    let (mut receiver, image) = receiver();
    receiver.handle(scan.clone()).unwrap();
    receiver.handle(group(&[2, 0], &[&c[..], &a].concat())).unwrap();
    receiver.handle(group(&[1], &b)).unwrap();
    assert!(image.0.lock().unwrap().starts_with(&[&a[..], &b, &c].concat()));
    receiver.handle(ToReceiver::Sync { mark: 0 }).unwrap();

    let bad = [
        group(&[], &[]),
        group(&[0; wire::MAX_BATCH_EXTENTS + 1], &a),
        // Twice, in another order, a byte short, a byte more.
        group(&[0, 0], &[&a[..], &a].concat()),
        group(&[1, 0], &[&a[..], &b].concat()),
        group(&[0, 1], &[&a[..], &b[1..]].concat()),
        group(&[0, 1], &[&a[..], &b, &[2]].concat()),
    ];
    for group in bad {
        let (mut receiver, _) = self::receiver();
        receiver.handle(scan.clone()).unwrap();
        assert_eq!(refused(&mut receiver, group), RefusalKind::Protocol);
    }
}

#[test]
fn a_chunk_with_other_content_is_refused_and_not_written() {
    let (mut receiver, image) = receiver();
    receiver.handle(extents(0, vec![extent(&[1; 5000])])).unwrap();
    let lie = ToReceiver::Chunks { batch: 0, indices: vec![0], data: packed(&[2; 5000]) };
    assert_eq!(refused(&mut receiver, lie), RefusalKind::Protocol);
    assert!(image.0.lock().unwrap().is_empty());
}

#[test]
fn what_was_not_asked_for_is_refused() {
    let (mut receiver, _) = receiver();
    let unasked = ToReceiver::Chunks { batch: 0, indices: vec![0], data: packed(&[1; 10]) };
    assert_eq!(refused(&mut receiver, unasked), RefusalKind::Protocol);
}

#[test]
fn extents_stay_within_the_image_and_in_order() {
    let bad: [Vec<Extent>; 5] = [
        vec![],
        vec![Extent::Hole { len: SIZE + 1 }],
        vec![Extent::Hole { len: 0 }],
        vec![Extent::Hole { len: SIZE }, Extent::Hole { len: u64::MAX }],
        vec![Extent::Hole { len: 1 }; wire::MAX_BATCH_EXTENTS + 1],
    ];
    for extents in bad {
        let (mut receiver, _) = receiver();
        assert_eq!(refused(&mut receiver, ToReceiver::Extents { batch: 0, extents }), RefusalKind::Protocol);
    }
    let (mut receiver, _) = receiver();
    assert_eq!(refused(&mut receiver, extents(1, vec![Extent::Hole { len: 1 }])), RefusalKind::Protocol);
}

#[test]
fn a_delta_has_the_bytes_of_its_runs_and_stays_within_the_image() {
    let run = |offset, len| vec![Run { offset, len, zero: false }];
    let bad = [
        (run(0, 4096), vec![1; 4097]),
        (run(0, 4096), vec![1; 4095]),
        (run(SIZE, 1), vec![1]),
        (run(u64::MAX, 2), vec![1, 1]),
        (run(0, 0), vec![]),
        (vec![], vec![]),
    ];
    for (runs, bytes) in bad {
        let (mut receiver, _) = receiver();
        let delta = ToReceiver::Delta { runs, data: packed(&bytes) };
        assert_eq!(refused(&mut receiver, delta), RefusalKind::Protocol);
    }
    let (mut receiver, _) = receiver();
    let bomb = Packed { codec: 1, plain_len: u32::MAX, bytes: Bytes::from_static(&[0; 16]) };
    let delta = ToReceiver::Delta { runs: run(0, 4096), data: bomb };
    assert_eq!(refused(&mut receiver, delta), RefusalKind::Protocol);
}

#[test]
fn nothing_is_committed_or_synced_while_chunks_are_missing() {
    for message in [
        ToReceiver::Sync { mark: 0 },
        ToReceiver::Commit { root: [0; 32], after: 0, taken_unix_ms: 0 },
        ToReceiver::Delta { runs: vec![Run { offset: 0, len: 1, zero: false }], data: packed(&[1]) },
    ] {
        let (mut receiver, _) = receiver();
        receiver.handle(extents(0, vec![extent(&[1; 5000]), Extent::Hole { len: SIZE - 5000 }])).unwrap();
        assert_eq!(refused(&mut receiver, message), RefusalKind::Protocol);
    }
}

#[test]
fn a_stream_that_breaks_off_is_no_image_and_nothing_follows_its_end() {
    let (mut receiver, _) = receiver();
    receiver.handle(extents(0, vec![Extent::Hole { len: SIZE }])).unwrap();
    receiver.handle(ToReceiver::Sync { mark: 0 }).unwrap();
    assert!(receiver.ended().is_err());

    let (mut receiver, _) = self::receiver();
    receiver.handle(ToReceiver::Sync { mark: FINAL_MARK }).unwrap();
    assert_eq!(refused(&mut receiver, ToReceiver::Sync { mark: 1 }), RefusalKind::Protocol);
}

/// A transfer as its receiver sees it, from a sender that the test plays.
async fn played() -> (Pair, (LaneSend, quinn::RecvStream), tokio::task::JoinHandle<Result<(), TransferError>>)
{
    let pair = pair().await;
    let (sender, (send, recv)) = striped(&pair).await;
    let status = TargetStatus { generation: 0, root: None };
    let receiving = tokio::spawn(async move {
        receive(send, recv, status, SIZE, Box::new(Image::default()), &Lease::new()).await
    });
    (pair, sender, receiving)
}

#[tokio::test]
async fn a_sender_that_falls_silent_is_let_go() {
    let (_pair, (mut send, mut answers), receiving) = played().await;
    net::send(&mut send, &extents(0, vec![Extent::Hole { len: SIZE }])).await.unwrap();
    let outcome = receiving.await.unwrap();
    assert!(matches!(outcome, Err(TransferError::Net(NetError::Silent))), "{outcome:?}");
    // Meanwhile it was told that the receiver is there.
    let mut heard = Vec::new();
    while let Ok(Some(answer)) = net::receive::<ToSender>(&mut answers).await {
        heard.push(answer);
    }
    assert!(heard.contains(&ToSender::Working), "{heard:?}");
}

#[tokio::test]
async fn a_sender_with_nothing_to_send_keeps_its_transfer() {
    let pair = pair().await;
    let target = wire::Target::Base { name: "x".to_owned() };
    let opening = Sender::open(&pair.a, target, SIZE, (1, 1 << 20), Arc::default());
    let accepting = async {
        let (send, recv) = pair.b.accept_bi().await.unwrap();
        let mut recv = LaneRecv::plain(&pair.b, recv);
        assert!(matches!(recv.opening().await.unwrap(), wire::Open::Transfer { size: SIZE, .. }));
        let status = TargetStatus { generation: 0, root: None };
        receive(send, recv, status, SIZE, Box::new(Image::default()), &Lease::new()).await
    };
    let sending = async {
        let (mut sender, _) = opening.await.unwrap();
        tokio::time::sleep(net::SILENCE * 2).await;
        sender.sync(FINAL_MARK).await.unwrap();
    };
    let ((), received) = tokio::join!(sending, accepting);
    received.unwrap();
}

#[tokio::test]
async fn a_receiver_that_falls_silent_is_let_go() {
    let pair = pair().await;
    let target = wire::Target::Base { name: "x".to_owned() };
    let opening = Sender::open(&pair.a, target, SIZE, (1, 1 << 20), Arc::default());
    let accepting = async {
        let (mut send, recv) = pair.b.accept_bi().await.unwrap();
        let mut recv = LaneRecv::plain(&pair.b, recv);
        recv.opening().await.unwrap();
        let accepted = ToSender::Accepted(TargetStatus { generation: 0, root: None });
        net::send(&mut send, &accepted).await.unwrap();
        (send, recv)
    };
    let (opened, _held) = tokio::join!(opening, accepting);
    let outcome = opened.unwrap().0.sync(0).await;
    assert!(matches!(outcome, Err(TransferError::Net(NetError::Silent))), "{outcome:?}");
}

#[tokio::test]
async fn a_sender_of_the_protocol_before_is_heard_and_may_be_silent() {
    let pair = pair().await;
    let (mut send, mut answers) = pair.a.open_bi().await.unwrap();
    let target = wire::Target::Base { name: "x".to_owned() };
    net::send(&mut send, &wire::Open::Transfer { target, size: SIZE }).await.unwrap();
    let (back, forth) = pair.b.accept_bi().await.unwrap();
    let mut recv = LaneRecv::plain(&pair.b, forth);
    recv.opening().await.unwrap();
    let status = TargetStatus { generation: 0, root: None };
    let receiving = tokio::spawn(async move {
        receive(back, recv, status, SIZE, Box::new(Image::default()), &Lease::new()).await
    });
    tokio::time::sleep(net::SILENCE + net::KEEP_ALIVE).await;
    net::send(&mut send, &ToReceiver::Sync { mark: FINAL_MARK }).await.unwrap();
    send.finish().unwrap();
    receiving.await.unwrap().unwrap();
    let accepted = net::expect::<ToSender>(&mut answers).await.unwrap();
    assert!(matches!(accepted, ToSender::Accepted(_)));
    // No word that it does not know.
    assert_eq!(net::expect::<ToSender>(&mut answers).await.unwrap(), ToSender::Synced { mark: FINAL_MARK });
}

/// One chunk a byte, none of which ever comes: what is noted of them must not grow with the image.
#[test]
fn chunks_that_are_asked_for_and_do_not_come_are_bounded() {
    let mut receiver = Receiver::new(64 << 40, Box::new(Image::default()));
    let name = |number: u64| Extent::Chunk { len: 1, name: *ChunkId::of(&number.to_le_bytes()).as_bytes() };
    let batch = |batch: u64| {
        let first = batch * wire::MAX_BATCH_EXTENTS as u64;
        extents(batch as u32, (first..first + wire::MAX_BATCH_EXTENTS as u64).map(name).collect())
    };
    let mut batches = 0;
    while receiver.asked.len() <= MAX_ASKED {
        receiver.handle(batch(batches)).unwrap();
        batches += 1;
    }
    assert_eq!(refused(&mut receiver, batch(batches)), RefusalKind::Protocol);
    assert!(receiver.asked.len() <= MAX_ASKED + wire::MAX_BATCH_EXTENTS);
}

#[test]
fn places_of_a_chunk_that_does_not_come_are_bounded() {
    let mut receiver = Receiver::new(64 << 40, Box::new(Image::default()));
    let same = || vec![extent(&[7]); wire::MAX_BATCH_EXTENTS];
    let mut batches = 0;
    let refusal = loop {
        match receiver.handle(extents(batches, same())) {
            Ok(_) => batches += 1,
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refusal.kind, RefusalKind::Protocol);
    assert_eq!(receiver.places, MAX_PLACES);
}
