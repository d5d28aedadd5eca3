//! `docker load` of what skopeo writes, and of what it never would.

use std::path::Path;
use std::process::Command;

use hyper_image::{Digest, Error, LayerState, Loaded, Progress, Store};
use serde_json::json;

use crate::lab::handmade::{Entry, Image, Layer, file, gzip, noise, symlink, tar};
use crate::lab::registry::Layout;
use crate::lab::{Recorder, assert_sound, open, run, unpack_rootfs};

async fn load(store: &Store, path: &Path) -> Result<Vec<Loaded>, Error> {
    store.load_path(path, Progress::none()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_archives() {
    let (directory, layout) = (tempfile::tempdir().unwrap(), Layout::busybox("a", "archived"));
    let plain = directory.path().join("plain.tar");
    layout.export("a", "docker-archive", &plain, "app:1");
    run(Command::new("gzip").arg("-k").arg(&plain));
    run(Command::new("zstd").arg("-q").arg(&plain));
    let mut ids = Vec::new();
    for name in ["plain.tar", "plain.tar.gz", "plain.tar.zst"] {
        let root = tempfile::tempdir().unwrap();
        let store = open(root.path()).await;
        let loaded = load(&store, &directory.path().join(name)).await.unwrap();
        assert_eq!(loaded.len(), 1);
        assert_eq!(loaded[0].names, ["app:1"]);
        let image = store.resolve("app:1").unwrap();
        ids.push((image.id, image.manifest));
        assert_eq!(image.config.config.cmd, ["/bin/busybox", "sh"]);
        let unpacked = root.path().join("unpacked");
        unpack_rootfs(&store.rootfs(&image.id).await.unwrap(), &unpacked);
        assert_eq!(std::fs::read(unpacked.join("etc/text")).unwrap(), b"archived");
        assert_sound(&store, root.path()).await;
        // Again: nothing new.
        let recorder = Recorder::default();
        store.load_path(directory.path().join(name), recorder.progress()).await.unwrap();
        assert_eq!(recorder.count(|state| *state == LayerState::Exists), 2);
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "the same archive gives the same image and manifest");
}

#[tokio::test(flavor = "multi_thread")]
async fn oci_layouts() {
    let (directory, layout) = (tempfile::tempdir().unwrap(), Layout::busybox("one", "1"));
    layout.add("two", "2", "amd64");
    let archive = directory.path().join("oci.tar");
    layout.export("one", "oci-archive", &archive, "registry.example/app:one");
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).await;
    let loaded = load(&store, &archive).await.unwrap();
    assert_eq!(loaded[0].names, ["registry.example/app:one"]);
    // A directory with two images whose names are only tags: loaded, but nameless.
    let loaded = load(&store, &layout.path()).await.unwrap();
    assert_eq!(loaded.len(), 2);
    assert!(loaded.iter().all(|image| image.names.is_empty()));
    assert!(
        loaded
            .iter()
            .any(|image| image.image.id == store.resolve("registry.example/app:one").unwrap().id)
    );
    assert_eq!(store.list().len(), 2);
    assert!(layout.path().join("index.json").exists(), "the source is only read");
    assert_sound(&store, root.path()).await;
}

/// A docker-archive in the old style: the layer of one image is a link to that of another.
fn linked_archive() -> Vec<u8> {
    let layer = tar(&[file("etc/x", b"content")]);
    let config = Image::of(vec![Layer::gzip(&layer)]).config;
    let second = Image::with_config(
        vec![],
        String::from_utf8(config.clone()).unwrap().replace("/x", "/y").into_bytes(),
    );
    let manifest = json!([
        {"Config": "1.json", "RepoTags": ["a:1", "a:2"], "Layers": ["aa/layer.tar"]},
        {"Config": "2.json", "RepoTags": null, "Layers": ["bb/layer.tar"]}]);
    let manifest = manifest.to_string().into_bytes();
    tar(&[
        file("./1.json", &config),
        file("2.json", &second.config),
        file("aa/layer.tar", &layer),
        symlink("bb/layer.tar", "../aa/layer.tar"),
        file("manifest.json", &manifest),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn several_images_and_links() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).await;
    let loaded =
        store.load(std::io::Cursor::new(linked_archive()), Progress::none()).await.unwrap();
    assert_eq!(loaded[0].names, ["a:1", "a:2"]);
    assert!(loaded[1].names.is_empty() && loaded[1].image.is_dangling());
    assert_eq!(std::fs::read_dir(root.path().join("layers")).unwrap().count(), 1);
    assert_sound(&store, root.path()).await;
}

async fn refused(archive: Vec<u8>) -> Error {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).await;
    let error = store.load(std::io::Cursor::new(archive), Progress::none()).await.unwrap_err();
    assert!(store.list().is_empty());
    assert_sound(&store, root.path()).await;
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_archives() {
    let manifest = |layer: &str| {
        json!([{"Config": "c.json", "RepoTags": ["a:1"], "Layers": [layer]}]).to_string()
    };
    let layer = tar(&[file("x", &noise(10_000))]);
    let config = Image::of(vec![Layer::gzip(&layer)]).config;
    let archive = |entries: &[Entry<'_>]| tar(entries);

    let error = refused(archive(&[file("hello", b"x")])).await;
    assert!(
        matches!(&error, Error::Archive { reason } if reason.contains("manifest.json")),
        "{error:?}"
    );
    for garbage in [b"".to_vec(), b"rubbish".repeat(1000), gzip(b"rubbish")] {
        let error = refused(garbage).await;
        assert!(matches!(error, Error::Archive { .. } | Error::ArchiveRead(_)), "{error:?}");
    }
    // A layer that is not there; one that leads out.
    for name in ["gone/layer.tar", "/etc/passwd", "../../../../etc/passwd"] {
        let text = manifest(name);
        let error =
            refused(archive(&[file("c.json", &config), file("manifest.json", text.as_bytes())]))
                .await;
        assert!(matches!(&error, Error::Archive { reason } if reason.contains(name)), "{error:?}");
    }
    let text = manifest("l");
    let entries = [
        file("c.json", &config),
        symlink("l", "/etc/passwd"),
        file("manifest.json", text.as_bytes()),
    ];
    assert!(matches!(refused(archive(&entries)).await, Error::Archive { .. }));
    // The archive ends in the middle.
    let entries =
        [file("c.json", &config), file("l", &layer), file("manifest.json", text.as_bytes())];
    let mut cut = archive(&entries);
    cut.truncate(6000);
    assert!(matches!(refused(cut).await, Error::ArchiveRead(_)));
    // Content that is not what the config says.
    let other = tar(&[file("y", b"other")]);
    let entries =
        [file("c.json", &config), file("l", &other), file("manifest.json", text.as_bytes())];
    assert!(matches!(refused(archive(&entries)).await, Error::DigestMismatch { .. }));
    let entries = [file("c.json", b"{"), file("l", &layer), file("manifest.json", text.as_bytes())];
    assert!(matches!(refused(archive(&entries)).await, Error::Malformed { .. }));
    // An OCI layout whose blob is not what its name says.
    let image = Image::of(vec![Layer::gzip(&layer)]);
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    let index = json!({"schemaVersion": 2, "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": Digest::of(&image.manifest), "size": image.manifest.len()}]});
    let mut damaged = image.layers[0].blob.clone();
    damaged[50] ^= 1;
    let (a, b, c) = (blob(&image.manifest), blob(&image.config), blob(&image.layers[0].blob));
    let index = index.to_string();
    let entries = |layer| {
        [
            file(&a, &image.manifest),
            file(&b, &image.config),
            file(&c, layer),
            file("index.json", index.as_bytes()),
        ]
    };
    assert!(matches!(refused(archive(&entries(&damaged))).await, Error::DigestMismatch { .. }));
    let root = tempfile::tempdir().unwrap();
    let good = archive(&entries(&image.layers[0].blob));
    open(root.path()).await.load(std::io::Cursor::new(good), Progress::none()).await.unwrap();
}
