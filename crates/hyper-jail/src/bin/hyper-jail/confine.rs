//! What a process gives up: capabilities, its uid, resources.

use std::fs;

use hyper_jail::wire::Resource;
use rustix::process::{Gid, Rlimit, Uid, getrlimit, setrlimit};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_capabilities_secure_bits,
    set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use crate::fail::{Fail, OrFail};

/// Open files, unless the adapter says otherwise.
const OPEN_FILES: u64 = 1024;

/// Empties every capability set, for good: no exec and no uid brings any back.
pub fn drop_capabilities() -> Result<(), Fail> {
    let held = rustix::thread::capabilities(None).or_fail("read", "capabilities")?;
    // The keeper of an unprivileged supervisor never had any.
    if held.effective.contains(CapabilitySet::SETPCAP) {
        lock_capabilities(0)?;
    }
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    set_capabilities(None, sets).or_fail("drop", "capabilities")?;
    set_no_new_privs(true).or_fail("set", "no_new_privs")
}

/// Nothing that an exec or a uid could take capabilities from.
fn lock_capabilities(keep: u64) -> Result<(), Fail> {
    let bits = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    set_capabilities_secure_bits(bits).or_fail("lock", "the secure bits")?;
    if keep == 0 {
        clear_ambient_capability_set().or_fail("clear", "the ambient capabilities")?;
    }
    // Every capability this kernel knows, named or not.
    let last = fs::read_to_string("/proc/sys/kernel/cap_last_cap").ok();
    let last = last.and_then(|text| text.trim().parse::<u32>().ok()).unwrap_or(63).min(63);
    for number in (0..=last).filter(|number| keep & (1 << number) == 0) {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match remove_capability_from_bounding_set(capability) {
            // A kernel without /proc's number: the first unknown one ends the list.
            Err(rustix::io::Errno::INVAL) => break,
            other => other.or_fail("drop", format!("capability {number}"))?,
        }
    }
    Ok(())
}

/// Stays root with the capabilities `keep` and no others: they are ambient, so that they outlive
/// exec although uid 0 itself brings none any more.
pub fn keep_capabilities(keep: u64, root: bool) -> Result<(), Fail> {
    if !root {
        return Err(Fail::new("keep", "capabilities", rustix::io::Errno::PERM)
            .hint("files of any owner need a supervisor that is root"));
    }
    set_thread_groups(&[]).or_fail("drop", "supplementary groups")?;
    let kept = CapabilitySet::from_bits_retain(keep);
    let held = rustix::thread::capabilities(None).or_fail("read", "capabilities")?;
    let sets = CapabilitySets { inheritable: kept, ..held };
    set_capabilities(None, sets).or_fail("make inheritable", "capabilities")?;
    clear_ambient_capability_set().or_fail("clear", "the ambient capabilities")?;
    for number in (0..64).filter(|number| keep & (1 << number) != 0) {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        rustix::thread::configure_capability_in_ambient_set(capability, true)
            .or_fail("keep", format!("capability {number}"))?;
    }
    lock_capabilities(keep)?;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: kept };
    set_capabilities(None, sets).or_fail("drop", "capabilities")?;
    set_no_new_privs(true).or_fail("set", "no_new_privs")
}

/// Takes the jail's uid and gives up every capability.
pub fn become_nobody(uid: u32, root: bool) -> Result<(), Fail> {
    if root {
        let (id, gid) = (Uid::from_raw(uid), Gid::from_raw(uid));
        set_thread_groups(&[]).or_fail("drop", "supplementary groups")?;
        set_thread_res_gid(gid, gid, gid).or_fail("take gid", uid)?;
        // Keeping capabilities over the change of uid lets the bounding set be emptied after it.
        rustix::thread::set_keep_capabilities(true).or_fail("keep", "capabilities")?;
        set_thread_res_uid(id, id, id).or_fail("take uid", uid)?;
        // Permitted ones were kept; the effective set was not.
        let kept = rustix::thread::capabilities(None).or_fail("read", "capabilities")?;
        let sets = CapabilitySets { effective: kept.permitted, ..kept };
        set_capabilities(None, sets).or_fail("raise", "capabilities")?;
    }
    drop_capabilities()
}

/// Sets the limits of the plan, over the defaults.
pub fn set_rlimits(rlimits: &[(Resource, u64)]) -> Result<(), Fail> {
    set(rustix::process::Resource::Core, 0)?;
    if !rlimits.iter().any(|(resource, _)| *resource == Resource::OpenFiles) {
        let hard = getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
        set(rustix::process::Resource::Nofile, OPEN_FILES.min(hard))?;
    }
    for (resource, value) in rlimits {
        set(kernels(*resource), *value)?;
    }
    Ok(())
}

fn set(resource: rustix::process::Resource, value: u64) -> Result<(), Fail> {
    let limit = Rlimit { current: Some(value), maximum: Some(value) };
    setrlimit(resource, limit).or_fail("set limit", format!("{resource:?} = {value}"))
}

/// Lowers limits that we may not reach; returns a sentence for each.
pub fn fit_rlimits(rlimits: &mut [(Resource, u64)]) -> Vec<String> {
    let mut missing = Vec::new();
    for (resource, value) in rlimits {
        let kind = kernels(*resource);
        let now = getrlimit(kind);
        let Some(hard) = now.maximum.filter(|hard| *hard < *value) else { continue };
        let raised = Rlimit { current: now.current, maximum: Some(*value) };
        if setrlimit(kind, raised).is_err() {
            missing.push(format!(
                "{resource:?} limit of {value}: the hard limit is {hard} and raising it needs \
                 CAP_SYS_RESOURCE"
            ));
            *value = hard;
        }
    }
    missing
}

fn kernels(resource: Resource) -> rustix::process::Resource {
    match resource {
        Resource::OpenFiles => rustix::process::Resource::Nofile,
        Resource::FileSize => rustix::process::Resource::Fsize,
        Resource::AddressSpace => rustix::process::Resource::As,
        Resource::LockedMemory => rustix::process::Resource::Memlock,
        Resource::Stack => rustix::process::Resource::Stack,
        Resource::Processes => rustix::process::Resource::Nproc,
    }
}

/// A supervisor may be protected from the OOM killer; its guests are not. Raising the score is
/// always allowed; a host without the file has no OOM killer to be told.
pub fn normal_oom_score() {
    let now = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    if now.trim().parse::<i32>().is_ok_and(|score| score < 0) {
        let _ = fs::write("/proc/self/oom_score_adj", "0");
    }
}
