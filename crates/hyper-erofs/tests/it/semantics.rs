//! What archives of each format mean.

use crate::archive::{Archive, Head};
use crate::listing::{Kind, of_layers};
use hyper_erofs::{Entry, Follow, Kind as EntryKind, LookupError, merge};

#[track_caller]
fn only(archive: Archive) -> (Entry, Vec<u8>) {
    let (index, blob) = archive.convert().unwrap();
    let [entry] = index.entries() else { panic!("{} entries", index.entries().len()) };
    (entry.clone(), blob)
}

#[test]
fn pax_overrides_the_header() {
    let long = "directory/".repeat(20) + "file";
    let archive = Archive::default()
        .pax(&[
            ("path", long.as_bytes()),
            ("size", b"3"),
            ("uid", b"4294967294"),
            ("gid", b"100000"),
            ("mtime", b"-1.5"),
            ("SCHILY.xattr.security.capability", b"\x01\0\0\x02\n\n=\0"),
            ("comment", b"ignored"),
        ])
        .head(Head::new("short", b'0', 9999))
        .padded(b"abc");
    let (entry, blob) = only(archive);
    assert_eq!(entry.path, long.as_bytes());
    let EntryKind::File { attributes, data } = entry.kind else { panic!("not a file") };
    assert_eq!((data.size, attributes.uid, attributes.gid), (3, 4_294_967_294, 100_000));
    assert_eq!((attributes.mtime.seconds, attributes.mtime.nanoseconds), (-2, 500_000_000));
    assert_eq!(attributes.xattrs[0].value, b"\x01\0\0\x02\n\n=\0");
    assert_eq!(&blob[..3], b"abc");
    assert_eq!(blob.len(), 4096);
}

#[test]
fn pax_describes_one_entry_and_global_headers_all() {
    let archive = Archive::default()
        .extended(b'g', &crate::archive::record("uid", b"7"))
        .pax(&[("uid", b"8")])
        .file("a", b"")
        .file("b", b"");
    let (index, _) = archive.convert().unwrap();
    let uids: Vec<u32> =
        index.entries().iter().map(|entry| entry.kind.attributes().unwrap().uid).collect();
    assert_eq!(uids, [8, 7]);
}

#[test]
fn gnu_long_names_and_links() {
    let name = "n".repeat(200);
    let target = "t".repeat(300);
    let archive = Archive::default()
        .extended(b'K', format!("{target}\0").as_bytes())
        .extended(b'L', format!("{name}\0").as_bytes())
        .symlink("cut", "cut");
    let (entry, _) = only(archive);
    assert_eq!(entry.path, name.as_bytes());
    assert!(
        matches!(entry.kind, EntryKind::Symlink { target: found, .. } if found == target.as_bytes())
    );
}

#[test]
fn sparse_files_of_every_format() {
    let mut expected = vec![0; 100];
    expected[10..14].copy_from_slice(b"abcd");
    expected[50..53].copy_from_slice(b"efg");
    let content = |archive: Archive| {
        let (entry, blob) = only(archive);
        assert_eq!(entry.path, b"s");
        let EntryKind::File { data, .. } = entry.kind else { panic!("not a file") };
        blob[..usize::try_from(data.size).unwrap()].to_vec()
    };
    let v00 = Archive::default()
        .pax(&[
            ("GNU.sparse.size", b"100"),
            ("GNU.sparse.numblocks", b"2"),
            ("GNU.sparse.offset", b"10"),
            ("GNU.sparse.numbytes", b"4"),
            ("GNU.sparse.offset", b"50"),
            ("GNU.sparse.numbytes", b"3"),
        ])
        .file("s", b"abcdefg");
    assert_eq!(content(v00), expected);
    let v01 = Archive::default()
        .pax(&[
            ("GNU.sparse.size", b"100"),
            ("GNU.sparse.map", b"10,4,50,3"),
            ("GNU.sparse.name", b"s"),
        ])
        .file("GNUSparseFile.1/s", b"abcdefg");
    assert_eq!(content(v01), expected);
    let mut stored = b"2\n10\n4\n50\n3\n".to_vec();
    stored.resize(512, 0);
    stored.extend_from_slice(b"abcdefg");
    let v10 = Archive::default()
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", b"100"),
            ("GNU.sparse.name", b"s"),
        ])
        .file("GNUSparseFile.1/s", &stored);
    assert_eq!(content(v10), expected);
    let mut head = Head::new("s", b'S', 7);
    head.put(257, b"ustar  \0");
    head.put(386, b"00000000012\x0000000000004\0").put(410, b"00000000062\x0000000000003\0");
    head.put(483, b"00000000144\0");
    assert_eq!(content(Archive::default().head(head).padded(b"abcdefg")), expected);
}

#[test]
fn old_gnu_sparse_with_an_extension_block() {
    let mut head = Head::new("s", b'S', 5);
    head.put(257, b"ustar  \0");
    let mut extension = [0; 512];
    for number in 0..5usize {
        let pair = format!("{:011o}\0{:011o}\0", number * 10, 1);
        match number {
            0..4 => {
                head.put(386 + number * 24, pair.as_bytes());
            }
            _ => extension[..24].copy_from_slice(pair.as_bytes()),
        }
    }
    head.0[482] = 1;
    head.put(483, b"00000000062\0");
    let (_, blob) = only(Archive::default().head(head).raw(&extension).padded(b"abcde"));
    assert_eq!((blob[0], blob[10], blob[20], blob[30], blob[40]), (b'a', b'b', b'c', b'd', b'e'));
    assert_eq!(blob.iter().filter(|byte| **byte != 0).count(), 5);
}

#[test]
fn v7_directories_end_in_a_slash() {
    let mut head = Head::new("old/", 0, 0);
    head.put(257, &[0; 8]);
    let (entry, _) = only(Archive::default().head(head));
    assert!(matches!(entry.kind, EntryKind::Directory { .. }));
}

#[test]
fn aufs_names_are_left_out() {
    let archive = Archive::default()
        .directory(".wh..wh.plnk")
        .file(".wh..wh.plnk/12.34", b"x")
        .file(".wh..wh.aufs", b"")
        .file("kept", b"");
    assert_eq!(only(archive).0.path, b"kept");
}

/// The specification: whiteouts hide lower layers only, wherever they stand in the archive.
#[test]
fn a_whiteout_never_hides_its_own_layer() {
    let lower = Archive::default()
        .file("d/old", b"1")
        .file("e/old", b"1")
        .file("f", b"1")
        .convert()
        .unwrap();
    let upper = Archive::default()
        .file("d/new", b"2")
        .whiteout("d/.wh..wh..opq")
        .file("e/new", b"2")
        .whiteout(".wh.e")
        .file("f", b"2")
        .whiteout(".wh.f")
        .convert()
        .unwrap();
    let listing = of_layers(&[lower, upper]);
    let names: Vec<&str> = listing.keys().map(String::as_str).collect();
    assert_eq!(names, ["", "/d", "/d/new", "/e", "/e/new", "/f"]);
    assert_eq!(listing["/f"].kind, Kind::File(b"2".to_vec()));
}

#[test]
fn hard_links_reach_into_lower_layers() {
    let lower = Archive::default().file("a", b"content").convert().unwrap();
    let upper = Archive::default().hard_link("b", "a").convert().unwrap();
    let top = Archive::default().whiteout(".wh.a").convert().unwrap();
    let listing = of_layers(&[lower.clone(), upper.clone()]);
    assert_eq!((listing["/b"].same_as.as_str(), listing["/b"].links), ("/a", 2));
    let listing = of_layers(&[lower, upper, top]);
    assert_eq!((listing["/b"].same_as.as_str(), listing["/b"].links), ("/b", 1));
    assert_eq!(listing["/b"].kind, Kind::File(b"content".to_vec()));
}

#[test]
fn parents_that_are_links_are_followed_and_directories_replace_links() {
    let base = Archive::default().directory("usr/lib").symlink("lib", "usr/lib").convert().unwrap();
    let through = Archive::default().file("lib/x.so", b"x").convert().unwrap();
    let listing = of_layers(&[base.clone(), through]);
    assert!(listing.contains_key("/usr/lib/x.so"));
    assert_eq!(listing["/lib"].kind, Kind::Symlink(b"usr/lib".to_vec()));
    let replacing = Archive::default().directory("lib").file("lib/x.so", b"x").convert().unwrap();
    let listing = of_layers(&[base, replacing]);
    assert!(listing.contains_key("/lib/x.so") && !listing.contains_key("/usr/lib/x.so"));
}

#[test]
fn types_change_between_layers() {
    let lower =
        Archive::default().file("a/b/c", b"").file("f", b"").symlink("l", "f").convert().unwrap();
    let upper =
        Archive::default().file("a", b"now a file").directory("f").file("l/x", b"").convert();
    let listing = of_layers(&[lower, upper.unwrap()]);
    assert_eq!(listing["/a"].kind, Kind::File(b"now a file".to_vec()));
    assert!(!listing.contains_key("/a/b"));
    // `l` leads to `f`, which is a directory by now.
    assert!(listing.contains_key("/f/x"));
}

#[test]
fn later_entries_of_one_archive_replace_earlier_ones() {
    let layer =
        Archive::default().file("a", b"1").hard_link("b", "a").file("a", b"2").convert().unwrap();
    let listing = of_layers(&[layer]);
    assert_eq!(listing["/a"].kind, Kind::File(b"2".to_vec()));
    assert_eq!(listing["/b"].kind, Kind::File(b"1".to_vec()));
    assert_eq!((listing["/a"].links, listing["/b"].links), (1, 1));
}

#[test]
fn look_ups_resolve_links_inside_the_tree() {
    let layer = Archive::default()
        .file("usr/bin/env", b"x")
        .symlink("bin", "usr/bin")
        .symlink("usr/up", "../bin/env")
        .symlink("abs", "/usr/up")
        .symlink("loop", "loop")
        .convert()
        .unwrap();
    let tree = merge([&layer.0]).unwrap();
    let inode = |path: &str| tree.lookup(path.as_bytes(), Follow::Yes).map(|node| node.inode);
    assert_eq!(inode("/abs"), inode("usr/bin/env"));
    assert_eq!(inode("/bin/../bin/./env"), inode("usr/bin/env"));
    assert_eq!(inode("../../bin/env"), inode("usr/bin/env"));
    assert_ne!(tree.lookup(b"/abs", Follow::No).unwrap().inode, inode("/abs").unwrap());
    assert_eq!(inode("/loop"), Err(LookupError::SymlinkLoop));
    assert_eq!(inode("/usr/bin/env/x"), Err(LookupError::NotDirectory));
    assert_eq!(inode("/nothing"), Err(LookupError::NotFound));
    let names: Vec<_> =
        tree.read_directory(b"/usr").unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, [&b"bin"[..], b"up"]);
}

#[test]
fn content_of_v7_directories_is_skipped() {
    let mut head = Head::new("old/", 0, 600);
    head.put(257, &[0; 8]);
    let (index, _) =
        Archive::default().head(head).padded(&[b'x'; 600]).file("next", b"").convert().unwrap();
    assert_eq!(index.entries()[1].path, b"next");
}

#[test]
fn a_directory_of_many_directories_does_not_take_quadratic_time() {
    let mut archive = Archive::default();
    for number in 0..100_000 {
        archive = archive.directory(&format!("d/{number}"));
    }
    let start = std::time::Instant::now();
    let written = crate::listing::write(&[archive.convert().unwrap()], true);
    assert!(written.meta.len() > 100_000 * 64);
    // Unoptimised and on a busy machine it takes a second or two; quadratic, minutes.
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}
