//! The cgroup (v2) of a container: limits, freezing, killing, counting.
//!
//! The agent stays in the root cgroup; below it is the one of all containers, and in that one for
//! each, in which its processes are born. A container with a cgroup namespace may make cgroups of
//! its own further down.

mod devices;
mod stats;

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use hyper_link::message::FailureKind;
use rustix::fs::{Mode, OFlags, open};

use crate::{
    failure::{Doing as _, Outcome, failure, invalid, unsupported},
    kernel_file,
    oci::spec::{Cpu, Memory, Resources},
};

/// Where cgroup2 is mounted.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";
/// What all containers are in, below [`ROOT`].
const CONTAINERS: &str = "containers";
/// How long freezing may take.
const FREEZE_DEADLINE: Duration = Duration::from_secs(10);
/// How long killed processes may take to end.
const END_DEADLINE: Duration = Duration::from_secs(10);
/// How often an outcome is looked at.
const POLL: Duration = Duration::from_millis(1);

/// Passes every controller on to the children of `directory`.
///
/// # Errors
/// The list of controllers cannot be read. One that cannot be passed on is left out.
fn delegate(directory: &Path) -> io::Result<()> {
    let controllers = fs::read_to_string(directory.join("cgroup.controllers"))?;
    let words: Vec<String> =
        controllers.split_whitespace().map(|name| format!("+{name}")).collect();
    let control = directory.join("cgroup.subtree_control");
    if kernel_file::put(&control, &words.join(" ")).is_err() {
        for word in words {
            // Missing files of this controller are reported when a limit needs them.
            let _left_out = kernel_file::put(&control, &word);
        }
    }
    Ok(())
}

/// Makes the cgroup that all containers are in.
///
/// # Errors
/// It cannot be made.
pub(crate) fn prepare() -> io::Result<()> {
    delegate(Path::new(ROOT))?;
    fs::create_dir(containers())?;
    delegate(&containers())
}

/// Bounds the memory of all containers together; 0: no bound. What they use beyond it is reclaimed;
/// where that is not enough nothing changes. Waits: not on the agent's thread.
pub(crate) fn limit_containers(memory_bytes: u64) -> Outcome<()> {
    let all = Cgroup { path: containers() };
    if memory_bytes == 0 {
        return all.set("memory.max", "max");
    }
    let used = || -> Outcome<u64> {
        let text = all.get("memory.current")?;
        let wrong = |_| failure(FailureKind::Internal, format!("memory.current is `{text}`"));
        text.trim().parse().map_err(wrong)
    };
    let beyond = used()?.saturating_sub(memory_bytes);
    if beyond > 0 {
        // It fails where less than that could be reclaimed: what counts is what is left.
        let _some = kernel_file::put(all.path.join("memory.reclaim"), &beyond.to_string());
    }
    let left = used()?;
    if left > memory_bytes {
        return Err(failure(
            FailureKind::Conflict,
            format!(
                "the containers use {left} bytes of memory that cannot be reclaimed, more than the \
                 {memory_bytes} they are to be left with"
            ),
        ));
    }
    all.set("memory.max", &memory_bytes.to_string())
}

/// A container's cgroup.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes the cgroup of container `id`, without limits.
    pub(crate) fn create(id: &str) -> Outcome<Self> {
        let path = containers().join(id);
        fs::create_dir(&path).doing(|| format!("make cgroup {}", path.display()))?;
        Ok(Self { path })
    }

    /// The cgroup of the guest's own processes that use programs of container `id`: made when it
    /// is not there. No container's id has a comma.
    pub(crate) fn of_guest(id: &str) -> Outcome<Self> {
        let path = Path::new(ROOT).join(format!("guest,{id}"));
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(error).doing(|| format!("make cgroup {}", path.display()))
            }
            _ => Ok(Self { path }),
        }
    }

    /// [`Self::of_guest`], if it is there.
    pub(crate) fn if_of_guest(id: &str) -> Option<Self> {
        let path = Path::new(ROOT).join(format!("guest,{id}"));
        path.exists().then_some(Self { path })
    }

    /// For giving birth to processes in it.
    pub(crate) fn directory(&self) -> Outcome<OwnedFd> {
        directory(&self.path).doing(|| format!("open cgroup {}", self.path.display()))
    }

    /// Sets the limits that are given and leaves the others. May wait for memory to be reclaimed.
    pub(crate) fn apply(&self, resources: &Resources) -> Outcome<()> {
        if let Some(memory) = &resources.memory {
            self.apply_memory(*memory)?;
        }
        if let Some(cpu) = &resources.cpu {
            self.apply_cpu(cpu)?;
        }
        if let Some(limit) = resources.pids.and_then(|pids| pids.limit) {
            self.set("pids.max", &maximum(limit))?;
        }
        let weight = resources.block_io.as_ref().and_then(|io| io.weight);
        if let Some(weight) = weight.filter(|weight| *weight > 0) {
            self.set("io.weight", &weight.to_string())?;
        }
        for limit in &resources.hugepage_limits {
            let file = format!("hugetlb.{}.max", limit.page_size);
            // A guest without huge pages has none to limit.
            if limit.limit > 0 || self.has(&file) {
                self.set(&file, &limit.limit.to_string())?;
            }
        }
        for (file, value) in &resources.unified {
            if file.contains('/') || !file.contains('.') {
                return Err(invalid(format!("linux.resources.unified: {file} is no cgroup file")));
            }
            if self.limits_nothing(file, value) {
                continue;
            }
            self.set(file, value)?;
        }
        Ok(())
    }

    /// A limit of what a guest does not have: swap, which Kubernetes bounds for every container, and huge pages.
    fn limits_nothing(&self, file: &str, value: &str) -> bool {
        let none = matches!(value, "0" | "max");
        let absent = file.starts_with("memory.swap.")
            || file.starts_with("memory.zswap.")
            || (file.starts_with("hugetlb.") && none);
        absent && !self.has(file)
    }

    /// Holds reads and writes of each of `disks`, device nodes, to the rates of `resources`.
    pub(crate) fn throttle<'a>(
        &self,
        resources: &Resources,
        disks: impl Iterator<Item = &'a str>,
    ) -> Outcome<()> {
        let Some(wanted) = &resources.block_io else { return Ok(()) };
        let rates = [
            ("rbps", &wanted.throttle_read_bps_device),
            ("wbps", &wanted.throttle_write_bps_device),
            ("riops", &wanted.throttle_read_iops_device),
            ("wiops", &wanted.throttle_write_iops_device),
        ];
        let mut words = String::new();
        for (key, rates) in rates {
            // Docker's 0 is no bound.
            if let Some(rate) = rates.iter().map(|one| one.rate).filter(|rate| *rate > 0).min() {
                words.push_str(&format!(" {key}={rate}"));
            }
        }
        if words.is_empty() {
            return Ok(());
        }
        for disk in disks.filter(|disk| !disk.is_empty()) {
            let number = rustix::fs::stat(disk).doing(|| format!("look at disk {disk}"))?.st_rdev;
            let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
            self.set("io.max", &format!("{major}:{minor}{words}"))?;
        }
        Ok(())
    }

    /// Lets the container open the devices that `resources` allows, and no others.
    pub(crate) fn restrict_devices(&self, resources: &Resources) -> Outcome<()> {
        if resources.devices.is_empty() {
            return Ok(());
        }
        let program = devices::compile(&resources.devices)?;
        crate::sys::attach_device_program(std::os::fd::AsFd::as_fd(&self.directory()?), &program)
            .doing(|| format!("restrict the devices of {}", self.path.display()))
    }

    fn apply_memory(&self, memory: Memory) -> Outcome<()> {
        if let Some(limit) = memory.limit.filter(|limit| *limit != 0) {
            self.set("memory.max", &maximum(limit))?;
            // Without swap in the guest there is no such file, and nothing to limit.
            if let Some(swap) = memory.swap.filter(|_| self.has("memory.swap.max")) {
                self.set(
                    "memory.swap.max",
                    &maximum(if swap < 0 { -1 } else { (swap - limit).max(0) }),
                )?;
            }
        }
        if let Some(reservation) = memory.reservation.filter(|reservation| *reservation != 0) {
            self.set("memory.low", &maximum(reservation))?;
        }
        Ok(())
    }

    fn apply_cpu(&self, cpu: &Cpu) -> Outcome<()> {
        if let Some(shares) = cpu.shares.filter(|shares| *shares != 0) {
            // From 2…262144 to 1…10000, as runc and crun do.
            let shares = shares.clamp(2, 262_144);
            self.set("cpu.weight", &(1 + (shares - 2) * 9999 / 262_142).to_string())?;
        }
        if cpu.quota.is_some() || cpu.period.is_some() {
            let quota = cpu.quota.filter(|quota| *quota > 0);
            let quota = quota.map_or_else(|| "max".to_owned(), |quota| quota.to_string());
            let period = cpu.period.filter(|period| *period != 0).unwrap_or(100_000);
            self.set("cpu.max", &format!("{quota} {period}"))?;
        }
        if let Some(burst) = cpu.burst {
            self.set("cpu.max.burst", &burst.to_string())?;
        }
        if let Some(idle) = cpu.idle {
            self.set("cpu.idle", &idle.to_string())?;
        }
        for (file, value) in [("cpuset.cpus", &cpu.cpus), ("cpuset.mems", &cpu.mems)] {
            if !value.is_empty() {
                self.set(file, value)?;
            }
        }
        Ok(())
    }

    /// Freezes or thaws, and waits until it is so.
    pub(crate) async fn freeze(&self, frozen: bool) -> Outcome<()> {
        self.set("cgroup.freeze", if frozen { "1" } else { "0" })?;
        let wanted = if frozen { "frozen 1" } else { "frozen 0" };
        let watching = async {
            while !self.get("cgroup.events")?.lines().any(|line| line == wanted) {
                tokio::time::sleep(POLL).await;
            }
            Ok(())
        };
        let outcome = tokio::time::timeout(FREEZE_DEADLINE, watching).await;
        outcome.doing(|| format!("wait for \"{wanted}\" in {}", self.path.display()))?
    }

    /// Whether it is frozen: a process born in it would not run either.
    pub(crate) fn is_frozen(&self) -> bool {
        self.get("cgroup.events").is_ok_and(|text| text.lines().any(|line| line == "frozen 1"))
    }

    /// Kills every process in it, also those that fork while it happens.
    pub(crate) fn kill(&self) -> Outcome<()> {
        self.set("cgroup.kill", "1")
    }

    /// Sends `signal` to every process in it.
    pub(crate) fn signal(&self, signal: i32) -> Outcome<()> {
        for pid in self.processes()?.into_iter().filter_map(|pid| i32::try_from(pid).ok()) {
            // Those that have ended meanwhile need no signal.
            let _ended = crate::sys::kill(pid, signal);
        }
        Ok(())
    }

    /// Ids of all processes in it and below it, as the agent sees them.
    pub(crate) fn processes(&self) -> Outcome<Vec<u32>> {
        let mut pids = Vec::new();
        let mut directories = vec![self.path.clone()];
        while let Some(directory) = directories.pop() {
            let text = fs::read_to_string(directory.join("cgroup.procs"))
                .doing(|| format!("read the processes of {}", directory.display()))?;
            pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
            directories.extend(children(&directory));
        }
        pids.sort_unstable();
        Ok(pids)
    }

    /// How many processes the OOM killer has ended in it.
    pub(crate) fn oom_kills(&self) -> u64 {
        self.get("memory.events").map_or(0, |text| stats::field(&text, "oom_kill"))
    }

    /// Readable with priority whenever `memory.events` has changed.
    pub(crate) fn memory_events(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(open(self.path.join("memory.events"), flags, Mode::empty())?)
    }

    /// Removes it and those below it, once the last process has ended, for which it waits: not
    /// on the agent's thread.
    pub(crate) fn remove(&self) -> Outcome<()> {
        let start = Instant::now();
        let populated = || {
            self.get("cgroup.events")
                .is_ok_and(|text| text.lines().any(|line| line == "populated 1"))
        };
        while populated() && start.elapsed() < END_DEADLINE {
            std::thread::sleep(POLL);
        }
        fn remove(directory: &Path) -> io::Result<()> {
            children(directory).iter().try_for_each(|child| remove(child))?;
            fs::remove_dir(directory)
        }
        match remove(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).doing(|| format!("remove cgroup {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }

    fn has(&self, file: &str) -> bool {
        self.path.join(file).exists()
    }

    fn get(&self, file: &str) -> Outcome<String> {
        let path = self.path.join(file);
        fs::read_to_string(&path).doing(|| format!("read {}", path.display()))
    }

    fn set(&self, file: &str, value: &str) -> Outcome<()> {
        let path = self.path.join(file);
        match kernel_file::put(&path, value) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.path.exists() => {
                Err(unsupported(format!("limit {file}={value}: not in this guest kernel")))
            }
            outcome => outcome.doing(|| format!("set {file}={value} in {}", self.path.display())),
        }
    }
}

fn containers() -> PathBuf {
    Path::new(ROOT).join(CONTAINERS)
}

/// Opens the cgroup directory `path` for [`crate::sys::fork`].
pub(crate) fn directory(path: &Path) -> rustix::io::Result<OwnedFd> {
    open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn children(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

fn maximum(value: i64) -> String {
    if value <= 0 { "max".to_owned() } else { value.to_string() }
}
