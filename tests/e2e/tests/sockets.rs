//! Sockets of the host in containers: `-v /run/docker.sock:/run/docker.sock` and its like.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::time::Duration;

use hyper_e2e::{Engine, eventually, image, runtimes, text};

const SOON: Duration = Duration::from_secs(30);
/// Says its argument to the socket `/s`, ends its own direction, and prints what comes until the end.
const CLIENT: &str = "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect('/s')\n\
                      s.sendall(sys.argv[1].encode())\ns.shutdown(socket.SHUT_WR)\nd=b''\n\
                      while True:\n p=s.recv(65536)\n if not p: break\n d+=p\nprint(d.decode())";
/// Sends and receives so many bytes at once, and says whether they came back unharmed; as many times as told.
const ECHO: &str = "import socket,sys,threading\nn,m=int(sys.argv[1]),int(sys.argv[2])\nok=[]\n\
                    def one(i):\n s=socket.socket(socket.AF_UNIX);s.connect('/s')\n b=bytes([i%251])*65536\n\
                    \x20def send():\n  for _ in range(n//65536): s.sendall(b)\n  s.shutdown(socket.SHUT_WR)\n\
                    \x20t=threading.Thread(target=send);t.start();got=0\n while True:\n  p=s.recv(1<<16)\n\
                    \x20 if not p: break\n  assert p==b[:len(p)];got+=len(p)\n t.join();ok.append(got==n)\n\
                    ts=[threading.Thread(target=one,args=(i,)) for i in range(m)]\n[t.start() for t in ts];[t.join() for t in ts]\n\
                    print(len(ok),all(ok))";

/// Serves until the test's process ends: answers `prefix` and what it was told, when it was told all.
fn server(path: &Path, prefix: &'static str) {
    let listener = UnixListener::bind(path).expect("listen");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).expect("mode");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            std::thread::spawn(move || {
                let mut said = Vec::new();
                stream.read_to_end(&mut said).expect("read");
                if said == b"end" {
                    return;
                }
                let answer = format!("{prefix} {}", String::from_utf8_lossy(&said));
                // Whoever has gone does not wait for it.
                let _ = stream.write_all(answer.as_bytes());
            });
        }
    });
}

/// Sends back what comes, as it comes.
fn echo(path: &Path) {
    let listener = UnixListener::bind(path).expect("listen");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            std::thread::spawn(move || {
                let mut out = stream.try_clone().expect("clone");
                let _ = std::io::copy(&mut stream, &mut out);
                let _ = out.shutdown(std::net::Shutdown::Write);
            });
        }
    });
}

fn with_python() -> Engine {
    let engine = Engine::start();
    engine.hyper(&["load", "-q", "-i", &text(&image("python"))]).succeeded();
    engine
}

#[test]
fn dockers_client_in_a_container_drives_the_engine_that_runs_it() {
    let engine = with_python();
    engine.hyper(&["load", "-q", "-i", &text(&image("busybox"))]).succeeded();
    let bind = format!("{}:/var/run/docker.sock", engine.socket().display());
    let client = "/usr/bin/docker:/usr/bin/docker:ro";
    let inner = "docker ps --format {{.Names}} && \
                 echo from the outer | docker run -i --rm --name inner busybox cat";
    for runtime in runtimes() {
        let run =
            ["run", "--rm", "--name", "outer", "--runtime", runtime, "-v", &bind, "-v", client];
        let said = engine.docker(&[&run[..], &["python", "sh", "-c", inner]].concat());
        assert_eq!(said.succeeded().text(), "outer\nfrom the outer", "{runtime}");
    }
}

#[test]
fn a_socket_of_the_host_is_connected_to_from_a_container() {
    let engine = with_python();
    for runtime in runtimes() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("s");
        server(&path, "first");
        let bind = format!("{}:/s", path.display());
        let run = ["run", "-d", "--name", runtime, "--runtime", runtime, "-v", &bind, "python"];
        engine.docker(&[&run[..], &["sleep", "1000"]].concat()).succeeded();
        let say = |who: &str, words: &str| {
            engine.docker(&["exec", "-u", who, runtime, "python3", "-c", CLIENT, words])
        };
        assert_eq!(say("0", "hello").succeeded().text(), "first hello");
        assert_eq!(say("0", "end").succeeded().text(), "");
        let much = "x".repeat(100_000);
        assert_eq!(say("0", &much).succeeded().text(), format!("first {much}"));
        // A server that is started anew is found; while there is none, it is as if nobody listened.
        std::fs::remove_file(&path).expect("remove");
        assert_ne!(say("0", "hello").text(), "first hello");
        server(&path, "second");
        assert_eq!(say("33", "hello").succeeded().text(), "second hello");
        // The mode is the host's.
        let seen =
            engine.docker(&["exec", runtime, "stat", "-c", "%F %a", "/s"]).succeeded().text();
        assert_eq!(seen, "socket 666");
        // It is there again in a container that is started again.
        engine.docker(&["restart", "-t", "0", runtime]).succeeded();
        assert_eq!(say("0", "again").succeeded().text(), "second again");
        engine.docker(&["rm", "-f", runtime]).succeeded();
    }
}

#[test]
fn many_connections_at_once_carry_much_both_ways_unharmed() {
    let engine = with_python();
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("s");
    echo(&path);
    let bind = format!("{}:/s", path.display());
    for (runtime, bytes, many) in
        runtimes().into_iter().flat_map(|name| [(name, 16 << 20, 2), (name, 1 << 16, 100)])
    {
        let run =
            ["run", "--rm", "--runtime", runtime, "-v", &bind, "python", "python3", "-c", ECHO];
        let words = [bytes.to_string(), many.to_string()];
        let said = engine.docker(&[&run[..], &[&words[0], &words[1]]].concat()).succeeded().text();
        assert_eq!(said, format!("{many} True"), "{runtime}");
    }
}

/// Connects, says so, and keeps the connection.
const HOLD: &str =
    "import socket,time\ns=socket.socket(socket.AF_UNIX)\ns.connect('/s')\ntime.sleep(1000)";

#[test]
fn connections_end_with_their_client_and_with_their_container() {
    let engine = with_python();
    for runtime in runtimes() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).expect("listen");
        let bind = format!("{}:/s", path.display());
        let run = ["run", "-d", "--name", runtime, "--runtime", runtime, "-v", &bind, "python"];
        engine.docker(&[&run[..], &["sleep", "1000"]].concat()).succeeded();
        let hold = || {
            engine.docker(&["exec", "-d", runtime, "python3", "-c", HOLD]).succeeded();
            let (stream, _) = listener.accept().expect("the container connects");
            stream.set_read_timeout(Some(SOON)).expect("timeout");
            stream
        };
        let mut first = hold();
        engine.docker(&["exec", runtime, "sh", "-c", KILL]).succeeded();
        assert_eq!(first.read(&mut [0]).expect("its end"), 0);
        let mut second = hold();
        engine.docker(&["rm", "-f", runtime]).succeeded();
        assert!(matches!(second.read(&mut [0]), Ok(0) | Err(_)));
        eventually("nobody reads any more", SOON, || second.write_all(b"x").is_err());
    }
}

/// Ends every process that runs [`HOLD`].
const KILL: &str = "for p in /proc/[0-9]*; do grep -q 'sleep(1000)' $p/cmdline && [ ${p#/proc/} != $$ ] && kill ${p#/proc/}; done; true";

#[test]
fn what_is_no_socket_of_streams_is_refused_by_name() {
    let engine = with_python();
    let dir = tempfile::tempdir().expect("directory");
    let (log, gone) = (dir.path().join("log"), dir.path().join("gone"));
    let _log = UnixDatagram::bind(&log).expect("bind");
    let bind = format!("{}:/dev/log", log.display());
    let refused = engine.docker(&["run", "--rm", "-v", &bind, "python", "true"]);
    refused.exited(125).says(&["datagrams", "/dev/log", &text(&log)]);
    let mount = format!("type=bind,source={},target=/s", gone.display());
    let refused = engine.docker(&["run", "--rm", "--mount", &mount, "python", "true"]);
    refused.exited(125).says(&[&text(&gone)]);
    // `-v` makes a directory of anything else.
    let missing = dir.path().join("docker.sock");
    let bind = format!("{}:/var/run/docker.sock", missing.display());
    let refused = engine.docker(&["run", "--rm", "-v", &bind, "python", "true"]);
    refused.exited(125).says(&["no socket", &text(&missing), "/run/hyper/hyper.sock"]);
    assert!(!missing.exists());
    // Nobody listens: the container runs, its client is told, and the supervisor's log has why.
    let mute = dir.path().join("mute");
    drop(UnixListener::bind(&mute).expect("bind"));
    let bind = format!("{}:/s", mute.display());
    let run = ["run", "--rm", "-v", &bind, "python", "python3", "-c", CLIENT, "x"];
    let told = engine.docker(&run);
    // Its write fails, or its read ends: 125 would be the engine's, 126 and 127 the guest's.
    assert!(matches!(told.code, 0 | 1) && told.text().is_empty(), "{told:?}");
}
