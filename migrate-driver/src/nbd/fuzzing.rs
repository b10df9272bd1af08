//! The NBD server as fuzz targets see it: a client's bytes go in, and the answers must be those of a plain array.
//! Compiled for the fuzz targets only; opens no socket.

use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use super::codec::{self, MAX_PAYLOAD_BYTES, OptionHeader};
use super::overlay::{BLOCK_BYTES, Overlay};
use super::server::{negotiate, transmit};

/// An odd size: the last block is short.
const SIZE: usize = 5 * BLOCK_BYTES as usize + 512;

fn overlay() -> Overlay {
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { memory } else { Path::new("/tmp") };
    Overlay::new(SIZE as u64, dir).expect("a scratch file can be made")
}

/// Reads `bytes` as what a client says until it has chosen an export.
pub fn options(bytes: &[u8]) {
    let exports = vec![("root".to_owned(), Arc::new(overlay())), ("data".to_owned(), Arc::new(overlay()))];
    let mut reader = bytes;
    let mut answers = Vec::new();
    let chosen = negotiate(&exports, &mut reader, &mut answers);
    let used = bytes.len() - reader.len();
    assert!(answers.starts_with(b"NBDMAGICIHAVEOPT"));
    // An option is 16 bytes at the least, and a list of our two exports the longest answer.
    assert!(answers.len() <= 18 + used.div_ceil(OptionHeader::BYTES) * 256, "{} answered", answers.len());
    if let Ok(Some(chosen)) = chosen {
        let (name, _) =
            exports.iter().find(|(_, overlay)| Arc::ptr_eq(overlay, &chosen)).expect("it is ours");
        assert!(
            bytes[..used].windows(name.len()).any(|part| part == name.as_bytes()),
            "{name} was not asked for"
        );
    }
}

/// Reads `bytes` as a client's requests. Answers and content must be those of [`Model`].
pub fn requests(bytes: &[u8]) {
    let overlay = overlay();
    let mut answers = Vec::new();
    // The reader's buffer is cut short, so that requests span its edge.
    let result = transmit(&overlay, &mut BufReader::with_capacity(48, bytes), &mut answers);
    let mut model = Model { image: vec![0; SIZE], answers: Vec::new() };
    assert_eq!(result.is_ok(), model.run(bytes).is_some(), "{result:?}");
    // What was under way when the client broke off may have been answered or not.
    assert!(answers == model.answers, "other answers");
    let mut content = vec![0; SIZE];
    overlay.read_at(0, &mut content).expect("the overlay can be read");
    assert!(content == model.image, "another image");
    let mut end = 0;
    for range in overlay.take_dirty() {
        assert!(end <= range.start && range.start < range.end && range.end <= SIZE as u64);
        end = range.end;
    }
    let clean = model.image[end as usize..].iter().all(|byte| *byte == 0);
    assert!(clean, "written behind {end} and not dirty");
}

/// What the server does, by the protocol's document, over an array.
struct Model {
    image: Vec<u8>,
    answers: Vec<u8>,
}

impl Model {
    /// `Some` when the client says goodbye, `None` when it breaks off or says what is no request.
    fn run(&mut self, mut client: &[u8]) -> Option<()> {
        loop {
            let mut request = [0; 28];
            client.read_exact(&mut request).ok()?;
            let field = |at: usize, len: usize| {
                request[at..at + len].iter().fold(0_u64, |value, byte| value << 8 | u64::from(*byte))
            };
            let (kind, handle, offset, len) = (field(6, 2), field(8, 8), field(16, 8), field(24, 4) as usize);
            if field(0, 4) != 0x2560_9513 || (kind == 1 && len > MAX_PAYLOAD_BYTES as usize) {
                return None;
            }
            let mut payload = Vec::new();
            if kind == 1 {
                let (data, rest) = client.split_at_checked(len)?;
                (payload, client) = (data.to_vec(), rest);
            }
            let end = offset.checked_add(len as u64).filter(|end| *end <= SIZE as u64);
            let range = end.map(|end| offset as usize..end as usize);
            let blocks = range.clone().filter(|range| {
                let whole = |at: usize| at.is_multiple_of(BLOCK_BYTES as usize);
                whole(range.start) && (whole(range.end) || range.end == SIZE)
            });
            let (error, data): (u32, &[u8]) = match (kind, range, blocks) {
                (2, ..) => return Some(()),
                (3, ..) => (0, &[]),
                (0, Some(range), _) => (0, &self.image[range]),
                (1, _, Some(blocks)) => {
                    self.image[blocks].copy_from_slice(&payload);
                    (0, &[])
                }
                (4 | 6, _, Some(blocks)) => {
                    self.image[blocks].fill(0);
                    (0, &[])
                }
                _ => (22, &[]),
            };
            self.answers.extend(0x6744_6698_u32.to_be_bytes());
            self.answers.extend(error.to_be_bytes());
            self.answers.extend(handle.to_be_bytes());
            self.answers.extend(data);
        }
    }
}

/// Beginnings of conversations.
pub fn option_seeds() -> Vec<Vec<u8>> {
    let option = |number: u32, data: &[u8]| {
        let header = [&codec::OPTION_MAGIC.to_be_bytes()[..], &number.to_be_bytes()].concat();
        [&header[..], &(data.len() as u32).to_be_bytes(), data].concat()
    };
    let go = |name: &str| [&(name.len() as u32).to_be_bytes()[..], name.as_bytes(), &[0, 1, 0, 3]].concat();
    let client = 3_u32.to_be_bytes().to_vec();
    vec![
        [&client[..], &option(7, &go("root"))].concat(),
        [&client[..], &option(6, &go("data")), &option(7, &go("nothing")), &option(1, b"data")].concat(),
        [&client[..], &option(3, b""), &option(8, b""), &option(2, b"")].concat(),
        [&1_u32.to_be_bytes()[..], &option(1, b"root")].concat(),
    ]
}

/// Requests to begin with.
pub fn request_seeds() -> Vec<Vec<u8>> {
    let request = |kind: u16, offset: u64, len: u32| {
        let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
        bytes.extend([0, 0]);
        bytes.extend(kind.to_be_bytes());
        bytes.extend(0x1122_3344_5566_7788_u64.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes
    };
    let write = |offset: u64, len: u32| [request(1, offset, len), vec![0xa5; len as usize]].concat();
    vec![
        [write(4096, 4096), request(0, 0, 12000), request(3, 0, 0), request(2, 0, 0)].concat(),
        [write(SIZE as u64 - 512, 512), request(6, 0, SIZE as u32), request(0, 0, SIZE as u32)].concat(),
        [request(4, 4096, 8192), request(7, 0, 0), request(0, 1 << 40, 1), write(1, 1)].concat(),
    ]
}
