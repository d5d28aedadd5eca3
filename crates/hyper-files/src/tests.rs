//! Real directories, devices and attributes: needs root, as the guests' tests do.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
};

use hyper_erofs::{
    Limits, Timestamp,
    tar::{Header, HeaderKind, Reader, write},
};
use hyper_link::message::{FailureKind, WriteFiles};
use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat, setxattr};

use crate::failure::Outcome;
use crate::{changes, path, tree, unpack};

fn entries(tar: &[u8]) -> BTreeMap<String, (Header, Vec<u8>)> {
    let mut reader = Reader::new(tar, &Limits::default());
    let mut all = BTreeMap::new();
    while let Some(header) = reader.next_entry().unwrap() {
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut reader, &mut content).unwrap();
        all.insert(String::from_utf8(header.path.clone()).unwrap(), (header, content));
    }
    all
}

fn entry(path: &str, kind: HeaderKind) -> Header {
    let (mtime, path) = (Timestamp { seconds: 1_000, nanoseconds: 5 }, path.as_bytes().to_vec());
    Header { path, kind, mode: 0o640, uid: 7, gid: 8, mtime, xattrs: vec![] }
}

fn archive(list: &[(Header, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (header, content) in list {
        bytes.extend(write::encode(header));
        bytes.extend(*content);
        bytes.extend(write::padding_of(content.len() as u64));
    }
    bytes.extend(write::END);
    bytes
}

fn file(path: &str, content: &'static [u8]) -> (Header, &'static [u8]) {
    (entry(path, HeaderKind::File { size: content.len() as u64 }), content)
}

fn request(path: &str) -> WriteFiles {
    let (container, path) = ("c".to_owned(), path.to_owned());
    WriteFiles { container, path, keep_directories: true, owner: None, stream: 0 }
}

fn unpack_at(root: &Path, at: &str, tar: &[u8]) -> Outcome<()> {
    unpack::unpack(path::root(root).unwrap(), &request(at), tar)
}

#[test]
fn a_tree_goes_out_and_comes_back_the_same() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = from.path().join("a/dir");
    fs::create_dir_all(source.join("sub")).unwrap();
    fs::write(source.join("one"), "hello").unwrap();
    fs::hard_link(source.join("one"), source.join("sub/two")).unwrap();
    symlink("../../../etc/passwd", source.join("link")).unwrap();
    fs::set_permissions(source.join("one"), fs::Permissions::from_mode(0o4711)).unwrap();
    std::os::unix::fs::chown(source.join("one"), Some(3_000_000), Some(5)).unwrap();
    fs::set_permissions(source.join("one"), fs::Permissions::from_mode(0o4711)).unwrap();
    setxattr(source.join("one"), "trusted.test", b"\0v", XattrFlags::empty()).unwrap();
    let fifo = Mode::from_raw_mode(0o600);
    mknodat(CWD, source.join("fifo"), FileType::Fifo, fifo, 0).unwrap();
    mknodat(CWD, source.join("null"), FileType::CharacterDevice, fifo, makedev(1, 3)).unwrap();
    let mut tar = Vec::new();
    tree::write(&path::root(from.path()).unwrap(), "/a/dir", &mut tar).unwrap();
    let names: Vec<String> = entries(&tar).into_keys().collect();
    assert_eq!(
        names,
        ["dir/", "dir/fifo", "dir/link", "dir/null", "dir/one", "dir/sub/", "dir/sub/two"]
    );
    unpack_at(to.path(), "/", &tar).unwrap();
    let back = to.path().join("dir");
    let (old, new) = (fs::metadata(source.join("one")), fs::metadata(back.join("one")));
    let told = |meta: fs::Metadata| {
        (meta.mode(), meta.uid(), meta.gid(), meta.size(), meta.mtime(), meta.mtime_nsec())
    };
    let of_new = new.unwrap();
    assert_eq!(of_new.ino(), fs::metadata(back.join("sub/two")).unwrap().ino(), "a hard link");
    assert_eq!(told(of_new), told(old.unwrap()));
    assert_eq!(fs::read_link(back.join("link")).unwrap().to_str(), Some("../../../etc/passwd"));
    assert_eq!(fs::metadata(back.join("null")).unwrap().rdev(), makedev(1, 3));
    let mut value = [0; 8];
    let len = rustix::fs::getxattr(back.join("one"), "trusted.test", &mut value[..]).unwrap();
    assert_eq!(&value[..len], b"\0v");
    let times = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    assert_eq!(times(&back.join("sub")), times(&source.join("sub")), "a directory's time");
}

#[test]
fn sockets_are_counted_by_all_their_names_and_are_no_entries() {
    let from = tempfile::tempdir().unwrap();
    fs::write(from.path().join("file"), "x").unwrap();
    let mode = Mode::from_raw_mode(0o600);
    mknodat(CWD, from.path().join("one"), FileType::Socket, mode, 0).unwrap();
    fs::hard_link(from.path().join("one"), from.path().join("two")).unwrap();
    let mut tar = Vec::new();
    let omitted = tree::write_root(&path::root(from.path()).unwrap(), &mut tar).unwrap();
    assert_eq!(entries(&tar).into_keys().collect::<Vec<_>>(), ["file"]);
    let note = omitted.note().unwrap();
    assert!(note.contains("one") && note.contains("two"), "{note}");
}

#[test]
fn names_of_entries_are_dockers() {
    let from = tempfile::tempdir().unwrap();
    fs::create_dir(from.path().join("d")).unwrap();
    fs::write(from.path().join("d/f"), "x").unwrap();
    symlink("d", from.path().join("l")).unwrap();
    let root = path::root(from.path()).unwrap();
    let names = |path: &str| {
        let mut tar = Vec::new();
        tree::write(&root, path, &mut tar).unwrap();
        entries(&tar).into_keys().collect::<Vec<_>>()
    };
    assert_eq!(names("/d"), ["d/", "d/f"]);
    assert_eq!(names("/d/."), ["./", "./f"]);
    assert_eq!(names("/l"), ["l"]);
    assert_eq!(names("/l/"), ["l/", "l/f"]);
    assert_eq!(names("/d/f"), ["f"]);
    assert_eq!(names("/"), ["/", "/d/", "/d/f", "/l"]);
    let mut tar = Vec::new();
    tree::write_root(&root, &mut tar).unwrap();
    assert_eq!(entries(&tar).into_keys().collect::<Vec<_>>(), ["d/", "d/f", "l"]);
}

#[test]
fn an_archive_never_writes_outside_of_the_root() {
    let outer = tempfile::tempdir().unwrap();
    let root = outer.path().join("root");
    fs::create_dir_all(root.join("in")).unwrap();
    fs::create_dir(outer.path().join("out")).unwrap();
    symlink(outer.path().join("out"), root.join("in/absolute")).unwrap();
    symlink("../../../out", root.join("in/up")).unwrap();
    for (list, fails) in [
        (vec![file("../x", b"1")], true),
        (vec![file("a/../../x", b"1")], true),
        (
            vec![(
                entry("h", HeaderKind::HardLink { target: b"../../etc/passwd".to_vec() }),
                &b""[..],
            )],
            true,
        ),
        (vec![file("absolute/x", b"1")], true),
        (vec![file("up/x", b"1")], true),
        (vec![file("/abs", b"1")], false),
        (
            vec![
                (entry("s", HeaderKind::Symlink { target: b"/".to_vec() }), &b""[..]),
                file("s/through", b"1"),
            ],
            false,
        ),
        // A link in a file's place is replaced, not written through.
        (vec![file("up", b"1")], false),
    ] {
        let names: Vec<_> = list.iter().map(|(header, _)| header.path.clone()).collect();
        let outcome = unpack_at(&root, "/in", &archive(&list));
        assert_eq!(outcome.is_err(), fails, "{names:?}: {outcome:?}");
    }
    assert_eq!(fs::read_dir(outer.path().join("out")).unwrap().count(), 0);
    assert!(!outer.path().join("x").exists());
    assert!(root.join("in/abs").is_file() && root.join("through").is_file());
    assert!(root.join("in/up").symlink_metadata().unwrap().is_file());
}

#[test]
fn what_is_in_the_way() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("d/deep/er")).unwrap();
    fs::write(root.path().join("f"), "old").unwrap();
    let over = archive(&[file("d", b"new")]);
    let error = unpack_at(root.path(), "/", &over).unwrap_err();
    assert_eq!(error.kind, FailureKind::InvalidArgument);
    assert!(error.message.contains("cannot overwrite directory \"d\""), "{}", error.message);
    let under = archive(&[(entry("f/", HeaderKind::Directory), b"")]);
    assert!(unpack_at(root.path(), "/", &under).is_err());
    let forced = WriteFiles { keep_directories: false, ..request("/") };
    unpack::unpack(path::root(root.path()).unwrap(), &forced, &over[..]).unwrap();
    assert_eq!(fs::read(root.path().join("d")).unwrap(), b"new");
    let made = fs::metadata(root.path().join("d")).unwrap();
    assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (7, 8, 0o640));
    assert_eq!((made.mtime(), made.mtime_nsec()), (1_000, 5));
    // Missing directories are made; the place itself must be there, and be one.
    unpack_at(root.path(), "/", &archive(&[file("new/dir/f", b"x")])).unwrap();
    assert!(root.path().join("new/dir/f").is_file());
    assert_eq!(unpack_at(root.path(), "/gone", &over).unwrap_err().kind, FailureKind::NotFound);
    let error = unpack_at(root.path(), "/f", &over).unwrap_err();
    assert!(error.message.contains("extraction point /f is not a directory"), "{}", error.message);
    assert!(
        unpack_at(root.path(), "/", b"no archive at all, but long enough to be a header").is_err()
    );
}

#[test]
fn zeros_become_holes_and_holes_are_kept_in_layers() {
    let root = tempfile::tempdir().unwrap();
    let (upper, image) = (root.path().join("upper"), root.path().join("image"));
    fs::create_dir(&upper).unwrap();
    fs::create_dir(&image).unwrap();
    let sparse = fs::File::create(upper.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.write_all_at(b"middle", 32 << 20).unwrap();
    let layers = || changes::Layers {
        upper: path::root(&upper).unwrap(),
        image: path::root(&image).unwrap(),
    };
    let mut tar = Vec::new();
    changes::write_layer(&layers(), &mut tar).unwrap();
    assert!(tar.len() < 1 << 20, "{} bytes", tar.len());
    unpack_at(&image, "/", &tar).unwrap();
    let back = fs::metadata(image.join("sparse")).unwrap();
    assert_eq!(back.len(), 64 << 20);
    assert!(back.blocks() * 512 < 1 << 20, "{} blocks", back.blocks());
    let same = fs::read(upper.join("sparse")).unwrap() == fs::read(image.join("sparse")).unwrap();
    assert!(same);
}

/// What Docker says of the same: a list of kind and path.
fn listed(layers: &changes::Layers) -> Vec<String> {
    let mut bytes = Vec::new();
    changes::write_list(layers, &mut bytes).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let mut lines: Vec<String> = text.split_terminator('\0').map(str::to_owned).collect();
    lines.sort_by(|a, b| a[1..].cmp(&b[1..]));
    lines
}

#[test]
fn changes_are_told_as_docker_tells_them() {
    let root = tempfile::tempdir().unwrap();
    let (upper, image) = (root.path().join("upper"), root.path().join("image"));
    for dir in ["etc", "same/in", "was/x", "opaque/old", "file-dir/a"] {
        fs::create_dir_all(image.join(dir)).unwrap();
    }
    for file in ["etc/passwd", "gone", "same/in/changed", "opaque/both", "touched"] {
        fs::write(image.join(file), "old").unwrap();
    }
    for dir in ["etc", "same/in", "opaque", "new/dir", "proc", "sys", "dev/pts", "was"] {
        fs::create_dir_all(upper.join(dir)).unwrap();
    }
    for file in ["same/in/changed", "opaque/both", "new/dir/f", "file-dir"] {
        fs::write(upper.join(file), "newer").unwrap();
    }
    // Made for mounts, as Hyper does.
    for file in ["etc/hosts", "etc/resolv.conf"] {
        fs::write(upper.join(file), "").unwrap();
    }
    // Copied up and put back.
    fs::copy(image.join("touched"), upper.join("touched")).unwrap();
    let time = fs::metadata(image.join("touched")).unwrap().modified().unwrap();
    fs::File::options()
        .write(true)
        .open(upper.join("touched"))
        .unwrap()
        .set_modified(time)
        .unwrap();
    let whiteout = |name: &str| {
        let mode = Mode::from_raw_mode(0);
        mknodat(CWD, upper.join(name), FileType::CharacterDevice, mode, 0).unwrap();
    };
    whiteout("gone");
    whiteout("was/x");
    whiteout("never-there");
    setxattr(upper.join("opaque"), "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
    let layers =
        changes::Layers { upper: path::root(&upper).unwrap(), image: path::root(&image).unwrap() };
    assert_eq!(
        listed(&layers),
        [
            "C/file-dir",
            "D/file-dir/a",
            "D/gone",
            "A/new",
            "A/new/dir",
            "A/new/dir/f",
            "C/opaque",
            "C/opaque/both",
            "D/opaque/old",
            "C/same",
            "C/same/in",
            "C/same/in/changed",
            "C/was",
            "D/was/x",
        ]
    );
    let mut tar = Vec::new();
    changes::write_layer(&layers, &mut tar).unwrap();
    let all = entries(&tar);
    assert_eq!(
        all.keys().collect::<Vec<_>>(),
        [
            ".wh.gone",
            "file-dir",
            "new/",
            "new/dir/",
            "new/dir/f",
            "opaque/",
            "opaque/.wh..wh..opq",
            "opaque/both",
            "same/",
            "same/in/",
            "same/in/changed",
            "touched",
            "was/",
            "was/.wh.x",
        ]
    );
    assert_eq!(all["new/dir/f"].1, b"newer");
    assert!(all["opaque/"].0.xattrs.is_empty(), "the overlay's own attributes stay");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    /// Whatever the bytes are: an error or files below the root, never a panic.
    #[test]
    fn hostile_archives_do_no_harm(
        names in proptest::collection::vec("(\\.\\./|/|a/|b|\\.){1,6}", 1..6),
        kinds in proptest::collection::vec(0..5u8, 6), flip in any::<Option<(u16, u8)>>(),
    ) {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("root");
        fs::create_dir(&root).unwrap();
        let list: Vec<(Header, &[u8])> = names.iter().zip(&kinds).map(|(name, kind)| {
            let target = names[0].clone().into_bytes();
            match kind {
                0 => file(name, b"content"),
                1 => (entry(name, HeaderKind::Directory), &b""[..]),
                2 => (entry(name, HeaderKind::Symlink { target }), &b""[..]),
                3 => (entry(name, HeaderKind::HardLink { target }), &b""[..]),
                _ => (entry(name, HeaderKind::Fifo), &b""[..]),
            }
        }).collect();
        let mut tar = archive(&list);
        if let Some((at, byte)) = flip {
            let at = usize::from(at) % tar.len();
            tar[at] = byte;
        }
        let _any = unpack_at(&root, "/", &tar);
        prop_assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 1);
    }
}
