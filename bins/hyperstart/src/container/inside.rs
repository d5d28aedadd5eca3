//! Paths inside a container's root, resolved as its own processes would see them, from outside.
//!
//! The image is hostile: every symbolic link in it is resolved below the root by the kernel
//! (`RESOLVE_IN_ROOT`), and mounts go through descriptors, never through names.

use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Component, Path};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2},
    io::Errno,
};

use crate::failure::{Doing as _, Outcome};

/// A container's root directory.
#[derive(Debug)]
pub(crate) struct Inside {
    root: OwnedFd,
}

impl Inside {
    pub(crate) fn open(root: &Path) -> Outcome<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, root, flags, Mode::empty())
            .doing(|| format!("open root {}", root.display()))?;
        Ok(Self { root })
    }

    pub(crate) fn root(&self) -> &OwnedFd {
        &self.root
    }

    fn find(&self, path: &Path, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.root, path, flags | OFlags::CLOEXEC, mode, resolve)
    }

    /// The directory `path`, made with its parents if it is not there.
    pub(crate) fn directory(&self, path: &str) -> Outcome<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let path = Path::new(path);
        match self.find(path, flags, Mode::empty()) {
            Err(Errno::NOENT) => {}
            found => return found.doing(|| format!("open {} in the image", path.display())),
        }
        let mut sofar = Path::new("/").to_path_buf();
        let mut parent = self.find(&sofar, flags, Mode::empty());
        for component in path.components() {
            match component {
                Component::Normal(_) | Component::ParentDir => sofar.push(component),
                _ => continue,
            }
            let next = match self.find(&sofar, flags, Mode::empty()) {
                Err(Errno::NOENT) => parent.and_then(|parent| {
                    mkdirat(parent, component.as_os_str(), Mode::from_raw_mode(0o755))?;
                    self.find(&sofar, flags, Mode::empty())
                }),
                found => found,
            };
            parent = Ok(next.doing(|| format!("make {} in the image", sofar.display()))?);
        }
        parent.doing(|| format!("make {} in the image", path.display()))
    }

    /// What is at `path`.
    pub(crate) fn existing(&self, path: &str) -> Outcome<OwnedFd> {
        self.find(Path::new(path), OFlags::PATH, Mode::empty())
            .doing(|| format!("open {path} in the image"))
    }

    /// The file `path`, made empty if it is not there: a place to mount on.
    pub(crate) fn file(&self, path: &str) -> Outcome<OwnedFd> {
        let name = Path::new(path);
        if let Some(parent) = name.parent().and_then(Path::to_str) {
            self.directory(parent)?;
        }
        match self.find(name, OFlags::PATH, Mode::empty()) {
            Err(Errno::NOENT) => {
                let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NOCTTY | OFlags::NONBLOCK;
                self.find(name, flags, Mode::from_raw_mode(0o644))
            }
            found => found,
        }
        .doing(|| format!("make file {path} in the image"))
    }
}

/// A name for `fd` that system calls taking paths understand. Lives as long as `fd`.
pub(crate) fn name_of(fd: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn links_never_lead_out_of_the_root() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("root");
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::create_dir(outer.path().join("outside")).unwrap();
        symlink("../../outside", root.join("up")).unwrap();
        symlink(outer.path().join("outside"), root.join("absolute")).unwrap();
        symlink("/etc", root.join("fine")).unwrap();
        let inside = Inside::open(&root).unwrap();
        assert!(inside.directory("/up/x").is_err());
        assert!(inside.file("/absolute/x").is_err());
        assert!(inside.directory("/../../outside2").is_ok());
        assert!(root.join("outside2").is_dir());
        inside.file("/fine/deep/er/file").unwrap();
        assert!(root.join("etc/deep/er/file").is_file());
        inside.file("/etc/deep/er/file").unwrap();
        assert_eq!(fs::read_dir(outer.path().join("outside")).unwrap().count(), 0);
    }
}
