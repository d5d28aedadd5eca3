//! hyperd of a user who is not root: what it runs, what it publishes, what is left of it.

use std::io::BufRead as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use hyper_e2e::{User, disk_of, eventually, image, run_with};

const SOON: Duration = Duration::from_secs(30);
/// Of a hyperd that the client started.
const LOG: &str = "home/.local/state/hyper/hyperd.log";

/// Has an image; its hyperd was started by the client.
fn user() -> User {
    user_with("busybox")
}

fn user_with(name: &str) -> User {
    let user = User::new();
    load(&user, name);
    user
}

fn load(user: &User, name: &str) {
    // It is root's file, in a directory that others may not read.
    let archive = user.dir().join("image.tar");
    std::fs::copy(image(name), &archive).expect("copy the image");
    user.hyper(&["load", "-q", "-i", &archive.display().to_string()]).succeeded();
}

/// Fetches from inside a container. Not by wget: a static one looks for libraries.
fn ask(server: &str) -> String {
    // Debian 12's pasta does not tell the end of a connection to who has ended its own side.
    format!("(printf 'GET /index.html HTTP/1.0\\r\\n\\r\\n'; sleep 2) | timeout 20 nc {server}")
}

#[track_caller]
fn fetched(user: &User, url: &str) -> String {
    let mut command = user.host_command("curl");
    command.args(["-s", "-m", "5", url]);
    run_with(command, Vec::new(), SOON).text()
}

#[test]
fn a_user_runs_containers_without_root() {
    let user = user();
    user.hyper(&["run", "--rm", "busybox", "sh", "-c", "exit 17"]).exited(17);
    let kernel = user.hyper(&["run", "--rm", "busybox", "uname", "-r"]).succeeded().text();
    let host = user.run(&["uname", "-r"]).succeeded().text();
    assert_ne!(kernel, host);
    let options = user.hyper(&["info", "--format", "{{.SecurityOptions}}"]).succeeded().text();
    assert!(options.contains("name=rootless"), "{options}");
    // Files of the user are root's in the container, and stay the user's.
    let shared = user.dir().join("home/shared");
    user.run(&["mkdir", &shared.display().to_string()]).succeeded();
    let volume = format!("{}:/data", shared.display());
    let write =
        "stat -c %u /data; echo written >/data/file; chown 1000:1000 /data; chown 0:0 /data";
    let owner =
        user.hyper(&["run", "--rm", "-v", &volume, "busybox", "sh", "-c", write]).succeeded();
    assert_eq!(owner.text(), "0");
    let file = shared.join("file").display().to_string();
    assert_eq!(user.run(&["cat", &file]).succeeded().text(), "written");
    assert_eq!(user.run(&["stat", "-c", "%u", &file]).succeeded().text(), "42424");
    // The guest is nobody of the host, and neither is it the user.
    user.hyper(&["run", "-d", "--name", "stays", "busybox", "sleep", "600"]).succeeded();
    let guest = user.processes().into_iter().find(|(_, line)| line.contains("hyperkernel"));
    let (pid, _) = guest.expect("the guest's process");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    assert!(!status.contains("Uid:\t42424\t"), "{status}");
    user.hyper(&["rm", "-f", "stays"]).succeeded();
}

#[test]
fn ports_are_the_hosts_and_names_lead_out() {
    let user = user();
    let page = "echo hello >/index.html; httpd -f -p 80 -h /";
    let publish = ["-p", "18080:80", "-p", "127.0.0.1:18081:80"];
    let web =
        [&["run", "-d", "--name", "web"][..], &publish, &["busybox", "sh", "-c", page]].concat();
    user.hyper(&web).succeeded();
    for url in [
        "http://127.0.0.1:18080/",
        "http://192.0.2.2:18080/",
        "http://[::1]:18080/",
        "http://127.0.0.1:18081/",
    ] {
        eventually(url, SOON, || fetched(&user, url) == "hello");
    }
    assert_eq!(fetched(&user, "http://192.0.2.2:18081/"), "", "published on the loopback only");
    let taken = ["run", "--rm", "-p", "18080:80", "busybox", "true"];
    user.hyper(&taken).exited(125).says(&["18080", "already allocated"]);
    let low = ["run", "--rm", "-p", "80:80", "busybox", "true"];
    user.hyper(&low).exited(125).says(&["port 80", "ip_unprivileged_port_start"]);
    // A pod reaches the host's network, by the user's own sockets.
    let mut server = user
        .host_command("busybox")
        .args(["httpd", "-f", "-p", "198.51.100.1:8000", "-h"])
        .arg(user.dir().join("home"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("busybox httpd");
    std::fs::write(user.dir().join("home/index.html"), "outside\n").expect("page");
    let said = user.hyper(&["run", "--rm", "busybox", "sh", "-c", &ask("198.51.100.1 8000")]);
    server.kill().expect("kill the server");
    server.wait().expect("reap the server");
    assert!(said.succeeded().text().ends_with("outside"));
    // Pods find each other as everywhere.
    user.hyper(&["network", "create", "own"]).succeeded();
    user.hyper(&["network", "connect", "own", "web"]).succeeded();
    let said =
        user.hyper(&["run", "--rm", "--network", "own", "busybox", "sh", "-c", &ask("web 80")]);
    assert!(said.succeeded().text().ends_with("hello"));
}

#[test]
fn datagrams_reach_a_published_port() {
    let user = user_with("python");
    let echo = "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('', 9000))
while True: s.sendto(*s.recvfrom(100))
";
    let start = ["run", "-d", "-p", "19000:9000/udp", "python", "python3", "-c", echo];
    user.hyper(&start).succeeded();
    // Within the host of the user, where no test program of ours is.
    let ask = r#"
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(2)
s.connect(("127.0.0.1", 19000))
s.send(b"there?")
print(s.recv(100).decode())
"#;
    eventually("an answer", SOON, || {
        let mut command = user.host_command("python3");
        command.args(["-c", ask]);
        run_with(command, Vec::new(), SOON).text() == "there?"
    });
}

/// Answers each message with its length, and ends after one of 13 bytes.
const MESSAGES: &str = "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP)
s.bind(('', 5000))
s.listen(5)
while True:
    c, _ = s.accept()
    length = 0
    try:
        while True:
            part, _, flags, _ = c.recvmsg(1 << 17)
            if not part: break
            length += len(part)
            # A kernel that is short of room hands messages over in parts.
            if flags & socket.MSG_EOR:
                c.sendall(str(length).encode())
                if length == 13: break
                length = 0
    except OSError: pass
    c.close()
";

/// The answers to four messages, each as it came.
const ASK_MESSAGES: &str = "
import socket, sys
family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET
s = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_SCTP)
s.settimeout(20)
s.connect((sys.argv[1], 19001))
for length in (1, 3, 60000, 2): s.sendall(b'x' * length)
print(*(s.recv(100).decode() for _ in range(4)))
for _ in range(20): s.sendall(b'y' * 10000)
print(sum(int(s.recv(100)) for _ in range(20)))
s.sendall(b'the last one.')
print(s.recv(100) == b'13', s.recv(100) == b'')
";

#[test]
fn messages_of_sctp_reach_a_published_port_where_the_host_has_sockets_of_it() {
    let user = user_with("python");
    let python = |script: &str, words: &[&str]| {
        let mut command = user.host_command("python3");
        command.args(["-c", script]).args(words);
        run_with(command, Vec::new(), Duration::from_secs(120))
    };
    let publish = ["run", "-d", "--name", "server", "-p", "19001:5000/sctp", "python"];
    let start = [&publish[..], &["python3", "-c", MESSAGES]].concat();
    let probe = "import socket; socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132)";
    if python(probe, &[]).code != 0 {
        eprintln!("the host's kernel has no SCTP sockets");
        user.hyper(&start).exited(125).says(&["19001", "no SCTP sockets", "module `sctp`"]);
        let state = ["inspect", "-f", "{{.State.Status}}", "server"];
        assert_eq!(user.hyper(&state).succeeded().text(), "created");
        return;
    }
    user.hyper(&start).succeeded();
    let answer = "1 3 60000 2\n200000\nTrue True";
    let asked = |at: &str| {
        let begun = Instant::now();
        let outcome = python(ASK_MESSAGES, &[at]);
        eprintln!("{at}: {:?} {:?} {}", begun.elapsed(), outcome.text(), outcome.stderr);
        outcome.text() == answer
    };
    for at in ["127.0.0.1", "192.0.2.2", "::1"] {
        eventually(at, SOON, || asked(at));
    }
    let taken = ["run", "--rm", "-p", "19001:1/sctp", "python", "true"];
    user.hyper(&taken).exited(125).says(&["sctp port 19001", "already allocated"]);
    user.end_hyperd("KILL");
    user.hyper(&["ps"]).succeeded();
    eventually("it serves again", SOON, || asked("127.0.0.1"));
    user.hyper(&["rm", "-f", "server"]).succeeded();
    assert!(!asked("127.0.0.1"));
    // Free again, and somebody else's.
    let hold = "
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP)
s.bind(('127.0.0.1', 19001))
s.listen(5)
print('held', flush=True)
time.sleep(60)
";
    let mut holder = user.host_command("python3");
    holder.args(["-c", hold]).stdout(Stdio::piped());
    let mut holder = holder.spawn().expect("python3");
    let mut said = String::new();
    let output = holder.stdout.take().expect("piped");
    std::io::BufReader::new(output).read_line(&mut said).expect("its word");
    let refused = user.hyper(&start);
    holder.kill().expect("kill the holder");
    holder.wait().expect("reap the holder");
    assert_eq!(said, "held\n");
    refused.exited(125).says(&["sctp port 19001", "already allocated"]);
}

#[test]
fn pods_outlive_a_killed_hyperd_and_nothing_outlives_the_last_pod() {
    let user = user();
    let page = "echo hello >/index.html; httpd -f -p 80 -h /";
    let web = ["run", "-d", "--name", "web", "-p", "18080:80", "busybox", "sh", "-c", page];
    user.hyper(&web).succeeded();
    user.end_hyperd("KILL");
    assert_eq!(user.hyper(&["exec", "web", "cat", "/index.html"]).succeeded().text(), "hello");
    let url = "http://127.0.0.1:18080/";
    eventually(url, SOON, || fetched(&user, url) == "hello");
    user.end_hyperd("TERM");
    assert!(!user.processes().is_empty(), "the pod runs on");
    user.hyper(&["rm", "-f", "web"]).succeeded();
    user.hyper(&["run", "--rm", "busybox", "true"]).succeeded();
    user.end_hyperd("TERM");
    let deadline = Instant::now() + SOON;
    while !user.processes().is_empty() {
        assert!(Instant::now() < deadline, "left: {:?}", user.processes());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn limits_are_held_on_the_host_in_a_delegated_cgroup() {
    let mut user = User::new();
    let Some(group) = user.delegated() else {
        eprintln!("skipped: the host has no cgroup v2 with controllers at its root");
        let doctor = user.hyper(&["doctor"]).text();
        assert!(doctor.contains("this user may divide no cgroup here"), "{doctor}");
        return;
    };
    let doctor = user.hyper(&["doctor"]).text();
    let delegated = format!("memory pids cpu io in {}", group.display());
    assert!(doctor.contains(&delegated), "{doctor}");
    load(&user, "busybox");
    let own = "run -d --name own --runtime uml -m 96m --cpus 0.5 --pids-limit 50".split(' ');
    let mut own: Vec<&str> = own.collect();
    let disk = disk_of(user.dir());
    let rate = disk.as_ref().map(|disk| format!("{disk}:4mb"));
    own.extend(rate.iter().flat_map(|rate| ["--device-write-bps", rate.as_str()]));
    own.extend(["busybox", "sleep", "600"]);
    user.hyper(&own).succeeded();
    let groups = || -> Vec<PathBuf> {
        let entries = std::fs::read_dir(group.join("hyper")).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    };
    let jails = groups();
    assert_eq!(jails.len(), 1, "{jails:?}");
    let read = |name: &str| std::fs::read_to_string(jails[0].join(name)).expect(name);
    let guest = user.processes().into_iter().find(|(_, line)| line.contains("hyperkernel"));
    let (pid, _) = guest.expect("the guest's process");
    assert!(read("cgroup.procs").lines().any(|line| line == pid.to_string()));
    let bytes: u64 = read("memory.max").trim().parse().expect("a bound of memory");
    assert!(bytes > 96 << 20 && bytes < 512 << 20, "{bytes}");
    let pids: u64 = read("pids.max").trim().parse().expect("a bound of processes");
    assert!(pids < 4096, "{pids}");
    // Half a CPU, and a tenth for the guest's own work.
    eventually("the CPU is bound", SOON, || read("cpu.max").trim() == "60000 100000");
    match &disk {
        Some(_) => eventually("writes are", SOON, || read("io.max").contains("wbps=4194304")),
        None => eprintln!("not tried: the user's files are on no disk"),
    }
    user.hyper(&["update", "--cpus", "0.2", "own"]).succeeded();
    eventually("the CPU is bound anew", SOON, || read("cpu.max").trim() == "30000 100000");
    // A pod stops as a whole; `uml` by its cgroup.
    user.hyper(&["pod", "create", "--runtime", "uml", "whole"]).succeeded();
    user.hyper(&["run", "-d", "--pod", "whole", "busybox", "sleep", "600"]).succeeded();
    // One for the guest; another for the server of directories that its containers may share.
    let new: Vec<PathBuf> = groups().into_iter().filter(|group| !jails.contains(group)).collect();
    let guests = user.processes().into_iter().filter(|(_, line)| line.contains("hyperkernel"));
    let guests: Vec<String> = guests.map(|(pid, _)| pid.to_string()).collect();
    let holds_a_guest = |group: &&PathBuf| {
        let inside = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        inside.lines().any(|pid| guests.iter().any(|guest| guest == pid))
    };
    let whole = new.iter().find(holds_a_guest).expect("its group");
    let frozen = || std::fs::read_to_string(whole.join("cgroup.events")).expect("its state");
    user.hyper(&["pod", "pause", "whole"]).succeeded();
    eventually("it is frozen", SOON, || frozen().contains("frozen 1"));
    user.hyper(&["pod", "unpause", "whole"]).succeeded();
    eventually("it goes on", SOON, || frozen().contains("frozen 0"));
    user.hyper(&["pod", "rm", "-f", "whole"]).succeeded();
    eventually("its groups go", SOON, || !new.iter().any(|group| group.exists()));
    // Who comes later finds the group divided.
    user.end_hyperd("KILL");
    user.hyper(&["run", "--rm", "-m", "64m", "busybox", "true"]).succeeded();
    assert_eq!(groups(), jails);
    user.hyper(&["rm", "-f", "own"]).succeeded();
    eventually("no jail is left", SOON, || groups().is_empty());
    let log = std::fs::read_to_string(user.dir().join(LOG)).expect("hyperd's log");
    assert!(!log.contains("cannot be divided"), "{log}");
}

#[test]
fn a_cgroup_that_cannot_be_divided_is_told_and_containers_run() {
    let mut user = User::new();
    let Some(group) = user.delegated() else {
        eprintln!("skipped: the host has no cgroup v2 with controllers at its root");
        return;
    };
    // Root's: nobody can be moved there.
    std::fs::create_dir(group.join("hyperd")).expect("the leaf");
    load(&user, "busybox");
    user.hyper(&["run", "--rm", "-m", "64m", "busybox", "true"]).succeeded();
    let log = std::fs::read_to_string(user.dir().join(LOG)).expect("hyperd's log");
    assert!(log.contains("cannot be divided, limits are held in guests only"), "{log}");
}

#[test]
fn what_the_host_lacks_is_told() {
    let user = User::new();
    // Nobody but root may open it now.
    std::fs::set_permissions(
        user.dir().join("tun"),
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )
    .expect("mode");
    user.hyper(&["ps"]).exited(1).says(&["/dev/net/tun", "module `tun`"]);
    let doctor = user.hyper(&["doctor"]);
    assert!(doctor.text().contains("-- hyperd without root"), "{}", doctor.text());
    assert!(user.processes().is_empty(), "{:?}", user.processes());
}
