//! Lists of system calls, compiled to BPF in the supervisor so that the launcher stays small.
//!
//! The filter is kept across exec and by children; `execve` or `execveat` must therefore be listed
//! for the program itself to start. Calls listed without a condition cost nothing: the kernel
//! answers them from a bitmap (`SECCOMP_ARCH_NATIVE` action cache, Linux 5.11).

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use crate::JailError;

/// What happens on a call that is not listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeccompDefault {
    /// The whole process dies of SIGSYS: for release.
    Kill,
    /// The call fails with this errno.
    Errno(i32),
    /// The call is logged by the kernel and let through: for finding a list.
    Log,
}

/// A condition on one argument of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// The argument (64 bits) is this value.
    Is(u64),
    /// The argument's bits under `mask` are `bits`.
    Masked { mask: u64, bits: u64 },
}

/// An allow-list of system calls; numbers are `libc::SYS_*`.
#[derive(Debug, Clone)]
pub struct Seccomp {
    default: SeccompDefault,
    allow: BTreeMap<i64, Vec<(u8, Comparison)>>,
    refuse: BTreeMap<i64, i32>,
}

impl Seccomp {
    /// An empty list.
    pub fn new(default: SeccompDefault) -> Self {
        Self { default, allow: BTreeMap::new(), refuse: BTreeMap::new() }
    }

    /// Allows calls, whatever their arguments; it overrules conditions given for them.
    #[must_use]
    pub fn allow(mut self, calls: &[i64]) -> Self {
        for call in calls {
            self.allow.insert(*call, Vec::new());
        }
        self
    }

    /// Allows a call when argument `index` (0..=5) matches; more conditions on one call are
    /// alternatives. No effect on a call that is allowed without a condition.
    #[must_use]
    pub fn allow_if(mut self, call: i64, index: u8, comparison: Comparison) -> Self {
        match self.allow.get_mut(&call) {
            None => {
                self.allow.insert(call, vec![(index, comparison)]);
            }
            Some(conditions) if !conditions.is_empty() => conditions.push((index, comparison)),
            Some(_) => {}
        }
        self
    }

    /// Makes a call fail with `errno` without killing the caller, e.g. `clone3` with `ENOSYS` so
    /// that libc falls back to `clone`, whose flags a filter can see.
    #[must_use]
    pub fn refuse(mut self, call: i64, errno: i32) -> Self {
        self.refuse.insert(call, errno);
        self
    }

    #[cfg(test)]
    pub(crate) fn conditions(&self, call: i64) -> &[(u8, Comparison)] {
        &self.allow[&call]
    }

    /// The calls that no hypervisor needs fail with EPERM, everything else passes: what stands
    /// when an adapter gives no list.
    pub(crate) fn fallback() -> Self {
        let mut list = Self::new(SeccompDefault::Log);
        for call in NEVER {
            list = list.refuse(*call, libc::EPERM);
        }
        list
    }

    /// The filters, the allow-list first: install them from the last to the first. The strictest
    /// answer of all counts.
    ///
    /// # Errors
    /// A rule that BPF cannot express.
    #[doc(hidden)]
    pub fn compile(&self) -> Result<Vec<Vec<u64>>, JailError> {
        let mut filters = Vec::new();
        let default = match self.default {
            SeccompDefault::Kill => SeccompAction::KillProcess,
            SeccompDefault::Errno(errno) => SeccompAction::Errno(errno.unsigned_abs()),
            SeccompDefault::Log => SeccompAction::Log,
        };
        if !self.allow.is_empty() {
            let mut rules = BTreeMap::new();
            for call in self.refuse.keys() {
                rules.insert(*call, Vec::new());
            }
            for (call, conditions) in &self.allow {
                let chain = conditions
                    .iter()
                    .map(|(index, comparison)| rule(*call, *index, *comparison))
                    .collect::<Result<Vec<_>, _>>()?;
                rules.insert(*call, chain);
            }
            filters.push(build(rules, default, SeccompAction::Allow)?);
        }
        let mut by_errno: BTreeMap<i32, BTreeMap<i64, Vec<SeccompRule>>> = BTreeMap::new();
        for (call, errno) in &self.refuse {
            by_errno.entry(*errno).or_default().insert(*call, Vec::new());
        }
        for (errno, rules) in by_errno {
            let action = SeccompAction::Errno(errno.unsigned_abs());
            filters.push(build(rules, SeccompAction::Allow, action)?);
        }
        Ok(filters.iter().map(pack).collect())
    }
}

/// Calls that change the host or make namespaces; see [`Seccomp::fallback`].
const NEVER: &[i64] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_init_module,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
];

fn rule(call: i64, index: u8, comparison: Comparison) -> Result<SeccompRule, JailError> {
    let (op, value) = match comparison {
        Comparison::Is(value) => (SeccompCmpOp::Eq, value),
        Comparison::Masked { mask, bits } => (SeccompCmpOp::MaskedEq(mask), bits),
    };
    SeccompCondition::new(index, SeccompCmpArgLen::Qword, op, value)
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .map_err(|error| JailError::Spec {
            what: format!("seccomp rule for system call {call}, argument {index}"),
            hint: error.to_string(),
        })
}

fn build(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    mismatch: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, JailError> {
    let spec = |hint: String| JailError::Spec { what: "seccomp list".to_owned(), hint };
    let arch = TargetArch::try_from(std::env::consts::ARCH)
        .map_err(|error| spec(format!("{error}; Hyper knows x86_64, aarch64 and riscv64")))?;
    let filter = SeccompFilter::new(rules, mismatch, matched, arch)
        .map_err(|error| spec(error.to_string()))?;
    BpfProgram::try_from(filter).map_err(|error| spec(error.to_string()))
}

/// One BPF instruction as a number: code, jt, jf, k from the high bits down.
fn pack(program: &BpfProgram) -> Vec<u64> {
    program
        .iter()
        .map(|op| {
            u64::from(op.code) << 48
                | u64::from(op.jt) << 40
                | u64::from(op.jf) << 32
                | u64::from(op.k)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_calls_are_let_through_by_the_first_filter_and_stopped_by_the_second() {
        let list = Seccomp::new(SeccompDefault::Kill)
            .allow(&[libc::SYS_read])
            .refuse(libc::SYS_clone3, libc::ENOSYS)
            .compile()
            .unwrap();
        assert_eq!(list.len(), 2);
        // The first filter names both calls (a compare with each number), the second only one.
        let names = |filter: &[u64], call: i64| {
            filter.iter().any(|op| op >> 48 == 0x15 && op & 0xffff_ffff == call as u64)
        };
        assert!(names(&list[0], libc::SYS_clone3) && names(&list[0], libc::SYS_read));
        assert!(names(&list[1], libc::SYS_clone3) && !names(&list[1], libc::SYS_read));
    }

    #[test]
    fn conditions_add_up_and_an_unconditional_allow_wins() {
        let some = Seccomp::new(SeccompDefault::Kill)
            .allow_if(libc::SYS_ioctl, 1, Comparison::Is(1))
            .allow_if(libc::SYS_ioctl, 1, Comparison::Masked { mask: 0xff, bits: 2 });
        assert_eq!(some.allow[&libc::SYS_ioctl].len(), 2);
        let all = some.allow(&[libc::SYS_ioctl]).allow_if(libc::SYS_ioctl, 1, Comparison::Is(3));
        assert!(all.allow[&libc::SYS_ioctl].is_empty());
    }

    #[test]
    fn a_bad_argument_index_is_an_error_that_names_the_call() {
        let error = Seccomp::new(SeccompDefault::Kill)
            .allow_if(libc::SYS_read, 6, Comparison::Is(0))
            .compile()
            .unwrap_err();
        assert!(error.to_string().contains("system call 0, argument 6"), "{error}");
    }
}
