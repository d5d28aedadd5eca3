//! Many pods on one network at once: each has an address and a name of its own, and nothing of them is left.
//! Some, so that it costs little; `HYPER_E2E_MANY=200` has as many as a host is to bear.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hyper_e2e::{Alone, Engine, Host, eventually, serve, shell};

/// Started by so many clients at once.
const CLIENTS: usize = 4;

fn count() -> usize {
    let wanted = std::env::var("HYPER_E2E_MANY").ok();
    wanted.map_or(16, |text| text.parse().expect("HYPER_E2E_MANY is a number"))
}

/// All that pods could leave: on the host, and where hyperd's network is.
fn taken(alone: &Alone, engine: &Engine) -> (Host, String, String) {
    let host = Host::at_rest(alone, &engine.dir().display().to_string());
    let links = engine.beside(&["ip", "-o", "-br", "link"]).succeeded().text();
    let rules = engine.beside(&["nft", "list", "ruleset"]).succeeded().text();
    (host, links, rules)
}

#[test]
fn many_pods_on_one_network_have_addresses_and_names_and_leave_nothing() {
    let alone = Alone::wait();
    let (engine, count) = (Engine::apart(), count());
    let make = ["network", "create", "--subnet", "10.77.0.0/16", "crowd"];
    engine.docker(&make).succeeded();
    // What the first pod of a network and of an image makes is there before it is counted.
    serve(&engine, "first", &["--network", "crowd", "--runtime", "uml"]);
    let before = taken(&alone, &engine);

    let begun = Instant::now();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= count {
                        return;
                    }
                    let name = format!("pod{at}");
                    serve(&engine, &name, &["--network", "crowd", "--runtime", "uml", "-P"]);
                }
            });
        }
    });
    let started = begun.elapsed();
    let names: Vec<String> = (0..count).map(|at| format!("pod{at}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let field = "{{.NetworkSettings.Networks.crowd.IPAddress}} {{.State.Running}}";
    let shown = engine.docker(&[&["inspect", "-f", field], &names[..]].concat()).succeeded().text();
    let addresses: BTreeSet<Ipv4Addr> = shown
        .lines()
        .map(|line| line.strip_suffix(" true").expect("it runs").parse().expect("an address"))
        .collect();
    assert_eq!(addresses.len(), count, "{shown}");
    assert!(addresses.iter().all(|ip| ip.octets()[..2] == [10, 77]), "{shown}");
    let gateway = "{{(index .IPAM.Config 0).Gateway}}";
    let gateway = engine.docker(&["network", "inspect", "-f", gateway, "crowd"]).succeeded().text();
    assert!(!addresses.contains(&gateway.parse().expect("an address")), "{gateway}");

    // Each is found by its name, by the first and, of all, by the last.
    let ask = "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5";
    let all = format!(
        "for at in $(seq 0 {}); do {ask} pod$at 80 | grep -q \"I am pod$at$\" || echo not pod$at; done",
        count - 1
    );
    let asked = Instant::now();
    assert_eq!(shell(&engine, "first", &all), "");
    let asked = asked.elapsed();
    let last = names.last().expect("some");
    assert!(shell(&engine, last, &format!("{ask} first 80")).contains("I am first"));

    let removed = Instant::now();
    engine.docker(&[&["rm", "-f"], &names[..]].concat()).succeeded();
    let removed = removed.elapsed();
    // The kernel takes links and namespaces apart one after the other.
    let mut after = taken(&alone, &engine);
    let settled = Instant::now();
    while after != before && settled.elapsed() < Duration::from_secs(60) {
        after = taken(&alone, &engine);
    }
    assert_eq!(after, before);
    eprintln!(
        "{count} pods: started in {started:.1?}, asked in {asked:.1?}, removed in {removed:.1?}, all of it gone {:.1?} later",
        settled.elapsed()
    );
    engine.docker(&["rm", "-f", "first"]).succeeded();
    eventually("the network goes", Duration::from_secs(10), || {
        engine.docker(&["network", "rm", "crowd"]).code == 0
    });
    let links = engine.beside(&["ip", "-o", "-br", "link"]).succeeded().text();
    assert!(!links.contains("hy-"), "{links}");
}
