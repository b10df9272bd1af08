//! Moves that go wrong: given up, with a gateway that dies, with signalling that is lost. The address ends up at the owner.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use harness::Way;
use mobility::access::Happened;
use mobility_lab::connections::Connection;
use mobility_lab::network::{NODE, grant};
use mobility_lab::{Network, Planes, Stream};
use tokio::runtime::Runtime;
use tokio::time::sleep;

mobility_lab::on_each_plane!(
    a_move_given_up_leaves_the_guest_where_it_was,
    a_target_that_dies_in_the_move_leaves_the_guest_where_it_was,
    a_source_that_dies_does_not_take_the_guest_with_it,
    the_address_follows_its_owner_over_a_bad_line,
);

const ROUND_TRIP: Duration = Duration::from_millis(20);
const PAUSE: Duration = Duration::from_millis(20);

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn stream(network: &Network) -> Stream {
    let target = Network::target(4000);
    Stream::start(&network.correspondent, &network.guest, target, Duration::from_millis(5)).unwrap()
}

/// The guest can be asked, and answers.
fn is_reached(network: &Network) {
    let (from, to) = (&network.correspondent, &network.guest);
    let lines = Connection::interactive(from, to, Network::target(4003)).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert!(lines.finish().unwrap() > 0);
}

fn a_move_given_up_leaves_the_guest_where_it_was(planes: Planes) {
    let network = Network::start(planes, ROUND_TRIP).unwrap();
    runtime().block_on(async {
        network.appear(0, 1).await.unwrap();
        let stream = stream(&network);
        let mut at_second = network.watch(1);
        network.prepare(1, 2).await.unwrap();
        network.leave(1, 2).await.unwrap();
        at_second.until(Happened::Forwarded).await.unwrap();
        network.resume(0).unwrap();
        network.platforms[0].gateway.handle.stay(NODE).await.unwrap();
        at_second.until(Happened::ForwardingEnded).await.unwrap();
        network.platforms[1].gateway.handle.forget(NODE).await.unwrap();
        at_second.until(Happened::Forgotten).await.unwrap();
        network.withdraw(2).await.unwrap();
        sleep(Duration::from_millis(300)).await;
        let heard = stream.finish(Duration::from_millis(200)).unwrap();
        assert_eq!((heard.reordered, heard.duplicates), (0, 0), "{heard:?}");
        // What the target held when it was told to forget.
        assert!(heard.lost() < 80, "{heard:?}");
        network.until_owned_by(0).await.unwrap();
        is_reached(&network);
        // And it can still move.
        network.move_proactive(1, 3, PAUSE).await.unwrap();
        is_reached(&network);
    });
}

fn a_target_that_dies_in_the_move_leaves_the_guest_where_it_was(planes: Planes) {
    let mut network = Network::start(planes, ROUND_TRIP).unwrap();
    runtime().block_on(async {
        network.appear(0, 1).await.unwrap();
        network.prepare(1, 2).await.unwrap();
        network.leave(1, 2).await.unwrap();
        network.kill_gateway(1);
        network.resume(0).unwrap();
        network.platforms[0].gateway.handle.stay(NODE).await.unwrap();
        network.until_owned_by(0).await.unwrap();
        is_reached(&network);
        network.withdraw(2).await.unwrap();
        network.start_gateway(1).unwrap();
        network.move_proactive(1, 3, PAUSE).await.unwrap();
        is_reached(&network);
    });
}

fn a_source_that_dies_does_not_take_the_guest_with_it(planes: Planes) {
    let mut network = Network::start(planes, ROUND_TRIP).unwrap();
    runtime().block_on(async {
        network.appear(0, 1).await.unwrap();
        let mut at_second = network.watch(1);
        network.prepare(1, 2).await.unwrap();
        network.leave(1, 2).await.unwrap();
        at_second.until(Happened::Forwarded).await.unwrap();
        network.arrive(1).await.unwrap();
        network.kill_gateway(0);
        at_second.until(Happened::Registered).await.unwrap();
        network.until_owned_by(1).await.unwrap();
        is_reached(&network);
        network.start_gateway(0).unwrap();
        // The gateway that has forgotten it does not get it back.
        let mut at_first = network.watch(0);
        network.platforms[0].gateway.handle.serve(grant(1)).await.unwrap();
        at_first.until(Happened::Revoked).await.unwrap();
        network.until_owned_by(1).await.unwrap();
        network.move_proactive(0, 3, PAUSE).await.unwrap();
        is_reached(&network);
    });
}

/// Two moves over a line that loses, doubles and holds back signalling and everything else.
fn moves_over_a_bad_line(planes: Planes, seed: u64) {
    let network = Network::with_dice(planes, ROUND_TRIP, seed).unwrap();
    runtime().block_on(async {
        network.appear(0, 1).await.unwrap();
        network.set_line(Way {
            loss: 0.3,
            duplicate: 0.3,
            reorder: 0.3,
            held: Duration::from_millis(30),
            ..Way::delay(ROUND_TRIP / 2)
        });
        for epoch in 2..4 {
            let to = (epoch as usize + 1) % 2;
            if epoch % 2 == 0 {
                network.move_proactive(to, epoch, PAUSE).await.unwrap();
            } else {
                network.move_reactive(to, epoch, PAUSE).await.unwrap();
            }
            network.until_owned_by(to).await.unwrap();
        }
        network.set_line(Way::delay(ROUND_TRIP / 2));
        is_reached(&network);
        network.until_owned_by(0).await.unwrap();
    });
}

fn the_address_follows_its_owner_over_a_bad_line(planes: Planes) {
    std::thread::scope(|scope| {
        for seed in [3, 5, 8] {
            scope.spawn(move || moves_over_a_bad_line(planes, seed));
        }
    });
}
