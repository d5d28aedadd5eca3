//! Networks as users have them: addresses, ports, names; and that nothing of them is left behind.
//! hyperd runs in a network namespace of its own, so that the machine has none of it.

use std::process::Stdio;
use std::time::{Duration, Instant};

use hyper_e2e::{Alone, Engine, Host, eventually, run, runtimes};

/// A container that serves `text` on port 80.
fn serve(engine: &Engine, name: &str, text: &str, flags: &[&str]) {
    let script = format!("mkdir /w; echo {text} > /w/index.html; exec httpd -f -p 80 -h /w");
    let mut all = vec!["run", "-d", "--name", name];
    all.extend(flags);
    all.extend(["busybox", "sh", "-c", &script]);
    engine.docker(&all).succeeded();
}

/// Fetches from where hyperd is.
fn fetched(engine: &Engine, at: &str) -> String {
    engine.beside(&["curl", "-s", "-m", "5", at]).text()
}

/// Fetches from inside a container. Not by wget: a static one looks for libraries.
fn asked(engine: &Engine, container: &str, host: &str, port: &str) -> String {
    let script = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {host} {port}");
    engine.docker(&["exec", container, "sh", "-c", &script]).text()
}

/// Links, rules and namespaces of hyperd.
fn traces(engine: &Engine) -> String {
    let links = engine.beside(&["ip", "-br", "link"]).succeeded().text();
    let rules = engine.beside(&["nft", "list", "ruleset"]).succeeded().text();
    let directory = engine.dir().join("exec/netns");
    let namespaces = std::fs::read_dir(directory).map_or(0, Iterator::count);
    let links: Vec<&str> = links.lines().filter(|line| line.starts_with("hv")).collect();
    let ports: Vec<&str> = rules.lines().filter(|line| line.contains("dnat ip")).collect();
    format!("links {links:?} ports {ports:?} namespaces {namespaces}")
}

#[test]
fn a_network_may_have_a_name_of_one_letter() {
    let engine = Engine::apart();
    engine.docker(&["network", "create", "n"]).succeeded();
    engine.docker(&["run", "--rm", "--network", "n", "busybox", "true"]).succeeded();
    engine.docker(&["network", "rm", "n"]).succeeded();
    engine.docker(&["network", "create", "-n"]).exited(125);
}

#[test]
fn a_published_port_is_there_for_everyone_and_gone_with_its_pod() {
    let engine = Engine::apart();
    for runtime in runtimes() {
        let flags = ["--runtime", runtime, "-p", "8080:80", "-p", "127.0.0.1::80"];
        serve(&engine, "web", runtime, &flags);
        let ip = engine.inspect("web", "{{.NetworkSettings.IPAddress}}");
        let gateway = engine.inspect("web", "{{.NetworkSettings.Gateway}}");
        eventually("httpd serves", Duration::from_secs(20), || {
            fetched(&engine, &format!("http://{ip}/")) == runtime
        });
        for at in ["127.0.0.1:8080", &format!("{gateway}:8080"), "[::1]:8080"] {
            assert_eq!(fetched(&engine, &format!("http://{at}/")), runtime, "{at}");
        }
        let ports = engine.docker(&["port", "web", "80"]).succeeded().text();
        let local = ports.lines().find(|line| line.starts_with("127.0.0.1:")).expect("a port");
        assert_eq!(fetched(&engine, &format!("http://{local}/")), runtime);
        let listed = engine.docker(&["ps", "--format", "{{.Ports}}"]).succeeded().text();
        assert!(listed.contains("0.0.0.0:8080->80/tcp"), "{listed}");

        engine.docker(&["run", "-d", "--name", "other", "busybox", "sleep", "600"]).succeeded();
        for (host, port) in [(ip.as_str(), "80"), (&gateway, "8080")] {
            let said = asked(&engine, "other", host, port);
            assert!(said.contains("200 OK") && said.contains(runtime), "{host}: {said}");
        }
        let taken = ["run", "--rm", "-p", "8080:1", "busybox", "true"];
        engine.docker(&taken).exited(125).says(&["8080", "port is already allocated"]);
        engine.docker(&["rm", "-f", "web", "other"]).succeeded();
        assert_eq!(traces(&engine), "links [] ports [] namespaces 0");
        assert_eq!(fetched(&engine, "http://127.0.0.1:8080/"), "");
    }
}

/// Compose, which stops a container and starts its successor, was told now and then that the port is
/// taken: it was kept for as long as somebody still read the output.
#[test]
fn a_stopped_containers_port_is_free_whoever_still_reads_its_output() {
    let engine = Engine::apart();
    let publish = ["-p", "8080:80", "busybox", "sh", "-c"];
    for runtime in runtimes() {
        let run = [&["run", "-d", "--name", "old", "--runtime", runtime][..], &publish].concat();
        engine.docker(&[&run[..], &["exec yes"]].concat()).succeeded();
        let mut reader = engine.docker_command(&["attach", "old"]);
        let mut reader = reader.stdout(Stdio::piped()).spawn().expect("docker");
        std::thread::sleep(Duration::from_secs(1));
        engine.docker(&["stop", "-t", "0", "old"]).succeeded();
        let run = [&["run", "--rm", "--runtime", runtime][..], &publish].concat();
        engine.docker(&[&run[..], &["true"]].concat()).succeeded();
        let ports = engine.docker(&["port", "old"]).text();
        reader.kill().expect("kill");
        reader.wait().expect("reap");
        engine.docker(&["rm", "-f", "old"]).succeeded();
        assert_eq!(ports, "");
        assert_eq!(traces(&engine), "links [] ports [] namespaces 0");
    }
}

#[test]
fn containers_of_a_network_find_each_other_by_name_and_others_do_not() {
    let engine = Engine::apart();
    let make = ["network", "create", "--subnet", "172.30.9.0/24", "mine"];
    engine.docker(&make).succeeded();
    engine.hyper(&["network", "create", "--internal", "apart"]).succeeded();
    let flags = ["--network", "mine", "--ip", "172.30.9.77", "--network-alias", "al"];
    serve(&engine, "web", "hello", &flags);
    for runtime in runtimes() {
        let flags = ["--runtime", runtime, "--network", "mine", "--name", runtime];
        let run = [&["run", "-d"], &flags[..], &["busybox", "sleep", "600"]].concat();
        engine.docker(&run).succeeded();
        for name in ["web", "al", "WEB"] {
            let found = engine.docker(&["exec", runtime, "nslookup", name]).text();
            assert!(found.contains("172.30.9.77"), "{runtime} {name}: {found}");
        }
        let unknown = engine.docker(&["exec", runtime, "nslookup", "nobody"]).text();
        assert!(!unknown.contains("172.30.9"), "{unknown}");
        let said = asked(&engine, runtime, "172.30.9.77", "80");
        assert!(said.contains("hello"), "{said}");
    }
    // Another network does not know the name, nor is there a way.
    let run = ["run", "-d", "--name", "far", "--network", "apart", "busybox", "sleep", "600"];
    engine.docker(&run).succeeded();
    let unknown = engine.docker(&["exec", "far", "nslookup", "web"]).text();
    assert!(!unknown.contains("172.30.9.77"), "{unknown}");
    assert!(!asked(&engine, "far", "172.30.9.77", "80").contains("hello"));
    engine.docker(&["network", "rm", "mine"]).exited(1).says(&["active endpoints"]);
    let shown = engine.docker(&["network", "inspect", "mine"]).succeeded().text();
    assert!(shown.contains("172.30.9.77/24") && shown.contains("\"web\""), "{shown}");
    engine.docker(&["rm", "-f", "web", "far", "uml", "qemu"]).succeeded();
    engine.docker(&["network", "rm", "mine", "apart"]).succeeded();
    let links = engine.beside(&["ip", "-br", "link"]).succeeded().text();
    assert!(!links.contains("hy-"), "{links}");
}

#[test]
fn kill_9_of_hyperd_leaves_live_pods_their_network_and_dead_ones_nothing() {
    let mut engine = Engine::apart();
    serve(&engine, "web", "still", &["-p", "8080:80"]);
    engine.docker(&["run", "-d", "--name", "short", "busybox", "sleep", "3"]).succeeded();
    let ip = engine.inspect("web", "{{.NetworkSettings.IPAddress}}");
    eventually("httpd serves", Duration::from_secs(20), || {
        fetched(&engine, "http://127.0.0.1:8080/") == "still"
    });
    engine.kill_daemon();
    assert_eq!(fetched(&engine, "http://127.0.0.1:8080/"), "still");
    std::thread::sleep(Duration::from_secs(4));
    engine.restart();
    assert_eq!(fetched(&engine, "http://127.0.0.1:8080/"), "still");
    assert_eq!(engine.inspect("web", "{{.NetworkSettings.IPAddress}}"), ip);
    // What ended while nobody looked is cleaned up beside the first requests.
    eventually("the dead pod's network is gone", Duration::from_secs(10), || {
        let found = traces(&engine);
        found.ends_with("namespaces 1") && found.matches("hv").count() == 1
    });
    let taken = ["run", "--rm", "-p", "8080:1", "busybox", "true"];
    engine.docker(&taken).exited(125).says(&["port is already allocated"]);
    // Its address is nobody else's.
    let mine = "ip -4 -o addr show eth0";
    let other = engine.docker(&["run", "--rm", "busybox", "sh", "-c", mine]).succeeded().text();
    assert!(!other.contains(&format!("{ip}/")), "{other}");
    engine.docker(&["rm", "-f", "web"]).succeeded();
    assert_eq!(traces(&engine), "links [] ports [] namespaces 0");
}

#[test]
fn many_runs_leave_nothing() {
    let engine = Engine::apart();
    for _ in 0..30 {
        engine.docker(&["run", "--rm", "--runtime", "uml", "busybox", "true"]).succeeded();
    }
    assert_eq!(traces(&engine), "links [] ports [] namespaces 0");
    let store = engine.docker(&["network", "inspect", "bridge"]).succeeded().text();
    assert!(store.contains("\"Containers\": {}"), "{store}");
}

#[test]
fn what_cannot_be_had_is_refused_by_name() {
    let engine = Engine::apart();
    for (flags, words) in [
        (&["--network", "host"][..], &["host", "network stack of its own"][..]),
        (&["--network", "nowhere"], &["nowhere", "not found"]),
        (&["--network", "bridge", "--ip", "172.17.0.9"], &["user defined networks"]),
        (&["--network", "mine", "--ip", "10.9.9.9"], &["10.9.9.9"]),
    ] {
        if flags.contains(&"mine") {
            engine.hyper(&["network", "create", "mine"]).succeeded();
        }
        let run = [&["run", "--rm"], flags, &["busybox", "true"]].concat();
        engine.docker(&run).exited(125).says(words);
    }
    engine.docker(&["network", "create", "-d", "macvlan", "mv"]).exited(1).says(&["macvlan"]);
    engine.docker(&["network", "rm", "bridge"]).exited(1).says(&["pre-defined"]);
    let none = ["run", "--rm", "--network", "none", "busybox", "ls", "/sys/class/net"];
    assert_eq!(engine.docker(&none).succeeded().text(), "lo");
}

#[test]
fn the_ports_of_a_pod_are_those_of_its_containers() {
    let engine = Engine::apart();
    engine.hyper(&["pod", "create", "shop"]).succeeded();
    let script = "mkdir -p /w; echo page > /w/index.html; exec httpd -f -p 80 -h /w";
    let create =
        ["create", "--pod", "shop", "--name", "web", "-p", "8088:80", "busybox", "sh", "-c"];
    engine.hyper(&[&create[..], &[script]].concat()).succeeded();
    for _ in 0..2 {
        engine.hyper(&["pod", "start", "shop"]).succeeded();
        eventually("the port leads to it", Duration::from_secs(20), || {
            fetched(&engine, "http://127.0.0.1:8088/") == "page"
        });
        assert_eq!(
            engine.docker(&["port", "web", "80"]).text().lines().next(),
            Some("0.0.0.0:8088")
        );
        assert_ne!(engine.inspect("web", "{{.NetworkSettings.IPAddress}}"), "");
        let more = ["run", "--rm", "--pod", "shop", "-p", "8089:81", "busybox", "true"];
        let refused = engine.hyper(&more);
        assert!(refused.stderr.contains("its ports are published"), "{}", refused.stderr);
        engine.hyper(&["pod", "stop", "-t", "1", "shop"]).succeeded();
        assert_eq!(fetched(&engine, "http://127.0.0.1:8088/"), "");
    }
    engine.hyper(&["pod", "rm", "shop"]).succeeded();
    eventually("nothing is left", Duration::from_secs(5), || {
        traces(&engine) == "links [] ports [] namespaces 0"
    });
}

/// "write …/networks/ID.json: No such file or directory": two wrote it at once.
#[test]
fn containers_that_come_and_go_at_once_do_not_lose_their_network_s_names() {
    let engine = Engine::apart();
    engine.docker(&["network", "create", "mine"]).succeeded();
    serve(&engine, "stays", "here", &["--network", "mine"]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for network in ["bridge", "mine", "mine"] {
                    let run = ["run", "--rm", "--network", network, "busybox", "true"];
                    engine.docker(&run).succeeded();
                }
            });
        }
    });
    engine
        .docker(&["run", "-d", "--name", "last", "--network", "mine", "busybox", "sleep", "600"])
        .succeeded();
    eventually("it finds what was there before", Duration::from_secs(20), || {
        asked(&engine, "last", "stays", "80").contains("here")
    });
}

#[test]
fn what_a_pod_sends_and_receives_is_held_to_its_rates() {
    let engine = Engine::apart();
    // Two megabytes: 16 Mbit.
    let serve = "head -c 2000000 /dev/zero > /page; exec httpd -f -p 80 -h /";
    let address = |name: &str| engine.inspect(name, "{{.NetworkSettings.IPAddress}}");
    let run = |name: &str, flags: &[&str]| {
        let all = [&["run", "-d", "--name", name], flags, &["busybox", "sh", "-c", serve]].concat();
        engine.hyper(&all).succeeded();
        address(name)
    };
    let (peer, held) = (run("peer", &[]), run("held", &["--network-rate", "in=8m,out=4m"]));
    let fetch = |from: &str| {
        format!("printf 'GET /page HTTP/1.0\\r\\n\\r\\n' | nc -w 20 {from} 80 | wc -c | grep ^2000")
    };
    for (name, from) in [("held", &peer), ("peer", &held)] {
        eventually("the page is served", Duration::from_secs(20), || {
            engine.docker(&["exec", name, "sh", "-c", &fetch(from)]).code == 0
        });
    }
    let took = |name: &str, from: &str| {
        let begun = Instant::now();
        engine.hyper(&["exec", name, "sh", "-c", &fetch(from)]).succeeded();
        begun.elapsed().as_secs_f64()
    };
    let seconds = took("held", &peer);
    assert!((1.2..20.0).contains(&seconds), "in: {seconds} s");
    let seconds = took("peer", &held);
    assert!((2.5..30.0).contains(&seconds), "out: {seconds} s");
    // A pod's are changed while it runs.
    engine.hyper(&["pod", "create", "shop"]).succeeded();
    let join = ["run", "-d", "--pod", "shop", "--name", "free", "busybox", "sleep", "600"];
    engine.hyper(&join).succeeded();
    assert!(took("free", &peer) < 1.2);
    engine.hyper(&["pod", "update", "--network-rate", "in=8m", "shop"]).succeeded();
    let seconds = took("free", &peer);
    assert!((1.2..20.0).contains(&seconds), "changed: {seconds} s");
    engine.hyper(&["pod", "update", "--network-rate", "", "shop"]).succeeded();
    let seconds = took("free", &peer);
    assert!(seconds < 1.2, "freed: {seconds} s");
    for (arguments, words) in [
        (&["create", "--network-rate", "in=fast", "busybox"][..], "in=fast"),
        (&["create", "--pod", "shop", "--network-rate", "in=1m", "busybox"], "give it to the pod"),
        (&["pod", "update", "--network-rate", "9m", "shop"], "9m"),
    ] {
        let outcome = engine.hyper(arguments);
        assert_ne!(outcome.code, 0, "{arguments:?}");
        assert!(outcome.stderr.contains(words), "{arguments:?}: {}", outcome.stderr);
    }
}

#[test]
fn starts_that_fail_or_are_given_up_leave_no_supervisor() {
    let alone = Alone::wait();
    let engine = Engine::apart();
    serve(&engine, "owner", "first", &["-p", "8077:80"]);
    let marker = engine.dir().display().to_string();
    let before = Host::at_rest(&alone, &marker).processes.len();
    for round in 0..20 {
        let run = ["run", "--rm", "-p", "8077:80", "busybox", "true"];
        engine.docker(&run).exited(125).says(&["8077"]);
        // Removed while its supervisor is only just being started.
        engine.docker(&["create", "--name", "given-up", "busybox", "sleep", "60"]).succeeded();
        let mut client = engine.docker_command(&["start", "given-up"]);
        let mut client = client.stderr(Stdio::null()).spawn().expect("docker");
        std::thread::sleep(Duration::from_millis(10 + 2 * round));
        engine.hyper(&["rm", "-f", "given-up"]).succeeded();
        client.wait().expect("reap");
    }
    eventually("only the owner's processes", Duration::from_secs(10), || {
        Host::look(&marker).processes.len() == before
    });
}

/// Counters of a container's interface.
fn counted(engine: &Engine, container: &str, interface: &str) -> (u64, u64) {
    let url = format!("http://d/v1.47/containers/{container}/stats?stream=0&one-shot=1");
    let socket = engine.socket().display().to_string();
    let text = run("curl", &["-s", "--unix-socket", &socket, &url], Duration::from_secs(20)).text();
    let seen: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let networks = seen["networks"].as_object().expect("networks");
    assert!(!networks.contains_key("eth7"), "{networks:?}");
    let bytes = |key: &str| networks[interface][key].as_u64().expect("a number");
    (bytes("rx_bytes"), bytes("tx_bytes"))
}

/// The guest told them, and could tell anything.
#[test]
fn what_passed_a_pods_networks_is_counted_on_the_host() {
    let engine = Engine::apart();
    engine.docker(&["network", "create", "more"]).succeeded();
    let serve = "head -c 8000000 /dev/zero > /page; exec httpd -f -p 80 -h /";
    for runtime in runtimes() {
        for name in ["server", "client"] {
            let flags =
                ["run", "-d", "--name", name, "--runtime", runtime, "--cap-add", "NET_ADMIN"];
            engine.docker(&[&flags[..], &["busybox", "sh", "-c", serve]].concat()).succeeded();
        }
        let ip = |network: &str| {
            let path = format!("{{{{(index .NetworkSettings.Networks \"{network}\").IPAddress}}}}");
            engine.inspect("server", &path)
        };
        let fetch = |from: &str| {
            let script = "printf 'GET /page HTTP/1.0\\r\\n\\r\\n' | nc -w 20";
            let script = format!("{script} {from} 80 | wc -c | grep ^8000");
            engine.docker(&["exec", "client", "sh", "-c", &script]).code == 0
        };
        let near = ip("bridge");
        eventually("the page is served", Duration::from_secs(30), || fetch(&near));
        // What an interface of the guest's own makes of it is nobody's traffic.
        let flood = "ip link add eth7 type dummy && ip addr add 10.77.0.1/24 dev eth7 && \
                     ip link set eth7 up && head -c 3000000 /dev/zero | timeout 3 nc -u 10.77.0.2 9; true";
        engine.docker(&["exec", "client", "sh", "-c", flood]).succeeded();
        let before = [counted(&engine, "client", "eth0"), counted(&engine, "server", "eth0")];
        assert!(fetch(&near), "{runtime}");
        let after = [counted(&engine, "client", "eth0"), counted(&engine, "server", "eth0")];
        let page = 8_000_000..8_800_000;
        let small = 1..800_000;
        let passed = |at: usize| (after[at].0 - before[at].0, after[at].1 - before[at].1);
        for (name, (many, few)) in [("client", passed(0)), ("server", (passed(1).1, passed(1).0))] {
            assert!(page.contains(&many) && small.contains(&few), "{runtime} {name}: {many} {few}");
        }
        // One that came later has figures of its own.
        for name in ["server", "client"] {
            engine.docker(&["network", "connect", "more", name]).succeeded();
        }
        let begun = counted(&engine, "client", "eth0").0;
        let later = ip("more");
        eventually("it is served there", Duration::from_secs(30), || fetch(&later));
        let (there, here) =
            (counted(&engine, "client", "eth1"), counted(&engine, "client", "eth0"));
        assert!(page.contains(&there.0), "{runtime}: {there:?}");
        assert!(here.0 - begun < 800_000, "{runtime}: {begun} {here:?}");
        let shown = ["stats", "--no-stream", "--format", "{{.NetIO}}", "client"];
        let shown = engine.docker(&shown).succeeded().text();
        assert!(shown.contains("MB / "), "{runtime}: {shown}");
        engine.docker(&["rm", "-f", "server", "client"]).succeeded();
    }
}
