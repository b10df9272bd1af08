//! LMDB, through the crate heed. Its file is mapped into memory, and it has no cache of its own.
// Opening a memory map is unsafe: see there.
#![allow(unsafe_code)]

use std::path::Path;

use anyhow::Result;
use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, PutFlags, WithTls};

use super::{Candidate, Get};
use crate::index::entries::{Key, Value};

/// Address space, not memory: room for a file of that size.
const MAP_BYTES: usize = 1 << 40;

pub(super) struct Lmdb;

type Chunks<'env> = Database<'env, Bytes, Bytes>;

fn open(dir: &Path) -> Result<Env<WithTls>> {
    let mut options = EnvOpenOptions::new();
    options.map_size(MAP_BYTES);
    // SAFETY: no other process has the directory, which this benchmark has made for itself, so nobody changes the mapped
    // file. The flag only leaves out reading ahead, which random questions have no use for.
    Ok(unsafe { options.flags(EnvFlags::NO_READ_AHEAD).open(dir)? })
}

fn chunks(env: &Env<WithTls>) -> Result<Chunks<'_>> {
    let transaction = env.write_txn()?;
    let chunks = env.create_databases_and_commit(transaction, |opener, transaction| {
        opener.create_database(transaction, None).map(CommitOrAbort::<_, ()>::Commit)
    })?;
    Ok(chunks.unwrap_commit())
}

impl Candidate for Lmdb {
    fn fill(&self, dir: &Path, entries: &mut dyn Iterator<Item = (Key, Value)>) -> Result<()> {
        let env = open(dir)?;
        let chunks = chunks(&env)?;
        let mut transaction = env.write_txn()?;
        for (key, value) in entries {
            chunks.put_with_flags(&mut transaction, PutFlags::APPEND, &key, &value)?;
        }
        transaction.commit()?;
        Ok(())
    }

    fn ask(&self, dir: &Path, work: &mut dyn FnMut(&mut Get<'_>) -> Result<()>) -> Result<()> {
        let env = open(dir)?;
        let chunks = chunks(&env)?;
        let transaction = env.read_txn()?;
        work(&mut |key| Ok(chunks.get(&transaction, key)?.map(Value::try_from).transpose()?))
    }

    fn insert(&self, dir: &Path, batches: &mut dyn Iterator<Item = Vec<(Key, Value)>>) -> Result<()> {
        let env = open(dir)?;
        let chunks = chunks(&env)?;
        for batch in batches {
            let mut transaction = env.write_txn()?;
            for (key, value) in &batch {
                chunks.put(&mut transaction, key, value)?;
            }
            transaction.commit()?;
        }
        Ok(())
    }
}
