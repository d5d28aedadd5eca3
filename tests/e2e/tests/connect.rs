//! Containers that run come into networks and leave them.

use std::process::Stdio;
use std::time::Duration;

use hyper_e2e::{Engine, eventually, field, reaches, runtimes_and_runc, serve, shell};

fn address(engine: &Engine, container: &str, network: &str) -> String {
    field(engine, container, network, "IPAddress")
}

/// Networks of the pair `near` and `far`, each with a server of its name.
fn two_networks() -> Engine {
    let engine = Engine::apart();
    for (name, subnet) in [("near", "172.30.20.0/24"), ("far", "172.30.21.0/24")] {
        engine.docker(&["network", "create", "--ipv6", "--subnet", subnet, name]).succeeded();
        serve(&engine, &format!("in-{name}"), &["--network", name]);
    }
    engine
}

/// Nothing of containers is left on the host.
fn clean(engine: &Engine) {
    let names = engine.docker(&["ps", "-aq"]).succeeded().text();
    let mut remove = vec!["rm", "-f"];
    remove.extend(names.lines());
    engine.docker(&remove).succeeded();
    let links = engine.beside(&["ip", "-br", "link"]).succeeded().text();
    assert!(!links.contains("hv"), "{links}");
    let rules = engine.beside(&["nft", "list", "ruleset"]).succeeded().text();
    assert!(!rules.contains("dnat ip"), "{rules}");
}

#[test]
fn a_running_container_comes_into_a_network_and_leaves_it() {
    let mut engine = two_networks();
    for runtime in runtimes_and_runc() {
        serve(&engine, "guest", &["--runtime", runtime, "--network", "near", "-p", "8085:80"]);
        eventually("it serves", Duration::from_secs(30), || {
            reaches(&engine, "in-near", "guest", "guest")
        });
        assert!(reaches(&engine, "guest", "in-near", "in-near"), "{runtime}");
        assert!(!reaches(&engine, "guest", "in-far", "in-far"), "{runtime}");

        let join = ["network", "connect", "--alias", "visitor", "far", "guest"];
        engine.docker(&join).succeeded();
        assert!(reaches(&engine, "guest", "in-far", "in-far"), "{runtime}");
        assert!(reaches(&engine, "guest", "in-near", "in-near"), "{runtime}");
        assert!(reaches(&engine, "in-far", "visitor", "guest"), "{runtime}");
        assert!(!reaches(&engine, "in-near", "in-far", "in-far"), "the networks met: {runtime}");
        let there = address(&engine, "guest", "far");
        assert!(there.starts_with("172.30.21."), "{there}");
        let server =
            engine.inspect("in-far", "{{.NetworkSettings.Networks.far.GlobalIPv6Address}}");
        assert!(reaches(&engine, "guest", &server, "in-far"), "{runtime}: {server}");
        let shown = shell(&engine, "guest", "ip -4 addr show eth1");
        assert!(shown.contains(&format!("{there}/24")), "{shown}");
        engine.docker(&join).exited(1).says(&["already exists in network far"]);

        // The way out and the published port go on by the other network.
        engine.docker(&["network", "disconnect", "near", "guest"]).succeeded();
        assert!(!reaches(&engine, "guest", "172.30.20.2", "in-near"), "{runtime}");
        assert!(!reaches(&engine, "in-near", "guest", "guest"), "{runtime}");
        assert!(reaches(&engine, "guest", "in-far", "in-far"), "{runtime}");
        let route = shell(&engine, "guest", "ip route show default");
        assert!(route.contains("via 172.30.21.1 dev eth1"), "{runtime}: {route}");
        let port = || engine.beside(&["curl", "-s", "-m", "5", "http://127.0.0.1:8085/"]).text();
        assert_eq!(port(), "I am guest", "{runtime}");

        // Back, with the name and the address that it had.
        engine.docker(&["network", "connect", "near", "guest"]).succeeded();
        assert!(reaches(&engine, "guest", "in-near", "in-near"), "{runtime}");
        assert!(reaches(&engine, "in-near", "guest", "guest"), "{runtime}");
        let shown = shell(&engine, "guest", "ip -4 addr show eth0");
        assert!(shown.contains(&address(&engine, "guest", "near")), "{shown}");
        engine.kill_daemon();
        engine.restart();
        assert!(reaches(&engine, "guest", "in-far", "in-far"), "{runtime}");
        assert!(reaches(&engine, "in-near", "guest", "guest"), "{runtime}");
        engine.docker(&["rm", "-f", "guest"]).succeeded();
    }
    clean(&engine);
}

#[test]
fn the_hosts_file_of_a_running_container_follows_its_networks_and_keeps_what_is_not_ours() {
    let mut engine = two_networks();
    let directory = tempfile::tempdir().expect("directory");
    let own = directory.path().join("hosts");
    std::fs::write(&own, "10.6.6.6 given\n").expect("a file");
    for runtime in runtimes_and_runc() {
        let flags = ["--hostname", "box", "--domainname", "test", "--add-host", "db:10.0.0.9"];
        let flags = [&flags[..], &["--network", "near", "--runtime", runtime]].concat();
        serve(&engine, "guest", &flags);
        serve(&engine, "still", &[&flags[..], &["--read-only", "--tmpfs", "/w"]].concat());
        let bound = format!("{}:/etc/hosts:ro", own.display());
        serve(&engine, "bound", &[&flags[..], &["-v", &bound]].concat());
        let mut all = vec!["guest", "still"];
        if runtime != "runc" {
            let run = "run -d --name joined --network container:guest busybox sleep 600";
            engine.docker(&run.split(' ').collect::<Vec<_>>()).succeeded();
            all.push("joined");
        }
        shell(&engine, "guest", "echo '10.7.7.7 mine' >> /etc/hosts");
        let hosts = |engine: &Engine, name: &str| shell(engine, name, "cat /etc/hosts");
        let lines = |engine: &Engine, name: &str, network: &str| {
            let (of, called) = match name {
                "joined" => ("guest", "box"),
                name => (name, "box.test box"),
            };
            ["IPAddress", "GlobalIPv6Address"]
                .map(|one| format!("{}\t{called}\n", field(engine, of, network, one)))
        };
        let near = all.clone().into_iter().map(|name| (name, lines(&engine, name, "near")));
        let near: Vec<_> = near.collect();
        for name in ["guest", "still", "bound"] {
            engine.docker(&["network", "connect", "far", name]).succeeded();
        }
        for (name, near) in &near {
            let text = hosts(&engine, name) + "\n";
            let far = lines(&engine, name, "far");
            for line in near.iter().chain(&far) {
                assert_eq!(text.matches(line).count(), 1, "{runtime} {name}: {line} {text}");
            }
        }
        for name in ["guest", "still", "bound"] {
            engine.docker(&["network", "disconnect", "near", name]).succeeded();
        }
        for again in [false, true] {
            for (name, near) in &near {
                let text = hosts(&engine, name) + "\n";
                for line in lines(&engine, name, "far") {
                    assert_eq!(text.matches(&line).count(), 1, "{runtime} {name}: {text}");
                }
                assert!(!near.iter().any(|line| text.contains(line)), "{runtime} {name}: {text}");
                assert!(text.starts_with("127.0.0.1\tlocalhost\n"), "{runtime} {name}: {text}");
                assert_eq!(text.contains("10.0.0.9\tdb\n"), *name != "joined", "{text}");
                assert_eq!(text.contains("10.7.7.7 mine\n"), *name == "guest", "{text}");
            }
            assert_eq!(hosts(&engine, "bound"), "10.6.6.6 given", "{runtime}");
            if !again {
                engine.kill_daemon();
                engine.restart();
            }
        }
        // One that its user has made too large is left alone, and the connection stands.
        let fill = "cp /etc/hosts /w/kept; yes '# much' | head -c 1200000 >> /etc/hosts";
        shell(&engine, "guest", fill);
        engine.docker(&["network", "connect", "near", "guest"]).succeeded();
        assert!(reaches(&engine, "guest", "in-near", "in-near"), "{runtime}");
        let there = address(&engine, "guest", "near");
        let own = format!("grep -c '^{there}' /etc/hosts; cat /w/kept > /etc/hosts");
        assert_eq!(shell(&engine, "guest", &own), "0", "{runtime}");
        let log = engine.log();
        assert!(log.contains("has more than 1048576 bytes"), "{runtime}: {log}");
        // What was missed comes with the next change.
        engine.docker(&["network", "disconnect", "far", "guest"]).succeeded();
        let text = hosts(&engine, "guest");
        assert!(text.contains(&there) && !text.contains("172.30.21."), "{runtime}: {text}");
        for name in all.into_iter().rev().chain(["bound"]) {
            engine.docker(&["rm", "-f", name]).succeeded();
        }
    }
    clean(&engine);
}

#[test]
fn what_cannot_be_joined_is_refused_and_nothing_changes() {
    let engine = two_networks();
    let refused = |network: &str, container: &str, flags: &[&str], words: &[&str]| {
        let join = [&["network", "connect"], flags, &[network, container]].concat();
        engine.docker(&join).exited(1).says(words);
    };
    refused("nowhere", "in-near", &[], &["nowhere"]);
    refused("far", "in-near", &["--ip", "10.9.9.9"], &["no configured subnet", "172.30.21.0/24"]);
    let taken = address(&engine, "in-far", "far");
    refused("far", "in-near", &["--ip", &taken], &["Address already in use", &taken]);
    let alone = ["run", "-d", "--name", "alone", "--network", "none", "busybox", "sleep", "600"];
    engine.docker(&alone).succeeded();
    refused("far", "alone", &[], &["started without a network", "stop it"]);
    engine.docker(&["pause", "in-near"]).succeeded();
    refused("far", "in-near", &[], &["in-near is paused: unpause it"]);
    engine.docker(&["unpause", "in-near"]).succeeded();
    let links = shell(&engine, "in-near", "ip -o link | wc -l");
    assert_eq!(links, "2");
    assert_eq!(address(&engine, "in-near", "far"), "");
    engine.docker(&["network", "disconnect", "far", "in-near"]).exited(1).says(&["not connected"]);
    clean(&engine);
}

#[test]
fn kill_9_in_the_middle_of_connect_and_disconnect_leaves_the_container_where_its_spec_says() {
    let mut engine = two_networks();
    for round in 0..8 {
        let word = if round % 2 == 0 { "connect" } else { "disconnect" };
        let mut client = engine.docker_command(&["network", word, "far", "in-near"]);
        let mut client =
            client.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("docker");
        // A change takes some tens of milliseconds after the client is there.
        std::thread::sleep(Duration::from_millis(20 + 8 * round));
        engine.kill_daemon();
        client.wait().expect("reap");
        engine.restart();
        let there = address(&engine, "in-near", "far");
        let shown = shell(&engine, "in-near", "ip -4 -o addr");
        let inside = shown.contains("172.30.21.");
        assert_eq!(inside, !there.is_empty(), "{word}: inspect {there:?}, guest {shown}");
        assert_eq!(reaches(&engine, "in-near", "in-far", "in-far"), inside, "{word}: {shown}");
        let hosts = shell(&engine, "in-near", "cat /etc/hosts");
        assert_eq!(hosts.contains("172.30.21."), inside, "{word}: {hosts}");
        assert!(reaches(&engine, "in-near", "in-near", "in-near"), "{shown}");
        // To where the next round begins.
        let again = ["network", word, "far", "in-near"];
        if inside != (word == "connect") {
            engine.docker(&again).succeeded();
        }
    }
    clean(&engine);
}
