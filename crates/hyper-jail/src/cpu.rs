//! Keeps all of a jail on one CPU, and finds it a better one when it has to wait there.
//!
//! For a guest that is many host processes of which only one can run at a time (user-mode Linux),
//! a second CPU is no help and each switch between two of them is an interrupt and a cold cache.
//! The kernel chose the least busy CPU when it made the process; the launcher stays there
//! ([`crate::JailSpec::one_cpu`]). What the kernel's balancer can then no longer do is done here:
//!
//! ```text
//! every PERIOD ─► used ≥ BUSY? ─► waited ≥ LATE? ─► would it get more elsewhere? ─► coin ─► move
//! ```
//!
//! What it gets here is what it used and what is idle beside it: a jail whose own processes stand
//! in each other's way gains nothing by moving. The coin keeps two jails that share a CPU from leaving it for the same other one, for ever.
//! Another jail whose work is done by turns with this one's follows it ([`follow`]).
//! A host that does not tell how long tasks wait (no CONFIG_SCHED_INFO) leaves a jail where it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::cgroup::Cgroups;

/// Often enough for a person to see no stall, seldom enough to cost an idle pod nothing.
const PERIOD: Duration = Duration::from_millis(500);
/// Share of a period below which a jail is idle and not looked at any closer.
const BUSY: f64 = 0.1;
/// Share of a period that a jail may wait for its CPU.
const LATE: f64 = 0.1;
/// Share of a period that it must gain.
const GAIN: f64 = 0.1;

/// The CPUs that a jail may be on: its supervisor's, or some of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Allowed(Arc<Mutex<Vec<usize>>>);

impl Allowed {
    /// Those of this process.
    pub fn all() -> Self {
        Self(Arc::new(Mutex::new(own())))
    }

    /// Those of `wanted` that this process has; `None`: all that it has.
    ///
    /// # Errors
    /// It has none of them.
    pub fn change(&self, wanted: Option<&BTreeSet<usize>>) -> io::Result<Vec<usize>> {
        let mut cpus = own();
        cpus.retain(|cpu| wanted.is_none_or(|wanted| wanted.contains(cpu)));
        if cpus.is_empty() {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        self.lock().clone_from(&cpus);
        Ok(cpus)
    }

    /// Fewer than this process has.
    pub fn is_narrowed(&self) -> bool {
        *self.lock() != own()
    }

    fn now(&self) -> Vec<usize> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn own() -> Vec<usize> {
    let own = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
    (0..CpuSet::MAX_CPU).filter(|cpu| own.is_set(*cpu)).collect()
}

/// Moves a jail, whose program is `pid`, to some CPUs: to one of them if it is to be on one. Blocking.
pub(crate) fn place(
    cgroups: Option<&Cgroups>,
    pid: u32,
    cpus: &[usize],
    one: bool,
) -> io::Result<()> {
    let pids = cgroups.map_or_else(|| vec![pid], |cgroups| processes(cgroups, pid));
    match (one, only(pid)) {
        (true, Some(here)) if cpus.contains(&here) => Ok(()),
        // The watch finds a better one, if there is.
        (true, _) => move_all(&pids, &cpus[pid as usize % cpus.len()..][..1]),
        (false, _) => move_all(&pids, cpus),
    }
}

/// Watches over the jail of `cgroups`, whose program is `pid`, until it is dropped.
pub(crate) async fn watch(cgroups: Cgroups, pid: u32, allowed: Allowed) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before: Option<(Instant, Seen)> = None;
    loop {
        ticks.tick().await;
        let (groups, cpus) = (cgroups.clone(), allowed.now());
        if cpus.len() < 2 {
            before = None;
            continue;
        }
        let used = before.as_ref().map(|(_, seen)| seen.used);
        // Reads of /proc and /sys: short, but file operations all the same.
        let look = move || Seen::now(&groups, pid, used, &cpus);
        let Ok(Some(seen)) = tokio::task::spawn_blocking(look).await else { return };
        let now = Instant::now();
        let target = before.as_ref().and_then(|(then, old)| {
            better(old, &seen, here(pid), now.duration_since(*then)).filter(|_| heads())
        });
        if let Some(cpu) = target {
            let groups = cgroups.clone();
            let moved = move || move_all(&processes(&groups, pid), &[cpu]);
            let moved = tokio::task::spawn_blocking(moved).await;
            // A host that forbids it (a cpuset that has shrunk) has a slower jail, not a broken one.
            if !matches!(moved, Ok(Ok(()))) {
                return;
            }
        }
        before = Some((now, seen));
    }
}

/// Keeps the jail of `cgroups`, whose program is `pid`, on the CPU of the process `leader`, until that one has several or
/// has ended.
pub(crate) async fn follow(cgroups: Option<Cgroups>, pid: u32, leader: u32) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(cpu) = only(leader) else { return };
        if only(pid) == Some(cpu) {
            continue;
        }
        let groups = cgroups.clone();
        let moved = move || {
            let known = groups.map(|groups| processes(&groups, pid));
            move_all(&known.unwrap_or_else(|| vec![pid]), &[cpu])
        };
        let moved = tokio::task::spawn_blocking(moved).await;
        if !matches!(moved, Ok(Ok(()))) {
            return;
        }
    }
}

/// What is known at one moment.
struct Seen {
    /// CPU time of the jail.
    used: Duration,
    /// Time that its tasks were ready and did not run; `None` when it was idle.
    waited: Option<Duration>,
    /// Idle time of each allowed CPU; empty when the jail was idle.
    idle: Vec<(usize, Duration)>,
}

impl Seen {
    /// `None` when the host cannot say.
    fn now(cgroups: &Cgroups, pid: u32, last: Option<Duration>, cpus: &[usize]) -> Option<Self> {
        let used = cgroups.cpu().or_else(|| Some(task(pid, pid)?.0))?;
        let idle_jail = last.is_some_and(|last| {
            used.saturating_sub(last).as_secs_f64() < BUSY * PERIOD.as_secs_f64()
        });
        if idle_jail {
            return Some(Self { used, waited: None, idle: Vec::new() });
        }
        let waits =
            tasks(&processes(cgroups, pid)).into_iter().filter_map(|(pid, tid)| task(pid, tid));
        let waited = waits.map(|(_, waited)| waited).sum();
        let stat = fs::read_to_string("/proc/stat").ok()?;
        let tick = Duration::from_secs(1)
            / u32::try_from(rustix::param::clock_ticks_per_second()).ok()?.max(1);
        Some(Self { used, waited: Some(waited), idle: idle(&stat, tick, cpus) })
    }
}

/// The CPU that the jail had better be on, instead of `here`.
fn better(old: &Seen, new: &Seen, here: Option<usize>, span: Duration) -> Option<usize> {
    let here = here?;
    let waited = new.waited?.saturating_sub(old.waited?);
    if waited < span.mul_f64(LATE) {
        return None;
    }
    let idle = |cpu: usize| {
        let of = |seen: &Seen| Some(seen.idle.iter().find(|(other, _)| *other == cpu)?.1);
        Some(of(new)?.saturating_sub(of(old)?))
    };
    let gets = new.used.saturating_sub(old.used) + idle(here).unwrap_or_default();
    let others = new.idle.iter().map(|(cpu, _)| *cpu).filter(|cpu| *cpu != here);
    let best = others.filter_map(|cpu| Some((idle(cpu)?, cpu))).max();
    best.filter(|(idle, _)| *idle > gets + span.mul_f64(GAIN)).map(|(_, cpu)| cpu)
}

/// The CPU that the jail is on.
fn here(pid: u32) -> Option<usize> {
    let set = affinity(pid)?;
    (0..CpuSet::MAX_CPU).find(|cpu| set.is_set(*cpu))
}

/// The one CPU that a process may be on; `None`: it may be on several, or has ended.
fn only(pid: u32) -> Option<usize> {
    let set = affinity(pid)?;
    if set.count() == 1 { (0..CpuSet::MAX_CPU).find(|cpu| set.is_set(*cpu)) } else { None }
}

fn affinity(pid: u32) -> Option<CpuSet> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    sched_getaffinity(Some(pid?)).ok()
}

/// Idle time per CPU from `/proc/stat` (`proc(5)`: `cpuN user nice system idle …`).
fn idle(stat: &str, tick: Duration, cpus: &[usize]) -> Vec<(usize, Duration)> {
    let lines = stat.lines().filter_map(|line| {
        let mut words = line.strip_prefix("cpu")?.split_whitespace();
        let cpu = words.next()?.parse().ok().filter(|cpu| cpus.contains(cpu))?;
        let ticks: u32 = words.nth(3)?.parse().ok()?;
        Some((cpu, tick.saturating_mul(ticks)))
    });
    lines.collect()
}

/// Time run and time waited of one task (`Documentation/scheduler/sched-stats.rst`).
fn task(pid: u32, tid: u32) -> Option<(Duration, Duration)> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/schedstat")).ok()?;
    let mut words = text.split_whitespace().map(|word| word.parse().ok().map(Duration::from_nanos));
    Some((words.next()??, words.next()??))
}

/// How the host's scheduler has treated the tasks of a jail so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Waits {
    /// By task: how long it was ready to run and had no CPU. Empty on a host that does not tell.
    pub ready: BTreeMap<u32, Duration>,
    /// One waits for a disk of the host in this moment, and cannot be interrupted.
    pub blocked: bool,
}

/// Those of the jail of `cgroups`, whose program is `pid`. Blocking.
pub(crate) fn waits(cgroups: Option<&Cgroups>, pid: u32) -> Waits {
    let pids = cgroups.map_or_else(|| vec![pid], |cgroups| processes(cgroups, pid));
    let mut waits = Waits::default();
    for (pid, tid) in tasks(&pids) {
        if let Some((_, waited)) = task(pid, tid) {
            waits.ready.insert(tid, waited);
        }
        waits.blocked |=
            fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).is_ok_and(|stat| {
                stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" D"))
            });
    }
    waits
}

/// Every process of the jail, as far as is known.
fn processes(cgroups: &Cgroups, pid: u32) -> Vec<u32> {
    cgroups.processes().unwrap_or_else(|| vec![pid])
}

/// Every task of some processes, as (process, task).
fn tasks(pids: &[u32]) -> Vec<(u32, u32)> {
    let of = |pid: u32| {
        let dir = fs::read_dir(format!("/proc/{pid}/task"));
        let names = dir.into_iter().flatten().flatten().map(|entry| entry.file_name());
        names.filter_map(move |name| Some((pid, name.to_str()?.parse().ok()?)))
    };
    pids.iter().copied().flat_map(of).collect()
}

/// Moves every task of some processes; twice, because a child made meanwhile has its parent's old CPUs.
fn move_all(pids: &[u32], cpus: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|cpu| set.set(*cpu));
    let mut result = Ok(());
    for _ in 0..2 {
        for (_, tid) in tasks(pids) {
            let Some(tid) = i32::try_from(tid).ok().and_then(Pid::from_raw) else { continue };
            match sched_setaffinity(Some(tid), &set) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => result = Err(error.into()),
            }
        }
    }
    result
}

fn heads() -> bool {
    let mut byte = [0; 1];
    let got = rustix::rand::getrandom(&mut byte, rustix::rand::GetRandomFlags::NONBLOCK);
    got.is_ok() && byte[0] & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jail_is_moved_to_the_cpus_it_may_be_on_and_no_others() {
        let all = own();
        let last = *all.last().unwrap();
        let mut program = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = program.id();
        let on = || {
            let set = affinity(pid).unwrap();
            all.iter().copied().filter(|cpu| set.is_set(*cpu)).collect::<Vec<_>>()
        };
        let allowed = Allowed::all();
        assert!(!allowed.is_narrowed());
        let cpus = allowed.change(Some(&BTreeSet::from([last, CpuSet::MAX_CPU + 1]))).unwrap();
        assert_eq!((cpus.as_slice(), allowed.is_narrowed()), (&[last][..], all.len() > 1));
        place(None, pid, &cpus, false).unwrap();
        assert_eq!(on(), [last]);
        // One that is on one CPU stays there while it may.
        place(None, pid, &all, true).unwrap();
        assert_eq!(on(), [last]);
        place(None, pid, &allowed.change(None).unwrap(), false).unwrap();
        assert_eq!((on(), allowed.now()), (all.clone(), all.clone()));
        place(None, pid, &all, true).unwrap();
        assert_eq!(on().len(), 1);
        assert!(allowed.change(Some(&BTreeSet::from([CpuSet::MAX_CPU]))).is_err());
        program.kill().unwrap();
        program.wait().unwrap();
    }

    #[test]
    fn a_task_that_has_no_cpu_is_seen_to_wait() {
        let before = waits(None, std::process::id());
        let tid = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        assert!(before.ready.contains_key(&tid), "{before:?}");
        // More that want to run than there are CPUs.
        let many = std::thread::available_parallelism().unwrap().get() * 3;
        let end = std::time::Instant::now() + MS(400);
        std::thread::scope(|scope| {
            for _ in 0..many {
                scope.spawn(|| while std::time::Instant::now() < end {});
            }
            std::thread::sleep(MS(300));
            let now = waits(None, std::process::id());
            let waited: Duration = now.ready.values().sum();
            assert!(waited > before.ready.values().sum::<Duration>() + MS(100), "{now:?}");
        });
    }

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn seen(used: u64, waited: u64, idle: [u64; 2]) -> Seen {
        let idle = vec![(0, MS(idle[0])), (3, MS(idle[1]))];
        Seen { used: MS(used), waited: Some(MS(waited)), idle }
    }

    #[test]
    fn a_jail_that_waits_goes_where_it_gets_more() {
        let old = seen(1000, 100, [0, 0]);
        let to = |new: Seen| better(&old, &new, Some(0), MS(500));
        assert_eq!(to(seen(1250, 350, [0, 480])), Some(3));
        assert_eq!(to(seen(1250, 350, [0, 280])), None, "little to gain");
        assert_eq!(to(seen(1250, 350, [0, 40])), None, "busier there");
        assert_eq!(to(seen(1250, 120, [0, 480])), None, "hardly waits");
        assert_eq!(to(seen(1500, 600, [0, 500])), None, "in its own way");
        assert_eq!(to(seen(1100, 200, [350, 480])), None, "enough room here");
        let idle = Seen { used: MS(1000), waited: None, idle: Vec::new() };
        assert_eq!(
            better(&idle, &seen(1250, 350, [0, 480]), Some(0), MS(500)),
            None,
            "was idle before"
        );
    }

    #[test]
    fn idle_times_are_those_of_the_allowed_cpus() {
        let stat = "cpu  9 9 9 9\ncpu0 1 2 3 40 5\ncpu1 1 2 3 50 5\ncpu10 1 2 3 60 5\nintr 5\n";
        assert_eq!(idle(stat, MS(10), &[0, 10]), vec![(0, MS(400)), (10, MS(600))]);
    }
}
