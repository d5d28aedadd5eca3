//! Runs a hypervisor process with nothing but what it needs.
//!
//! ```text
//!  supervisor (host, many threads)                    [control socket: spec and fds down,
//!    │ posix_spawn                                      reports up; its end is the leash]
//!    ▼
//!  keeper   hyper-jail, host namespaces, no capabilities; makes and removes the cgroup
//!    │ clone(NEWNS|NEWPID|NEWNET|NEWIPC|NEWUTS[|NEWUSER])
//!    ▼
//!  init     pid 1 of the jail: builds the root, starts, reaps and reports
//!    │ fork
//!    ▼
//!  hypervisor   pid 2: own uid, own cgroup, empty root, no capabilities, seccomp, listed fds
//! ```
//!
//! States of a [`Jailed`]: `running ⇄ frozen`, either `──► ended` ([`JailExit`], once, kept).
//!
//! Invariants:
//! - Whatever ends first takes the rest with it: the supervisor (its socket closes), the keeper
//!   (init's parent-death signal), init (the kernel kills its pid namespace), the hypervisor (init
//!   reports and leaves). Nothing outlives the jail.
//! - The cgroup is removed by whichever of keeper and supervisor is alive; only killing both
//!   with SIGKILL leaves an empty directory, and the next jail of that name takes it over. The
//!   default parent `hyper` goes with its last jail, unless that one's supervisor was killed.
//! - A part of the jail this host cannot give is an error, but for resource limits whose cgroup
//!   controller is missing: they are listed by [`Jailed::missing`], never dropped in silence.
//! - The supervisor never forks: it is multi-threaded. All set-up happens in the small,
//!   single-threaded program `hyper-jail`, found beside the running program or in `HYPER_LIBEXEC`.

mod cgroup;
mod cpu;
mod delegation;
mod error;
mod grants;
mod ids;
mod jailed;
mod locate;
pub mod packet;
mod probe;
mod seccomp;
mod spawn;
mod spec;
mod usage;
#[doc(hidden)]
pub mod wire;

pub use cgroup::{IoHeld, IoRates};
pub use cpu::Waits;
pub use delegation::Delegation;
pub use error::JailError;
pub use grants::request;
pub use ids::in_user_namespace;
pub use jailed::{JailExit, Jailed, Outcome};
pub use locate::{Searched, find as find_program};
pub use probe::{Finding, can_freeze, probe};
pub use seccomp::{Comparison, Seccomp, SeccompDefault};
pub use spawn::spawn;
pub use spec::{Bind, JailSpec, Limits, Program, Resource};
pub use usage::{JailUsage, usage_of};

/// Parts that the launcher program shares with the library.
#[doc(hidden)]
pub mod launcher {
    pub use crate::cgroup::{Cgroups, Doors};

    /// See [`crate::ids`].
    #[must_use]
    pub fn pick_id(pid: u32) -> Option<u32> {
        crate::ids::pick(pid)
    }
}
