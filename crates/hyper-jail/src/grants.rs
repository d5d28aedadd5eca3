//! What more than one list of system calls grants under a condition, with the reason, in one place.

use crate::{Comparison, Seccomp};

/// Flags of `clone(2)` that make a thread.
const THREAD: u64 = (libc::CLONE_VM | libc::CLONE_THREAD) as u64;
/// Flags of `clone(2)` that make namespaces.
const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// Requests of `ioctl(2)`, for [`Seccomp::requests`]. The type of a request is in its bits 8 to 15,
/// the number in those below (`Documentation/userspace-api/ioctl/ioctl-number.rst`).
pub mod request {
    use crate::Comparison;

    /// All of KVM's.
    pub const KVM: Comparison = Comparison::Masked { mask: 0xff00, bits: 0xae00 };
    /// All of vhost's.
    pub const VHOST: Comparison = Comparison::Masked { mask: 0xff00, bits: 0xaf00 };
    /// All of a tap's. Taps share the type `T` with terminals, whose numbers are below 0x80:
    /// TIOCSTI stays out.
    pub const TAP: Comparison = Comparison::Masked { mask: 0xff80, bits: 0x5480 };
    /// Waiting or not, of any descriptor.
    pub const FIONBIO: Comparison = Comparison::Is(libc::FIONBIO);
}

impl Seccomp {
    /// New threads, but no processes and no namespaces.
    #[must_use]
    pub fn threads(self) -> Self {
        self.clone_if(Comparison::Masked { mask: THREAD | NAMESPACES, bits: THREAD })
    }

    /// New threads and processes, but no namespaces.
    #[must_use]
    pub fn processes(self) -> Self {
        self.clone_if(Comparison::Masked { mask: NAMESPACES, bits: 0 })
    }

    /// `clone3` takes its flags behind a pointer that no filter can follow; libc falls back to
    /// `clone` when it is not there.
    fn clone_if(self, flags: Comparison) -> Self {
        self.allow_if(libc::SYS_clone, 0, flags).refuse(libc::SYS_clone3, libc::ENOSYS)
    }

    /// Asking for resource limits, not setting them.
    #[must_use]
    pub fn asking_for_limits(self) -> Self {
        self.allow_if(libc::SYS_prlimit64, 2, Comparison::Is(0))
    }

    /// Pairs of unix sockets: both ends are the program's own.
    #[must_use]
    pub fn unix_pairs(self) -> Self {
        self.allow_if(libc::SYS_socketpair, 0, Comparison::Is(libc::AF_UNIX as u64))
    }

    /// These options (`PR_*`) of `prctl(2)`.
    #[must_use]
    pub fn options(self, options: &[i32]) -> Self {
        options.iter().fold(self, |list, option| {
            list.allow_if(libc::SYS_prctl, 0, Comparison::Is(option.unsigned_abs().into()))
        })
    }

    /// These requests of `ioctl(2)`, of any descriptor.
    #[must_use]
    pub fn requests(self, requests: &[Comparison]) -> Self {
        requests.iter().fold(self, |list, request| list.allow_if(libc::SYS_ioctl, 1, *request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SeccompDefault;

    fn fits(comparison: Comparison, value: u64) -> bool {
        match comparison {
            Comparison::Is(wanted) => value == wanted,
            Comparison::Masked { mask, bits } => value & mask == bits,
        }
    }

    fn clones(list: &Seccomp, flags: i32) -> bool {
        let conditions = list.conditions(libc::SYS_clone);
        conditions.iter().any(|(at, comparison)| *at == 0 && fits(*comparison, flags as u64))
    }

    #[test]
    fn threads_are_no_processes_and_neither_makes_namespaces() {
        let list = || Seccomp::new(SeccompDefault::Kill);
        // As glibc makes a thread, and a process.
        let thread = libc::CLONE_VM
            | libc::CLONE_FS
            | libc::CLONE_FILES
            | libc::CLONE_SIGHAND
            | libc::CLONE_THREAD
            | libc::CLONE_SYSVSEM
            | libc::CLONE_SETTLS
            | libc::CLONE_PARENT_SETTID
            | libc::CLONE_CHILD_CLEARTID;
        let process = libc::CLONE_CHILD_CLEARTID | libc::CLONE_CHILD_SETTID | libc::SIGCHLD;
        assert!(clones(&list().threads(), thread) && clones(&list().processes(), thread));
        assert!(!clones(&list().threads(), process) && clones(&list().processes(), process));
        for namespace in [libc::CLONE_NEWUSER, libc::CLONE_NEWNET, libc::CLONE_NEWNS] {
            assert!(!clones(&list().threads(), thread | namespace));
            assert!(!clones(&list().processes(), process | namespace));
        }
    }

    #[test]
    fn a_tap_is_no_terminal() {
        // TUNSETOFFLOAD, TIOCSTI, KVM_RUN.
        assert!(fits(request::TAP, 0x4004_54d0) && !fits(request::TAP, 0x5412));
        assert!(fits(request::KVM, 0xae80) && !fits(request::VHOST, 0xae80));
    }
}
