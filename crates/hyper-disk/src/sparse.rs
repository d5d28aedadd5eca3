//! Copies a file's data and leaves its holes: lseek(2) `SEEK_DATA`, `SEEK_HOLE`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RenameFlags, SeekFrom, copy_file_range, ioctl_ficlone, linkat,
    open, renameat_with, seek,
};
use rustix::io::Errno;

/// Copies `from` to `to`, which must not exist, readable by its owner only. It has its name when it is
/// complete: a copy that is killed leaves none.
///
/// # Errors
/// The system's; `to` is then not there, or what it was.
pub fn copy_sparse(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    if to.symlink_metadata().is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let directory = to.parent().filter(|parent| !parent.as_os_str().is_empty());
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    match open(directory.unwrap_or(Path::new(".")), flags, mode) {
        Ok(unnamed) => {
            let target = File::from(unnamed);
            copy(&source, &target)?;
            let held = format!("/proc/self/fd/{}", target.as_raw_fd());
            Ok(linkat(CWD, held, CWD, to, AtFlags::SYMLINK_FOLLOW)?)
        }
        // File systems without files that have no name, e.g. NFS.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => copy_named(&source, to),
        Err(error) => Err(error.into()),
    }
}

/// By a name of its own first, which stays if the copy is killed.
fn copy_named(source: &File, to: &Path) -> io::Result<()> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut name = to.as_os_str().to_owned();
    name.push(format!(".{}.{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    let temporary = PathBuf::from(name);
    let target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let named = copy(source, &target).and_then(|()| {
        match renameat_with(CWD, &temporary, CWD, to, RenameFlags::NOREPLACE) {
            // Neither does every file system know this.
            Err(Errno::INVAL | Errno::NOSYS) => std::fs::hard_link(&temporary, to),
            named => named.map_err(io::Error::from),
        }
    });
    // There only if it was linked, or if something failed.
    let _ = std::fs::remove_file(&temporary);
    named
}

fn copy(source: &File, target: &File) -> io::Result<()> {
    if ioctl_ficlone(target, source).is_ok() {
        return Ok(());
    }
    let length = source.metadata()?.len();
    target.set_len(length)?;
    let mut at = 0;
    while at < length {
        let start = match seek(source, SeekFrom::Data(at)) {
            Ok(start) => start,
            // No data after this place.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        at = seek(source, SeekFrom::Hole(start))?;
        range(source, target, start, at)?;
    }
    Ok(())
}

fn range(source: &File, target: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut from, mut to) = (start, start);
    while from < end {
        let rest = usize::try_from(end - from).unwrap_or(usize::MAX);
        match copy_file_range(source, Some(&mut from), target, Some(&mut to), rest) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            // Other file systems, old kernels: through memory.
            Err(_) => return through_memory(source, target, from, end),
        }
    }
    Ok(())
}

/// What is zero is not written, as the target is new: a file system that knows no holes shows them as data.
fn through_memory(source: &File, target: &File, start: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    let mut at = start;
    while at < end {
        let want = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
        let read = source.read_at(&mut buffer[..want], at)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if buffer[..read].iter().any(|byte| *byte != 0) {
            target.write_all_at(&buffer[..read], at)?;
        }
        at += read as u64;
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn data_is_copied_and_holes_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        let file = File::create(&from).unwrap();
        file.set_len(1 << 30).unwrap();
        file.write_all_at(b"first", 0).unwrap();
        file.write_all_at(&[7; 300_000], 500 << 20).unwrap();
        copy_sparse(&from, &to).unwrap();
        let copy = File::open(&to).unwrap();
        assert_eq!(copy.metadata().unwrap().len(), 1 << 30);
        assert!(copy.metadata().unwrap().blocks() < 4096, "sparse");
        let mut bytes = vec![0; 300_001];
        copy.read_exact_at(&mut bytes, 500 << 20).unwrap();
        assert!(bytes[..300_000].iter().all(|byte| *byte == 7) && bytes[300_000] == 0);
        assert!(copy_sparse(&from, &to).is_err(), "an existing file is not touched");
        assert!(to.exists());
    }

    #[test]
    fn a_copy_that_is_killed_half_way_leaves_no_half_file() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&from, vec![5; 64 << 20]).unwrap();
        for named in [false, true] {
            // Whoever kills it sees what this sees.
            let watching = std::thread::spawn({
                let to = to.clone();
                move || {
                    while !to.exists() {}
                    let file = File::open(&to).unwrap();
                    let mut last = [0];
                    file.read_exact_at(&mut last, (64 << 20) - 1).unwrap();
                    last[0]
                }
            });
            match named {
                false => copy_sparse(&from, &to).unwrap(),
                true => copy_named(&File::open(&from).unwrap(), &to).unwrap(),
            }
            assert_eq!(watching.join().unwrap(), 5, "complete when it has its name");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
            assert!(copy_named(&File::open(&from).unwrap(), &to).is_err());
            std::fs::remove_file(&to).unwrap();
        }
    }

    #[test]
    fn the_way_through_memory_copies_too() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&from, vec![3; 600_000]).unwrap();
        let target = File::create(&to).unwrap();
        through_memory(&File::open(&from).unwrap(), &target, 4096, 600_000).unwrap();
        let copied = std::fs::read(&to).unwrap();
        assert_eq!((copied.len(), copied[0], copied[4096]), (600_000, 0, 3));
    }

    /// Containers of a data root on 9p took 10 GiB of the host's disk each.
    #[test]
    fn holes_that_are_shown_as_data_stay_holes() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        let mut bytes = vec![0; 8 << 20];
        bytes[5 << 20] = 9;
        std::fs::write(&from, &bytes).unwrap();
        let target = File::create(&to).unwrap();
        target.set_len(8 << 20).unwrap();
        through_memory(&File::open(&from).unwrap(), &target, 0, 8 << 20).unwrap();
        assert!(target.metadata().unwrap().blocks() <= 1024, "256 KiB of it are there");
        assert!(std::fs::read(&to).unwrap() == bytes);
    }
}
