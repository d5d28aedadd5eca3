//! Pid 2 of the jail, up to its exec: joins the cgroup while init builds the root, then gives up
//! everything it has.

use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use hyper_jail::launcher::Doors;
use hyper_jail::wire::Plan;
use rustix::fs::Mode;

use crate::fail::{Fail, OrFail};
use crate::sys::{self, Image};
use crate::{confine, fail};

/// What init gives its child on the way.
pub struct Errand {
    pub uid: u32,
    pub root: bool,
    /// The cgroups that it is not in yet.
    pub doors: Doors,
    /// Says one byte when the root is built.
    pub go: OwnedFd,
    /// Takes the reason of a failure; closes by exec.
    pub word: OwnedFd,
    pub null: OwnedFd,
}

/// Becomes the hypervisor.
pub fn run(plan: Plan, fds: Vec<OwnedFd>, errand: Errand) -> ! {
    let word = match sys::duplicate_high(&errand.word) {
        Ok(word) => File::from(word),
        Err(_) => sys::exit(127),
    };
    let fail = become_hypervisor(plan, fds, errand, &word);
    // The pipe takes 64 KiB; this is far less.
    let _ = (&word).write_all(&fail.to_bytes());
    sys::exit(127)
}

fn become_hypervisor(plan: Plan, fds: Vec<OwnedFd>, errand: Errand, word: &File) -> Fail {
    match prepare(plan, fds, errand) {
        Ok(ready) => {
            // Behind the filter only the errno is told: a list need not allow more than write.
            let error = match ready.install() {
                Ok(()) => sys::exec(&ready.image(), &ready.args, &ready.env),
                Err(fail) => return fail,
            };
            fail::tell_exec(word, &error);
            sys::exit(127)
        }
        Err(fail) => fail,
    }
}

/// All that exec needs, built before the filter stands.
struct Ready {
    program: Result<OwnedFd, CString>,
    args: Vec<CString>,
    env: Vec<CString>,
    filters: Vec<Vec<u64>>,
}

impl Ready {
    fn image(&self) -> Image<'_> {
        match &self.program {
            Ok(fd) => Image::Fd(fd.as_fd()),
            Err(path) => Image::Path(path.clone()),
        }
    }

    /// The allow-list last: it need not allow the call that installs the others.
    fn install(&self) -> Result<(), Fail> {
        for filter in self.filters.iter().rev() {
            sys::filter(filter).or_fail("install", "the seccomp filter")?;
        }
        Ok(())
    }
}

fn prepare(plan: Plan, fds: Vec<OwnedFd>, errand: Errand) -> Result<Ready, Fail> {
    for door in errand.doors.procs.iter().chain(&errand.doors.v2_procs) {
        // 0 is the writer itself (cgroups v1 and v2 alike).
        (&mut &*door).write_all(b"0").or_fail("join the cgroup of", &plan.name)?;
    }
    drop(errand.doors);
    sys::unshare(libc::CLONE_NEWCGROUP).or_fail("make a cgroup namespace for", &plan.name)?;
    let mut byte = [0];
    let go = rustix::io::retry_on_intr(|| rustix::io::read(&errand.go, &mut byte));
    if go != Ok(1) {
        sys::exit(127);
    }
    // From here on the root is the jail's.
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    rustix::process::chdir(&plan.cwd).or_fail("change directory to", plan.cwd.display())?;
    let strings = |list: &[String]| {
        list.iter()
            .map(|text| CString::new(text.as_str()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(std::io::Error::from)
            .or_fail("pass", "an argument with a zero byte")
    };
    let (args, env) = (strings(&plan.args)?, strings(&plan.env)?);
    let mut fds = fds.into_iter();
    let program = match &plan.program {
        None => {
            let fd = fds.next().ok_or(rustix::io::Errno::BADF).or_fail("find", "the program")?;
            Ok(sys::duplicate_high(&fd).or_fail("duplicate", "the program's descriptor")?)
        }
        Some(path) => Err(CString::new(path.to_string_lossy().as_bytes())
            .map_err(std::io::Error::from)
            .or_fail("execute", path.display())?),
    };
    // Their numbers may be wanted: closed afterwards, they would close what was put there.
    drop((errand.go, errand.word));
    place(fds.collect(), &plan.fds, errand.null)?;
    confine::set_rlimits(&plan.rlimits)?;
    if plan.fixed_addresses {
        sys::fix_addresses().or_fail("set the personality of", "the hypervisor")?;
    }
    if plan.one_cpu {
        stay_on_this_cpu();
    }
    match plan.keep {
        0 => confine::become_nobody(errand.uid, errand.root)?,
        keep => confine::keep_capabilities(keep, errand.root)?,
    }
    sys::default_signals();
    Ok(Ready { program, args, env, filters: plan.seccomp })
}

/// Pins this task where the scheduler has just put it, which is where there was least to do. A
/// host that forbids it loses speed and nothing else.
fn stay_on_this_cpu() {
    let mut set = rustix::thread::CpuSet::new();
    let cpu = rustix::thread::sched_getcpu();
    if cpu < rustix::thread::CpuSet::MAX_CPU {
        set.set(cpu);
        let _ = rustix::thread::sched_setaffinity(None, &set);
    }
}

/// Moves the given descriptors to their numbers; nothing else survives exec.
fn place(fds: Vec<OwnedFd>, numbers: &[i32], null: OwnedFd) -> Result<(), Fail> {
    let high = |fd: &OwnedFd| sys::duplicate_high(fd).or_fail("duplicate", "a descriptor");
    let moved = fds.iter().map(&high).collect::<Result<Vec<_>, _>>()?;
    let high_null = high(&null)?;
    drop((fds, null));
    sys::close_on_exec_from(0).or_fail("mark", "descriptors to be closed")?;
    for number in (0..3).filter(|number| !numbers.contains(number)) {
        sys::place_at(high_null.as_fd(), number).or_fail("open", format!("descriptor {number}"))?;
    }
    for (fd, number) in moved.iter().zip(numbers) {
        sys::place_at(fd.as_fd(), *number).or_fail("place", format!("descriptor {number}"))?;
    }
    Ok(())
}
