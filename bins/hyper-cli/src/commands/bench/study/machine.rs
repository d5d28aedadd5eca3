//! What this host is and how busy it is, as `/proc` and `/sys` tell. What they do not tell stays empty.

use std::path::Path;

use hyper_bench::results::Machine;

/// Memory and disk that a bench must find.
pub struct Room {
    pub memory: u64,
    pub disk: u64,
}

pub fn machine(work: &Path, hyperd: &str) -> Machine {
    let cpuinfo = text("/proc/cpuinfo");
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let os = text("/etc/os-release");
    let os = os.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let uname = rustix::system::uname();
    let governor = text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
    let build = if cfg!(debug_assertions) { "debug" } else { "release" };
    Machine {
        os: os.unwrap_or_default().trim_matches('"').to_owned(),
        kernel: uname.release().to_string_lossy().into_owned(),
        cpu: field("model name").unwrap_or_default(),
        cpus: cpus(),
        memory_bytes: meminfo("MemTotal:"),
        virtual_machine: field("flags").is_some_and(|f| f.split(' ').any(|f| f == "hypervisor")),
        governor: Some(governor.trim().to_owned()).filter(|name| !name.is_empty()),
        file_system: file_system(work),
        hyper: format!("hyperd {hyperd}, hyper {} ({build})", env!("CARGO_PKG_VERSION")),
    }
}

pub fn cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1))
}

/// Load average of the last minute.
pub fn load() -> f64 {
    let text = text("/proc/loadavg");
    text.split(' ').next().and_then(|one| one.parse().ok()).unwrap_or(0.0)
}

/// Highest frequency that a CPU runs at.
pub fn megahertz() -> Option<f64> {
    let cpuinfo = text("/proc/cpuinfo");
    let lines = cpuinfo.lines().filter(|line| line.starts_with("cpu MHz"));
    let all = lines.filter_map(|line| line.split_once(':')?.1.trim().parse::<f64>().ok());
    all.max_by(f64::total_cmp)
}

/// Seconds of CPU time that all CPUs have spent on work since boot.
pub fn busy() -> f64 {
    let stat = text("/proc/stat");
    let fields = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks: Vec<f64> = fields.filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq
    let of = |index: usize| ticks.get(index).copied().unwrap_or(0.0);
    #[expect(clippy::cast_precision_loss, reason = "a hundred a second")]
    let hertz = rustix::param::clock_ticks_per_second() as f64;
    [0, 1, 2, 5, 6].map(of).iter().sum::<f64>() / hertz
}

/// Bytes that the kernel would give away.
pub fn available() -> u64 {
    meminfo("MemAvailable:")
}

/// Bytes free in the file system of a path.
pub fn free(path: &Path) -> std::io::Result<u64> {
    let found = rustix::fs::statvfs(path)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

fn meminfo(name: &str) -> u64 {
    let all = text("/proc/meminfo");
    let line = all.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// Type of the mount with the longest path above this one.
fn file_system(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mounts = text("/proc/self/mountinfo");
    let of = |line: &str| {
        let (fields, rest) = line.split_once(" - ")?;
        let place = fields.split(' ').nth(4)?.to_owned();
        path.starts_with(&place)
            .then(|| (place.len(), rest.split(' ').next().unwrap_or_default().to_owned()))
    };
    let longest = mounts.lines().filter_map(of).max_by_key(|(length, _)| *length);
    longest.map(|(_, kind)| kind).unwrap_or_default()
}

fn text(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
