//! Pushes to registries that misbehave.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use hyper_image::{Credentials, Digest, Error, LayerState, Platform, Progress, Reference, Store};
use serde_json::json;

use crate::lab::handmade::{Image, Layer, MANIFEST, file, noise, tar};
use crate::lab::registry::{Layout, Registry};
use crate::lab::server::{Reply, Request, Server};
use crate::lab::{Recorder, assert_sound, open, pull};

fn image() -> Image {
    Image::of(vec![Layer::gzip(&tar(&[file("data", &noise(600 << 10))]))])
}

/// What a registry that takes everything answers.
fn good(request: &Request, size: usize) -> Reply {
    let target = request.target.as_str();
    match request.method.as_str() {
        "HEAD" => Reply::status(404),
        "POST" => Reply::status(202).header("Location", "/v2/app/blobs/uploads/1?_state=x"),
        "GET" if target.contains("/uploads/") => Reply::status(204)
            .header("Location", "/v2/app/blobs/uploads/1?_state=y")
            .header("Range", &format!("0-{}", size / 2 - 1)),
        "PATCH" => Reply::status(202).header("Location", "/v2/app/blobs/uploads/1?_state=z"),
        "PUT" => Reply::status(201),
        _ => Reply::status(400),
    }
}

async fn push(
    store: &Store,
    source: &Server,
    name: &str,
    auth: &Credentials,
) -> Result<Digest, Error> {
    let id = pull(store, &source.name("app:1")).await.unwrap().id;
    let name: Reference = name.parse().unwrap();
    store.tag(&id, &name).await.unwrap();
    store.push(&name, auth, Progress::none()).await.map(|pushed| pushed.digest)
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_upload_is_gone_on_with() {
    let source = Server::start(vec![("app:1", image())], |_, reply| reply).await;
    let size = image().layers[0].blob.len();
    let times = AtomicUsize::new(0);
    let registry = Server::start(vec![], move |request, _| {
        let whole = request.header("content-length") == Some(size.to_string().as_str());
        if request.method == "PATCH" && whole && times.fetch_add(1, Ordering::SeqCst) == 0 {
            return Reply::status(503);
        }
        good(request, size)
    })
    .await;
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).await;
    let recorder = Recorder::default();
    let id = pull(&store, &source.name("app:1")).await.unwrap().id;
    let name: Reference = registry.name("app:2").parse().unwrap();
    store.tag(&id, &name).await.unwrap();
    let pushed = store.push(&name, &Credentials::default(), recorder.progress()).await.unwrap();
    assert_eq!(pushed.digest, Digest::of(&image().manifest));
    let patches: Vec<Request> = registry
        .requests("/uploads/")
        .into_iter()
        .filter(|request| request.method == "PATCH")
        .collect();
    let ranges: Vec<_> =
        patches.iter().filter_map(|request| request.header("content-range")).collect();
    assert_eq!(ranges, [format!("{}-{}", size / 2, size - 1)]);
    assert!(patches.iter().any(|request| request.target.contains("_state=y")));
    assert_eq!(recorder.count(|state| matches!(state, LayerState::Retrying { .. })), 1);
    assert_eq!(recorder.count(|state| *state == LayerState::Pushed), 1);
    let put = registry.requests("/manifests/2").pop().unwrap();
    assert_eq!(put.body.as_bytes(), image().manifest, "byte for byte");
    let last = registry.requests(&format!("digest={}", "sha256%3A")).pop().unwrap();
    assert!(last.target.contains("_state=z"), "{}", last.target);
}

#[tokio::test(flavor = "multi_thread")]
async fn registry_that_stays_broken_is_given_up() {
    let source = Server::start(vec![("app:1", image())], |_, reply| reply).await;
    let size = image().layers[0].blob.len();
    for (method, status) in [("POST", 500), ("PATCH", 502), ("PUT", 429)] {
        let registry = Server::start(vec![], move |request, _| {
            if request.method == method { Reply::status(status) } else { good(request, size) }
        })
        .await;
        let root = tempfile::tempdir().unwrap();
        let store = open(root.path()).await;
        let name = registry.name("app:1");
        let error = push(&store, &source, &name, &Credentials::default()).await.unwrap_err();
        assert!(
            matches!(&error, Error::Registry { status: found, .. } if *found == status),
            "{method}: {error:?}"
        );
        assert!(registry.requests("/manifests/").is_empty(), "{method}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_location_is_refused() {
    let source = Server::start(vec![("app:1", image())], |_, reply| reply).await;
    for location in ["file:///etc/passwd", "http://", "gopher://x/1"] {
        let registry = Server::start(vec![], move |request, _| match request.method.as_str() {
            "POST" => Reply::status(202).header("Location", location),
            _ => good(request, 2),
        })
        .await;
        let root = tempfile::tempdir().unwrap();
        let store = open(root.path()).await;
        let name = registry.name("app:1");
        let error = push(&store, &source, &name, &Credentials::default()).await.unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{location}: {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn token_for_a_push_is_asked_for_once_and_kept_from_other_hosts() {
    let source = Server::start(vec![("app:1", image())], |_, reply| reply).await;
    let size = image().layers[0].blob.len();
    let strangers = Arc::new(Mutex::new(Vec::new()));
    let seen = strangers.clone();
    let storage = Server::start(vec![], move |request, _| {
        seen.lock().unwrap().push(request.header("authorization").map(str::to_owned));
        let location = format!("http://{}/upload", request.header("host").unwrap_or_default());
        match request.method.as_str() {
            "PATCH" => Reply::status(202).header("Location", &location),
            _ => Reply::status(201),
        }
    })
    .await;
    let elsewhere = format!("http://127.0.0.1:{}/upload", storage.port);
    let registry = Server::start(vec![], move |request, _| {
        let host = request.header("host").unwrap_or_default();
        if request.target.starts_with("/token") {
            return Reply::ok(r#"{"token":"good"}"#);
        }
        if request.header("authorization") != Some("Bearer good") {
            let challenge = format!(
                r#"Bearer realm="http://{host}/token",service="reg",scope="repository:app:pull""#
            );
            return Reply::status(401).header("WWW-Authenticate", &challenge);
        }
        match request.method.as_str() {
            "POST" => Reply::status(202).header("Location", &elsewhere),
            _ => good(request, size),
        }
    })
    .await;
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).await;
    let auth = Credentials::Basic { username: "user".into(), password: "secret".into() };
    push(&store, &source, &registry.name("app:1"), &auth).await.unwrap();
    let tokens = registry.requests("/token");
    assert_eq!(tokens.len(), 1);
    assert!(tokens[0].target.contains("scope=repository%3Aapp%3Apull%2Cpush"), "{tokens:?}");
    let strangers = strangers.lock().unwrap();
    assert!(strangers.len() >= 2 && strangers.iter().all(Option::is_none), "{strangers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn index_is_pushed_if_all_of_it_is_here() {
    let layout = Layout::busybox("amd64", "one");
    layout.add("arm64", "two", "arm64");
    let registry = Registry::start();
    let mut manifests = Vec::new();
    for architecture in ["amd64", "arm64"] {
        registry.push(&layout, architecture, &format!("multi:{architecture}"), &[]);
        let bytes = registry.manifest("multi", architecture);
        manifests
            .push(json!({"mediaType": MANIFEST, "digest": Digest::of(&bytes), "size": bytes.len(),
            "platform": {"os": "linux", "architecture": architecture}}));
    }
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests});
    let index = registry.put_manifest("multi", "1", media_type, index.to_string().as_bytes());
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).await;
    let (name, copy): (Reference, Reference) =
        (registry.name("multi:1").parse().unwrap(), registry.name("copy:1").parse().unwrap());
    for (platform, whole) in [("linux/amd64", false), ("linux/arm64", true)] {
        let platform: Platform = platform.parse().unwrap();
        let image =
            store.pull(&name, &platform, &Credentials::default(), Progress::none()).await.unwrap();
        store.tag(&image.id, &copy).await.unwrap();
        let pushed = store.push(&copy, &Credentials::default(), Progress::none()).await.unwrap();
        assert_eq!(pushed.digest, if whole { index } else { image.manifest }, "{platform}");
    }
    // Both platforms can be had from there.
    let other = tempfile::tempdir().unwrap();
    let other_store = open(other.path()).await;
    for platform in ["linux/amd64", "linux/arm64"] {
        let platform = platform.parse().unwrap();
        other_store
            .pull(&copy, &platform, &Credentials::default(), Progress::none())
            .await
            .unwrap();
    }
    assert_sound(&other_store, other.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tagged_name_keeps_the_manifest_it_was_pulled_with() {
    // One config, two manifests: the same layer compressed in two ways.
    let layer = tar(&[file("data", &noise(50 << 10))]);
    let plain = Layer {
        media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
        blob: layer.clone(),
        ..Layer::gzip(&layer)
    };
    let images = [Image::of(vec![Layer::gzip(&layer)]), Image::of(vec![plain])];
    let digests: Vec<Digest> = images.iter().map(|image| Digest::of(&image.manifest)).collect();
    let [gzipped, plain] = images;
    let source = Server::start(vec![("a:1", gzipped), ("z:1", plain)], |_, reply| reply).await;
    let registry = Server::start(vec![], |request, _| good(request, 2)).await;
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).await;
    for name in ["a:1", "z:1"] {
        pull(&store, &source.name(name)).await.unwrap();
    }
    assert_eq!(store.list().len(), 1);
    for (name, digest) in [("a:1", digests[0]), ("z:1", digests[1])] {
        let target: Reference = registry.name("app:1").parse().unwrap();
        store.tag_from(&source.name(name), &target).await.unwrap();
        let pushed = store.push(&target, &Credentials::default(), Progress::none()).await.unwrap();
        assert_eq!(pushed.digest, digest, "{name}");
    }
}
