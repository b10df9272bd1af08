//! The journals of hand-offs, as files: one a job, append-only, each record durable before the call returns. What the
//! records mean is `longhaul_proto::handoff`'s to say; how they stand in the file, `longhaul_proto::journal`'s. Journals of
//! jobs that have ended are folded into one file by `claims`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use longhaul_proto::handoff::Record;
use longhaul_proto::journal::{self, JournalError};
use longhaul_proto::{Epoch, JobId};
use serde::{Deserialize, Serialize};

use crate::error_kind::{HasKind, Kind};
use crate::files;
use crate::service::state_version;

/// A journal longer than this is none of ours.
const MAX_JOURNAL_BYTES: u64 = 16 << 20;

/// A journal that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalFileError {
    /// The file is out of reach. Nothing was written.
    #[error("the journal {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    /// A record could not be written, and what was written of it could not be taken back.
    #[error(
        "the journal {path} failed while a record was written and cannot be put back ({source}). Nothing more is done \
         with this job: mend the disk and restart the daemon, which goes on from what the journal holds"
    )]
    Doubtful { path: PathBuf, source: io::Error },
    /// Its content.
    #[error("the journal {path}: {source}")]
    Content { path: PathBuf, source: JournalError },
}

impl HasKind for JournalFileError {
    fn kind(&self) -> Kind {
        match self {
            JournalFileError::Io { source, .. } | JournalFileError::Doubtful { source, .. } => {
                Kind::of_io(source)
            }
            JournalFileError::Content { .. } => Kind::Io,
        }
    }
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
pub(crate) struct JournalFile {
    path: PathBuf,
    file: File,
    length: u64,
    records: Vec<Record>,
}

impl JournalFile {
    /// A new, empty journal for `job` in `dir`, its name durable.
    pub(crate) fn create(dir: &Path, job: JobId) -> Result<Self, JournalFileError> {
        let path = dir.join(format!("{job}.journal"));
        let io = |source| JournalFileError::Io { path: path.clone(), source };
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).map_err(io)?;
        file.write_all(&journal::HEADER).and_then(|()| file.sync_all()).map_err(io)?;
        files::sync_dir(dir).map_err(io)?;
        Ok(JournalFile { path, file, length: journal::HEADER.len() as u64, records: Vec::new() })
    }

    /// An existing journal; a torn tail is cut.
    pub(crate) fn open(path: &Path) -> Result<Self, JournalFileError> {
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
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What it holds.
    pub(crate) fn records(&self) -> &[Record] {
        &self.records
    }

    /// Appends a record; durable when this returns. On [`JournalFileError::Io`] the record is not in the journal.
    pub(crate) fn append(&mut self, record: &Record) -> Result<(), JournalFileError> {
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

/// What the journals in a directory say.
#[derive(Debug, Default)]
pub(crate) struct Journals {
    /// Those of jobs that have not ended, each open for further records.
    pub open: Vec<(JobId, JournalFile)>,
    /// Those of jobs that have ended, or never began.
    pub ended: Vec<(PathBuf, Option<EndedJob>)>,
    /// Those that cannot be read. Each may hide who owns a VM.
    pub damaged: Vec<DamagedJournal>,
}

/// How a hand-off ended: all that its peer may still ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EndedJob {
    /// The job, 32 hexadecimal digits.
    pub job: String,
    /// The VM.
    pub vm: String,
    /// The other platform, by its name here.
    pub peer: String,
    /// The epoch at which the source owned the VM.
    pub epoch: Epoch,
    /// The epoch at which the destination owns it, where it was released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released: Option<Epoch>,
    /// The last record.
    pub end: End,
    /// When that was written, in milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
}

/// The last record of a hand-off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum End {
    /// Source: the peer runs the VM.
    Retired,
    /// Source: the VM stays here.
    RolledBack,
    /// Destination: the VM runs here.
    Rebound,
    /// Destination: nothing of the VM is left here.
    Discarded,
}

impl EndedJob {
    /// The end that these records tell, if they are those of a job that has ended.
    pub(crate) fn of(job: JobId, records: &[Record], at_unix_ms: u64) -> Option<Self> {
        let (Record::Started { vm, peer, epoch } | Record::Accepted { vm, peer, epoch, .. }) =
            records.first()?
        else {
            return None;
        };
        let end = match records.last()? {
            Record::Retired => End::Retired,
            Record::RolledBack { .. } => End::RolledBack,
            Record::Rebound => End::Rebound,
            Record::Discarded { .. } => End::Discarded,
            _ => return None,
        };
        let released = records.iter().find_map(|record| match record {
            Record::Released { epoch } | Record::Owned { epoch } => Some(*epoch),
            _ => None,
        });
        let (vm, peer) = (vm.clone(), peer.clone());
        Some(EndedJob { job: job.to_string(), vm, peer, epoch: *epoch, released, end, at_unix_ms })
    }

    /// Records that tell the same end, without the plan and the reason.
    pub(crate) fn records(&self) -> Vec<Record> {
        let (vm, peer, epoch) = (self.vm.clone(), self.peer.clone(), self.epoch);
        let started = Record::Started { vm: vm.clone(), peer: peer.clone(), epoch };
        let accepted = Record::Accepted { vm, peer, epoch, plan: Vec::new() };
        let reason = "the migration has ended without success".to_owned();
        let released = self.released.unwrap_or(epoch.next());
        match self.end {
            End::Retired => vec![started, Record::Released { epoch: released }, Record::Retired],
            End::RolledBack => vec![started, Record::RolledBack { reason }],
            End::Rebound => vec![
                accepted,
                Record::Ready,
                Record::Owned { epoch: released },
                Record::Resumed,
                Record::Rebound,
            ],
            End::Discarded => vec![accepted, Record::Discarded { reason }],
        }
    }
}

/// A journal, or another file with claims, that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DamagedJournal {
    /// The file.
    pub path: PathBuf,
    /// The VM it is about and the last epoch that can be read, where its first record is whole.
    pub about: Option<(String, Epoch)>,
    /// What is wrong with it.
    pub why: String,
}

/// The records of a journal file, read without a change to it.
pub(crate) fn read(path: &Path) -> Result<Vec<Record>, JournalFileError> {
    let bytes = read_bytes(path).map_err(|source| JournalFileError::Io { path: path.to_owned(), source })?;
    let (records, _) = journal::decode(&bytes)
        .map_err(|source| JournalFileError::Content { path: path.to_owned(), source })?;
    Ok(records)
}

fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_JOURNAL_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads every journal in `dir`. A journal that cannot be read is reported, left as it is, and keeps no other from being
/// read. What is no journal is passed over.
pub(crate) fn load_all(dir: &Path) -> Result<Journals, JournalFileError> {
    let io = |source| JournalFileError::Io { path: dir.to_owned(), source };
    let mut journals = Journals::default();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        let job = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        // Anything else in their place holds no records, and a pipe must not be opened.
        let is_file = std::fs::metadata(&path).is_ok_and(|meta| meta.is_file());
        match (extension, job) {
            (Some("journal"), Some(state_version::JOB)) => {}
            (Some("journal"), Some(_)) if !is_file => {
                tracing::warn!("{} is not a file; passed over", path.display());
            }
            (Some("journal"), Some(job)) => load_one(&mut journals, job, path),
            (Some(DAMAGED), _) if is_file => {
                let why = "it was set aside as damaged".to_owned();
                journals.damaged.push(DamagedJournal { about: None, why, path });
            }
            _ => {}
        }
    }
    Ok(journals)
}

/// The extension of files with claims that were set aside because they cannot be read.
pub(crate) const DAMAGED: &str = "damaged";

fn load_one(journals: &mut Journals, job: JobId, path: PathBuf) {
    let at_unix_ms = written_at(&path);
    let damaged = |about, why: String| DamagedJournal { path: path.clone(), about, why };
    let bytes = match read_bytes(&path) {
        Ok(bytes) => bytes,
        Err(error) => return journals.damaged.push(damaged(None, error.to_string())),
    };
    match journal::decode(&bytes) {
        Ok((records, _)) if records.is_empty() => journals.ended.push((path, None)),
        Ok((records, _)) => match EndedJob::of(job, &records, at_unix_ms) {
            Some(ended) => journals.ended.push((path, Some(ended))),
            None => match JournalFile::open(&path) {
                Ok(file) => journals.open.push((job, file)),
                Err(error) => journals.damaged.push(damaged(about(&records), error.to_string())),
            },
        },
        Err(error) => {
            journals.damaged.push(damaged(about(&journal::decode_before_damage(&bytes)), error.to_string()));
        }
    }
}

/// The VM that records are about, and the highest epoch they name.
fn about(records: &[Record]) -> Option<(String, Epoch)> {
    let (Record::Started { vm, epoch, .. } | Record::Accepted { vm, epoch, .. }) = records.first()? else {
        return None;
    };
    Some((vm.clone(), *epoch))
}

/// When a file was last written, in milliseconds since the Unix epoch.
fn written_at(path: &Path) -> u64 {
    let modified = std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let since = modified.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    since.map_or(0, |since| since.as_millis() as u64)
}

/// Whether these are all the records there will be.
pub(crate) fn has_ended(records: &[Record]) -> bool {
    matches!(
        records.last(),
        None | Some(Record::Retired | Record::RolledBack { .. } | Record::Discarded { .. } | Record::Rebound)
    )
}

/// What is known here of the ownership of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Claim {
    /// We own it at this epoch.
    Ours(Epoch),
    /// We promised to do as the peer decides and know no decision.
    Undecided(Epoch, String),
    /// The peer owns it, at this epoch.
    Theirs(Epoch, String),
    /// Its last owner removed it, at this epoch: nobody has it.
    Removed(Epoch),
    /// A file that cannot be read may hold its ownership; this is the last epoch known.
    Unknown(Epoch, PathBuf),
}

impl Claim {
    /// The epoch it is about.
    pub(crate) fn epoch(&self) -> Epoch {
        match self {
            Claim::Ours(epoch)
            | Claim::Theirs(epoch, _)
            | Claim::Undecided(epoch, _)
            | Claim::Removed(epoch)
            | Claim::Unknown(epoch, _) => *epoch,
        }
    }

    /// Orders claims to one VM: the highest epoch counts, and of two at one epoch the one that lets less run here.
    pub(crate) fn rank(&self) -> (Epoch, u8) {
        let strictness = match self {
            Claim::Ours(_) => 0,
            Claim::Undecided(..) => 1,
            Claim::Theirs(..) => 2,
            Claim::Removed(_) => 3,
            Claim::Unknown(..) => 4,
        };
        (self.epoch(), strictness)
    }
}

/// The VM a job is about, and what its records say of it. A job that came to nothing says nothing of the destination.
pub(crate) fn claim(records: &[Record]) -> Option<(String, Claim)> {
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
