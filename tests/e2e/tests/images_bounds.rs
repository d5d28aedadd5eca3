//! What the image store lets strangers' bytes do: who takes them apart, how much they may take, and what comes with
//! them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use hyper_e2e::{Engine, Registry, eventually, image, tool};
use serde_json::{Value, json};

const MINUTE: Duration = Duration::from_secs(60);

fn shell(script: &str) -> String {
    tool("bash", &["-ec", script])
}

/// Directories in `/proc` of processes that take streams apart for this engine's hyperd.
fn unpackers(engine: &Engine) -> Vec<PathBuf> {
    let pid = std::fs::read_to_string(engine.dir().join("hyperd.pid")).unwrap_or_default();
    let name = format!("/hyper/unpack-{}-", pid.trim());
    let all = std::fs::read_dir("/proc").expect("/proc").flatten().map(|entry| entry.path());
    all.filter(|path| {
        let is = |file: &str, what: &str| {
            std::fs::read(path.join(file))
                .is_ok_and(|text| String::from_utf8_lossy(&text).contains(what))
        };
        is("cmdline", "hyper-unpack\0") && (pid.is_empty() || is("cgroup", &name))
    })
    .collect()
}

#[test]
fn archives_are_taken_apart_without_privilege_and_a_killed_one_says_so() {
    let engine = Engine::start();
    let dir = tempfile::tempdir().expect("directory");
    let at = dir.path().display();
    shell(&format!("cd {at} && head -c 3M /dev/urandom > x && tar -cf - x | gzip -1 > x.tgz"));
    let bytes = std::fs::read(dir.path().join("x.tgz")).expect("read");
    let mut client = engine
        .docker_command(&["import", "-", "stalled:1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("docker");
    let mut input = client.stdin.take().expect("stdin");
    input.write_all(&bytes[..bytes.len() / 2]).expect("write");
    input.flush().expect("flush");
    eventually("a process takes it apart", MINUTE, || !unpackers(&engine).is_empty());
    let process = unpackers(&engine).remove(0);
    let status = std::fs::read_to_string(process.join("status")).expect("status");
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(&format!("{name}:")));
        line.and_then(|line| line.split_once(':')).map(|(_, v)| v.trim().to_owned()).expect("field")
    };
    for uid in field("Uid").split_whitespace().chain(field("Gid").split_whitespace()) {
        assert!(uid.parse::<u32>().expect("id") > 1000, "{status}");
    }
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set).trim_start_matches('0'), "", "{status}");
    }
    assert_eq!((field("NoNewPrivs"), field("Seccomp")), ("1".into(), "2".into()), "{status}");
    for namespace in ["net", "mnt", "pid", "ipc", "uts"] {
        let of = |path: &Path| std::fs::read_link(path.join("ns").join(namespace)).expect("ns");
        assert_ne!(of(&process), of(Path::new("/proc/self")), "{namespace}");
    }
    let descriptors: Vec<PathBuf> = std::fs::read_dir(process.join("fd"))
        .expect("fd")
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .collect();
    let pipe = |path: &PathBuf| path.to_string_lossy().starts_with("pipe:");
    assert!(descriptors.iter().all(pipe), "{descriptors:?}");
    // Out of memory, a bug, an attacker: it is gone, and the client is told how.
    let pid = process.file_name().expect("pid").to_string_lossy().into_owned();
    tool("kill", &["-9", &pid]);
    let _ = input.write_all(&bytes[bytes.len() / 2..]);
    drop(input);
    let outcome = client.wait_with_output().expect("docker");
    let said = String::from_utf8_lossy(&outcome.stderr);
    assert!(!outcome.status.success() && said.contains("was killed by signal 9"), "{said}");
    engine.hyper(&["image", "verify"]).succeeded();
    assert_eq!(engine.hyper(&["images", "-q"]).succeeded().text(), "");
    eventually("no process is left", MINUTE, || unpackers(&engine).is_empty());
}

#[test]
fn store_limit_is_told_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().expect("directory");
    let at = dir.path().display();
    // 6 MiB as it comes and again as it is kept.
    shell(&format!("cd {at} && head -c 6M /dev/urandom > x && tar -cf x.tar x"));
    let archive = dir.path().join("x.tar").display().to_string();
    let engine = Engine::start_with(&["--image-store-limit", "10M"]);
    let busybox = image("busybox").display().to_string();
    engine.hyper(&["load", "-q", "-i", &busybox]).succeeded();
    let used = || {
        let root = engine.dir().join("data/images").display().to_string();
        shell(&format!(
            "find {root} -type f -printf '%i %s\\n' | sort -u | awk '{{s+=$2}} END {{print s}}'"
        ))
    };
    let before = used();
    let refused = engine.docker(&["import", &archive, "big:1"]).exited(1);
    for word in ["may hold 10.4 MB", "holds", "prune", "image-store-limit"] {
        assert!(refused.stderr.contains(word), "{word}: {}", refused.stderr);
    }
    assert_eq!(used(), before, "an import left something");
    let registry = Registry::start();
    registry.push(&image("python"), "python:1");
    let pull = engine.docker(&["pull", &registry.reference("python:1")]).exited(1);
    assert!(pull.stderr.contains("may hold"), "{}", pull.stderr);
    assert_eq!(used(), before, "a pull left something");
    engine.hyper(&["image", "verify"]).succeeded();
    // Room is made by removing.
    engine.docker(&["rmi", "busybox"]).succeeded();
    shell(&format!("cd {at} && head -c 3M /dev/urandom > y && tar -cf y.tar y"));
    let smaller = dir.path().join("y.tar").display().to_string();
    engine.docker(&["import", &smaller, "fits:1"]).succeeded();
    engine.hyper(&["image", "verify"]).succeeded();
}

#[test]
fn layers_and_archives_in_bzip2_and_xz() {
    let engine = Engine::start();
    let dir = tempfile::tempdir().expect("directory");
    let at = dir.path().display();
    let busybox = image("busybox").display().to_string();
    shell(&format!("cd {at} && echo hello > f && tar -cf f.tar f"));
    for (program, ending) in [("bzip2", "bz2"), ("xz", "xz")] {
        shell(&format!("cd {at} && {program} -kf f.tar && {program} -c {busybox} > b.{ending}"));
        let archive = dir.path().join(format!("f.tar.{ending}")).display().to_string();
        engine.docker(&["import", &archive, &format!("{ending}:1")]).succeeded();
        let whole = dir.path().join(format!("b.{ending}")).display().to_string();
        engine.docker(&["load", "-q", "-i", &whole]).succeeded();
        // A docker-archive whose layer is compressed so.
        let script = format!(
            "cd {at} && rm -rf d && mkdir d && cp f.tar.{ending} d/l.tar && \
             id=$(sha256sum < f.tar | cut -d' ' -f1) && \
             printf '{{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{{}},\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"sha256:%s\"]}}}}' $id > d/c.json && \
             printf '[{{\"Config\":\"c.json\",\"RepoTags\":[\"layer-{ending}:1\"],\"Layers\":[\"l.tar\"]}}]' > d/manifest.json && \
             tar -cf d.tar -C d ."
        );
        shell(&script);
        let archive = dir.path().join("d.tar").display().to_string();
        let said = engine.docker(&["load", "-i", &archive]).succeeded().text();
        assert!(said.contains(&format!("layer-{ending}:1")), "{said}");
        let cut = format!("cd {at} && head -c 100 f.tar.{ending} > cut.{ending}");
        shell(&cut);
        let cut = dir.path().join(format!("cut.{ending}")).display().to_string();
        engine.docker(&["import", &cut, "cut:1"]).exited(1);
    }
    engine.hyper(&["image", "verify"]).succeeded();
}

/// Puts a document about `subject` there, and lists it by tag as clients do where there is no referrers API.
fn attach(registry: &Registry, repository: &str, subject: &Value, dir: &Path) -> String {
    let empty = registry.put_blob(repository, b"{}", dir);
    let text = b"{\"spdxVersion\":\"SPDX-2.3\"}";
    let layer = registry.put_blob(repository, text, dir);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/spdx+json",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": empty, "size": 2},
        "layers": [{"mediaType": "application/spdx+json", "digest": layer, "size": text.len()}],
        "subject": subject,
        "annotations": {"org.example.author": "me"},
    });
    let bytes = manifest.to_string();
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let digest = registry.put_manifest(repository, None, kind, bytes.as_bytes(), dir);
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{"mediaType": kind, "digest": digest, "size": bytes.len(), "artifactType": "application/spdx+json"}],
    });
    let tag = subject["digest"].as_str().expect("digest").replace(':', "-");
    let kind = "application/vnd.oci.image.index.v1+json";
    registry.put_manifest(repository, Some(&tag), kind, index.to_string().as_bytes(), dir);
    digest
}

#[test]
fn referrers_stay_with_their_image() {
    let dir = tempfile::tempdir().expect("directory");
    let (first, second) = (Registry::start(), Registry::start());
    first.push(&image("busybox"), "busybox:1");
    let raw = first.manifest("busybox", "1");
    let digest = first.inspect("busybox:1")["Digest"].as_str().expect("digest").to_owned();
    let subject = json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": digest, "size": raw.len(),
    });
    let referrer = attach(&first, "busybox", &subject, dir.path());

    let engine = Engine::start();
    let name = first.reference("busybox:1");
    engine.docker(&["pull", "-q", &name]).succeeded();
    let shown = |engine: &Engine, name: &str| {
        engine.hyper(&["image", "referrers", "--no-trunc", name]).succeeded().text()
    };
    let listed = shown(&engine, &name);
    assert!(listed.contains(&referrer) && listed.contains("application/spdx+json"), "{listed}");

    // Pushed with it, and listed by tag where the registry makes no list.
    let other = second.reference("copy:1");
    engine.docker(&["tag", &name, &other]).succeeded();
    engine.docker(&["push", "-q", &other]).succeeded();
    let listed = second.manifest("copy", &digest.replace(':', "-"));
    assert!(listed.contains(&referrer) && listed.contains("application/spdx+json"), "{listed}");
    assert_eq!(second.manifest("copy", &referrer), first.manifest("busybox", &referrer));
    // Again: nothing is listed twice.
    engine.docker(&["push", "-q", &other]).succeeded();
    assert_eq!(second.manifest("copy", &digest.replace(':', "-")), listed);

    // Saved with it, and loaded again elsewhere.
    let archive = dir.path().join("saved.tar").display().to_string();
    engine.docker(&["save", "-o", &archive, &name]).succeeded();
    let index: Value =
        serde_json::from_str(&tool("tar", &["-xOf", &archive, "index.json"])).expect("JSON");
    let entries = index["manifests"].as_array().expect("entries");
    assert!(entries.iter().any(|entry| entry["digest"] == *referrer), "{index}");
    let elsewhere = Engine::start();
    elsewhere.docker(&["load", "-q", "-i", &archive]).succeeded();
    assert!(shown(&elsewhere, &name).contains(&referrer));

    // Kept over a restart, and gone with the image.
    let mut engine = engine;
    engine.kill_daemon();
    engine.restart();
    assert!(shown(&engine, &name).contains(&referrer));
    engine.hyper(&["image", "verify"]).succeeded();
    let blob = engine.dir().join("data/images/blobs/sha256").join(&referrer["sha256:".len()..]);
    assert!(blob.exists());
    engine.docker(&["rmi", &name, &other]).succeeded();
    assert!(!blob.exists(), "a referrer outlived its image");
    assert!(engine.hyper(&["image", "verify"]).succeeded().text().starts_with("0 blobs"));
}
