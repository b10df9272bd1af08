//! A guest that looks after its address itself moves between two foreign links: real packets, real kernel, real routers, the
//! real agents.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use mobility_lab::connections::Connection;
use mobility_lab::{Roaming, Stream};
use tokio::runtime::Runtime;

const PAUSE: Duration = Duration::from_millis(20);

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

#[test]
fn a_node_that_moves_is_reached_where_it_is() {
    let lab = Roaming::start(Duration::from_millis(40)).unwrap();
    runtime().block_on(async {
        lab.appear(0).await.unwrap();
        let interval = Duration::from_millis(5);
        let stream = Stream::start(&lab.correspondent, &lab.guest, Roaming::target(4000), interval).unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        lab.move_to(1, PAUSE).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        lab.slip_to(0).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let heard = stream.finish(Duration::from_millis(200)).unwrap();
        println!("{heard:?}");
        assert_eq!((heard.reordered, heard.duplicates), (0, 0), "{heard:?}");
        assert!(heard.received > 100 && heard.lost() < 150, "{heard:?}");
        assert!(lab.is_at(lab.care_of().await.unwrap().unwrap(), 0));
    });
}

/// Ten moves back and forth under a bulk transfer and a conversation.
fn connections_survive_ten_moves(round_trip: Duration) {
    let lab = Roaming::start(round_trip).unwrap();
    runtime().block_on(async {
        lab.appear(0).await.unwrap();
        let (from, to) = (&lab.correspondent, &lab.guest);
        let bulk = Connection::bulk(from, to, Roaming::target(4001)).unwrap();
        let lines = Connection::interactive(from, to, Roaming::target(4002)).unwrap();
        for number in 0..10 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            lab.move_to((number + 1) % 2, PAUSE).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (lines, bytes) = (lines.finish().unwrap(), bulk.finish().unwrap());
        println!("{lines} lines, {bytes} bytes at {round_trip:?}");
        assert!(lines > 10 && bytes > 1 << 20, "{lines} lines, {bytes} bytes");
        assert!(lab.is_at(lab.care_of().await.unwrap().unwrap(), 0));
    });
}

#[test]
fn connections_survive_ten_moves_on_a_short_way() {
    connections_survive_ten_moves(Duration::ZERO);
}

#[test]
fn connections_survive_ten_moves_on_a_long_way() {
    connections_survive_ten_moves(Duration::from_millis(50));
}
