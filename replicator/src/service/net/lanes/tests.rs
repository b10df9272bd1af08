//! The order of the cells, what ends a stream, and peers that lie about their lanes.

use std::time::Duration;

use super::super::testing::{Pair, pair, striped};
use super::*;

const CELL: usize = wire::CELL_BYTES as usize;

/// Bytes that are the same nowhere near.
fn pattern(length: usize) -> Vec<u8> {
    (0..length as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8).collect()
}

async fn read_all(recv: &mut LaneRecv) -> Result<Vec<u8>, NetError> {
    let mut all = Vec::new();
    while let Some(chunk) = recv.read_chunk(10_000).await? {
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

#[test]
fn cells_go_round() {
    let mut cursor = Cursor::new(3);
    let mut turns = Vec::new();
    for _ in 0..7 {
        turns.push(cursor.lane);
        assert_eq!(cursor.room(CELL + 1), CELL);
        cursor.advance(1);
        assert_eq!((cursor.room(CELL), cursor.room(5)), (CELL - 1, 5));
        cursor.advance(CELL - 1);
    }
    assert_eq!(turns, [0, 1, 2, 0, 1, 2, 0]);
}

#[test]
fn the_windows_of_all_streams_fit_that_of_their_connection() {
    let streams = u64::from(2 * super::super::BIDI_STREAMS + super::super::UNI_STREAMS);
    assert!(u64::from(super::super::CONNECTION_WINDOW_BYTES) >= streams * u64::from(WINDOW_BYTES));
    // Fewer bytes a piece than any frame but a remainder has.
    const { assert!(WINDOW_BYTES / 1024 <= 32) };
}

#[tokio::test]
async fn bytes_arrive_in_order_whatever_their_number() {
    let pair = pair().await;
    let opening = super::super::wire::frame(&Open::Status).unwrap().len();
    let lengths = [0, 1, CELL - opening, CELL - opening + 1, 3 * CELL, 1030 * CELL + 7];
    for length in lengths {
        let ((mut send, _hear), (_tell, mut recv)) = striped(&pair).await;
        let bytes = pattern(length);
        let sending = async {
            // In pieces that end within cells and across them.
            for piece in bytes.chunks(50_001) {
                send.write_chunk(Bytes::copy_from_slice(piece)).await.unwrap();
            }
            send.finish().await.unwrap();
            assert!(matches!(send.write_chunk(Bytes::from_static(b"x")).await, Err(NetError::Ended)));
        };
        let ((), received) = tokio::join!(sending, read_all(&mut recv));
        assert!(received.unwrap() == bytes, "{length} bytes");
    }
}

#[tokio::test]
async fn a_sender_that_is_dropped_has_not_ended_its_stream() {
    let pair = pair().await;
    let opening = super::super::wire::frame(&Open::Status).unwrap().len();
    // Within a cell, and where the next lane is not open yet.
    for length in [5, CELL - opening] {
        let ((mut send, _hear), (_tell, mut recv)) = striped(&pair).await;
        send.write_chunk(pattern(length).into()).await.unwrap();
        let mut first = [0; 1];
        recv.read(&mut first).await.unwrap();
        drop(send);
        let outcome = tokio::time::timeout(Duration::from_secs(5), read_all(&mut recv)).await;
        assert!(matches!(outcome.unwrap(), Err(NetError::Ended)), "{length}");
    }
}

/// A stream whose lanes the test makes by hand.
async fn by_hand(pair: &Pair, lanes: u16) -> (SendStream, Token, Result<LaneRecv, NetError>) {
    let (mut main, _) = pair.a.open_bi().await.unwrap();
    let token = random();
    super::super::send(&mut main, &Open::Striped { token, lanes }).await.unwrap();
    super::super::send(&mut main, &Open::Status).await.unwrap();
    let (_, forth) = pair.b.accept_bi().await.unwrap();
    let mut recv = LaneRecv::plain(&pair.b, forth);
    let opened = recv.opening().await;
    (main, token, opened.map(|_| recv))
}

async fn lane(pair: &Pair, token: Token, index: u16) -> SendStream {
    let mut stream = pair.a.open_uni().await.unwrap();
    super::super::send(&mut stream, &Open::Lane { token, index }).await.unwrap();
    stream
}

#[tokio::test]
async fn one_lane_that_breaks_breaks_the_stream() {
    let pair = pair().await;
    let (mut main, token, recv) = by_hand(&pair, 3).await;
    let mut recv = recv.unwrap();
    let opening = super::super::wire::frame(&Open::Status).unwrap().len();
    main.write_all(&pattern(CELL - opening)).await.unwrap();
    let mut second = lane(&pair, token, 1).await;
    second.write_all(&[1]).await.unwrap();
    let mut begun = vec![0; CELL - opening + 1];
    super::super::fill(&mut recv, &mut begun).await.unwrap();
    second.reset(BROKEN_OFF).unwrap();
    assert!(matches!(read_all(&mut recv).await, Err(NetError::Ended)));
}

#[tokio::test]
async fn sets_that_cannot_be_are_refused() {
    let pair = pair().await;
    for lanes in [0, wire::MAX_LANES + 1] {
        assert!(matches!(by_hand(&pair, lanes).await.2, Err(NetError::Lanes(_))), "{lanes}");
    }
    // Not of the set; the main stream; one that is there.
    for indices in [&[7][..], &[0], &[2, 2]] {
        let (mut main, token, recv) = by_hand(&pair, 3).await;
        main.write_all(&pattern(CELL)).await.unwrap();
        let mut lanes = Vec::new();
        for index in indices {
            lanes.push(lane(&pair, token, *index).await);
        }
        assert!(matches!(read_all(&mut recv.unwrap()).await, Err(NetError::Lanes(_))), "{indices:?}");
    }
}

#[tokio::test]
async fn a_token_belongs_to_one_stream_and_lanes_without_one_are_let_go() {
    let pair = pair().await;
    let known = of(&pair.b);
    let held = known.claim([7; 16]).unwrap();
    assert!(matches!(known.claim([7; 16]), Err(NetError::Lanes(_))));
    drop(held);
    known.claim([7; 16]).unwrap();
    // Opened by the other end, so that nobody routes it.
    let mut stream = pair.a.open_bi().await.unwrap();
    stream.0.write_all(&[1]).await.unwrap();
    let (_, orphan) = pair.b.accept_bi().await.unwrap();
    let outcome = known.deliver([9; 16], 1, orphan, Duration::from_millis(20)).await;
    assert!(matches!(outcome, Err(NetError::Lanes(_))), "{outcome:?}");
    // It is stopped, and so not held for ever.
    assert!(stream.0.stopped().await.unwrap().is_some());
}

#[tokio::test]
async fn lanes_of_a_connection_are_bounded_and_come_back() {
    let pair = pair().await;
    let known = of(&pair.a);
    let shares: Vec<Share> = (0..30).map(|_| known.share(wire::MAX_LANES)).collect();
    let lanes: Vec<u16> = shares.iter().map(Share::lanes).collect();
    assert!(lanes[0] == wire::MAX_LANES && lanes[1] > 400 && lanes.is_sorted_by(|a, b| a >= b), "{lanes:?}");
    assert!(lanes.iter().map(|lanes| lanes - 1).sum::<u16>() <= MAX_LANES_OUT);
    assert_eq!(lanes[29], 1, "the main stream is always to be had");
    drop(shares);
    assert_eq!(known.share(wire::MAX_LANES).lanes(), wire::MAX_LANES);
}
