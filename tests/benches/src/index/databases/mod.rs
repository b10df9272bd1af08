//! The databases, each with the settings that suit an index best. They know nothing of what is measured.

mod lmdb;
mod ours;

use std::path::Path;

use anyhow::{Result, bail};

use super::entries::{Key, Value};

/// A question to an open database.
pub(super) type Get<'a> = dyn FnMut(&Key) -> Result<Option<Value>> + 'a;

/// A database as an index: one table.
pub(super) trait Candidate {
    /// Makes a database in the empty directory `dir`, with entries that come in order. Durable when it returns.
    fn fill(&self, dir: &Path, entries: &mut dyn Iterator<Item = (Key, Value)>) -> Result<()>;

    /// Opens it, and has `work` ask.
    fn ask(&self, dir: &Path, work: &mut dyn FnMut(&mut Get<'_>) -> Result<()>) -> Result<()>;

    /// Opens it and adds entries, each batch (in order) in one durable transaction.
    fn insert(&self, dir: &Path, batches: &mut dyn Iterator<Item = Vec<(Key, Value)>>) -> Result<()>;
}

/// Which database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Database {
    /// What the store uses, as it uses it.
    Redb,
    Lmdb,
}

/// All, ours first.
pub(super) const ALL: [Database; 2] = [Database::Redb, Database::Lmdb];

impl Database {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Redb => "redb",
            Self::Lmdb => "LMDB",
        }
    }

    /// By its name.
    ///
    /// # Errors
    /// When there is none of that name.
    pub(super) fn parse(name: &str) -> Result<Self> {
        match ALL.into_iter().find(|database| database.name() == name) {
            Some(database) => Ok(database),
            None => bail!("there is no database `{name}` here"),
        }
    }

    pub(super) fn candidate(self) -> &'static dyn Candidate {
        match self {
            Self::Redb => &ours::Redb,
            Self::Lmdb => &lmdb::Lmdb,
        }
    }
}

#[cfg(test)]
mod tests;
