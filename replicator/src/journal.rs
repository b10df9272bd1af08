//! The journals of hand-offs, as files: one a job, append-only, each record durable before the call returns. What the
//! records mean is `longhaul_proto::handoff`'s to say; how they stand in the file, `longhaul_proto::journal`'s.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use longhaul_proto::handoff::Record;
use longhaul_proto::journal::{self, JournalError};
use longhaul_proto::{Epoch, JobId};

use crate::files;

/// A journal longer than this is none of ours.
const MAX_JOURNAL_BYTES: u64 = 16 << 20;

/// A journal that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalFileError {
    /// The file is out of reach. Nothing was written.
    #[error("the journal {path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A record could not be written, and what was written of it could not be taken back.
    #[error(
        "the journal {path} failed while a record was written and cannot be put back ({source}). Nothing more is done \
         with this job: mend the disk and restart the daemon, which goes on from what the journal holds"
    )]
    Doubtful {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its content.
    #[error("the journal {path}: {source}")]
    Content {
        /// Which.
        path: PathBuf,
        /// Why.
        source: JournalError,
    },
}

impl JournalFileError {
    /// The thread that was writing broke off: what it has written is not known.
    pub(crate) fn lost(path: &Path) -> Self {
        let source = io::Error::other("the thread that was writing it broke off");
        JournalFileError::Doubtful { path: path.to_owned(), source }
    }
}

/// One hand-off's journal.
#[derive(Debug)]
pub struct JournalFile {
    path: PathBuf,
    file: File,
    length: u64,
    records: Vec<Record>,
}

impl JournalFile {
    /// A new, empty journal for `job` in `dir`, its name durable.
    pub fn create(dir: &Path, job: JobId) -> Result<Self, JournalFileError> {
        let path = dir.join(format!("{job}.journal"));
        let io = |source| JournalFileError::Io { path: path.clone(), source };
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).map_err(io)?;
        file.write_all(&journal::HEADER).and_then(|()| file.sync_all()).map_err(io)?;
        files::sync_dir(dir).map_err(io)?;
        Ok(JournalFile { path, file, length: journal::HEADER.len() as u64, records: Vec::new() })
    }

    /// An existing journal; a torn tail is cut.
    pub fn open(path: &Path) -> Result<Self, JournalFileError> {
        let io = |source| JournalFileError::Io { path: path.to_owned(), source };
        let mut file = OpenOptions::new().read(true).write(true).open(path).map_err(io)?;
        let mut bytes = Vec::new();
        (&mut file).take(MAX_JOURNAL_BYTES).read_to_end(&mut bytes).map_err(io)?;
        let (records, good) = journal::decode(&bytes)
            .map_err(|source| JournalFileError::Content { path: path.to_owned(), source })?;
        file.set_len(good as u64).map_err(io)?;
        if good == 0 {
            file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(&journal::HEADER)).map_err(io)?;
        }
        file.sync_all().map_err(io)?;
        let length = good.max(journal::HEADER.len()) as u64;
        Ok(JournalFile { path: path.to_owned(), file, length, records })
    }

    /// Nothing can be written to it any more, and nothing taken back.
    #[cfg(test)]
    pub(crate) fn break_off(&mut self) {
        self.file = File::open(&self.path).unwrap();
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it holds.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Appends a record; durable when this returns. On [`JournalFileError::Io`] the record is not in the journal.
    pub fn append(&mut self, record: &Record) -> Result<(), JournalFileError> {
        let bytes = journal::encode(record)
            .map_err(|source| JournalFileError::Content { path: self.path.clone(), source })?;
        let written = self
            .file
            .seek(SeekFrom::Start(self.length))
            .and_then(|_| self.file.write_all(&bytes))
            .and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            return Err(match self.file.set_len(self.length).and_then(|()| self.file.sync_all()) {
                Ok(()) => JournalFileError::Io { path: self.path.clone(), source },
                Err(_) => JournalFileError::Doubtful { path: self.path.clone(), source },
            });
        }
        self.length += bytes.len() as u64;
        self.records.push(record.clone());
        Ok(())
    }
}

/// Every journal in `dir`, by job. One that cannot be read ends the start of the daemon: it may hold a VM's ownership.
pub fn load_all(dir: &Path) -> Result<HashMap<JobId, JournalFile>, JournalFileError> {
    let io = |source| JournalFileError::Io { path: dir.to_owned(), source };
    let mut journals = HashMap::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let job = path
            .extension()
            .filter(|extension| *extension == "journal")
            .and(path.file_stem())
            .and_then(|stem| stem.to_str()?.parse().ok());
        if let Some(job) = job {
            journals.insert(job, JournalFile::open(&path)?);
        }
    }
    Ok(journals)
}

/// What a job's journal says of the ownership of its VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// We own it at this epoch.
    Ours(Epoch),
    /// The peer owns it, at this epoch.
    Theirs(Epoch, String),
    /// We promised to do as the peer decides and know no decision.
    Undecided(Epoch, String),
}

impl Claim {
    /// The epoch it is about.
    pub fn epoch(&self) -> Epoch {
        match self {
            Claim::Ours(epoch) | Claim::Theirs(epoch, _) | Claim::Undecided(epoch, _) => *epoch,
        }
    }
}

/// The VM a job is about, and what its records say of it. A job that came to nothing says nothing of the destination.
pub fn claim(records: &[Record]) -> Option<(String, Claim)> {
    match records.first()? {
        Record::Started { vm, peer, epoch } => {
            let released = records.iter().find_map(|record| match record {
                Record::Released { epoch } => Some(*epoch),
                _ => None,
            });
            let claim = released.map_or(Claim::Ours(*epoch), |epoch| Claim::Theirs(epoch, peer.clone()));
            Some((vm.clone(), claim))
        }
        Record::Accepted { vm, peer, epoch, .. } => {
            let owned = records.iter().find_map(|record| match record {
                Record::Owned { epoch } => Some(*epoch),
                _ => None,
            });
            let discarded = records.iter().any(|record| matches!(record, Record::Discarded { .. }));
            match owned {
                Some(epoch) => Some((vm.clone(), Claim::Ours(epoch))),
                None if discarded => None,
                None if records.contains(&Record::Ready) => {
                    Some((vm.clone(), Claim::Undecided(epoch.next(), peer.clone())))
                }
                None => None,
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
