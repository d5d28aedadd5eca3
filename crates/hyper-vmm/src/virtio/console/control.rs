//! Control messages of the console device (virtio 1.2, 5.3.6.2).

use std::collections::VecDeque;
use std::io;

use super::super::buffers::{Piece, gather, scatter};
use crate::memory::Memory;

const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;
const BYTES: usize = 8;
/// The link's port.
const PORT: u32 = 1;
/// Words that may wait: a driver that never takes them gets no more.
const MOST: usize = 16;

/// The conversation.
#[derive(Debug, Default)]
pub(super) struct Control {
    words: VecDeque<[u8; BYTES]>,
    open: bool,
}

impl Control {
    /// What another conversation needs to go on where this one was.
    pub fn save(&self) -> (bool, Vec<[u8; BYTES]>) {
        (self.open, self.words.iter().copied().collect())
    }

    pub fn load(open: bool, words: Vec<[u8; BYTES]>) -> Self {
        Self { open, words: words.into() }
    }

    /// Whether a process of the guest has the port open.
    pub fn open(&self) -> bool {
        self.open
    }

    pub fn has_words(&self) -> bool {
        !self.words.is_empty()
    }

    /// Takes what the driver says.
    pub fn hear(&mut self, memory: &Memory, pieces: &[Piece]) -> io::Result<()> {
        let mut bytes = [0; BYTES];
        if gather(memory, pieces, &mut bytes)? < BYTES {
            return Ok(());
        }
        let port = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let event = u16::from_le_bytes([bytes[4], bytes[5]]);
        let value = u16::from_le_bytes([bytes[6], bytes[7]]);
        match (event, port) {
            (DEVICE_READY, _) if value == 1 => self.queue(PORT_ADD, 1),
            (PORT_READY, PORT) if value == 1 => self.queue(PORT_OPEN, 1),
            (PORT_OPEN, PORT) => self.open = value == 1,
            _ => {}
        }
        Ok(())
    }

    /// Writes the next word; returns its length.
    pub fn say(&mut self, memory: &Memory, pieces: &[Piece]) -> io::Result<u32> {
        let Some(word) = self.words.pop_front() else { return Ok(0) };
        let written = scatter(memory, pieces, &word)?;
        Ok(u32::try_from(written).unwrap_or(0))
    }

    fn queue(&mut self, event: u16, value: u16) {
        if self.words.len() < MOST {
            let mut word = [0; BYTES];
            word[..4].copy_from_slice(&PORT.to_le_bytes());
            word[4..6].copy_from_slice(&event.to_le_bytes());
            word[6..].copy_from_slice(&value.to_le_bytes());
            self.words.push_back(word);
        }
    }
}
