//! CPUs and interrupts as an MP table (Intel, MultiProcessor Specification 1.4, chapter 4): the
//! smallest description of them that Linux understands, and the only one it gets.

use vm_memory::{Bytes as _, GuestAddress};

use super::{EBDA, GENERATION, written};
use crate::VmmError;
use crate::memory::Memory;

/// Default addresses of the interrupt controllers that KVM emulates.
const APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
const APIC_VERSION: u8 = 0x14;
/// Pins of KVM's I/O APIC (`KVM_IOAPIC_NUM_PINS`).
pub(crate) const PINS: u8 = 24;
const HEADER: usize = 44;

/// Writes pointer and table for so many CPUs, whose APIC ids are 0, 1, …
pub(super) fn write(memory: &Memory, vcpus: u32) -> Result<(), VmmError> {
    let table = table(u8::try_from(vcpus).unwrap_or(u8::MAX));
    let at = EBDA + 16;
    let mut pointer = Vec::with_capacity(16);
    pointer.extend(b"_MP_");
    pointer.extend(u32::try_from(at).unwrap_or(0).to_le_bytes());
    pointer.extend([1, 4, 0, 0, 0, 0, 0, 0]);
    pointer[10] = checksum(&pointer);
    pointer.extend(&table);
    if EBDA + pointer.len() as u64 > GENERATION {
        let why = format!("{vcpus} do not fit into the MP table");
        return Err(VmmError::Config { what: "virtual CPUs", why });
    }
    memory.write_slice(&pointer, GuestAddress(EBDA)).map_err(|e| written("the MP table", &e))
}

fn table(vcpus: u8) -> Vec<u8> {
    let io_apic_id = vcpus;
    let mut entries = Vec::new();
    let mut count: u16 = 0;
    let mut add = |entry: &[u8]| {
        entries.extend_from_slice(entry);
        count += 1;
    };
    for id in 0..vcpus {
        // Enabled; the first one boots. Signature and features come from CPUID, not from here.
        let flags = if id == 0 { 3 } else { 1 };
        let mut cpu = vec![0, id, APIC_VERSION, flags];
        cpu.extend([0x00, 0x06, 0, 0, 0x01, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        add(&cpu);
    }
    add(b"\x01\x00ISA   ");
    let mut io_apic = vec![2, io_apic_id, APIC_VERSION, 1];
    io_apic.extend(IO_APIC.to_le_bytes());
    add(&io_apic);
    for pin in 0..PINS {
        // Vectored, as the bus is (ISA: edges, active high), from bus 0 to the pin of its number.
        add(&[3, 0, 0, 0, 0, pin, io_apic_id, pin]);
    }
    // Local: the 8259's line to LINT0 of the first CPU, NMI to LINT1 of all.
    add(&[4, 3, 0, 0, 0, 0, 0, 0]);
    add(&[4, 1, 0, 0, 0, 0, 0xff, 1]);
    let length = u16::try_from(HEADER + entries.len()).unwrap_or(u16::MAX);
    let mut table = Vec::new();
    table.extend(b"PCMP");
    table.extend(length.to_le_bytes());
    table.extend([4, 0]);
    table.extend(b"HYPER   POD         ");
    table.extend([0; 6]);
    table.extend(count.to_le_bytes());
    table.extend(APIC.to_le_bytes());
    table.extend([0; 4]);
    table.extend(entries);
    table[7] = checksum(&table);
    table
}

/// What makes the sum of all bytes zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn lengths_and_sums_are_right() {
        for vcpus in [1, 2, 32] {
            let table = table(vcpus);
            assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
            assert_eq!(table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0);
            let (mut at, mut entries) = (HEADER, 0);
            while at < table.len() {
                at += if table[at] == 0 { 20 } else { 8 };
                entries += 1;
            }
            assert_eq!((at, entries), (table.len(), u16::from_le_bytes([table[34], table[35]])));
        }
    }

    #[test]
    fn it_fits_below_the_first_640_kibibytes() {
        let memory = crate::memory::take(1 << 20, false, Default::default()).unwrap();
        write(&memory, crate::config::MAX_VCPUS).unwrap();
        let mut magic = [0; 4];
        memory.read_slice(&mut magic, GuestAddress(EBDA + 16)).unwrap();
        assert_eq!(&magic, b"PCMP");
        assert!(write(&memory, 64).is_err());
    }
}
