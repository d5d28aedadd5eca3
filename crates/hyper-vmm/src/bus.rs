//! Ports and addresses that are no memory: who answers.
//!
//! Whatever nobody answers reads as all ones and swallows writes, as on a PC.

use std::sync::{Mutex, PoisonError};

use crate::serial;
use crate::virtio::Transport;

/// Addresses of the devices: a page each, from the hole's begin on.
pub(crate) const BASE: u64 = crate::memory::HOLE;
pub(crate) const STEP: u64 = 0x1000;
/// The keyboard controller's command port, and its command to reset the CPU.
const KEYBOARD: u16 = 0x64;
const RESET: u8 = 0xfe;

/// All that a virtual CPU can reach.
#[derive(Debug)]
pub(crate) struct Bus {
    pub serial: Mutex<serial::Port>,
    pub devices: Vec<Mutex<Transport>>,
}

impl Bus {
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((device, offset)) = self.device(address) {
            device.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
        }
    }

    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.device(address) {
            device.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
        }
    }

    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if let ([value], Some(offset)) = (&mut *data, serial_offset(port)) {
            *value = self.serial.lock().unwrap_or_else(PoisonError::into_inner).read(offset);
        }
        // An idle keyboard controller: nothing to read, ready for a command.
        if let ([value], KEYBOARD) = (data, port) {
            *value = 0;
        }
    }

    /// Whether the guest asked for a reset.
    pub fn port_write(&self, port: u16, data: &[u8]) -> bool {
        match (data, serial_offset(port)) {
            ([value], Some(offset)) => {
                let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
                serial.write(offset, *value);
                false
            }
            ([RESET], None) => port == KEYBOARD,
            _ => false,
        }
    }

    fn device(&self, address: u64) -> Option<(&Mutex<Transport>, u64)> {
        let offset = address.checked_sub(BASE)?;
        let device = self.devices.get(usize::try_from(offset / STEP).ok()?)?;
        Some((device, offset % STEP))
    }
}

fn serial_offset(port: u16) -> Option<u16> {
    port.checked_sub(serial::PORT).filter(|offset| *offset < serial::PORTS)
}
