//! The "zero page": what the kernel is told (Documentation/arch/x86/zero-page.rst).

use linux_loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{Bytes as _, GuestAddress};

use super::kernel::{Initramfs, Kernel};
use super::{CMDLINE, EBDA, HIGH_MEMORY, PARAMS, written};
use crate::VmmError;
use crate::memory::{self, Memory};

const E820_RAM: u32 = 1;
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
/// "undefined": a loader without a number of its own.
const LOADER: u8 = 0xff;
const ALIGNMENT: u32 = 0x100_0000;
const FOUR_GIB: u64 = 1 << 32;

pub(super) fn write(
    memory: &Memory,
    kernel: &Kernel,
    initramfs: Initramfs,
    cmdline_bytes: usize,
) -> Result<(), VmmError> {
    let low = |address: u64| u32::try_from(address).unwrap_or(u32::MAX);
    let mut params =
        boot_params { hdr: kernel.header.unwrap_or_default(), ..boot_params::default() };
    if kernel.header.is_none() {
        params.hdr.boot_flag = BOOT_FLAG;
        params.hdr.header = HEADER_MAGIC;
        params.hdr.kernel_alignment = ALIGNMENT;
    }
    params.hdr.type_of_loader = LOADER;
    params.hdr.cmd_line_ptr = low(CMDLINE);
    params.hdr.cmdline_size = low(cmdline_bytes as u64);
    params.hdr.ramdisk_image = low(initramfs.start);
    params.hdr.ramdisk_size = low(initramfs.bytes);
    let low_end = memory::low_end(memory);
    let mut map = vec![(0, EBDA), (HIGH_MEMORY, low_end.saturating_sub(HIGH_MEMORY))];
    match memory::high_bytes(memory) {
        0 => {}
        bytes => map.push((FOUR_GIB, bytes)),
    }
    for (at, (addr, size)) in map.into_iter().enumerate() {
        params.e820_table[at] = boot_e820_entry { addr, size, type_: E820_RAM };
        params.e820_entries = u8::try_from(at + 1).unwrap_or(0);
    }
    memory
        .write_obj(params, GuestAddress(PARAMS))
        .map_err(|error| written("the boot parameters", &error))
}
