//! What the guest's CPUs say they are.
//!
//! All that KVM supports on this host passes, but for:
//!
//! | leaf | change | why |
//! | --- | --- | --- |
//! | 1 | own APIC id, number of CPUs, hypervisor bit, TSC-deadline timer | timers without a calibrated APIC |
//! | 1, 7 | no performance monitoring, no MONITOR/MWAIT, no PDCM | a guest has no counters; idle CPUs shall leave |
//! | 4, 0x8000001d | caches are shared by all CPUs of the guest | the host's numbers are not the guest's |
//! | 0xa | nothing | no performance counters |
//! | 0xb, 0x1f | one thread per core, all in one package | as the MP table says |
//! | 0x8000001e | own id | see 0xb |

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use crate::VmmError;
use crate::config::MAX_VCPUS;

/// CPUID of the host as KVM would give it.
#[derive(Debug)]
pub(crate) struct Template {
    entries: Vec<kvm_cpuid_entry2>,
    deadline: bool,
}

const HYPERVISOR: u32 = 1 << 31;
const TSC_DEADLINE: u32 = 1 << 24;
const X2APIC: u32 = 1 << 21;
const MONITOR: u32 = 1 << 3;
const PDCM: u32 = 1 << 15;

impl Template {
    pub fn of_host(kvm: &Kvm) -> Result<Self, VmmError> {
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(VmmError::kvm("read the CPU features it supports"))?;
        let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        Ok(Self { entries: cpuid.as_slice().to_vec(), deadline })
    }

    /// Whether guests have a timer that needs no calibration.
    pub fn has_deadline_timer(&self) -> bool {
        self.deadline
    }

    /// What guests of this host see in a leaf.
    pub fn leaf(&self, function: u32, index: u32) -> Option<kvm_cpuid_entry2> {
        let wanted = |entry: &&kvm_cpuid_entry2| entry.function == function && entry.index == index;
        let mut entry = *self.entries.iter().find(wanted)?;
        change(&mut entry, 0, MAX_VCPUS, self.deadline);
        Some(entry)
    }

    /// CPUID of virtual CPU `index` of `count`.
    pub fn of(&self, index: u32, count: u32) -> Result<CpuId, VmmError> {
        let mut entries = Vec::with_capacity(self.entries.len());
        for entry in &self.entries {
            let mut entry = *entry;
            change(&mut entry, index, count, self.deadline);
            entries.push(entry);
        }
        topology(&mut entries, index, count);
        CpuId::from_entries(&entries)
            .map_err(|error| VmmError::Config { what: "CPU features", why: format!("{error:?}") })
    }
}

fn change(entry: &mut kvm_cpuid_entry2, index: u32, count: u32, deadline: bool) {
    match entry.function {
        1 => {
            entry.ebx = (entry.ebx & 0xffff) | (count.min(255) << 16) | (index << 24);
            entry.ecx |= HYPERVISOR | X2APIC;
            entry.ecx &= !(MONITOR | PDCM);
            if deadline {
                entry.ecx |= TSC_DEADLINE;
            }
            // HTT: there is more than one in the package.
            entry.edx = if count > 1 { entry.edx | 1 << 28 } else { entry.edx & !(1 << 28) };
        }
        4 | 0x8000_001d if entry.eax & 0x1f != 0 => {
            let shared = if (entry.eax >> 5) & 7 >= 3 { count.next_power_of_two() - 1 } else { 0 };
            entry.eax &= !(0xfff << 14);
            entry.eax |= shared << 14;
            if entry.function == 4 {
                entry.eax &= !(0x3f << 26);
                entry.eax |= (count.next_power_of_two() - 1).min(63) << 26;
            }
        }
        0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        0x8000_0008 => {
            // Number of threads, and bits of an APIC id, as AMD tells them.
            entry.ecx = (entry.ecx & !0xf0ff) | (bits(count) << 12) | (count - 1);
        }
        0x8000_001e => {
            entry.eax = index;
            entry.ebx = index & 0xff;
            entry.ecx = 0;
        }
        _ => {}
    }
}

/// Leaves 0xb and 0x1f: a level for threads (one per core), a level for cores.
fn topology(entries: &mut Vec<kvm_cpuid_entry2>, index: u32, count: u32) {
    for function in [0xb, 0x1f] {
        let known = entries.iter().any(|entry| entry.function == function);
        entries.retain(|entry| entry.function != function);
        if !known {
            continue;
        }
        let levels = [(1, 0, 1), (2, bits(count), count), (0, 0, 0)];
        for (level, (kind, shift, within)) in (0..).zip(levels) {
            entries.push(kvm_cpuid_entry2 {
                function,
                index: level,
                flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                eax: shift,
                ebx: within,
                ecx: level | (kind << 8),
                edx: index,
                ..kvm_cpuid_entry2::default()
            });
        }
    }
}

/// Bits that number `count` things.
fn bits(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod test {
    use super::*;

    fn entry(function: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, ecx: MONITOR | PDCM, ..kvm_cpuid_entry2::default() }
    }

    #[test]
    fn every_cpu_knows_its_number_and_has_no_counters() {
        let template = Template { entries: vec![entry(1), entry(0xa), entry(0xb)], deadline: true };
        let cpuid = template.of(3, 4).unwrap();
        let leaf = |function: u32, index: u32| {
            *cpuid
                .as_slice()
                .iter()
                .find(|entry| entry.function == function && entry.index == index)
                .unwrap()
        };
        assert_eq!(leaf(1, 0).ebx >> 24, 3);
        assert_eq!((leaf(1, 0).ebx >> 16) & 0xff, 4);
        assert_eq!(leaf(1, 0).ecx & (MONITOR | PDCM), 0);
        assert_ne!(leaf(1, 0).ecx & TSC_DEADLINE, 0);
        assert_eq!(leaf(0xa, 0).ecx, 0);
        assert_eq!((leaf(0xb, 1).eax, leaf(0xb, 1).ebx, leaf(0xb, 1).edx), (2, 4, 3));
    }

    #[test]
    fn bits_are_enough() {
        assert_eq!([1, 2, 3, 4, 5, 32].map(bits), [0, 1, 2, 2, 3, 5]);
    }
}
