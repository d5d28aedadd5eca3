//! The image store through real clients: push, tag, save, load, history, prune, df, login, verify.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hyper_e2e::{Engine, Registry, image, tool};
use serde_json::Value;

const MINUTE: Duration = Duration::from_secs(60);

/// An engine, and a registry whose `a:1` it has pulled.
fn pulled() -> (Registry, Engine, String) {
    let registry = Registry::start();
    registry.push(&image("busybox"), "a:1");
    let engine = Engine::start();
    let name = registry.reference("a:1");
    engine.docker(&["pull", "-q", &name]).succeeded();
    (registry, engine, name)
}

#[track_caller]
fn assert_sound(engine: &Engine) {
    let outcome = engine.hyper(&["image", "verify"]).succeeded();
    assert!(outcome.text().ends_with("0 problems"), "{}", outcome.text());
}

#[test]
fn pushed_image_keeps_its_digest_and_is_mounted_from_where_it_was() {
    let (registry, engine, name) = pulled();
    let original = registry.inspect("a:1")["Digest"].clone();
    let copy = registry.reference("team/copy:2");
    engine.docker(&["tag", &name, &copy]).succeeded();
    let said = engine.docker(&["push", &copy]).succeeded().text();
    assert!(said.contains("Mounted from a"), "{said}");
    assert!(said.contains(&format!("2: digest: {}", original.as_str().expect("digest"))), "{said}");
    assert_eq!(registry.inspect("team/copy:2")["Digest"], original);
    // Again, with our client: nothing to send.
    let said = engine.hyper(&["push", &copy]).succeeded().text();
    assert!(said.contains("already exists"), "{said}");
    let digests = engine.inspect(&copy, "{{json .RepoDigests}}");
    assert!(digests.contains("team/copy@sha256:"), "{digests}");
    // What is there now is an image for everybody.
    let other = Engine::start();
    other.docker(&["pull", "-q", &copy]).succeeded();
    assert_eq!(other.inspect(&copy, "{{.Id}}"), engine.inspect(&name, "{{.Id}}"));
    assert_sound(&other);
}

#[test]
fn loaded_image_is_pushed_with_all_its_tags() {
    let registry = Registry::start();
    let engine = Engine::with_busybox();
    for tag in ["1", "2"] {
        let name = registry.reference(&format!("app:{tag}"));
        engine.hyper(&["tag", "busybox", &name]).succeeded();
    }
    let repository = registry.reference("app");
    let said = engine.docker(&["push", "-a", &repository]).succeeded().text();
    assert!(said.contains("1: digest") && said.contains("2: digest"), "{said}");
    assert!(said.contains("Pushed"), "{said}");
    assert_eq!(registry.inspect("app:1")["Digest"], registry.inspect("app:2")["Digest"]);
    engine.docker(&["push", &registry.reference("app:3")]).exited(1).says(&["app:3"]);
    engine.hyper(&["push", "127.0.0.1:1/x:1"]).exited(1).says(&["127.0.0.1:1/x:1"]);
    engine.hyper(&["tag", "busybox", "127.0.0.1:1/x:1"]).succeeded();
    engine.hyper(&["push", "127.0.0.1:1/x:1"]).exited(1).says(&["cannot reach"]);
}

#[test]
fn saved_images_are_read_by_skopeo_umoci_and_another_engine() {
    let (registry, engine, name) = pulled();
    engine.docker(&["tag", &name, "app:1"]).succeeded();
    engine.docker(&["tag", &name, "app:2"]).succeeded();
    let file = |name: &str| engine.dir().join(name).display().to_string();
    let (first, second) = (file("first.tar"), file("second.tar"));
    engine.docker(&["save", "-o", &first, "app:1", "app:2"]).succeeded();
    engine.hyper(&["save", "-o", &second, "app"]).succeeded();
    assert_eq!(
        std::fs::read(&first).expect("first"),
        std::fs::read(&second).expect("second"),
        "the same images give the same bytes"
    );
    // As a docker-archive and as an OCI layout.
    for source in [format!("docker-archive:{first}:app:1"), format!("oci-archive:{first}:2")] {
        let seen: Value =
            serde_json::from_str(&tool("skopeo", &["inspect", &source])).expect("JSON");
        assert_eq!(seen["Architecture"], "amd64", "{source}");
    }
    let copied = format!("docker://{}", registry.reference("from-archive:1"));
    let policy = "--insecure-policy";
    let source = format!("oci-archive:{first}:1");
    tool("skopeo", &[policy, "copy", "-q", "--dest-tls-verify=false", &source, &copied]);
    assert_eq!(registry.inspect("from-archive:1")["Digest"], registry.inspect("a:1")["Digest"]);
    let layout = file("layout");
    std::fs::create_dir(&layout).expect("directory");
    tool("tar", &["-xf", &first, "-C", &layout]);
    let bundle = file("bundle");
    tool("umoci", &["unpack", "--image", &format!("{layout}:1"), &bundle]);
    assert!(Path::new(&bundle).join("rootfs/bin/busybox").exists());
    // Plain, gzip and zstd, by both clients.
    tool("gzip", &["-k", &first]);
    tool("zstd", &["-q", &first]);
    let id = engine.inspect("app:1", "{{.Id}}");
    for archive in [first.clone(), format!("{first}.gz"), format!("{first}.zst")] {
        let other = Engine::start();
        let said = other.docker(&["load", "-i", &archive]).succeeded().text();
        assert!(said.contains("app:1") && said.contains("app:2"), "{said}");
        assert_eq!(other.inspect("app:2", "{{.Id}}"), id);
        assert_sound(&other);
    }
    // By id there are no names.
    let nameless = file("nameless.tar");
    engine.docker(&["save", "-o", &nameless, &id]).succeeded();
    let other = Engine::start();
    let said = other.docker(&["load", "-i", &nameless]).succeeded().text();
    assert!(said.contains("Loaded image ID: sha256:"), "{said}");
    engine.docker(&["save", "-o", &nameless, "absent"]).exited(1).says(&["absent"]);
    engine.hyper(&["save", "-o", &file("absent.tar"), "absent"]).exited(1).says(&["absent"]);
    assert!(!Path::new(&file("absent.tar")).exists());
}

#[test]
fn imported_tree_runs_with_its_changes() {
    let engine = Engine::start();
    let dir = tempfile::tempdir().expect("directory");
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::create_dir_all(dir.path().join("root/bin")).expect("directory");
    std::fs::copy("/bin/busybox", dir.path().join("root/bin/busybox")).expect("copy");
    tool("tar", &["-cf", &path("root.tar"), "-C", &path("root"), "."]);
    tool("gzip", &["-k", &path("root.tar")]);
    tool("xz", &["-k", &path("root.tar")]);
    let change = ["-c", "ENTRYPOINT [\"/bin/busybox\", \"echo\"]", "-c", "ENV A=b", "-m", "a test"];
    let import = |client: &str, file: &str, name: &str| {
        let mut arguments = vec!["import"];
        arguments.extend(change);
        let file = path(file);
        arguments.extend([file.as_str(), name]);
        match client {
            "docker" => engine.docker(&arguments),
            _ => engine.hyper(&arguments),
        }
    };
    for (client, file, name) in
        [("docker", "root.tar", "tree:1"), ("hyper", "root.tar.gz", "tree:2")]
    {
        let id = import(client, file, name).succeeded().text();
        assert!(id.contains("sha256:"), "{id}");
        assert_eq!(engine.inspect(name, "{{index .Config.Env 0}} {{.Comment}}"), "A=b a test");
    }
    let run = engine.docker(&["run", "--rm", "tree:2", "hello"]).succeeded();
    assert_eq!(run.text(), "hello");
    import("hyper", "root.tar.xz", "tree:3").succeeded();
    engine.docker(&["import", "-c", "RUN x", &path("root.tar")]).exited(1).says(&["RUN x"]);
    let stdin = engine.hyper_command(&["import", "-", "tree:4"]);
    let tar = std::fs::read(dir.path().join("root.tar")).expect("read");
    hyper_e2e::run_with(stdin, tar, MINUTE).succeeded();
    assert_sound(&engine);
}

#[test]
fn history_and_df_tell_true_sizes() {
    let engine = Engine::with_busybox();
    let history = engine.docker(&["history", "--human=false", "--format", "{{.Size}}", "busybox"]);
    let bytes: u64 =
        history.succeeded().text().lines().map(|line| line.parse::<u64>().expect("bytes")).sum();
    let size: u64 = engine.inspect("busybox", "{{.Size}}").parse().expect("bytes");
    assert_eq!(bytes, size);
    assert!(engine.hyper(&["history", "busybox"]).succeeded().text().contains("CREATED BY"));
    engine.docker(&["tag", "busybox", "other"]).succeeded();
    let df = engine.docker(&["system", "df", "--format", "{{.Type}} {{.TotalCount}} {{.Active}}"]);
    assert!(df.succeeded().text().contains("Images 1 0"));
    let ours = engine.hyper(&["system", "df"]).succeeded().text();
    assert!(ours.contains("Images") && ours.contains("(100%)"), "{ours}");
    engine.docker(&["system", "df", "-v"]).succeeded();
    engine.hyper(&["system", "df", "-v"]).succeeded();
}

#[test]
fn filters_of_images() {
    let (_registry, engine, name) = pulled();
    engine.docker(&["tag", &name, "app:1"]).succeeded();
    engine.docker(&["tag", &name, "app:2"]).succeeded();
    let list = |filter: &str| {
        let format = "{{.Repository}}:{{.Tag}}";
        engine.docker(&["images", "-f", filter, "--format", format]).succeeded().text()
    };
    assert_eq!(list("reference=app:1"), "app:1");
    assert_eq!(list("reference=app").lines().count(), 2);
    assert_eq!(list("reference=nothing"), "");
    assert_eq!(list("dangling=true"), "");
    assert_eq!(list(&format!("before={name}")), "");
    assert_eq!(list(&format!("since={name}")), "");
    assert_eq!(list("until=1000000h"), "");
    assert_eq!(list("until=2100-01-01T00:00:00Z").lines().count(), 3);
    assert_eq!(list("label=absent"), "");
    engine.docker(&["images", "-f", "until=soon"]).exited(1).says(&["soon"]);
}

#[test]
fn prune_takes_what_nothing_needs() {
    let engine = Engine::with_busybox();
    engine.docker(&["tag", "busybox", "used:1"]).succeeded();
    engine.docker(&["create", "--name", "keeper", "used:1", "true"]).succeeded();
    engine.docker(&["image", "prune", "-af"]).succeeded();
    assert!(engine.docker(&["images", "-q"]).succeeded().text().lines().count() >= 1);
    engine.docker(&["rmi", "used:1"]).succeeded();
    engine.docker(&["rmi", "busybox"]).exited(1).says(&["container", "force"]);
    engine.docker(&["rm", "keeper"]).succeeded();
    let said = engine.docker(&["image", "prune", "-f"]).succeeded().text();
    assert!(said.contains("reclaimed space: 0B"), "{said}");
    let kept = engine.docker(&["image", "prune", "-af", "--filter", "until=1000000h"]).succeeded();
    assert!(kept.text().contains("reclaimed space: 0B"), "{}", kept.text());
    let said = engine.hyper(&["image", "prune", "-af"]).succeeded().text();
    assert!(
        said.contains("untagged: busybox:latest") && said.contains("deleted: sha256:"),
        "{said}"
    );
    assert_eq!(engine.docker(&["images", "-aq"]).succeeded().text(), "");
    let blobs = engine.dir().join("data/images/blobs/sha256");
    assert_eq!(std::fs::read_dir(blobs).expect("blobs").count(), 0);
    assert_sound(&engine);
}

#[test]
fn login_is_checked_by_the_registry_and_used_by_push_and_pull() {
    let registry = Registry::start_for("alice", "s3cret");
    let engine = Engine::with_busybox();
    let server = registry.reference("").trim_end_matches('/').to_owned();
    let name = registry.reference("private/app:1");
    engine.docker(&["tag", "busybox", &name]).succeeded();
    for client in ["docker", "hyper"] {
        let home = tempfile::tempdir().expect("directory");
        let with_home = |arguments: &[&str], input: &str| {
            let mut command: Command = match client {
                "docker" => engine.docker_command(arguments),
                _ => engine.hyper_command(arguments),
            };
            command.env("DOCKER_CONFIG", home.path());
            hyper_e2e::run_with(command, input.as_bytes().to_vec(), 2 * MINUTE)
        };
        let login = ["login", "-u", "alice", "--password-stdin", &server];
        with_home(&["push", &name], "").exited(1);
        let refused = with_home(&login, "wrong\n").exited(1);
        assert!(!refused.stderr.contains("wrong\n"), "{}", refused.stderr);
        assert!(!home.path().join("config.json").exists(), "{client} kept wrong credentials");
        let said = with_home(&login, "s3cret\n").succeeded();
        assert!(said.text().contains("Login Succeeded"), "{}", said.text());
        with_home(&["push", &name], "").succeeded();
        with_home(&["pull", &name], "").succeeded();
        let said = with_home(&["logout", &server], "").succeeded().text();
        assert!(said.contains("Removing login credentials"), "{said}");
        with_home(&["pull", &name], "").exited(1);
    }
    assert!(!engine.log().contains("s3cret"));
}

#[test]
fn registry_with_a_ca_of_its_own() {
    let dir = tempfile::tempdir().expect("directory");
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (certificate, key) = (path("ca.crt"), path("key.pem"));
    let host = tool("hostname", &[]);
    tool(
        "openssl",
        &[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=test",
            "-addext",
            &format!("subjectAltName=DNS:{host},DNS:registry.test"),
            "-keyout",
            &key,
            "-out",
            &certificate,
        ],
    );
    let registry = Registry::start_tls(Path::new(&certificate), Path::new(&key));
    let certs = dir.path().join("certs.d");
    let engine = Engine::start_with(&["--registry-certificates", &certs.display().to_string()]);
    engine.hyper(&["load", "-q", "-i", &image("busybox").display().to_string()]).succeeded();
    // 127.0.0.1 needs no certificate, as with Docker.
    let loopback = registry.reference("app:1");
    engine.hyper(&["tag", "busybox", &loopback]).succeeded();
    engine.hyper(&["push", "-q", &loopback]).succeeded();
    let Ok(addresses) = std::net::ToSocketAddrs::to_socket_addrs(&(host.as_str(), registry.port()))
    else {
        panic!("{host} has no address")
    };
    let local = addresses.into_iter().any(|address| address.ip().is_loopback());
    assert!(local, "{host} is not this machine's loopback name: the rest cannot be tested");
    let named = format!("{host}:{}/app:1", registry.port());
    engine.hyper(&["pull", &named]).exited(1).says(&["certs.d", "ca.crt"]);
    let own = certs.join(format!("{host}:{}", registry.port()));
    std::fs::create_dir_all(&own).expect("directory");
    std::fs::copy(&certificate, own.join("ca.crt")).expect("copy");
    // The running hyperd sees it.
    engine.hyper(&["pull", &named]).succeeded();
    // And that it is another one now, or none.
    std::fs::write(own.join("ca.crt"), "no certificate").expect("write");
    engine.hyper(&["pull", &named]).exited(1).says(&["ca.crt", "no PEM certificate"]);
    std::fs::remove_file(own.join("ca.crt")).expect("remove");
    engine.hyper(&["pull", &named]).exited(1).says(&["certs.d", "ca.crt"]);
    std::fs::copy(&certificate, own.join("ca.crt")).expect("copy");
    engine.hyper(&["pull", &named]).succeeded();
}
