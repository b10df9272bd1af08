use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Weak;
use std::time::Duration;

use super::*;

const A: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const B: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
const PORT: u16 = 7;
/// How much later than its time a frame may come while other tests keep the machine busy.
const SLACK: Duration = Duration::from_millis(15);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// When each of `frames` frames of `bytes` bytes, given in at once, comes out, and its number.
fn drain(queue: &mut Queue, start: Instant, frames: u8, bytes: usize) -> Vec<(Duration, u8)> {
    for number in 0..frames {
        queue.accept(start, &vec![number; bytes]);
    }
    let mut out = Vec::new();
    while let Some(due) = queue.next() {
        let frame = queue.pop(due).unwrap();
        out.push((due - start, frame[0]));
    }
    out
}

#[test]
fn a_fixed_delay_keeps_the_order() {
    let start = Instant::now();
    let mut queue = Queue::new(start, Way::delay(ms(25)), 1);
    let expected: Vec<(Duration, u8)> = (0..100).map(|number| (ms(25), number)).collect();
    assert_eq!(drain(&mut queue, start, 100, 60), expected);
    assert!(queue.pop(start).is_none() && queue.counts.latest == Duration::ZERO);
}

#[test]
fn a_rate_spaces_frames_and_its_queue_is_bounded() {
    let start = Instant::now();
    // 1000 bytes at 8 Mbit/s take 1 ms.
    let way = Way { rate_bits_s: Some(8_000_000), queue_bytes: 5_000, ..Way::delay(ms(10)) };
    let mut queue = Queue::new(start, way, 1);
    let out = drain(&mut queue, start, 20, 1000);
    let expected: Vec<(Duration, u8)> = (0..5).map(|n| (ms(11 + u64::from(n)), n)).collect();
    assert_eq!((out, queue.counts.overflowed), (expected, 15));
    // Once it is empty, a frame larger than the queue passes as well.
    queue.accept(start + ms(100), &[0; 9000]);
    assert_eq!(queue.next(), Some(start + ms(119)));
}

#[test]
fn dice_fall_as_often_as_they_should_and_alike_for_a_seed() {
    let run = |seed| {
        let start = Instant::now();
        let way = Way { loss: 0.1, duplicate: 0.05, reorder: 0.02, ..Way::delay(ms(1)) };
        let mut queue = Queue::new(start, way, seed);
        for _ in 0..100 {
            drain(&mut queue, start, 100, 60);
        }
        queue.counts
    };
    let counts = run(7);
    assert_eq!(counts, run(7));
    assert_ne!(counts, run(8));
    for (got, expected) in [(counts.lost, 1000), (counts.duplicated, 450), (counts.reordered, 180)] {
        assert!(got.abs_diff(expected) < expected / 4, "{got} {expected}");
    }
}

#[test]
fn what_is_held_back_comes_later() {
    let start = Instant::now();
    let mut queue = Queue::new(start, Way { reorder: 0.2, ..Way::delay(ms(5)) }, 3);
    let out = drain(&mut queue, start, 50, 60);
    let held = out.iter().filter(|(at, _)| *at == ms(15)).count() as u64;
    assert_eq!((out.len(), held), (50, queue.counts.reordered));
    assert!((1..25).contains(&held), "{held}");
}

/// Two namespaces joined by a line.
struct Pair {
    line: DelayLine,
    a: Namespace,
    b: Namespace,
}

impl Pair {
    fn new(seed: u64) -> Self {
        let (a, b) = (Namespace::new().unwrap(), Namespace::new().unwrap());
        let line = DelayLine::join((&a, "line0"), (&b, "line0"), seed).unwrap();
        a.ip(&format!("addr add {A}/24 dev line0")).unwrap();
        b.ip(&format!("addr add {B}/24 dev line0")).unwrap();
        Self { line, a, b }
    }

    /// A socket at either end, each connected to the other.
    fn sockets(&self) -> [UdpSocket; 2] {
        [(&self.a, A, B), (&self.b, B, A)].map(|(namespace, from, to)| {
            let socket = namespace.enter(|| UdpSocket::bind((from, PORT))).unwrap().unwrap();
            socket.connect((to, PORT)).unwrap();
            socket.set_read_timeout(Some(ms(1000))).unwrap();
            socket
        })
    }
}

/// The shortest and the median time there and back.
fn round_trips([a, b]: &[UdpSocket; 2], count: usize) -> [Duration; 2] {
    let mut times: Vec<Duration> = thread::scope(|scope| {
        scope.spawn(move || {
            for _ in 0..count {
                let mut buffer = [0; 64];
                let bytes = b.recv(&mut buffer).unwrap();
                b.send(&buffer[..bytes]).unwrap();
            }
        });
        let ping = |number: usize| {
            let start = Instant::now();
            a.send(&number.to_be_bytes()).unwrap();
            let mut buffer = [0; 8];
            a.recv(&mut buffer).unwrap();
            assert_eq!(usize::from_be_bytes(buffer), number);
            start.elapsed()
        };
        (0..count).map(ping).collect()
    });
    times.sort();
    [times[0], times[count / 2]]
}

#[test]
fn round_trips_take_as_long_as_told() {
    let pair = Pair::new(1);
    let sockets = pair.sockets();
    // The first finds the neighbour.
    round_trips(&sockets, 1);
    for (rtt, count) in [(0, 100), (50, 20), (200, 5)] {
        pair.line.set_both(Way::delay(ms(rtt) / 2));
        let [least, median] = round_trips(&sockets, count);
        eprintln!("{rtt} ms there and back: least {least:?}, median {median:?}");
        assert!(least >= ms(rtt) && median < ms(rtt) + SLACK, "{rtt} ms: {least:?} {median:?}");
    }
    // One direction by itself.
    pair.line.set(Direction::Back, Way::delay(ms(30)));
    let [least, _] = round_trips(&sockets, 3);
    assert!((ms(130)..ms(130) + SLACK).contains(&least), "{least:?}");
}

#[test]
fn frames_are_lost_and_the_rest_keeps_its_order() {
    let pair = Pair::new(42);
    let sockets = pair.sockets();
    round_trips(&sockets, 1);
    let [a, b] = sockets;
    let before = pair.line.counts(Direction::Forth);
    pair.line.set(Direction::Forth, Way { loss: 0.2, ..Way::delay(ms(20)) });
    for number in 0..200_u8 {
        a.send(&[number]).unwrap();
    }
    b.set_read_timeout(Some(ms(300))).unwrap();
    let mut buffer = [0; 1];
    let arrived: Vec<u8> = std::iter::from_fn(|| b.recv(&mut buffer).ok().map(|_| buffer[0])).collect();
    assert!(arrived.is_sorted(), "{arrived:?}");
    let counts = pair.line.counts(Direction::Forth);
    assert!((20..60).contains(&counts.lost) && counts.overflowed == before.overflowed, "{counts:?}");
    assert!((160 - 20..=180).contains(&arrived.len()), "{}", arrived.len());
}

#[test]
fn a_rate_bounds_what_passes() {
    let pair = Pair::new(1);
    let sockets = pair.sockets();
    round_trips(&sockets, 1);
    let [a, b] = sockets;
    let way = Way { rate_bits_s: Some(10_000_000), ..Way::default() };
    pair.line.set(Direction::Forth, way);
    let start = Instant::now();
    for _ in 0..100 {
        a.send(&[0; 1208]).unwrap();
    }
    let mut buffer = [0; 1208];
    for _ in 0..100 {
        b.recv(&mut buffer).unwrap();
    }
    // 100 frames of 1250 bytes are 1 Mbit.
    let took = start.elapsed();
    assert!((ms(98)..ms(100) + SLACK).contains(&took), "{took:?}");
}

/// The kernel's number of a namespace.
fn inode(namespace: &Namespace) -> u64 {
    fs::metadata(namespace.path()).unwrap().ino()
}

/// Whether any thread of the machine is in this namespace, or any descriptor of ours holds it.
fn is_held(inode: u64) -> bool {
    let name = format!("net:[{inode}]");
    let holds = |link: PathBuf| fs::read_link(link).is_ok_and(|to| to.to_string_lossy() == name);
    let ours = fs::read_dir("/proc/self/fd").unwrap().flatten().map(|entry| entry.path());
    let theirs = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path().join("ns/net"));
    ours.chain(theirs).any(holds)
}

#[test]
fn nothing_is_left_behind_even_by_a_panic() {
    let outside = Namespace::new().unwrap();
    let (mut inodes, mut line) = (Vec::new(), Weak::new());
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let pair = Pair::new(1);
        inodes = vec![inode(&pair.a), inode(&pair.b)];
        let _line = DelayLine::join((&outside, "gone0"), (&pair.a, "line1"), 1).unwrap();
        line = Arc::downgrade(&pair.line.shared);
        pair.line.set_both(Way::delay(ms(10_000)));
        let [a, _] = pair.sockets();
        a.send(b"never arrives").unwrap();
        assert!(inodes.iter().all(|inode| is_held(*inode)));
        outside.ip("link show gone0").unwrap();
        panic!("as a test does");
    }));
    assert!(panicked.is_err());
    // The thread holds it to its end.
    assert!(line.upgrade().is_none());
    let message = outside.ip("link show gone0").unwrap_err().to_string();
    assert!(message.contains("gone0"), "{message}");
    assert!(inodes.len() == 2 && !inodes.iter().any(|inode| is_held(*inode)));
}

#[test]
fn a_line_whose_interface_is_removed_ends() {
    let pair = Pair::new(1);
    let thread = pair.line.thread.as_ref().unwrap();
    assert!(!thread.is_finished());
    pair.a.ip("link del line0").unwrap();
    let until = Instant::now() + ms(5000);
    while !thread.is_finished() {
        assert!(Instant::now() < until);
        thread::sleep(ms(5));
    }
}
