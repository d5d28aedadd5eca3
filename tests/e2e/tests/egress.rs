//! What pods may reach: a host with an internet behind it, in namespaces of the test's own.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hyper_e2e::{Engine, Outside, eventually};

const WAIT: Duration = Duration::from_secs(20);
const PUBLIC: &str = "8.8.4.2";
const PRIVATE: &str = "10.77.0.2";

/// The internet and a private network beyond the host, with a web server.
fn beyond(engine: &Engine) -> Outside {
    let here = ["8.8.4.1/24", "10.77.0.1/24"];
    let there = ["8.8.4.2/24", "8.8.4.3/24", "10.77.0.2/24"];
    Outside::of(engine, "out", &here, &there, "outside")
}

/// Whether a container gets the page at `host`.
fn reaches(engine: &Engine, container: &str, host: &str) -> bool {
    let script = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {host} 80");
    engine.docker(&["exec", container, "sh", "-c", &script]).text().contains("outside")
}

fn start(engine: &Engine, name: &str, flags: &[&str]) {
    let mut words = vec!["run", "-d", "--name", name];
    words.extend(flags);
    words.extend(["busybox", "sh", "-c", "echo pod >/index.html; exec httpd -f -p 80 -h /"]);
    engine.hyper(&words).succeeded();
}

#[test]
fn policies_judge_what_is_behind_a_service() {
    let engine = Engine::apart();
    let _outside = beyond(&engine);
    engine.hyper(&["pod", "create", "--egress", "public", "sly"]).succeeded();
    for (service, backend) in [("10.254.0.1:80", PUBLIC), ("8.8.4.77:80", PRIVATE)] {
        let backend = format!("{backend}:80");
        engine.hyper(&["pod", "service", "add", "sly", service, &backend]).succeeded();
    }
    let args = ["run", "-d", "--pod", "sly", "--name", "asks", "busybox", "sleep", "600"];
    engine.hyper(&args).succeeded();
    eventually("a service whose backend is allowed", WAIT, || {
        reaches(&engine, "asks", "10.254.0.1")
    });
    assert!(!reaches(&engine, "asks", "8.8.4.77"), "an allowed name for what is not allowed");
    // Networks are apart, by whatever name.
    engine.hyper(&["network", "create", "other"]).succeeded();
    start(&engine, "apart", &["--network", "other"]);
    let template = "{{.NetworkSettings.Networks.other.IPAddress}}";
    let backend = format!("{}:80", engine.inspect("apart", template));
    engine.hyper(&["pod", "create", "all"]).succeeded();
    let args = ["run", "-d", "--pod", "all", "--name", "wants", "busybox", "sleep", "600"];
    engine.hyper(&args).succeeded();
    engine.hyper(&["pod", "service", "add", "all", "10.254.0.9:80", &backend]).succeeded();
    let ask = "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 10.254.0.9 80";
    let got = engine.hyper(&["exec", "wants", "sh", "-c", ask]).text();
    assert!(!got.contains("pod"), "a service leads into another network: {got}");
}

#[test]
fn pods_reach_what_their_policies_let_them() {
    let engine = Engine::apart();
    let _outside = beyond(&engine);
    start(&engine, "free", &[]);
    eventually("the way out", WAIT, || reaches(&engine, "free", PUBLIC));
    assert!(reaches(&engine, "free", PRIVATE));
    // The host itself, by its address on the way.
    let mut here = Command::new("ip");
    let page = tempfile::tempdir().expect("directory");
    std::fs::write(page.path().join("index.html"), "outside").expect("page");
    here.args(["netns", "exec", engine.namespace().expect("namespace"), "busybox", "httpd"]);
    let mut here = here.args(["-f", "-p", "80", "-h"]).arg(page.path()).spawn().expect("httpd");
    eventually("the host's server", WAIT, || reaches(&engine, "free", "10.77.0.1"));

    for (name, policy, public, private) in [
        ("some", "public", true, false),
        ("nobody", "none", false, false),
        ("listed", "none,allow=10.77.0.0/24:80/tcp", false, true),
        ("ported", "none,allow=10.77.0.0/24:81", false, false),
        ("barred", "all,deny=8.8.4.2", false, true),
        ("both", "public,allow=10.77.0.2,deny=10.77.0.0/16", true, false),
    ] {
        for runtime in ["uml", "qemu"] {
            let name = format!("{name}-{runtime}");
            start(&engine, &name, &["--runtime", runtime, "--egress", policy, "-p", "8099:80"]);
            let seen = [PUBLIC, PRIVATE].map(|host| reaches(&engine, &name, host));
            assert_eq!(seen, [public, private], "{name}: {policy}");
            if policy == "public" {
                assert!(!reaches(&engine, &name, "10.77.0.1"), "{name} reaches the host");
            }
            // Who asks it is answered, whatever it may ask itself.
            eventually("its published port", WAIT, || {
                engine.beside(&["curl", "-s", "-m", "2", "http://127.0.0.1:8099/"]).text() == "pod"
            });
            let shown = engine.docker(&["network", "inspect", "bridge"]).succeeded().text();
            let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
            let members = engine.hyper(&["network", "inspect", "bridge"]).succeeded().text();
            let members: serde_json::Value = serde_json::from_str(&members).expect("JSON");
            assert_eq!(shown[0]["Name"], members[0]["Name"]);
            let blocked = &members[0]["Containers"][engine.inspect(&name, "{{.Id}}")]["Hyper"];
            assert!(blocked["Egress"][0].is_string(), "{blocked}");
            let packets = blocked["Blocked"]["Packets"].as_u64();
            assert_eq!(
                packets.is_some_and(|packets| packets > 0),
                !(public && private),
                "{blocked}"
            );
            engine.docker(&["rm", "-f", &name]).succeeded();
            if runtime == "uml" && policy != "public" {
                // The other hypervisor's guests are held by the same rules: one policy shows it.
                break;
            }
        }
    }
    let _ = here.kill();
    let _ = here.wait();
}

#[test]
fn a_networks_policy_holds_for_all_of_it_and_over_a_restart_of_hyperd() {
    let mut engine = Engine::apart();
    let _outside = beyond(&engine);
    engine.hyper(&["network", "create", "--egress", "public", "walled"]).succeeded();
    let create = ["network", "create", "-o", "io.hyper.egress=sometimes", "odd"];
    engine.docker(&create).says(&["io.hyper.egress=sometimes", "`sometimes`"]);
    engine
        .docker(&[
            "run",
            "--rm",
            "--annotation",
            "io.hyper.egress=none,allow=*.org",
            "busybox",
            "true",
        ])
        .exited(125)
        .says(&["*.org", "too wide"]);
    engine
        .docker(&[
            "run",
            "--rm",
            "--runtime",
            "runc",
            "--annotation",
            "io.hyper.egress=none",
            "busybox",
            "true",
        ])
        .exited(125)
        .says(&["egress policy", "runc"]);
    // Nor does one get into a network with a policy, at once or later.
    engine
        .docker(&["run", "--rm", "--runtime", "runc", "--network", "walled", "busybox", "true"])
        .exited(125)
        .says(&["egress policy `public` of network walled", "runc"]);
    let create = ["create", "--name", "sneaky", "--runtime", "runc", "busybox", "true"];
    engine.docker(&create).succeeded();
    engine.docker(&["network", "connect", "walled", "sneaky"]);
    engine.docker(&["start", "-a", "sneaky"]).says(&["egress policy `public` of network walled"]);
    let run = ["run", "-d", "--name", "slow", "--runtime", "runc", "busybox", "sleep", "600"];
    engine.docker(&run).succeeded();
    let connect = engine.docker(&["network", "connect", "walled", "slow"]);
    connect.exited(1).says(&["egress policy `public` of network walled", "runc"]);
    engine.docker(&["rm", "-f", "sneaky", "slow"]).succeeded();
    start(&engine, "member", &["--network", "walled"]);
    // Neighbours of a network reach each other: that is what it is for.
    start(&engine, "friend", &["--network", "walled"]);
    let friend = engine.inspect("friend", "{{.NetworkSettings.Networks.walled.IPAddress}}");
    let script = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {friend} 80");
    eventually("its neighbour", WAIT, || {
        engine.docker(&["exec", "member", "sh", "-c", &script]).text().contains("pod")
    });
    assert!(reaches(&engine, "member", PUBLIC) && !reaches(&engine, "member", PRIVATE));
    // A pod has one for all its containers.
    engine.hyper(&["pod", "create", "--egress", "none", "shut"]).succeeded();
    start(&engine, "inner", &["--pod", "shut"]);
    assert!(!reaches(&engine, "inner", PUBLIC));
    let own = ["run", "--rm", "--pod", "shut", "--egress", "all", "busybox", "true"];
    engine.hyper(&own).exited(125).says(&["give the policy to the pod"]);
    // It is changed while the pod runs, and stays so when hyperd dies.
    let update = |policy: &str| engine.hyper(&["pod", "update", "--egress", policy, "shut"]);
    update("public").succeeded();
    assert!(reaches(&engine, "inner", PUBLIC) && !reaches(&engine, "inner", PRIVATE));
    update("sometimes").exited(1).says(&["sometimes"]);
    update("none,allow=10.77.0.2").succeeded();
    engine.kill_daemon();
    engine.restart();
    assert!(!reaches(&engine, "inner", PUBLIC) && reaches(&engine, "inner", PRIVATE));
    engine.hyper(&["pod", "rm", "-f", "shut"]).succeeded();
    assert!(reaches(&engine, "member", PUBLIC) && !reaches(&engine, "member", PRIVATE));
    engine.docker(&["rm", "-f", "member", "friend"]).succeeded();
    let rules = engine.beside(&["nft", "list", "ruleset"]).succeeded().text();
    assert!(!rules.contains("egress-"), "{rules}");
}

#[test]
fn a_pods_link_local_address_is_no_way_around_its_policy() {
    let engine = Engine::apart();
    for (name, subnet, flags) in
        [("bare", "fd00:77::", &[][..]), ("walled", "fd00:78::", &["--egress", "public"])]
    {
        let net = format!("{subnet}/64");
        engine.hyper(&["network", "create", "--ipv6", "--subnet", &net, name]).succeeded();
        start(&engine, name, &[&["--network", name][..], flags].concat());
        let script = format!(
            "dev=$(ip -6 -o addr show to {subnet}1 | cut -d' ' -f2); \
             ip -6 -o addr show dev $dev scope link | sed 's/.*inet6 //; s,/.*,,'"
        );
        let host = engine.beside(&["sh", "-c", &script]).succeeded().text();
        let hears = |address: &str| {
            let ping = ["exec", name, "ping", "-6", "-c", "1", "-W", "2", "-I", "eth0", address];
            engine.docker(&ping).text().contains("1 packets received")
        };
        if name == "bare" {
            eventually("the host, without a policy", WAIT, || hears(host.trim()));
            continue;
        }
        // Its IPv6 is up, and its neighbours are found.
        start(&engine, "friend", &["--network", name]);
        let friend = "{{.NetworkSettings.Networks.walled.GlobalIPv6Address}}";
        let friend = engine.inspect("friend", friend);
        eventually("a neighbour", WAIT, || hears(&friend));
        assert!(!hears(host.trim()), "the host is reached at {host}");
        let seen = engine.hyper(&["network", "inspect", name]).succeeded().text();
        let seen: serde_json::Value = serde_json::from_str(&seen).expect("JSON");
        let member = &seen[0]["Containers"][engine.inspect(name, "{{.Id}}")]["Hyper"];
        let packets = member["Blocked"]["Packets"].as_u64();
        assert!(packets.is_some_and(|packets| packets > 0), "{seen}");
    }
}

/// A DNS server outside, at [`PRIVATE`]; ended when dropped.
struct Names(Child);

impl Names {
    fn at(outside: &Outside) -> Self {
        let mut server = outside.command("dnsmasq");
        server.args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--user=root",
        ]);
        server.args(["--pid-file", "--bind-interfaces", "--listen-address", PRIVATE]);
        for (name, address) in [
            ("allowed.example", PUBLIC),
            ("wild.example", "8.8.4.3"),
            ("other.example", "8.8.4.3"),
            ("evil.example", PRIVATE),
        ] {
            server.arg(format!("--address=/{name}/{address}"));
        }
        Self(server.stdin(Stdio::null()).spawn().expect("dnsmasq"))
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn hosts_are_reached_by_the_names_that_a_policy_allows() {
    let mut engine = Engine::apart();
    let outside = beyond(&engine);
    let _names = Names::at(&outside);
    let policy = "none,allow=allowed.example:80,allow=*.wild.example,allow=evil.example";
    for runtime in ["uml", "qemu"] {
        let flags = ["--runtime", runtime, "--dns", PRIVATE, "--egress", policy];
        start(&engine, "caged", &flags);
        assert!(!reaches(&engine, "caged", PUBLIC), "{runtime}: reached before its name was asked");
        eventually("a host by its name", WAIT, || reaches(&engine, "caged", "allowed.example"));
        assert!(reaches(&engine, "caged", PUBLIC), "{runtime}");
        // Another port of it, and what no allowed name was answered with.
        let script = format!("nc -w 2 {PUBLIC} 53 </dev/null && echo reached");
        let said = engine.docker(&["exec", "caged", "sh", "-c", &script]).text();
        assert!(!said.contains("reached"), "{runtime}: {said}");
        assert!(!reaches(&engine, "caged", "8.8.4.3"), "{runtime}");
        let unknown = engine.docker(&["exec", "caged", "nslookup", "other.example"]).text();
        assert!(!unknown.contains("8.8.4.3"), "{runtime}: {unknown}");
        // The owner of an allowed name does not open what is private.
        let told = engine.docker(&["exec", "caged", "nslookup", "evil.example"]).text();
        assert!(told.contains(PRIVATE), "{runtime}: {told}");
        assert!(!reaches(&engine, "caged", "evil.example"), "{runtime}");
        // Other rules come and go: what is open stays so.
        engine.docker(&["run", "--rm", "-p", "8098:80", "busybox", "true"]).succeeded();
        assert!(reaches(&engine, "caged", PUBLIC), "{runtime}: lost with another pod's rules");
        engine.kill_daemon();
        engine.restart();
        assert!(reaches(&engine, "caged", PUBLIC), "{runtime}: lost with hyperd");
        assert!(reaches(&engine, "caged", "a.wild.example"), "{runtime}");
        engine.docker(&["rm", "-f", "caged"]).succeeded();
        let files = std::fs::read_dir(engine.dir().join("exec/networks")).expect("directory");
        let files: Vec<_> = files.flatten().map(|entry| entry.file_name()).collect();
        let left = |name: &&std::ffi::OsString| name.to_string_lossy().starts_with("pod-");
        assert_eq!(files.iter().find(left), None, "{runtime}");
    }
}
