//! Files in and out of containers, with Docker's own client: cp, diff, export, commit, top.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use hyper_e2e::{Engine, run_with, runtimes};
use sha2::{Digest, Sha256};

const DEADLINE: Duration = Duration::from_secs(180);

/// A running or a stopped container that has written some files.
fn container(engine: &Engine, name: &str, runtime: &str, running: bool) {
    let script = "mkdir -p /data/sub; echo one > /data/one; echo two > /data/sub/two; \
                  ln -s /etc/passwd /data/link; mkdir /away; ln -s ../../../../../etc /away/out; \
                  chown 7:8 /data/one; chmod 4755 /data/one; ";
    let rest = if running { "exec sleep 600" } else { "true" };
    let script = format!("{script} {rest}");
    let how: &[&str] = if running { &["run", "-d"] } else { &["run"] };
    let more = ["--name", name, "--runtime", runtime, "busybox", "sh", "-c", &script];
    engine.docker(&[how, &more].concat()).succeeded();
    if running {
        hyper_e2e::eventually("the files are written", Duration::from_secs(30), || {
            engine.docker(&["exec", name, "test", "-u", "/data/one"]).code == 0
        });
    }
}

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.as_ref().display()))
}

/// Names in a tar archive.
fn listed(archive: &[u8]) -> Vec<String> {
    let mut tar = std::process::Command::new("tar");
    tar.args(["-tf", "-"]);
    let text = run_with(tar, archive.to_vec(), DEADLINE).succeeded().text();
    let mut names: Vec<String> = text.lines().map(str::to_owned).collect();
    names.sort();
    names
}

fn random(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = vec![0_u8; len];
    for chunk in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
    bytes
}

#[test]
fn files_go_both_ways_running_and_stopped() {
    let engine = Engine::with_busybox();
    for (runtime, running) in [("uml", true), ("uml", false), ("qemu", true), ("qemu", false)] {
        let name = &format!("{runtime}-{running}");
        container(&engine, name, runtime, running);
        let dir = tempfile::tempdir().expect("directory");
        let local = |name: &str| dir.path().join(name).display().to_string();
        let inside = |path: &str| format!("{name}:{path}");
        let cp = |from: &str, to: &str| engine.docker(&["cp", from, to]);
        // A file, with its mode and time.
        cp(&inside("/data/one"), &local("one")).succeeded();
        assert_eq!(text(local("one")), "one\n");
        assert_eq!(fs::metadata(local("one")).expect("copy").permissions().mode() & 0o777, 0o755);
        // A directory: into one that is there, and as one that is not.
        fs::create_dir(local("there")).expect("make directory");
        cp(&inside("/data"), &local("there")).succeeded();
        assert_eq!(text(local("there/data/sub/two")), "two\n");
        cp(&inside("/data/."), &local("new")).succeeded();
        assert_eq!(text(local("new/sub/two")), "two\n");
        // Links are copied as links, and never lead the engine out of the container.
        assert!(fs::symlink_metadata(local("new/link")).expect("link").is_symlink());
        engine.docker(&["cp", "-L", &inside("/data/link"), &local("passwd")]).succeeded();
        assert!(text(local("passwd")).starts_with("root:"));
        assert_ne!(text(local("passwd")), text("/etc/passwd"));
        cp(&inside("/away/out/passwd"), &local("followed")).succeeded();
        assert_eq!(text(local("followed")), text(local("passwd")));
        // The other way.
        fs::create_dir_all(local("up/deep")).expect("make directory");
        fs::write(local("up/deep/file"), "from the host\n").expect("write");
        symlink("deep/file", local("up/link")).expect("link");
        cp(&local("up"), &inside("/data")).succeeded();
        cp(&local("up/deep/file"), &inside("/data/renamed")).succeeded();
        cp(&local("up/deep/file"), &inside("/away/out/through-a-link")).succeeded();
        // Streams.
        let outcome = engine.docker(&["cp", &inside("/data/sub"), "-"]).succeeded();
        assert_eq!(listed(&outcome.stdout), ["sub/", "sub/two"]);
        let mut tar = std::process::Command::new("tar");
        tar.args(["-C", &local("up"), "-cf", "-", "deep"]);
        let archive = run_with(tar, Vec::new(), DEADLINE).succeeded().stdout;
        let put = engine.docker_command(&["cp", "-", &inside("/data/sub")]);
        run_with(put, archive, DEADLINE).succeeded();
        // What cannot be.
        cp(&inside("/nope"), &local("x")).exited(1).says(&["/nope", name]);
        cp(&local("one"), &inside("/nope/x")).exited(1);
        cp(&local("up"), &inside("/data/one")).exited(1);
        // All of it is there.
        if !running {
            let script = "cat /data/up/deep/file /data/renamed /data/sub/deep/file \
                          /etc/through-a-link; readlink /data/up/link; stat -c %u:%g:%a /data/one";
            engine.docker(&["commit", name, "seen"]).succeeded();
            let wanted = "from the host\n".repeat(4) + "deep/file\n7:8:4755";
            let seen = ["run", "--rm", "--runtime", runtime, "seen", "sh", "-c", script];
            assert_eq!(engine.docker(&seen).succeeded().text(), wanted);
            engine.docker(&["start", name]).succeeded();
        } else {
            let exec = |words: &[&str]| {
                engine.docker(&[&["exec", name][..], words].concat()).succeeded().text()
            };
            assert_eq!(exec(&["cat", "/data/up/link"]), "from the host");
            assert_eq!(exec(&["cat", "/data/renamed"]), "from the host");
            assert_eq!(exec(&["cat", "/data/sub/deep/file"]), "from the host");
            assert_eq!(exec(&["cat", "/etc/through-a-link"]), "from the host");
        }
        assert!(!Path::new("/etc/through-a-link").exists());
        engine.docker(&["rm", "-f", name]).succeeded();
    }
    nothing_left(&engine);
}

/// No pod, no bundle.
fn nothing_left(engine: &Engine) {
    hyper_e2e::eventually("no bundle is left", Duration::from_secs(30), || {
        fs::read_dir(engine.dir().join("exec/pods")).is_ok_and(|pods| pods.count() == 0)
    });
}

#[test]
fn our_client_copies_as_dockers_does() {
    let engine = Engine::with_busybox();
    container(&engine, "cc", "uml", true);
    let dir = tempfile::tempdir().expect("directory");
    let local = |name: &str| dir.path().join(name).display().to_string();
    for client in ["docker", "hyper"] {
        let cp = |from: &str, to: &str| match client {
            "docker" => engine.docker(&["cp", "-q", from, to]),
            _ => engine.hyper(&["cp", "-q", from, to]),
        };
        fs::create_dir_all(local(&format!("{client}/there"))).expect("make directory");
        for (from, to) in [
            ("/data/one", "file"),
            ("/data/one", "there"),
            ("/data", "there"),
            ("/data", "fresh"),
            ("/data/.", "content"),
            ("/data/.", "there"),
            ("/data/link", "link"),
        ] {
            cp(&format!("cc:{from}"), &local(&format!("{client}/{to}"))).succeeded();
        }
        cp(&local(&format!("{client}/there")), &format!("cc:/{client}")).succeeded();
        cp(&local(&format!("{client}/there/.")), &format!("cc:/{client}-content/")).succeeded();
        cp(&local(&format!("{client}/file")), &format!("cc:/{client}/renamed")).succeeded();
        cp(&local(&format!("{client}/there")), "cc:/data/one").exited(1);
        cp("cc:/data", &local(&format!("{client}/file"))).exited(1);
    }
    let tree = |name: &str| {
        let mut find = std::process::Command::new("find");
        find.current_dir(dir.path().join(name)).args([".", "-printf", "%p %y %m %l\n"]);
        let text = run_with(find, Vec::new(), DEADLINE).succeeded().text();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(tree("hyper"), tree("docker"));
    let inside = |name: &str| {
        let script = format!("cd /{name} && find . | sort; cd /{name}-content && find . | sort");
        engine.docker(&["exec", "cc", "sh", "-c", &script]).succeeded().text()
    };
    assert_eq!(inside("hyper"), inside("docker"));
}

#[test]
fn two_hundred_megabytes_are_unharmed_both_ways() {
    let engine = Engine::with_busybox();
    let dir = tempfile::tempdir().expect("directory");
    let (source, back) = (dir.path().join("source"), dir.path().join("back"));
    fs::write(&source, random(200 << 20)).expect("write");
    let wanted = Sha256::digest(fs::read(&source).expect("read"));
    for runtime in runtimes() {
        let name = runtime;
        let sleep = ["run", "-d", "--name", name, "--runtime", runtime, "busybox", "sleep", "900"];
        engine.docker(&sleep).succeeded();
        let inside = format!("{name}:/big");
        engine.docker(&["cp", &source.display().to_string(), &inside]).succeeded();
        engine.docker(&["cp", &inside, &back.display().to_string()]).succeeded();
        assert_eq!(Sha256::digest(fs::read(&back).expect("read")), wanted, "{runtime}");
        engine.docker(&["rm", "-f", name]).succeeded();
    }
}

#[test]
fn diff_and_export_say_what_docker_says() {
    let engine = Engine::with_busybox();
    for (runtime, running) in [("uml", true), ("qemu", false)] {
        let name = runtime;
        let script = "mkdir /new; echo x > /new/file; rm /etc/group; echo x >> /etc/passwd; \
                      chmod 700 /home; touch /tmp/t; rm /tmp/t; echo done; ";
        let script = format!("{script}{}", if running { "exec sleep 600" } else { "true" });
        let how: &[&str] = if running { &["run", "-d"] } else { &["run"] };
        let more = ["--name", name, "--runtime", runtime, "busybox", "sh", "-c", &script];
        engine.docker(&[how, &more].concat()).succeeded();
        hyper_e2e::eventually("it is done", Duration::from_secs(30), || {
            engine.docker(&["logs", name]).text() == "done"
        });
        let lines = |text: String| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        let docker = lines(engine.docker(&["diff", name]).succeeded().text());
        let wanted =
            ["A /new", "A /new/file", "C /etc", "C /etc/passwd", "C /home", "D /etc/group"];
        assert_eq!(docker, wanted, "{runtime}");
        assert_eq!(lines(engine.hyper(&["diff", name]).succeeded().text()), docker);
        let docker = listed(&engine.docker(&["export", name]).succeeded().stdout);
        assert_eq!(listed(&engine.hyper(&["export", name]).succeeded().stdout), docker);
        for there in ["new/file", "etc/passwd", "bin/busybox"] {
            assert!(docker.iter().any(|name| name == there), "{there} of {docker:?}");
        }
        for gone in ["etc/group", "proc/1/", "sys/kernel/"] {
            assert!(!docker.iter().any(|name| name == gone), "{gone} of {docker:?}");
        }
        engine.docker(&["rm", "-f", name]).succeeded();
    }
    let quiet = ["run", "--name", "quiet", "busybox", "true"];
    engine.docker(&quiet).succeeded();
    assert_eq!(engine.docker(&["diff", "quiet"]).succeeded().text(), "");
    engine.docker(&["diff", "nosuch"]).exited(1).says(&["No such container"]);
}

#[test]
fn a_full_disk_is_told_as_such() {
    let engine = Engine::with_busybox();
    let name = ["run", "-d", "--name", "small", "--storage-opt", "size=64m"];
    engine.docker(&[&name[..], &["busybox", "sleep", "600"]].concat()).succeeded();
    let dir = tempfile::tempdir().expect("directory");
    let big = dir.path().join("big");
    fs::write(&big, random(100 << 20)).expect("write");
    let outcome = engine.docker(&["cp", &big.display().to_string(), "small:/big"]);
    outcome.exited(1).says(&["no space left on the container's writable disk", "storage-opt"]);
    // It goes on living, and takes what fits.
    engine.docker(&["exec", "small", "rm", "-f", "/big"]).succeeded();
    engine.docker(&["cp", "/etc/passwd", "small:/fits"]).succeeded();
    engine
        .docker(&["run", "-d", "--read-only", "--name", "ro", "busybox", "sleep", "60"])
        .succeeded();
    engine.docker(&["cp", "/etc/passwd", "ro:/x"]).exited(1).says(&["ead-only file system"]);
}

#[test]
fn a_client_that_leaves_leaves_nothing_behind() {
    let engine = Engine::with_busybox();
    container(&engine, "cc", "uml", false);
    engine.docker(&["start", "cc"]).succeeded();
    engine.docker(&["wait", "cc"]).succeeded();
    for _ in 0..3 {
        let mut client = engine
            .docker_command(&["cp", "cc:/", "-"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("start docker");
        std::thread::sleep(Duration::from_millis(700));
        client.kill().expect("kill docker");
        client.wait().expect("reap docker");
    }
    // Who waits is not kept waiting by a pod that is there for its files only.
    engine.docker(&["start", "cc"]).succeeded();
    engine.docker(&["wait", "cc"]).succeeded();
    engine.docker(&["cp", "cc:/data/one", "/dev/null"]).exited(1);
    engine.docker(&["cp", "cc:/data/one", "-"]).succeeded();
    engine.docker(&["rm", "cc"]).succeeded();
    nothing_left(&engine);
}

#[test]
fn top_shows_what_ps_shows() {
    let engine = Engine::with_busybox();
    engine
        .docker(&["run", "-d", "--name", "cc", "-u", "33", "busybox", "sleep", "600"])
        .succeeded();
    let text = engine.docker(&["top", "cc"]).succeeded().text();
    let mut lines = text.lines();
    let titles: Vec<&str> = lines.next().expect("titles").split_whitespace().collect();
    assert_eq!(titles, ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]);
    let row = lines.next().expect("a process");
    assert!(row.starts_with("33 ") && row.ends_with("sleep 600"), "{row}");
    let text = engine.docker(&["top", "cc", "-o", "pid,comm"]).succeeded().text();
    assert_eq!(text.lines().count(), 2);
    assert!(text.contains("sleep"), "{text}");
    engine.docker(&["top", "cc", "--forest"]).exited(1).says(&["--forest"]);
}

#[test]
fn a_committed_image_is_what_the_container_was() {
    let engine = Engine::with_busybox();
    for (runtime, running) in [("uml", true), ("qemu", false)] {
        let (name, image) = (runtime, format!("made-{runtime}"));
        let script = "rm /etc/group; rm -r /var; mkdir -p /var/fresh; echo kept > /kept; \
                      ln /kept /linked; truncate -s 64M /sparse; echo done; ";
        let script = format!("{script}{}", if running { "exec sleep 600" } else { "true" });
        let how: &[&str] = if running { &["run", "-d"] } else { &["run"] };
        let more = ["--name", name, "--runtime", runtime, "-e", "MADE=1", "busybox"];
        engine.docker(&[how, &more, &["sh", "-c", &script]].concat()).succeeded();
        hyper_e2e::eventually("it is done", Duration::from_secs(30), || {
            engine.docker(&["logs", name]).text() == "done"
        });
        let id = engine
            .docker(&[
                "commit",
                "-a",
                "Somebody <s@example.org>",
                "-m",
                "why",
                "-c",
                "CMD [\"cat\", \"/kept\"]",
                "-c",
                "ENV FROM_CHANGE=$MADE-x",
                "-c",
                "LABEL a=b",
                "-c",
                "WORKDIR /var",
                "-c",
                "EXPOSE 80",
                name,
                &format!("{image}:1"),
            ])
            .succeeded()
            .text();
        let inspect = |format: &str| {
            engine
                .docker(&["image", "inspect", "-f", format, &image_tag(&image)])
                .succeeded()
                .text()
        };
        assert_eq!(inspect("{{.Id}}"), id);
        assert_eq!(inspect("{{.Author}} {{.Comment}}"), "Somebody <s@example.org> why");
        assert_eq!(inspect("{{.Config.Cmd}} {{.Config.WorkingDir}}"), "[cat /kept] /var");
        assert_eq!(
            inspect("{{index .Config.Labels \"a\"}} {{.Config.ExposedPorts}}"),
            "b map[80/tcp:{}]"
        );
        assert_eq!(inspect("{{len .RootFS.Layers}}"), "2");
        if running {
            assert_eq!(engine.inspect(name, "{{.State.Status}}"), "running", "unpaused again");
        }
        let run = |words: &[&str]| {
            let tag = image_tag(&image);
            let all = [&["run", "--rm", "--runtime", runtime, tag.as_str()][..], words];
            engine.docker(&all.concat()).succeeded().text()
        };
        assert_eq!(run(&[]), "kept");
        let script = "echo $MADE $FROM_CHANGE; ls /var; ls /etc/group; stat -c %h /linked; \
                      stat -c %s /sparse; pwd";
        assert_eq!(
            run(&["sh", "-c", &format!("{script} 2>/dev/null")]),
            "1 1-x\nfresh\n2\n67108864\n/var"
        );
        let text = engine.docker(&["history", "--format", "{{.Comment}}", &image_tag(&image)]);
        assert_eq!(text.succeeded().text().lines().next(), Some("why"));
        let refused = engine.docker(&["commit", "-c", "RUN true", name, "x"]);
        refused.exited(1).says(&["RUN true", "change"]);
        // Our client, and no name.
        let id = engine.hyper(&["commit", "-m", "ours", name]).succeeded().text();
        assert!(id.starts_with("sha256:"), "{id}");
        engine.docker(&["rm", "-f", name]).succeeded();
    }
    nothing_left(&engine);
}

fn image_tag(image: &str) -> String {
    format!("{image}:1")
}
