//! Paths in a container's root, as Docker's `cp` understands them.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use hyper_link::message::PathStat;
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2, readlinkat},
    io::Errno,
};

use crate::failure::{Doing as _, Outcome};
use crate::wrong;

/// Links followed to find where one leads.
const MAX_LINKS: usize = 64;

/// Opens a directory that everything else is found below.
pub fn root(path: impl AsRef<Path>) -> Outcome<OwnedFd> {
    let path = path.as_ref();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).doing(|| format!("open {}", path.display()))
}

/// An absolute path without `.`, `..` and doubled slashes, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub struct Wanted {
    /// `/a/b`; what was `/` or `/.` at its end still is.
    pub whole: String,
    /// `/a/`
    pub parent: String,
    /// `b`; `.` where the path ends with it, empty for the root.
    pub base: String,
}

impl Wanted {
    /// Go's `filepath.Join("/", path)` with what Docker keeps of the end.
    pub fn parse(path: &str) -> Self {
        let mut parts: Vec<&str> = Vec::new();
        for part in path.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        let clean = format!("/{}", parts.join("/"));
        let dot = (path.ends_with("/.") || path == ".") && !parts.is_empty();
        let slash = path.ends_with('/') && !parts.is_empty();
        let base = if dot { "." } else { parts.last().copied().unwrap_or_default() };
        let above = parts.len().saturating_sub(1);
        let parent: String = parts[..above].iter().map(|part| format!("/{part}")).collect();
        let end = if dot {
            "/."
        } else if slash {
            "/"
        } else {
            ""
        };
        Self { whole: format!("{clean}{end}"), parent: format!("{parent}/"), base: base.to_owned() }
    }
}

/// What is at `path`, links on the way followed below `root`, one at its end not.
pub fn find(root: &impl AsFd, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(root, path, flags, Mode::empty(), resolve)
}

/// The same where a link at the end is followed, too.
///
/// # Errors
/// The system's.
pub fn followed(root: &impl AsFd, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// See [`hyper_link::message::Request::StatPath`].
pub fn stat(root: &impl AsFd, path: &str) -> Outcome<PathStat> {
    let wanted = Wanted::parse(path);
    let failed = |error| wrong("find", wanted.whole.as_bytes(), error);
    let found = find(root, &wanted.whole, OFlags::PATH).map_err(failed)?;
    let stat = fstat(&found).map_err(failed)?;
    let mut target = String::new();
    if FileType::from_raw_mode(stat.st_mode).is_symlink() {
        target = follow(root, &wanted.whole).map_err(failed)?;
    }
    Ok(PathStat {
        mode: stat.st_mode,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mtime_ns: mtime_ns(&stat),
        target,
    })
}

fn mtime_ns(stat: &Stat) -> i64 {
    let nanoseconds = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
    stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

/// Where a path leads when all links are followed; what does not exist stays as it is written.
fn follow(root: &impl AsFd, path: &str) -> rustix::io::Result<String> {
    let mut todo: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
    let mut done: Vec<String> = Vec::new();
    let mut links = 0;
    while let Some(part) = todo.pop() {
        match part.as_str() {
            "" | "." => continue,
            ".." => {
                done.pop();
                continue;
            }
            _ => done.push(part),
        }
        let sofar = format!("/{}", done.join("/"));
        let target = match find(root, &sofar, OFlags::PATH) {
            Ok(found) => match readlinkat(&found, "", Vec::new()) {
                Ok(target) => target,
                // Not a link.
                Err(_) => continue,
            },
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            Err(error) => return Err(error),
        };
        links += 1;
        if links > MAX_LINKS {
            return Err(Errno::LOOP);
        }
        let target = target.to_string_lossy();
        done.pop();
        if target.starts_with('/') {
            done.clear();
        }
        todo.extend(target.split('/').rev().map(str::to_owned));
    }
    Ok(format!("/{}", done.join("/")))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn paths_are_taken_apart_as_docker_does() {
        let parts = |path| {
            let Wanted { whole, parent, base } = Wanted::parse(path);
            (whole, parent, base)
        };
        let owned = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
        assert_eq!(parts("/a/b"), owned("/a/b", "/a/", "b"));
        assert_eq!(parts("a//b/"), owned("/a/b/", "/a/", "b"));
        assert_eq!(parts("/a/b/."), owned("/a/b/.", "/a/", "."));
        assert_eq!(parts("/../../x"), owned("/x", "/", "x"));
        for root in ["/", "", ".", "/..", "/."] {
            assert_eq!(parts(root), owned("/", "/", ""), "{root}");
        }
    }

    #[test]
    fn links_are_followed_below_the_root_only() {
        let outer = tempfile::tempdir().unwrap();
        let inside = outer.path().join("root");
        fs::create_dir_all(inside.join("dir/sub")).unwrap();
        fs::write(inside.join("dir/file"), "12345").unwrap();
        fs::write(outer.path().join("secret"), "no").unwrap();
        symlink("/dir/file", inside.join("absolute")).unwrap();
        symlink("../../../../secret", inside.join("out")).unwrap();
        symlink("dir", inside.join("to-dir")).unwrap();
        symlink("loop", inside.join("loop")).unwrap();
        symlink("/gone/x", inside.join("broken")).unwrap();
        let root = root(&inside).unwrap();
        let at = |path| stat(&root, path);
        assert_eq!(at("/dir/file").unwrap().size, 5);
        assert_eq!(at("/absolute").unwrap().target, "/dir/file");
        assert_eq!(at("/out").unwrap().target, "/secret");
        assert_eq!(at("/broken").unwrap().target, "/gone/x");
        assert_eq!(at("/to-dir/file").unwrap().size, 5);
        assert_eq!(at("/to-dir").unwrap().target, "/dir");
        assert_eq!(at("/to-dir/").unwrap().mode & libc::S_IFMT, libc::S_IFDIR);
        use hyper_link::message::FailureKind::{InvalidArgument, NotFound};
        for (path, kind) in [
            ("/nope", NotFound),
            ("/out/x", NotFound),
            ("/secret", NotFound),
            ("/dir/file/", InvalidArgument),
            ("/loop", InvalidArgument),
        ] {
            assert_eq!(at(path).unwrap_err().kind, kind, "{path}");
        }
    }
}
