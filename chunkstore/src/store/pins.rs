//! The jobs that count on what they found in the store, and a collection that waits for those that were there before it.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::error::StoreError;
use crate::sync::lock;

/// While it lives, no chunk that its job found is collected. Hold one from the first question what the store has until
/// the reference that needs the answer is published, or for as long as chunks are read.
pub struct Pin {
    gate: Arc<Gate>,
    epoch: u64,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut state = lock(&self.gate.state);
        if let Some(count) = state.pins.get_mut(&self.epoch) {
            *count -= 1;
            if *count == 0 {
                state.pins.remove(&self.epoch);
            }
        }
        drop(state);
        self.gate.changed.notify_all();
    }
}

/// How often a waiting collection asks whether it is still wanted.
const WATCH_EVERY: Duration = Duration::from_millis(100);

/// The pins, by the collection before which they began.
#[derive(Default)]
pub(super) struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    epoch: u64,
    pins: BTreeMap<u64, usize>,
}

impl GateState {
    fn older(&self) -> usize {
        self.pins.range(..self.epoch).map(|(_, count)| count).sum()
    }
}

impl Gate {
    /// Never waits.
    pub(super) fn pin(self: &Arc<Self>) -> Pin {
        let mut state = lock(&self.state);
        let epoch = state.epoch;
        *state.pins.entry(epoch).or_default() += 1;
        Pin { gate: self.clone(), epoch }
    }

    /// Waits until every pin that was there at the call is gone. `go_on` gets how many there are, and may stop it.
    pub(super) fn wait_for_older(
        &self,
        go_on: impl Fn(usize) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut state = lock(&self.state);
        state.epoch += 1;
        while state.older() > 0 {
            let older = state.older();
            drop(state);
            go_on(older)?;
            state = lock(&self.state);
            if state.older() > 0 {
                let woken = self.changed.wait_timeout(state, WATCH_EVERY);
                state = woken.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        Ok(())
    }
}
