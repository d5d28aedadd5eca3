//! Containers on the host's LAN behind its own hardware address: networks of the driver ipvlan. The LAN
//! is a link between hyperd's network namespace and another one, which is the machine at its other end.
//!
//! Hosts whose kernel has no ipvlan say so, and that is what is tested there; `scripts/test lab` runs
//! this on one that has it.

use std::time::Duration;

use hyper_e2e::{
    Engine, Outside, eventually, field, nothing_left, reaches, runtimes_and_runc, serve, shell,
};

const SOON: Duration = Duration::from_secs(60);
/// The machine outside, and beyond it one that only its router knows.
const ROUTER: &str = "10.94.0.1";
const BEYOND: &str = "10.92.0.1";
const ROUTER_IPV6: &str = "fd00:94::1";
/// The host's own address on the LAN.
const HOST: &str = "10.94.0.9";

fn lan(engine: &Engine) -> Outside {
    let (ipv4, ipv6) = (format!("{ROUTER}/24"), format!("{ROUTER_IPV6}/64"));
    let host = format!("{HOST}/24");
    let lan = Outside::of(engine, "lan0", &[&host], &[&ipv4, &ipv6], "I am outside");
    lan.run(&["ip", "addr", "add", &format!("{BEYOND}/32"), "dev", "lo"]).succeeded();
    lan
}

fn make(engine: &Engine, name: &str, flags: &str) {
    let words = format!("network create -d ipvlan -o parent=lan0 {flags} {name}");
    engine.docker(&words.split_whitespace().collect::<Vec<_>>()).succeeded();
}

/// Whether the host's kernel has ipvlan. If not, that a container is refused with a reason, and leaves
/// nothing.
fn can(engine: &Engine, network: &str) -> bool {
    let probe = "ip link add probe0 link lan0 type ipvlan && ip link del probe0";
    if engine.beside(&["sh", "-c", probe]).code == 0 {
        return true;
    }
    eprintln!("skipped: the host's kernel has no ipvlan");
    let run = ["run", "--rm", "--network", network, "busybox", "true"];
    engine.docker(&run).exited(125).says(&["has no ipvlan: load its module", network]);
    clean(engine);
    false
}

fn fetched(lan: &Outside, address: &str) -> String {
    lan.fetched(&format!("http://{address}/"), 3)
}

/// All containers go, and nothing of them and of networks without a bridge is on the host.
fn clean(engine: &Engine) {
    nothing_left(engine, "lan0");
}

#[test]
fn containers_are_on_the_lan_behind_the_hosts_hardware_address() {
    let mut engine = Engine::apart();
    let lan = lan(&engine);
    let flags = "--subnet 10.94.0.0/24 --gateway 10.94.0.1 --ip-range 10.94.0.128/25 --ipv6 \
                 --subnet fd00:94::/64 --gateway fd00:94::1";
    make(&engine, "lan", flags);
    make(&engine, "second", "--subnet 10.91.0.0/24");
    engine.docker(&["network", "create", "near"]).succeeded();
    if !can(&engine, "lan") {
        return;
    }
    let shown = engine.beside(&["ip", "-o", "link", "show", "lan0"]).succeeded().text();
    let own = shown.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
    let own = own.expect("its hardware address");
    serve(&engine, "peer", &["--network", "lan"]);
    for runtime in runtimes_and_runc() {
        let flags = ["--network", "lan", "--runtime", runtime, "--cap-add", "NET_ADMIN"];
        serve(&engine, "guest", &flags);
        let ip = field(&engine, "guest", "lan", "IPAddress");
        eventually("it is reached from the LAN", SOON, || fetched(&lan, &ip) == "I am guest");
        for host in [ROUTER, BEYOND, ROUTER_IPV6] {
            assert!(reaches(&engine, "guest", host, "outside"), "{runtime} {host}");
        }
        let ipv6 = format!("[{}]", field(&engine, "guest", "lan", "GlobalIPv6Address"));
        assert_eq!(fetched(&lan, &ipv6), "I am guest", "{runtime}");
        // Each other by name, though both have one hardware address.
        assert!(reaches(&engine, "guest", "peer", "peer"), "{runtime}");
        assert!(reaches(&engine, "peer", "guest", "guest"), "{runtime}");
        for name in ["guest", "peer"] {
            assert_eq!(shell(&engine, name, "cat /sys/class/net/eth0/address"), own, "{runtime}");
        }
        // Link-local addresses are made of the hardware address; nobody has another's all the same.
        let local = |name: &str| shell(&engine, name, "ip -6 -o addr show eth0 scope link");
        let (one, two) = (local("guest"), local("peer"));
        assert!(one.contains("fe80:") && !one.contains("dadfailed"), "{runtime}: {one}");
        assert_ne!(one, two, "{runtime}");
        assert!(!reaches(&engine, "guest", HOST, "guest"), "{runtime}");

        // A guest is nobody else; a process of this kernel with NET_ADMIN could be.
        if runtime != "runc" {
            shell(&engine, "guest", "ip addr add 10.94.0.77/24 dev eth0");
            assert!(!reaches(&engine, "guest", &format!("-s 10.94.0.77 {ROUTER}"), "outside"));
            assert_eq!(fetched(&lan, "10.94.0.77"), "", "{runtime}");
        }
        engine.kill_daemon();
        engine.restart();
        assert_eq!(fetched(&lan, &ip), "I am guest", "{runtime}");

        // A guest tells its cards apart by their hardware addresses.
        let second = engine.docker(&["network", "connect", "second", "guest"]);
        match runtime {
            "runc" => drop(second.succeeded()),
            _ => drop(second.exited(1).says(&["hardware address of eth0"])),
        }
        assert!(reaches(&engine, "guest", ROUTER, "outside"), "{runtime}");
        engine.docker(&["rm", "-f", "guest"]).succeeded();

        // In and out while it runs.
        serve(&engine, "guest", &["--runtime", runtime, "--network", "near"]);
        engine.docker(&["network", "connect", "--ip", "10.94.0.50", "lan", "guest"]).succeeded();
        eventually("it is on the LAN", SOON, || fetched(&lan, "10.94.0.50") == "I am guest");
        assert!(reaches(&engine, "guest", "peer", "peer"), "{runtime}");
        assert!(reaches(&engine, "peer", "guest", "guest"), "{runtime}");
        engine.docker(&["network", "disconnect", "lan", "guest"]).succeeded();
        assert_eq!(fetched(&lan, "10.94.0.50"), "", "{runtime}");
        engine.docker(&["rm", "-f", "guest"]).succeeded();
    }
    clean(&engine);
    engine.docker(&["network", "rm", "lan", "second"]).succeeded();
}

#[test]
fn the_host_routes_to_containers_of_mode_l3_and_nobody_is_asked_for() {
    let engine = Engine::apart();
    let lan = lan(&engine);
    lan.run(&["ip", "route", "add", "10.93.0.0/24", "via", HOST]).succeeded();
    make(&engine, "routed", "-o ipvlan_mode=l3 --subnet 10.93.0.0/24");
    if !can(&engine, "routed") {
        return;
    }
    serve(&engine, "peer", &["--network", "routed"]);
    for runtime in runtimes_and_runc() {
        let flags = ["--network", "routed", "--runtime", runtime, "--cap-add", "NET_ADMIN"];
        serve(&engine, "guest", &flags);
        let ip = field(&engine, "guest", "routed", "IPAddress");
        eventually("it is reached from the LAN", SOON, || fetched(&lan, &ip) == "I am guest");
        assert!(reaches(&engine, "guest", ROUTER, "outside"), "{runtime}");
        assert!(reaches(&engine, "guest", "peer", "peer"), "{runtime}");
        assert!(reaches(&engine, "peer", "guest", "guest"), "{runtime}");
        let shown = shell(&engine, "guest", "ip link show eth0");
        assert!(shown.contains("NOARP"), "{runtime}: {shown}");
        if runtime != "runc" {
            shell(&engine, "guest", "ip addr add 10.93.0.77/24 dev eth0");
            assert!(!reaches(&engine, "guest", &format!("-s 10.93.0.77 {ROUTER}"), "outside"));
        }
        engine.docker(&["rm", "-f", "guest"]).succeeded();
    }
    clean(&engine);
    engine.docker(&["network", "rm", "routed"]).succeeded();
}

#[test]
fn what_cannot_be_had_of_ipvlan_is_refused_by_name() {
    let engine = Engine::apart();
    let _lan = lan(&engine);
    make(&engine, "lan", "--subnet 10.94.0.0/24");
    let on = ["-d", "ipvlan", "-o", "parent=lan0"];
    for (flags, words) in [
        (&["-d", "ipvlan"][..], &["-o parent=INTERFACE", "ipvlan needs"][..]),
        (&["-d", "ipvlan", "-o", "parent=eth7"], &["eth7", "no interface of the host"]),
        (&["-d", "ipvlan", "-o", "parent=lo"], &["lo is no Ethernet interface", "ipvlan"]),
        (&[&on[..], &["-o", "ipvlan_mode=l3s"]].concat(), &["ipvlan_mode=l3s", "l2 and l3 are"]),
        (&[&on[..], &["-o", "ipvlan_mode=l3"]].concat(), &["is that of network lan"]),
        (&[&on[..], &["-o", "macvlan_mode=bridge"]].concat(), &["macvlan_mode", "ipvlan_mode"]),
        (&[&on[..], &["-o", "io.hyper.egress=none"]].concat(), &["io.hyper.egress", "bridge"]),
        (&["-d", "macvlan", "-o", "parent=lan0"], &["parent lan0 is that of network lan"]),
    ] {
        for client in [Engine::docker, Engine::hyper] {
            let create = [&["network", "create"], flags, &["no"]].concat();
            let outcome = client(&engine, &create);
            assert_ne!(outcome.code, 0, "{create:?}");
            outcome.says(words);
        }
    }
    for (flags, words) in [
        (&["--egress", "none"][..], &["egress policy `none`", "ipvlan"][..]),
        (&["--network-rate", "in=1m"], &["in=1000000", "lan"]),
        (&["--mac-address", "02:42:00:00:00:09"], &["hardware address of the parent"]),
    ] {
        let run = [&["run", "--rm", "--network", "lan"], flags, &["busybox", "true"]].concat();
        let outcome = engine.hyper(&run);
        assert_ne!(outcome.code, 0, "{run:?}");
        outcome.says(words);
    }
    clean(&engine);
    engine.docker(&["network", "rm", "lan"]).succeeded();
}
