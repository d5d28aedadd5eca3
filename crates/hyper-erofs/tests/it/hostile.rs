//! Archives made to do harm. Each test is named for the attack; each attack ends in the error that names it.

use crate::archive::{Archive, Head, convert, record};
use hyper_erofs::tar::TarError;
use hyper_erofs::{
    Kind, LayerError, LimitExceeded, Limits, MergeError, PathError, convert_layer, merge,
};
use std::io::{self, Read};

/// The error of an archive, which must not be accepted.
#[track_caller]
fn refused(archive: Archive) -> LayerError {
    archive.convert().map(|(index, _)| index).expect_err("accepted")
}

#[track_caller]
fn over_limit(archive: &[u8], limits: &Limits) -> &'static str {
    match convert_layer(archive, io::sink(), limits).expect_err("accepted") {
        LayerError::Limit { source: LimitExceeded { what, .. }, .. }
        | LayerError::Tar(TarError::Limit { source: LimitExceeded { what, .. }, .. })
        | LayerError::Path { source: PathError::Limit(LimitExceeded { what, .. }), .. } => what,
        other => panic!("not a limit: {other:?}"),
    }
}

#[test]
fn path_traversal_by_parent_components() {
    for name in ["../etc/passwd", "a/../../b", "a/..", "./../x", "/../x"] {
        let error = refused(Archive::default().file(name, b"x"));
        let LayerError::Path { entry, source: PathError::ParentComponent } = error else {
            panic!("{name}: {error:?}")
        };
        assert_eq!(entry, name);
    }
}

#[test]
fn path_traversal_by_pax_path_and_gnu_long_name() {
    let pax = Archive::default().pax(&[("path", b"../../x")]).file("harmless", b"");
    assert!(matches!(refused(pax), LayerError::Path { source: PathError::ParentComponent, .. }));
    let gnu = Archive::default().extended(b'L', b"../../x\0").file("harmless", b"");
    assert!(matches!(refused(gnu), LayerError::Path { source: PathError::ParentComponent, .. }));
}

#[test]
fn absolute_paths_mean_the_image_root() {
    let (index, _) =
        Archive::default().file("/etc/shadow", b"x").symlink("/l", "/etc").convert().unwrap();
    assert_eq!(index.entries()[0].path, b"etc/shadow");
    assert_eq!(index.entries()[1].path, b"l");
}

#[test]
fn symlink_swap_stays_inside_the_image() {
    let archive = Archive::default().symlink("a", "/../../../../etc").file("a/passwd", b"inside");
    let (index, _) = archive.convert().unwrap();
    let tree = merge([&index]).unwrap();
    // `..` of the root is the root, whatever the host has in its /etc.
    assert!(tree.lookup(b"/etc/passwd", hyper_erofs::Follow::No).is_ok());
}

#[test]
fn hard_link_to_the_outside() {
    for target in ["../../etc/shadow", "a/../../x"] {
        let error = refused(Archive::default().hard_link("x", target));
        assert!(matches!(error, LayerError::Path { source: PathError::ParentComponent, .. }));
    }
    let error = refused(Archive::default().hard_link("x", "/"));
    assert!(matches!(error, LayerError::Invalid { what: "a hard link to the root", .. }));
}

#[test]
fn hard_link_to_a_missing_file() {
    let (index, _) = Archive::default().hard_link("dir/x", "etc/shadow").convert().unwrap();
    let error = merge([&index]).unwrap_err();
    let expected = MergeError::LinkTargetMissing {
        layer: 0,
        path: "/dir/x".into(),
        target: "/etc/shadow".into(),
    };
    assert_eq!(error, expected);
    assert_eq!(
        error.to_string(),
        r#"layer 0: hard link "/dir/x" names the missing file "/etc/shadow""#
    );
}

#[test]
fn hard_link_to_a_directory() {
    let (index, _) = Archive::default().directory("d").hard_link("d/loop", "d").convert().unwrap();
    assert!(matches!(merge([&index]).unwrap_err(), MergeError::LinkToDirectory { .. }));
}

#[test]
fn symlink_loop_in_a_parent() {
    let archive = Archive::default().symlink("a", "b").symlink("b", "a").file("a/x", b"");
    let (index, _) = archive.convert().unwrap();
    assert!(matches!(merge([&index]).unwrap_err(), MergeError::SymlinkLoop { layer: 0, .. }));
}

#[test]
fn symlink_chains_that_cost_much_time() {
    // Each name leads through 20 links, each of which leads through 2000 directories of one name.
    let mut archive = Archive::default().symlink("d", ".");
    for number in 0..20 {
        let target = ["./".repeat(2000), format!("l{}", number + 1)].concat();
        archive =
            archive.pax(&[("linkpath", target.as_bytes())]).symlink(&format!("l{number}"), "x");
    }
    archive = archive.directory("l20");
    for number in 0..400 {
        archive = archive.file(&format!("l0/{number}"), b"");
    }
    let (index, _) = archive.convert().unwrap();
    assert!(matches!(merge([&index]).unwrap_err(), MergeError::TooManySteps { .. }));
}

#[test]
fn symlink_target_with_a_name_no_directory_can_have() {
    let long = "n".repeat(300);
    let archive =
        Archive::default().pax(&[("linkpath", long.as_bytes())]).symlink("l", "x").file("l/f", b"");
    let (index, _) = archive.convert().unwrap();
    assert!(matches!(merge([&index]).unwrap_err(), MergeError::NameTooLong { .. }));
}

#[test]
fn depth_grown_through_links_does_not_overflow_the_stack() {
    let deep = "d/".repeat(500);
    let mut archive = Archive::default();
    let mut target = "r".to_string();
    for number in 0..100 {
        archive = archive.pax(&[("path", format!("{target}/{deep}").as_bytes())]).directory("x");
        let link = format!("s{number}");
        let to = if number == 0 { format!("r/{deep}") } else { format!("s{}/{deep}", number - 1) };
        archive = archive.pax(&[("linkpath", to.as_bytes())]).symlink(&link, "x");
        // Each link leads through all before it: more than 40 is the end.
        target = link;
        if number == 35 {
            break;
        }
    }
    let (index, blob) = archive.convert().unwrap();
    let written = crate::listing::write(&[(index, blob)], true);
    assert!(written.meta.len() > 17_000 * 64);
}

#[test]
fn truncation_at_every_byte_of_a_small_archive() {
    let whole = Archive::default()
        .pax(&[("path", b"dir/long"), ("SCHILY.xattr.user.x", b"\0\n1")])
        .file("x", &[7; 700])
        .hard_link("y", "dir/long")
        .0;
    // Complete entries without the end mark are an archive, as for Go and so for Docker.
    let content_ends = 512 + 512 + 512 + 700;
    let padding_ends = 512 + 512 + 512 + 1024;
    for cut in 0..=whole.len() {
        let result = convert(&whole[..cut]);
        if cut == 0 || cut == whole.len() || (content_ends..=padding_ends).contains(&cut) {
            assert!(result.is_ok(), "{cut}: {result:?}");
        } else if cut == 1024 {
            // The extended header is complete, the entry it describes is not there: nothing to convert.
            assert!(result.unwrap().0.entries().is_empty());
        } else {
            let error = result.expect_err("accepted");
            assert!(
                matches!(error, LayerError::Tar(TarError::Truncated { .. })),
                "{cut}: {error:?}"
            );
        }
    }
}

#[test]
fn archive_of_umoci_insert_ends_inside_the_last_padding() {
    let whole = Archive::default().file("first", &[1; 600]).file("last", &[7; 700]);
    let cut = whole.0.len() - 324;
    let (index, blob) = convert(&whole.0[..cut]).unwrap();
    assert_eq!((index, blob), whole.clone().convert().unwrap());
    // Padding between entries is needed to find the next one.
    let first_content = 512 + 600;
    assert!(convert(&whole.0[..first_content]).is_ok());
    let mut without = whole.0[..first_content].to_vec();
    without.extend_from_slice(&whole.0[1536..]);
    assert!(convert(&without).is_err());
}

#[test]
fn truncated_content_names_the_entry() {
    let archive =
        Archive::default().head(Head::new("big/file", b'0', 1 << 33)).padded(&[1; 5000]).0;
    let error = convert(&archive).unwrap_err();
    let LayerError::Tar(TarError::Truncated { entry, missing }) = error else {
        panic!("{error:?}")
    };
    assert_eq!((entry.as_str(), missing), ("big/file", (1 << 33) - 5120));
}

#[test]
fn flipped_bits_in_headers_are_noticed() {
    let good = Archive::default().file("before", b"x").file("name", b"content").end();
    for bit in 0..512 * 8 {
        let mut bad = good.clone();
        bad[1024 + bit / 8] ^= 1 << (bit % 8);
        let error = match convert(&bad) {
            Err(error) => error,
            // A space for a zero in front of the checksum's digits, and what follows them, says nothing.
            Ok((index, _)) => {
                assert!((148..156).contains(&(bit / 8)), "bit {bit} accepted");
                assert_eq!(index, convert(&good).unwrap().0);
                continue;
            }
        };
        let LayerError::Tar(TarError::Checksum { entry, offset }) = error else {
            panic!("{error:?}")
        };
        assert_eq!((entry.as_str(), offset), ("before", 1024));
    }
}

#[test]
fn not_a_tar_at_all() {
    let error = convert(&[b'#'; 4096]).unwrap_err();
    assert!(matches!(error, LayerError::Tar(TarError::Checksum { offset: 0, .. })));
    assert!(convert(b"short").is_err());
}

#[test]
fn header_hidden_behind_a_single_zero_block() {
    let archive = Archive::default().file("a", b"").raw(&[0; 512]).file("b", b"");
    assert!(matches!(refused(archive), LayerError::Tar(TarError::Malformed { .. })));
}

#[test]
fn size_beyond_all_bounds() {
    let mut head = Head::new("huge", b'0', 0);
    head.put(124, &[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    let archive = Archive::default().head(head).0;
    assert_eq!(over_limit(&archive, &Limits::default()), "bytes of file contents");
    let mut head = Head::new("negative", b'0', 0);
    head.put(124, &[0xff; 12]);
    assert!(matches!(
        refused(Archive::default().head(head)),
        LayerError::Tar(TarError::Malformed { .. })
    ));
    let pax = Archive::default().pax(&[("size", b"18446744073709551616")]).file("x", b"");
    assert!(matches!(refused(pax), LayerError::Tar(TarError::Malformed { .. })));
}

#[test]
fn extended_header_of_many_gigabytes() {
    let archive = Archive::default().head(Head::new("x", b'x', 1 << 32)).0;
    assert_eq!(over_limit(&archive, &Limits::default()), "bytes in an extended header");
    let archive = Archive::default().head(Head::new("x", b'L', 1 << 32)).0;
    assert_eq!(over_limit(&archive, &Limits::default()), "bytes in an extended header");
}

#[test]
fn xattr_bombs() {
    let value = vec![1; 60_000];
    let archive = Archive::default()
        .pax(&[
            ("SCHILY.xattr.user.a", &value),
            ("SCHILY.xattr.user.b", &value),
            ("SCHILY.xattr.user.c", &value),
        ])
        .file("x", b"")
        .end();
    assert_eq!(over_limit(&archive, &Limits::default()), "bytes of xattrs of one entry");
    let many: Vec<u8> =
        (0..2000).flat_map(|number| record(&format!("SCHILY.xattr.user.{number}"), b"")).collect();
    let archive = Archive::default().extended(b'x', &many).file("x", b"").end();
    assert_eq!(over_limit(&archive, &Limits::default()), "xattrs of one entry");
    let mut archive = Archive::default();
    for number in 0..40 {
        archive = archive.pax(&[("SCHILY.xattr.user.a", &value)]).file(&format!("{number}"), b"");
    }
    let limits = Limits { max_index_bytes: 1 << 20, ..Limits::default() };
    assert_eq!(over_limit(&archive.end(), &limits), "bytes of names and xattrs");
}

#[test]
fn xattr_in_a_global_header_is_not_multiplied() {
    let global = record("SCHILY.xattr.user.a", &[1; 60_000]);
    let mut archive = Archive::default().extended(b'g', &global);
    for number in 0..100 {
        archive = archive.file(&format!("{number}"), b"");
    }
    let (index, _) = archive.convert().unwrap();
    assert!(index.entries().iter().all(|entry| entry.kind.attributes().unwrap().xattrs.is_empty()));
}

#[test]
fn global_header_that_renames_every_entry() {
    for key in ["path", "linkpath", "size", "GNU.sparse.map"] {
        let archive = Archive::default().extended(b'g', &record(key, b"1,2")).file("x", b"");
        assert!(matches!(refused(archive), LayerError::Tar(TarError::Malformed { .. })), "{key}");
    }
}

#[test]
fn sparse_bomb() {
    let archive = Archive::default()
        .pax(&[("GNU.sparse.map", b""), ("GNU.sparse.size", b"1099511627776")])
        .file("x", b"");
    assert_eq!(over_limit(&archive.end(), &Limits::default()), "bytes of holes");
    // Many small ones add up as well, and adding does not overflow.
    let mut archive = Archive::default();
    for number in 0..3 {
        let size = if number == 2 { "18446744073709551615" } else { "3000000000" };
        archive = archive
            .pax(&[("GNU.sparse.map", b""), ("GNU.sparse.size", size.as_bytes())])
            .file(&format!("{number}"), b"");
    }
    let limits = Limits { max_hole_bytes: 7_000_000_000, ..Limits::default() };
    assert_eq!(over_limit(&archive.end(), &limits), "bytes of holes");
}

#[test]
fn sparse_map_that_lies() {
    for (map, size) in [("0,10,5,10", "100"), ("0,10", "5"), ("0,11", "100"), ("0,9", "100")] {
        let archive = Archive::default()
            .pax(&[("GNU.sparse.map", map.as_bytes()), ("GNU.sparse.size", size.as_bytes())])
            .file("x", b"0123456789");
        assert!(matches!(refused(archive), LayerError::Tar(TarError::Malformed { .. })), "{map}");
    }
    let v1: [(&str, &[u8]); 3] =
        [("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"10")];
    let endless = Archive::default().pax(&v1).file("x", &[b'7'; 5000]);
    assert!(matches!(refused(endless), LayerError::Tar(TarError::Malformed { .. })));
    let mut count = b"99999999\n".to_vec();
    count.resize(512, 0);
    let huge = Archive::default().pax(&v1).file("x", &count);
    assert_eq!(over_limit(&huge.end(), &Limits::default()), "parts of one sparse file");
}

#[test]
fn too_many_entries_too_deep_too_long() {
    let limits = Limits { max_entries: 3, ..Limits::default() };
    let archive =
        (0..4).fold(Archive::default(), |archive, number| archive.directory(&number.to_string()));
    assert_eq!(over_limit(&archive.end(), &limits), "entries");
    let deep =
        Archive::default().pax(&[("path", "d/".repeat(600).as_bytes())]).directory("x").end();
    assert_eq!(over_limit(&deep, &Limits::default()), "path components");
    let name = Archive::default().pax(&[("path", &[b'n'; 256])]).file("x", b"").end();
    assert_eq!(over_limit(&name, &Limits::default()), "bytes in a path component");
    let path = "nnnnnnnnn/".repeat(410);
    let path = Archive::default().pax(&[("path", path.as_bytes())]).file("x", b"").end();
    assert_eq!(over_limit(&path, &Limits::default()), "bytes in a path");
    let target = Archive::default().pax(&[("linkpath", &[b't'; 4096])]).symlink("x", "y").end();
    assert_eq!(over_limit(&target, &Limits::default()), "bytes in a symbolic link");
}

#[test]
fn endless_stream_after_the_end() {
    let archive = Archive::default().file("x", b"").end();
    let endless = archive.chain(io::repeat(0));
    let limits = Limits { max_stream_bytes: 10 << 20, ..Limits::default() };
    let error = convert_layer(endless, io::sink(), &limits).unwrap_err();
    assert!(matches!(error, LayerError::Tar(TarError::Limit { .. })));
}

#[test]
fn whiteouts_of_directories_themselves_and_of_nothing() {
    for name in [".wh.", "a/.wh.", ".wh..", "a/.wh...", ".wh..."] {
        let error = refused(Archive::default().whiteout(name));
        assert!(matches!(error, LayerError::Invalid { .. }), "{name}: {error:?}");
    }
    let inside = Archive::default().file(".wh.dir/file", b"");
    assert!(matches!(
        refused(inside),
        LayerError::Invalid { what: "it lies inside a whiteout", .. }
    ));
}

#[test]
fn overlayfs_orders_in_xattrs_are_dropped() {
    let archive = Archive::default()
        .pax(&[
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.overlay.metacopy", b""),
            ("SCHILY.xattr.user.kept", b"1"),
        ])
        .directory("d");
    let (index, _) = archive.convert().unwrap();
    let [entry] = index.entries() else { panic!("more than the directory") };
    let names: Vec<&[u8]> =
        entry.kind.attributes().unwrap().xattrs.iter().map(|xattr| &xattr.name[..]).collect();
    assert_eq!(names, [b"user.kept"]);
}

#[test]
fn overlayfs_whiteout_device_is_a_whiteout() {
    let (index, _) =
        Archive::default().head(Head::new("gone", b'3', 0).device(0, 0)).convert().unwrap();
    assert_eq!(index.entries()[0].kind, Kind::Whiteout);
}

#[test]
fn device_numbers_linux_does_not_have() {
    let error = refused(Archive::default().head(Head::new("x", b'3', 0).device(4096, 0)));
    assert!(matches!(error, LayerError::Invalid { .. }));
    let error = refused(Archive::default().head(Head::new("x", b'4', 0).device(8, 1 << 20)));
    assert!(matches!(error, LayerError::Invalid { .. }));
}

#[test]
fn root_that_is_not_a_directory() {
    for archive in [
        Archive::default().symlink("./", "/tmp"),
        Archive::default().file(".", b"x"),
        Archive::default().head(Head::new("/", b'6', 0)),
    ] {
        let error = refused(archive);
        assert!(
            matches!(error, LayerError::Invalid { what: "the root must be a directory", .. }),
            "{error:?}"
        );
    }
}

#[test]
fn links_to_nothing_and_names_with_nul() {
    assert!(matches!(refused(Archive::default().symlink("x", "")), LayerError::Invalid { .. }));
    let nul = Archive::default().pax(&[("linkpath", b"a\0b")]).symlink("x", "y");
    assert!(matches!(refused(nul), LayerError::Tar(TarError::Malformed { .. })));
}

#[test]
fn unknown_entry_types() {
    for flag in [b'M', b'N', b'D', b'z', b'8', 0xff] {
        let error = refused(Archive::default().head(Head::new("x", flag, 0)));
        assert!(matches!(error, LayerError::Tar(TarError::UnsupportedType { .. })), "{error:?}");
    }
}

#[test]
fn link_with_a_size_does_not_hide_an_entry() {
    // Docker's reader takes no content after a link whatever its size says: both must see the same entries.
    let archive = Archive::default()
        .file("target", b"")
        .head(Head::new("link", b'1', 512).link("target"))
        .file("seen", b"");
    let (index, _) = archive.convert().unwrap();
    assert_eq!(index.entries().len(), 3);
}
