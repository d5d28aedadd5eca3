//! From the first instruction of PID 1 to a guest that has its file systems.
//!
//! The initramfs stays where the kernel put it; a tmpfs becomes the root on top of it, because
//! `pivot_root` refuses to leave an initramfs and containers need it.

use std::{fs, io};

use rustix::{
    fs::{Mode, symlink},
    mount::{MountFlags, MountPropagationFlags, mount, mount_change, mount_move},
    process::{chdir, chroot},
};

use crate::{cgroup, kernel_file, network};

/// Where the root tmpfs is made, in the initramfs.
const NEW_ROOT: &str = "/root";
/// Names the link device on the kernel's command line.
const LINK_WORD: &str = "hyper.link=";
/// State of containers: mount points and injected files. A mount of its own and shared: what a
/// container's first process mounts there, in its own mount namespace, the agent has too.
pub(crate) const STATE: &str = "/run/hyper";

/// What booting found out.
#[derive(Debug)]
pub(crate) struct Boot {
    /// Device of the link, e.g. `/dev/ttyS0`, `/dev/vport0p1`.
    pub(crate) link: String,
}

/// Mounts what every guest has and reads the command line.
///
/// # Errors
/// A mount that cannot be done without, or no link device named.
pub(crate) fn boot() -> io::Result<Boot> {
    let quiet = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("root", NEW_ROOT, "tmpfs", MountFlags::NOSUID, c"mode=755,size=4M")?;
    for directory in ["proc", "sys", "dev", "run", "tmp"] {
        fs::create_dir(format!("{NEW_ROOT}/{directory}"))?;
    }
    chdir(NEW_ROOT)?;
    mount("proc", "proc", "proc", quiet, None)?;
    mount("sysfs", "sys", "sysfs", quiet, None)?;
    mount("devtmpfs", "dev", "devtmpfs", MountFlags::NOSUID, c"mode=755")?;
    mount("run", "run", "tmpfs", quiet, c"mode=755")?;
    mount_move(".", "/")?;
    chroot(".")?;
    chdir("/")?;

    mount("cgroup2", "/sys/fs/cgroup", "cgroup2", quiet, c"nsdelegate,memory_recursiveprot")?;
    for (directory, mode) in [("/dev/pts", 0o755), ("/dev/shm", 0o1777), (STATE, 0o700)] {
        // devtmpfs may have made it.
        match rustix::fs::mkdir(directory, Mode::from_raw_mode(mode)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    mount("state", STATE, "tmpfs", quiet, c"mode=700")?;
    mount_change(STATE, MountPropagationFlags::SHARED)?;
    let shm = MountFlags::NOSUID | MountFlags::NODEV;
    mount(
        "devpts",
        "/dev/pts",
        "devpts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        c"mode=620,gid=5,ptmxmode=666",
    )?;
    mount("shm", "/dev/shm", "tmpfs", shm, c"mode=1777")?;
    for (target, name) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ] {
        symlink(target, name)?;
    }
    // The agent is the last process to be ended for want of memory; makers reset it.
    kernel_file::put("/proc/self/oom_score_adj", "-1000")?;
    cgroup::prepare()?;
    network::loopback_up()?;
    keep_less_back()?;
    read_command_line()
}

/// Smallest reserve for allocations that cannot wait, in KiB.
const LEAST_RESERVE: u64 = 512;
/// Which part of the memory is enough of a reserve.
const RESERVE_PART: u64 = 256;

/// The kernel's reserve (`min_free_kbytes`) is made for servers: of 128 MB it and the watermarks
/// above it hold back 3 MB that no container can use. Larger guests keep the kernel's choice.
fn keep_less_back() -> io::Result<()> {
    const RESERVE: &str = "/proc/sys/vm/min_free_kbytes";
    let total = rustix::system::sysinfo();
    let total = u64::from(total.mem_unit).saturating_mul(total.totalram) / 1024;
    let enough = LEAST_RESERVE.max(total / RESERVE_PART);
    let chosen: u64 = fs::read_to_string(RESERVE)?.trim().parse().map_err(io::Error::other)?;
    if enough < chosen {
        kernel_file::put(RESERVE, &enough.to_string())?;
    }
    Ok(())
}

fn read_command_line() -> io::Result<Boot> {
    let line = fs::read_to_string("/proc/cmdline")?;
    let link = line.split_ascii_whitespace().find_map(|word| word.strip_prefix(LINK_WORD));
    match link {
        Some(link) if link.starts_with("/dev/") => Ok(Boot { link: link.to_owned() }),
        _ => Err(io::Error::other(format!("no {LINK_WORD}/dev/… on the kernel command line"))),
    }
}
