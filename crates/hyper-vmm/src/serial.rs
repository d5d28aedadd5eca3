//! The first serial port (a 16550A, the crate `vm-superio`): the guest's console, written only.

use std::io::{self, Write};
use std::os::fd::OwnedFd;

use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

/// First port and interrupt of a PC's first serial port.
pub(crate) const PORT: u16 = 0x3f8;
pub(crate) const PORTS: u16 = 8;
pub(crate) const IRQ: u32 = 4;

/// Bytes that wait for a slow reader; what comes when it is full is lost. A kernel's console must
/// not be stopped by its reader, nor take the host's memory.
const ROOM: usize = 64 << 10;

#[derive(Debug)]
pub(crate) struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The port.
#[derive(Debug)]
pub(crate) struct Port(Serial<Interrupt, vm_superio::serial::NoEvents, Out>);

impl Port {
    /// A port whose bytes go to `out`, which must not block.
    pub fn new(interrupt: EventFd, out: OwnedFd) -> Self {
        Self(Serial::new(Interrupt(interrupt), Out { out, waiting: Vec::new() }))
    }

    pub fn read(&mut self, offset: u16) -> u8 {
        self.0.read(u8::try_from(offset).unwrap_or(u8::MAX))
    }

    /// Hands out what waits for the end of its line.
    pub fn finish(&mut self) {
        self.0.writer_mut().send();
    }

    pub fn write(&mut self, offset: u16, value: u8) {
        // An interrupt that cannot be told is the guest's to poll for.
        let _ = self.0.write(u8::try_from(offset).unwrap_or(u8::MAX), value);
    }
}

#[derive(Debug)]
struct Out {
    out: OwnedFd,
    waiting: Vec<u8>,
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.waiting.len() + bytes.len() <= ROOM {
            self.waiting.extend_from_slice(bytes);
        }
        // A line at a time is enough; the end of a guest that dies within a line is flushed, too.
        if bytes.contains(&b'\n') || self.waiting.len() >= 128 {
            self.send();
        }
        Ok(bytes.len())
    }

    /// Called after each byte; see `write` for when they really go.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Out {
    fn send(&mut self) {
        while !self.waiting.is_empty() {
            match rustix::io::write(&self.out, &self.waiting) {
                Ok(count) => drop(self.waiting.drain(..count)),
                Err(rustix::io::Errno::INTR) => {}
                // Full: later. Gone: nobody will read it.
                Err(rustix::io::Errno::AGAIN) => break,
                Err(_) => self.waiting.clear(),
            }
        }
    }
}
