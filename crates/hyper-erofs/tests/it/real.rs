//! Real trees, packed by the real GNU tar in each of its formats.

use crate::archive::convert;
use crate::listing::{Kind, Layer, Listing, assert_same, of_directory, of_layers, write};
use hyper_erofs::{DirectoryError, Limits, convert_directory};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

/// A tree with all that an unprivileged user can make.
pub fn make_tree(root: &Path) {
    fs::create_dir_all(root.join("usr/bin")).unwrap();
    fs::create_dir_all(root.join("deep").join("d".repeat(100)).join("e".repeat(120))).unwrap();
    fs::copy(std::env::current_exe().unwrap(), root.join("usr/bin/program")).unwrap();
    fs::write(root.join("empty"), b"").unwrap();
    fs::write(root.join("one"), b"1").unwrap();
    fs::write(root.join("block"), vec![b'b'; 4096]).unwrap();
    fs::write(root.join("deep").join("d".repeat(100)).join("e".repeat(120)).join("f"), b"deep")
        .unwrap();
    fs::write(root.join("new\nline \\ \u{e9}"), b"odd name").unwrap();
    fs::hard_link(root.join("one"), root.join("usr/other")).unwrap();
    symlink("../one", root.join("usr/link")).unwrap();
    symlink("t".repeat(150), root.join("long link")).unwrap();
    fs::set_permissions(root.join("usr/bin/program"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::set_permissions(root.join("usr"), fs::Permissions::from_mode(0o1777)).unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.write_all_at(b"in the middle", 3_000_000).unwrap();
    sparse.set_len(5_000_000).unwrap();
    let fifo = Command::new("mkfifo").arg(root.join("fifo")).status().unwrap();
    assert!(fifo.success());
    let value = b"binary\n\0\xff 7 a=b\n";
    let flags = rustix::fs::XattrFlags::empty();
    // Not every file system of a test machine has them.
    let _ = rustix::fs::setxattr(root.join("one"), "user.binary", value, flags);
}

fn from_directory(root: &Path) -> Layer {
    let mut blob = Vec::new();
    let index = convert_directory(root, &mut blob, &Limits::default()).unwrap();
    (index, blob)
}

/// Of a directory on disk what an image can say: link counts of directories differ between file systems.
fn comparable(mut listing: Listing) -> Listing {
    for record in listing.values_mut() {
        if record.kind == Kind::Directory {
            record.links = 0;
        }
        record.xattrs.retain(|name, _| name.starts_with(b"user."));
    }
    listing
}

#[test]
fn a_directory_is_what_the_kernel_shows() {
    let dir = tempfile::tempdir().unwrap();
    make_tree(dir.path());
    let found = of_layers(&[from_directory(dir.path())]);
    assert_same(&comparable(of_directory(dir.path())), &comparable(found));
}

#[test]
fn gnu_tar_in_every_format_is_what_the_kernel_shows() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    make_tree(&root);
    let expected = comparable(of_directory(&root));
    for format in ["gnu", "oldgnu", "posix"] {
        for sparse in [
            &[][..],
            &["--sparse"],
            &["--sparse", "--sparse-version=0.0"],
            &["--sparse", "--sparse-version=0.1"],
        ] {
            if format != "posix" && sparse.len() > 1 {
                continue;
            }
            let archive = dir.path().join("archive.tar");
            let mut tar = Command::new("tar");
            tar.arg(format!("--format={format}")).args(sparse).arg("-cf").arg(&archive);
            if format == "posix" {
                tar.args(["--xattrs", "--xattrs-include=*"]);
            }
            assert!(tar.arg("-C").arg(&root).arg(".").status().unwrap().success());
            let mut found =
                comparable(of_layers(&[convert(&fs::read(&archive).unwrap()).unwrap()]));
            let mut expected = expected.clone();
            if format != "posix" {
                // These formats have whole seconds and no xattrs.
                for record in found.values_mut().chain(expected.values_mut()) {
                    record.mtime.1 = 0;
                    record.xattrs.clear();
                }
            }
            assert_same(&expected, &found);
        }
    }
}

#[test]
fn converting_is_reproducible() {
    let dir = tempfile::tempdir().unwrap();
    make_tree(dir.path());
    let (one, two) = (from_directory(dir.path()), from_directory(dir.path()));
    assert_eq!(one.0.encode(), two.0.encode());
    assert_eq!(one.1, two.1);
}

#[test]
fn fsck_finds_nothing() {
    if Command::new("fsck.erofs").arg("--help").output().is_err() {
        eprintln!("skipped: no fsck.erofs (package erofs-utils)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    make_tree(&root);
    for number in 0..5000 {
        fs::write(root.join(format!("usr/bin/{number}")), number.to_string()).unwrap();
    }
    let disk = dir.path().join("disk");
    let written = write(&[from_directory(&root)], false);
    fs::write(&disk, &written.disk).unwrap();
    // Version 1.5 exits with 0 whatever it finds: only what it says counts.
    let verdict = || {
        let output = Command::new("fsck.erofs").arg("-d3").arg(&disk).output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let found = verdict();
    assert!(found.contains("No errors found"), "{found}");
    // It does notice damage.
    let mut damaged = written.disk.clone();
    damaged[1152 + 4] ^= 1;
    fs::write(&disk, &damaged).unwrap();
    assert!(verdict().contains("chksum"));
}

#[test]
fn sockets_are_skipped_and_links_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    symlink("/etc", dir.path().join("etc")).unwrap();
    let (index, blob) = from_directory(dir.path());
    let paths: Vec<&[u8]> = index.entries().iter().map(|entry| &entry.path[..]).collect();
    assert_eq!(paths, [&b""[..], b"etc"]);
    assert!(blob.is_empty());
}

#[test]
fn overlayfs_marks_by_xattr() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    fs::create_dir_all(root.join("opaque")).unwrap();
    fs::write(root.join("gone"), b"").unwrap();
    fs::create_dir(root.join("moved")).unwrap();
    let set = |path: &str, name: &str, value: &[u8]| {
        rustix::fs::setxattr(root.join(path), name, value, rustix::fs::XattrFlags::empty())
    };
    if set("opaque", "user.overlay.opaque", b"y").is_err() {
        eprintln!("skipped: no user xattrs in {root:?}");
        return;
    }
    set("gone", "user.overlay.whiteout", b"y").unwrap();
    set("moved", "user.overlay.origin", b"whatever").unwrap();
    let lower = crate::archive::Archive::default()
        .file("gone", b"lower")
        .file("opaque/hidden", b"lower")
        .file("moved/kept", b"lower")
        .convert()
        .unwrap();
    let listing = of_layers(&[lower, from_directory(root)]);
    let names: Vec<&str> = listing.keys().map(String::as_str).collect();
    assert_eq!(names, ["", "/moved", "/moved/kept", "/opaque"]);
    assert!(listing.values().all(|record| record.xattrs.is_empty()));
    set("moved", "user.overlay.redirect", b"/elsewhere").unwrap();
    let error = convert_directory(root, std::io::sink(), &Limits::default()).unwrap_err();
    assert!(matches!(error, DirectoryError::Overlay { .. }), "{error:?}");
}

#[test]
fn limits_hold_for_directories() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), vec![1; 5000]).unwrap();
    for limits in [
        Limits { max_data_bytes: 4999, ..Limits::default() },
        Limits { max_entries: 0, ..Limits::default() },
        Limits { max_depth: 0, ..Limits::default() },
    ] {
        let error = convert_directory(dir.path(), std::io::sink(), &limits).unwrap_err();
        assert!(matches!(error, DirectoryError::Limit { .. }), "{error:?}");
    }
    let error =
        convert_directory(Path::new("/nowhere"), std::io::sink(), &Limits::default()).unwrap_err();
    assert_eq!(error.to_string(), r#"cannot open "/nowhere""#);
}
