//! Archives, brought into a real store: it is in memory (/dev/shm), and a new one whenever an input has stored
//! something, so that an input always meets an empty store and fails the same way again.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::{fs, process};

use chunkstore::{
    ChunkId, ImageRoot, ImportReport, Manifest, ManifestExtent, RawImage, ReadImage, Scope, Seeds, Store,
    export, import, restore_to,
};

/// Larger images are not written out: holes cost an input nothing.
const RESTORED_BYTES: u64 = 2 << 20;

/// Where the stores are, but for the number of the process.
const PREFIX: &str = "longhaul-fuzz-archive-";

thread_local! {
    static SCRATCH: RefCell<Option<Scratch>> = const { RefCell::new(None) };
}

/// What an archive that is refused publishes: nothing. What one that is taken publishes: all it said, whole.
pub(super) fn archive(bytes: &[u8]) {
    SCRATCH.with_borrow_mut(|scratch| {
        let used = scratch.get_or_insert_with(Scratch::new);
        let empty = used.judge(bytes);
        if !empty {
            *scratch = None;
        }
    });
}

/// A store in a directory that goes when this does.
struct Scratch {
    store: Store,
    dir: PathBuf,
}

impl Scratch {
    fn new() -> Scratch {
        let dir = Path::new("/dev/shm").join(format!("{PREFIX}{}", process::id()));
        remove_left_over();
        // Of the input before; a process that failed has left its own.
        let _ = fs::remove_dir_all(&dir);
        let store = Store::open(dir.join("store")).expect("a store can be made in memory");
        Scratch { store, dir }
    }

    /// Gives whether the store is as empty as it was.
    fn judge(&self, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        match import(&self.store, &mut rest, false, &|_| ControlFlow::Continue(())) {
            Ok(report) => self.imported(&bytes[..bytes.len() - rest.len()], &report),
            Err(_) => assert!(self.names().is_empty(), "refused and published"),
        }
        self.names().is_empty() && self.store.stats().expect("the store can be read").chunks == 0
    }

    fn names(&self) -> Vec<String> {
        self.store.names().expect("the names can be read")
    }

    fn imported(&self, archive: &[u8], report: &ImportReport) {
        assert_eq!(report.names, self.names());
        assert_eq!(report.bytes, archive.len() as u64, "read beyond the end mark, or not to it");
        assert_eq!(report.chunks_new, report.chunks, "the store was empty");
        assert_eq!(self.store.stats().expect("the store can be read").chunks, report.chunks);
        let verified = self.store.verify(&Scope::Whole, &|_| ControlFlow::Continue(()));
        let verified = verified.expect("the store can be read");
        assert!(verified.is_clean() && verified.chunks == report.chunks, "{verified:?}");
        for name in &report.names {
            self.restores(name);
        }
        let mut again = Vec::new();
        let exported = export(&self.store, &report.names, &mut again, &|_| ControlFlow::Continue(()));
        let exported = exported.expect("what came in goes out");
        assert_eq!(exported.chunks, report.chunks);
        let refused = import(&self.store, &mut &again[..], false, &|_| ControlFlow::Continue(()));
        assert!(refused.is_err(), "a name was taken, and replaced");
        let replaced = import(&self.store, &mut &again[..], true, &|_| ControlFlow::Continue(()));
        assert_eq!(replaced.map(|again| (again.chunks_new, again.names)).ok(), Some((0, self.names())));
    }

    fn restores(&self, name: &str) {
        let manifest = self.store.manifest(name).expect("what was published can be read");
        if manifest.size() > RESTORED_BYTES {
            return;
        }
        let path = self.dir.join("restored");
        restore_to(&self.store, &Seeds::new(), &manifest, &path, None, &|_| ControlFlow::Continue(()))
            .expect("it is all there");
        let restored = RawImage::open_read(&path).expect("it was made");
        assert_eq!(restored.size(), manifest.size());
        for placed in manifest.placed() {
            let mut bytes = vec![0; placed.extent.len() as usize];
            restored.read_at(placed.offset, &mut bytes).expect("it has its size");
            match placed.extent {
                ManifestExtent::Data { id, .. } => assert_eq!(ChunkId::of(&bytes), id),
                ManifestExtent::Hole { .. } => assert!(chunkstore::is_zero(&bytes)),
            }
        }
        fs::remove_file(&path).expect("it was made");
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Removes what processes left that ended in the middle of an input.
fn remove_left_over() {
    let Ok(entries) = fs::read_dir("/dev/shm") else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Archives of one image, of several that share chunks, of none but holes, and one cut short.
pub(super) fn archives() -> Vec<Vec<u8>> {
    let scratch = Scratch::new();
    let text = b"a chunk that compresses, a chunk that compresses, a chunk that compresses".as_slice();
    let chunk = |data: &[u8]| {
        let id = ChunkId::of(data);
        scratch.store.put(&id, data).expect("the store takes it");
        ManifestExtent::Data { len: data.len() as u32, id }
    };
    let hole = |len| ManifestExtent::Hole { len };
    let publish = |name: &str, extents: Vec<ManifestExtent>| {
        let manifest = Manifest::of(ImageRoot::from_bytes([9; 32]), extents).expect("extents that can be");
        scratch.store.publish(name, &manifest).expect("its chunks are there");
    };
    publish("one", vec![chunk(b"x"), hole(70_000), chunk(text), chunk(b"x"), chunk(&[7; 300])]);
    publish("two", vec![chunk(b"yes"), chunk(text), chunk(&[0; 200_000])]);
    publish("holes", vec![hole(1 << 40)]);
    publish("nothing", Vec::new());
    publish("many", (1..40).map(|number| chunk(&vec![number; number.into()])).collect());
    let archive = |names: &[&str]| {
        let mut bytes = Vec::new();
        export(&scratch.store, names, &mut bytes, &|_| ControlFlow::Continue(())).expect("they are there");
        bytes
    };
    let mut seeds = vec![
        archive(&["one"]),
        archive(&["one", "two"]),
        archive(&["holes"]),
        archive(&["nothing", "two"]),
        archive(&["many"]),
        archive(&["holes", "many", "nothing", "one", "two"]),
    ];
    seeds.push(seeds[0][..seeds[0].len() - 1].to_vec());
    seeds
}
