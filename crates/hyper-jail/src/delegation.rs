//! A cgroup whose owner is not root but may divide it among jails (cgroup v2, "Delegation" in the kernel's
//! `cgroup-v2.rst`; `Delegate=` of systemd).
//!
//! ```text
//!   app.slice/hyperd.service        delegated: no process in it, since who is divided can have none
//!     ├─ hyperd                     hyperd, its supervisors, and whoever was there before
//!     └─ hyper/JAIL                 as everywhere
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use crate::cgroup::{CONTROLLERS, all_ours, own_v2_path, processes, v2_root};

/// The group beside the jails; also what `DelegateSubgroup=hyperd` makes.
const LEAF: &str = "hyperd";
/// How often the group is emptied before its processes are taken to be coming faster than they are moved.
const TRIES: u32 = 10;

/// A cgroup of this process that can be divided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delegation {
    /// Below `/sys/fs/cgroup` or wherever else v2 is mounted.
    pub directory: PathBuf,
    /// What can be bounded in it, of that which jails have bounds for.
    pub controllers: Vec<String>,
    /// The rest of that.
    pub missing: Vec<String>,
}

impl Delegation {
    /// The one that this process is in, if there is one; the host's root needs none. Looks only.
    #[must_use]
    pub fn find() -> Option<Self> {
        if all_ours() {
            return None;
        }
        let own = v2_root()?.join(own_v2_path()?.trim_start_matches('/'));
        Self::at(&divisible(&own)?)
    }

    fn at(directory: &Path) -> Option<Self> {
        let text = fs::read_to_string(directory.join("cgroup.controllers")).ok()?;
        let here = |controller: &&str| text.split_whitespace().any(|word| word == *controller);
        let (controllers, missing) = CONTROLLERS.iter().partition(|one| here(one));
        let owned = |list: Vec<&&str>| list.into_iter().map(|one| (*one).to_owned()).collect();
        Some(Self {
            directory: directory.to_owned(),
            controllers: owned(controllers),
            missing: owned(missing),
        })
    }

    /// Moves all processes of the group beside the jails to come, and lets those have its controllers.
    ///
    /// # Errors
    /// What the kernel refuses; a process that is nobody's to move.
    pub fn divide(&self) -> io::Result<()> {
        let leaf = self.directory.join(LEAF);
        match fs::create_dir(&leaf) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let wanted: Vec<String> = self.controllers.iter().map(|one| format!("+{one}")).collect();
        let mut refused = None;
        for _ in 0..TRIES {
            refused = self.empty_into(&leaf).err().or(refused);
            // With a process in it, and `memory` not delegated, it would become a thread root.
            if !processes(&self.directory).is_empty() {
                continue;
            }
            match fs::write(self.directory.join("cgroup.subtree_control"), wanted.join(" ")) {
                Ok(()) => return Ok(()),
                // Somebody was made meanwhile, or could not be moved.
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    refused.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(refused.unwrap_or_else(|| io::ErrorKind::ResourceBusy.into()))
    }

    fn empty_into(&self, leaf: &Path) -> io::Result<()> {
        let to = leaf.join("cgroup.procs");
        let mut outcome = Ok(());
        for process in processes(&self.directory) {
            match fs::write(&to, process.to_string()) {
                // It has ended.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                moved => outcome = outcome.and(moved),
            }
        }
        outcome
    }
}

/// The group that this process's user may divide, from the one that it is in.
pub(crate) fn divisible(own: &Path) -> Option<PathBuf> {
    let parent = own.parent().filter(|_| own.ends_with(LEAF));
    parent.into_iter().chain([own]).find(|directory| is_ours(directory)).map(Path::to_owned)
}

/// The kernel's rule: these files are whose the group is.
fn is_ours(directory: &Path) -> bool {
    let may = |path: &Path| access(path, Access::WRITE_OK).is_ok();
    may(directory)
        && ["cgroup.procs", "cgroup.subtree_control"].iter().all(|name| may(&directory.join(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Directories of a cgroup's form; root may write all of them.
    fn group(at: &Path, controllers: &str) {
        fs::create_dir_all(at).unwrap();
        for (name, text) in [
            ("cgroup.procs", ""),
            ("cgroup.subtree_control", ""),
            ("cgroup.controllers", controllers),
        ] {
            fs::write(at.join(name), text).unwrap();
        }
    }

    #[test]
    fn the_group_above_the_leaf_is_the_one() {
        let root = tempfile::tempdir().unwrap();
        let unit = root.path().join("unit");
        group(&unit, "cpuset cpu memory pids\n");
        assert_eq!(divisible(&unit), Some(unit.clone()));
        let leaf = unit.join(LEAF);
        group(&leaf, "");
        assert_eq!(divisible(&leaf), Some(unit.clone()));
        let found = Delegation::at(&unit).unwrap();
        assert_eq!(found.missing, ["io"]);
        assert_eq!(found.controllers, ["memory", "pids", "cpu"]);
        // A directory that is no cgroup of ours.
        let other = root.path().join("other");
        fs::create_dir(&other).unwrap();
        assert_eq!(divisible(&other), None);
    }
}
