//! Which parts of the jail this host has; tried, not guessed, and without leaving a trace.

use std::fs;
use std::path::Path;

use crate::cgroup::Cgroups;
use crate::delegation::Delegation;
use crate::spec::Limits;
use crate::{ids, locate};

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// E.g. `jail: memory limit`.
    pub what: String,
    pub ok: bool,
    /// Without it no jail can be made.
    pub required: bool,
    /// What was seen, and when not ok what to do.
    pub detail: String,
}

/// Looks at the host. Blocking, a few milliseconds.
pub fn probe() -> Vec<Finding> {
    let root = rustix::process::geteuid().is_root();
    let mut found = vec![launcher(), privileges(root), seccomp()];
    found.extend(match Delegation::find() {
        None => cgroups(),
        Some(group) => delegated(&group),
    });
    if !root {
        found.push(delegation(Delegation::find().as_ref()));
    }
    found
}

/// Whether jails can be frozen here. Looks only, in well below a millisecond.
pub fn can_freeze() -> bool {
    Cgroups::locate(None, "probe").may_freeze()
}

fn finding(what: &str, ok: bool, required: bool, detail: impl Into<String>) -> Finding {
    Finding { what: format!("jail: {what}"), ok, required, detail: detail.into() }
}

fn launcher() -> Finding {
    match locate::launcher() {
        Ok(path) => finding("launcher", true, true, path.display().to_string()),
        Err(error) => finding("launcher", false, true, error.to_string()),
    }
}

fn privileges(root: bool) -> Finding {
    if root {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
        let lacking: Vec<&str> =
            NEEDED.iter().filter(|(bit, _)| mask >> bit & 1 == 0).map(|(_, name)| *name).collect();
        return if lacking.is_empty() && ids::in_user_namespace() {
            let few = ids::pick(std::process::id()).is_none();
            let detail = if few {
                "root of a user namespace with one uid, the same for every jail"
            } else {
                "root of a user namespace: a uid of it per jail"
            };
            finding("privileges", true, true, detail)
        } else if lacking.is_empty() {
            finding("privileges", true, true, "root: an own uid per jail")
        } else {
            let detail = format!("root without {}: grant them", lacking.join(", "));
            finding("privileges", false, true, detail)
        };
    }
    let most = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    let off = fs::read_to_string("/proc/sys/kernel/unprivileged_userns_clone")
        .is_ok_and(|text| text.trim() == "0")
        || fs::read_to_string("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
            .is_ok_and(|text| text.trim() == "1");
    if most.trim() == "0" || off {
        let detail = "not root, and user namespaces are off: run as root, or set sysctl \
                      kernel.unprivileged_userns_clone=1, user.max_user_namespaces>0 or \
                      kernel.apparmor_restrict_unprivileged_userns=0";
        finding("privileges", false, true, detail)
    } else {
        let detail = "not root: a user namespace with one uid, the same for every jail";
        finding("privileges", true, true, detail)
    }
}

/// Capabilities that the set-up uses (`capabilities(7)`).
const NEEDED: &[(u32, &str)] = &[
    (0, "CAP_CHOWN"),
    (6, "CAP_SETGID"),
    (7, "CAP_SETUID"),
    (8, "CAP_SETPCAP"),
    (21, "CAP_SYS_ADMIN"),
    (27, "CAP_MKNOD"),
];

fn seccomp() -> Finding {
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    if actions.contains("kill_process") {
        finding("seccomp", true, true, "filters, kill_process")
    } else {
        let detail = "the kernel has no seccomp filters: build it with CONFIG_SECCOMP_FILTER";
        finding("seccomp", false, true, detail)
    }
}

/// What a hyperd of this user could bound. Not tried: the group must be divided for it, and its processes moved.
fn delegated(group: &Delegation) -> Vec<Finding> {
    let mut found = Vec::new();
    for (what, controller) in
        [("memory limit", "memory"), ("process limit", "pids"), ("CPU share", "cpu")]
    {
        let ok = group.controllers.iter().any(|one| one == controller);
        let detail = if ok { "delegated cgroup controller" } else { "not delegated, see below" };
        found.push(finding(what, ok, false, detail));
    }
    found.push(finding("freezer", true, false, "cgroup freezer"));
    found
}

fn delegation(group: Option<&Delegation>) -> Finding {
    let detail = match group {
        None => "this user may divide no cgroup here, so a hyperd that is started here bounds nothing on the host: start \
                 it in a unit of `systemctl --user` with Delegate=yes, or by `systemd-run --user --scope -p Delegate=yes`"
            .to_owned(),
        Some(group) => {
            let (directory, here) = (group.directory.display(), group.controllers.join(" "));
            match group.missing.join(" ") {
                missing if missing.is_empty() => format!("{here} in {directory}"),
                missing => format!(
                    "{here} in {directory}, but not {missing}: `systemctl edit user@.service`, [Service], \
                     Delegate=cpu cpuset io memory pids"
                ),
            }
        }
    };
    let ok = group.is_some_and(|group| group.missing.is_empty());
    finding("delegated cgroup", ok, false, detail)
}

/// Makes a cgroup with every limit, looks what took, removes it.
fn cgroups() -> Vec<Finding> {
    let name = format!("probe-{}", std::process::id());
    let mut groups = Cgroups::locate(None, &name);
    let ask = [
        ("memory limit", Limits { memory_bytes: Some(64 << 20), ..Limits::default() }),
        ("process limit", Limits { pids: Some(64), ..Limits::default() }),
        ("CPU share", Limits { cpu_weight: Some(100), ..Limits::default() }),
    ];
    let mut found = Vec::new();
    let mut freezer = false;
    for (what, limits) in ask {
        found.push(match groups.create(&limits) {
            Ok(missing) if missing.is_empty() => finding(what, true, false, "cgroup controller"),
            Ok(missing) => finding(what, false, false, missing.join("; ")),
            Err(error) => {
                let detail = format!("{} {}: {}", error.doing, error.object, error.source);
                finding(what, false, false, detail)
            }
        });
        freezer |= groups.can_freeze();
        groups.remove(std::time::Duration::from_millis(100));
    }
    let detail = match (freezer, Path::new("/sys/fs/cgroup").exists()) {
        (true, _) => "cgroup freezer",
        (false, true) => "no cgroup v2 and no v1 freezer that we may use: pods cannot be paused",
        (false, false) => "no cgroup file system is mounted: pods cannot be paused",
    };
    found.push(finding("freezer", freezer, false, detail));
    found
}
