//! All that a virtual CPU knows, and its way into another one.

use std::io;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state,
    kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use crate::VmmError;

/// Set only after the time-stamp counter, which it is compared with.
const TSC_DEADLINE: u32 = 0x6e0;
/// Bit of CPUID 1, ecx.
const XSAVE: u32 = 1 << 26;
/// Registers in one call.
const AT_ONCE: usize = 64;

/// One virtual CPU.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CpuState {
    pub cpuid: Vec<kvm_cpuid_entry2>,
    tsc_khz: Option<u32>,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    /// CPUs without XSAVE have none.
    xcrs: Option<kvm_xcrs>,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    events: kvm_vcpu_events,
    msrs: Vec<kvm_msr_entry>,
}

impl CpuState {
    /// Reads it all; `msrs` are the registers that are worth saving on this host. The order is the
    /// kernel's: reading the MP state first lets pending INITs be seen (api.rst).
    pub fn of(vcpu: &VcpuFd, msrs: &[u32]) -> Result<Self, VmmError> {
        let read = VmmError::kvm;
        let mp_state = vcpu.get_mp_state().map_err(read("read a CPU's state"))?;
        let regs = vcpu.get_regs().map_err(read("read a CPU's registers"))?;
        let sregs = vcpu.get_sregs().map_err(read("read a CPU's special registers"))?;
        let xsave = vcpu.get_xsave().map_err(read("read a CPU's extended state"))?;
        let debug = vcpu.get_debug_regs().map_err(read("read a CPU's debug registers"))?;
        let lapic = vcpu.get_lapic().map_err(read("read a CPU's interrupt controller"))?;
        let tsc_khz = vcpu.get_tsc_khz().ok();
        let cpuid = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(read("read CPU features"))?;
        let has_xsave =
            cpuid.as_slice().iter().any(|leaf| leaf.function == 1 && leaf.ecx & XSAVE != 0);
        let xcrs = match has_xsave {
            true => Some(vcpu.get_xcrs().map_err(read("read extended control registers"))?),
            false => None,
        };
        let msrs = read_msrs(vcpu, msrs)?;
        let events = vcpu.get_vcpu_events().map_err(read("read a CPU's events"))?;
        Ok(Self {
            cpuid: cpuid.as_slice().to_vec(),
            tsc_khz,
            mp_state,
            regs,
            sregs,
            xsave,
            xcrs,
            debug,
            lapic,
            events,
            msrs,
        })
    }

    /// Makes `vcpu` be that CPU.
    pub fn apply(&self, vcpu: &VcpuFd) -> Result<(), VmmError> {
        let set = VmmError::kvm;
        let odd = |error: vmm_sys_util::fam::Error| VmmError::Config {
            what: "CPU features",
            why: format!("{error:?}"),
        };
        let cpuid = CpuId::from_entries(&self.cpuid).map_err(odd)?;
        vcpu.set_cpuid2(&cpuid).map_err(set("tell a virtual CPU its features"))?;
        if let Some(khz) = self.tsc_khz
            && vcpu.get_tsc_khz().ok() != Some(khz)
        {
            vcpu.set_tsc_khz(khz).map_err(set("set the rate of the time-stamp counter"))?;
        }
        vcpu.set_mp_state(self.mp_state).map_err(set("set a CPU's state"))?;
        vcpu.set_regs(&self.regs).map_err(set("set registers"))?;
        vcpu.set_sregs(&self.sregs).map_err(set("set special registers"))?;
        // SAFETY: the buffer is `kvm_xsave`, as large as KVM_SET_XSAVE reads for guests that were
        // not given dynamically enabled features (AMX), which need an arch_prctl nobody made.
        unsafe { vcpu.set_xsave(&self.xsave) }.map_err(set("set the extended state"))?;
        if let Some(xcrs) = &self.xcrs {
            vcpu.set_xcrs(xcrs).map_err(set("set extended control registers"))?;
        }
        vcpu.set_debug_regs(&self.debug).map_err(set("set debug registers"))?;
        vcpu.set_lapic(&self.lapic).map_err(set("set the interrupt controller"))?;
        let (late, early): (Vec<_>, Vec<_>) =
            self.msrs.iter().partition(|entry| entry.index == TSC_DEADLINE);
        write_msrs(vcpu, &early)?;
        write_msrs(vcpu, &late)?;
        vcpu.set_vcpu_events(&self.events).map_err(set("set events"))?;
        // The clock's watchdogs shall not count the time in which the guest was not there. Fails
        // when the guest has no such clock.
        let _ = vcpu.kvmclock_ctrl();
        Ok(())
    }
}

/// What of `wanted` this CPU has.
fn read_msrs(vcpu: &VcpuFd, wanted: &[u32]) -> Result<Vec<kvm_msr_entry>, VmmError> {
    let mut all = Vec::with_capacity(wanted.len());
    let mut rest = wanted;
    while !rest.is_empty() {
        let now = &rest[..rest.len().min(AT_ONCE)];
        let entries: Vec<_> =
            now.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
        let mut msrs = Msrs::from_entries(&entries).map_err(too_many)?;
        let read = vcpu.get_msrs(&mut msrs).map_err(VmmError::kvm("read registers"))?;
        all.extend_from_slice(&msrs.as_slice()[..read]);
        // KVM stops at the first that this CPU does not have.
        rest = &rest[if read < now.len() { read + 1 } else { read }..];
    }
    Ok(all)
}

fn write_msrs(vcpu: &VcpuFd, entries: &[&kvm_msr_entry]) -> Result<(), VmmError> {
    for some in entries.chunks(AT_ONCE) {
        let some: Vec<_> = some.iter().map(|entry| **entry).collect();
        let msrs = Msrs::from_entries(&some).map_err(too_many)?;
        let set = vcpu.set_msrs(&msrs).map_err(VmmError::kvm("set registers"))?;
        if let Some(refused) = some.get(set) {
            let why = format!("{:#x} cannot be {:#x} here", refused.index, refused.data);
            return Err(VmmError::Config { what: "a model-specific register", why });
        }
    }
    Ok(())
}

fn too_many(error: vmm_sys_util::fam::Error) -> VmmError {
    VmmError::Io { doing: "list model-specific registers", source: io::Error::other(error) }
}
