//! Registries that misbehave.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper_image::{Credentials, Digest, Error, LayerState, Platform, Progress, Reference, Store};
use serde_json::json;

use crate::lab::handmade::{Image, Layer, file, gzip, noise, symlink, tar};
use crate::lab::server::{Reply, Request, Server};
use crate::lab::{Recorder, assert_sound, open, options, pull};

/// 600 KiB that do not compress, in one layer.
fn image() -> Image {
    Image::of(vec![Layer::gzip(&tar(&[file("data", &noise(600 << 10))]))])
}

fn is_layer(request: &Request, image: &Digest) -> bool {
    request.target.contains("/blobs/") && !request.target.contains(&image.hex())
}

async fn start(
    image: Image,
    handler: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static,
) -> Server {
    Server::start(vec![("app:1", image)], handler).await
}

/// Pulls with a store of its own that must be sound and empty of names afterwards.
async fn failing_pull(server: &Server) -> Error {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).await;
    let error = pull(&store, &server.name("app:1")).await.unwrap_err();
    assert!(store.list().is_empty());
    assert!(store.verify().await.unwrap().problems.is_empty());
    drop(store);
    // What is left is cleaned at the latest by the next process, but for a blob to go on with.
    open(root.path()).await;
    let left = std::fs::read_dir(root.path().join("ingest")).unwrap().flatten();
    assert!(left.map(|e| e.path()).all(|path| path.extension().is_some_and(|e| e == "partial")));
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_connection_is_resumed() {
    let config = image().id();
    let times = AtomicUsize::new(0);
    let server = start(image(), move |request, mut reply| {
        if is_layer(request, &config) && times.fetch_add(1, Ordering::SeqCst) < 4 {
            reply.cut = Some(100 << 10);
        }
        reply
    })
    .await;
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).await;
    let recorder = Recorder::default();
    let name: Reference = server.name("app:1").parse().unwrap();
    store
        .pull(&name, &Platform::host(), &Credentials::default(), recorder.progress())
        .await
        .unwrap();
    // More failures than attempts: each of them made progress.
    assert_eq!(recorder.count(|state| matches!(state, LayerState::Retrying { .. })), 4);
    let layer = format!("/blobs/{}", Digest::of(&image().layers[0].blob));
    let ranges: Vec<_> =
        server.requests(&layer).iter().map(|r| r.header("range").map(str::to_owned)).collect();
    assert_eq!(ranges.len(), 5);
    assert_eq!(ranges[0], None);
    assert_eq!(ranges[1].as_deref(), Some("bytes=102400-"));
    assert_sound(&store, root.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resumed_without_ranges() {
    let config = image().id();
    let times = AtomicUsize::new(0);
    let server = start(image(), move |request, reply| {
        if !is_layer(request, &config) {
            return reply;
        }
        let whole = Reply::ok(image().layers[0].blob.clone());
        let cut = (times.fetch_add(1, Ordering::SeqCst) == 0).then_some(300 << 10);
        Reply { cut, ..whole }
    })
    .await;
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).await;
    pull(&store, &server.name("app:1")).await.unwrap();
    assert_sound(&store, root.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_for_good() {
    let config = image().id();
    let server = start(image(), move |request, reply| {
        if !is_layer(request, &config) {
            return reply;
        }
        if request.header("range").is_some() {
            return Reply::status(416);
        }
        let mut blob = image().layers[0].blob.clone();
        blob.truncate(200 << 10);
        Reply::ok(blob)
    })
    .await;
    let error = failing_pull(&server).await;
    assert!(matches!(error, Error::SizeMismatch { actual: 204_800, .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes() {
    let config = image().id();
    let server = start(image(), move |request, mut reply| {
        if is_layer(request, &config) {
            let middle = reply.body.len() / 2;
            reply.body[middle] ^= 1;
        }
        reply
    })
    .await;
    let error = failing_pull(&server).await;
    let Error::DigestMismatch { what, expected, .. } = &error else { panic!("{error:?}") };
    assert_eq!(*expected, Digest::of(&image().layers[0].blob));
    assert!(what.contains("/v2/app/blobs/"), "{what}");
    // Nothing damaged is kept to go on with.
    let server = start(image(), |_, mut reply| {
        reply.body.push(b' ');
        reply
    })
    .await;
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).await;
    let digest = Digest::of(&image().manifest);
    let error = pull(&store, &server.name(&format!("app@{digest}"))).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn server_errors() {
    let times = Arc::new(AtomicUsize::new(0));
    let counter = times.clone();
    let server = start(image(), move |_, reply| {
        // Two of three requests fail.
        if counter.fetch_add(1, Ordering::SeqCst) % 3 < 2 { Reply::status(503) } else { reply }
    })
    .await;
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).await;
    pull(&store, &server.name("app:1")).await.unwrap();
    assert!(times.load(Ordering::SeqCst) >= 9);

    let server = start(image(), |_, _| {
        let body = r#"{"errors":[{"code":"UNKNOWN","message":"out of order\u0007"}]}"#;
        Reply { status: 500, ..Reply::ok(body) }
    })
    .await;
    let error = failing_pull(&server).await;
    assert!(
        matches!(&error, Error::Registry { status: 500, message, .. } if message == "out of order"),
        "{error:?}"
    );
    assert_eq!(server.requests("/manifests/1").len(), 3);
    let server = start(image(), |_, _| Reply::status(429).header("Retry-After", "0")).await;
    assert!(matches!(failing_pull(&server).await, Error::Registry { status: 429, .. }));
}

/// A registry that wants a token which the realm gives to `user:secret` or the refresh token `fresh`.
async fn token_server() -> Server {
    Server::start(vec![("app:1", image())], |request, reply| {
        if let Some(query) = request.target.strip_prefix("/token") {
            let basic = "Basic dXNlcjpzZWNyZXQ=";
            let by_password = request.method == "GET"
                && request.header("authorization") == Some(basic)
                && query.contains("service=reg")
                && query.contains("scope=repository%3Aapp%3Apull");
            let by_refresh = request.method == "POST"
                && request.body.contains("grant_type=refresh_token")
                && request.body.contains("refresh_token=fresh");
            return match (by_password, by_refresh) {
                (true, _) => Reply::ok(r#"{"token":"good","expires_in":60}"#),
                (_, true) => Reply::ok(r#"{"access_token":"good"}"#),
                _ => Reply {
                    status: 401,
                    ..Reply::ok(r#"{"details":"incorrect username or password"}"#)
                },
            };
        }
        if request.header("authorization") == Some("Bearer good") {
            return reply;
        }
        let host = request.header("host").unwrap_or_default();
        let challenge = format!(
            r#"Bearer realm="http://{host}/token",service="reg",scope="repository:app:pull""#
        );
        Reply::status(401).header("WWW-Authenticate", &challenge)
    })
    .await
}

async fn pull_as(server: &Server, credentials: Credentials) -> Result<hyper_image::Image, Error> {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).await;
    let name: Reference = server.name("app:1").parse().unwrap();
    store.pull(&name, &Platform::host(), &credentials, Progress::none()).await
}

fn user(password: &str) -> Credentials {
    Credentials::Basic { username: "user".into(), password: password.into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens() {
    let server = token_server().await;
    pull_as(&server, user("secret")).await.unwrap();
    assert_eq!(server.requests("/token").len(), 1, "one token serves the whole pull");
    pull_as(&server, Credentials::IdentityToken("fresh".into())).await.unwrap();
    pull_as(&server, Credentials::RegistryToken("good".into())).await.unwrap();
    for bad in [Credentials::Anonymous, user("wrong"), Credentials::RegistryToken("old".into())] {
        let error = pull_as(&server, bad).await.unwrap_err();
        assert!(matches!(error, Error::Unauthorized { .. }), "{error:?}");
        let text = error.chain();
        assert!(text.contains("docker login") && text.contains("incorrect username"), "{text}");
        assert!(!text.contains("wrong") && !text.contains("old"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirected_token_server_does_not_pass_the_secret_on() {
    let elsewhere = start(image(), |_, _| Reply::ok(r#"{"access_token":"good"}"#)).await;
    let there = format!("http://{}/token", elsewhere.name("").split('/').next().unwrap());
    for status in [307, 308] {
        let there = there.clone();
        let server = start(image(), move |request, _| {
            if request.target.starts_with("/token") {
                return Reply::status(status).header("Location", &there);
            }
            let host = request.header("host").unwrap_or_default();
            let challenge = format!(r#"Bearer realm="http://{host}/token",service="reg""#);
            Reply::status(401).header("WWW-Authenticate", &challenge)
        })
        .await;
        let error = pull_as(&server, Credentials::IdentityToken("fresh".into())).await.unwrap_err();
        assert!(
            matches!(error, Error::Registry { status: told, .. } if told == status),
            "{error:?}"
        );
        assert_eq!(server.requests("/token").len(), 1);
        assert_eq!(elsewhere.requests("/token").len(), 0, "it never hears of it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn basic() {
    let server = start(image(), |request, reply| match request.header("authorization") {
        Some("Basic dXNlcjpzZWNyZXQ=") => reply,
        _ => Reply::status(401).header("WWW-Authenticate", "Basic realm=\"x\""),
    })
    .await;
    pull_as(&server, user("secret")).await.unwrap();
    for bad in [Credentials::Anonymous, user("wrong")] {
        assert!(matches!(pull_as(&server, bad).await, Err(Error::Unauthorized { .. })));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_fetch_for_many_pulls() {
    let config = image().id();
    let server = start(image(), move |request, mut reply| {
        if is_layer(request, &config) {
            reply.slow = Some(Duration::from_millis(20));
        }
        reply
    })
    .await;
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).await;
    let recorder = Recorder::default();
    let pulls = (0..5).map(|_| {
        let (store, name, progress) = (store.clone(), server.name("app:1"), recorder.progress());
        tokio::spawn(async move {
            store
                .pull(&name.parse().unwrap(), &Platform::host(), &Credentials::default(), progress)
                .await
                .unwrap()
                .id
        })
    });
    for pull in pulls.collect::<Vec<_>>() {
        assert_eq!(pull.await.unwrap(), config);
    }
    let layer = format!("/blobs/{}", Digest::of(&image().layers[0].blob));
    assert_eq!(server.requests(&layer).len(), 1);
    assert_eq!(recorder.count(|state| *state == LayerState::Waiting), 4);
    assert_sound(&store, root.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_and_gone_on_with() {
    let config = image().id();
    let server = start(image(), move |request, mut reply| {
        if is_layer(request, &config) && request.header("range").is_none() {
            reply.slow = Some(Duration::from_millis(100));
        }
        reply
    })
    .await;
    for damage in [false, true] {
        let root = tempfile::tempdir().unwrap();
        let store = open(root.path()).await;
        let name = server.name("app:1");
        tokio::time::timeout(Duration::from_millis(450), pull(&store, &name))
            .await
            .expect_err("too quick to cancel");
        // The receiver's thread notices by itself, and then another process may come.
        let layer = Digest::of(&image().layers[0].blob);
        let partial = root.path().join("ingest").join(format!("{}.partial", layer.hex()));
        tokio::time::sleep(Duration::from_millis(200)).await;
        let kept = std::fs::metadata(&partial).unwrap().len();
        assert!(kept > 0);
        if damage {
            std::fs::write(&partial, vec![0; usize::try_from(kept).unwrap()]).unwrap();
        }
        drop(store);
        let store = open(root.path()).await;
        let before = server.requests(&layer.to_string()).len();
        pull(&store, &name).await.unwrap();
        let requests = server.requests(&layer.to_string());
        assert_eq!(requests[before].header("range"), Some(format!("bytes={kept}-").as_str()));
        assert_eq!(requests.len() - before, if damage { 2 } else { 1 });
        assert_sound(&store, root.path()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mirror_without_the_image() {
    let mirror = Server::start(vec![], |_, reply| reply).await;
    let good = start(image(), |_, reply| reply).await;
    let registry = format!("127.0.0.1:{}", good.port);
    let mut options = options();
    options.registry.mirrors =
        BTreeMap::from([(registry, vec![format!("http://127.0.0.1:{}", mirror.port)])]);
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path(), options).await.unwrap();
    pull(&store, &good.name("app:1")).await.unwrap();
    assert_eq!(mirror.requests("/manifests/").len(), 1);
    assert!(mirror.requests("/blobs/").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_image() {
    let manifest = |body: serde_json::Value, media_type: &'static str| {
        start(image(), move |request, reply| {
            if !request.target.contains("/manifests/") {
                return reply;
            }
            Reply::ok(body.to_string()).header("Content-Type", media_type)
        })
    };
    let schema1 = json!({"schemaVersion": 1, "name": "app", "fsLayers": [], "history": []});
    let server =
        manifest(schema1, "application/vnd.docker.distribution.manifest.v1+prettyjws").await;
    let error = failing_pull(&server).await;
    assert!(matches!(error, Error::Schema1 { .. }), "{error:?}");

    let server = manifest(json!("hello"), "text/html").await;
    assert!(matches!(failing_pull(&server).await, Error::Malformed { .. }));

    let good: serde_json::Value = serde_json::from_slice(&image().manifest).unwrap();
    let mut foreign = good.clone();
    foreign["layers"][0]["mediaType"] =
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".into();
    let server = manifest(foreign, "application/vnd.oci.image.manifest.v1+json").await;
    assert!(matches!(failing_pull(&server).await, Error::ForeignLayer { .. }));

    let mut chart = good.clone();
    chart["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json".into();
    let server = manifest(chart, "application/vnd.oci.image.manifest.v1+json").await;
    let error = failing_pull(&server).await;
    assert!(
        matches!(&error, Error::NotAnImage { reason, .. } if reason.contains("helm")),
        "{error:?}"
    );

    let mut short = good.clone();
    short["layers"] = json!([]);
    let server = manifest(short, "application/vnd.oci.image.manifest.v1+json").await;
    let error = failing_pull(&server).await;
    assert!(
        matches!(&error, Error::NotAnImage { reason, .. } if reason.contains("0 layers")),
        "{error:?}"
    );

    let mut huge = good;
    huge["layers"][0]["size"] = json!(u64::MAX);
    let server = manifest(huge, "application/vnd.oci.image.manifest.v1+json").await;
    let error = failing_pull(&server).await;
    assert!(matches!(&error, Error::NoSpace { need: u64::MAX, .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_layers() {
    let refused = |layer: Layer| async move {
        let server = start(Image::of(vec![layer]), |_, reply| reply).await;
        failing_pull(&server).await
    };
    // Names that lead out of the root.
    let error = refused(Layer::gzip(&tar(&[file("../../etc/passwd", b"x")]))).await;
    assert!(matches!(error, Error::Layer { .. }), "{error:?}");
    assert!(error.chain().contains("../../etc/passwd"), "{}", error.chain());
    // A symlink is content, not a way out: what is written through it stays inside.
    let server = start(
        Image::of(vec![Layer::gzip(&tar(&[symlink("a", "/etc"), file("a/hyper-escape", b"x")]))]),
        |_, r| r,
    )
    .await;
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).await;
    let _ = pull(&store, &server.name("app:1")).await;
    assert!(!std::path::Path::new("/etc/hyper-escape").exists());

    // A layer with the right digest that ends in the middle.
    let whole = tar(&[file("data", &noise(100 << 10))]);
    let mut blob = gzip(&whole);
    blob.truncate(blob.len() / 2);
    let error = refused(Layer { blob, ..Layer::gzip(&whole) }).await;
    assert!(matches!(error, Error::Layer { .. }), "{error:?}");
    // No archive at all.
    let error = refused(Layer { blob: b"not a layer".repeat(100), ..Layer::gzip(&whole) }).await;
    assert!(matches!(error, Error::Layer { .. }), "{error:?}");
    // A diff id that is not that of the content.
    let diff_id = Digest::of(b"something else");
    let error = refused(Layer { diff_id, ..Layer::gzip(&whole) }).await;
    assert!(
        matches!(&error, Error::DigestMismatch { expected, .. } if *expected == diff_id),
        "{error:?}"
    );
}
