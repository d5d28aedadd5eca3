//! Giving a running guest more memory, and taking it back.
//!
//! The limit of the monitor's cgroup is raised before the guest takes any, and lowered when it has
//! given back: in between it is that of the larger of both.

use std::time::Duration;

use hyper_adapter::refused;
use hyper_hypervisor::VmError;
use hyper_jail::{JailError, Jailed};
use hyper_vmm::config::Config;
use hyper_vmm::wire::{Answer, Request};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use crate::NAME;
use crate::control::Control;
use crate::launch::OVERHEAD;

/// Longest wait for the guest to take or give back, as long as it does some of it, and for more of
/// it: KVM itself may be emulated.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest wait in all.
const LIMIT: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_millis(5);
/// Room that every guest has, and most that one has.
const LEAST: u64 = 1 << 30;
const MOST: u64 = 1 << 40;

/// Most bytes that the guest can be given beyond its own: the host's memory. They are addresses
/// only until they are asked for.
pub fn room(guest: &Config) -> u64 {
    if guest.pages.kept() {
        return 0;
    }
    let host = rustix::system::sysinfo();
    let bytes = host.totalram.saturating_mul(host.mem_unit.into());
    bytes.saturating_sub(guest.memory_bytes).clamp(LEAST, MOST)
}

/// The memory of one guest.
#[derive(Debug)]
pub struct Memory {
    booted: u64,
    /// What it was last asked to have; held while that changes.
    asked: Mutex<u64>,
}

impl Memory {
    pub fn new(booted: u64) -> Self {
        Self { booted, asked: Mutex::new(booted) }
    }

    pub async fn set(
        &self,
        control: &Control,
        jailed: &Jailed,
        bytes: u64,
    ) -> Result<u64, VmError> {
        let mut asked = self.asked.lock().await;
        if bytes < self.booted {
            let (booted, what) = (self.booted, "give a running guest");
            let what = format!("{what} {bytes} bytes of memory: it booted with {booted}");
            return Err(VmError::Unsupported { hypervisor: NAME, what });
        }
        let before = *asked;
        hold(jailed, bytes.max(before))?;
        let reached = self.reach(control, bytes).await;
        *asked = match &reached {
            Ok(has) => *has,
            // What was not given back is the guest's; what it was to have more is not.
            Err(VmError::Memory { got, .. }) => {
                let back = if bytes < before { *got } else { before };
                self.reach(control, back).await.unwrap_or(*got)
            }
            Err(_) => before,
        };
        if let Err(error) = hold(jailed, *asked) {
            // It has given back the memory, and could use it again if it were not what it says.
            tracing::warn!(%error, "the limit of a guest's memory stays higher than it has to be");
        }
        reached
    }

    /// Asks for `bytes` and waits until the guest has them.
    async fn reach(&self, control: &Control, bytes: u64) -> Result<u64, VmError> {
        let doing = "change the guest's memory";
        let told = control.call(&Request::SetMemory { bytes }, Vec::new()).await;
        told.map_err(|error| error.while_doing(doing))?;
        let (begun, mut seen) = (Instant::now(), None);
        let mut changed = begun;
        loop {
            let answer = control.call(&Request::Memory, Vec::new()).await;
            let answer = answer.map_err(|error| error.while_doing(doing))?;
            let Answer::Memory { wanted, has } = answer else {
                let source = std::io::Error::other(format!("it said {answer:?}"));
                return Err(VmError::Io { what: doing, source });
            };
            if has == wanted {
                return Ok(has);
            }
            if seen.replace(has) != Some(has) {
                changed = Instant::now();
            }
            if changed.elapsed() > PATIENCE || begun.elapsed() > LIMIT {
                let why = match has < wanted {
                    true => "did not take it (has it virtio-mem, and memory to manage more?)",
                    false => "did not give it back: it is in use",
                };
                let seconds = begun.elapsed().as_secs();
                return Err(VmError::Memory { wanted, got: has, seconds, why });
            }
            sleep(STEP).await;
        }
    }
}

/// Holds the monitor to what the guest has. Where the host has no cgroup for it, it never did.
fn hold(jailed: &Jailed, guest: u64) -> Result<(), VmError> {
    match jailed.set_memory(guest.saturating_add(OVERHEAD)) {
        Err(JailError::Unsupported { .. }) => Ok(()),
        other => other.map_err(refused(NAME)),
    }
}
