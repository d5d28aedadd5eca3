//! hyperd of a user who is not root: what it runs, what it publishes, what is left of it.

use std::process::Stdio;
use std::time::{Duration, Instant};

use hyper_e2e::{User, eventually, image, run_with};

const SOON: Duration = Duration::from_secs(30);

/// Has an image; its hyperd was started by the client.
fn user() -> User {
    user_with("busybox")
}

fn user_with(name: &str) -> User {
    let user = User::new();
    // It is root's file, in a directory that others may not read.
    let archive = user.dir().join("image.tar");
    std::fs::copy(image(name), &archive).expect("copy the image");
    user.hyper(&["load", "-q", "-i", &archive.display().to_string()]).succeeded();
    user
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
