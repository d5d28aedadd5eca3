//! Saved guests: a file with all state but memory, and a file with the memory.
//!
//! The state is one line of JSON behind a line with its version, length and CRC-32C; the memory is
//! a sparse file with each region at its place. A guest goes on in any number of processes at once:
//! each maps the memory copy-on-write, so that what nobody writes to is there once.
//!
//! Not saved: traffic figures, a packet that waits for buffers, and what is on disks: whoever saves
//! a guest keeps its disks as they are.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data,
    kvm_cpuid_entry2, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes as _, GuestAddress, GuestMemory as _, GuestMemoryRegion as _};

use crate::VmmError;
use crate::cpu::{CpuState, Template};
use crate::memory::Memory;
use crate::virtio::TransportState;

/// Changes with every change of what is saved.
const VERSION: u32 = 3;
const MAGIC: &str = "hyper-vmm saved guest";
/// Longest state in bytes: some KiB per CPU and device in practice.
const MAX_STATE: u64 = 16 << 20;
const PAGE: usize = 4096;
/// Bytes of memory looked at in one go.
const CHUNK: usize = 256 << 10;

/// All of a guest but its memory and disks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    pub vcpus: Vec<CpuState>,
    pub memory_bytes: u64,
    pub growth: Growing,
    pub machine: MachineState,
    pub devices: Vec<TransportState>,
}

/// Room for more memory, and how much of it the guest's driver may use: none of it is had.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Growing {
    pub bytes: u64,
    pub usable: u64,
}

/// What the CPUs share.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MachineState {
    clock: kvm_clock_data,
    /// The two 8259 and the I/O APIC: KVM's own bytes.
    controllers: Vec<Vec<u8>>,
    pit: Option<kvm_pit_state2>,
}

const CONTROLLERS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];
/// Length of the union in `kvm_irqchip`.
const CONTROLLER_BYTES: usize = 512;

impl MachineState {
    pub fn of(vm: &VmFd, pit: bool) -> Result<Self, VmmError> {
        let mut controllers = Vec::new();
        for chip_id in CONTROLLERS {
            let mut chip = kvm_irqchip { chip_id, ..kvm_irqchip::default() };
            vm.get_irqchip(&mut chip).map_err(VmmError::kvm("read an interrupt controller"))?;
            // SAFETY: `dummy` spans the union, which KVM has filled; it is bytes.
            controllers.push(unsafe { chip.chip.dummy }.map(i8::cast_unsigned).to_vec());
        }
        let clock = vm.get_clock().map_err(VmmError::kvm("read the clock"))?;
        let pit = match pit {
            true => Some(vm.get_pit2().map_err(VmmError::kvm("read the timer"))?),
            false => None,
        };
        Ok(Self { clock, controllers, pit })
    }

    pub fn apply(&self, vm: &VmFd) -> Result<(), VmmError> {
        if let Some(pit) = &self.pit {
            vm.set_pit2(pit).map_err(VmmError::kvm("set the timer"))?;
        }
        // Only the time itself: the flags are those of reading.
        let clock = kvm_clock_data { clock: self.clock.clock, ..kvm_clock_data::default() };
        vm.set_clock(&clock).map_err(VmmError::kvm("set the clock"))?;
        for (chip_id, bytes) in CONTROLLERS.into_iter().zip(&self.controllers) {
            let bytes: [u8; CONTROLLER_BYTES] = bytes.as_slice().try_into().map_err(|_| {
                let why = format!("{} bytes, not {CONTROLLER_BYTES}", bytes.len());
                VmmError::Config { what: "a saved interrupt controller", why }
            })?;
            let mut chip = kvm_irqchip { chip_id, ..kvm_irqchip::default() };
            chip.chip.dummy = bytes.map(u8::cast_signed);
            vm.set_irqchip(&chip).map_err(VmmError::kvm("set an interrupt controller"))?;
        }
        Ok(())
    }
}

impl State {
    /// Writes the file, from its begin.
    pub fn write(&self, file: &mut File) -> Result<(), VmmError> {
        let written = VmmError::io("write the state of a guest");
        let body = serde_json::to_vec(self).map_err(std::io::Error::other);
        let write = |body: Vec<u8>| {
            let head = format!("{MAGIC} {VERSION} {} {:08x}\n", body.len(), crc32c::crc32c(&body));
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(head.as_bytes())?;
            file.write_all(&body)?;
            file.sync_data()
        };
        body.and_then(write).map_err(written)
    }

    /// Reads and checks the file.
    pub fn read(file: &mut File) -> Result<Self, VmmError> {
        let refuse = |why: String| VmmError::Config { what: "the saved guest", why };
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0))
            .and_then(|_| file.take(MAX_STATE + 1).read_to_end(&mut bytes))
            .map_err(VmmError::io("read the state of a guest"))?;
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let end = end.ok_or_else(|| refuse("it is no saved guest".to_owned()))?;
        let (head, body) = (String::from_utf8_lossy(&bytes[..end]), &bytes[end + 1..]);
        let rest = head.strip_prefix(MAGIC).unwrap_or_default();
        let numbers: Vec<&str> = rest.split_whitespace().collect();
        let [version, length, sum] = numbers[..] else {
            return Err(refuse("it is no saved guest".to_owned()));
        };
        if version != VERSION.to_string() {
            let why =
                format!("its version is {version}, this monitor's is {VERSION}: save it anew");
            return Err(refuse(why));
        }
        if length != body.len().to_string() || sum != format!("{:08x}", crc32c::crc32c(body)) {
            return Err(refuse("it is damaged: length or checksum do not fit".to_owned()));
        }
        serde_json::from_slice(body).map_err(|error| refuse(error.to_string()))
    }

    /// The state without its head: for the fuzz target, which would not find a checksum.
    #[cfg(feature = "fuzzing")]
    pub fn parse(body: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(body)
    }

    /// Refuses what this host's CPUs cannot be: a guest must not lose instructions it has seen.
    pub fn check_cpu(&self, host: &Template) -> Result<(), VmmError> {
        for saved in self.vcpus.first().map(|cpu| &cpu.cpuid[..]).unwrap_or_default() {
            let missing = lacking(saved, host);
            if !missing.is_empty() {
                let why = format!(
                    "it was saved on a CPU with features that this host lacks (CPUID {:#x}.{}: {})",
                    saved.function,
                    saved.index,
                    missing.join(", ")
                );
                return Err(VmmError::Config { what: "the saved guest", why });
            }
        }
        Ok(())
    }
}

/// Not features: what the guest has turned on in CR4.
const OSXSAVE: u32 = 1 << 27;
const OSPKE: u32 = 1 << 4;

/// Feature bits that the host does not have, register by register.
fn lacking(saved: &kvm_cpuid_entry2, host: &Template) -> Vec<String> {
    // Leaves whose bits are features: Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E.
    let registers: &[usize] = match (saved.function, saved.index) {
        (1, _) | (0x8000_0001, _) => &[2, 3],
        (7, 0) => &[1, 2, 3],
        (7, 1) | (0xd, 0 | 1) => &[0],
        _ => return Vec::new(),
    };
    let here = host.leaf(saved.function, saved.index);
    let mut saved = *saved;
    match saved.function {
        1 => saved.ecx &= !OSXSAVE,
        7 => saved.ecx &= !OSPKE,
        _ => {}
    }
    let of = |entry: &kvm_cpuid_entry2| [entry.eax, entry.ebx, entry.ecx, entry.edx];
    let (saved, here) = (of(&saved), here.map_or([0; 4], |entry| of(&entry)));
    let missing = registers.iter().filter(|at| saved[**at] & !here[**at] != 0);
    missing
        .map(|at| format!("{}={:#x}", ["eax", "ebx", "ecx", "edx"][*at], saved[*at] & !here[*at]))
        .collect()
}

/// Writes all memory to the file; what is zero is left out.
pub(crate) fn write_memory(memory: &Memory, file: &File) -> Result<(), VmmError> {
    let failed = || VmmError::io("write the memory of a guest");
    let total: u64 = memory.iter().map(vm_memory::GuestMemoryRegion::len).sum();
    file.set_len(0).and_then(|()| file.set_len(total)).map_err(failed())?;
    let mut place = 0;
    let mut buffer = vec![0; CHUNK];
    for region in memory.iter() {
        let mut done = 0;
        while done < region.len() {
            let length = CHUNK.min(usize::try_from(region.len() - done).unwrap_or(CHUNK));
            let chunk = &mut buffer[..length];
            let at = GuestAddress(region.start_addr().0 + done);
            memory
                .read_slice(chunk, at)
                .map_err(|error| VmmError::Memory { doing: "read", why: error.to_string() })?;
            write_filled(file, chunk, place + done).map_err(failed())?;
            done += length as u64;
        }
        place += region.len();
    }
    file.sync_data().map_err(failed())
}

/// Writes the pages that are not zero, neighbours in one go.
fn write_filled(file: &File, chunk: &[u8], place: u64) -> std::io::Result<()> {
    let pages: Vec<&[u8]> = chunk.chunks(PAGE).collect();
    let mut at = 0;
    for run in pages.chunk_by(|one, other| filled(one) == filled(other)) {
        let bytes: usize = run.iter().map(|page| page.len()).sum();
        if filled(run[0]) {
            file.write_all_at(&chunk[at..at + bytes], place + at as u64)?;
        }
        at += bytes;
    }
    Ok(())
}

fn filled(page: &[u8]) -> bool {
    page.iter().any(|byte| *byte != 0)
}

#[cfg(test)]
mod test {
    use super::*;

    fn state() -> State {
        let clock = kvm_clock_data { clock: 7, ..kvm_clock_data::default() };
        let machine = MachineState { clock, controllers: vec![vec![1; 512]; 3], pit: None };
        let growth = Growing::default();
        State { vcpus: vec![], memory_bytes: 4096, growth, machine, devices: vec![] }
    }

    #[test]
    fn what_was_written_is_read_and_what_was_changed_is_refused() {
        let mut file = tempfile::tempfile().unwrap();
        state().write(&mut file).unwrap();
        assert_eq!(State::read(&mut file).unwrap().machine.clock.clock, 7);
        let length = file.metadata().unwrap().len();
        let says = |file: &mut File| State::read(file).unwrap_err().to_string();
        file.write_all_at(b"9", length - 20).unwrap();
        assert!(says(&mut file).contains("damaged"), "{}", says(&mut file));
        file.set_len(length - 5).unwrap();
        assert!(says(&mut file).contains("damaged"));
        file.write_all_at(b"hyper-vmm saved guest 9", 0).unwrap();
        assert!(says(&mut file).contains("version is 9"), "{}", says(&mut file));
        file.set_len(0).unwrap();
        assert!(says(&mut file).contains("no saved guest"));
    }

    #[test]
    fn memory_is_saved_sparsely_and_mapped_without_touching_the_file() {
        use std::os::unix::fs::MetadataExt as _;
        let memory = crate::memory::take(8 << 20, false, Default::default()).unwrap();
        memory.write_obj(0x1122_u64, GuestAddress(5 << 20)).unwrap();
        let file = tempfile::tempfile().unwrap();
        write_memory(&memory, &file).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 8 << 20);
        assert!(file.metadata().unwrap().blocks() * 512 < 1 << 20);
        let clone = crate::memory::copy(8 << 20, file.try_clone().unwrap()).unwrap();
        assert_eq!(clone.read_obj::<u64>(GuestAddress(5 << 20)).unwrap(), 0x1122);
        clone.write_obj(0x3344_u64, GuestAddress(5 << 20)).unwrap();
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, 5 << 20).unwrap();
        assert_eq!(u64::from_le_bytes(bytes), 0x1122);
        assert!(crate::memory::copy(16 << 20, file).is_err());
    }
}
