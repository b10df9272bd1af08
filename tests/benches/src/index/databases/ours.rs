//! redb with the settings of `chunkstore::store::index`: its cache, its transactions. What that keeps in front of the
//! database, changes that are not written yet, is left out.

use std::path::{Path, PathBuf};

use anyhow::Result;
use redb::{Builder, Database, Durability, ReadableDatabase, TableDefinition};

use super::{Candidate, Get};
use crate::index::entries::{Key, Value};

const CHUNKS: TableDefinition<&Key, &Value> = TableDefinition::new("chunks");
const CACHE_BYTES: usize = 64 << 20;
/// Entries in one transaction when the index is made anew.
const FILL_BATCH: usize = 1 << 18;

pub(super) struct Redb;

fn file(dir: &Path) -> PathBuf {
    dir.join("index.redb")
}

fn open(dir: &Path) -> Result<Database> {
    Ok(Builder::new().set_cache_size(CACHE_BYTES).create(file(dir))?)
}

impl Candidate for Redb {
    fn fill(&self, dir: &Path, entries: &mut dyn Iterator<Item = (Key, Value)>) -> Result<()> {
        let db = open(dir)?;
        let mut entries = entries.peekable();
        while entries.peek().is_some() {
            let mut transaction = db.begin_write()?;
            transaction.set_durability(Durability::None)?;
            {
                let mut chunks = transaction.open_table(CHUNKS)?;
                for (key, value) in entries.by_ref().take(FILL_BATCH) {
                    chunks.insert(&key, &value)?;
                }
            }
            transaction.commit()?;
        }
        // Durable, and with it all before.
        db.begin_write()?.commit()?;
        Ok(())
    }

    fn ask(&self, dir: &Path, work: &mut dyn FnMut(&mut Get<'_>) -> Result<()>) -> Result<()> {
        let db = open(dir)?;
        let chunks = db.begin_read()?.open_table(CHUNKS)?;
        work(&mut |key| Ok(chunks.get(key)?.map(|value| *value.value())))
    }

    fn insert(&self, dir: &Path, batches: &mut dyn Iterator<Item = Vec<(Key, Value)>>) -> Result<()> {
        let db = open(dir)?;
        for batch in batches {
            let mut transaction = db.begin_write()?;
            transaction.set_quick_repair(true);
            {
                let mut chunks = transaction.open_table(CHUNKS)?;
                for (key, value) in &batch {
                    chunks.insert(key, value)?;
                }
            }
            transaction.commit()?;
        }
        Ok(())
    }
}
