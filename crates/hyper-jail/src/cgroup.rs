//! The cgroup of a jail, in every hierarchy that matters: v2, v1, or both at once (hybrid).
//!
//! Made by the keeper, joined by the hypervisor only (init must be able to act while the jail is
//! frozen), removed by keeper or supervisor, whoever lives; so both derive the same paths from the
//! same mount table. Limits whose controller is missing are told, not an error; a limit that the
//! kernel refuses is an error.

mod io;

use std::fs::{self, File, OpenOptions};
use std::io::{Error as IoError, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use self::io::{IoHeld, IoRates};
use crate::delegation::divisible;
use crate::spec::Limits;

/// Parent of jails for which the adapter named none; removed with its last jail.
const DEFAULT_PARENT: &str = "hyper";
/// Those of v2 that hold a jail's limits.
pub(crate) const CONTROLLERS: [&str; 4] = ["memory", "pids", "cpu", "io"];

/// One mounted hierarchy.
#[derive(Debug, Clone)]
struct Hierarchy {
    root: PathBuf,
    v2: bool,
    /// v1 controllers mounted here; v2 says its own in `cgroup.controllers`.
    controllers: Vec<String>,
}

/// This jail's directory in one hierarchy.
#[derive(Debug, Clone)]
struct Place {
    hierarchy: Hierarchy,
    dir: PathBuf,
}

/// The directories of one jail, existing or not.
#[derive(Debug, Clone)]
pub struct Cgroups {
    places: Vec<Place>,
    /// Hierarchy roots in which the default parent is ours to remove.
    default_parent: bool,
}

/// Open files that lead into a jail's cgroups.
#[derive(Debug)]
pub struct Doors {
    /// The v2 directory: `clone3` puts a child right into it, which spares the wait for a grace
    /// period of RCU (5 to 15 ms) that moving a process costs.
    pub v2: Option<File>,
    /// v1 `cgroup.procs`: a process that writes `0` joins.
    pub procs: Vec<File>,
    /// The same of v2, for where `clone3` cannot.
    pub v2_procs: Option<File>,
}

/// A step that failed, with the object it failed on.
#[derive(Debug)]
pub struct CgroupError {
    pub doing: &'static str,
    pub object: String,
    pub source: IoError,
    pub hint: &'static str,
}

impl Cgroups {
    /// The directories of jail `name` below `parent`; touches nothing.
    pub fn locate(parent: Option<&str>, name: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = if all_ours() { None } else { own_v2_path() };
        let relative = parent.unwrap_or(DEFAULT_PARENT).trim_matches('/');
        let places = hierarchies(&mounts)
            .into_iter()
            .map(|hierarchy| {
                let mut dir = hierarchy.root.clone();
                if let (true, Some(own)) = (hierarchy.v2, &own) {
                    dir.push(own.trim_start_matches('/'));
                    dir = divisible(&dir).unwrap_or(dir);
                }
                dir.push(relative);
                dir.push(name);
                Place { hierarchy, dir }
            })
            .collect();
        Self { places, default_parent: parent.is_none() }
    }

    /// Makes the directories and sets the limits. Returns what this host could not give.
    ///
    /// # Errors
    /// The name is taken by living processes, or the kernel refuses a limit.
    pub fn create(&mut self, limits: &Limits) -> Result<Vec<String>, CgroupError> {
        let mut missing = Vec::new();
        let mut made = Vec::new();
        for place in self.places.iter().filter(|place| !place.is_lazy()) {
            match place.make() {
                Ok(()) => made.push(place.clone()),
                Err(error) if error.source.kind() == ErrorKind::ResourceBusy => {
                    remove(&made);
                    return Err(error);
                }
                Err(error) => missing.push(format!(
                    "cgroup `{}` cannot be made ({}): run as root or delegate a cgroup",
                    error.object, error.source
                )),
            }
        }
        let set = self.set_limits(limits, &made, &mut missing);
        if let Err(error) = set {
            remove(&made);
            return Err(error);
        }
        Ok(missing)
    }

    fn set_limits(
        &self,
        limits: &Limits,
        made: &[Place],
        missing: &mut Vec<String>,
    ) -> Result<(), CgroupError> {
        let find = |controller: &str| made.iter().find(|place| place.has(controller));
        if let Some(bytes) = limits.memory_bytes {
            match find("memory") {
                Some(place) if place.hierarchy.v2 => {
                    place.write("memory.max", &bytes.to_string())?;
                    // Swap and group kill are refinements that old kernels do not have.
                    let _ = place.write("memory.swap.max", "0");
                    let _ = place.write("memory.oom.group", "1");
                }
                Some(place) => {
                    place.write("memory.limit_in_bytes", &bytes.to_string())?;
                    let _ = place.write("memory.memsw.limit_in_bytes", &bytes.to_string());
                }
                None => missing.push(format!("memory limit of {bytes} bytes: {NO_CONTROLLER}")),
            }
        }
        if let Some(pids) = limits.pids {
            match find("pids") {
                Some(place) => place.write("pids.max", &pids.to_string())?,
                None => missing.push(format!("limit of {pids} processes: {NO_CONTROLLER}")),
            }
        }
        if let Some(weight) = limits.cpu_weight {
            match find("cpu") {
                Some(place) if place.hierarchy.v2 => {
                    place.write("cpu.weight", &weight.clamp(1, 10_000).to_string())?;
                }
                Some(place) => {
                    let shares = (weight.saturating_mul(1024) / 100).clamp(2, 262_144);
                    place.write("cpu.shares", &shares.to_string())?;
                }
                None => missing.push(format!("CPU weight {weight}: {NO_CONTROLLER}")),
            }
        }
        if let Some((quota, period)) = limits.cpu_quota {
            match find("cpu") {
                Some(place) if place.hierarchy.v2 => {
                    place.write("cpu.max", &format!("{quota} {period}"))?;
                }
                Some(place) => {
                    place.write("cpu.cfs_period_us", &period.to_string())?;
                    place.write("cpu.cfs_quota_us", &quota.to_string())?;
                }
                None => missing.push(format!("CPU quota {quota}/{period} µs: {NO_CONTROLLER}")),
            }
        }
        Ok(())
    }

    /// Changes weight and quota of a jail that runs; false: there is no controller for it.
    ///
    /// # Errors
    /// The kernel refuses a value.
    pub fn set_cpu(&self, weight: u64, quota: Option<(u64, u64)>) -> Result<bool, CgroupError> {
        let there = self.places.iter().filter(|place| place.dir.is_dir());
        let Some(place) = there.into_iter().find(|place| place.has("cpu")) else {
            return Ok(false);
        };
        if place.hierarchy.v2 {
            place.write("cpu.weight", &weight.clamp(1, 10_000).to_string())?;
            let text = quota.map_or_else(
                || "max 100000".to_owned(),
                |(quota, period)| format!("{quota} {period}"),
            );
            place.write("cpu.max", &text)?;
        } else {
            let shares = (weight.saturating_mul(1024) / 100).clamp(2, 262_144);
            place.write("cpu.shares", &shares.to_string())?;
            if let Some((_, period)) = quota {
                place.write("cpu.cfs_period_us", &period.to_string())?;
            }
            let text = quota.map_or_else(|| "-1".to_owned(), |(quota, _)| quota.to_string());
            place.write("cpu.cfs_quota_us", &text)?;
        }
        Ok(true)
    }

    /// Changes the memory limit of a jail that runs; false: there is no controller for it.
    ///
    /// # Errors
    /// The kernel refuses the value, as cgroup v1 does one that is below what is used.
    pub fn set_memory(&self, bytes: u64) -> Result<bool, CgroupError> {
        let there = self.places.iter().filter(|place| place.dir.is_dir());
        let Some(place) = there.into_iter().find(|place| place.has("memory")) else {
            return Ok(false);
        };
        let bytes = bytes.to_string();
        if place.hierarchy.v2 {
            place.write("memory.max", &bytes)?;
            return Ok(true);
        }
        // Memory with swap is never less than memory: when it grows that one goes first. Kernels
        // without swap accounting have only the other.
        let (plain, with_swap) = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes");
        let _ = place.write(with_swap, &bytes);
        place.write(plain, &bytes)?;
        let _ = place.write(with_swap, &bytes);
        Ok(true)
    }

    /// The ways into the jail's cgroups.
    ///
    /// # Errors
    /// A directory that was made has gone.
    pub fn doors(&self) -> Result<Doors, CgroupError> {
        let mut doors = Doors { v2: None, procs: Vec::new(), v2_procs: None };
        for place in self.places.iter().filter(|place| place.dir.is_dir()) {
            let fail = |path: &Path, source| CgroupError {
                doing: "open",
                object: path.display().to_string(),
                source,
                hint: "",
            };
            let path = place.dir.join("cgroup.procs");
            let procs =
                OpenOptions::new().write(true).open(&path).map_err(|error| fail(&path, error))?;
            if place.hierarchy.v2 {
                let dir = File::open(&place.dir).map_err(|error| fail(&place.dir, error))?;
                doors.v2 = Some(dir);
                doors.v2_procs = Some(procs);
            } else {
                doors.procs.push(procs);
            }
        }
        Ok(doors)
    }

    /// The file that counts OOM kills, if the memory controller is here.
    pub fn oom_file(&self) -> Option<File> {
        let place = self.places.iter().find(|place| place.has("memory") && place.dir.is_dir())?;
        let file = if place.hierarchy.v2 { "memory.events" } else { "memory.oom_control" };
        File::open(place.dir.join(file)).ok()
    }

    /// The v1 freezer's file, when v2 is not here: init thaws through it before it leaves, as a
    /// frozen v1 process does not take SIGKILL.
    pub fn v1_freezer(&self) -> Option<File> {
        let (path, v2) = self.freezer_file()?;
        if v2 { None } else { OpenOptions::new().write(true).open(path).ok() }
    }

    /// True when the whole jail can be stopped.
    pub fn can_freeze(&self) -> bool {
        self.freezer_file().is_some()
    }

    /// Asks the kernel to stop or to continue all processes; [`Cgroups::is_frozen`] tells when.
    ///
    /// # Errors
    /// No freezer, or the write failed.
    pub fn freeze(&self, stop: bool) -> std::io::Result<()> {
        let (path, v2) =
            self.freezer_file().ok_or_else(|| IoError::from(ErrorKind::Unsupported))?;
        let word = match (v2, stop) {
            (true, true) => "1",
            (true, false) => "0",
            (false, true) => "FROZEN",
            (false, false) => "THAWED",
        };
        OpenOptions::new().write(true).open(path)?.write_all(word.as_bytes())
    }

    /// Whether all processes are stopped.
    ///
    /// # Errors
    /// No freezer, or it cannot be read.
    pub fn is_frozen(&self) -> std::io::Result<bool> {
        let (path, v2) =
            self.freezer_file().ok_or_else(|| IoError::from(ErrorKind::Unsupported))?;
        if v2 {
            let events = fs::read_to_string(path.with_file_name("cgroup.events"))?;
            Ok(events.lines().any(|line| line == "frozen 1"))
        } else {
            Ok(fs::read_to_string(path)?.trim() == "FROZEN")
        }
    }

    /// Whether [`Cgroups::can_freeze`] is to be expected once the directories are there.
    pub fn may_freeze(&self) -> bool {
        let parents = self.places.iter().filter(|place| {
            place.hierarchy.v2 || place.hierarchy.controllers.iter().any(|word| word == "freezer")
        });
        parents.into_iter().any(|place| {
            // The deepest directory that is there must be ours to make directories in.
            let there = place.dir.ancestors().find(|dir| dir.is_dir());
            there.is_some_and(|dir| rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).is_ok())
        })
    }

    fn freezer_file(&self) -> Option<(PathBuf, bool)> {
        let v2 = self.places.iter().filter(|place| place.hierarchy.v2);
        let v1 = self.places.iter().filter(|place| place.has("freezer"));
        v2.map(|place| (place.dir.join("cgroup.freeze"), true))
            .chain(v1.map(|place| (place.dir.join("freezer.state"), false)))
            .find(|(path, _)| path.exists())
    }

    /// Processes of the jail, as this process numbers them; `None` without a cgroup.
    pub fn processes(&self) -> Option<Vec<u32>> {
        self.places.iter().find(|place| place.dir.is_dir()).map(Place::processes)
    }

    /// CPU time of all processes of the jail, ended ones included.
    pub fn cpu(&self) -> Option<Duration> {
        for place in &self.places {
            if place.hierarchy.v2 {
                let Ok(text) = fs::read_to_string(place.dir.join("cpu.stat")) else { continue };
                let us = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
                return us.parse().ok().map(Duration::from_micros);
            }
            if place.has("cpuacct") {
                let Ok(text) = fs::read_to_string(place.dir.join("cpuacct.usage")) else {
                    continue;
                };
                return text.trim().parse().ok().map(Duration::from_nanos);
            }
        }
        None
    }

    /// True when nothing is left.
    pub fn are_gone(&self) -> bool {
        self.places.iter().all(|place| !place.dir.exists())
    }

    /// Removes the directories; waits for processes that are about to end, at most `patience`.
    pub fn remove(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        loop {
            remove(&self.places);
            if self.are_gone() || Instant::now() >= deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.remove_default_parent();
    }

    /// Removes the parent if it is our own and empty. The keeper may not where root's directory
    /// is read-only to root without capabilities; so the supervisor tries, too.
    pub fn remove_default_parent(&self) {
        if self.default_parent {
            for place in &self.places {
                // Refused while other jails are in it, as it should be.
                let _ = place.dir.parent().map(fs::remove_dir);
            }
        }
    }
}

const NO_CONTROLLER: &str = "this host has no such cgroup controller (or none delegated to us)";

fn remove(places: &[Place]) {
    for place in places {
        let _ = fs::remove_dir(&place.dir);
    }
}

impl Place {
    /// Makes the directory afresh, so that no limit of a dead jail is inherited.
    fn make(&self) -> Result<(), CgroupError> {
        let fail = |doing, source, hint| CgroupError {
            doing,
            object: self.dir.display().to_string(),
            source,
            hint,
        };
        let parent = self.dir.parent().unwrap_or(&self.hierarchy.root);
        // A neighbour may remove the (empty) parent between our two calls: try again.
        for attempt in 0.. {
            fs::create_dir_all(parent).map_err(|source| fail("make", source, ""))?;
            if self.hierarchy.v2 {
                self.enable(parent);
            }
            match fs::create_dir(&self.dir) {
                Ok(()) => break,
                Err(error) if error.kind() == ErrorKind::NotFound && attempt < 20 => {}
                Err(error) if error.kind() == ErrorKind::AlreadyExists && attempt < 20 => {
                    fs::remove_dir(&self.dir).map_err(|source| {
                        fail("take over", source, "a living jail has this name")
                    })?;
                }
                Err(source) => return Err(fail("make", source, "")),
            }
        }
        Ok(())
    }

    /// Hands the controllers down from the root to `parent`, as far as each level has them.
    fn enable(&self, parent: &Path) {
        let Ok(below) = parent.strip_prefix(&self.hierarchy.root) else { return };
        let mut dir = self.hierarchy.root.clone();
        let mut levels = vec![dir.clone()];
        for part in below {
            dir.push(part);
            levels.push(dir.clone());
        }
        for level in levels {
            // One that is not the root would become a thread root, below which no process can be.
            if level != self.hierarchy.root && !processes(&level).is_empty() {
                continue;
            }
            let has = fs::read_to_string(level.join("cgroup.controllers")).unwrap_or_default();
            let on = fs::read_to_string(level.join("cgroup.subtree_control")).unwrap_or_default();
            for controller in CONTROLLERS {
                let is_in = |list: &str| list.split_whitespace().any(|word| word == controller);
                if is_in(&has) && !is_in(&on) {
                    // Refused where processes sit in the parent; then the limit is reported
                    // missing.
                    let _ =
                        fs::write(level.join("cgroup.subtree_control"), format!("+{controller}"));
                }
            }
        }
    }

    /// Made only when it is needed, see [`Cgroups::set_io`].
    fn is_lazy(&self) -> bool {
        !self.hierarchy.v2 && self.hierarchy.controllers == ["blkio"]
    }

    fn processes(&self) -> Vec<u32> {
        processes(&self.dir)
    }

    fn has(&self, controller: &str) -> bool {
        if self.hierarchy.v2 {
            fs::read_to_string(self.dir.join("cgroup.controllers"))
                .is_ok_and(|list| list.split_whitespace().any(|word| word == controller))
        } else {
            self.hierarchy.controllers.iter().any(|word| word == controller)
        }
    }

    fn write(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        let path = self.dir.join(file);
        fs::write(&path, value).map_err(|source| CgroupError {
            doing: "set cgroup limit",
            object: format!("{} = {value}", path.display()),
            source,
            hint: "the kernel refuses the value",
        })
    }
}

/// Processes of a cgroup itself.
pub(crate) fn processes(directory: &Path) -> Vec<u32> {
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// The hierarchies worth joining, from a mount table (`proc(5)`, mountinfo).
fn hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let mut right = right.split(' ');
        let kind = right.next().unwrap_or_default();
        let options = right.nth(1).unwrap_or_default();
        let Some(root) = left.split(' ').nth(4) else { continue };
        let root = PathBuf::from(root);
        if found.iter().any(|hierarchy| hierarchy.root == root) {
            continue;
        }
        match kind {
            "cgroup2" => found.push(Hierarchy { root, v2: true, controllers: Vec::new() }),
            "cgroup" => {
                let wanted = ["memory", "pids", "cpu", "cpuacct", "freezer", "blkio"];
                let controllers: Vec<String> = options
                    .split(',')
                    .filter(|option| wanted.contains(option))
                    .map(str::to_owned)
                    .collect();
                if !controllers.is_empty() {
                    found.push(Hierarchy { root, v2: false, controllers });
                }
            }
            _ => {}
        }
    }
    // A second mount of one hierarchy adds nothing; v2 makes the v1 freezer and cpuacct needless.
    let v2 = found.iter().any(|hierarchy| hierarchy.v2);
    let mut seen: Vec<String> = Vec::new();
    found.retain(|hierarchy| {
        let key = if hierarchy.v2 { "v2".to_owned() } else { hierarchy.controllers.join(",") };
        let needless = v2 && !hierarchy.v2 && (key == "freezer" || key == "cpuacct");
        let keep = !needless && !seen.contains(&key);
        seen.push(key);
        keep
    });
    found
}

/// Whether every cgroup may be changed, and not just some that this process's user was given.
pub(crate) fn all_ours() -> bool {
    rustix::process::geteuid().is_root() && !crate::ids::in_user_namespace()
}

/// Where v2 is mounted.
pub(crate) fn v2_root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    hierarchies(&mounts).into_iter().find(|one| one.v2).map(|one| one.root)
}

/// The group of v2 that this process is in.
pub(crate) fn own_v2_path() -> Option<String> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 29 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
31 29 0:27 / /sys/fs/cgroup/cpuacct rw - cgroup cgroup rw,cpuacct
33 29 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
35 29 0:31 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
36 29 0:32 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio
39 29 0:35 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";

    #[test]
    fn a_hybrid_host_gives_v2_and_the_v1_controllers_that_v2_lacks() {
        let roots: Vec<_> = hierarchies(HYBRID).into_iter().map(|found| found.root).collect();
        let want: Vec<PathBuf> = ["cpu", "memory", "blkio", "unified"]
            .iter()
            .map(|name| Path::new("/sys/fs/cgroup").join(name))
            .collect();
        assert_eq!(roots, want);
    }

    #[test]
    fn without_v2_the_freezer_and_cpuacct_are_joined_too() {
        let v1: String = HYBRID.lines().take(4).map(|line| format!("{line}\n")).collect();
        assert_eq!(hierarchies(&v1).len(), 4);
    }

    #[test]
    fn joined_controllers_are_one_hierarchy() {
        let table = "1 2 0:1 / /c/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n";
        let found = hierarchies(table);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].controllers, ["cpu", "cpuacct"]);
    }
}
