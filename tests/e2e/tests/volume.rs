//! Directories of the host and volumes, with Docker's own client on every runtime.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_e2e::{Alone, Engine, Host, eventually, runtimes};
use tempfile::TempDir;

const WAIT: Duration = Duration::from_secs(20);

/// A directory of the host that is to be shared, and its path.
fn shared() -> (TempDir, String) {
    let dir = tempfile::Builder::new().prefix("hyper-vol-").tempdir().expect("directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("mode");
    let path = dir.path().to_str().expect("UTF-8").to_owned();
    (dir, path)
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()))
}

#[test]
fn what_one_side_writes_and_closes_the_other_reads() {
    let engine = Engine::with_busybox();
    for runtime in runtimes() {
        let (dir, path) = shared();
        fs::write(dir.path().join("from-host"), "one").expect("write");
        let bind = format!("{path}:/data");
        let name = format!("live-{runtime}");
        let arguments = [
            "run",
            "-d",
            "--name",
            &name,
            "--runtime",
            runtime,
            "-v",
            &bind,
            "busybox",
            "sleep",
            "600",
        ];
        engine.docker(&arguments).succeeded();
        let sh = |script: &str| engine.docker(&["exec", &name, "sh", "-c", script]);
        assert_eq!(sh("cat /data/from-host").succeeded().text(), "one");
        // No waiting anywhere: what is closed is there.
        for number in 0..5 {
            let text = format!("host {number} {}", "x".repeat(number * 1000));
            fs::write(dir.path().join("from-host"), &text).expect("write");
            assert_eq!(sh("cat /data/from-host").succeeded().text(), text, "{runtime}");
            sh(&format!("printf 'guest {number}' > /data/from-guest")).succeeded();
            assert_eq!(read(dir.path().join("from-guest")), format!("guest {number}"));
        }
        fs::rename(dir.path().join("from-host"), dir.path().join("moved")).expect("rename");
        sh("test ! -e /data/from-host && test -e /data/moved && mv /data/moved /data/again")
            .succeeded();
        assert!(dir.path().join("again").exists() && !dir.path().join("moved").exists());
        sh("mkdir -p /data/d/e && echo 1 > /data/d/e/f && rm -r /data/d").succeeded();
        assert!(!dir.path().join("d").exists());
        // Owners and modes are the same numbers on both sides.
        sh("touch /data/owned && chown 1234:5678 /data/owned && chmod 2640 /data/owned")
            .succeeded();
        let meta = dir.path().join("owned").metadata().expect("owned");
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (1234, 5678, 0o2640));
        sh("mkdir -m 777 /data/all").succeeded();
        engine.docker(&["exec", "-u", "4321:8765", &name, "touch", "/data/all/theirs"]).succeeded();
        let meta = dir.path().join("all/theirs").metadata().expect("theirs");
        assert_eq!((meta.uid(), meta.gid()), (4321, 8765), "{runtime}");
        let denied = engine.docker(&["exec", "-u", "4321", &name, "touch", "/data/denied"]);
        assert_ne!(denied.code, 0, "a user wrote where only root may");
        engine.docker(&["rm", "-f", &name]).succeeded();
    }
}

#[test]
fn a_shared_directory_is_a_file_system() {
    let engine = Engine::with_busybox();
    for runtime in runtimes() {
        let (dir, path) = shared();
        let bind = format!("{path}:/data");
        let script = "set -e; cd /data
            echo a > a; ln a b; test $(stat -c %h a) = 2; test $(stat -c %i a) = $(stat -c %i b)
            ln -s a s; test $(readlink s) = a; mkfifo p
            exec 3> gone; rm gone; echo still >&3; exec 3>&-
            echo 1 >> log; echo 2 >> log; test $(wc -l < log) = 2
            flock a -c 'flock -n a -c true && echo BROKEN || true' | grep -c BROKEN | grep -qx 0
            dd if=/dev/urandom of=big bs=1M count=48 2>/dev/null; truncate -s 1G sparse
            mkdir full; i=0; while [ $i -lt 300 ]; do : > full/f$i; i=$((i+1)); done
            test $(ls full | wc -l) = 300; rm -r full
            sha256sum big | cut -d' ' -f1";
        let arguments =
            ["run", "--rm", "--runtime", runtime, "-v", &bind, "busybox", "sh", "-c", script];
        let sum = engine.docker(&arguments).succeeded().text();
        let here = hyper_e2e::run("sha256sum", &[&format!("{path}/big")], WAIT).succeeded().text();
        assert_eq!(here.split(' ').next(), Some(sum.as_str()), "{runtime}");
        let meta = |name: &str| dir.path().join(name).symlink_metadata().expect("file");
        assert_eq!(meta("a").ino(), meta("b").ino());
        assert_eq!((meta("sparse").len(), meta("sparse").blocks()), (1 << 30, 0), "{runtime}");
        assert!(!dir.path().join("gone").exists());
    }
}

#[test]
fn no_link_leads_out_of_a_volume() {
    let engine = Engine::with_busybox();
    let (secret, outside) = shared();
    fs::write(secret.path().join("secret"), "of the host").expect("write");
    for runtime in runtimes() {
        let (dir, path) = shared();
        symlink(&outside, dir.path().join("absolute")).expect("link");
        let up = format!("../../../../../../../..{outside}");
        symlink(up, dir.path().join("up")).expect("link");
        let bind = format!("{path}:/data");
        let script = format!(
            "cd /data; ln -s {outside}/secret own; ln -s / root
             cat absolute/secret up/secret own root{outside}/secret /data/../data/up/secret; echo x > absolute/new; true"
        );
        let arguments =
            ["run", "--rm", "--runtime", runtime, "-v", &bind, "busybox", "sh", "-c", &script];
        let outcome = engine.docker(&arguments).succeeded();
        assert!(!outcome.text().contains("of the host"), "{runtime}: {}", outcome.text());
        assert_eq!(fs::read_dir(secret.path()).expect("list").count(), 1, "{runtime}");
    }
}

#[test]
fn read_only_holds_and_single_files_are_live() {
    let engine = Engine::with_busybox();
    for runtime in runtimes() {
        let (dir, path) = shared();
        fs::write(dir.path().join("file"), "first\n").expect("write");
        let (ro, mount) = (format!("{path}:/ro:ro"), format!("type=bind,src={path}/file,dst=/one"));
        let name = format!("ro-{runtime}");
        engine
            .docker(&[
                "run",
                "-d",
                "--privileged",
                "--name",
                &name,
                "--runtime",
                runtime,
                "-v",
                &ro,
                "--mount",
                &mount,
                "busybox",
                "sleep",
                "600",
            ])
            .succeeded();
        let sh = |script: &str| engine.docker(&["exec", "--privileged", &name, "sh", "-c", script]);
        sh("echo x > /ro/new").says(&["Read-only file system"]);
        // A guest that takes the flag away is stopped by the host.
        sh("mount -o remount,rw,bind /ro; echo x > /ro/new").says(&["Read-only file system"]);
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1, "{runtime}");
        fs::write(dir.path().join("file"), "second\n").expect("write");
        assert_eq!(sh("cat /one").succeeded().text(), "second");
        sh("echo third >> /one").succeeded();
        assert_eq!(read(dir.path().join("file")), "second\nthird\n");
        engine.docker(&["rm", "-f", &name]).succeeded();
    }
}

#[test]
fn two_pods_share_one_volume() {
    let engine = Engine::with_busybox();
    engine.docker(&["volume", "create", "both"]).succeeded();
    for (name, runtime) in [("left", "uml"), ("right", "qemu")] {
        let arguments = [
            "run",
            "-d",
            "--name",
            name,
            "--runtime",
            runtime,
            "-v",
            "both:/v",
            "busybox",
            "sleep",
            "600",
        ];
        engine.docker(&arguments).succeeded();
    }
    for number in 0..3 {
        let write = format!("echo {number} > /v/ping");
        engine.docker(&["exec", "left", "sh", "-c", &write]).succeeded();
        let seen = engine.docker(&["exec", "right", "cat", "/v/ping"]).succeeded().text();
        assert_eq!(seen, number.to_string());
        engine.docker(&["exec", "right", "sh", "-c", "mv /v/ping /v/pong"]).succeeded();
        engine.docker(&["exec", "left", "sh", "-c", "test ! -e /v/ping && rm /v/pong"]).succeeded();
    }
    engine.docker(&["volume", "rm", "both"]).exited(1).says(&["volume is in use", "both"]);
    engine.docker(&["rm", "-f", "left", "right"]).succeeded();
    engine.docker(&["volume", "rm", "both"]).succeeded();
}

/// An image with a VOLUME that has content, owners and modes.
fn with_volume(engine: &Engine) {
    let file = "FROM busybox\nRUN mkdir -p /d/sub && echo x > /d/sub/f && ln /d/sub/f /d/g && ln -s g /d/l \
                && chown -R 7:8 /d && chmod 2750 /d/sub && chmod 4711 /d/sub/f\nVOLUME /d\n";
    build(engine, "vol", file);
}

fn build(engine: &Engine, name: &str, file: &str) {
    let context = tempfile::tempdir().expect("directory");
    fs::write(context.path().join("Dockerfile"), file).expect("write");
    let mut build =
        engine.docker_command(&["build", "-t", name, &context.path().display().to_string()]);
    build.env("DOCKER_BUILDKIT", "0");
    hyper_e2e::run_with(build, Vec::new(), Duration::from_secs(120)).succeeded();
}

#[test]
fn an_empty_volume_takes_what_the_image_has() {
    let engine = Engine::with_busybox();
    with_volume(&engine);
    // A step of a build in an image with volumes: part of the layer, and no volume stays.
    build(&engine, "more", "FROM vol\nRUN echo built > /d/built\n");
    let built = ["run", "--rm", "more", "cat", "/d/built"];
    assert_eq!(engine.docker(&built).succeeded().text(), "built");
    eventually("no volume stays", WAIT, || {
        engine.docker(&["volume", "ls", "-q"]).succeeded().text().is_empty()
    });
    let look = "cd /d; stat -c '%n %u:%g %a %h' . sub sub/f g; readlink l; cat g; ls -A";
    let image = ". 7:8 755 3\nsub 7:8 2750 2\nsub/f 7:8 4711 2\ng 7:8 4711 2\ng\nx\ng\nl\nsub";
    for (runtime, driver) in
        [("uml", "local"), ("qemu", "local"), ("uml", "disk"), ("qemu", "disk")]
    {
        let volume = format!("type=volume,src=v-{runtime}-{driver},dst=/d,volume-driver={driver}");
        let volume =
            if driver == "disk" { format!("{volume},volume-opt=size=64m") } else { volume };
        let run = |script: &str| {
            engine.docker(&[
                "run",
                "--rm",
                "--runtime",
                runtime,
                "--mount",
                &volume,
                "vol",
                "sh",
                "-c",
                script,
            ])
        };
        assert_eq!(run(look).succeeded().text(), image, "{runtime} {driver}");
        // What was changed stays; what was removed does not come back.
        run("rm -r /d/sub; echo mine > /d/g").succeeded();
        assert_eq!(run("ls /d; cat /d/g").succeeded().text(), "g\nl\nmine", "{runtime} {driver}");
    }
    let empty = ["run", "--rm", "-v", "other:/d:nocopy", "vol", "ls", "-A", "/d"];
    assert_eq!(engine.docker(&empty).succeeded().text(), "");
    let data = engine.inspect_volume("v-uml-local", "{{.Mountpoint}}");
    assert!(data.ends_with("/volumes/v-uml-local/_data"), "{data}");
    assert_eq!(read(PathBuf::from(data).join("g")), "mine\n");
}

#[test]
fn anonymous_volumes_go_with_their_container() {
    let engine = Engine::with_busybox();
    with_volume(&engine);
    let volumes = || engine.docker(&["volume", "ls", "-q"]).succeeded().text();
    engine
        .docker(&["run", "--rm", "-v", "/a", "vol", "sh", "-c", "echo y > /a/f; cat /d/g"])
        .succeeded();
    eventually("--rm takes them along", WAIT, || volumes().is_empty());
    engine.docker(&["create", "--name", "one", "-v", "named:/n", "vol", "true"]).succeeded();
    assert_eq!(volumes().lines().count(), 2);
    let mounts =
        engine.inspect("one", "{{range .Mounts}}{{.Type}} {{.Destination}} {{.RW}};{{end}}");
    assert!(mounts.contains("volume /n true;") && mounts.contains("volume /d true;"), "{mounts}");
    // Another container's volumes, its anonymous ones too.
    engine
        .docker(&[
            "run",
            "--name",
            "two",
            "--volumes-from",
            "one",
            "busybox",
            "sh",
            "-c",
            "echo two > /d/by; echo two > /n/by",
        ])
        .succeeded();
    let from = [
        "run",
        "--rm",
        "--volumes-from",
        "one:ro",
        "busybox",
        "sh",
        "-c",
        "cat /d/by /n/by; echo > /d/no",
    ];
    let outcome = engine.docker(&from).exited(1);
    assert_eq!(outcome.text(), "two\ntwo");
    outcome.says(&["Read-only file system"]);
    engine.docker(&["rm", "-v", "one"]).succeeded();
    assert_eq!(volumes().lines().count(), 2, "another container has it");
    engine.docker(&["rm", "two"]).succeeded();
    assert_eq!(volumes().lines().count(), 2, "rm without -v keeps them");
    let pruned = engine.docker(&["volume", "prune", "-f"]).succeeded().text();
    assert!(pruned.contains("Deleted Volumes:"), "{pruned}");
    assert_eq!(volumes(), "named");
    engine.docker(&["volume", "prune", "-af"]).succeeded();
    assert_eq!(volumes(), "");
}

#[test]
fn volumes_are_made_listed_looked_at_and_removed() {
    let engine = Engine::with_busybox();
    let docker = |arguments: &[&str]| engine.docker(arguments);
    docker(&["volume", "create", "--label", "k=v", "first"]).succeeded();
    docker(&["volume", "create", "-d", "disk", "-o", "size=64m", "second"]).succeeded();
    docker(&["volume", "create", "first"]).succeeded();
    docker(&["volume", "create", "-d", "disk", "first"]).exited(1).says(&["first", "local driver"]);
    docker(&["volume", "create", "-d", "nfs", "x1"]).exited(1).says(&["nfs", "disk, local, tmpfs"]);
    docker(&["volume", "create", "-d", "disk", "-o", "size=1k", "x1"])
        .exited(1)
        .says(&["1k", "64 MiB"]);
    docker(&["volume", "create", "-o", "type=nfs", "-o", "device=:/x", "x1"])
        .exited(1)
        .says(&["nfs", "addr="]);
    docker(&["volume", "create", "a/b"]).exited(1).says(&["invalid characters"]);
    let names =
        |filter: &str| docker(&["volume", "ls", "-q", "--filter", filter]).succeeded().text();
    assert_eq!(
        (names("label=k=v"), names("driver=disk"), names("name=sec")),
        ("first".into(), "second".into(), "second".into())
    );
    assert_eq!(names("dangling=true"), "first\nsecond");
    docker(&["create", "--name", "user", "-v", "first:/f", "busybox", "true"]).succeeded();
    assert_eq!(
        (names("dangling=true"), names("dangling=false")),
        ("second".into(), "first".into())
    );
    docker(&["volume", "rm", "first"]).exited(1).says(&["in use"]);
    docker(&["volume", "rm", "nope"]).exited(1).says(&["no such volume"]);
    docker(&["volume", "rm", "-f", "nope"]).succeeded();
    docker(&["volume", "inspect", "nope"]).exited(1).says(&["no such volume"]);
    let second = engine.inspect_volume("second", "{{.Driver}} {{.Options.size}} {{.Scope}}");
    assert_eq!(second, "disk 64m local");
    docker(&[
        "run",
        "--rm",
        "-v",
        "first:/f",
        "busybox",
        "dd",
        "if=/dev/zero",
        "of=/f/z",
        "bs=1M",
        "count=2",
    ])
    .succeeded();
    let usage = docker(&["system", "df", "-v"]).succeeded().text();
    let line =
        usage.lines().find(|line| line.starts_with("first ")).unwrap_or_else(|| panic!("{usage}"));
    assert!(line.contains(" 1 ") && line.contains("2.1"), "{line}");
    let listed = engine.hyper(&["volume", "ls"]).succeeded().text();
    assert!(listed.contains("second") && listed.contains("disk"), "{listed}");
    engine.hyper(&["volume", "create", "--label", "x", "third"]).succeeded();
    assert_eq!(
        engine.hyper(&["volume", "inspect", "-f", "{{.Name}}", "third"]).succeeded().text(),
        "third"
    );
    let mounted = [
        "run",
        "--rm",
        "--mount",
        "type=volume,src=third,dst=/t",
        "-v",
        "first:/f:ro",
        "busybox",
        "ls",
        "/f",
    ];
    assert_eq!(engine.hyper(&mounted).succeeded().text(), "z");
    engine.hyper(&["volume", "rm", "third"]).succeeded();
    docker(&["rm", "user"]).succeeded();
    engine.hyper(&["volume", "prune", "-a", "-f"]).succeeded();
    assert_eq!(docker(&["volume", "ls", "-q"]).succeeded().text(), "");
    let left = fs::read_dir(engine.dir().join("data/volumes")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "directories of volumes are left");
}

#[test]
fn a_disk_volume_has_one_writer_and_survives_a_killed_pod() {
    let engine = Engine::with_busybox();
    for runtime in runtimes() {
        let volume = format!("db-{runtime}");
        engine.docker(&["volume", "create", "-d", "disk", "-o", "size=64m", &volume]).succeeded();
        let (bind, name) = (format!("{volume}:/db"), format!("writer-{runtime}"));
        let run = |name: &str, extra: &[&str]| {
            let mut all = vec!["run", "-d", "--name", name, "--runtime", runtime, "-v", &bind];
            all.extend_from_slice(extra);
            engine.docker(&all)
        };
        run(&name, &["busybox", "sleep", "600"]).succeeded();
        let script = "ls -A /db; df -m /db | tail -1 | awk '{print ($2 < 64 && $2 > 40)}'; echo kept > /db/f; sync";
        let outcome = engine.docker(&["exec", &name, "sh", "-c", script]).succeeded();
        assert_eq!(outcome.text(), "1", "an empty directory of its size");
        let second = format!("second-{runtime}");
        run(&second, &["busybox", "true"]).says(&["disk volume", "in use by another pod"]);
        engine.docker(&["rm", "-f", &second]).succeeded();
        let pid = engine.pod_report(&name)["hypervisor_pid"].as_u64().expect("pid");
        hyper_e2e::run("kill", &["-9", &pid.to_string()], WAIT).succeeded();
        eventually("the pod is gone", WAIT, || {
            engine.inspect(&name, "{{.State.Running}}") == "false"
        });
        let again = ["run", "--rm", "--runtime", runtime, "-v", &bind, "busybox", "cat", "/db/f"];
        assert_eq!(engine.docker(&again).succeeded().text(), "kept", "{runtime}");
        engine.docker(&["rm", "-f", &name]).succeeded();
    }
}

#[test]
fn memory_can_be_mounted_in_all_forms() {
    let engine = Engine::with_busybox();
    engine
        .docker(&["volume", "create", "-d", "tmpfs", "-o", "size=2m", "-o", "uid=5", "mem"])
        .succeeded();
    engine
        .docker(&[
            "volume",
            "create",
            "-o",
            "type=tmpfs",
            "-o",
            "device=tmpfs",
            "-o",
            "o=size=3m",
            "mem2",
        ])
        .succeeded();
    for runtime in runtimes() {
        let outcome = engine.docker(&[
            "run", "--rm", "--runtime", runtime, "--tmpfs", "/a:size=1m,mode=700,uid=9,exec", "--mount",
            "type=tmpfs,dst=/b,tmpfs-size=4m,tmpfs-mode=1770", "-v", "mem:/c", "-v", "mem2:/d", "busybox",
            "sh", "-c",
            "stat -c '%u %a' /a /b /c; df -k /a /b /c /d | awk 'NR>1 {print $2}'; printf '#!/bin/sh\necho runs\n' > /a/x; chmod +x /a/x; /a/x",
        ]);
        let text = outcome.succeeded().text();
        assert_eq!(text, "9 700\n0 1770\n5 1777\n1024\n4096\n2048\n3072\nruns", "{runtime}");
    }
}

#[test]
fn what_cannot_be_mounted_is_refused_by_name() {
    let engine = Engine::with_busybox();
    let (dir, path) = shared();
    let _socket = std::os::unix::net::UnixDatagram::bind(dir.path().join("sock")).expect("socket");
    let refused = |arguments: &[&str], words: &[&str]| {
        let mut all = vec!["run", "--rm"];
        all.extend_from_slice(arguments);
        all.extend_from_slice(&["busybox", "true"]);
        engine.docker(&all).exited(125).says(words);
    };
    refused(&["-v", &format!("{path}:/d:rshared")], &["rshared", "rprivate"]);
    refused(&["-v", &format!("{path}/sock:/d")], &["host socket", "/d"]);
    refused(&["-v", "/dev/null:/d"], &["host device"]);
    refused(&["-v", &format!("{path}:/d"), "-v", "x1:/d/"], &["Duplicate mount point"]);
    refused(&["-v", &format!("{path}:/d:wat")], &["invalid mode"]);
    refused(&["--mount", &format!("type=bind,src={path}/no,dst=/d")], &["does not exist", "/no"]);
    refused(&["--mount", "type=volume,src=v1,dst=/d,volume-subpath=x"], &["Subpath"]);
    refused(&["--volumes-from", "nobody"], &["No such container", "nobody"]);
    assert_eq!(
        engine.docker(&["volume", "ls", "-q"]).succeeded().text(),
        "",
        "volumes of refused containers"
    );
    // As Docker: -v makes the directory, --mount does not.
    let missing = format!("{path}/made/deep:/d");
    engine.docker(&["run", "--rm", "-v", &missing, "busybox", "touch", "/d/x"]).succeeded();
    assert!(dir.path().join("made/deep/x").exists());
}

/// The process that shares a pod's directories.
fn sharer(engine: &Engine, container: &str) -> u32 {
    let supervisor = engine.pod_report(container)["supervisor_pid"].as_u64().expect("pid");
    let parent = |pid: u64| -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        text.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
    };
    let all = fs::read_dir("/proc").expect("proc").flatten();
    let mut pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok());
    let found = pids.find(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut above = Some(*pid);
        let below = (0..5).any(|_| {
            above = above.and_then(parent);
            above == Some(supervisor)
        });
        line.starts_with(b"hyper-share\0") && below
    });
    u32::try_from(found.expect("a sharing process")).expect("pid")
}

#[test]
fn a_killed_sharer_ends_the_pod_and_says_so() {
    let alone = Alone::wait();
    let engine = Engine::with_busybox();
    let (_dir, path) = shared();
    let before = Host::at_rest(&alone, &engine.dir().display().to_string());
    for runtime in runtimes() {
        let (name, bind) = (format!("cut-{runtime}"), format!("{path}:/data"));
        let script = "while true; do date > /data/x; cat /data/x > /dev/null; done";
        let arguments = [
            "run",
            "-d",
            "--name",
            &name,
            "--runtime",
            runtime,
            "-v",
            &bind,
            "busybox",
            "sh",
            "-c",
            script,
        ];
        engine.docker(&arguments).succeeded();
        let pid = sharer(&engine, &name);
        hyper_e2e::run("kill", &["-9", &pid.to_string()], WAIT).succeeded();
        eventually("the pod has ended", WAIT, || {
            engine.inspect(&name, "{{.State.Running}}") == "false"
        });
        let why = engine.inspect(&name, "{{.State.Error}}");
        assert!(
            why.contains("shares the host's directories") && why.contains("signal 9"),
            "{runtime}: {why}"
        );
        engine.docker(&["rm", &name]).succeeded();
    }
    let marker = engine.dir().display().to_string();
    eventually("nothing is left", WAIT, || Host::look(&marker) == before);
}

#[test]
fn hyperd_may_die_under_shared_directories() {
    let alone = Alone::wait();
    let mut engine = Engine::with_busybox();
    let (dir, path) = shared();
    let marker = engine.dir().display().to_string();
    let before = Host::at_rest(&alone, &marker);
    for runtime in runtimes() {
        let (name, bind) = (format!("on-{runtime}"), format!("{path}:/data"));
        let arguments = [
            "run",
            "-d",
            "--name",
            &name,
            "--runtime",
            runtime,
            "-v",
            &bind,
            "-v",
            "vol:/v",
            "busybox",
            "sleep",
            "600",
        ];
        engine.docker(&arguments).succeeded();
    }
    engine.kill_daemon();
    engine.restart();
    for runtime in runtimes() {
        let name = format!("on-{runtime}");
        engine.docker(&["exec", &name, "touch", &format!("/data/{runtime}"), "/v/f"]).succeeded();
        assert!(dir.path().join(runtime).exists());
        engine.docker(&["volume", "rm", "vol"]).exited(1).says(&["in use"]);
        engine.docker(&["rm", "-f", &name]).succeeded();
    }
    engine.docker(&["volume", "rm", "vol"]).succeeded();
    eventually("nothing is left", WAIT, || Host::look(&marker) == before);
}

/// The volume of a container that came back was looked for in a place where no disk is.
#[test]
fn a_disk_volume_is_there_again_when_its_container_comes_back_in_a_pod() {
    let engine = Engine::with_busybox();
    engine.hyper(&["volume", "create", "-d", "disk", "-o", "size=64m", "again"]).succeeded();
    for runtime in runtimes() {
        let (pod, name) = (format!("pod-{runtime}"), format!("member-{runtime}"));
        let make = ["pod", "create", "--runtime", runtime, "--network", "none", &pod];
        engine.hyper(&make).succeeded();
        let script = "echo line >>/data/lines; exec sleep 600";
        let run = ["run", "-d", "--pod", &pod, "--name", &name, "-v", "again:/data", "busybox"];
        engine.hyper(&[&run[..], &["sh", "-c", script]].concat()).succeeded();
        let lines = || engine.hyper(&["exec", &name, "wc", "-l", "/data/lines"]).text();
        eventually("its first line", WAIT, || !lines().is_empty());
        let first = lines();
        engine.hyper(&["restart", "-t", "1", &name]).succeeded();
        eventually("its second line", WAIT, || !lines().is_empty() && lines() != first);
        engine.hyper(&["rm", "-f", &name]).succeeded();
        engine.hyper(&["pod", "rm", "-f", &pod]).succeeded();
    }
}
