//! The services of both platforms, as far as a hand-off can see them: one guest, its disk on either side as the set of
//! writes that were acknowledged, its memory as the number of writes it knows of. Effects only; no time.

use std::collections::BTreeSet;
use std::time::Duration;

use super::rng::Rng;
use crate::handoff::{DestinationAction, DestinationInput, Root, SourceAction, SourceInput};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SourceVm {
    Running,
    Paused,
    PostMigrate,
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DestinationVm {
    None,
    /// Waiting, or paused with the memory of a guest that knows of this many writes.
    Incoming(Option<u64>),
    Running,
    Dead,
}

/// Writes on their way from the guest to the other side.
#[derive(Debug, Default)]
struct Tap {
    /// Acknowledged to the guest, not yet with us.
    pending: Vec<u64>,
    /// With us, not yet sent.
    dirty: Vec<u64>,
    /// Being sent.
    under_way: Vec<u64>,
}

#[derive(Debug)]
struct Images {
    writes: BTreeSet<u64>,
    sealed: bool,
}

#[derive(Debug)]
pub(super) struct Services {
    pub(super) source: SourceVm,
    pub(super) destination: DestinationVm,
    /// Writes acknowledged to the guest: their numbers are below this.
    pub(super) acked: u64,
    /// The hypervisor died under a guest that ran at the destination.
    pub(super) died_running: bool,
    source_disk: BTreeSet<u64>,
    images: Option<Images>,
    tap: Option<Tap>,
    /// Of a hundred transfers so many lose a block without a word.
    pub(super) losing_percent: u64,
    /// What no service should ever have been asked for.
    pub(super) misuse: Option<String>,
}

impl Services {
    pub(super) fn new() -> Self {
        Services {
            source: SourceVm::Running,
            destination: DestinationVm::None,
            acked: 0,
            died_running: false,
            source_disk: BTreeSet::new(),
            images: None,
            tap: None,
            losing_percent: 0,
            misuse: None,
        }
    }

    /// The running guest writes once.
    pub(super) fn write(&mut self) {
        let number = self.acked;
        if self.source == SourceVm::Running {
            self.source_disk.insert(number);
            if let Some(tap) = &mut self.tap {
                tap.pending.push(number);
            }
        } else if let (DestinationVm::Running, Some(images)) = (self.destination, &mut self.images) {
            images.writes.insert(number);
        } else {
            return;
        }
        self.acked += 1;
    }

    /// Whether anything of the guest is left at the destination.
    pub(super) fn leftovers(&self) -> bool {
        self.images.is_some() || self.destination != DestinationVm::None
    }

    pub(super) fn kill_destination(&mut self) -> bool {
        let alive = matches!(self.destination, DestinationVm::Incoming(_) | DestinationVm::Running);
        if alive {
            self.died_running |= self.destination == DestinationVm::Running;
            self.destination = DestinationVm::Dead;
        }
        alive
    }

    /// What must hold at every step. `released` and `owned` as the journals have it, durably.
    pub(super) fn check(&self, released: bool, owned: bool) -> Result<(), String> {
        if let Some(misuse) = &self.misuse {
            return Err(misuse.clone());
        }
        let (here, there) = (self.source == SourceVm::Running, self.destination == DestinationVm::Running);
        let whole = |disk: &BTreeSet<u64>| disk.len() as u64 == self.acked;
        match (here, there) {
            (true, true) => Err("two running guests".into()),
            (true, false) if released => Err("the source runs a guest that it released".into()),
            (true, false) if !whole(&self.source_disk) => Err("the source lacks acknowledged writes".into()),
            (false, true) if !(released && owned) => {
                Err("the destination runs a guest it does not own".into())
            }
            (false, true) if !self.images.as_ref().is_some_and(|images| whole(&images.writes)) => {
                Err("the destination lacks acknowledged writes".into())
            }
            _ => Ok(()),
        }
    }

    fn misuse(&mut self, text: &str) {
        self.misuse.get_or_insert_with(|| text.to_owned());
    }

    /// Some writes arrive with us: all of them once the guest is drained.
    fn arrive(&mut self, count: usize) {
        if let Some(tap) = &mut self.tap {
            let count = count.min(tap.pending.len());
            tap.dirty.extend(tap.pending.drain(..count));
        }
    }

    fn land(&mut self, rng: &mut Rng) -> Result<(u64, u64), String> {
        let (Some(tap), Some(images)) = (&mut self.tap, &mut self.images) else {
            return Err("no images".into());
        };
        if images.sealed {
            return Err("the images are sealed".into());
        }
        let mut sent = std::mem::take(&mut tap.under_way);
        if rng.percent(self.losing_percent) {
            sent.pop();
        }
        let bytes = sent.len() as u64 * 65536;
        images.writes.extend(sent);
        Ok((bytes, (tap.dirty.len() + tap.pending.len()) as u64 * 65536))
    }

    pub(super) fn begin_source(&mut self, action: SourceAction, rng: &mut Rng) {
        match action {
            SourceAction::CopyDisks => {
                let under_way = self.source_disk.iter().copied().collect();
                self.tap = Some(Tap { under_way, ..Tap::default() });
            }
            SourceAction::RunRound => {
                let some = rng.below(20) as usize;
                self.arrive(some);
                self.take_dirty();
            }
            SourceAction::SendFinal => self.take_dirty(),
            SourceAction::DrainDisks | SourceAction::FinishMemory if self.source != SourceVm::Paused => {
                self.misuse("switchover without a paused guest");
            }
            _ => {}
        }
    }

    fn take_dirty(&mut self) {
        if let Some(tap) = &mut self.tap {
            if !tap.under_way.is_empty() {
                self.misuse.get_or_insert_with(|| "two rounds at once".to_owned());
            }
            tap.under_way = std::mem::take(&mut tap.dirty);
        }
    }

    /// The action's effect and outcome. `linked`: the connection held all the time.
    pub(super) fn finish_source(
        &mut self,
        action: SourceAction,
        linked: bool,
        took: Duration,
        rng: &mut Rng,
    ) -> Result<SourceInput, String> {
        let local =
            matches!(action, SourceAction::RollBack | SourceAction::Retire | SourceAction::DrainDisks);
        if !linked && !local {
            return Err("the stream broke".into());
        }
        Ok(match action {
            SourceAction::CopyDisks => SourceInput::DisksCopied { dirty_bytes: self.land(rng)?.1 },
            SourceAction::RunRound => {
                let (sent_bytes, dirty_bytes) = self.land(rng)?;
                SourceInput::RoundDone { sent_bytes, took, dirty_bytes }
            }
            SourceAction::SendMemory => {
                if self.destination != DestinationVm::Incoming(None) {
                    return Err("nobody takes the memory".into());
                }
                self.source = SourceVm::Paused;
                SourceInput::GuestPaused
            }
            SourceAction::DrainDisks => {
                self.arrive(usize::MAX);
                SourceInput::DisksDrained
            }
            SourceAction::SendFinal => {
                self.land(rng)?;
                SourceInput::FinalSent { roots: vec![root(&self.source_disk)] }
            }
            SourceAction::FinishMemory => {
                self.source = SourceVm::PostMigrate;
                SourceInput::MemorySent
            }
            SourceAction::RollBack => {
                (self.source, self.tap) = (SourceVm::Running, None);
                SourceInput::RolledBack
            }
            SourceAction::Retire => {
                if self.source == SourceVm::Running {
                    self.misuse("a running guest is retired");
                }
                (self.source, self.tap) = (SourceVm::Gone, None);
                SourceInput::Retired
            }
        })
    }

    pub(super) fn finish_destination(
        &mut self,
        action: &DestinationAction,
    ) -> Result<DestinationInput, String> {
        Ok(match action {
            DestinationAction::PrepareDisks => {
                self.images = Some(Images { writes: BTreeSet::new(), sealed: false });
                DestinationInput::DisksPrepared
            }
            DestinationAction::StartIncoming => {
                if self.destination != DestinationVm::None {
                    return Err("a hypervisor runs already".into());
                }
                self.destination = DestinationVm::Incoming(None);
                DestinationInput::IncomingStarted
            }
            DestinationAction::SealDisks { roots } => {
                let images = self.images.as_mut().ok_or("no images")?;
                if images.sealed {
                    return Err("sealed already".into());
                }
                if roots[..] != [root(&images.writes)] {
                    return Err("the roots differ".into());
                }
                images.sealed = true;
                DestinationInput::DisksSealed { took: Duration::from_millis(1) }
            }
            DestinationAction::Resume => {
                if let DestinationVm::Incoming(memory) = self.destination
                    && memory != Some(self.acked)
                {
                    self.misuse("the guest wakes with a memory that is not its last");
                }
                if !self.images.as_ref().is_some_and(|images| images.sealed) {
                    self.misuse("the guest wakes on disks that are not durable");
                }
                self.destination = DestinationVm::Running;
                DestinationInput::Resumed
            }
            DestinationAction::Rebind => DestinationInput::Rebound,
            DestinationAction::Discard => {
                if self.destination == DestinationVm::Running {
                    self.misuse("a running guest is discarded");
                }
                (self.destination, self.images) = (DestinationVm::None, None);
                DestinationInput::Discarded
            }
        })
    }
}

/// Stands for the image's root: equal for equal disks.
fn root(disk: &BTreeSet<u64>) -> Root {
    let mut hasher = blake3::Hasher::new();
    for write in disk {
        hasher.update(&write.to_le_bytes());
    }
    *hasher.finalize().as_bytes()
}
