//! Where files go: the rules of `COPY`'s destination, on trees with links in unkind places.

use std::io::Cursor;
use std::sync::Arc;

use hyper_dockerfile::Ignore;
use hyper_erofs::tar::write::{END, encode, padding_of};
use hyper_erofs::tar::{Header, HeaderKind, Reader};
use hyper_erofs::{Limits, Timestamp};
use hyper_image::Unpacker;
use proptest::prelude::*;

use super::*;
use crate::context::{Scratch, unpack};
use crate::tree::Files;

/// `path`, and what it is: `d` and a mode, `f` and its text, `l` and its target, `h` and its other name.
type Item<'t> = (&'t str, char, &'t str);

fn archive(items: &[Item<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (path, kind, detail) in items {
        let mut mode = 0o644;
        let kind = match kind {
            'd' => {
                mode = u16::from_str_radix(detail, 8).unwrap();
                HeaderKind::Directory
            }
            'l' => HeaderKind::Symlink { target: detail.as_bytes().to_vec() },
            'h' => HeaderKind::HardLink { target: detail.as_bytes().to_vec() },
            _ => HeaderKind::File { size: detail.len() as u64 },
        };
        let is_file = matches!(kind, HeaderKind::File { .. });
        let mtime = Timestamp { seconds: 7, nanoseconds: 0 };
        let path = path.as_bytes().to_vec();
        bytes.extend(encode(&Header { path, kind, mode, uid: 5, gid: 6, mtime, xattrs: vec![] }));
        if is_file {
            bytes.extend(detail.as_bytes());
            bytes.extend_from_slice(padding_of(detail.len() as u64));
        }
    }
    bytes.extend(END);
    bytes
}

fn scratch() -> Scratch {
    Scratch { directory: std::env::temp_dir(), unpacker: Unpacker::default() }
}

fn files(items: &[Item<'_>], ignore: &str) -> Arc<Files> {
    let (files, _) = unpack(Cursor::new(archive(items)), &scratch()).unwrap();
    Arc::new(Files { files, ignore: Ignore::parse(ignore).unwrap() })
}

fn placing(destination: &str) -> Placing {
    Placing {
        name: "COPY",
        destination: destination.to_owned(),
        owner: None,
        mode: None,
        link: false,
    }
}

fn layer(
    context: &Arc<Files>,
    sources: &[&str],
    image: &[Item<'_>],
    placing: &Placing,
) -> Result<Vec<u8>, BuildError> {
    let selections = sources
        .iter()
        .map(|source| select(context, source, "COPY"))
        .collect::<Result<Vec<_>, _>>()?;
    let image = files(image, "");
    let below = image.view().unwrap();
    let views: Vec<_> = selections.iter().map(|one| one.files.view().unwrap()).collect();
    let mut bytes = Vec::new();
    LayerFiles::plan(&selections, &views, &below, placing)?.write(&selections, &mut bytes)?;
    Ok(bytes)
}

/// `path kind mode uid`, a line each.
fn listed(bytes: &[u8]) -> Vec<String> {
    let mut reader = Reader::new(bytes, &Limits::default());
    let mut all = Vec::new();
    while let Some(header) = reader.next_entry().unwrap() {
        let kind = match &header.kind {
            HeaderKind::Directory => "d".to_owned(),
            HeaderKind::File { size } => format!("f{size}"),
            HeaderKind::Symlink { target } => format!("l{}", String::from_utf8_lossy(target)),
            HeaderKind::HardLink { target } => format!("h{}", String::from_utf8_lossy(target)),
            _ => "?".to_owned(),
        };
        let path = String::from_utf8_lossy(&header.path).into_owned();
        all.push(format!("{path} {kind} {:o} {}", header.mode, header.uid));
    }
    all
}

const CONTEXT: [Item<'static>; 8] = [
    ("a", 'f', "1"),
    ("ab", 'f', "22"),
    ("dir", 'd', "750"),
    ("dir/in", 'f', "333"),
    ("dir/deep", 'd', "700"),
    ("dir/deep/x", 'f', ""),
    ("link", 'l', "dir/in"),
    ("out", 'l', "../../../etc/passwd"),
];

const IMAGE: [Item<'static>; 8] = [
    ("tmp", 'd', "1777"),
    ("real", 'd', "700"),
    ("to", 'l', "/real"),
    ("escape", 'l', "../../../real"),
    ("file", 'f', "x"),
    ("loop", 'l', "loop"),
    ("real/deep", 'l', "/tmp"),
    ("alias", 'l', "file"),
];

#[test]
fn destinations() {
    let context = files(&CONTEXT, "");
    for (sources, destination, result) in [
        (&["a"][..], "/new", &["new f1 644 0"][..]),
        (&["a"], "/new/", &["new/ d 755 0", "new/a f1 644 0"]),
        (&["a"], "/tmp", &["tmp/ d 1777 5", "tmp/a f1 644 0"]),
        (&["a"], "/tmp/b", &["tmp/ d 1777 5", "tmp/b f1 644 0"]),
        (&["a"], "/to", &["real/ d 700 5", "real/a f1 644 0"]),
        (&["a"], "/escape/../escape/y", &["real/ d 700 5", "real/y f1 644 0"]),
        (&["a"], "/file", &["file f1 644 0"]),
        (&["a"], "/alias", &["file f1 644 0"]),
        (&["a", "ab"], "/n/", &["n/ d 755 0", "n/a f1 644 0", "n/ab f2 644 0"]),
        (&["a*"], "/", &["a f1 644 0", "ab f2 644 0"]),
        (&["link"], "/l", &["l f3 644 0"]),
        (&["dir"], "/d", &["d/ d 755 0", "d/deep/ d 700 0", "d/deep/x f0 644 0", "d/in f3 644 0"]),
        // A directory takes the place of a link inside the destination, and keeps to itself.
        (
            &["dir"],
            "/to/",
            &["real/ d 700 5", "real/deep/ d 700 0", "real/deep/x f0 644 0", "real/in f3 644 0"],
        ),
    ] {
        let bytes = layer(&context, sources, &IMAGE, &placing(destination)).unwrap();
        assert_eq!(listed(&bytes), result, "{sources:?} {destination}");
    }
}

#[test]
fn refusals() {
    let context = files(&CONTEXT, "secret\ndir/in\n");
    for (sources, destination, words) in [
        (&["a", "ab"][..], "/x", "end with a /"),
        (&["nothing"], "/", "nothing"),
        (&["dir/in"], "/", "excluded by .dockerignore"),
        (&["out"], "/", "out"),
        (&["../../etc/passwd"], "/", "etc/passwd"),
        (&["z*"], "/", "z*"),
        (&["[a"], "/", "[a"),
        (&["dir"], "/file", "non-directory"),
        (&["a"], "/file/", "non-directory"),
        (&["a"], "/file/y", "non-directory"),
        (&["a"], "/loop/y", "symbolic links"),
    ] {
        let error = layer(&context, sources, &IMAGE, &placing(destination)).unwrap_err();
        assert!(error.to_string().contains(words), "{sources:?} {destination}: {error}");
    }
}

#[test]
fn owners_modes_and_links() {
    let items = [("x", 'f', "1"), ("y", 'h', "x"), ("s", 'l', "x"), ("d", 'd', "700")];
    let context = files(&items, "");
    let mut placing = placing("/n/");
    placing.owner = Some(Owner { uid: 33, gid: 50 });
    placing.mode = Some(0o600);
    let bytes = layer(&context, &["."], &IMAGE, &placing).unwrap();
    assert_eq!(
        listed(&bytes),
        ["n/ d 755 33", "n/d/ d 600 33", "n/s lx 777 33", "n/x f1 600 33", "n/y hn/x 600 33"]
    );
    // Independent of the image: parents that may be there are left alone.
    placing.link = true;
    placing.destination = "/tmp/z/".to_owned();
    let bytes = layer(&context, &["x"], &IMAGE, &placing).unwrap();
    assert_eq!(listed(&bytes), ["tmp/z/x f1 600 33"]);
}

#[test]
fn what_is_ignored_is_not_there() {
    let context = files(&CONTEXT, "*\n!dir/deep\n!a\n");
    let bytes = layer(&context, &["."], &[], &placing("/")).unwrap();
    assert_eq!(
        listed(&bytes),
        ["a f1 644 0", "dir/ d 750 0", "dir/deep/ d 700 0", "dir/deep/x f0 644 0"]
    );
}

#[test]
fn digests_see_what_counts() {
    let digest_of = |items: &[Item<'_>], source: &str| {
        digest(&[select(&files(items, ""), source, "COPY").unwrap()]).unwrap()
    };
    let one = digest_of(&[("d", 'd', "755"), ("d/a", 'f', "1")], "d");
    assert!(one.starts_with("dir:"), "{one}");
    assert_eq!(one, digest_of(&[("z", 'f', ""), ("d/a", 'f', "1")], "d"));
    for other in [
        [("d", 'd', "755"), ("d/a", 'f', "2")],
        [("d", 'd', "755"), ("d/b", 'f', "1")],
        [("d", 'd', "755"), ("d/a", 'l', "1")],
    ] {
        assert_ne!(one, digest_of(&other, "d"), "{other:?}");
    }
}

proptest! {
    /// Whatever the names and links: no panic, the archive reads back, and no name of it leaves the root.
    #[test]
    fn no_tree_leads_outside(
        names in proptest::collection::vec(("[ab.]{1,2}(/[ab.]{1,2}){0,2}", "[dfl]", "[ab./]{1,6}"), 0..8),
        image in proptest::collection::vec(("[ab.]{1,2}(/[ab.]{1,2}){0,2}", "[dfl]", "[ab./]{1,6}"), 0..8),
        source in "[ab.*]{1,3}",
        destination in "(/[ab.]{1,2}){1,3}/?",
    ) {
        let items = |all: &[(String, String, String)]| {
            let mut bytes = Vec::new();
            for (path, kind, detail) in all {
                let detail = if kind == "d" { "755" } else { detail };
                let one = archive(&[(path, kind.chars().next().unwrap(), detail)]);
                bytes.extend_from_slice(&one[..one.len() - END.len()]);
            }
            bytes.extend(END);
            unpack(Cursor::new(bytes), &scratch())
                .map(|(files, _)| Arc::new(Files { files, ignore: Ignore::default() }))
        };
        // Names with `..` are refused as a whole.
        let (Ok(context), Ok(image)) = (items(&names), items(&image)) else { return Ok(()) };
        let (Ok(below), Ok(_)) = (image.view(), context.view()) else { return Ok(()) };
        let Ok(selection) = select(&context, &source, "COPY") else { return Ok(()) };
        let selections = [selection];
        let views = [context.view().unwrap()];
        let placing = placing(&destination);
        let Ok(planned) = LayerFiles::plan(&selections, &views, &below, &placing) else { return Ok(()) };
        let mut bytes = Vec::new();
        planned.write(&selections, &mut bytes).unwrap();
        let mut again = Vec::new();
        planned.write(&selections, &mut again).unwrap();
        prop_assert_eq!(&bytes, &again);
        for line in listed(&bytes) {
            let path = line.split(' ').next().unwrap();
            prop_assert!(!path.starts_with('/') && !path.split('/').any(|part| part == ".."), "{}", line);
        }
        let (layer, _) = unpack(Cursor::new(bytes), &scratch()).unwrap();
        prop_assert!(layer.tree().is_ok());
    }
}
