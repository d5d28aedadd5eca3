//! One ext4 template for each size, made once by `mke2fs`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::DiskError;

/// Changes when the options below do, so that old templates are not used again.
const VERSION: u32 = 1;

/// The template of this size, made if it is missing.
pub(crate) fn ensure(dir: &Path, bytes: u64) -> Result<PathBuf, DiskError> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let path = dir.join(format!("ext4-v{VERSION}-{bytes}.img"));
    if path.exists() {
        return Ok(path);
    }
    std::fs::create_dir_all(dir).map_err(DiskError::io("make directory", dir))?;
    let unique = format!(".{}.{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let temporary = path.with_extension(unique);
    let made = make(&temporary, bytes).and_then(|()| {
        std::fs::rename(&temporary, &path).map_err(DiskError::io("name template", &path))
    });
    if made.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    made.map(|()| path)
}

fn make(path: &Path, bytes: u64) -> Result<(), DiskError> {
    let file = File::create_new(path).map_err(DiskError::io("make template", path))?;
    file.set_len(bytes).map_err(DiskError::io("size template", path))?;
    let output = Command::new(mke2fs().ok_or(DiskError::NoMke2fs)?)
        // The file is new and sparse, so it reads as zeros: nothing has to be zeroed now, nor by
        // the guest's lazy initialization later, which would fill the holes. The resize inode would
        // cost 4 MiB of each copy.
        .args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-O",
            "^resize_inode",
            "-b",
            "4096",
            "-m",
            "0",
            "-J",
            "size=16",
        ])
        .args(["-E", "nodiscard,lazy_journal_init=1,assume_storage_prezeroed=1,root_owner=0:0"])
        .arg(path)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .map_err(DiskError::io("run mke2fs on", path))?;
    if !output.status.success() {
        let detail = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(DiskError::Mke2fs { bytes, detail: format!("{}: {detail}", output.status) });
    }
    file.sync_all().map_err(DiskError::io("sync template", path))
}

fn mke2fs() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/sbin".into(), "/usr/sbin".into()])
        .map(|dir| dir.join("mke2fs"))
        .find(|program| program.is_file())
}

#[cfg(test)]
mod test {
    use crate::{DiskError, fresh_ext4_from};
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn many_at_once_get_sound_sparse_file_systems() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = 10 << 30;
        std::thread::scope(|scope| {
            for n in 0..4 {
                let dir = dir.path();
                scope.spawn(move || {
                    fresh_ext4_from(&dir.join("t"), &dir.join(format!("{n}.ext4")), bytes).unwrap();
                });
            }
        });
        for n in 0..4 {
            let path = dir.path().join(format!("{n}.ext4"));
            let meta = std::fs::metadata(&path).unwrap();
            assert_eq!(meta.len(), bytes);
            assert!(meta.blocks() * 512 < 1 << 20, "{} bytes allocated", meta.blocks() * 512);
            let check = std::process::Command::new("/sbin/e2fsck").arg("-fn").arg(&path).output();
            let check = check.unwrap();
            assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
        }
        assert_eq!(std::fs::read_dir(dir.path().join("t")).unwrap().count(), 1);
    }

    #[test]
    fn odd_sizes_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for bytes in [0, 4096, (16 << 20) + 1] {
            let made = fresh_ext4_from(dir.path(), &dir.path().join("x"), bytes);
            assert!(matches!(made, Err(DiskError::Size(size)) if size == bytes));
        }
    }
}
