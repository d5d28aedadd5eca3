//! SCTP between pods and by published ports. The host need not have sockets of it; its packet filter
//! translates it all the same.

use std::time::Duration;

use hyper_e2e::{Engine, eventually, image, runtimes};

const SOON: Duration = Duration::from_secs(60);

/// Answers each connection with the digest of all that came.
const SERVER: &str = "
import hashlib, socket
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP)
s.bind(('', 5000))
s.listen(5)
while True:
    c, _ = s.accept()
    sum, length = hashlib.sha256(), 0
    while length < 1 << 20:
        part = c.recv(1 << 16)
        if not part: break
        sum.update(part)
        length += len(part)
    c.sendall(sum.hexdigest().encode())
    c.close()
";

/// Sends a megabyte to the address of its arguments; prints what came back, and whether it is right.
const CLIENT: &str = "
import hashlib, socket, sys
data = bytes(range(256)) * 4096
to = socket.gethostbyname(sys.argv[1])
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP)
s.settimeout(20)
s.connect((to, int(sys.argv[2])))
for at in range(0, len(data), 8192): s.sendall(data[at:at + 8192])
answer = s.recv(100).decode()
print('same' if answer == hashlib.sha256(data).hexdigest() else answer)
";

/// What a container's client says of a server.
fn asked(engine: &Engine, container: &str, host: &str, port: &str) -> String {
    engine.docker(&["exec", container, "python3", "-c", CLIENT, host, port]).text()
}

fn run(engine: &Engine, name: &str, flags: &[&str], command: &[&str]) {
    let all = [&["run", "-d", "--name", name], flags, &["python"], command].concat();
    engine.docker(&all).succeeded();
}

/// Packets of SCTP that its kernel found damaged.
fn damaged(engine: &Engine, container: &str) -> String {
    let show = ["exec", container, "grep", "SctpChecksumErrors", "/proc/net/sctp/snmp"];
    let text = engine.docker(&show).succeeded().text();
    text.split_whitespace().last().unwrap_or_default().to_owned()
}

fn gateway(engine: &Engine, container: &str, network: &str) -> String {
    let field = format!("{{{{(index .NetworkSettings.Networks \"{network}\").Gateway}}}}");
    engine.inspect(container, &field)
}

#[test]
fn a_published_port_of_sctp_serves_and_is_nobody_elses() {
    let mut engine = Engine::apart();
    let python = image("python").display().to_string();
    engine.hyper(&["load", "-q", "-i", &python]).succeeded();
    engine.docker(&["network", "create", "mine"]).succeeded();
    let sleep = ["sleep", "6000"];
    run(&engine, "near", &["--network", "mine"], &sleep);
    for runtime in runtimes() {
        let flags = ["--runtime", runtime, "--network", "mine", "-p", "5001:5000/sctp"];
        run(&engine, "server", &flags, &["python3", "-c", SERVER]);
        run(&engine, "far", &["--runtime", runtime], &sleep);
        // By name, over the bridge alone.
        eventually("it serves", SOON, || asked(&engine, "near", "server", "5000") == "same");
        // By the host's addresses and the published port, from its own network and another.
        let (own, other) = (gateway(&engine, "server", "mine"), gateway(&engine, "far", "bridge"));
        assert_eq!(asked(&engine, "near", &own, "5001"), "same", "{runtime}");
        assert_eq!(asked(&engine, "far", &other, "5001"), "same", "{runtime}");
        for container in ["server", "near", "far"] {
            assert_eq!(damaged(&engine, container), "0", "{runtime} {container}");
        }
        let port = engine.docker(&["port", "server"]).succeeded().text();
        assert!(port.contains("5000/sctp -> 0.0.0.0:5001"), "{port}");

        // Nobody else's, also for a hyperd that came back.
        for _ in 0..2 {
            let taken = ["run", "--rm", "-p", "5001:1/sctp", "busybox", "true"];
            engine
                .docker(&taken)
                .exited(125)
                .says(&["port is already allocated", "sctp port 5001"]);
            engine.restart();
        }
        assert_eq!(asked(&engine, "far", &other, "5001"), "same", "{runtime}");
        engine.docker(&["rm", "-f", "server", "far"]).succeeded();
        assert_ne!(asked(&engine, "near", &own, "5001"), "same", "{runtime}");
    }
    // Of those that are left to hyperd, too.
    for name in ["one", "two"] {
        run(&engine, name, &["-p", "5000/sctp"], &["python3", "-c", SERVER]);
    }
    let port = |name: &str| {
        let shown = engine.docker(&["port", name, "5000/sctp"]).succeeded().text();
        let first = shown.lines().next().and_then(|line| line.rsplit(':').next());
        first.and_then(|port| port.parse::<u16>().ok()).expect("a port")
    };
    let (one, two) = (port("one"), port("two"));
    assert!(one > 0 && two > 0 && one != two, "{one} {two}");
    let host = gateway(&engine, "near", "mine");
    for port in [one, two] {
        let port = port.to_string();
        eventually("it serves", SOON, || asked(&engine, "near", &host, &port) == "same");
    }
}
