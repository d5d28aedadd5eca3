//! What the guest finds when it starts: its kernel, and what the kernel is told.
//!
//! The 64-bit Linux boot protocol (Documentation/arch/x86/boot.rst): an uncompressed `vmlinux` at
//! its own addresses, or a bzImage; no firmware in between.

mod cpu_table;
mod kernel;
mod params;
mod registers;

use std::fs::File;

pub(crate) use registers::{Segments, start};
use vm_memory::{Bytes as _, GuestAddress};

use crate::VmmError;
use crate::memory::Memory;

/// Addresses in the first mebibyte; all end before [`EBDA`].
const PARAMS: u64 = 0x7000;
const PAGE_TABLES: u64 = 0x9000;
const STACK: u64 = 0x8ff0;
const CMDLINE: u64 = 0x2_0000;
/// Where x86 ends its first memory; the MP table is looked for from here on.
const EBDA: u64 = 0x9_fc00;
/// Behind the MP table, no memory to the guest, but here: see [`crate::generation`].
pub(crate) const GENERATION: u64 = 0x9_fff0;
const HIGH_MEMORY: u64 = 0x10_0000;

/// Loads all of it; returns the kernel's entry.
pub(crate) fn load(
    memory: &Memory,
    kernel: File,
    initramfs: File,
    cmdline: &str,
    vcpus: u32,
) -> Result<u64, VmmError> {
    let kernel = kernel::load(memory, kernel)?;
    let initramfs = kernel::load_initramfs(memory, initramfs, kernel.end)?;
    let mut line = cmdline.as_bytes().to_vec();
    line.push(0);
    if line.len() > crate::config::MAX_CMDLINE {
        let why = format!("it has {} bytes, at most 2047", line.len() - 1);
        return Err(VmmError::Config { what: "the kernel's command line", why });
    }
    memory
        .write_slice(&line, GuestAddress(CMDLINE))
        .map_err(|error| written("the command line", &error))?;
    cpu_table::write(memory, vcpus)?;
    params::write(memory, &kernel, initramfs, line.len())?;
    registers::write_tables(memory)?;
    Ok(kernel.entry)
}

/// A kernel alone: for the fuzz target.
#[cfg(feature = "fuzzing")]
pub(crate) fn load_kernel(memory: &Memory, kernel: File) -> Result<u64, VmmError> {
    kernel::load(memory, kernel).map(|kernel| kernel.entry)
}

fn written(what: &'static str, error: &vm_memory::GuestMemoryError) -> VmmError {
    VmmError::Memory { doing: what, why: error.to_string() }
}
