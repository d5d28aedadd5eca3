//! The state in which the first CPU enters the kernel: long mode, memory below 1 GiB mapped as it
//! is, flat segments (boot.rst, "64-bit boot protocol").

use kvm_bindings::{kvm_fpu, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes as _, GuestAddress};

use super::{PAGE_TABLES, PARAMS, STACK, written};
use crate::VmmError;
use crate::memory::Memory;

const GDT: u64 = 0x500;
const PML4: u64 = PAGE_TABLES;
const PDPT: u64 = PAGE_TABLES + 0x1000;
const DIRECTORY: u64 = PAGE_TABLES + 0x2000;
/// Descriptors: none, none, code (`__BOOT_CS`), data (`__BOOT_DS`).
const DESCRIPTORS: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Present, writable; and for 2 MiB pages.
const ENTRY: u64 = 3;
const LARGE: u64 = 0x83;

/// Descriptor table and page tables.
pub(super) fn write_tables(memory: &Memory) -> Result<(), VmmError> {
    let put = |value: u64, at: u64| {
        memory
            .write_obj(value, GuestAddress(at))
            .map_err(|error| written("the first page tables", &error))
    };
    for (at, descriptor) in (GDT..).step_by(8).zip(DESCRIPTORS) {
        put(descriptor, at)?;
    }
    put(PDPT | ENTRY, PML4)?;
    put(DIRECTORY | ENTRY, PDPT)?;
    for page in 0..512 {
        put((page << 21) | LARGE, DIRECTORY + page * 8)?;
    }
    Ok(())
}

/// The registers at `entry`.
pub(crate) fn start(entry: u64) -> (kvm_regs, kvm_fpu) {
    let regs = kvm_regs {
        rip: entry,
        rsp: STACK,
        rbp: STACK,
        rsi: PARAMS,
        rflags: 2,
        ..kvm_regs::default()
    };
    // What FNINIT and a reset leave: Intel SDM volume 1, 8.1.5 and 11.6.4.
    let fpu = kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..kvm_fpu::default() };
    (regs, fpu)
}

/// Changes special registers to those of the start.
pub(crate) struct Segments;

impl Segments {
    pub fn set(sregs: &mut kvm_sregs) {
        let code = segment(CODE, 0xb, true);
        let data = segment(DATA, 0x3, false);
        sregs.cs = code;
        for place in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
            *place = data;
        }
        // A busy 64-bit task segment, as VMX asks for.
        sregs.tr = kvm_segment { type_: 0xb, present: 1, limit: 0xffff, ..kvm_segment::default() };
        sregs.gdt.base = GDT;
        sregs.gdt.limit = 8 * 4 - 1;
        sregs.idt.base = 0;
        sregs.idt.limit = 0;
        sregs.cr3 = PML4;
        sregs.cr4 = CR4_PAE;
        sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
        sregs.efer = EFER_LME | EFER_LMA;
    }
}

fn segment(selector: u16, kind: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: kind,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..kvm_segment::default()
    }
}
