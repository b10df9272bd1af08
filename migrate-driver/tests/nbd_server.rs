//! The NBD server against a client that writes raw bytes, well-meaning and hostile.

// A step that fails fails the test.
#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use migrate_driver::nbd::{NbdServer, Overlay};

const SIZE: u64 = 1 << 20;
const FIXED: u32 = 1;
const FIXED_NO_ZEROES: u32 = 3;
const LIST: u32 = 3;
const GO: u32 = 7;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;
const FUA: u16 = 1;

struct Fixture {
    dir: tempfile::TempDir,
    overlay: Arc<Overlay>,
    server: Option<NbdServer>,
}

impl Fixture {
    fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let overlay = Arc::new(Overlay::new(SIZE, dir.path()).unwrap());
        let other = Arc::new(Overlay::new(4096, dir.path()).unwrap());
        let exports = vec![("disk".into(), overlay.clone()), ("other".into(), other)];
        let server = NbdServer::start(&dir.path().join("nbd"), exports).unwrap();
        Fixture { dir, overlay, server: Some(server) }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("nbd")
    }

    /// A client after the greeting.
    fn greeted(&self, flags: u32) -> Client {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut client = Client(stream);
        assert_eq!(client.read(18), b"NBDMAGICIHAVEOPT\x00\x03");
        client.write(&flags.to_be_bytes());
        client
    }

    /// A client that may send requests.
    fn entered(&self) -> Client {
        let mut client = self.greeted(FIXED_NO_ZEROES);
        client.option(GO, &go("disk"));
        assert_eq!(client.reply(GO), (3, info(SIZE)));
        let (kind, sizes) = client.reply(GO);
        assert_eq!((kind, &sizes[..2]), (3, &[0, 3][..]));
        assert_eq!(client.reply(GO), (1, vec![]));
        client
    }

    fn wait_for_failure(&self) -> String {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(reason) = self.overlay.failed() {
                return reason;
            }
            assert!(Instant::now() < deadline, "no failure was noticed");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

struct Client(UnixStream);

impl Client {
    fn read(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    fn option(&mut self, option: u32, data: &[u8]) {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        self.write(&bytes);
    }

    fn reply(&mut self, option: u32) -> (u32, Vec<u8>) {
        let head = self.read(20);
        assert_eq!(head[..8], 0x0003_e889_0455_65a9u64.to_be_bytes());
        assert_eq!(head[8..12], option.to_be_bytes());
        let number = |at| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
        let data = self.read(number(16) as usize);
        (number(12), data)
    }

    fn send(&mut self, command: u16, flags: u16, offset: u64, len: u32, payload: &[u8]) {
        let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(0xabcdu64.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes.extend(payload);
        self.write(&bytes);
    }

    /// Sends a request and takes its error number.
    fn request(&mut self, command: u16, flags: u16, offset: u64, len: u32, payload: &[u8]) -> u32 {
        self.send(command, flags, offset, len, payload);
        self.answer()
    }

    fn answer(&mut self) -> u32 {
        let reply = self.read(16);
        assert_eq!(reply[..4], 0x6744_6698u32.to_be_bytes());
        assert_eq!(reply[8..], 0xabcdu64.to_be_bytes());
        u32::from_be_bytes(reply[4..8].try_into().unwrap())
    }

    /// Whether the server has hung up.
    fn is_closed(&mut self) -> bool {
        matches!(self.0.read(&mut [0]), Ok(0) | Err(_))
    }
}

fn go(name: &str) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend([0, 1, 0, 3]);
    data
}

fn info(size: u64) -> Vec<u8> {
    let mut data = vec![0, 0];
    data.extend(size.to_be_bytes());
    data.extend(0b1_0110_1101u16.to_be_bytes());
    data
}

#[test]
fn requests_do_what_they_say() {
    let fixture = Fixture::new();
    let mut client = fixture.entered();
    assert_eq!(client.request(WRITE, FUA, 4096, 8192, &[7; 8192]), 0);
    assert_eq!(client.request(FLUSH, 0, 0, 0, b""), 0);
    assert_eq!(fixture.overlay.take_dirty(), [4096..12288]);
    assert_eq!(client.request(READ, 0, 8190, 6, b""), 0);
    assert_eq!(client.read(6), [7; 6]);
    assert_eq!(client.request(WRITE_ZEROES, 0, 4096, 4096, b""), 0);
    assert_eq!(client.request(TRIM, 0, SIZE - 4096, 4096, b""), 0);
    assert_eq!(client.request(READ, 0, 4096, 4, b""), 0);
    assert_eq!(client.read(4), [0; 4]);
    assert_eq!(fixture.overlay.take_dirty(), [4096..8192, SIZE - 4096..SIZE]);
    client.send(DISCONNECT, 0, 0, 0, b"");
    assert!(client.is_closed());
    assert_eq!(fixture.overlay.failed(), None);
}

#[test]
fn many_requests_in_one_go_are_all_answered() {
    let fixture = Fixture::new();
    let mut client = fixture.entered();
    for block in 0..200u64 {
        client.send(WRITE, 0, block * 4096, 4096, &[block as u8; 4096]);
    }
    for _ in 0..200 {
        assert_eq!(client.answer(), 0);
    }
    assert_eq!(fixture.overlay.take_dirty(), [0..200 * 4096]);
}

#[test]
fn several_clients_share_an_export() {
    let fixture = Fixture::new();
    let mut clients: Vec<Client> = (0..4).map(|_| fixture.entered()).collect();
    for (index, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.request(WRITE, 0, index as u64 * 4096, 4096, &[index as u8; 4096]), 0);
    }
    assert_eq!(clients[0].request(READ, 0, 3 * 4096, 1, b""), 0);
    assert_eq!(clients[0].read(1), [3]);
}

#[test]
fn bad_requests_get_errors_and_are_remembered() {
    let fixture = Fixture::new();
    let mut client = fixture.entered();
    assert_eq!(client.request(READ, 0, SIZE, 1, b""), 22);
    assert_eq!(client.request(READ, 0, u64::MAX, 2, b""), 22);
    assert_eq!(client.request(READ, 0, 0, u32::MAX, b""), 22);
    assert_eq!(client.request(9, 0, 0, 4096, b""), 22);
    assert_eq!(fixture.overlay.failed(), None, "a bad read harms nothing");
    assert_eq!(client.request(WRITE, 0, 512, 512, &[1; 512]), 22);
    assert!(fixture.overlay.failed().unwrap().contains("512 bytes at 512"));
    assert_eq!(client.request(WRITE, 0, SIZE, 4096, &[1; 4096]), 22);
    assert_eq!(client.request(WRITE_ZEROES, 0, 0, u32::MAX, b""), 22);
    // And it goes on.
    assert_eq!(client.request(WRITE, 0, 0, 4096, &[1; 4096]), 0);
}

#[test]
fn a_client_that_leaves_in_mid_write_breaks_the_overlay() {
    let fixture = Fixture::new();
    let mut client = fixture.entered();
    client.send(WRITE, 0, 0, 4096, &[1; 100]);
    drop(client);
    assert!(fixture.wait_for_failure().contains("connection was lost"));
    assert!(fixture.overlay.take_dirty().is_empty());
}

#[test]
fn a_client_that_leaves_without_goodbye_breaks_the_overlay() {
    let fixture = Fixture::new();
    drop(fixture.entered());
    fixture.wait_for_failure();
}

#[test]
fn endless_writes_and_wrong_magics_end_the_connection() {
    for bad in [
        // A write of 4 GiB.
        [&0x2560_9513u32.to_be_bytes()[..], &[0, 0, 0, 1], &[0; 16], &[0xff; 4]].concat(),
        vec![0x55; 28],
    ] {
        let fixture = Fixture::new();
        let mut client = fixture.entered();
        client.write(&bad);
        assert!(client.is_closed());
        fixture.wait_for_failure();
        // Others are not disturbed.
        assert_eq!(fixture.entered().request(FLUSH, 0, 0, 0, b""), 0);
    }
}

#[test]
fn options_are_answered_and_bounded() {
    let fixture = Fixture::new();
    let mut client = fixture.greeted(FIXED_NO_ZEROES);
    client.option(LIST, b"");
    assert_eq!(client.reply(LIST), (2, b"\0\0\0\x04disk".to_vec()));
    assert_eq!(client.reply(LIST), (2, b"\0\0\0\x05other".to_vec()));
    assert_eq!(client.reply(LIST), (1, vec![]));
    client.option(LIST, b"x");
    assert_eq!(client.reply(LIST).0, 1 << 31 | 3);
    client.option(8, b"");
    assert_eq!(client.reply(8).0, 1 << 31 | 1);
    client.option(5, b"");
    assert_eq!(client.reply(5).0, 1 << 31 | 1);
    client.option(GO, &go("nosuch"));
    assert_eq!(client.reply(GO).0, 1 << 31 | 6);
    client.option(GO, &[0xff; 20]);
    assert_eq!(client.reply(GO).0, 1 << 31 | 3);
    client.option(GO, &vec![0; 100_000]);
    assert_eq!(client.reply(GO).0, 1 << 31 | 9);
    client.option(2, b"");
    assert_eq!(client.reply(2).0, 1);
    assert!(client.is_closed());

    let mut client = fixture.greeted(FIXED_NO_ZEROES);
    client.write(b"IHAVEOPX\0\0\0\x07\0\0\0\0");
    assert!(client.is_closed());
    let mut client = fixture.greeted(0);
    assert!(client.is_closed());
    let mut client = fixture.greeted(0xffff_ffff);
    assert!(client.is_closed());
    assert_eq!(fixture.overlay.failed(), None, "nobody had entered");
}

#[test]
fn the_old_way_in() {
    let fixture = Fixture::new();
    for (flags, zeroes) in [(FIXED, 124), (FIXED_NO_ZEROES, 0)] {
        let mut client = fixture.greeted(flags);
        client.option(1, b"disk");
        assert_eq!(client.read(10), info(SIZE)[2..]);
        assert_eq!(client.read(zeroes), vec![0; zeroes]);
        assert_eq!(client.request(FLUSH, 0, 0, 0, b""), 0);
        client.send(DISCONNECT, 0, 0, 0, b"");
        assert!(client.is_closed());
    }
    let mut client = fixture.greeted(FIXED);
    client.option(1, b"nosuch");
    assert!(client.is_closed());
}

#[test]
fn stopping_closes_everything_at_once() {
    let mut fixture = Fixture::new();
    let mut idle = fixture.entered();
    let mut half = fixture.entered();
    half.send(WRITE, 0, 0, 4096, &[1; 100]);
    let clock = Instant::now();
    fixture.server.take().unwrap().stop();
    assert!(clock.elapsed() < Duration::from_secs(5));
    assert!(idle.is_closed() && half.is_closed());
    assert!(!fixture.socket().exists());
    assert_eq!(fixture.overlay.failed(), None, "it was us who left");
}

#[test]
fn a_dead_servers_socket_is_replaced_and_a_live_ones_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nbd");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    let _server = NbdServer::start(&socket, vec![]).unwrap();
    let error = NbdServer::start(&socket, vec![]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    UnixStream::connect(&socket).unwrap();
}
