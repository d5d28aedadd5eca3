//! Archives by URL, what archives cannot hold, and the cache of builds: reused by name, pruned.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use hyper_e2e::{Engine, Outcome, build, context, image, text, tool};

/// Blobs of the store, and its temporary files.
fn files_of(engine: &Engine) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let mut queue = vec![engine.dir().join("data/images")];
    while let Some(directory) = queue.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                true => queue.push(entry.path()),
                // The list of images, which is there from the first one on.
                false if entry.file_name() == "index.json" => {}
                false => all.push(text(&entry.path())),
            }
        }
    }
    all.sort();
    all
}

/// A server that answers by path: the file of that name whole, cut, or after a redirection. Ends with the process.
fn serve(dir: &Path) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = listener.local_addr().expect("address").port();
    let dir = dir.to_owned();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut first = String::new();
            let mut reader = BufReader::new(stream.try_clone().expect("stream"));
            reader.read_line(&mut first).expect("request");
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                line.clear();
            }
            let path = first.split(' ').nth(1).unwrap_or("/").trim_start_matches('/').to_owned();
            let whole = path.strip_prefix("cut/").unwrap_or(&path);
            let last = "Connection: close\r\n";
            let answer = match (fs::read(dir.join(whole)), path.strip_prefix("moved/")) {
                (_, Some(to)) => format!(
                    "HTTP/1.1 302 Found\r\nLocation: /{to}\r\n{last}Content-Length: 0\r\n\r\n"
                )
                .into_bytes(),
                (Err(_), _) => format!("HTTP/1.1 404 Not Found\r\n{last}Content-Length: 0\r\n\r\n")
                    .into_bytes(),
                (Ok(bytes), _) => {
                    let head =
                        format!("HTTP/1.1 200 OK\r\n{last}Content-Length: {}\r\n\r\n", bytes.len());
                    let sent = if path.starts_with("cut/") { bytes.len() / 2 } else { bytes.len() };
                    [head.as_bytes(), &bytes[..sent]].concat()
                }
            };
            // A client that has enough goes.
            let _ = stream.write_all(&answer);
        }
    });
    port
}

#[test]
fn import_streams_from_a_url_and_leaves_nothing_of_a_failure() {
    let dir = tempfile::tempdir().expect("directory");
    let path = |name: &str| text(&dir.path().join(name));
    fs::create_dir_all(dir.path().join("root/bin")).expect("directory");
    fs::copy("/bin/busybox", dir.path().join("root/bin/busybox")).expect("copy");
    tool("tar", &["-czf", &path("root.tgz"), "-C", &path("root"), "."]);
    tool("tar", &["-cf", &path("root.tar"), "-C", &path("root"), "."]);
    fs::write(dir.path().join("page.html"), "<html>sign in, please</html>").expect("write");
    fs::write(dir.path().join("empty"), "").expect("write");
    let port = serve(dir.path());
    let url = |name: &str| format!("http://127.0.0.1:{port}/{name}");
    let engine = Engine::start();
    let nothing = files_of(&engine);
    for client in ["docker", "hyper"] {
        let import = |name: &str, target: &str| {
            let source = url(name);
            let arguments = ["import", source.as_str(), target];
            if client == "docker" { engine.docker(&arguments) } else { engine.hyper(&arguments) }
        };
        for (name, words) in [
            ("absent", &["absent", "404"][..]),
            ("cut/root.tgz", &["archive"]),
            ("cut/root.tar", &["archive"]),
            ("page.html", &["archive"]),
            ("empty", &["empty"]),
        ] {
            let refused = import(name, "no:1").exited(1);
            assert!(!refused.stderr.contains("sign in"), "{}", refused.stderr);
            println!("{client} {name}: {}", refused.stderr);
            refused.says(words);
            assert_eq!(engine.docker(&["images", "-aq"]).succeeded().text(), "", "{name}");
            assert_eq!(files_of(&engine), nothing, "{name}");
        }
        for source in ["http://127.0.0.1:1/x", "ftp://127.0.0.1/x"] {
            let arguments = ["import", source, "no:1"];
            if client == "docker" {
                engine.docker(&arguments).exited(1).says(&[source]);
            } else {
                engine.hyper(&arguments).exited(1).says(&[source]);
            }
        }
        for (at, name) in ["root.tgz", "moved/root.tar"].into_iter().enumerate() {
            import(name, &format!("tree:{at}")).succeeded();
        }
        let comment = engine.inspect("tree:0", "{{.Comment}}");
        assert!(comment.contains(&url("root.tgz")), "{comment}");
        let said = engine
            .docker(&["run", "--rm", "tree:1", "/bin/busybox", "echo", "from the web"])
            .succeeded();
        assert_eq!(said.text(), "from the web");
        engine.docker(&["rmi", "tree:0", "tree:1"]).succeeded();
        assert_eq!(files_of(&engine), nothing);
    }
}

/// `hyper import` of an URL said broken pipe instead of what was wrong with it.
#[test]
fn who_is_still_sending_hears_why_it_is_refused() {
    let engine = Engine::start();
    for (method, path, words) in [
        ("POST", "/images/create?fromSrc=http://127.0.0.1:1/x", "http://127.0.0.1:1/x"),
        ("POST", "/images/create?fromSrc=-&repo=BAD", "BAD"),
        ("POST", "/images/load", "archive"),
        ("POST", "/build?buildargs=nope", "buildargs"),
        ("PUT", "/containers/nobody/archive?path=/", "nobody"),
        ("PUT", "/containers/nobody/archive", "path"),
    ] {
        let mut stream = UnixStream::connect(engine.socket()).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
        let head = format!(
            "{method} /v1.47{path} HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).expect("the head");
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(100));
            stream.write_all(b"4\r\nrest\r\n").expect("more of the body");
        }
        stream.write_all(b"0\r\n\r\n").expect("the end");
        let mut answer = vec![0; 4096];
        let length = stream.read(&mut answer).expect("an answer");
        let answer = String::from_utf8_lossy(&answer[..length]);
        let refused = answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.1 5");
        assert!(refused && answer.contains(words), "{path}: {answer}");
    }
}

/// `mksock PATH`: busybox has nothing that makes a socket and leaves it but a log daemon.
const SOCKET: &str = "syslogd -O /tmp/log; i=0; while [ ! -S /dev/log ] && [ $i -lt 50 ]; do sleep 0.1; \
                      i=$((i+1)); done; [ -S /dev/log ]";

#[test]
fn sockets_are_left_out_and_told() {
    let engine = Engine::with_busybox();
    // syslogd's socket is /dev/log; through a link it lies where it is kept.
    let make = |place: &str| format!("ln -sf {place} /dev/log; {SOCKET}");
    let script = format!("mkdir /s; echo kept >/s/file; rm /etc/passwd; {}", make("/s/sock"));
    let run = engine.docker(&["run", "--name", "talk", "busybox", "sh", "-c", &script]);
    if run.code != 0 {
        panic!("no socket was made: {} {}", run.text(), run.stderr);
    }
    let told = |engine: &Engine| engine.log().matches("archives hold no sockets").count();
    let (dir, before) = (tempfile::tempdir().expect("directory"), told(&engine));
    let out = text(&dir.path().join("s"));
    engine.docker(&["cp", "talk:/s", &out]).succeeded();
    assert!(dir.path().join("s/file").exists() && !dir.path().join("s/sock").exists());
    assert_eq!(told(&engine), before + 1, "cp says so");
    assert!(engine.log().contains("s/sock"), "{}", engine.log());
    engine.docker(&["export", "-o", &text(&dir.path().join("tar")), "talk"]).succeeded();
    assert_eq!(told(&engine), before + 2, "export says so");
    let list = tool("tar", &["-tf", &text(&dir.path().join("tar"))]);
    assert!(list.contains("s/file") && !list.contains("s/sock"), "{list}");
    let said = engine.hyper(&["commit", "talk", "made"]).succeeded();
    assert!(said.stderr.contains("WARNING") && said.stderr.contains("s/sock"), "{}", said.stderr);
    engine.docker(&["commit", "talk", "made"]).succeeded();
    assert_eq!(told(&engine), before + 4, "commit says so");
    let seen = engine.docker(&["run", "--rm", "made", "ls", "/s"]).succeeded().text();
    assert_eq!(seen, "file");
    // A container without any: nothing to tell.
    engine.docker(&["create", "--name", "still", "busybox", "true"]).succeeded();
    engine.docker(&["export", "-o", &text(&dir.path().join("none")), "still"]).succeeded();
    assert_eq!(told(&engine), before + 4);
    // In a build: by the step, and by our client for its context. In the place of a file it hides that file.
    let step = format!("rm /etc/group; {}", make("/etc/group"));
    let directory = context(&[("Dockerfile", &format!("FROM busybox\nRUN {step}\nCOPY . /c\n"))]);
    let built = build(&engine, &directory, &["-t", "built"]).succeeded();
    let words = "[Warning] left out, because archives hold no sockets: etc/group";
    assert!(built.text().contains(words), "{}", built.text());
    let seen = engine.docker(&["run", "--rm", "built", "sh", "-c", "ls /etc/group || echo gone"]);
    assert_eq!(seen.succeeded().text(), "gone");
    let _socket = UnixListener::bind(directory.path().join("here.sock")).expect("bind");
    let sent = engine.hyper(&["build", "-t", "ours", &text(directory.path())]).succeeded();
    assert!(sent.stderr.contains("`here.sock` is a socket"), "{}", sent.stderr);
    let seen = engine.docker(&["run", "--rm", "ours", "ls", "/c"]).succeeded().text();
    assert_eq!(seen, "Dockerfile");
}

#[test]
fn cache_from_takes_the_steps_of_an_image_that_came_from_elsewhere() {
    let registry = hyper_e2e::Registry::start();
    let directory = context(&[
        (
            "Dockerfile",
            "FROM busybox\nRUN head -c 9 /dev/urandom | base64 >/r\nENV A=b\nCOPY f /f\n",
        ),
        ("f", "content"),
    ]);
    let first = Engine::with_busybox();
    let name = registry.reference("cache:1");
    build(&first, &directory, &["-t", &name]).succeeded();
    first.docker(&["push", "-q", &name]).succeeded();
    let second = Engine::with_busybox();
    second.docker(&["pull", "-q", &name]).succeeded();
    let hits = |outcome: &Outcome| outcome.text().matches("Using cache").count();
    // Without its name nothing is trusted.
    let own = build(&second, &directory, &[]).succeeded();
    assert_eq!(hits(&own), 0, "{}", own.text());
    second.docker(&["builder", "prune", "-f"]).succeeded();
    let taken = build(&second, &directory, &["--cache-from", &name, "-t", "taken"]).succeeded();
    assert_eq!(hits(&taken), 3, "{}", taken.text());
    let random = |name: &str| second.docker(&["run", "--rm", name, "cat", "/r"]).succeeded().text();
    assert_eq!(random("taken"), random(&name));
    // Our client; and another content from its step on.
    fs::write(directory.path().join("f"), "other").expect("write");
    let path = text(directory.path());
    let arguments = ["build", "--cache-from", &name, "-t", "again", &path];
    let again = second.hyper(&arguments).succeeded();
    assert_eq!(hits(&again), 2, "{}", again.text());
    let seen = second.docker(&["run", "--rm", "again", "cat", "/f"]).succeeded().text();
    assert_eq!(seen, "other");
    // One that is not here is told, and is no error.
    let none = build(&second, &directory, &["--cache-from", "absent:1", "-t", "none"]).succeeded();
    let words = "[Warning] --cache-from absent:1: no such image here";
    assert!(none.text().contains(words), "{}", none.text());
}

#[test]
fn builder_prune_takes_the_steps_that_no_image_needs() {
    let engine = Engine::with_busybox();
    let big = "head -c 3000000 /dev/urandom >/big";
    let named = context(&[("Dockerfile", "FROM busybox\nRUN echo 1 >/1\nRUN echo 2 >/2\n")]);
    build(&engine, &named, &["-t", "named"]).succeeded();
    let failing = context(&[(
        "Dockerfile",
        &format!("FROM busybox\nRUN {big}\nRUN echo x >/x\nRUN false\n"),
    )]);
    let count = || engine.docker(&["images", "-aq"]).succeeded().text().lines().count();
    let before = count();
    build(&engine, &failing, &[]).exited(1);
    assert_eq!(count(), before + 2);
    // A step that a container was made from stays, with those behind it.
    let last = engine.docker(&["images", "-aq"]).succeeded().text();
    let last = last.lines().next().expect("an image").to_owned();
    engine.docker(&["create", "--name", "user", &last, "true"]).succeeded();
    let said = engine.docker(&["builder", "prune", "-f"]).succeeded().text();
    assert!(said.ends_with("0B"), "{said}");
    assert_eq!(count(), before + 2);
    engine.docker(&["rm", "user"]).succeeded();
    for filter in ["until=24h", "id=123456"] {
        engine.docker(&["builder", "prune", "-f", "--filter", filter]).succeeded();
        assert_eq!(count(), before + 2, "{filter}");
    }
    engine.docker(&["builder", "prune", "-f", "--filter", "type=local"]).exited(1).says(&["type"]);
    let refused = engine.docker(&["builder", "prune", "-f", "--keep-storage", "1GB"]).exited(1);
    refused.says(&["storage", "until=AGE"]);
    let said = engine.docker(&["builder", "prune", "-f"]).succeeded().text();
    assert!(said.contains("sha256:") && said.contains("MB"), "{said}");
    assert_eq!(count(), before);
    // What has a name is untouched, its cache too.
    let again = build(&engine, &named, &["-t", "named"]).succeeded();
    assert_eq!(again.text().matches("Using cache").count(), 2, "{}", again.text());
    assert_eq!(engine.docker(&["builder", "prune", "-af"]).succeeded().text().lines().count(), 1);
    // Our client.
    build(&engine, &failing, &[]).exited(1);
    let asked = engine.hyper_with_input(&["builder", "prune"], b"n\n".to_vec()).succeeded().text();
    assert!(asked.contains("[y/N]") && count() == before + 2, "{asked}");
    let said = engine.hyper(&["builder", "prune", "-f"]).succeeded().text();
    assert!(said.contains("sha256:") && said.contains("MB"), "{said}");
    assert_eq!(count(), before);
    let verified = engine.hyper(&["image", "verify"]).succeeded().text();
    assert!(verified.ends_with("0 problems"), "{verified}");
}

#[test]
fn nothing_is_pruned_from_under_a_build() {
    let engine = Engine::with_busybox();
    let directory = context(&[(
        "Dockerfile",
        "FROM busybox AS one\nRUN echo made >/made\nFROM busybox\nRUN echo begun; sleep 5\n\
         COPY --from=one /made /made\n",
    )]);
    let path = text(directory.path());
    let mut command = engine.docker_command(&["build", "-t", "both", &path]);
    let command = command.stdout(std::process::Stdio::piped());
    let mut building = command.stderr(std::process::Stdio::null()).spawn().expect("start docker");
    let mut lines = BufReader::new(building.stdout.take().expect("piped")).lines();
    while !lines.next().expect("more is said").expect("text").contains("begun") {}
    let said = engine.docker(&["builder", "prune", "-af"]).succeeded().text();
    assert!(!said.contains("sha256:"), "{said}");
    let said = engine.docker(&["image", "prune", "-f"]).succeeded().text();
    assert!(!said.contains("sha256:"), "{said}");
    for _ in lines {}
    assert!(building.wait().expect("wait").success(), "{}", engine.log());
    let seen = engine.docker(&["run", "--rm", "both", "cat", "/made"]).succeeded().text();
    assert_eq!(seen, "made");
    // The first stage is nobody's now.
    let said = engine.docker(&["builder", "prune", "-f"]).succeeded().text();
    assert!(said.contains("sha256:"), "{said}");
}

#[test]
fn mounts_of_buildkit_are_refused_by_name_with_a_hint() {
    let engine = Engine::start();
    engine.hyper(&["load", "-q", "-i", &text(&image("busybox"))]).succeeded();
    for (mount, hint) in [
        ("type=bind,source=x,target=/x", "COPY"),
        ("source=x,target=/x", "COPY"),
        ("type=bind,from=busybox,target=/x", "--from"),
        ("type=cache,target=/root/.cache", "leave it out"),
        ("type=cache,id=a,sharing=locked,target=/c", "leave it out"),
        ("type=secret,id=token,target=/run/secrets/token", "before the build"),
        ("type=ssh", "the key"),
        ("type=odd,target=/x", "tmpfs"),
    ] {
        let kind = mount.split(',').find(|word| word.starts_with("type=")).unwrap_or("type=bind");
        let dockerfile = format!("FROM busybox\nRUN --mount={mount} true\n");
        let directory = context(&[("Dockerfile", &dockerfile)]);
        let refused = build(&engine, &directory, &[]).exited(1);
        refused.says(&["line 2", "RUN", kind, "BuildKit", hint]);
    }
    // Nothing was begun.
    assert_eq!(engine.docker(&["images", "-aq"]).succeeded().text().lines().count(), 1);
}
