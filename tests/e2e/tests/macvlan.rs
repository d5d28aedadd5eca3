//! Containers on the host's LAN: networks of the driver macvlan. The LAN is a link between hyperd's
//! network namespace and another one, which is the machine and the router at its other end.

use std::net::SocketAddrV6;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use hyper_e2e::{
    Engine, Outside, eventually, field, nothing_left, reaches, run, runtimes, runtimes_and_runc,
    serve, shell,
};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, sockopt};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const SOON: Duration = Duration::from_secs(30);
/// The machine outside, and beyond it one that only its router knows.
const ROUTER: &str = "10.98.0.1";
const BEYOND: &str = "10.97.0.1";
const ROUTER_IPV6: &str = "fd00:98::1";
/// The host's own address on the LAN.
const HOST: &str = "10.98.0.9";

/// All that is not the engine's: a machine that serves "outside" on port 80.
struct Lan(Outside);

impl Lan {
    fn of(engine: &Engine) -> Self {
        let mask = |ip: &str| format!("{ip}/24");
        let there = [&mask(ROUTER), &format!("{ROUTER_IPV6}/64"), "10.96.0.1/24"];
        let outside = Outside::of(engine, "lan0", &[&mask(HOST)], &there, "I am outside");
        let beyond = format!("{BEYOND}/32");
        outside.run(&["ip", "addr", "add", &beyond, "dev", "lo"]).succeeded();
        Self(outside)
    }

    /// What it gets from a container's port 80.
    fn fetched(&self, address: &str, page: &str, seconds: u32) -> String {
        self.0.fetched(&format!("http://{address}/{page}"), seconds)
    }

    /// Tells everyone to make addresses of `2001:db8::/64`, and that it is the router.
    /// Nobody listens before its link-local address is there: ask again.
    fn advertise(&self) -> bool {
        let name = format!("/run/netns/{}", self.0.name());
        let work = move || {
            let namespace = std::fs::File::open(name).expect("the namespace");
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), kind).expect("enter the namespace");
            let text = std::fs::read_to_string("/proc/thread-self/net/dev_mcast").expect("links");
            let link = text.lines().find(|line| line.contains("lan0")).expect("lan0");
            let index = link.split_whitespace().next().expect("index").parse().expect("a number");
            let (family, kind) = (AddressFamily::INET6, SocketType::RAW);
            let protocol = Some(rustix::net::ipproto::ICMPV6);
            let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, protocol);
            let socket = socket.expect("a socket");
            sockopt::set_ipv6_multicast_hops(&socket, 255).expect("hops");
            // RFC 4861, 4.2 and 4.6.2: a router for half an hour, and a prefix to make addresses of.
            let mut message = vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
            message.extend([3, 4, 64, 0xc0, 0, 0, 7, 8, 0, 0, 7, 8, 0, 0, 0, 0]);
            message.extend([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            let all = SocketAddrV6::new("ff02::1".parse().expect("all nodes"), 0, 0, index);
            rustix::net::sendto(&socket, &message, SendFlags::empty(), &all).is_ok()
        };
        std::thread::spawn(work).join().expect("advertise")
    }
}

/// The LAN as a network.
fn lan(engine: &Engine) -> Lan {
    let lan = Lan::of(engine);
    let make = "network create -d macvlan -o parent=lan0 --subnet 10.98.0.0/24 --gateway 10.98.0.1 \
                --ip-range 10.98.0.128/25 --ipv6 --subnet fd00:98::/64 --gateway fd00:98::1 lan";
    engine.hyper(&make.split_whitespace().collect::<Vec<_>>()).succeeded();
    lan
}

/// All containers go, and nothing of them and of networks without a bridge is on the host.
fn clean(engine: &Engine) {
    nothing_left(engine, "lan0");
}

#[test]
fn containers_are_on_the_lan_as_machines_of_their_own() {
    let engine = Engine::apart();
    let lan = lan(&engine);
    serve(&engine, "peer", &["--network", "lan", "--runtime", "uml"]);
    for runtime in runtimes_and_runc() {
        let flags = ["--network", "lan", "--runtime", runtime, "-p", "8080:80"];
        serve(&engine, "guest", &flags);
        let ip = field(&engine, "guest", "lan", "IPAddress");
        assert!(ip.starts_with("10.98.0.1") && ip.len() == "10.98.0.129".len(), "{ip}");
        eventually("it is reached from the LAN", SOON, || lan.fetched(&ip, "", 3) == "I am guest");
        for host in [ROUTER, BEYOND, ROUTER_IPV6] {
            assert!(reaches(&engine, "guest", host, "outside"), "{runtime} {host}");
        }
        let ipv6 = format!("[{}]", field(&engine, "guest", "lan", "GlobalIPv6Address"));
        assert_eq!(lan.fetched(&ipv6, "", 3), "I am guest", "{runtime}");
        // Each other by name.
        assert!(reaches(&engine, "guest", "peer", "peer"), "{runtime}");
        assert!(reaches(&engine, "peer", "guest", "guest"), "{runtime}");
        let mac = field(&engine, "guest", "lan", "MacAddress");
        assert_eq!(shell(&engine, "guest", "cat /sys/class/net/eth0/address"), mac, "{runtime}");
        // The host and its containers do not meet over a parent, and no port of the host is theirs.
        assert!(!reaches(&engine, "guest", HOST, "guest"), "{runtime}");
        for at in [ip.as_str(), "127.0.0.1:8080", &format!("{HOST}:8080")] {
            let url = format!("http://{at}/");
            assert_eq!(engine.beside(&["curl", "-s", "-m", "2", &url]).text(), "", "{runtime}");
        }
        assert_eq!(engine.docker(&["port", "guest"]).succeeded().text(), "");
        engine.docker(&["network", "rm", "lan"]).exited(1).says(&["active endpoints"]);
        engine.docker(&["rm", "-f", "guest"]).succeeded();
        assert_eq!(lan.fetched(&ip, "", 2), "");
    }
    let rules = engine.beside(&["nft", "list", "ruleset"]).succeeded().text();
    assert!(!rules.contains("hyper"), "{rules}");
    let links = engine.beside(&["ip", "-o", "link"]).succeeded().text();
    assert!(!links.contains("hy-"), "{links}");
    let listed = ["network", "ls", "--filter", "driver=macvlan", "--format", "{{.Name}}"];
    assert_eq!(engine.docker(&listed).succeeded().text(), "lan");
    let template = "{{.Driver}} {{.Options.parent}} {{(index .IPAM.Config 0).Gateway}}";
    let shown = engine.docker(&["network", "inspect", "-f", template, "lan"]).succeeded().text();
    assert_eq!(shown, "macvlan lan0 10.98.0.1");
    clean(&engine);
    engine.docker(&["network", "rm", "lan"]).succeeded();
    let events = ["events", "--since", "1h", "--until", "0s", "--filter", "type=network"];
    for kind in ["network create", "network destroy"] {
        let said = |line: &str| line.contains(kind) && line.contains("type=macvlan");
        eventually(kind, SOON, || engine.docker(&events).succeeded().text().lines().any(said));
    }
}

#[test]
fn a_guest_is_nobody_else_and_no_router_of_the_lan_changes_it() {
    let engine = Engine::apart();
    let lan = lan(&engine);
    for runtime in runtimes() {
        let flags = ["--network", "lan", "--runtime", runtime, "--cap-add", "NET_ADMIN"];
        serve(&engine, "guest", &flags);
        eventually("it reaches the router", SOON, || reaches(&engine, "guest", ROUTER, "outside"));
        // Who listens to routers gets an address: the host does.
        let host = || engine.beside(&["ip", "-6", "-o", "addr", "show", "lan0"]).text();
        let heard = || lan.advertise() && host().contains("2001:db8");
        eventually("the host hears the router", SOON, heard);
        let own = shell(&engine, "guest", "ip -6 addr; ip -6 route");
        assert!(own.contains("via fd00:98::1"), "{runtime}: {own}");
        assert!(!own.contains("2001:db8") && !own.contains("via fe80"), "{runtime}: {own}");
        assert!(reaches(&engine, "guest", ROUTER_IPV6, "outside"), "{runtime}");

        // Another's address, beside its own and instead.
        shell(&engine, "guest", "ip addr add 10.98.0.77/24 dev eth0");
        assert!(reaches(&engine, "guest", ROUTER, "outside"), "{runtime}");
        assert!(!reaches(&engine, "guest", &format!("-s 10.98.0.77 {ROUTER}"), "outside"));
        assert_eq!(lan.fetched("10.98.0.77", "", 2), "", "{runtime}");
        let other = "ip link set eth0 down; ip link set eth0 address 02:42:0a:62:00:4d";
        shell(&engine, "guest", &format!("{other} && ip link set eth0 up"));
        assert!(shell(&engine, "guest", "ip -4 addr show eth0").contains("inet 10.98."));
        assert!(!reaches(&engine, "guest", ROUTER, "outside"), "{runtime}");
        engine.docker(&["rm", "-f", "guest"]).succeeded();
    }
    clean(&engine);
}

#[test]
fn running_containers_come_onto_the_lan_and_leave_it_and_hyperd_may_die_meanwhile() {
    let mut engine = Engine::apart();
    let lan = lan(&engine);
    let make = ["network", "create", "--subnet", "172.30.20.0/24", "near"];
    engine.docker(&make).succeeded();
    serve(&engine, "peer", &["--network", "near"]);
    for runtime in runtimes_and_runc() {
        serve(&engine, "guest", &["--runtime", runtime, "--network", "near", "-p", "8085:80"]);
        let port = |engine: &Engine| {
            engine.beside(&["curl", "-s", "-m", "2", "http://127.0.0.1:8085/"]).text()
        };
        eventually("it serves", SOON, || port(&engine) == "I am guest");
        let onto = ["network", "connect", "--ip", "10.98.0.50", "lan", "guest"];
        engine.docker(&onto).succeeded();
        eventually("it is on the LAN", SOON, || lan.fetched("10.98.0.50", "", 3) == "I am guest");
        assert!(reaches(&engine, "guest", ROUTER, "outside"), "{runtime}");
        assert!(reaches(&engine, "guest", "peer", "peer"), "{runtime}");
        // The way out stays while it is there, and the port with it.
        assert_eq!(port(&engine), "I am guest", "{runtime}");
        engine.kill_daemon();
        engine.restart();
        assert_eq!(lan.fetched("10.98.0.50", "", 3), "I am guest", "{runtime}");
        assert_eq!(field(&engine, "guest", "lan", "IPAddress"), "10.98.0.50");
        let log = engine.log();
        assert!(!log.contains("was cut off"), "a link that is there was missed: {log}");

        engine.docker(&["network", "disconnect", "near", "guest"]).succeeded();
        assert!(reaches(&engine, "guest", BEYOND, "outside"), "{runtime}");
        assert_eq!(port(&engine), "", "{runtime}");
        engine.docker(&["network", "connect", "near", "guest"]).succeeded();
        assert!(reaches(&engine, "peer", "guest", "guest"), "{runtime}");
        engine.docker(&["network", "disconnect", "lan", "guest"]).succeeded();
        assert_eq!(lan.fetched("10.98.0.50", "", 2), "", "{runtime}");
        assert!(reaches(&engine, "guest", "peer", "peer"), "{runtime}");
        assert_eq!(port(&engine), "I am guest", "{runtime}");
        let inside = shell(&engine, "guest", "ip -4 -o addr");
        assert!(!inside.contains("10.98."), "{runtime}: {inside}");
        // Back, and gone while nobody looks.
        engine.docker(&onto).succeeded();
        let pid = engine.inspect("guest", "{{.State.Pid}}");
        engine.kill_daemon();
        run("kill", &["-9", &pid], SOON).succeeded();
        std::thread::sleep(Duration::from_secs(1));
        engine.restart();
        eventually("it is over", SOON, || engine.inspect("guest", "{{.State.Running}}") == "false");
        eventually("its address is nobody's", SOON, || lan.fetched("10.98.0.50", "", 1).is_empty());
        engine.docker(&["rm", "-f", "guest"]).succeeded();
    }
    clean(&engine);
}

#[test]
fn kill_9_in_the_middle_of_connect_and_disconnect_leaves_the_container_where_its_spec_says() {
    let mut engine = Engine::apart();
    let lan = lan(&engine);
    // Where no other way leads to the LAN.
    engine.docker(&["network", "create", "--internal", "shut"]).succeeded();
    serve(&engine, "guest", &["--network", "shut"]);
    for round in 0..8 {
        let word = if round % 2 == 0 { "connect" } else { "disconnect" };
        let mut client = engine.docker_command(&["network", word, "lan", "guest"]);
        let mut client = client.stderr(std::process::Stdio::null()).spawn().expect("docker");
        // A change takes some tens of milliseconds after the client is there.
        std::thread::sleep(Duration::from_millis(20 + 8 * round));
        engine.kill_daemon();
        client.wait().expect("reap");
        engine.restart();
        let there = field(&engine, "guest", "lan", "IPAddress");
        let shown = shell(&engine, "guest", "ip -4 -o addr");
        let inside = shown.contains("10.98.0.");
        assert_eq!(inside, !there.is_empty(), "{word}: inspect {there:?}, guest {shown}");
        assert_eq!(reaches(&engine, "guest", ROUTER, "outside"), inside, "{word}: {shown}");
        if inside {
            assert_eq!(lan.fetched(&there, "", 3), "I am guest", "{word}");
        }
        if inside != (word == "connect") {
            engine.docker(&["network", word, "lan", "guest"]).succeeded();
        }
    }
    clean(&engine);
}

#[test]
fn two_networks_share_a_parent_and_one_keeps_its_members_apart() {
    let engine = Engine::apart();
    let lan = lan(&engine);
    let make = "network create -d macvlan -o parent=lan0 -o macvlan_mode=private --subnet \
                10.96.0.0/24 shy";
    engine.docker(&make.split_whitespace().collect::<Vec<_>>()).succeeded();
    for (name, network) in [("one", "shy"), ("two", "shy"), ("open", "lan")] {
        serve(&engine, name, &["--network", network]);
    }
    let of = |name: &str| field(&engine, name, "shy", "IPAddress");
    let (one, two) = (of("one"), of("two"));
    for (name, ip) in [("one", &one), ("two", &two)] {
        eventually("it is reached from outside", SOON, || {
            lan.fetched(ip, "", 3) == format!("I am {name}")
        });
        assert!(reaches(&engine, name, "10.96.0.1", "outside"));
    }
    assert!(!reaches(&engine, "one", &two, "two") && !reaches(&engine, "two", "one", "one"));
    assert!(reaches(&engine, "open", ROUTER, "outside"));
    // What it sends is held to its rate.
    let serve = "head -c 2000000 /dev/zero > /page; exec httpd -f -p 80 -h /";
    let flags = ["run", "-d", "--name", "held", "--network", "lan", "--network-rate", "out=4m"];
    engine.hyper(&[&flags[..], &["busybox", "sh", "-c", serve]].concat()).succeeded();
    let ip = field(&engine, "held", "lan", "IPAddress");
    let mut took = Duration::ZERO;
    eventually("the page is served", SOON, || {
        let begun = Instant::now();
        let whole = lan.fetched(&ip, "page", 20).len() == 2_000_000;
        took = begun.elapsed();
        whole
    });
    assert!(took > Duration::from_millis(2500), "{took:?}");
    clean(&engine);
    engine.docker(&["network", "rm", "lan", "shy"]).succeeded();
}

#[test]
fn what_cannot_be_had_on_a_lan_is_refused_by_name() {
    let engine = Engine::apart();
    let _lan = lan(&engine);
    let on = ["-d", "macvlan", "-o", "parent=lan0"];
    for (flags, words) in [
        (&["-d", "ipvlan", "-o", "parent=lan0"][..], &["parent lan0 is that of network lan"][..]),
        (&["-d", "macvlan"], &["-o parent=INTERFACE", "--internal"]),
        (&["-d", "macvlan", "-o", "parent=eth7"], &["eth7", "no interface of the host"]),
        (
            &["-d", "macvlan", "-o", "parent=lan0.10"],
            &["ip link add link lan0 name lan0.10 type vlan id 10"],
        ),
        (&["-d", "macvlan", "-o", "parent=lo"], &["lo is no Ethernet interface"]),
        (&[&on[..], &["-o", "macvlan_mode=passthru"]].concat(), &["macvlan_mode=passthru"]),
        (&[&on[..], &["-o", "ipvlan_mode=l2"]].concat(), &["ipvlan_mode=l2", "macvlan_mode"]),
        (&[&on[..], &["-o", "io.hyper.egress=none"]].concat(), &["io.hyper.egress", "bridge"]),
        (&["-o", "parent=lan0"], &["parent=lan0 is not supported with driver bridge"]),
        (&[&on[..], &["--subnet", "10.98.0.0/16"]].concat(), &["Pool overlaps"]),
    ] {
        for client in [Engine::docker, Engine::hyper] {
            let create = [&["network", "create"], flags, &["no"]].concat();
            let outcome = client(&engine, &create);
            assert_ne!(outcome.code, 0, "{create:?}");
            outcome.says(words);
        }
    }
    for (flags, words) in [
        (&["--egress", "none"][..], &["egress policy `none`", "lan", "bridge network"][..]),
        (&["--network-rate", "in=1m"], &["in=1000000", "lan"]),
    ] {
        let run = [&["run", "--rm", "--network", "lan"], flags, &["busybox", "true"]].concat();
        let outcome = engine.hyper(&run);
        assert_ne!(outcome.code, 0, "{run:?}");
        outcome.says(words);
    }
    // An interface that is there, whatever it is called, is as good as any.
    let add = ["ip", "link", "add", "lan0.10", "type", "veth", "peer", "name", "trunk"];
    engine.beside(&add).succeeded();
    engine
        .hyper(&["network", "create", "-d", "macvlan", "-o", "parent=lan0.10", "vlan"])
        .succeeded();
    engine.hyper(&["network", "rm", "vlan"]).succeeded();
    // A pod's are asked for while it runs; what is refused leaves it as it was.
    engine.hyper(&["pod", "create", "--network", "lan", "shop"]).succeeded();
    let join = ["run", "-d", "--pod", "shop", "--name", "in", "busybox", "sleep", "600"];
    engine.hyper(&join).succeeded();
    for (change, word) in [
        (&["update", "--egress", "none", "shop"][..], "egress policy `none`"),
        (&["update", "--network-rate", "in=1m", "shop"], "in=1000000"),
        (&["service", "add", "shop", "10.254.0.1:80", "10.98.0.1:80"], "of driver macvlan"),
    ] {
        let outcome = engine.hyper(&[&["pod"], change].concat());
        assert_ne!(outcome.code, 0, "{change:?}");
        outcome.says(&[word]);
        assert!(reaches(&engine, "in", ROUTER, "outside"));
    }
    engine.hyper(&["pod", "update", "--network-rate", "out=8m", "shop"]).succeeded();
    engine.hyper(&["pod", "rm", "-f", "shop"]).succeeded();
    // What only the kernel knows.
    let shown = engine.beside(&["ip", "-o", "link", "show", "lan0"]).succeeded().text();
    let mac = shown.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
    let mac = mac.expect("its hardware address");
    let run = ["run", "--rm", "--network", "lan", "--mac-address", mac, "busybox", "true"];
    engine.docker(&run).exited(125).says(&["hardware address is another's", "--mac-address"]);
    let mtu = "com.docker.network.driver.mtu=9000";
    let large = ["network", "create", "-d", "macvlan", "-o", "parent=lan0", "-o", mtu, "large"];
    engine.docker(&large).succeeded();
    let run = ["run", "--rm", "--network", "large", "busybox", "true"];
    engine.docker(&run).exited(125).says(&["smaller MTU"]);
    let start = ["run", "--rm", "--network", "lan", "busybox", "true"];
    engine.beside(&["ip", "link", "add", "br0", "type", "bridge"]).succeeded();
    engine.beside(&["ip", "link", "set", "lan0", "master", "br0"]).succeeded();
    engine.docker(&start).exited(125).says(&["port of a bridge", "as parent"]);
    engine.beside(&["ip", "link", "set", "lan0", "nomaster"]).succeeded();
    engine.docker(&start).succeeded();
    clean(&engine);
    // A parent that is down, and one that went.
    engine.beside(&["ip", "link", "set", "lan0", "down"]).succeeded();
    engine.docker(&start).exited(125).says(&["lan0 is down", "ip link set lan0 up"]);
    engine.beside(&["ip", "link", "del", "lan0"]).succeeded();
    engine.docker(&start).exited(125).says(&["lan0 is no interface of the host"]);
    engine.docker(&["network", "rm", "lan"]).succeeded();
}
