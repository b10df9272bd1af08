//! Where VMs and mobile nodes are reached, on the disk before anybody is told: a file of records that grows by one write and one
//! `fdatasync` for all that has changed meanwhile, and is written anew when most of it is old.
//!
//! A record is a line: the first 16 hexadecimal digits of the BLAKE3 hash of the rest, a space, JSON. The last one of a node
//! counts. The file is filled with zeros beyond its records, so that to write one changes nothing but its content: that takes
//! a disk least. What a crash has torn is not believed; nobody was told of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::Ipv6Addr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use mobility::home_agent::{Binding, Change, Keeper};
use serde::{Deserialize, Serialize};

use crate::files;

const NAME: &str = "bindings.log";
/// How many bytes the file grows by.
const ROOM_BYTES: u64 = 256 << 10;
/// How much may be old, beside as much as was not when the file was made.
const OLD_BYTES: u64 = 1 << 20;
const DIGITS: usize = 16;

/// What was known of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub node: String,
    /// Lowest address and length of its prefix.
    pub prefix: (Ipv6Addr, u8),
    /// The highest epoch in which it was bound.
    pub floor: u64,
    /// Where it was reached.
    pub binding: Option<Binding>,
}

impl From<&Change> for Record {
    fn from(change: &Change) -> Self {
        let Change { node, prefix, floor, binding } = change.clone();
        Self { node, prefix: (prefix.address(), prefix.len()), floor, binding }
    }
}

/// The file, open to be written.
#[derive(Debug)]
pub struct Bindings {
    path: PathBuf,
    file: File,
    bytes: u64,
    room: u64,
    /// Of the records when the file was made.
    made_with: u64,
}

impl Bindings {
    /// Opens the file in `dir`, made unless it is there, and gives the last record of each node that `is_known`; the others are
    /// forgotten.
    ///
    /// # Errors
    /// What the disk says.
    pub fn open(dir: &Path, is_known: impl Fn(&Record) -> bool) -> io::Result<(Self, Vec<Record>)> {
        let path = dir.join(NAME);
        let mut records = read(&path)?;
        records.retain(|_, record| is_known(record));
        let bindings = Self::make(&path, &records)?;
        Ok((bindings, records.into_values().collect()))
    }

    fn make(path: &Path, records: &BTreeMap<String, Record>) -> io::Result<Self> {
        let lines = lines(records.values())?;
        files::write_atomic(path, &lines)?;
        let file = File::options().write(true).open(path)?;
        let bytes = lines.len() as u64;
        Ok(Self { path: path.to_owned(), file, bytes, room: bytes, made_with: bytes })
    }
}

impl Keeper for Bindings {
    fn keep(&mut self, changes: &[Change]) -> io::Result<()> {
        let lines = lines(changes.iter().map(Record::from).collect::<Vec<_>>().iter())?;
        let end = self.bytes + lines.len() as u64;
        if end > 2 * self.made_with + OLD_BYTES {
            let mut records = read(&self.path)?;
            records.extend(changes.iter().map(|change| (change.node.clone(), change.into())));
            *self = Self::make(&self.path, &records)?;
            return Ok(());
        }
        if end > self.room {
            let room = end.next_multiple_of(ROOM_BYTES);
            self.file.write_all_at(&vec![0; (room - self.bytes) as usize], self.bytes)?;
            // With its new length, before anything is written into it.
            self.file.sync_all()?;
            self.room = room;
        }
        self.file.write_all_at(&lines, self.bytes)?;
        self.file.sync_data()?;
        self.bytes = end;
        Ok(())
    }
}

fn lines<'a>(records: impl Iterator<Item = &'a Record>) -> io::Result<Vec<u8>> {
    let mut lines = Vec::new();
    for record in records {
        let json = serde_json::to_vec(record)?;
        lines.extend(digits(&json).as_bytes());
        lines.push(b' ');
        lines.extend(json);
        lines.push(b'\n');
    }
    Ok(lines)
}

fn digits(json: &[u8]) -> String {
    blake3::hash(json).to_hex()[..DIGITS].to_owned()
}

/// The last record of each node.
fn read(path: &Path) -> io::Result<BTreeMap<String, Record>> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        read => read?,
    };
    let mut records = BTreeMap::new();
    // Zeros stand where nothing was written yet.
    for line in bytes.split(|byte| matches!(byte, b'\n' | 0)).filter(|line| !line.is_empty()) {
        match parse(line) {
            Some(record) => drop(records.insert(record.node.clone(), record)),
            None => tracing::warn!(
                "{}: a record of {} bytes is torn and not believed",
                path.display(),
                line.len()
            ),
        }
    }
    Ok(records)
}

fn parse(line: &[u8]) -> Option<Record> {
    let (found, json) = line.split_at_checked(DIGITS)?;
    let json = json.strip_prefix(b" ")?;
    (digits(json).as_bytes() == found).then(|| serde_json::from_slice(json).ok())?
}

#[cfg(test)]
mod tests;
