//! What people write and read: VM definitions and names.

use std::fmt::Display;
use std::path::Path;
use std::str::FromStr;

use chunkstore::{ChunkId, ImageRoot};
use longhaul::fuzzing::Fingerprint;
use longhaul_proto::JobId;
use migrate_driver::definition::{MAX_DISK_NAME_BYTES, MAX_DISKS};
use migrate_driver::{VmDefinition, VmName};

/// A definition keeps its limits and can be written and read again.
pub(super) fn definition(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let read = |text: &str| VmDefinition::parse(text, Path::new("vm.toml"));
    let Ok(vm) = read(text) else { return };
    assert!((1..=16 << 20).contains(&vm.memory_mib) && (1..=1024).contains(&vm.vcpus));
    assert!(vm.disks.len() <= MAX_DISKS);
    for disk in &vm.disks {
        assert!((1..=MAX_DISK_NAME_BYTES).contains(&disk.name.len()));
        assert_eq!(vm.disk(&disk.name), Some(disk), "two disks of one name");
    }
    let text = vm.to_toml().expect("a definition from a text can be written");
    assert_eq!(read(&text).expect("what is written can be read"), vm);
}

pub(super) fn definitions() -> Vec<Vec<u8>> {
    let least = "name = \"a\"\nmemory_mib = 1\n";
    let most = concat!(
        "name = \"web-1_2\"\nmemory_mib = 16777216\nvcpus = 1024\n",
        "[[disks]]\nname = \"root\"\npath = \"/images/root.raw\"\n",
        "[[disks]]\nname = \"data\"\npath = \"data.raw\"\n",
        "[qemu]\nbinary = \"qemu-system-x86_64\"\nmachine = \"q35\"\naccel = \"tcg\"\ncpu = \"max\"\n",
        "kernel = \"/vmlinuz\"\ninitrd = \"/initrd\"\nappend = \"console=ttyS0\"\ncache = \"none\"\n",
        "args = [\"-netdev\", \"user,id=n0\", \"--device\", 'virtio-net-pci']\n",
    );
    // Refused; but a change away from what is taken.
    let twice = most.replace("\"data\"", "\"root\"");
    vec![least.into(), most.into(), twice.into()]
}

/// A name that is taken is written as it was given, letters of hexadecimal digits aside.
pub(super) fn names(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    fn same<T: FromStr + Display>(text: &str) {
        if let Ok(name) = text.parse::<T>() {
            let written = name.to_string();
            assert!(written.eq_ignore_ascii_case(text), "{text:?} was read as {written:?}");
        }
    }
    same::<JobId>(text);
    same::<ChunkId>(text);
    same::<ImageRoot>(text);
    same::<Fingerprint>(text);
    same::<VmName>(text);
}

pub(super) fn name_seeds() -> Vec<Vec<u8>> {
    let texts =
        [JobId([0xa7; 16]).to_string(), ChunkId::of(b"").to_string(), "web-1_2".into(), "A5".repeat(32)];
    texts.map(String::into_bytes).into()
}
