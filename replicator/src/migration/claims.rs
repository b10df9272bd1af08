//! What is known here of the ownership of VMs, by VM: claims of running jobs, and settled ones. Settled claims, and the ends
//! of jobs that a peer may still ask about, stand in one file, `journal/claims`; PROTOCOL.md gives its format. Journals of
//! ended jobs are folded into it at a start: the file is durable before they are deleted, and folding them twice changes
//! nothing.
//!
//! A file that cannot be read may hold a newer fact than a settled claim. Which of the two is newer is told by names alone,
//! never by a clock or a file's times: a claim names the damaged files that were known when it was made.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use longhaul_proto::handoff::Record;
use longhaul_proto::{Epoch, JobId};
use serde::{Deserialize, Serialize};

use crate::files;
use crate::migration::journal::{self, Claim, DamagedJournal, EndedJob, JournalFile, JournalFileError};
use crate::service::identity::Fingerprint;
use crate::service::jobs::unix_ms;

/// Ends of jobs that are kept, the latest ones.
pub(crate) const MAX_ENDED_JOBS: usize = 10_000;
/// A file longer than this is none of ours.
const MAX_FILE_BYTES: u64 = 64 << 20;
const FILE: &str = "claims";
const HEADER: &str = "longhaul claims 1 ";

/// A settled claim and when it was made, in milliseconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Settled {
    claim: Claim,
    at_unix_ms: u64,
    /// Names of damaged files that were there before it was made: they say nothing newer of this VM.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    answered: BTreeSet<String>,
    /// Peers that have another VM of this name, by their keys, with its epoch: a person has said so. At a higher epoch it may
    /// be this one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    distinct_from: BTreeMap<Fingerprint, Epoch>,
}

impl Settled {
    fn new(claim: Claim, at_unix_ms: u64, answered: BTreeSet<String>) -> Self {
        Settled { claim, at_unix_ms, answered, distinct_from: BTreeMap::new() }
    }
}

/// One line of the file.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Vm {
        name: String,
        #[serde(flatten)]
        settled: Settled,
    },
    Ended(EndedJob),
    /// Names of the files that were damaged at the last start. Journals of jobs that end after it are newer.
    Damaged(BTreeSet<String>),
}

#[derive(Default)]
struct State {
    settled: BTreeMap<String, Settled>,
    /// Claims of jobs that have not ended.
    running: HashMap<String, HashMap<JobId, Claim>>,
    /// Ends of jobs whose journals are gone, by job.
    ended: HashMap<String, EndedJob>,
    damaged: Vec<DamagedJournal>,
    /// Names of the files that were damaged at the last start.
    known_damaged: BTreeSet<String>,
}

/// The claims of a platform.
pub(crate) struct Claims {
    dir: PathBuf,
    state: Mutex<State>,
    /// Held while the file is written, so that it never goes back.
    writing: Mutex<()>,
}

impl Claims {
    /// The claims settled in `dir/claims`. A file that cannot be read is set aside and casts doubt on every VM here.
    pub(crate) fn load(dir: &Path) -> io::Result<Self> {
        let path = dir.join(FILE);
        let mut state = State::default();
        match read(&path) {
            Ok(lines) => lines.into_iter().for_each(|line| state.add(line)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let aside = dir.join(format!("{FILE}-{}.{}", unix_ms(), journal::DAMAGED));
                tracing::error!("{}: {error}; it is set aside as {}", path.display(), aside.display());
                std::fs::rename(&path, &aside)?;
                files::sync_dir(dir)?;
            }
        }
        Ok(Claims { dir: dir.to_owned(), state: Mutex::new(state), writing: Mutex::default() })
    }

    /// Reads every journal, folds those of ended jobs, and returns those that have not ended.
    pub(crate) fn take_up_journals(&self) -> Result<Vec<(JobId, JournalFile)>, JournalFileError> {
        let journals = journal::load_all(&self.dir)?;
        for damaged in &journals.damaged {
            let about = damaged
                .about
                .as_ref()
                .map_or("every VM without a newer claim".to_owned(), |(vm, _)| format!("VM '{vm}'"));
            tracing::error!(
                "cannot read {path}: {}; the owner of {about} is in doubt. Decide for each VM with `longhaul resolve VM \
                 --keep` or `--give-up`, or move {path} out of the journal directory if it holds nothing newer",
                damaged.why,
                path = damaged.path.display()
            );
        }
        let mut state = self.state();
        state.damaged = journals.damaged;
        for (path, ended) in &journals.ended {
            if let Some(ended) = ended.clone() {
                state.fold(path, ended);
            }
        }
        let damaged: BTreeSet<_> = state.damaged.iter().map(name_of).collect();
        let is_changed = state.known_damaged != damaged;
        state.known_damaged = damaged;
        state.forget_oldest();
        for (job, journal) in &journals.open {
            state.note(*job, journal.records());
        }
        drop(state);
        if !journals.ended.is_empty() || is_changed {
            // Their claims count already; without room for the file the journals simply stay.
            match self.write(None) {
                Ok(()) => self.delete(journals.ended.iter().map(|(path, _)| path)),
                Err(error) => tracing::warn!("ended journals are kept: cannot write {FILE}: {error}"),
            }
        }
        Ok(journals.open)
    }

    /// Takes note of a job's records as they stand now.
    pub(crate) fn note(&self, job: JobId, records: &[Record]) {
        self.state().note(job, records);
    }

    /// How a job ended whose journal is gone.
    pub(crate) fn ended(&self, job: JobId) -> Option<EndedJob> {
        self.state().ended.get(&job.to_string()).cloned()
    }

    /// Files that cannot be read and may hold claims.
    pub(crate) fn damaged(&self) -> Vec<DamagedJournal> {
        self.state().damaged.clone()
    }

    /// What is claimed of `vm`; `defined`: whether there is a definition of it here, which alone makes it ours.
    pub(crate) fn of(&self, vm: &str, defined: bool) -> Option<Claim> {
        let state = self.state();
        let settled = state.settled.get(vm);
        let running = state.running.get(vm).into_iter().flat_map(HashMap::values);
        let best =
            running.clone().chain(settled.map(|settled| &settled.claim)).max_by_key(|claim| claim.rank());
        let claim = match best {
            // Defined anew after it was removed.
            Some(Claim::Removed(epoch)) if defined => Some(Claim::Ours(epoch.next())),
            Some(claim) => Some(claim.clone()),
            None => defined.then_some(Claim::Ours(Epoch::FIRST)),
        };
        // A job that goes on is newer than every other of its VM: they hold it one after the other.
        if running.clone().next().is_some() {
            return claim;
        }
        let doubt = state.doubt(vm);
        match (claim, doubt) {
            (Some(Claim::Ours(epoch)), Some(damaged)) => {
                let known = damaged.about.as_ref().map_or(epoch, |(_, known)| epoch.max(*known));
                Some(Claim::Unknown(known, damaged.path.clone()))
            }
            (None, Some(DamagedJournal { about: Some((_, known)), path, .. })) => {
                Some(Claim::Unknown(*known, path.clone()))
            }
            (claim, _) => claim,
        }
    }

    /// Settles a claim, durable when this returns: every damaged file that is known now is answered by it. One that ranks
    /// below what is known changes nothing but ends a doubt.
    pub(crate) fn settle(&self, vm: &str, claim: Claim) -> io::Result<()> {
        let answered = self.state().concerning(vm).map(name_of).collect();
        self.write(Some((vm, Settled::new(claim, unix_ms(), answered))))
    }

    /// Settles a VM that is defined here, at `claim`. Damaged files that name no VM are answered by it; one that names this VM
    /// is not, for it may be of a hand-off to here.
    pub(crate) fn settle_defined(&self, vm: &str, claim: Claim) -> io::Result<()> {
        let answered = {
            let state = self.state();
            state.damaged.iter().filter(|damaged| damaged.about.is_none()).map(name_of).collect()
        };
        self.write(Some((vm, Settled::new(claim, unix_ms(), answered))))
    }

    /// Settles that peers have another VM of this name than the one that is `claim` here.
    pub(crate) fn settle_distinct(
        &self,
        vm: &str,
        claim: Claim,
        distinct_from: BTreeMap<Fingerprint, Epoch>,
    ) -> io::Result<()> {
        // It says nothing of what a damaged file may hold.
        let settled = Settled { distinct_from, ..Settled::new(claim, unix_ms(), BTreeSet::new()) };
        self.write(Some((vm, settled)))
    }

    /// Whether a person has said that this peer's VM of this name, at this epoch, is another one.
    pub(crate) fn is_distinct(&self, vm: &str, peer: &Fingerprint, epoch: Epoch) -> bool {
        let state = self.state();
        let known = state.settled.get(vm).and_then(|settled| settled.distinct_from.get(peer));
        known.is_some_and(|known| epoch <= *known)
    }

    fn write(&self, new: Option<(&str, Settled)>) -> io::Result<()> {
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut settled, ended, damaged) = {
            let state = self.state();
            let mut ended: Vec<_> = state.ended.values().cloned().collect();
            ended.sort_by(|a, b| (a.at_unix_ms, &a.job).cmp(&(b.at_unix_ms, &b.job)));
            (state.settled.clone(), ended, state.known_damaged.clone())
        };
        if let Some((vm, new)) = &new {
            merge(&mut settled, vm, new.clone());
        }
        let vms = settled.into_iter().map(|(name, settled)| Line::Vm { name, settled });
        let damaged = (!damaged.is_empty()).then_some(Line::Damaged(damaged));
        let lines: Vec<Line> = vms.chain(ended.into_iter().map(Line::Ended)).chain(damaged).collect();
        files::write_atomic(self.dir.join(FILE), &encode(&lines)?)?;
        if let Some((vm, new)) = new {
            merge(&mut self.state().settled, vm, new);
        }
        Ok(())
    }

    fn delete<'a>(&self, journals: impl Iterator<Item = &'a PathBuf>) {
        for path in journals {
            if let Err(error) = std::fs::remove_file(path) {
                tracing::warn!("{}: {error}; it is folded again at the next start", path.display());
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn add(&mut self, line: Line) {
        match line {
            Line::Vm { name, settled } => merge(&mut self.settled, &name, settled),
            Line::Ended(ended) => {
                self.end(ended, BTreeSet::new());
            }
            Line::Damaged(names) => self.known_damaged = names,
        }
    }

    fn end(&mut self, ended: EndedJob, answered: BTreeSet<String>) {
        if let Some((vm, claim)) = journal::claim(&ended.records()) {
            let at_unix_ms = ended.at_unix_ms;
            merge(&mut self.settled, &vm, Settled::new(claim, at_unix_ms, answered));
        }
        self.ended.insert(ended.job.clone(), ended);
    }

    /// Takes up the journal of an ended job. At the last start it was not there, or its job went on: it is newer than what
    /// was damaged then. One that was folded before, or was damaged itself and has been put back, may be older.
    fn fold(&mut self, path: &Path, ended: EndedJob) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let may_be_older = self.ended.contains_key(&ended.job) || self.known_damaged.contains(&*name);
        let answered = if may_be_older { BTreeSet::new() } else { self.known_damaged.clone() };
        self.end(ended, answered);
    }

    fn note(&mut self, job: JobId, records: &[Record]) {
        let Some(Record::Started { vm, .. } | Record::Accepted { vm, .. }) = records.first() else { return };
        let claim = journal::claim(records).map(|(_, claim)| claim);
        let jobs = self.running.entry(vm.clone()).or_default();
        match claim {
            Some(claim) if journal::has_ended(records) => {
                jobs.remove(&job);
                // The next start tells the same by the names in the file.
                let answered = self.concerning(vm).map(name_of).collect();
                merge(&mut self.settled, vm, Settled::new(claim, unix_ms(), answered));
            }
            Some(claim) => drop(jobs.insert(job, claim)),
            None => drop(jobs.remove(&job)),
        }
        self.running.retain(|_, jobs| !jobs.is_empty());
    }

    /// Files that cannot be read and may be about `vm`.
    fn concerning(&self, vm: &str) -> impl Iterator<Item = &DamagedJournal> {
        self.damaged.iter().filter(move |damaged| damaged.about.as_ref().is_none_or(|(about, _)| about == vm))
    }

    /// A file that may say more of `vm` than its settled claim. One that a person has moved away says nothing.
    fn doubt(&self, vm: &str) -> Option<&DamagedJournal> {
        let settled = self.settled.get(vm);
        self.concerning(vm).find(|damaged| {
            let is_answered = settled.is_some_and(|settled| settled.answered.contains(&name_of(damaged)));
            let is_gone = || matches!(damaged.path.symlink_metadata(), Err(error) if error.kind() == io::ErrorKind::NotFound);
            !is_answered && !is_gone()
        })
    }

    fn forget_oldest(&mut self) {
        if self.ended.len() <= MAX_ENDED_JOBS {
            return;
        }
        let mut times: Vec<u64> = self.ended.values().map(|ended| ended.at_unix_ms).collect();
        times.sort_unstable();
        let oldest = times[times.len() - MAX_ENDED_JOBS];
        self.ended.retain(|_, ended| ended.at_unix_ms >= oldest);
    }
}

/// The name by which a claim answers a damaged file.
fn name_of(damaged: &DamagedJournal) -> String {
    damaged.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn merge(settled: &mut BTreeMap<String, Settled>, vm: &str, new: Settled) {
    match settled.get_mut(vm) {
        Some(known) => {
            if new.claim.rank() > known.claim.rank() {
                known.claim = new.claim;
            }
            known.at_unix_ms = known.at_unix_ms.max(new.at_unix_ms);
            known.answered.extend(new.answered);
            known.distinct_from.extend(new.distinct_from);
        }
        None => drop(settled.insert(vm.to_owned(), new)),
    }
}

fn encode(lines: &[Line]) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut body, line)?;
        body.push(b'\n');
    }
    let mut bytes = format!("{HEADER}{}\n", blake3::hash(&body).to_hex()).into_bytes();
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

fn read(path: &Path) -> io::Result<Vec<Line>> {
    let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    if !std::fs::metadata(path)?.is_file() {
        return Err(bad("it is not a file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
    let rest = bytes.strip_prefix(HEADER.as_bytes()).ok_or_else(|| bad("it is no file of claims"))?;
    let (hash, body) = rest.split_at_checked(65).ok_or_else(|| bad("it is cut off"))?;
    if hash != format!("{}\n", blake3::hash(body).to_hex()).as_bytes() {
        return Err(bad("its checksum is wrong"));
    }
    let lines = body.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).map_err(io::Error::from)).collect()
}

#[cfg(test)]
mod tests;
