//! Virtual CPUs: a thread each.
//!
//! ```text
//! running ──pause──► parked ──resume──► running        Gate counts the parked ones
//!    └── reset, failure ──► the guest's end, told once to `ended`
//! ```
//! A thread leaves `KVM_RUN` when it gets our signal. One that arrives just before `KVM_RUN` is
//! lost; so whoever waits for threads signals them until all have come.

mod cpuid;
mod signal;
mod state;

use std::sync::atomic::AtomicU64;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_bindings::{KVM_MP_STATE_RUNNABLE, Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use crate::VmmError;
use crate::boot;
use crate::bus::Bus;
use crate::event::Event;
use crate::metrics::{ExitCounters, count};
use crate::wire::End;
pub(crate) use cpuid::Template;
pub(crate) use state::CpuState;

/// Bytes of a thread's stack.
const STACK: usize = 128 << 10;
/// How long a signal may take until it is sent again.
const AGAIN: Duration = Duration::from_millis(2);
/// IA32_MTRR_DEF_TYPE: enabled, write-back. IA32_MISC_ENABLE: fast strings.
const MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 1 << 11 | 6);
const MISC_ENABLE: (u32, u64) = (0x1a0, 1);

/// All virtual CPUs of the guest.
#[derive(Debug)]
pub(crate) struct Cpus {
    threads: Vec<JoinHandle<()>>,
    /// Held by a thread while it runs its CPU.
    vcpus: Vec<Arc<Mutex<VcpuFd>>>,
    gate: Arc<Gate>,
    pub exits: Arc<ExitCounters>,
}

/// Makes a virtual CPU that goes on where a saved one was.
pub(crate) fn restore(vm: &VmFd, index: u32, state: &CpuState) -> Result<VcpuFd, VmmError> {
    let vcpu = vm.create_vcpu(index.into()).map_err(VmmError::kvm("make a virtual CPU"))?;
    state.apply(&vcpu)?;
    Ok(vcpu)
}

/// Makes a virtual CPU; the first one is ready to enter the kernel.
pub(crate) fn make(
    vm: &VmFd,
    template: &Template,
    index: u32,
    vcpus: u32,
    entry: u64,
) -> Result<VcpuFd, VmmError> {
    let vcpu = vm.create_vcpu(index.into()).map_err(VmmError::kvm("make a virtual CPU"))?;
    let cpuid = template.of(index, vcpus)?;
    vcpu.set_cpuid2(&cpuid).map_err(VmmError::kvm("tell a virtual CPU its features"))?;
    let entries = [MTRR_DEF_TYPE, MISC_ENABLE].map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..kvm_msr_entry::default()
    });
    let msrs = Msrs::from_entries(&entries).map_err(|error| VmmError::Config {
        what: "model-specific registers",
        why: format!("{error:?}"),
    })?;
    // What a host does not have is not set; Linux does without either.
    vcpu.set_msrs(&msrs).map_err(VmmError::kvm("set model-specific registers"))?;
    if index == 0 {
        let (regs, fpu) = boot::start(entry);
        vcpu.set_regs(&regs).map_err(VmmError::kvm("set registers"))?;
        vcpu.set_fpu(&fpu).map_err(VmmError::kvm("set floating-point registers"))?;
        let mut sregs = vcpu.get_sregs().map_err(VmmError::kvm("read special registers"))?;
        boot::Segments::set(&mut sregs);
        vcpu.set_sregs(&sregs).map_err(VmmError::kvm("set special registers"))?;
        let state = kvm_bindings::kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
        vcpu.set_mp_state(state).map_err(VmmError::kvm("make the first CPU runnable"))?;
    }
    Ok(vcpu)
}

/// Looks at what CPUs this host can give.
pub(crate) fn template(kvm: &Kvm) -> Result<Template, VmmError> {
    Template::of_host(kvm)
}

impl Cpus {
    /// Starts a thread for each, parked.
    pub fn start(
        vcpus: Vec<VcpuFd>,
        bus: &Arc<Bus>,
        events: &Sender<Event>,
    ) -> Result<Self, VmmError> {
        signal::prepare().map_err(VmmError::io("prepare a signal"))?;
        let gate = Arc::new(Gate::default());
        let exits = Arc::new(ExitCounters::default());
        let mut threads = Vec::new();
        let vcpus: Vec<_> = vcpus.into_iter().map(|vcpu| Arc::new(Mutex::new(vcpu))).collect();
        for (index, vcpu) in vcpus.iter().enumerate() {
            let thread = Thread {
                vcpu: Arc::clone(vcpu),
                bus: Arc::clone(bus),
                gate: Arc::clone(&gate),
                exits: Arc::clone(&exits),
                events: events.clone(),
            };
            let named = std::thread::Builder::new().name(format!("vcpu{index}")).stack_size(STACK);
            let thread = named.spawn(move || thread.run());
            threads.push(thread.map_err(VmmError::io("start a thread for a virtual CPU"))?);
        }
        Ok(Self { threads, vcpus, gate, exits })
    }

    /// Returns when none runs guest code any more. Fine to call again.
    pub fn pause(&self) {
        let mut state = self.gate.lock();
        state.closed = true;
        while state.parked + state.gone < self.threads.len() {
            for thread in &self.threads {
                if !thread.is_finished() {
                    signal::send(thread);
                }
            }
            let waited = self.gate.changed.wait_timeout(state, AGAIN);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether they are parked.
    pub fn paused(&self) -> bool {
        let state = self.gate.lock();
        state.closed && state.parked + state.gone == self.threads.len()
    }

    /// The state of each. They must be parked.
    pub fn save(&self, msrs: &[u32]) -> Result<Vec<CpuState>, VmmError> {
        let each = self
            .vcpus
            .iter()
            .map(|vcpu| CpuState::of(&vcpu.lock().unwrap_or_else(PoisonError::into_inner), msrs));
        each.collect()
    }

    /// Lets them go on. Fine to call again.
    pub fn resume(&self) {
        self.gate.lock().closed = false;
        self.gate.changed.notify_all();
    }
}

/// Where paused CPUs wait.
#[derive(Debug)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    closed: bool,
    parked: usize,
    gone: usize,
}

impl Default for Gate {
    fn default() -> Self {
        let state = Mutex::new(GateState { closed: true, ..GateState::default() });
        Self { state, changed: Condvar::new() }
    }
}

impl Gate {
    fn lock(&self) -> std::sync::MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn closed(&self) -> bool {
        self.lock().closed
    }

    /// Waits while closed.
    fn pass(&self) {
        let mut state = self.lock();
        if !state.closed {
            return;
        }
        state.parked += 1;
        self.changed.notify_all();
        while state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.parked -= 1;
    }

    fn leave(&self) {
        self.lock().gone += 1;
        self.changed.notify_all();
    }
}

struct Thread {
    vcpu: Arc<Mutex<VcpuFd>>,
    bus: Arc<Bus>,
    gate: Arc<Gate>,
    exits: Arc<ExitCounters>,
    events: Sender<Event>,
}

impl Thread {
    fn run(mut self) {
        let end = self.follow();
        self.gate.leave();
        // Fails only when the main thread is ending the process.
        let _ = self.events.send(Event::Ended(end));
    }

    fn follow(&mut self) -> End {
        loop {
            self.gate.pass();
            let vcpu = Arc::clone(&self.vcpu);
            let mut vcpu = vcpu.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(end) = self.run_until_parked(&mut vcpu) {
                return end;
            }
        }
    }

    /// Runs the CPU; `None` when it shall park.
    fn run_until_parked(&mut self, vcpu: &mut VcpuFd) -> Option<End> {
        let exits = Arc::clone(&self.exits);
        let saw = |counter: &AtomicU64| count(counter, 1);
        loop {
            if self.gate.closed() {
                // What an exit has left to do is done by the next entry; one that returns at once
                // does only that (api.rst, KVM_CAP_IMMEDIATE_EXIT).
                vcpu.set_kvm_immediate_exit(1);
                let _ = vcpu.run();
                vcpu.set_kvm_immediate_exit(0);
                return None;
            }
            let failed = match vcpu.run() {
                Ok(VcpuExit::IoIn(port, data)) => {
                    saw(&exits.port_read);
                    self.bus.port_read(port, data);
                    continue;
                }
                Ok(VcpuExit::IoOut(port, data)) => {
                    saw(&exits.port_write);
                    if self.bus.port_write(port, data) {
                        return Some(End::Reset);
                    }
                    continue;
                }
                Ok(VcpuExit::MmioRead(address, data)) => {
                    saw(&exits.mmio_read);
                    self.bus.read(address, data);
                    continue;
                }
                Ok(VcpuExit::MmioWrite(address, data)) => {
                    saw(&exits.mmio_write);
                    self.bus.write(address, data);
                    continue;
                }
                Ok(VcpuExit::Intr) => {
                    saw(&exits.interrupted);
                    continue;
                }
                // KVM_SYSTEM_EVENT_SHUTDOWN, _RESET, _CRASH.
                Ok(VcpuExit::Shutdown | VcpuExit::SystemEvent(1..=3, _)) => {
                    return Some(End::Reset);
                }
                Ok(VcpuExit::FailEntry(reason, _)) => {
                    format!("the host's CPU refused to enter the guest (reason {reason:#x})")
                }
                Ok(VcpuExit::InternalError) => internal_error(vcpu),
                Ok(VcpuExit::Hlt) => "it halted outside of KVM's interrupt controller".to_owned(),
                Ok(other) => format!("KVM returned {other:?}, which nothing here handles"),
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                    saw(&exits.interrupted);
                    continue;
                }
                Err(error) if error.errno() == libc::EFAULT => {
                    "its memory could not be had: the file of a mapped disk became shorter or \
                     cannot be read, or the host has no memory left"
                        .to_owned()
                }
                Err(error) => format!("KVM_RUN: {error}"),
            };
            saw(&exits.other);
            let at = vcpu.get_regs().map(|regs| format!(" at {:#x}", regs.rip));
            return Some(End::Failed { why: failed + &at.unwrap_or_default() });
        }
    }
}

/// What KVM says about an error of its own (`kvm_run.internal` of api.rst).
fn internal_error(vcpu: &mut VcpuFd) -> String {
    let run = vcpu.get_kvm_run();
    // SAFETY: KVM has just returned KVM_EXIT_INTERNAL_ERROR, for which this is the union's field; it
    // is plain numbers.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let kind = match internal.suberror {
        1 => {
            "it met an instruction that KVM cannot emulate, as where KVM does not run unmodified \
             kernels: `hyper doctor` tries that"
        }
        2 => "KVM met an exception while it delivered another",
        3 => "KVM could not deliver an event",
        4 => "the CPU left the guest for a reason that KVM does not know",
        _ => "KVM failed",
    };
    format!("{kind} (KVM_EXIT_INTERNAL_ERROR {})", internal.suberror)
}
