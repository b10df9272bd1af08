//! The packs that are there when a store is opened, and telling the index of those that it does not know.

use std::collections::{BTreeMap, HashMap};
use std::mem;
use std::path::Path;
use std::sync::Arc;

use super::error::OpenError;
use super::index::{self, Index, PackRows, PackState};
use super::pack::{self, Found, Pack};
use super::pack_index::Entries;
use super::record::Entry;
use super::writer::Open;
use crate::disk::Disk;
use crate::{FileError, files};

/// The packs of a store that is being opened.
#[derive(Default)]
pub(super) struct FoundPacks {
    pub(super) packs: BTreeMap<u32, Arc<Pack>>,
    /// Those that the index does not know, ascending.
    unknown: Vec<Arc<Pack>>,
    pub(super) unsealed: Vec<Open>,
    pub(super) rows: PackRows,
    /// What is wrong with some of them.
    pub(super) warnings: Vec<String>,
}

impl FoundPacks {
    /// Opens all packs. `false`: the index knows what is not there, and is not to be believed.
    pub(super) fn read(
        &mut self,
        disk: &Arc<dyn Disk>,
        dir: &Path,
        numbers: &[u32],
        mut known: HashMap<u32, u64>,
    ) -> Result<bool, OpenError> {
        for number in numbers.iter().copied() {
            if let Some(len) = known.remove(&number) {
                let Some(pack) = Pack::sealed(disk, dir, number, len)? else { return Ok(false) };
                self.packs.insert(number, Arc::new(pack));
                continue;
            }
            let opened = match Pack::open(disk, dir, number) {
                Ok(opened) => opened,
                // One bad file must not keep the others from being used. Its number stays taken.
                Err(error) if error.concerns_one_pack() => {
                    self.warnings.push(error.to_string());
                    continue;
                }
                Err(error) => return Err(error),
            };
            let pack = match opened {
                Found::Nothing => {
                    files::remove(&**disk, &dir.join(pack::file_name(number)))?;
                    continue;
                }
                Found::Sealed(pack) => Arc::new(pack),
                Found::Unsealed { pack, entries, end } => {
                    let pack = Arc::new(pack);
                    self.unsealed.push(Open { pack: pack.clone(), end, entries });
                    pack
                }
            };
            // What is about to be indexed may still be in the cache of a system that goes on after a crash of ours.
            if let Some(len) = pack.settle()? {
                self.rows.push((number, PackState::Whole(len)));
            }
            self.packs.insert(number, pack.clone());
            self.unknown.push(pack);
        }
        Ok(known.is_empty())
    }

    /// Tells the index of the packs it does not know.
    pub(super) fn tell(&mut self, index: &Index, empty: bool) -> Result<(), OpenError> {
        let mut entries: Vec<(u32, Entries<'_>)> = Vec::new();
        for pack in &self.unknown {
            let sorted = match pack.entries()? {
                Some(entries) => entries,
                None => {
                    let open = self.unsealed.iter().find(|open| open.pack.number == pack.number);
                    let mut entries = open.map(|open| open.entries.clone()).unwrap_or_default();
                    entries.sort_unstable_by_key(Entry::order);
                    Box::new(entries.into_iter().map(Ok))
                }
            };
            entries.push((pack.number, sorted));
        }
        if empty {
            index.fill(entries, &mem::take(&mut self.rows))?;
            return Ok(());
        }
        for (number, entries) in entries {
            index.add_pack(number, entries)?;
        }
        if index.pending() >= index::MAX_PENDING && index.commit(&index.take_pending(), &self.rows).is_ok() {
            self.rows.clear();
        }
        Ok(())
    }
}

/// The numbers of all packs, ascending.
pub(super) fn pack_numbers(disk: &dyn Disk, dir: &Path) -> Result<Vec<u32>, FileError> {
    let names = disk.list(dir).map_err(FileError::at("list", dir))?;
    let mut numbers: Vec<u32> =
        names.iter().filter_map(|name| pack::parse_file_name(name.to_str()?)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}
