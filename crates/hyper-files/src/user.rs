//! User and group names of an image, as `docker run --user` takes them.
//!
//! The files are the image's, so an attacker's: they are read from inside the container's root,
//! only if regular, and only their first [`MAX_FILE`] bytes; lines that make no sense are skipped.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::AsFd,
    path::Path,
};

use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};

/// Bytes of `/etc/passwd` and `/etc/group` that are looked at.
const MAX_FILE: u64 = 4 << 20;

/// A name that the image does not know; in the words that Docker's client looks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown {
    what: &'static str,
    name: String,
    file: &'static str,
}

impl std::fmt::Display for Unknown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { what, name, file } = self;
        write!(f, "unable to find {what} {name}: no matching entries in {file} file")
    }
}

impl std::error::Error for Unknown {}

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    /// `None` when the image does not say.
    pub home: Option<String>,
}

#[derive(Debug)]
struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// Reads one of the two files, `etc/passwd` or `etc/group`, of the tree at `root`; one that is not
/// there is empty.
#[must_use]
pub fn read(root: &Path, name: &str) -> String {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECTORY;
    open(root, flags, Mode::empty()).map(|tree| read_at(&tree, name)).unwrap_or_default()
}

/// The same below an open directory. Links are followed within the tree only.
#[must_use]
pub fn read_at(tree: impl AsFd, name: &str) -> String {
    let mut text = Vec::new();
    // A fifo would block, a device could do anything.
    let open = || -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = openat2(tree, name, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
        let file = File::from(file);
        let regular = file.metadata()?.is_file();
        if regular { Ok(file) } else { Err(io::ErrorKind::InvalidData.into()) }
    };
    if let Ok(file) = open() {
        // What could be read is what counts.
        let _partial = file.take(MAX_FILE).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn passwd_line(line: &str) -> Option<Passwd<'_>> {
    let mut fields = line.split(':');
    let (name, _password) = (fields.next()?, fields.next()?);
    let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let (_gecos, home) = (fields.next()?, fields.next()?);
    Some(Passwd { name, uid, gid, home })
}

fn group_line(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let (name, _password) = (fields.next()?, fields.next()?);
    Some((name, fields.next()?.parse().ok()?, fields.next().unwrap_or("")))
}

/// Resolves `user[:group]`, each a name or a number, against the image's files.
///
/// A number need not be in the files; then the group is 0. Supplementary groups are those that
/// list the user, unless a group is given.
///
/// # Errors
/// A name that is not in the files.
pub fn resolve(text: &str, passwd: &str, group: &str) -> Result<Identity, Unknown> {
    let (user, wanted_group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = user.parse::<u32>().ok();
    let entry = passwd
        .lines()
        .filter_map(passwd_line)
        .find(|entry| entry.name == user || Some(entry.uid) == number);
    let unknown = |what: &'static str, name: &str, file: &'static str| Unknown {
        what,
        name: name.to_owned(),
        file,
    };
    let (uid, gid) = match (&entry, number) {
        (Some(entry), _) => (entry.uid, entry.gid),
        (None, Some(number)) => (number, 0),
        (None, None) => return Err(unknown("user", user, "passwd")),
    };
    let home = entry.as_ref().map(|entry| entry.home.to_owned()).filter(|home| !home.is_empty());
    if let Some(wanted) = wanted_group {
        let number = wanted.parse::<u32>().ok();
        let found = group
            .lines()
            .filter_map(group_line)
            .find(|(name, gid, _)| *name == wanted || Some(*gid) == number)
            .map(|(_, gid, _)| gid)
            .or(number);
        let gid = found.ok_or_else(|| unknown("group", wanted, "group"))?;
        return Ok(Identity { uid, gid, groups: Vec::new(), home });
    }
    let name = entry.as_ref().map(|entry| entry.name);
    let groups = group
        .lines()
        .filter_map(group_line)
        .filter(|(_, _, members)| members.split(',').any(|member| Some(member) == name))
        .map(|(_, gid, _)| gid)
        .collect();
    Ok(Identity { uid, gid, groups, home })
}

/// The number of group `name`.
///
/// # Errors
/// It is not in the file.
pub fn group(name: &str, group: &str) -> Result<u32, Unknown> {
    let found = group.lines().filter_map(group_line).find(|(known, _, _)| *known == name);
    found.map(|(_, gid, _)| gid).ok_or_else(|| Unknown {
        what: "group",
        name: name.to_owned(),
        file: "group",
    })
}

/// Home directory of `uid`.
#[must_use]
pub fn home(uid: u32, passwd: &str) -> Option<String> {
    let entry = passwd.lines().filter_map(passwd_line).find(|entry| entry.uid == uid)?;
    Some(entry.home.to_owned()).filter(|home| !home.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nwww-data:x:33:33:w:/var/www:/no\n\
                          1000:x:7:8::/odd:\nbig:x:99999999999:1::/:/\nno-home:x:44:44::";
    const GROUP: &str = "root:x:0:\nwww-data:x:33:\nadm:x:4:syslog,www-data\nbad:x:y:www-data\n\
                         video:x:44:www-data";

    fn who(text: &str) -> (u32, u32, Vec<u32>, Option<String>) {
        let identity = resolve(text, PASSWD, GROUP).unwrap();
        (identity.uid, identity.gid, identity.groups, identity.home)
    }

    #[test]
    fn names_and_numbers_as_docker_has_them() {
        assert_eq!(who("www-data"), (33, 33, vec![4, 44], Some("/var/www".to_owned())));
        assert_eq!(who("33"), (33, 33, vec![4, 44], Some("/var/www".to_owned())));
        assert_eq!(who("www-data:adm"), (33, 4, vec![], Some("/var/www".to_owned())));
        assert_eq!(who("5000"), (5000, 0, vec![], None));
        assert_eq!(who("5000:6000"), (5000, 6000, vec![], None));
        assert_eq!(who("root:"), (0, 0, vec![], Some("/root".to_owned())));
        assert_eq!(who(""), (0, 0, vec![], Some("/root".to_owned())));
        assert_eq!(home(33, PASSWD).as_deref(), Some("/var/www"));
        assert_eq!(home(44, PASSWD), None);
        assert_eq!(group("video", GROUP).unwrap(), 44);
        assert!(group("wheel", GROUP).unwrap_err().to_string().contains("group wheel"));
    }

    #[test]
    fn unknown_names_are_refused_by_name() {
        for (text, name) in [("nobody", "user nobody"), ("root:wheel", "group wheel")] {
            let error = resolve(text, PASSWD, GROUP).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn files_that_are_no_files_are_empty() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read(directory.path(), "passwd"), "");
        std::fs::create_dir(directory.path().join("passwd")).unwrap();
        assert_eq!(read(directory.path(), "passwd"), "");
        std::fs::write(directory.path().join("group"), b"x:\xff:1:").unwrap();
        assert_eq!(read(directory.path(), "group"), "x:\u{fffd}:1:");
        // A link leads nowhere but into the tree.
        std::os::unix::fs::symlink("/group", directory.path().join("inside")).unwrap();
        assert_eq!(read(directory.path(), "inside"), "x:\u{fffd}:1:");
        std::os::unix::fs::symlink("../../../etc/passwd", directory.path().join("out")).unwrap();
        assert_eq!(read(directory.path(), "out"), "");
    }
}
