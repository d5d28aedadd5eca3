//! Building images as users do, with both clients; every RUN in a pod of its own.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use hyper_e2e::{Alone, Engine, Host, Outcome, build, context, eventually, run, text};
use tempfile::TempDir;

#[track_caller]
fn in_image(engine: &Engine, image: &str, script: &str) -> String {
    engine.docker(&["run", "--rm", image, "sh", "-c", script]).succeeded().text()
}

#[test]
fn a_dockerfile_of_several_stages() {
    let engine = Engine::with_busybox();
    let directory = context(&[
        (
            "Dockerfile",
            "# escape=\\\nARG TAG=latest\nFROM busybox:${TAG} AS base\nARG WHO=nobody\nENV GREETING=\"hello ${WHO:-x}\" EMPTY=\n\
             RUN echo \"$GREETING\" >/greeting && mkdir /out && \\\n    # a comment\n    echo made >/out/file && ln -s file /out/link\n\
             RUN <<EOF\nset -e\necho one >/script\necho two >>/script\nEOF\n\
             FROM busybox\nWORKDIR /app/data\nCOPY --from=base /out/ ./copied/\nCOPY --from=0 /greeting /script /\n\
             COPY --chown=www-data:staff --chmod=640 a.txt dir/*.md /docs/\nCOPY . /all/\nADD archive.tar.gz /unpacked/\n\
             COPY <<'END' <<SECOND /inline/\n$NOT\nEND\nfrom ${HOME_OF:-me}\nSECOND\n\
             LABEL a=\"b c\" d=e\nEXPOSE 80 90/udp\nUSER nobody\nSTOPSIGNAL SIGINT\nCMD [\"cat\", \"/greeting\"]\n",
        ),
        ("a.txt", "A"),
        ("dir/one.md", "1"),
        ("dir/two.md", "2"),
        ("dir/not.txt", "3"),
        ("secret.key", "S"),
        (".dockerignore", "*.key\nDockerfile\n.dockerignore\narchive*\n!archive.tar.gz\n"),
        ("pack/inside/file", "packed"),
    ]);
    let archive = text(&directory.path().join("archive.tar.gz"));
    let top = text(directory.path());
    run(
        "tar",
        &["-C", &top, "--owner=33", "--group=50", "-czf", &archive, "pack"],
        Duration::from_secs(10),
    )
    .succeeded();
    let built = build(
        &engine,
        &directory,
        &["-t", "app", "-t", "app:2", "--build-arg", "WHO=world", "--label", "x=y z"],
    )
    .succeeded();
    assert!(built.text().contains("Step 1/19 : FROM busybox:${TAG} AS base"), "{}", built.text());
    assert!(built.text().contains("Successfully tagged app:2"), "{}", built.text());
    assert_eq!(engine.docker(&["run", "--rm", "app"]).succeeded().text(), "hello world");
    assert_eq!(in_image(&engine, "app", "cat /script; pwd; id -un"), "one\ntwo\n/app/data\nnobody");
    assert_eq!(in_image(&engine, "app", "cat copied/link; readlink copied/link"), "made\nfile");
    assert_eq!(
        in_image(&engine, "app", "stat -c '%n %u:%g %a' /docs/* /docs"),
        "/docs/a.txt 33:50 640\n/docs/one.md 33:50 640\n/docs/two.md 33:50 640\n/docs 33:50 755"
    );
    assert_eq!(
        in_image(&engine, "app", "cd /all && find . | sort"),
        ".\n./a.txt\n./archive.tar.gz\n./dir\n./dir/not.txt\n./dir/one.md\n./dir/two.md\n./pack\n./pack/inside\n./pack/inside/file"
    );
    assert_eq!(
        in_image(&engine, "app", "cat /unpacked/pack/inside/file; stat -c ' %u:%g' /unpacked/pack"),
        "packed 33:50"
    );
    assert_eq!(in_image(&engine, "app", "cat /inline/END /inline/SECOND"), "$NOT\nfrom me");
    let config = engine.inspect("app", "{{json .Config}}");
    for words in [
        "\"x\":\"y z\"",
        "\"a\":\"b c\"",
        "80/tcp",
        "90/udp",
        "SIGINT",
        "\"User\":\"nobody\"",
        "\"WorkingDir\":\"/app/data\"",
    ] {
        assert!(config.contains(words), "{words}: {config}");
    }
    let history =
        engine.docker(&["history", "--no-trunc", "--format", "{{.CreatedBy}}", "app"]).succeeded();
    assert!(history.text().contains("#(nop)  CMD [\"cat\" \"/greeting\"]"), "{}", history.text());
    // Only the base's own containers ran: none is left.
    assert_eq!(engine.docker(&["ps", "-aq"]).succeeded().text(), "");
}

#[test]
fn steps_are_cached_until_what_they_depend_on_changes() {
    let engine = Engine::with_busybox();
    let directory = context(&[
        ("Dockerfile", "FROM busybox\nARG V=1\nRUN echo $V >/v\nCOPY a /a\nRUN cat /a >/b\n"),
        ("a", "first"),
    ]);
    let hits = |outcome: &Outcome| outcome.text().matches("Using cache").count();
    let first = build(&engine, &directory, &["-t", "c"]).succeeded();
    assert_eq!(hits(&first), 0, "{}", first.text());
    let id = engine.inspect("c", "{{.Id}}");
    // The time of a file is no difference.
    run("touch", &[&text(&directory.path().join("a"))], Duration::from_secs(5)).succeeded();
    let again = build(&engine, &directory, &["-t", "c"]).succeeded();
    assert_eq!(hits(&again), 4, "{}", again.text());
    assert_eq!(engine.inspect("c", "{{.Id}}"), id);
    fs::write(directory.path().join("a"), "other").expect("write");
    let changed = build(&engine, &directory, &["-t", "c"]).succeeded();
    assert_eq!(hits(&changed), 2, "{}", changed.text());
    assert_eq!(in_image(&engine, "c", "cat /b"), "other");
    let argument = build(&engine, &directory, &["--build-arg", "V=2"]).succeeded();
    assert_eq!(hits(&argument), 1, "{}", argument.text());
    let none = build(&engine, &directory, &["--no-cache"]).succeeded();
    assert_eq!(hits(&none), 0, "{}", none.text());
    // Steps are no images of the list, and go with what was made of them.
    let listed = |flags: &[&str]| {
        let arguments: Vec<&str> = ["images", "-q"].iter().chain(flags).copied().collect();
        engine.docker(&arguments).succeeded().text().lines().count()
    };
    assert!(listed(&["-a"]) > listed(&[]) + 5);
    engine.docker(&["image", "prune", "-f"]).succeeded();
    engine.docker(&["rmi", "c"]).succeeded();
    assert_eq!(listed(&["-a"]), 1);
}

#[test]
fn a_failing_step_ends_the_build_as_docker_does() {
    let engine = Engine::with_busybox();
    let directory =
        context(&[("Dockerfile", "FROM busybox\nRUN echo before; exit 3\nRUN echo never\n")]);
    let failed = build(&engine, &directory, &["-t", "no"])
        .exited(3)
        .says(&["The command '/bin/sh -c echo before; exit 3' returned a non-zero code: 3"]);
    assert!(
        failed.text().contains("before") && !failed.text().contains("never"),
        "{}",
        failed.text()
    );
    assert_eq!(engine.docker(&["ps", "-aq"]).succeeded().text(), "");
    engine.docker(&["image", "inspect", "no"]).exited(1);
    for (dockerfile, words) in [
        ("FROM busybox\n\nRUM x\n", &["line 3", "RUM", "did you mean RUN?"][..]),
        ("FROM busybox\nCOPY nothing /\n", &["line 2", "nothing"]),
        ("FROM busybox\nRUN --mount=type=cache,target=/x y\n", &["--mount", "BuildKit"]),
        ("FROM busybox AS a\nCOPY --from=b:none x /\n", &["b:none"]),
        ("FROM scratch\nRUN x\n", &["line 2", "scratch"]),
        ("", &["empty"]),
    ] {
        fs::write(directory.path().join("Dockerfile"), dockerfile).expect("write");
        let outcome = build(&engine, &directory, &[]).says(words);
        assert_ne!(outcome.code, 0, "{dockerfile}");
    }
    build(&engine, &directory, &["--target", "x", "-f", "/dev/null"]).says(&["Dockerfile"]);
}

#[test]
fn targets_and_triggers() {
    let engine = Engine::with_busybox();
    let base = context(&[(
        "Dockerfile",
        "FROM busybox AS one\nRUN echo one >/one\nFROM one AS two\nONBUILD COPY x /triggered\nONBUILD RUN cat /triggered >/ran\nFROM busybox\nRUN exit 9\n",
    )]);
    build(&engine, &base, &["-t", "base", "--target", "two"]).succeeded();
    let child = context(&[("Dockerfile", "FROM base\nRUN cat /ran /one >/both\n"), ("x", "X\n")]);
    let built = build(&engine, &child, &["-t", "child"]).succeeded();
    assert!(built.text().contains("# Executing 2 build triggers"), "{}", built.text());
    assert_eq!(in_image(&engine, "child", "cat /both"), "X\none");
    // They are not handed on.
    let config = engine.inspect("child", "{{json .Config}}");
    assert!(!config.contains("OnBuild"), "{config}");
}

#[test]
fn our_client_builds_too() {
    let engine = Engine::with_busybox();
    let directory = context(&[
        ("Dockerfile", "FROM busybox\nARG A\nCOPY . /c\nRUN echo $A >/a\n"),
        (".dockerignore", "junk\n"),
        ("junk", "J"),
        ("kept", "K"),
    ]);
    let (path, id_file) = (text(directory.path()), directory.path().join("../hyper-e2e-iid"));
    let id_path = text(&id_file);
    engine
        .hyper(&["build", "-t", "ours", "--build-arg", "A=b", "--iidfile", &id_path, &path])
        .succeeded();
    assert_eq!(in_image(&engine, "ours", "ls -A /c; cat /a"), ".dockerignore\nDockerfile\nkept\nb");
    assert_eq!(fs::read_to_string(&id_file).expect("id"), engine.inspect("ours", "{{.Id}}"));
    fs::remove_file(id_file).expect("remove");
    let piped = engine
        .hyper_with_input(&["build", "-q", "-"], b"FROM busybox\nRUN echo piped >/p\n".to_vec())
        .succeeded();
    assert!(piped.text().starts_with("sha256:"), "{}", piped.text());
    assert_eq!(in_image(&engine, &piped.text(), "cat /p"), "piped");
    engine.hyper(&["build", "/nowhere"]).exited(1).says(&["/nowhere"]);
    let wrong = engine.hyper_with_input(&["build", "-"], b"FROM busybox\nCOPPY a b\n".to_vec());
    wrong.exited(1).says(&["line 2", "did you mean COPY?"]);
}

#[test]
fn buildkit_is_refused_in_words() {
    let engine = Engine::with_busybox();
    let socket = text(&engine.socket());
    let answer = run(
        "curl",
        &["-s", "-X", "POST", "--unix-socket", &socket, "http://d/v1.41/build?version=2&session=x"],
        Duration::from_secs(10),
    );
    assert!(answer.text().contains("DOCKER_BUILDKIT=0"), "{}", answer.text());
}

/// What a foreign tool sees of a built image.
#[test]
fn the_image_is_one_for_others() {
    let engine = Engine::with_busybox();
    let directory = context(&[(
        "Dockerfile",
        "FROM busybox\nRUN rm /bin/vi && echo x >/etc/x\nCOPY Dockerfile /d\n",
    )]);
    build(&engine, &directory, &["-t", "other"]).succeeded();
    let id = engine.inspect("other", "{{.Id}}");
    // The store is an OCI layout.
    let layout = engine.dir().join("data/images");
    let out: PathBuf = directory.path().join("out");
    let source = format!("oci:{}:docker.io/library/other:latest", layout.display());
    let target = format!("dir:{}", out.display());
    run("skopeo", &["--insecure-policy", "copy", "-q", &source, &target], Duration::from_secs(60))
        .succeeded();
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(out.join("manifest.json")).expect("manifest"))
            .expect("JSON");
    assert_eq!(manifest["config"]["digest"], id.as_str());
    let layers = manifest["layers"].as_array().expect("layers");
    assert_eq!(layers.len(), 3);
    let list = |layer: usize| {
        let digest =
            layers[layer]["digest"].as_str().expect("digest").trim_start_matches("sha256:");
        let file = text(&out.join(digest));
        run("tar", &["-tzf", &file], Duration::from_secs(10)).succeeded().text()
    };
    let run_layer = list(1);
    for name in ["bin/.wh.vi", "etc/x"] {
        assert!(run_layer.lines().any(|line| line == name), "{name}: {run_layer}");
    }
    assert!(!run_layer.contains("proc/") && !run_layer.contains("resolv.conf"), "{run_layer}");
    assert_eq!(list(2), "d");
}

#[test]
fn nothing_is_left_of_a_build_that_is_given_up() {
    let alone = Alone::wait();
    let mut engine = Engine::with_busybox();
    let marker = text(engine.dir());
    let before = Host::at_rest(&alone, &marker);
    let directory = context(&[("Dockerfile", "FROM busybox\nRUN echo begun; sleep 600\n")]);
    let path = text(directory.path());
    let start = |engine: &Engine| -> std::process::Child {
        let mut command: Command = engine.docker_command(&["build", &path]);
        let child =
            command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn();
        let child = child.expect("start docker");
        eventually("the step runs", Duration::from_secs(60), || {
            !engine.docker(&["ps", "-q"]).succeeded().text().is_empty()
        });
        child
    };
    let mut client = start(&engine);
    client.kill().expect("kill the client");
    client.wait().expect("reap");
    eventually("the container is gone", Duration::from_secs(30), || {
        engine.docker(&["ps", "-aq"]).succeeded().text().is_empty()
    });
    let mut client = start(&engine);
    engine.kill_daemon();
    client.wait().expect("reap");
    engine.restart();
    eventually("the container is gone", Duration::from_secs(30), || {
        engine.docker(&["ps", "-aq"]).succeeded().text().is_empty()
    });
    eventually("the host is as before", Duration::from_secs(30), || Host::look(&marker) == before);
    // And it builds on.
    let small = context(&[("Dockerfile", "FROM busybox\nRUN true\n")]);
    build(&engine, &small, &[]).succeeded();
}

#[test]
fn steps_have_a_network_and_memory_of_their_own_if_they_say_so() {
    let engine = Engine::with_busybox();
    let directory = context(&[(
        "Dockerfile",
        "FROM busybox\nRUN --network=none ls /sys/class/net >/links\n\
         RUN --mount=type=tmpfs,target=/t,size=1m --mount=type=tmpfs,target=/u \
         grep ' /[tu] ' /proc/mounts >/mounts && echo x >/t/x && echo y >/u/y\n",
    )]);
    build(&engine, &directory, &["-t", "own"]).succeeded();
    assert_eq!(in_image(&engine, "own", "cat /links"), "lo");
    let mounts = in_image(&engine, "own", "cat /mounts");
    assert!(mounts.contains("tmpfs /t ") && mounts.contains("tmpfs /u "), "{mounts}");
    assert!(mounts.contains("size=1024k"), "{mounts}");
    assert_eq!(in_image(&engine, "own", "ls -A /t /u | grep -c [xy] || true"), "0");
    for (flag, word) in [
        ("--mount=type=cache,target=/c", "type=cache"),
        ("--mount=type=secret,id=s", "type=secret"),
        ("--network=host", "--network=host"),
    ] {
        let text = format!("FROM busybox\nRUN {flag} true\n");
        let refused = context(&[("Dockerfile", &text)]);
        build(&engine, &refused, &[]).exited(1).says(&["line 2", word]);
    }
}

/// A server of one file with a certificate of its own making; dropped, it ends.
struct Web(std::process::Child, TempDir, u16);

impl Web {
    fn start(name: &str, content: &str) -> Self {
        let dir = tempfile::tempdir().expect("directory");
        fs::write(dir.path().join(name), content).expect("write");
        let words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
                     -subj /CN=web -addext subjectAltName=IP:0.0.0.0 -addext basicConstraints=CA:FALSE \
                     -keyout key.pem -out cert.pem";
        let mut openssl = Command::new("openssl");
        let made = openssl.args(words.split_whitespace()).current_dir(dir.path());
        assert!(made.output().expect("openssl").status.success());
        let port = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
        let port = port.local_addr().expect("address").port();
        let server = Command::new("openssl")
            .args(["s_server", "-WWW", "-cert", "cert.pem", "-key", "key.pem", "-accept"])
            .arg(port.to_string())
            .current_dir(dir.path())
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("start the server");
        eventually("the server listens", Duration::from_secs(20), || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Self(server, dir, port)
    }

    fn url(&self, name: &str) -> String {
        format!("https://0.0.0.0:{}/{name}", self.2)
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn add_fetches_by_https_and_trusts_whom_it_was_told_to() {
    let web = Web::start("file.txt", "from the web");
    let certificates = tempfile::tempdir().expect("directory");
    let flag = ["--registry-certificates", &text(certificates.path())];
    let engine = Engine::start_with(&flag);
    let busybox = hyper_e2e::image("busybox").display().to_string();
    engine.hyper(&["load", "-q", "-i", &busybox]).succeeded();
    let dockerfile = format!("FROM busybox\nADD {} /got/\n", web.url("file.txt"));
    let directory = context(&[("Dockerfile", &dockerfile)]);
    build(&engine, &directory, &["-t", "web"]).exited(1).says(&["line 2", "certificate"]);
    let own = certificates.path().join("0.0.0.0");
    fs::create_dir(&own).expect("directory");
    fs::copy(web.1.path().join("cert.pem"), own.join("ca.crt")).expect("copy");
    build(&engine, &directory, &["-t", "web"]).succeeded();
    assert_eq!(
        in_image(&engine, "web", "cat /got/file.txt; stat -c ' %a' /got/file.txt"),
        "from the web 600"
    );
}
