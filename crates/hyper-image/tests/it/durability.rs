//! Kills, full disks, damage, and two processes.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use hyper_image::{Error, Options, Store};

use crate::lab::handmade::{Image, Layer, file, noise, tar};
use crate::lab::server::Server;
use crate::lab::{assert_sound, open, output, pull};

/// The example that this package's tests are built with.
fn example() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let path = own.parent().and_then(Path::parent).unwrap().join("examples/store");
    assert!(path.exists(), "{} is missing: cargo test builds it with the tests", path.display());
    path
}

fn image(layers: u8) -> Image {
    let layer = |number: u8| {
        let mut data = noise(1 << 20);
        data[0] = number;
        Layer::gzip(&tar(&[file(&format!("data{number}"), &data)]))
    };
    Image::of((0..layers).map(layer).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment() {
    let server = Server::start(vec![("app:1", image(4))], |_, reply| reply).await;
    let root = tempfile::tempdir().unwrap();
    let (mut finished, mut killed) = (0, 0);
    for round in 0..40u64 {
        let mut child = Command::new(example())
            .arg(root.path())
            .args(["pull", &server.name("app:1")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let wait = Duration::from_millis(5 + (round * 37) % 260);
        tokio::time::sleep(wait).await;
        let _ = child.kill();
        if tokio::task::spawn_blocking(move || child.wait()).await.unwrap().unwrap().success() {
            finished += 1;
        } else {
            killed += 1;
        }
        let store = open(root.path()).await;
        let report = store.verify().await.unwrap();
        assert!(report.problems.is_empty(), "round {round}: {report:?}");
        for image in store.list() {
            store.rootfs(&image.id).await.unwrap();
            // So that there is something to kill again.
            store.remove(&image.id.to_string(), true, &[]).await.unwrap();
        }
        // Every other round goes on with what the killed one left, the others start from nothing.
        if round % 2 == 0 {
            drop(store);
            let _ = std::fs::remove_dir_all(root.path().join("ingest"));
        }
    }
    println!("{killed} killed, {finished} finished");
    assert!(killed > 5, "{killed} of 40 were killed in time");
    let store = open(root.path()).await;
    pull(&store, &server.name("app:1")).await.unwrap();
    assert_sound(&store, root.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).await;
    let error = Store::open(root.path(), Options::default()).await.unwrap_err();
    assert!(matches!(error, Error::Locked { .. }), "{error:?}");
    drop(store);
    open(root.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_found_and_mended() {
    let server = Server::start(vec![("app:1", image(2))], |_, reply| reply).await;
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).await;
    let pulled = pull(&store, &server.name("app:1")).await.unwrap();
    let diff_ids = pulled.config.rootfs.diff_ids.clone();
    let layer = |number: usize, name: &str| {
        root.path().join("layers").join(diff_ids[number].hex()).join(name)
    };
    let rootfs = store.rootfs(&pulled.id).await.unwrap();

    // One bit of a converted layer, of an assembled root, of a blob.
    for path in [layer(0, "blob"), rootfs.image.metadata.path.clone()] {
        let good = std::fs::read(&path).unwrap();
        let mut bad = good.clone();
        bad[100] ^= 1;
        std::fs::write(&path, bad).unwrap();
        assert!(!store.verify().await.unwrap().problems.is_empty(), "{}", path.display());
        std::fs::write(&path, good).unwrap();
    }
    assert!(store.verify().await.unwrap().problems.is_empty());

    // A converted layer that cannot be used is made again from its blob; a root, from its layers.
    std::fs::write(layer(0, "index"), b"rubbish").unwrap();
    std::fs::remove_dir_all(layer(1, "blob").parent().unwrap()).unwrap();
    std::fs::write(&rootfs.path, b"rubbish").unwrap();
    assert_eq!(store.rootfs(&pulled.id).await.unwrap(), rootfs);
    assert_sound(&store, root.path()).await;

    // A manifest that is gone: the rest of the store works, and pulling again mends it.
    std::fs::remove_file(root.path().join("blobs/sha256").join(pulled.manifest.hex())).unwrap();
    drop(store);
    let store = open(root.path()).await;
    assert!(store.list().is_empty());
    assert!(!store.verify().await.unwrap().problems.is_empty());
    pull(&store, &server.name("app:1")).await.unwrap();
    assert_sound(&store, root.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn full_disk() {
    let root = tempfile::tempdir().unwrap();
    let mount = output(
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=5m", "tmpfs"]).arg(root.path()),
    );
    if !mount.status.success() {
        eprintln!(
            "SKIPPED full_disk: cannot mount a tmpfs: {}",
            String::from_utf8_lossy(&mount.stderr)
        );
        return;
    }
    let server = Server::start(
        vec![("small:1", image(1)), ("app:1", image(4)), ("big:1", image(8))],
        |_, r| r,
    )
    .await;
    let result = async {
        let store = open(root.path()).await;
        pull(&store, &server.name("small:1")).await?;
        // Too large as announced: refused before anything is fetched.
        let Err(early) = pull(&store, &server.name("big:1")).await else {
            panic!("8 MiB on 5 MiB")
        };
        assert!(server.requests("/v2/big/blobs/").len() <= 1, "only the config");
        // Fits as announced, not with what it is converted to.
        let Err(late) = pull(&store, &server.name("app:1")).await else {
            panic!("2 × 4 MiB on 5 MiB")
        };
        assert_eq!(store.list().len(), 1);
        let left: Vec<_> = std::fs::read_dir(root.path().join("ingest")).unwrap().collect();
        assert!(left.is_empty(), "left in ingest: {left:?}");
        let blobs = std::fs::read_dir(root.path().join("blobs/sha256")).unwrap().count();
        assert_eq!(blobs, 3, "only manifest, config and layer of the small image");
        Ok::<_, Error>((early, late, store.verify().await?))
    }
    .await;
    let unmounted = output(Command::new("umount").arg("-l").arg(root.path()));
    assert!(unmounted.status.success());
    let (early, late, report) = result.unwrap();
    for error in [early, late] {
        assert!(matches!(error, Error::NoSpace { .. }), "{error:?}");
        assert!(error.to_string().contains("no space left"), "{error}");
    }
    assert!(report.problems.is_empty(), "{report:?}");
}
