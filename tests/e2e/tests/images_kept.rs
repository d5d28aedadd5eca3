//! What the image store keeps its word on: kills, full disks, signatures, bombs.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use hyper_e2e::{Engine, Registry, image, run_with, tool};

const MINUTE: Duration = Duration::from_secs(60);

/// An OCI layout with an image of `layers` layers of 1 MiB of noise each; returned as an archive.
fn many_layers(dir: &Path, layers: u32) -> PathBuf {
    let layout = dir.join("many");
    let image = format!("{}:many", layout.display());
    tool("umoci", &["init", "--layout", &layout.display().to_string()]);
    tool("umoci", &["new", "--image", &image]);
    for number in 0..layers {
        let tree = dir.join("tree");
        std::fs::create_dir_all(&tree).expect("directory");
        let mut noise = Vec::new();
        let mut state = u64::from(number) + 1;
        while noise.len() < 1 << 20 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            noise.extend_from_slice(&(state >> 16).to_le_bytes()[..6]);
        }
        std::fs::write(tree.join(format!("data{number}")), noise).expect("write");
        let tar = dir.join("layer.tar").display().to_string();
        tool("tar", &["-cf", &tar, "-C", &tree.display().to_string(), "."]);
        tool("umoci", &["raw", "add-layer", "--image", &image, &tar]);
        std::fs::remove_dir_all(&tree).expect("remove");
    }
    let archive = dir.join("many.tar");
    tool("tar", &["-cf", &archive.display().to_string(), "-C", &layout.display().to_string(), "."]);
    archive
}

/// `kill -9` at a moment of a pull or load that moves from round to round: the store verifies each time. Rounds: 30,
/// or `$HYPER_KILL_CYCLES`.
#[test]
fn store_verifies_after_kills_at_any_moment() {
    let cycles: u64 =
        std::env::var("HYPER_KILL_CYCLES").ok().and_then(|text| text.parse().ok()).unwrap_or(30);
    let dir = tempfile::tempdir().expect("directory");
    let archive = many_layers(dir.path(), 6);
    let registry = Registry::start();
    registry.push(&archive, "many:1");
    let name = registry.reference("many:1");
    let mut engine = Engine::start();
    let (mut killed, mut finished) = (0, 0);
    for cycle in 0..cycles {
        let mut command = if cycle % 3 == 2 {
            let mut command = engine.hyper_command(&["load", "-q"]);
            command.stdin(std::fs::File::open(&archive).expect("archive"));
            command
        } else {
            let mut command = engine.hyper_command(&["pull", "-q", &name]);
            command.stdin(Stdio::null());
            command
        };
        let mut client =
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start the client");
        std::thread::sleep(Duration::from_millis(3 + (cycle * 37) % 400));
        engine.kill_daemon();
        if client.wait().expect("client").success() {
            finished += 1;
        } else {
            killed += 1;
        }
        engine.restart();
        let report = engine.hyper(&["image", "verify"]);
        assert_eq!(report.code, 0, "cycle {cycle}: {}", report.text());
        for id in engine.hyper(&["images", "-q"]).succeeded().text().lines() {
            engine.hyper(&["rmi", "-f", id]).succeeded();
        }
        if cycle % 4 == 3 {
            // From nothing again; other rounds go on with what is left.
            engine.kill_daemon();
            std::fs::remove_dir_all(engine.dir().join("data/images")).expect("empty the store");
            engine.restart();
        }
    }
    println!("{killed} of {cycles} killed, {finished} finished");
    assert!(killed > 0, "no round was killed in time");
    engine.hyper(&["pull", "-q", &name]).succeeded();
    engine.hyper(&["image", "verify"]).succeeded();
    let ingest = engine.dir().join("data/images/ingest");
    assert_eq!(std::fs::read_dir(ingest).expect("ingest").count(), 0);
}

/// A tmpfs that is unmounted with its value.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(size: &str) -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let at = dir.path().display().to_string();
        tool("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", &at]);
        Self(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn full_disk_is_told_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().expect("directory");
    let archive = many_layers(dir.path(), 6);
    let registry = Registry::start();
    registry.push(&archive, "many:1");
    let disk = SmallDisk::new("9m");
    let root = disk.0.path().join("data");
    let engine = Engine::start_at(&root, &[]);
    engine.hyper(&["load", "-q", "-i", &image("busybox").display().to_string()]).succeeded();
    let files = || {
        let mut all: Vec<String> =
            tool("find", &[&root.join("images").display().to_string(), "-type", "f"])
                .lines()
                .map(str::to_owned)
                .collect();
        all.sort();
        all
    };
    let before = files();
    let pull = engine.hyper(&["pull", &registry.reference("many:1")]).exited(1);
    assert!(pull.stderr.contains("no space left"), "{}", pull.stderr);
    assert_eq!(files(), before, "a pull left something");
    let load = engine.hyper(&["load", "-i", &archive.display().to_string()]).exited(1);
    assert!(load.stderr.contains("no space left"), "{}", load.stderr);
    assert_eq!(files(), before, "a load left something");
    engine.hyper(&["image", "verify"]).succeeded();
    assert_eq!(engine.hyper(&["images", "-q"]).succeeded().text().lines().count(), 1);
}

/// Signs what `name` stands for as `cosign sign --key` does: a payload, its signature, and a manifest at the tag.
fn sign(registry: &Registry, repository: &str, tag: &str, key: &Path, dir: &Path) {
    let seen = registry.inspect(&format!("{repository}:{tag}"));
    let digest = seen["Digest"].as_str().expect("digest").to_owned();
    let payload = dir.join("payload");
    let text = serde_json::json!({
        "critical": {
            "identity": { "docker-reference": registry.reference(repository) },
            "image": { "docker-manifest-digest": digest },
            "type": "cosign container image signature",
        },
        "optional": null,
    });
    std::fs::write(&payload, text.to_string()).expect("write");
    let signature = dir.join("signature");
    let (key, out, from) =
        (key.display().to_string(), signature.display().to_string(), payload.display().to_string());
    tool("openssl", &["dgst", "-sha256", "-sign", &key, "-out", &out, &from]);
    let signature = tool("base64", &["-w0", &out]);
    let config = dir.join("config");
    std::fs::write(&config, "{}").expect("write");
    let put = |path: &Path| {
        let hash = tool("sha256sum", &[&path.display().to_string()]);
        let hash = hash.split(' ').next().expect("hash").to_owned();
        let base = format!("http://127.0.0.1:{}/v2/{repository}", registry.port());
        let begun = tool(
            "curl",
            &["-sS", "-o", "/dev/null", "-D", "-", "-X", "POST", &format!("{base}/blobs/uploads/")],
        );
        let location = begun
            .lines()
            .find_map(|line| line.strip_prefix("Location: "))
            .expect("location")
            .trim()
            .to_owned();
        let body = format!("@{}", path.display());
        let url = format!("{location}&digest=sha256:{hash}");
        let kind = "Content-Type: application/octet-stream";
        tool("curl", &["-sS", "-f", "-X", "PUT", "-H", kind, "--data-binary", &body, &url]);
        let size = path.metadata().expect("metadata").len();
        (format!("sha256:{hash}"), size)
    };
    let ((payload, payload_size), (config, config_size)) = (put(&payload), put(&config));
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size },
        "layers": [{
            "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "digest": payload, "size": payload_size,
            "annotations": { "dev.cosignproject.cosign/signature": signature },
        }],
    });
    let file = dir.join("manifest");
    std::fs::File::create(&file)
        .and_then(|mut file| file.write_all(manifest.to_string().as_bytes()))
        .expect("write");
    let tag = digest.replace(':', "-");
    let url = format!("http://127.0.0.1:{}/v2/{repository}/manifests/{tag}.sig", registry.port());
    let kind = "Content-Type: application/vnd.oci.image.manifest.v1+json";
    let body = format!("@{}", file.display());
    tool("curl", &["-sS", "-f", "-X", "PUT", "-H", kind, "--data-binary", &body, &url]);
}

#[test]
fn policy_lets_in_only_what_the_key_signed() {
    let dir = tempfile::tempdir().expect("directory");
    let path = |name: &str| dir.path().join(name);
    for name in ["good", "other"] {
        let (key, public) = (path(&format!("{name}.key")), path(&format!("{name}.pub")));
        let (key, public) = (key.display().to_string(), public.display().to_string());
        tool("openssl", &["ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", &key]);
        tool("openssl", &["ec", "-in", &key, "-pubout", "-out", &public]);
    }
    let registry = Registry::start();
    for name in ["team/signed:1", "team/foreign:1", "team/bare:1", "lax/bare:1", "free/bare:1"] {
        registry.push(&image("busybox"), name);
    }
    sign(&registry, "team/signed", "1", &path("good.key"), dir.path());
    sign(&registry, "team/foreign", "1", &path("other.key"), dir.path());
    let host = format!("127.0.0.1:{}", registry.port());
    let policy = format!(
        "[[rule]]\nimages = \"{host}/team/*\"\naction = \"refuse\"\nkeys = [\"good.pub\"]\n\n[[rule]]\n\
         images = \"{host}/lax/*\"\naction = \"warn\"\nkeys = [\"good.pub\"]\n"
    );
    std::fs::write(path("policy.toml"), policy).expect("write");
    let engine =
        Engine::start_with(&["--signature-policy", &path("policy.toml").display().to_string()]);
    let name = |name: &str| registry.reference(name);
    engine.docker(&["pull", "-q", &name("team/signed:1")]).succeeded();
    for (image, why) in [("team/foreign:1", "none of the keys"), ("team/bare:1", "no tag sha256-")]
    {
        engine.hyper(&["pull", &name(image)]).exited(1).says(&[
            image,
            why,
            "policy.toml line 1",
            "cosign sign",
        ]);
    }
    let said = engine.docker(&["pull", &name("lax/bare:1")]).succeeded().text();
    assert!(said.contains("WARNING") && said.contains("line 6"), "{said}");
    engine.docker(&["pull", "-q", &name("free/bare:1")]).succeeded();
}

#[test]
fn bombs_stop_at_the_configured_limits() {
    let dir = tempfile::tempdir().expect("directory");
    let config = dir.path().join("hyperd.toml");
    std::fs::write(
        &config,
        "[layer-limits]\nentries = 1000\nhole-bytes = 1048576\nstream-bytes = 67108864\ndepth = 64\n",
    )
    .expect("write");
    let engine = Engine::start_with(&["--config-file", &config.display().to_string()]);
    let script = [
        ("entries", "mkdir t && cd t && seq 1 2000 | xargs touch && tar -cf ../layer.tar ."),
        ("holes", "mkdir t && truncate -s 1G t/x && tar -S -cf layer.tar -C t ."),
        (
            "bytes in one archive",
            "mkdir t && head -c 100M /dev/zero > t/x && tar -cf layer.tar -C t .",
        ),
        (
            "components",
            "mkdir t && cd t && mkdir -p $(printf 'a/%.0s' $(seq 100)) && tar -cf ../layer.tar .",
        ),
    ];
    for (what, make) in script {
        let work = dir.path().join(what.replace(' ', "-"));
        std::fs::create_dir(&work).expect("directory");
        let make = format!("cd {} && {make}", work.display());
        tool("bash", &["-ec", &make]);
        let layout = work.join("oci").display().to_string();
        let tar = work.join("layer.tar").display().to_string();
        tool("umoci", &["init", "--layout", &layout]);
        tool("umoci", &["new", "--image", &format!("{layout}:x")]);
        tool("umoci", &["raw", "add-layer", "--image", &format!("{layout}:x"), &tar]);
        let archive = work.join("x.tar").display().to_string();
        tool("tar", &["-cf", &archive, "-C", &layout, "."]);
        let command = engine.hyper_command(&["load", "-i", &archive]);
        let outcome = run_with(command, Vec::new(), 2 * MINUTE).exited(1);
        assert!(outcome.stderr.contains("more than"), "{what}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(what), "{what}: {}", outcome.stderr);
    }
    assert_eq!(engine.hyper(&["images", "-q"]).succeeded().text(), "");
}
