//! Packets that wait for a mobile node, in their order, within a bound. Knows nothing of why they wait.

use std::collections::VecDeque;

/// A queue of packets that lets go of the oldest when it is full.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    packets: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl Buffer {
    /// Adds a packet; gives how many had to go for it.
    pub(super) fn push(&mut self, packet: Vec<u8>, max_bytes: usize) -> u64 {
        let mut dropped = 0;
        self.bytes += packet.len();
        self.packets.push_back(packet);
        while self.bytes > max_bytes
            && let Some(oldest) = self.packets.pop_front()
        {
            self.bytes -= oldest.len();
            dropped += 1;
        }
        dropped
    }

    /// All packets, oldest first.
    pub(super) fn take(&mut self) -> VecDeque<Vec<u8>> {
        self.bytes = 0;
        std::mem::take(&mut self.packets)
    }

    pub(super) fn len(&self) -> u64 {
        self.packets.len() as u64
    }
}
