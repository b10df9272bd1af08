use super::*;
use crate::wire::Ipv6Prefix;

fn router(number: u16) -> Router {
    let prefix = Ipv6Prefix::new(Ipv6Addr::new(0x2001, 0xdb8, number, 0, 0, 0, 0, 0), 64).unwrap();
    Router { address: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, number), link_layer: None, prefix }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// All that follows until `end`, with when it is to be done.
fn run(movement: &mut Movement, end: u64) -> Vec<(u64, Output)> {
    let mut done = Vec::new();
    let mut now = 0;
    loop {
        done.extend(std::iter::from_fn(|| movement.poll_output()).map(|output| (now, output)));
        match movement.deadline().filter(|deadline| *deadline <= ms(end)) {
            Some(deadline) => {
                now = deadline.as_millis() as u64;
                movement.handle_timeout(deadline);
            }
            None => return done,
        }
    }
}

fn settled_at(number: u16) -> Movement {
    let mut movement = Movement::default();
    movement.link_up(ms(0));
    movement.heard(ms(0), Heard::Router(router(number)));
    assert_eq!(run(&mut movement, 0), [(0, Output::SolicitRouters), (0, Output::Settle(router(number)))]);
    movement
}

#[test]
fn routers_are_asked_at_once_and_ever_more_rarely_until_one_speaks() {
    let mut movement = Movement::default();
    movement.link_up(ms(0));
    let done = run(&mut movement, 2000);
    let times = |wanted| done.iter().filter(move |(_, output)| *output == wanted).map(|(at, _)| *at);
    assert_eq!(times(Output::SolicitRouters).collect::<Vec<_>>(), [0, 50, 150, 350, 750, 1550]);
    // Meanwhile there may be a way over IPv4, or another one.
    let tried: Vec<_> = times(Output::TryIpv4).collect();
    assert!(tried[0] == 150 && tried.windows(2).all(|pair| pair[1] == pair[0] + 250), "{tried:?}");
    movement.heard(ms(2000), Heard::Router(router(1)));
    assert_eq!(run(&mut movement, 100_000), [(0, Output::Settle(router(1)))]);
    assert_eq!(movement.deadline(), None);
}

#[test]
fn when_the_link_was_away_the_first_router_is_taken_the_same_or_another() {
    for number in [1, 2] {
        let mut movement = settled_at(1);
        movement.link_up(ms(1000));
        movement.heard(ms(1010), Heard::Router(router(number)));
        let expected = [(0, Output::SolicitRouters), (0, Output::Settle(router(number)))];
        assert_eq!(run(&mut movement, 5000), expected);
    }
}

#[test]
fn a_new_router_takes_the_place_of_one_that_is_silent_and_of_no_other() {
    // Without any sign of the link: the present router has gone.
    let mut movement = settled_at(1);
    movement.heard(ms(100), Heard::Router(router(2)));
    let gone = router(1).address;
    let expected = [
        (0, Output::SolicitNeighbor(gone)),
        (115, Output::SolicitNeighbor(gone)),
        (130, Output::Settle(router(2))),
    ];
    assert_eq!(run(&mut movement, 5000), expected);

    // It is there: two routers on one link, each of which speaks again and again.
    let signs = [Heard::Neighbor(router(1).address), Heard::Router(router(1))];
    for (number, sign) in (0..10).flat_map(|number| signs.map(|sign| (number, sign))) {
        let mut movement = settled_at(1);
        movement.heard(ms(100 * number), Heard::Router(router(2)));
        movement.heard(ms(100 * number + 10), sign);
        movement.heard(ms(100 * number + 30), Heard::Neighbor(router(2).address));
        assert_eq!(run(&mut movement, 100 * number + 90), [(0, Output::SolicitNeighbor(gone))]);
    }
    // Another's answer is none.
    let mut movement = settled_at(1);
    movement.heard(ms(100), Heard::Router(router(2)));
    movement.heard(ms(110), Heard::Neighbor(router(2).address));
    assert_eq!(run(&mut movement, 5000).last(), Some(&(130, Output::Settle(router(2)))));
}

#[test]
fn a_router_with_the_same_address_and_another_prefix_is_another_link() {
    let mut movement = settled_at(1);
    let renumbered = Router { prefix: router(7).prefix, ..router(1) };
    movement.heard(ms(100), Heard::Router(renumbered));
    assert_eq!(run(&mut movement, 5000), [(0, Output::Settle(renumbered))]);
    movement.heard(ms(200), Heard::Router(renumbered));
    assert_eq!(run(&mut movement, 5000), []);
}
