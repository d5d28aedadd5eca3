//! How guests get their memory, and whether this host can do that.

use std::fs;
use std::path::Path;

use hyper_hypervisor::{VmConfig, VmError};
use hyper_vmm::config::{self, HUGE_PAGE, Huge};

use crate::NAME;

/// Guest memory in huge pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum HugePages {
    /// As the host does it by itself.
    #[default]
    Off,
    /// Asks for transparent ones, as far as the host has them when the guest touches its memory.
    Transparent,
    /// Of the host's pool (`vm.nr_hugepages`), all of them or no guest.
    Reserved,
}

/// Where the host tells about them.
const TRANSPARENT: &str = "/sys/kernel/mm/transparent_hugepage";
const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// In the monitor's words.
pub fn told(huge: HugePages, prefault: bool) -> config::Pages {
    let huge = match huge {
        HugePages::Off => Huge::No,
        HugePages::Transparent => Huge::Transparent,
        HugePages::Reserved => Huge::Reserved,
    };
    config::Pages { huge, prefault }
}

/// Bytes of the guest's memory: whole pages of the kind that is wanted.
pub fn memory(bytes: u64, huge: HugePages) -> u64 {
    let page = if huge == HugePages::Reserved { HUGE_PAGE } else { 4096 };
    bytes / page * page
}

/// Refuses what this host cannot give, and says what would help. Blocks.
pub fn check(huge: HugePages, guest: &VmConfig) -> Result<(), VmError> {
    check_at(huge, guest, Path::new(TRANSPARENT), Path::new(POOL))
}

fn check_at(
    huge: HugePages,
    guest: &VmConfig,
    transparent: &Path,
    pool: &Path,
) -> Result<(), VmError> {
    let missing = |what: String, hint: String| VmError::Missing { hypervisor: NAME, what, hint };
    match huge {
        HugePages::Off => Ok(()),
        HugePages::Transparent => {
            // The memory of a guest with shared directories is shared memory to the host.
            let (name, advise) = match guest.share {
                None => ("enabled", "madvise"),
                Some(_) => ("shmem_enabled", "advise"),
            };
            let path = transparent.join(name);
            let said = fs::read_to_string(&path).unwrap_or_default();
            if !said.is_empty() && !["[never]", "[deny]"].iter().any(|off| said.contains(off)) {
                return Ok(());
            }
            let (what, path) = ("transparent huge pages".to_owned(), path.display());
            let hint = match said.trim() {
                "" => format!("`{path}` is not there; leave `huge-pages` off"),
                now => format!(
                    "`{path}` is `{now}`: write `{advise}` to it, or leave `huge-pages` off"
                ),
            };
            Err(missing(what, hint))
        }
        HugePages::Reserved => {
            let wanted = memory(guest.memory_bytes, huge) / HUGE_PAGE;
            let number = |name: &str| -> Option<u64> {
                fs::read_to_string(pool.join(name)).ok()?.trim().parse().ok()
            };
            // Those that are free but promised are others'.
            let free = number("free_hugepages").zip(number("resv_hugepages"));
            let more = number("nr_overcommit_hugepages").zip(number("surplus_hugepages"));
            let left =
                |pair: Option<(u64, u64)>| pair.map_or(0, |(all, used)| all.saturating_sub(used));
            let there = left(free) + left(more);
            if there >= wanted {
                return Ok(());
            }
            let what = format!("{wanted} free huge pages of 2 MiB for this guest's memory");
            let hint = match free {
                None => format!("`{}` is not there; leave `huge-pages` off", pool.display()),
                Some(_) => format!(
                    "this host has {there}: raise `sysctl vm.nr_hugepages`, or set `huge-pages` to \
                     `transparent`"
                ),
            };
            Err(missing(what, hint))
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use hyper_hypervisor::{GuestKernel, Share};

    fn guest(memory_bytes: u64) -> VmConfig {
        VmConfig {
            id: "p1".into(),
            kernel: GuestKernel {
                kernel: "/k".into(),
                initramfs: "/i".into(),
                extra_cmdline: vec![],
            },
            vcpus: 1,
            memory_bytes,
            disks: vec![],
            nics: vec![],
            late_disks: true,
            share: None,
            run_dir: "/r".into(),
            cgroup: None,
        }
    }

    #[test]
    fn a_host_without_huge_pages_is_told_what_to_do() {
        let host = tempfile::tempdir().unwrap();
        let at = host.path();
        let says = |huge, guest: &VmConfig| match check_at(huge, guest, at, at) {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        };
        let mut guest = guest((64 << 20) + 4096);
        assert!(says(HugePages::Transparent, &guest).contains("enabled` is not there"));
        assert!(says(HugePages::Reserved, &guest).contains("32 free huge pages of 2 MiB"));
        assert!(says(HugePages::Reserved, &guest).contains("is not there"));
        for (name, text) in [
            ("enabled", "always [madvise] never\n"),
            ("shmem_enabled", "always within_size advise [never] deny force\n"),
            ("free_hugepages", "40\n"),
            ("resv_hugepages", "9\n"),
        ] {
            fs::write(at.join(name), text).unwrap();
        }
        assert_eq!(says(HugePages::Transparent, &guest), "");
        guest.share = Some(Share { socket: "/s".into(), tag: "t".into() });
        assert!(says(HugePages::Transparent, &guest).contains("write `advise` to it"));
        assert!(says(HugePages::Reserved, &guest).contains("this host has 31: raise"));
        for (name, text) in [("nr_overcommit_hugepages", "2"), ("surplus_hugepages", "1")] {
            fs::write(at.join(name), text).unwrap();
        }
        assert_eq!(says(HugePages::Reserved, &guest), "");
        assert_eq!(memory(guest.memory_bytes, HugePages::Reserved), 64 << 20);
        assert_eq!(memory(guest.memory_bytes, HugePages::Off), guest.memory_bytes);
    }
}
