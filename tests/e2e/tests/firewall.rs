//! Hosts whose other firewalls drop what they do not know. Pods get out and are reached, and the
//! others keep working: a real dockerd and a real firewalld in hyperd's network namespace.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hyper_e2e::{Engine, Outcome, Outside, eventually, root, run};

const SOON: Duration = Duration::from_secs(30);

/// The address of a machine outside, and that of the engine's host on the link between them.
const THERE: &str = "10.99.0.2";
const HERE: &str = "10.99.0.1";

fn outside(engine: &Engine) -> Outside {
    let mask = |ip: &str| format!("{ip}/24");
    Outside::of(engine, "wan", &[&mask(HERE)], &[&mask(THERE)], "outside")
}

/// What the machine outside gets at a port of the host.
fn fetched(outside: &Outside, port: u16) -> String {
    outside.fetched(&format!("http://{HERE}:{port}/"), 5)
}

/// A daemon beside hyperd, ended with the test.
struct Daemon(Child);

impl Daemon {
    fn start(engine: &Engine, words: &[&str], bus: Option<&str>) -> Self {
        let log = std::fs::File::create(
            engine.dir().join(format!("{}.log", words[0].rsplit('/').next().unwrap_or_default())),
        )
        .expect("log");
        let namespace = engine.namespace().expect("a namespace");
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{namespace}")).args(words);
        if let Some(bus) = bus {
            command.env("DBUS_SYSTEM_BUS_ADDRESS", bus);
        }
        let errors = log.try_clone().expect("log");
        let child = command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn();
        Self(child.expect("nsenter"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.0.wait();
    }
}

const SERVE: &str = "mkdir /w; echo inside > /w/index.html; exec httpd -f -p 80 -h /w";

/// What is at `host:80`, asked in a container of `client`.
fn asked(client: &dyn Fn(&[&str]) -> Outcome, container: &str, host: &str) -> String {
    let script = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 3 {host} 80");
    client(&["exec", container, "sh", "-c", &script]).text()
}

#[test]
fn pods_get_out_beside_a_dockerd_that_keeps_working() {
    let engine = Engine::apart();
    let outside = outside(&engine);
    let at = |name: &str| engine.dir().join(name).display().to_string();
    let socket = format!("unix://{}", at("docker.sock"));
    let flags = ["--data-root", &at("docker-data"), "--exec-root", &at("docker-exec")];
    let more = ["--pidfile", &at("docker.pid"), "-H", &socket, "--containerd", ""];
    // Where it forwards already Docker drops nothing; a new namespace has it from the machine.
    let off = "echo 0 >/proc/sys/net/ipv4/ip_forward";
    engine.beside(&["sh", "-c", off]).succeeded();
    let _dockerd = Daemon::start(&engine, &[&["dockerd"], &flags[..], &more[..]].concat(), None);
    let theirs = |words: &[&str]| run("docker", &[&["-H", &socket], words].concat(), SOON * 2);
    eventually("dockerd answers", SOON * 2, || theirs(&["version"]).code == 0);
    let rules = || engine.beside(&["iptables", "-S"]).succeeded().text();
    let before = rules();
    assert!(before.contains("-P FORWARD DROP"), "{before}");

    // Debian 12's Docker reads no OCI layout, but what hyper saves.
    engine.hyper(&["save", "-o", &at("busybox.tar"), "busybox"]).succeeded();
    theirs(&["load", "-q", "-i", &at("busybox.tar")]).succeeded();
    let run = ["run", "-d", "--name", "theirs", "busybox", "sh", "-c", SERVE];
    theirs(&run).succeeded();
    let shown = theirs(&["inspect", "-f", "{{.NetworkSettings.IPAddress}}", "theirs"]);
    let their_ip = shown.succeeded().text();

    let run = ["run", "-d", "--name", "web", "-p", "8080:80", "busybox", "sh", "-c", SERVE];
    engine.docker(&run).succeeded();
    engine.docker(&["run", "-d", "--name", "other", "busybox", "sleep", "600"]).succeeded();
    let ours = |words: &[&str]| engine.docker(words);
    let ip = engine.inspect("web", "{{.NetworkSettings.IPAddress}}");
    eventually("it is reached from outside", SOON, || fetched(&outside, 8080) == "inside");
    assert!(asked(&ours, "other", THERE).contains("outside"), "no way out:\n{}", rules());
    assert!(asked(&ours, "other", &ip).contains("inside"), "no way to the other pod");
    assert!(asked(&theirs, "theirs", THERE).contains("outside"), "Docker's lost its way out");
    // As apart as Docker has its own networks.
    assert!(!asked(&ours, "other", &their_ip).contains("inside"), "a pod reached Docker's");
    assert!(!asked(&theirs, "theirs", &ip).contains("inside"), "Docker's reached a pod");

    // What the user's firewall lost (a reload) it is told with the next pod that has ports.
    let rules_now = rules();
    let jump =
        rules_now.lines().find(|line| line.contains("DOCKER-USER -j HYPER-")).expect("a jump");
    let remove: Vec<&str> = ["iptables", "-D"].into_iter().chain(jump.split(' ').skip(1)).collect();
    engine.beside(&remove).succeeded();
    assert!(asked(&ours, "other", THERE).is_empty(), "it was never needed");
    std::thread::sleep(Duration::from_secs(6));
    engine.docker(&["run", "--rm", "-p", "8081:80", "busybox", "true"]).succeeded();
    assert!(asked(&ours, "other", THERE).contains("outside"), "{}", rules());

    engine.docker(&["rm", "-f", "web", "other"]).succeeded();
    let daemon = std::fs::read_to_string(engine.dir().join("hyperd.pid")).expect("pid");
    hyper_e2e::tool("kill", &[daemon.trim()]);
    eventually("what hyperd told iptables is taken back", SOON, || rules() == before);
    assert!(asked(&theirs, "theirs", THERE).contains("outside"));
    theirs(&["rm", "-f", "theirs"]).succeeded();
}

/// Debian's firewalld, which is not installed: that would start it on the machine. `deps` has
/// unpacked it below `target`.
#[test]
fn pods_get_out_beside_firewalld() {
    let mut engine = Engine::apart();
    let outside = outside(&engine);
    let unpacked = root().join("target/test-tools/firewalld");
    let file = |path: &str| unpacked.join(path).display().to_string();
    let at = |name: &str| engine.dir().join(name).display().to_string();
    let bus = format!("unix:path={}", at("bus"));
    let config = format!(
        "<busconfig><type>system</type><listen>{bus}</listen><auth>EXTERNAL</auth>\
         <policy context=\"default\"><allow send_destination=\"*\" eavesdrop=\"true\"/>\
         <allow eavesdrop=\"true\"/><allow own=\"*\"/>\
         <allow user=\"*\"/></policy></busconfig>"
    );
    std::fs::write(at("bus.conf"), config).expect("configuration");
    let flag = format!("--config-file={}", at("bus.conf"));
    let _bus = Daemon::start(&engine, &["dbus-daemon", &flag, "--nofork", "--nopidfile"], None);
    eventually("the bus is there", SOON, || std::path::Path::new(&at("bus")).exists());
    let tool = format!(
        "#!/bin/sh\nDBUS_SYSTEM_BUS_ADDRESS={bus} exec {} \"$@\"\n",
        file("usr/bin/firewall-cmd")
    );
    let tools = engine.dir().join("tools");
    std::fs::create_dir(&tools).expect("directory");
    std::fs::write(tools.join("firewall-cmd"), tool).expect("wrapper");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(tools.join("firewall-cmd"), mode).expect("mode");
    let command = tools.join("firewall-cmd").display().to_string();
    let (defaults, own) = (file("usr/lib/firewalld"), file("etc/firewalld"));
    let program = file("usr/sbin/firewalld");
    let flags = ["--nofork", "--nopid", "--default-config", &defaults, "--system-config", &own];
    let _firewalld = Daemon::start(&engine, &[&[&*program], &flags[..]].concat(), Some(&bus));
    eventually("firewalld runs", SOON, || engine.beside(&[&command, "--state"]).code == 0);
    // Within a zone it forwards, from one to another not.
    engine.beside(&[&command, "--zone=external", "--add-interface=wan"]).succeeded();
    // With the tool on its path.
    engine.kill_daemon();
    engine.restart();

    let run = ["run", "-d", "--name", "web", "-p", "8080:80", "busybox", "sh", "-c", SERVE];
    engine.docker(&run).succeeded();
    let ours = |words: &[&str]| engine.docker(words);
    eventually("it is reached from outside", SOON, || fetched(&outside, 8080) == "inside");
    assert!(asked(&ours, "web", THERE).contains("outside"), "no way out");
    let trusted = || engine.beside(&[&command, "--zone=trusted", "--list-interfaces"]).text();
    let bridge = trusted();
    assert!(bridge.starts_with("hy-"), "{bridge}");
    // Needed: without it firewalld rejects.
    engine
        .beside(&[&command, "--zone=trusted", &format!("--remove-interface={bridge}")])
        .succeeded();
    assert!(asked(&ours, "web", THERE).is_empty(), "it was never needed");
    engine.beside(&[&command, "--zone=trusted", &format!("--add-interface={bridge}")]).succeeded();
    engine.docker(&["rm", "-f", "web"]).succeeded();
    let daemon = std::fs::read_to_string(engine.dir().join("hyperd.pid")).expect("pid");
    hyper_e2e::tool("kill", &[daemon.trim()]);
    eventually("firewalld has forgotten the bridge", SOON, || trusted().is_empty());
}
