//! Containers that run come into networks and leave them.

use std::process::Stdio;
use std::time::Duration;

use hyper_e2e::{Engine, eventually, reaches, runtimes, serve};

fn address(engine: &Engine, container: &str, network: &str) -> String {
    let path = format!("{{{{with index .NetworkSettings.Networks \"{network}\"}}}}");
    engine.inspect(container, &format!("{path}{{{{.IPAddress}}}}{{{{end}}}}"))
}

fn shell(engine: &Engine, container: &str, script: &str) -> String {
    engine.docker(&["exec", container, "sh", "-c", script]).succeeded().text()
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
    let mut all = runtimes();
    all.push("runc");
    for runtime in all {
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
        assert!(reaches(&engine, "in-near", "in-near", "in-near"), "{shown}");
        // To where the next round begins.
        let again = ["network", word, "far", "in-near"];
        if inside != (word == "connect") {
            engine.docker(&again).succeeded();
        }
    }
    clean(&engine);
}
