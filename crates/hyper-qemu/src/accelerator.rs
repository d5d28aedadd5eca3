//! KVM or TCG, found by trying.

use std::time::Duration;

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Accelerator {
    /// KVM where it works, else TCG.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// Emulation, even where KVM works.
    Tcg,
}

/// What this host has.
#[derive(Debug, Clone)]
pub(crate) struct Chosen {
    pub kvm: bool,
    /// KVM was asked for and does not work: no guest is launched.
    pub refused: bool,
    /// What was seen of KVM, and whether it was good.
    pub kvm_works: bool,
    pub kvm_detail: String,
    /// Rate of the TSC, which TCG shows to the guest as it is; `None` where it has none.
    pub tsc_khz: Option<u32>,
    /// The operator's CPU model.
    pub cpu: Option<String>,
}

impl Chosen {
    pub fn find(wanted: Accelerator, limit: Duration) -> Self {
        let (kvm_works, kvm_detail) = match wanted {
            Accelerator::Tcg => (false, "not tried: emulation was asked for".to_owned()),
            _ => match hyper_kvm_probe::probe(limit) {
                Ok(()) => (true, "runs kernel code at CPL 0 in 64-bit mode".to_owned()),
                Err(problem) => (false, problem.to_string()),
            },
        };
        // 20 ms give the rate to some parts per million; KVM guests have kvm-clock instead.
        let tsc_khz = if kvm_works { None } else { hyper_kvm_probe::tsc_khz(SAMPLE) };
        let refused = wanted == Accelerator::Kvm && !kvm_works;
        Self { kvm: kvm_works || refused, refused, kvm_works, kvm_detail, tsc_khz, cpu: None }
    }
}

const SAMPLE: Duration = Duration::from_millis(20);
