//! The agent in a guest under user-mode Linux.

use crate::machine::{Guest, Machine, SOON, WIRE_MAC, process, shell, spec};
use anyhow::Result;
use hyper_link::message::{
    Event, FailureKind, FileEntry, FileInjection, Interface, PodConfig, ProcessId, Reply, Request,
    Route, Stats,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

macro_rules! guest {
    () => {
        match Guest::start(Machine::Uml).await? {
            Some(guest) => guest,
            None => return Ok(()),
        }
    };
}

fn with(mut spec: Value, path: &str, value: Value) -> Value {
    let (parent, name) = path.rsplit_once('/').unwrap();
    spec.pointer_mut(parent).unwrap()[name] = value;
    spec
}

fn first(container: &str) -> ProcessId {
    ProcessId { container: container.to_owned(), exec: None }
}

#[tokio::test]
async fn a_container_runs_and_ends_as_its_program_does() -> Result<()> {
    let mut guest = guest!();
    let outcome = guest.run(spec(&["echo", "hello"])).await?;
    assert_eq!((outcome.code, outcome.stdout.as_str()), (0, "hello\n"), "{}", guest.console());
    let outcome = guest.run(shell("echo out; echo err >&2; exit 17")).await?;
    assert_eq!(outcome.code, 17);
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("out\n", "err\n"));
    assert_eq!(guest.run(shell("sh -c 'kill -9 $$'; exit $?")).await?.code, 137);
    // PID 1 of its namespace, its own hostname, mounts, devices and limits.
    let outcome = guest
        .run(shell(
            "echo $$; hostname; ulimit -n; echo $HOME; ls -l /dev | wc -l; cat /proc/1/cgroup; \
             test -e /proc/keys && wc -c </proc/keys; echo x >/proc/sys/kernel/hostname; \
             mount -t tmpfs x /tmp; grep -c . /proc/mounts; id; \
             cat /dev/mem; mknod /tmp/d b 98 0 && cat /tmp/d >/dev/null; ls -d /etc",
        ))
        .await?;
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!(lines[..4], ["1", "box", "1024", "/root"], "{outcome:?}");
    assert_eq!(lines[5..7], ["0::/", "0"], "{outcome:?}");
    assert!(outcome.stderr.contains("hostname: Read-only file system"), "{outcome:?}");
    assert!(outcome.stderr.contains("/tmp/d': Operation not permitted"), "{outcome:?}");
    assert!(
        outcome.stderr.contains("mount: permission denied")
            || outcome.stderr.contains("mounting x on /tmp failed: Operation not permitted"),
        "{outcome:?}"
    );
    assert_eq!(lines.last(), Some(&"/etc"));
    guest.shut_down().await?;
    Ok(())
}

#[tokio::test]
async fn the_writable_layer_outlives_the_container_and_the_image_does_not_change() -> Result<()> {
    let mut guest = guest!();
    assert_eq!(guest.run(shell("rm /etc/plain; mkdir /x; echo kept >/x/file")).await?.code, 0);
    let outcome = guest.run(shell("cat /x/file; ls /etc")).await?;
    assert_eq!(outcome.stdout, "kept\ngroup\npasswd\n");
    let io = guest.create("memory", shell("ls /etc; ls /x"), Vec::new(), false).await?;
    guest.start_container("memory").await?;
    let outcome = guest.finish("memory", None, io).await?;
    assert_eq!(outcome.stdout, "group\npasswd\nplain\n", "another upper");
    assert_eq!(outcome.code, 1);
    let read_only = with(shell("echo x >/y"), "/root/readonly", json!(true));
    let outcome = guest.run(read_only).await?;
    assert!(outcome.stderr.contains("Read-only file system"), "{outcome:?}");
    Ok(())
}

#[tokio::test]
async fn input_reaches_the_process_and_its_end_too() -> Result<()> {
    let mut guest = guest!();
    let mut io = guest.create("cat", spec(&["cat"]), Vec::new(), true).await?;
    guest.start_container("cat").await?;
    io.stdin.write_all(b"one\ntwo").await?;
    io.stdin.shutdown().await?;
    let outcome = guest.finish("cat", None, io).await?;
    assert_eq!((outcome.code, outcome.stdout.as_str()), (0, "one\ntwo"));

    // 32 MB there and back, not a byte lost, while another container's output is not read.
    let silent = guest.create("silent", spec(&["yes"]), Vec::new(), false).await?;
    guest.start_container("silent").await?;
    let io = guest.exec("silent", "cat", process(&["cat"])).await?;
    let (mut stdin, mut stdout) = (io.stdin, io.stdout);
    let block: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    let sent = block.clone();
    let sending = tokio::spawn(async move {
        for _ in 0..32 {
            stdin.write_all(&sent).await?;
        }
        stdin.shutdown().await
    });
    let mut received = vec![0; block.len()];
    for _ in 0..32 {
        tokio::time::timeout(SOON, stdout.read_exact(&mut received)).await??;
        assert!(received == block);
    }
    assert_eq!(stdout.read(&mut received).await?, 0);
    sending.await??;
    assert_eq!(guest.exited("silent", Some("cat")).await?, (0, false));
    // Output that nobody reads does not hold the end of the pod up.
    assert!(guest.shut_down().await? < SOON / 2);
    drop(silent);
    Ok(())
}

#[tokio::test]
async fn execs_join_the_container() -> Result<()> {
    let mut guest = guest!();
    let io = guest.create("c", spec(&["sleep", "1000"]), Vec::new(), true).await?;
    let early = guest.exec("c", "early", process(&["true"])).await;
    assert_eq!(early.err().unwrap().failure().unwrap().kind, FailureKind::Conflict);
    guest.start_container("c").await?;
    let run = guest
        .exec(
            "c",
            "a",
            process(&[
                "sh",
                "-c",
                "echo $PPID; hostname; ps | head -2; mount -t tmpfs x /tmp; exit 37",
            ]),
        )
        .await?;
    let outcome = guest.finish("c", Some("a"), run).await?;
    assert_eq!(outcome.code, 37);
    assert!(
        outcome.stdout.starts_with("0\nbox\n") && outcome.stdout.contains("sleep 1000"),
        "{outcome:?}"
    );
    assert!(
        outcome.stderr.contains("not permitted") || outcome.stderr.contains("denied"),
        "seccomp holds for execs: {outcome:?}"
    );
    guest
        .call(Request::DeleteExec {
            process: ProcessId { container: "c".into(), exec: Some("a".into()) },
        })
        .await?;

    for (program, kind) in [
        ("no-such-program", FailureKind::CommandNotFound),
        ("/no/such", FailureKind::CommandNotFound),
        ("/etc/plain", FailureKind::NotExecutable),
        ("/etc", FailureKind::NotExecutable),
        ("/bin/broken", FailureKind::NotExecutable),
    ] {
        let refused = guest.exec("c", "x", process(&[program])).await.err().unwrap();
        let failure = refused.failure().unwrap();
        assert_eq!(failure.kind, kind, "{program}: {failure:?}");
        assert!(failure.message.contains(program), "{failure:?}");
    }
    // A grandchild that keeps the output open does not hold the exit up.
    let start = std::time::Instant::now();
    let run = guest.exec("c", "d", process(&["sh", "-c", "sleep 500 & echo there"])).await?;
    let outcome = guest.finish("c", Some("d"), run).await?;
    assert_eq!((outcome.code, outcome.stdout.as_str()), (0, "there\n"));
    assert!(start.elapsed().as_secs() < 20);

    let release = |device: &str| Request::ReleaseDisks { devices: vec![device.to_owned()] };
    let kept = guest.call(release("/dev/ubdb")).await.unwrap_err();
    assert_eq!(kept.failure().unwrap().kind, FailureKind::Conflict, "{kept:?}");
    let absent = guest.call(release("/dev/../etc/x")).await.unwrap_err();
    assert!(absent.failure().unwrap().message.contains("/etc/x"), "{absent:?}");
    guest.call(Request::Signal { process: first("c"), signal: 15, all: false }).await?;
    guest.call(Request::Signal { process: first("c"), signal: 9, all: true }).await?;
    assert_eq!(guest.finish("c", None, io).await?.code, 137);
    guest.call(Request::DeleteContainer { container: "c".into() }).await?;
    guest.call(release("/dev/ubda")).await?;
    guest.call(release("/dev/ubdb")).await?;
    let gone = guest.call(Request::DeleteContainer { container: "c".into() }).await.unwrap_err();
    assert_eq!(gone.failure().unwrap().kind, FailureKind::NotFound);
    Ok(())
}

#[tokio::test]
async fn a_terminal_is_a_terminal() -> Result<()> {
    let mut guest = guest!();
    let script = "tty; stty size; test -t 0 && test -t 2 && echo all; ls -l /dev/console | cut -c1; \
                  echo err >&2; read line; stty size; echo got $line";
    let mut spec = with(shell(script), "/process/terminal", json!(true));
    spec["process"]["consoleSize"] = json!({"height": 33, "width": 77});
    let mut io = guest.create("t", spec, Vec::new(), true).await?;
    guest.start_container("t").await?;
    let mut seen = String::new();
    let mut buffer = [0; 1024];
    while !seen.contains("err\r\n") {
        let len = tokio::time::timeout(SOON, io.stdout.read(&mut buffer)).await??;
        seen.push_str(std::str::from_utf8(&buffer[..len])?);
    }
    assert_eq!(seen, "/dev/pts/0\r\n33 77\r\nall\r\nc\r\nerr\r\n");
    guest.call(Request::Resize { process: first("t"), rows: 10, columns: 20 }).await?;
    io.stdin.write_all(b"word\r").await?;
    let mut rest = String::new();
    tokio::time::timeout(SOON, io.stdout.read_to_string(&mut rest)).await??;
    assert_eq!(rest, "word\r\n10 20\r\ngot word\r\n");
    assert_eq!(guest.exited("t", None).await?.0, 0);

    let io = guest.create("u", shell("sleep 1000"), Vec::new(), false).await?;
    guest.start_container("u").await?;
    let exec = with(
        json!({"p": process(&["sh", "-c", "tty; stty size; kill -INT $$"])}),
        "/p/terminal",
        json!(true),
    );
    let run = guest.exec("u", "e", exec["p"].clone()).await?;
    let outcome = guest.finish("u", Some("e"), run).await?;
    assert_eq!((outcome.code, outcome.stdout.as_str()), (130, "/dev/pts/0\r\n24 80\r\n"));
    drop(io);
    Ok(())
}

#[tokio::test]
async fn users_come_from_the_image() -> Result<()> {
    let mut guest = guest!();
    let who = "id -u; id -g; id -G; echo $HOME; cd; pwd; echo ok >/dev/stdout; grep CapEff /proc/self/status";
    let mut spec = shell(who);
    spec["annotations"] = json!({"io.hyper.user": "alice"});
    let outcome = guest.run(spec).await?;
    assert_eq!(
        outcome.stdout,
        "1000\n1000\n1000 10\n/home/alice\n/home/alice\nok\nCapEff:\t0000000000000000\n",
        "{outcome:?}"
    );
    let mut spec = shell("true");
    spec["annotations"] = json!({"io.hyper.user": "bob"});
    let unknown = guest.create("b", spec, Vec::new(), true).await.err().unwrap();
    assert_eq!(unknown.failure().unwrap().kind, FailureKind::UnknownUser);
    let io = guest.create("c", shell("sleep 1000"), Vec::new(), true).await?;
    guest.start_container("c").await?;
    let mut exec = process(&["sh", "-c", "id -u; id -g"]);
    exec["user_name"] = json!("1000:wheel");
    let run = guest.exec("c", "e", exec).await?;
    assert_eq!(guest.finish("c", Some("e"), run).await?.stdout, "1000\n10\n");
    drop(io);
    Ok(())
}

#[tokio::test]
async fn limits_hold_and_are_counted() -> Result<()> {
    let mut guest = guest!();
    let hungry = "sleep 1; x=x; while :; do x=$x$x; done";
    let spec = with(shell(hungry), "/linux/resources/memory", json!({"limit": 16 << 20}));
    let io = guest.create("oom", spec, Vec::new(), false).await?;
    guest.start_container("oom").await?;
    let Reply::Stats(stats) = guest.call(Request::Stats { container: "oom".into() }).await? else {
        panic!("no stats");
    };
    let Stats { memory_limit_bytes, processes, memory_bytes, guest_memory_total_bytes, .. } =
        *stats;
    assert_eq!(memory_limit_bytes, 16 << 20);
    assert!(processes >= 1 && memory_bytes > 0 && guest_memory_total_bytes > 64 << 20, "{stats:?}");
    let outcome = guest.finish("oom", None, io).await?;
    assert_eq!((outcome.code, outcome.oom_killed), (137, true));
    assert!(guest.has_seen(&Event::Oom { container: "oom".into() }));

    let spec = with(shell("sleep 1000"), "/linux/resources/pids", json!({"limit": 7}));
    let spec = with(
        spec,
        "/linux/resources/cpu",
        json!({"shares": 512, "quota": 50000, "period": 100_000}),
    );
    // What Kubernetes says of every container, also where there is no swap.
    let unified = json!({"memory.swap.max": "0", "memory.oom.group": "1", "hugetlb.2MB.max": "0"});
    let spec = with(spec, "/linux/resources/unified", unified);
    let io = guest.create("p", spec, Vec::new(), true).await?;
    guest.start_container("p").await?;
    let files = "cd /sys/fs/cgroup; cat pids.max cpu.max cpu.weight memory.oom.group";
    let run = guest.exec("p", "a", process(&["sh", "-c", files])).await?;
    assert_eq!(guest.finish("p", Some("a"), run).await?.stdout, "7\n50000 100000\n20\n1\n");
    let resources = json!({"pids": {"limit": 9}, "memory": {"limit": 64 << 20}});
    guest.call(Request::Update { container: "p".into(), resources }).await?;
    let run = guest.exec("p", "b", process(&["sh", "-c", files])).await?;
    assert_eq!(guest.finish("p", Some("b"), run).await?.stdout, "9\n50000 100000\n20\n1\n");
    guest.call(Request::Freeze { container: "p".into(), frozen: true }).await?;
    let refused = guest.exec("p", "c", process(&["true"])).await.err().unwrap();
    assert!(refused.failure().unwrap().message.contains("frozen"));
    guest.call(Request::Freeze { container: "p".into(), frozen: false }).await?;
    let Reply::Processes { processes } =
        guest.call(Request::Processes { container: "p".into() }).await?
    else {
        panic!("no processes");
    };
    assert_eq!(processes.len(), 1);
    drop(io);
    guest.shut_down().await?;
    Ok(())
}

#[tokio::test]
async fn files_are_injected_below_the_root() -> Result<()> {
    let mut guest = guest!();
    let file = |path: &str, content: &str, read_only| FileInjection {
        path: path.to_owned(),
        content: content.to_owned(),
        mode: 0o755,
        read_only,
        ..FileInjection::default()
    };
    let entry = |path: &str, mode, uid| FileEntry {
        path: path.to_owned(),
        content: "eA==".to_owned(),
        mode,
        uid,
        gid: 7,
    };
    let directory = FileInjection {
        path: "/etc/given".to_owned(),
        mode: 0o750,
        read_only: true,
        entries: Some(vec![entry("a", 0o400, 5), entry("sub/b", 0o644, 0)]),
        ..FileInjection::default()
    };
    // "#!/bin/sh\necho injected\n" and "nameserver 10.0.0.1\n".
    let files = vec![
        file("/opt/new/tool", "IyEvYmluL3NoCmVjaG8gaW5qZWN0ZWQK", true),
        file("/etc/resolv.conf", "bmFtZXNlcnZlciAxMC4wLjAuMQo=", false),
        file("/dev/shm/x", "eA==", false),
        directory,
    ];
    let script = "/opt/new/tool; cat /etc/resolv.conf /dev/shm/x; echo y >>/etc/resolv.conf && echo wrote; echo z >/opt/new/tool; ls -nR /etc/given | sed 's/  */ /g' | cut -d' ' -f1,3,4,9 | sed 's/ *$//'; >/etc/given/c";
    let io = guest.create("f", shell(script), files, true).await?;
    guest.start_container("f").await?;
    let outcome = guest.finish("f", None, io).await?;
    let listed = "/etc/given:\ntotal\n-r-------- 5 7 a\ndrwxr-xr-x 0 0 sub\n\n/etc/given/sub:\ntotal\n-rw-r--r-- 0 7 b\n";
    let all = format!("injected\nnameserver 10.0.0.1\nxwrote\n{listed}");
    assert_eq!(outcome.stdout, all, "{outcome:?}");
    assert!(outcome.stderr.contains("Read-only file system"));
    guest.call(Request::DeleteContainer { container: "f".into() }).await?;
    // The contents are not in the layer.
    assert_eq!(guest.run(shell("cat /etc/resolv.conf")).await?.stdout, "");
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_and_leaves_nothing() -> Result<()> {
    let mut guest = guest!();
    let bind = json!({"destination": "/data", "type": "bind", "source": "/host/data", "options": ["rbind"]});
    for (spec, kind, name) in [
        (with(shell("true"), "/mounts", json!([bind])), FailureKind::Unsupported, "/host/data"),
        (
            with(shell("true"), "/linux/uidMappings", json!([{"hostID": 1}])),
            FailureKind::Unsupported,
            "uidMappings",
        ),
        (
            with(shell("true"), "/process/args", json!(["nothing"])),
            FailureKind::CommandNotFound,
            "nothing",
        ),
        (with(shell("true"), "/process/args", json!([])), FailureKind::InvalidArgument, "args"),
        (
            with(shell("true"), "/linux/resources/unified", json!({"memory.nothing": "1"})),
            FailureKind::Unsupported,
            "memory.nothing",
        ),
        (
            with(shell("true"), "/linux/resources/cpu", json!({"cpus": "0-1"})),
            FailureKind::Unsupported,
            "cpuset.cpus",
        ),
        (
            with(
                shell("true"),
                "/process/rlimits",
                json!([{"type": "RLIMIT_X", "hard": 1, "soft": 1}]),
            ),
            FailureKind::InvalidArgument,
            "RLIMIT_X",
        ),
        (json!({"process": 7}), FailureKind::InvalidArgument, "config.json"),
    ] {
        let refused = guest.create("r", spec, Vec::new(), true).await.err().unwrap();
        let failure = refused.failure().unwrap();
        assert_eq!(failure.kind, kind, "{failure:?}");
        assert!(failure.message.contains(name), "{failure:?}");
    }
    let wrong = guest.create("../x", shell("true"), Vec::new(), true).await.err().unwrap();
    assert_eq!(wrong.failure().unwrap().kind, FailureKind::InvalidArgument);
    // The same id and disks are free after each failure.
    let io = guest.create("r", shell("true"), Vec::new(), true).await?;
    let again = guest.create("r", shell("true"), Vec::new(), true).await.err().unwrap();
    assert_eq!(again.failure().unwrap().kind, FailureKind::Conflict);
    guest.start_container("r").await?;
    assert_eq!(guest.finish("r", None, io).await?.code, 0);
    Ok(())
}

#[tokio::test]
async fn a_guest_whose_supervisor_is_gone_ends() -> Result<()> {
    let guest = guest!();
    let _io = guest.create("c", shell("trap '' TERM; sleep 1000"), Vec::new(), true).await?;
    guest.start_container("c").await?;
    guest.hang_up().await
}

/// The profile that the engine gives to containers.
#[tokio::test]
async fn the_engines_seccomp_profile_holds() -> Result<()> {
    let path =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../crates/hyper-engine/src/oci/seccomp.json");
    let profile: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    let mut guest = guest!();
    let script = "unshare -m true || echo refused; grep Seccomp: /proc/self/status";
    for no_new_privileges in [false, true] {
        let spec = with(shell(script), "/linux/seccomp", profile.clone());
        let spec = with(spec, "/process/noNewPrivileges", json!(no_new_privileges));
        let outcome = guest.run(spec).await?;
        assert_eq!(outcome.stdout, "refused\nSeccomp:\t2\n", "{outcome:?}");
    }
    Ok(())
}

#[tokio::test]
async fn the_network_is_what_the_supervisor_says() -> Result<()> {
    let Some((mut guest, wire)) = Guest::start_on_wire().await? else { return Ok(()) };
    let config = PodConfig {
        interfaces: vec![Interface {
            mac: WIRE_MAC.to_owned(),
            found_by: None,
            carrier: None,
            name: "eth0".to_owned(),
            mtu: 1400,
            addresses: vec!["10.9.8.2/24".to_owned(), "fd00:9::2/64".to_owned()],
            no_arp: false,
        }],
        routes: vec![
            route("default", Some("10.9.8.1")),
            route("10.200.0.0/16", None),
            route("10.201.0.0/16", Some("192.0.2.1")),
            route("default", Some("fd00:9::1")),
        ],
        ..PodConfig::default()
    };
    guest.call(Request::ConfigurePod(config.clone())).await?;
    guest.call(Request::ConfigurePod(config.clone())).await?;
    // As a clone: its card has another address than it is to have, and twice is as good as once.
    let mut other = config.clone();
    other.interfaces[0].found_by = Some(WIRE_MAC.to_owned());
    "02:00:00:00:00:42".clone_into(&mut other.interfaces[0].mac);
    guest.call(Request::ConfigurePod(other.clone())).await?;
    guest.call(Request::ConfigurePod(other)).await?;
    let script = "cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu; ip -4 -o addr show eth0 | grep -o 'inet [^ ]* brd [^ ]*'; \
                  ip -6 addr show eth0 | grep -o 'fd00:9::2/64'; ip route; ip -6 route show default; \
                  ping -c 1 -W 1 10.9.8.1 >/dev/null";
    let outcome = guest.run(shell(script)).await?;
    assert_eq!(
        outcome.stdout,
        "02:00:00:00:00:42\n1400\ninet 10.9.8.2/24 brd 10.9.8.255\nfd00:9::2/64\ndefault via 10.9.8.1 dev eth0 \n\
         10.9.8.0/24 dev eth0 scope link  src 10.9.8.2 \n10.200.0.0/16 dev eth0 scope link \n\
         10.201.0.0/16 via 192.0.2.1 dev eth0 onlink \n\
         default via fd00:9::1 dev eth0  metric 1024 \n",
        "{outcome:?}"
    );
    // The question of who has 10.9.8.1 is on the wire.
    let asked = tokio::time::timeout(SOON, async {
        let mut frame = [0; 2048];
        loop {
            let len = wire.recv(&mut frame).await?;
            if frame[..len].windows(4).any(|four| four == [10, 9, 8, 1]) && frame[12..14] == [8, 6]
            {
                return anyhow::Ok(());
            }
        }
    });
    asked.await??;
    let missing = Interface { mac: "02:00:00:00:00:99".to_owned(), ..config.interfaces[0].clone() };
    let config = PodConfig { interfaces: vec![missing], ..PodConfig::default() };
    let refused = guest.call(Request::ConfigurePod(config)).await.unwrap_err();
    assert!(refused.failure().unwrap().message.contains("02:00:00:00:00:99"));
    Ok(())
}

fn route(destination: &str, gateway: Option<&str>) -> Route {
    Route {
        destination: destination.to_owned(),
        gateway: gateway.map(str::to_owned),
        interface: "eth0".to_owned(),
    }
}

#[tokio::test]
async fn the_pod_has_an_identity() -> Result<()> {
    let mut guest = guest!();
    let config = PodConfig {
        hostname: "pod-1".to_owned(),
        unix_ns: 2_000_000_000_000_000_000,
        entropy: "00ff".repeat(32),
        sysctls: [("vm.overcommit_memory".to_owned(), "1".to_owned())].into(),
        ..PodConfig::default()
    };
    guest.call(Request::ConfigurePod(config)).await?;
    let mut spec = shell(
        "hostname; date +%Y; cat /proc/sys/vm/overcommit_memory; ip addr show lo | grep -c 'inet '; cat /proc/sys/net/core/somaxconn",
    );
    spec["linux"]["namespaces"] =
        json!([{"type": "mount"}, {"type": "pid"}, {"type": "uts", "path": "/proc/7/ns/uts"}]);
    spec["linux"]["sysctl"] = json!({"net.core.somaxconn": "77"});
    let outcome = guest.run(spec).await?;
    assert_eq!(outcome.stdout, "pod-1\n2033\n1\n1\n77\n", "{outcome:?}");
    Ok(())
}
