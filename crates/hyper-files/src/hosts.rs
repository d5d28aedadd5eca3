//! `/etc/hosts` of a container that runs: lines of ours come and go, all others are its user's.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;

use crate::failure::{Outcome, invalid};
use crate::wrong_io;

/// Largest file that is changed, in bytes.
const MAX: u64 = 1 << 20;

/// Takes the lines `gone` out of the file and adds those of `new` that it lacks. In place, as the
/// file is mounted; who reads it meanwhile may see a part. Blocks.
///
/// # Errors
/// What the file system says; [`hyper_link::message::FailureKind::InvalidArgument`] for a file above 1 MiB.
pub fn change(path: &Path, gone: &[String], new: &[String]) -> Outcome<()> {
    let name = path.as_os_str().as_encoded_bytes();
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)
        .map_err(|error| wrong_io("open", name, &error))?;
    let mut old = Vec::new();
    (&file).take(MAX + 1).read_to_end(&mut old).map_err(|e| wrong_io("read", name, &e))?;
    if old.len() as u64 > MAX {
        return Err(invalid(format!("{} has more than {MAX} bytes", path.display())));
    }
    let text = changed(&old, gone, new);
    if text == old {
        return Ok(());
    }
    replace(&mut file, &text).map_err(|error| wrong_io("write", name, &error))
}

fn replace(file: &mut File, text: &[u8]) -> std::io::Result<()> {
    file.seek(SeekFrom::Start(0))?;
    file.write_all(text)?;
    file.set_len(text.len() as u64)
}

fn changed(old: &[u8], gone: &[String], new: &[String]) -> Vec<u8> {
    let is = |line: &[u8], one: &String| line.trim_ascii_end() == one.as_bytes();
    let lines = || old.split_inclusive(|byte| *byte == b'\n');
    let kept = lines().filter(|line| !gone.iter().any(|one| is(line, one)));
    let mut text: Vec<u8> = kept.flatten().copied().collect();
    for one in new.iter().filter(|one| !lines().any(|line| is(line, one))) {
        if text.last().is_some_and(|last| *last != b'\n') {
            text.push(b'\n');
        }
        text.extend_from_slice(one.as_bytes());
        text.push(b'\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;

    fn lines(lines: &[&str]) -> Vec<String> {
        lines.iter().map(|line| (*line).to_owned()).collect()
    }

    #[test]
    fn only_our_lines_change_and_the_file_stays_the_same_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts");
        let users = "127.0.0.1\tlocalhost\n# mine\n10.1.0.2\tbox other\n\n";
        std::fs::write(&path, format!("{users}10.1.0.2\tbox\nlast")).unwrap();
        let inode = std::fs::metadata(&path).unwrap().ino();
        let (gone, new) = (lines(&["10.1.0.2\tbox"]), lines(&["10.2.0.2\tbox"]));
        for _ in 0..2 {
            change(&path, &gone, &new).unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            assert_eq!(text, format!("{users}last\n10.2.0.2\tbox\n"));
        }
        // Shorter, and the way back.
        change(&path, &new, &[]).unwrap();
        change(&path, &[], &gone).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("{users}last\n10.1.0.2\tbox\n"));
        assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode);
    }

    #[test]
    fn what_is_no_file_of_ours_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (path, link) = (directory.path().join("hosts"), directory.path().join("link"));
        std::fs::write(&path, vec![b'\n'; (1 << 20) + 1]).unwrap();
        let error = change(&path, &[], &lines(&["a"])).unwrap_err();
        assert!(error.message.contains("more than 1048576 bytes"), "{error:?}");
        symlink(&path, &link).unwrap();
        change(&link, &[], &lines(&["a"])).unwrap_err();
        change(&directory.path().join("none"), &[], &lines(&["a"])).unwrap_err();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), (1 << 20) + 1);
    }
}
