//! Capability names and what a process keeps of them.

use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
};

use super::spec::Capabilities;
use crate::failure::{Doing, Outcome, invalid};

/// Names by number, `capabilities(7)`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Capability sets as the kernel has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sets {
    bounding: CapabilitySet,
    effective: CapabilitySet,
    permitted: CapabilitySet,
    inheritable: CapabilitySet,
    ambient: CapabilitySet,
}

impl Sets {
    /// # Errors
    /// A name that is no capability.
    pub(crate) fn parse(capabilities: &Capabilities) -> Outcome<Self> {
        Ok(Self {
            bounding: set("bounding", &capabilities.bounding)?,
            effective: set("effective", &capabilities.effective)?,
            permitted: set("permitted", &capabilities.permitted)?,
            inheritable: set("inheritable", &capabilities.inheritable)?,
            ambient: set("ambient", &capabilities.ambient)?,
        })
    }

    /// Drops what is not in the bounding set. Needs CAP_SETPCAP, so before anything is given up.
    pub(crate) fn bound(&self) -> Outcome<()> {
        for (number, name) in NAMES.iter().enumerate() {
            let capability = CapabilitySet::from_bits_retain(1 << number);
            if !self.bounding.contains(capability) {
                match remove_capability_from_bounding_set(capability) {
                    // Older than this list.
                    Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                    Err(error) => {
                        return Err(error).doing(|| format!("drop capability {name}"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes on the sets; the process's ids are those it ends up with.
    pub(crate) fn apply(&self) -> Outcome<()> {
        let _older_kernel = clear_ambient_capability_set();
        let sets = CapabilitySets {
            effective: self.effective,
            permitted: self.permitted,
            inheritable: self.inheritable,
        };
        set_capabilities(None, sets).doing(|| "set capabilities".to_owned())?;
        for capability in self.ambient.iter() {
            configure_capability_in_ambient_set(capability, true)
                .doing(|| format!("raise ambient capability {capability:?}"))?;
        }
        Ok(())
    }
}

fn set(name: &str, names: &[String]) -> Outcome<CapabilitySet> {
    let mut set = CapabilitySet::empty();
    for capability in names {
        let upper = capability.to_ascii_uppercase();
        let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
        let number = NAMES
            .iter()
            .position(|known| *known == short)
            .ok_or_else(|| invalid(format!("capabilities.{name}: {capability} is unknown")))?;
        set |= CapabilitySet::from_bits_retain(1 << number);
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_the_kernels_numbers() {
        let capabilities = Capabilities {
            bounding: vec!["CAP_CHOWN".to_owned(), "cap_checkpoint_restore".to_owned()],
            ..Capabilities::default()
        };
        let sets = Sets::parse(&capabilities).unwrap();
        assert_eq!(sets.bounding.bits(), 1 | 1 << 40);
        assert_eq!(set("x", &["SYS_ADMIN".to_owned()]).unwrap(), CapabilitySet::SYS_ADMIN);
        let wrong = set("effective", &["CAP_FLY".to_owned()]).unwrap_err();
        assert!(wrong.message.contains("CAP_FLY"));
    }
}
