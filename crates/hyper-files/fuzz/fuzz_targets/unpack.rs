//! Any bytes as an archive for `cp`, unpacked over a tree with links that lead out of it: no panic, and what is
//! outside stays as it was. The first byte chooses where and how. Needs root to reach all of it.
#![no_main]

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;

use hyper_files::{path, unpack};
use hyper_link::message::WriteFiles;
use libfuzzer_sys::fuzz_target;

const PLACES: [&str; 4] = ["/", "/dir", "/inside", "/dir/.."];

/// All that could be changed of a file.
fn state(path: &Path) -> (u32, u32, u32, u64, u64, i64, i64) {
    let of = fs::symlink_metadata(path).expect("is there");
    (of.mode(), of.uid(), of.gid(), of.size(), of.nlink(), of.mtime(), of.ctime_nsec())
}

fuzz_target!(|data: &[u8]| {
    let Some((choice, archive)) = data.split_first() else { return };
    let mut archive = archive.to_vec();
    // Right checksums, which no mutation would find.
    for block in archive.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
    }
    let memory = Path::new("/dev/shm");
    let ground = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let ground = tempfile::tempdir_in(ground).expect("a directory");
    let outside = ground.path().join("outside");
    let root = ground.path().join("root");
    fs::create_dir_all(root.join("dir/sub")).expect("mkdir");
    fs::create_dir(root.join("etc")).expect("mkdir");
    fs::write(root.join("etc/passwd"), "user:x:5:6::/:/bin/sh\n").expect("write");
    fs::write(root.join("dir/file"), "inside").expect("write");
    fs::write(&outside, "outside").expect("write");
    symlink("../outside", root.join("up")).expect("link");
    symlink("..", root.join("dir/up")).expect("link");
    symlink(ground.path(), root.join("out")).expect("link");
    symlink("/dir", root.join("inside")).expect("link");
    let before = state(&outside);
    let request = WriteFiles {
        container: "c".to_owned(),
        path: PLACES[usize::from(*choice) % PLACES.len()].to_owned(),
        keep_directories: choice & 4 != 0,
        owner: (choice & 8 != 0).then(|| "user".to_owned()),
        stream: 0,
    };
    let _ = unpack::unpack(path::root(&root).expect("opens"), &request, &archive[..]);
    assert_eq!(state(&outside), before);
    assert_eq!(fs::read(&outside).expect("read"), b"outside");
    let mut names: Vec<_> = fs::read_dir(ground.path())
        .expect("list")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["outside", "root"]);
});
