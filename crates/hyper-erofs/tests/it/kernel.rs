//! The kernel of the machine mounts the image, both ways. Needs root, loop devices and EROFS; skipped, saying so, elsewhere.

use crate::archive::{Archive, Head};
use crate::listing::{Layer, assert_same, of_directory, of_layers, write};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mount that goes when the test ends, however it ends.
struct Mount(PathBuf);

impl Mount {
    fn new(device: &Path, at: &Path, options: &str) -> Result<Self, String> {
        fs::create_dir_all(at).unwrap();
        run(
            "mount",
            &["-t", "erofs", "-o", options, &device.to_string_lossy(), &at.to_string_lossy()],
        )
        .map(|_| Self(at.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = run("umount", &[&self.0.to_string_lossy()]);
    }
}

/// A loop device, likewise.
struct Loop(String);

impl Loop {
    fn new(file: &Path) -> Result<Self, String> {
        run("losetup", &["--read-only", "--find", "--show", &file.to_string_lossy()]).map(Self)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = run("losetup", &["--detach", &self.0]);
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output =
        Command::new(program).args(arguments).output().map_err(|error| error.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

fn layers() -> Vec<Layer> {
    let mut lower = Archive::default()
        .directory("etc")
        .file("etc/passwd", b"root:x:0:0::/:/bin/sh\n")
        .file("etc/gone", b"x")
        .file("big", &vec![b'x'; 3_000_001])
        .head(Head::new("suid", b'0', 0).mode(0o6755))
        .head(Head::new("null", b'3', 0).device(1, 3))
        .head(Head::new("disk", b'4', 0).device(259, 70_000))
        .head(Head::new("fifo", b'6', 0));
    for number in 0..3000 {
        lower = lower.file(&format!("many/name {number}"), format!("{number}").as_bytes());
    }
    let mut upper = Archive::default()
        .whiteout("etc/.wh.gone")
        .hard_link("etc/link", "etc/passwd")
        .pax(&[("linkpath", &[b't'; 4095])])
        .symlink("long", "x")
        .symlink("short", "etc/passwd")
        .pax(&[("mtime", b"-300000000.123456789"), ("uid", b"100000"), ("gid", b"4294967294")])
        .file("old", b"old");
    for number in 0..100 {
        upper = upper
            .pax(&[
                ("SCHILY.xattr.user.same", b"the same value everywhere"),
                ("SCHILY.xattr.user.own", format!("{number}\n\0").as_bytes()),
                ("SCHILY.xattr.trusted.large", &vec![b'l'; 600 + number]),
                (
                    "SCHILY.xattr.security.capability",
                    b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
                ),
            ])
            .file(&format!("xattr/{number}"), &vec![b'y'; number * 100]);
    }
    vec![lower.convert().unwrap(), Archive::default().convert().unwrap(), upper.convert().unwrap()]
}

#[test]
fn the_kernel_shows_the_merged_tree_stitched_and_as_devices() {
    let has_erofs =
        fs::read_to_string("/proc/filesystems").is_ok_and(|list| list.contains("erofs"));
    if !rustix::process::geteuid().is_root() || !has_erofs {
        eprintln!("skipped: mounting EROFS needs root and a kernel that has it");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("mnt");
    let layers = layers();
    let expected = of_layers(&layers);
    for device_table in [true, false] {
        let written = write(&layers, device_table);
        let disk = dir.path().join("disk");
        fs::write(&disk, &written.disk).unwrap();
        let stitched = match Loop::new(&disk) {
            Ok(stitched) => stitched,
            Err(reason) => {
                eprintln!("skipped: no loop device: {reason}");
                return;
            }
        };
        {
            let mount = Mount::new(Path::new(&stitched.0), &at, "ro").unwrap();
            assert_same(&expected, &of_directory(&mount.0));
        }
        if !device_table {
            continue;
        }
        let meta = dir.path().join("meta");
        fs::write(&meta, &written.meta).unwrap();
        let meta = Loop::new(&meta).unwrap();
        let mut blobs = Vec::new();
        let mut options = "ro".to_owned();
        for placed in &written.layout.blobs {
            let blob = dir.path().join(format!("blob{}", placed.layer));
            fs::write(&blob, &layers[placed.layer].1).unwrap();
            let blob = Loop::new(&blob).unwrap();
            options.push_str(&format!(",device={}", blob.0));
            blobs.push(blob);
        }
        assert_eq!(blobs.len(), 2);
        let mount = Mount::new(Path::new(&meta.0), &at, &options).unwrap();
        assert_same(&expected, &of_directory(&mount.0));
    }
}
