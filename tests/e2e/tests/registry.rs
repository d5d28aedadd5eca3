//! Images from a real registry.

use std::io::{Seek, SeekFrom, Write};

use hyper_e2e::{Engine, Registry, image, runtimes};

#[test]
fn debian_from_the_registry_runs_python_on_every_runtime() {
    let registry = Registry::start();
    registry.push(&image("python"), "debian/python:12");
    let engine = Engine::start();
    let reference = registry.reference("debian/python:12");
    engine.docker(&["pull", &reference]).succeeded();
    for runtime in runtimes() {
        let code = "import hashlib; print(hashlib.sha256(b'x' * 10**6).hexdigest())";
        let outcome = engine
            .hyper(&["run", "--rm", "--runtime", runtime, &reference, "python3", "-c", code])
            .succeeded();
        assert_eq!(outcome.text(), sha256_of_a_million_x(), "{runtime}");
    }
}

fn sha256_of_a_million_x() -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(vec![b'x'; 1_000_000]).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn run_pulls_what_is_missing() {
    let registry = Registry::start();
    registry.push(&image("busybox"), "busybox:1");
    let engine = Engine::start();
    let reference = registry.reference("busybox:1");
    assert_eq!(engine.docker(&["run", "--rm", &reference, "echo", "a"]).succeeded().text(), "a");
    engine.hyper(&["rmi", &reference]).succeeded();
    assert_eq!(engine.hyper(&["run", "--rm", &reference, "echo", "b"]).succeeded().text(), "b");
}

#[test]
fn unknown_image_and_tag_are_named() {
    let registry = Registry::start();
    registry.push(&image("busybox"), "busybox:1");
    let engine = Engine::start();
    let absent = registry.reference("nothing:1");
    engine.docker(&["pull", &absent]).exited(1).says(&["nothing"]);
    let absent = registry.reference("busybox:9");
    engine.hyper(&["pull", &absent]).exited(1).says(&["busybox:9"]);
    engine.hyper(&["run", "--rm", &absent]).exited(1).says(&["busybox:9"]);
    assert_eq!(engine.hyper(&["images", "-q"]).text(), "");
}

#[test]
fn tampered_layer_is_refused_and_leaves_nothing() {
    let registry = Registry::start();
    registry.push(&image("busybox"), "busybox:1");
    let mut file =
        std::fs::File::options().write(true).open(registry.largest_blob()).expect("layer");
    file.seek(SeekFrom::Start(5000)).expect("seek");
    file.write_all(b"tampered").expect("write");
    let engine = Engine::start();
    let reference = registry.reference("busybox:1");
    engine.hyper(&["pull", &reference]).exited(1).says(&["sha256:"]);
    assert_eq!(engine.hyper(&["images", "-q"]).text(), "");
}

#[test]
fn truncated_layer_is_refused_and_leaves_nothing() {
    let registry = Registry::start();
    registry.push(&image("busybox"), "busybox:1");
    let file = std::fs::File::options().write(true).open(registry.largest_blob()).expect("layer");
    file.set_len(100_000).expect("truncate");
    let engine = Engine::start();
    engine.hyper(&["pull", &registry.reference("busybox:1")]).exited(1).says(&["sha256:"]);
    assert_eq!(engine.hyper(&["images", "-q"]).text(), "");
}

#[test]
fn refused_connection_is_named() {
    let engine = Engine::start();
    engine.hyper(&["pull", "127.0.0.1:1/x:1"]).exited(1).says(&["127.0.0.1:1"]);
}
