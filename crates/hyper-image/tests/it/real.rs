//! Against Debian's docker-registry, with images made by umoci and skopeo.

use std::process::Command;

use hyper_image::{
    Credentials, Digest, Error, Event, LayerState, Platform, Progress, Reference, Removed, Store,
};
use serde_json::json;

use crate::lab::registry::{Layout, Registry, Tls};
use crate::lab::{Recorder, assert_sound, open, options, pull, run, unpack_rootfs};

fn amd64() -> Platform {
    "linux/amd64".parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn pull_gzip_and_zstd() {
    let (registry, layout) = (Registry::start(), Layout::busybox("a", "hello"));
    registry.push(&layout, "a", "team/app:gz", &[]);
    // In the same registry, skopeo would find the gzip blobs and use them again.
    let second = zstd_registry(&layout, "team/app", "zst");
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).await;
    let recorder = Recorder::default();
    let name: Reference = registry.name("team/app:gz").parse().unwrap();
    let image =
        store.pull(&name, &amd64(), &Credentials::default(), recorder.progress()).await.unwrap();

    assert_eq!(image.repo_tags, [registry.name("team/app:gz")]);
    assert!(image.repo_digests[0].starts_with(&registry.name("team/app@sha256:")), "{image:?}");
    assert_eq!(image.config.config.cmd, ["/bin/busybox", "sh"]);
    assert!(image.config.config.env.contains(&"A=b".to_owned()));
    assert_eq!(image.config.config.labels["l"], "m");
    assert_eq!(Digest::of(image.raw_config()), image.id);
    let busybox = std::fs::read("/bin/busybox").unwrap();
    assert_eq!(image.size, busybox.len() as u64 + 5);
    assert_eq!(recorder.count(|state| *state == LayerState::Complete), 2);
    assert!(matches!(recorder.events().first(), Some(Event::Resolving { .. })));
    assert!(matches!(recorder.events().last(), Some(Event::Done { up_to_date: false, .. })));
    for name in
        [image.id.to_string(), image.id.short(), name.to_string(), image.repo_digests[0].clone()]
    {
        assert_eq!(store.resolve(&name).unwrap().id, image.id, "{name}");
    }

    // The root that was assembled has the content.
    let rootfs = store.rootfs(&image.id).await.unwrap();
    assert!(rootfs.path.is_absolute());
    let unpacked = root.path().join("unpacked");
    unpack_rootfs(&rootfs, &unpacked);
    assert_eq!(std::fs::read(unpacked.join("bin/busybox")).unwrap(), busybox);
    assert_eq!(std::fs::read(unpacked.join("etc/text")).unwrap(), b"hello");

    // Again: nothing is fetched.
    let recorder = Recorder::default();
    store.pull(&name, &amd64(), &Credentials::default(), recorder.progress()).await.unwrap();
    assert_eq!(recorder.count(|state| *state == LayerState::Exists), 2);
    assert_eq!(recorder.count(|state| matches!(state, LayerState::Downloading { .. })), 0);
    assert!(matches!(recorder.events().last(), Some(Event::Done { up_to_date: true, .. })));

    // zstd: other blobs, the same layers, the same root.
    let zstd = pull(&store, &second.name("team/app:zst")).await.unwrap();
    assert_eq!(zstd.id, image.id);
    // Not that the manifests differ: skopeo's cache of blobs can make the first push zstd too.
    assert_eq!(std::fs::read_dir(root.path().join("layers")).unwrap().count(), 2);
    assert_eq!(store.resolve(&image.id.short()).unwrap().repo_tags.len(), 2);
    assert_sound(&store, root.path()).await;
    assert_eq!(store.verify().await.unwrap().layers, 2);

    // What we keep is an OCI layout: other tools read it.
    let spec = format!("oci:{}:{name}", root.path().display());
    let inspected: serde_json::Value =
        serde_json::from_str(&run(Command::new("skopeo").args(["inspect", &spec]))).unwrap();
    assert_eq!(inspected["Layers"].as_array().unwrap().len(), 2);
    run(Command::new("skopeo")
        .args(["--insecure-policy", "copy", "-q", &spec])
        .arg(format!("dir:{}", root.path().join("copy").display())));

    // A store opened anew knows the same.
    drop(store);
    let store = open(root.path()).await;
    assert_eq!(store.list().len(), 1);
    assert_eq!(store.list()[0].size, image.size);
    assert_eq!(store.rootfs(&image.id).await.unwrap(), rootfs);
}

/// A registry with the image recompressed. skopeo 1.9 now and then sends the gzip blobs as they
/// are although it was told a format; it is asked again with a registry that has seen nothing.
fn zstd_registry(layout: &Layout, name: &str, tag: &str) -> Registry {
    for _ in 0..16 {
        let registry = Registry::start();
        let target = format!("{name}:{tag}");
        registry.push(layout, "a", &target, &["--dest-compress-format", "zstd"]);
        if String::from_utf8_lossy(&registry.manifest(name, tag)).contains("zstd") {
            return registry;
        }
    }
    panic!("skopeo does not recompress {name}:{tag}");
}

#[tokio::test(flavor = "multi_thread")]
async fn zstd_first() {
    let registry = zstd_registry(&Layout::busybox("a", "zstd"), "z", "1");
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).await;
    let image = pull(&store, &registry.name("z:1")).await.unwrap();
    let manifest =
        std::fs::read_to_string(root.path().join("blobs/sha256").join(image.manifest.hex()))
            .unwrap();
    assert!(manifest.contains("zstd"), "skopeo did not recompress: {manifest}");
    assert_sound(&store, root.path()).await;
}

/// An index of amd64 and arm64; returns its digest.
fn push_index(registry: &Registry) -> Digest {
    let layout = Layout::busybox("amd", "for amd64");
    layout.add("arm", "for arm64", "arm64");
    registry.push(&layout, "amd", "multi:amd", &[]);
    registry.push(&layout, "arm", "multi:arm", &[]);
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let entry = |tag: &str, architecture: &str| {
        let bytes = registry.manifest("multi", tag);
        json!({"mediaType": media_type, "digest": Digest::of(&bytes), "size": bytes.len(),
            "platform": {"os": "linux", "architecture": architecture}})
    };
    let index_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": index_type,
        "manifests": [entry("arm", "arm64"), entry("amd", "amd64")]});
    registry.put_manifest("multi", "latest", index_type, &serde_json::to_vec(&index).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn index_by_platform() {
    let registry = Registry::start();
    let index = push_index(&registry);
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).await;
    let image = pull(&store, &registry.name("multi")).await.unwrap();
    assert_eq!(image.platform(), amd64());
    assert_eq!(image.repo_digests, [registry.name(&format!("multi@{index}"))]);
    assert_eq!(image.repo_tags, [registry.name("multi:latest")]);

    // By digest: the same image, no further tag.
    let by_digest = pull(&store, &registry.name(&format!("multi@{index}"))).await.unwrap();
    assert_eq!((by_digest.id, by_digest.repo_tags.len()), (image.id, 1));

    let name: Reference = registry.name("multi").parse().unwrap();
    let pull_for = |platform: &str| {
        let (store, name, platform) =
            (store.clone(), name.clone(), platform.parse::<Platform>().unwrap());
        async move { store.pull(&name, &platform, &Credentials::default(), Progress::none()).await }
    };
    let error = pull_for("linux/s390x").await.unwrap_err();
    assert!(matches!(error, Error::NoPlatform { .. }));
    let text = error.to_string();
    assert!(text.contains("linux/s390x") && text.contains("linux/amd64, linux/arm64"), "{text}");

    // One manifest of the wrong kind.
    let error = pull(&store, &registry.name("multi:arm")).await.unwrap_err();
    assert!(
        matches!(&error, Error::NoPlatform { offered, .. } if offered == "linux/arm64"),
        "{error}"
    );
    assert_eq!(store.list().len(), 1);

    // Asked for, the other platform takes the tag; the first image keeps nothing but its id.
    let arm = pull_for("linux/arm64").await.unwrap();
    assert_eq!(arm.platform().to_string(), "linux/arm64");
    assert!(store.resolve(&image.id.to_string()).unwrap().is_dangling());
    assert_sound(&store, root.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn removal() {
    let (registry, layout) = (Registry::start(), Layout::busybox("a", "one"));
    layout.add("b", "two", "amd64");
    registry.push(&layout, "a", "a:1", &[]);
    registry.push(&layout, "b", "b:1", &[]);
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).await;
    let a = pull(&store, &registry.name("a:1")).await.unwrap();
    let b = pull(&store, &registry.name("b:1")).await.unwrap();
    let before = store.usage().await.unwrap();
    assert_eq!(before.images, 2);
    store.tag(&a.id, &"mine:2".parse().unwrap()).await.unwrap();
    assert_eq!(
        store.remove("mine:2", false, &[]).await.unwrap(),
        [Removed::Untagged("mine:2".into())]
    );

    let removed = store.remove(&registry.name("a:1"), false, &[]).await.unwrap();
    assert!(removed.contains(&Removed::Deleted(a.id)), "{removed:?}");
    // umoci makes the same busybox layer for both (same file, same times): only the text of `a` goes.
    let layers = removed.iter().filter(|gone| matches!(gone, Removed::Deleted(_))).count() - 1;
    let shared =
        a.config.rootfs.diff_ids.iter().filter(|id| b.config.rootfs.diff_ids.contains(id)).count();
    assert_eq!(layers, 2 - shared);
    assert!(matches!(store.resolve(&a.id.to_string()), Err(Error::NoSuchImage { .. })));
    assert!(store.usage().await.unwrap().disk_bytes < before.disk_bytes);
    store.rootfs(&b.id).await.unwrap();
    assert_sound(&store, root.path()).await;

    store.remove(&b.id.short(), false, &[]).await.unwrap();
    for directory in ["blobs/sha256", "layers", "rootfs", "ingest"] {
        assert_eq!(
            std::fs::read_dir(root.path().join(directory)).unwrap().count(),
            0,
            "{directory}"
        );
    }
    assert!(store.list().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there() {
    let (registry, layout) = (Registry::start(), Layout::busybox("a", "x"));
    registry.push(&layout, "a", "app:1", &[]);
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).await;
    for name in ["app:2", "none:1"] {
        let error = pull(&store, &registry.name(name)).await.unwrap_err();
        assert!(matches!(error, Error::NotInRegistry { .. }), "{error:?}");
        assert!(error.to_string().contains(&registry.name(name)), "{error}");
    }
    // Nobody listens.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = pull(&store, &format!("127.0.0.1:{free}/app:1")).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert!(
        error.chain().contains("refused") && error.chain().contains(&free.to_string()),
        "{}",
        error.chain()
    );
    let error = pull(&store, "no-such-host.invalid/app:1").await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    // 0.0.0.0 leads to this machine but is not loopback: TLS is expected of it.
    let error = pull(&store, &format!("0.0.0.0:{}/app:1", registry.port)).await.unwrap_err();
    assert!(matches!(error, Error::PlainHttp { .. }), "{error:?}");
    assert!(error.to_string().contains("insecure registries"), "{error}");
    assert!(store.list().is_empty());
    // Configured as insecure, it works.
    let other = tempfile::tempdir().unwrap();
    let mut options = options();
    options.registry.insecure.push("0.0.0.0/32".to_owned());
    let store = Store::open(other.path(), options).await.unwrap();
    pull(&store, &format!("0.0.0.0:{}/app:1", registry.port)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_with_a_ca_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let tls = Tls { certificate: path("cert.pem"), key: path("key.pem") };
    run(Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ])
        .args([
            "-subj",
            "/CN=lab",
            "-addext",
            "subjectAltName=IP:0.0.0.0",
            "-addext",
            "basicConstraints=CA:FALSE",
        ])
        .arg("-keyout")
        .arg(&tls.key)
        .arg("-out")
        .arg(&tls.certificate));
    let (registry, layout) = (Registry::start_with(Some(&tls)), Layout::busybox("a", "x"));
    registry.push(&layout, "a", "app:1", &[]);
    let host = format!("0.0.0.0:{}", registry.port);
    let mut options = options();
    options.registry.certificates = vec![path("certs.d")];
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path(), options.clone()).await.unwrap();
    let error = pull(&store, &format!("{host}/app:1")).await.unwrap_err();
    assert!(matches!(error, Error::Tls { .. }), "{error:?}");
    assert!(error.to_string().contains(&format!("certs.d/{host}/ca.crt")), "{error}");
    drop(store);

    std::fs::create_dir_all(path("certs.d").join(&host)).unwrap();
    std::fs::copy(&tls.certificate, path("certs.d").join(&host).join("ca.crt")).unwrap();
    let store = Store::open(root.path(), options.clone()).await.unwrap();
    pull(&store, &format!("{host}/app:1")).await.unwrap();
    // Loopback: any certificate.
    pull(&store, &registry.name("app:1")).await.unwrap();
    drop(store);

    std::fs::write(path("certs.d").join(&host).join("ca.crt"), "rubbish").unwrap();
    let store = Store::open(root.path(), options).await.unwrap();
    let error = pull(&store, &format!("{host}/app:1")).await.unwrap_err();
    assert!(
        matches!(&error, Error::ClientFile { path, .. } if path.ends_with("ca.crt")),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors() {
    let (registry, layout) = (Registry::start(), Layout::busybox("a", "mirrored"));
    registry.push(&layout, "a", "library/app:1", &[]);
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut options = options();
    let mirrors =
        vec![format!("http://127.0.0.1:{dead}"), format!("http://127.0.0.1:{}", registry.port)];
    options.registry.mirrors.insert("docker.io".to_owned(), mirrors);
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path(), options).await.unwrap();
    let image = pull(&store, "app:1").await.unwrap();
    assert_eq!(image.repo_tags, ["app:1"]);
}
