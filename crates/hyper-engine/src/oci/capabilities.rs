//! Capabilities of a container's processes inside their guest.
//!
//! The default set is Docker's. They are capabilities over the guest's kernel, never over the
//! host's: `--privileged` is all of them, and still behind the pod's wall.

use std::collections::BTreeSet;

use crate::{Error, Result};

/// capabilities(7), by number.
const ALL: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

const DEFAULT: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// The set that `--privileged`, `--cap-add` and `--cap-drop` give; sorted.
///
/// # Errors
/// [`Error::Invalid`] for a name that is no capability.
pub(crate) fn resolve(
    privileged: bool,
    add: &[String],
    drop: &[String],
) -> Result<BTreeSet<&'static str>> {
    let (add, drop) = (names("--cap-add", add)?, names("--cap-drop", drop)?);
    if privileged {
        return Ok(ALL.into_iter().collect());
    }
    let mut set: BTreeSet<_> = match (&add, &drop) {
        (Names::All, _) => ALL.into_iter().collect(),
        (_, Names::All) => BTreeSet::new(),
        _ => DEFAULT.into_iter().collect(),
    };
    if let Names::Some(dropped) = &drop {
        set.retain(|name| !dropped.contains(name));
    }
    if let Names::Some(added) = add {
        set.extend(added);
    }
    Ok(set)
}

enum Names {
    All,
    Some(BTreeSet<&'static str>),
}

fn names(option: &str, given: &[String]) -> Result<Names> {
    let mut set = BTreeSet::new();
    let mut all = false;
    for name in given {
        let upper = name.trim().to_ascii_uppercase();
        if upper == "ALL" || upper == "CAP_ALL" {
            all = true;
            continue;
        }
        let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
        let known = ALL.into_iter().find(|known| *known == full).ok_or_else(|| {
            Error::Invalid(format!("{option}: `{name}` is not a capability of Linux"))
        })?;
        set.insert(known);
    }
    Ok(if all { Names::All } else { Names::Some(set) })
}

#[cfg(test)]
mod test {
    use super::*;

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn add_and_drop() {
        let set = resolve(false, &list(&["net_admin"]), &list(&["CAP_CHOWN"])).unwrap();
        assert!(set.contains("CAP_NET_ADMIN") && !set.contains("CAP_CHOWN"));
        assert_eq!(set.len(), DEFAULT.len());
        assert!(resolve(false, &[], &list(&["ALL"])).unwrap().is_empty());
        let one = resolve(false, &list(&["SYS_TIME"]), &list(&["all"])).unwrap();
        assert_eq!(one.into_iter().collect::<Vec<_>>(), ["CAP_SYS_TIME"]);
        let most = resolve(false, &list(&["ALL"]), &list(&["MKNOD"])).unwrap();
        assert_eq!(most.len(), ALL.len() - 1);
    }

    #[test]
    fn unknown_names_are_refused_by_name() {
        let error = resolve(true, &list(&["FLY"]), &[]).unwrap_err().to_string();
        assert!(error.contains("FLY"), "{error}");
    }
}
