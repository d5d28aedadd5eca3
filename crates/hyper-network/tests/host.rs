//! Over real namespaces, links and rules; in a namespace of its own, so that the host has none of
//! it. Needs root.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;

use hyper_network::egress::{Egress, Policy, chain};
use hyper_network::link::{MacvlanMode, OnParent};
use hyper_network::pins::{Pin, Place};
use hyper_network::rules::{Network, Port, Protocol, Rules};
use hyper_network::service::{Service, Services};
use hyper_network::{Manner, Netlink, Rider, namespace, wire};

fn ip(namespace: &Path, words: &str) -> String {
    let namespace = format!("--net={}", namespace.display());
    let output =
        Command::new("nsenter").arg(namespace).args(words.split(' ')).output().expect("nsenter");
    assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn a_bridge_a_pod_and_rules() {
    let dir = tempfile::tempdir().unwrap();
    let (host, pod) = (dir.path().join("host"), dir.path().join("pod"));
    for path in [&host, &pod] {
        namespace::create(path).unwrap();
    }
    let inner = pod.clone();
    namespace::within(&host, move || {
        let mut netlink = Netlink::open().unwrap();
        netlink.add_bridge("br", [2, 0x42, 0, 0, 0, 1], 1400)?;
        let bridge = netlink.link("br")?.unwrap();
        assert_eq!((bridge.mtu, bridge.kind.as_deref()), (1400, Some("bridge")));
        netlink.add_address(bridge.index, "10.9.0.1/24".parse().unwrap())?;
        netlink.up(bridge.index)?;
        let file = std::fs::File::open(inner).unwrap();
        let mac = [2, 0x42, 10, 9, 0, 2];
        netlink.add_veth(
            ("hv1", bridge.index),
            ("eth0", mac),
            std::os::fd::AsFd::as_fd(&file),
            1400,
        )?;
        assert_eq!(netlink.link("hv1")?.unwrap().master, Some(bridge.index));
        Ok(())
    })
    .unwrap();
    namespace::within(&pod, || {
        let mut netlink = Netlink::open().unwrap();
        let eth0 = netlink.link("eth0")?.unwrap();
        netlink.up(eth0.index)?;
        netlink.add_address(eth0.index, "10.9.0.2/24".parse().unwrap())?;
        netlink.add_default_route(eth0.index, "10.9.0.1".parse().unwrap())
    })
    .unwrap();
    ip(&host, "busybox ping -c1 -W2 10.9.0.2");

    let (mut wiring, wired) = wire(&pod, Manner { strict: true, removed: false }, 1).unwrap();
    assert_eq!(wired.len(), 1);
    assert_eq!(wiring.interfaces(), [Rider { card: wired[0].card.clone(), carrier: None }]);
    let card = &wired[0].card;
    assert_eq!((card.name.as_str(), card.mtu), ("eth0", 1400));
    assert_eq!(card.addresses, ["10.9.0.2/24".parse().unwrap()]);
    let gateway: IpAddr = "10.9.0.1".parse().unwrap();
    assert_eq!(card.routes, [(None, Some(gateway))]);
    let filters = ip(&pod, "tc filter show dev hypertap0 ingress");
    assert!(filters.matches("mirred").count() >= 3, "{filters}");
    // The namespace's own stack hears nothing any more.
    let deaf = Command::new("nsenter")
        .arg(format!("--net={}", host.display()))
        .args(["busybox", "ping", "-c1", "-W1", "10.9.0.2"])
        .output()
        .unwrap();
    assert!(!deaf.status.success());

    // What comes later rides on the card that is there, and leaves no rule when it goes.
    let filters = || ip(&pod, "tc filter show dev hypertap0 ingress").matches("mirred").count();
    let alone = filters();
    ip(&pod, "ip link add eth1 address 02:42:0a:08:00:02 mtu 1500 type veth peer name far");
    ip(&pod, "ip addr add 10.8.0.2/24 dev eth1");
    ip(&pod, "ip link set eth1 up");
    wiring.renew().unwrap();
    let riders = wiring.interfaces();
    assert_eq!((riders.len(), riders[1].card.name.as_str()), (2, "eth1"));
    assert_eq!(riders[1].carrier, Some([2, 0x42, 10, 9, 0, 2]));
    assert_eq!(riders[1].card.mtu, 1400, "more than its carrier");
    assert_eq!(filters(), 2 * alone);
    ip(&pod, "ip link del eth1");
    wiring.renew().unwrap();
    assert_eq!((wiring.interfaces().len(), wiring.gone().len(), filters()), (1, 1, alone));
    wiring.told();
    ip(&pod, "ip link add eth1 address 02:42:0a:09:00:02 type veth peer name far");
    ip(&pod, "ip addr add 10.8.0.2/24 dev eth1");
    let error = wiring.renew().unwrap_err().to_string();
    assert!(error.contains("hardware address of eth0"), "{error}");
    assert_eq!((wiring.interfaces().len(), filters()), (1, alone));
    ip(&pod, "ip link del eth1");
    drop(wired);
    assert!(!ip(&pod, "ip link").contains("hypertap"));

    let rules = Rules {
        table: "hyper_test".into(),
        networks: vec![Network {
            bridge: "br".into(),
            subnets: vec!["10.9.0.0/24".parse().unwrap(), "fd00:9::/64".parse().unwrap()],
            internal: false,
            masquerade: true,
        }],
        ports: [("10.9.0.2", None), ("fd00:9::2", None), ("10.9.0.2", Some("127.0.0.1"))]
            .into_iter()
            .zip(8080..)
            .map(|((pod, host), host_port)| Port {
                protocol: Protocol::Tcp,
                host: host.map(|ip| ip.parse().unwrap()),
                host_port,
                pod: pod.parse().unwrap(),
                pod_port: 80,
            })
            .collect(),
        services: vec![Services {
            bridge: "br".into(),
            others: vec!["br2".into(), "br3".into()],
            addresses: vec!["10.9.0.2".parse().unwrap(), "fd00:9::2".parse().unwrap()],
            subnets: vec!["10.9.0.0/24".parse().unwrap(), "fd00:9::/64".parse().unwrap()],
            policies: vec!["egress-abc123-0".into(), "egress-abc123-1".into()],
            services: [
                ("10.254.0.24:2834", Protocol::Tcp, ["10.9.0.3:80", "10.9.0.4:81"]),
                ("[fd00:254::1]:53", Protocol::Udp, ["[fd00:9::3]:53", "[fd00:7::4]:54"]),
            ]
            .map(|(at, protocol, backends)| {
                let at: SocketAddr = at.parse().unwrap();
                let backends = backends.map(|one| one.parse().unwrap()).into();
                Service { ip: at.ip(), port: at.port(), protocol, backends }
            })
            .into(),
        }],
        egress: vec![Egress {
            mac: [2, 0x42, 0, 0, 0, 9],
            name: "abc123".into(),
            bridge: "br".into(),
            addresses: vec!["10.9.0.2".parse().unwrap(), "fd00:9::2".parse().unwrap()],
            subnets: vec!["10.9.0.0/24".parse().unwrap(), "fd00:9::/64".parse().unwrap()],
            policies: [
                "public,allow=10.8.0.0/16:443,deny=8.8.8.8",
                "none,allow=[fd00::/8]:53/udp,allow=*.example.org:443,allow=b.org,deny=10.8.1.0/24",
            ]
            .map(|policy| policy.parse().unwrap())
            .into(),
            pins: dir.path().join("pins"),
        }],
        lock: dir.path().join("lock"),
    };
    let policies = rules.egress[0].policies.iter().cloned();
    let policies: BTreeMap<String, Policy> =
        (0..).map(|at| chain("abc123", at)).zip(policies).collect();
    let (pins, lock) = (dir.path().join("pins"), dir.path().join("lock"));
    let again = rules.clone();
    let (all, at, held) = (policies.clone(), pins.clone(), lock.clone());
    let many = move || {
        let place = Place { table: "hyper_test", file: &at, lock: &held, policies: &all };
        for answer in 0..17_u8 {
            let ips = (0..64_u8).map(|host| IpAddr::from([9, 9, answer, host]));
            let pins: Vec<Pin> = ips.map(|ip| Pin::new("many.example.org", ip, 60)).collect();
            place.pin(&pins)?;
        }
        Ok(())
    };
    let pinned = move || {
        let place = Place { table: "hyper_test", file: &pins, lock: &lock, policies: &policies };
        let pin = |name: &str, ip: &str, ttl| Pin::new(name, ip.parse().unwrap(), ttl);
        place.pin(&[pin("a.example.org", "8.8.8.8", 1), pin("b.org", "2001:4860::8", 9999)])?;
        // One address of two names, which have it for different times.
        place.pin(&[pin("c.example.org", "8.8.8.8", 900), pin("d.example.org", "8.8.8.8", 60)])?;
        // Once more, and one that no policy means.
        place.pin(&[pin("b.org", "2001:4860::8", 9999), pin("other.org", "8.8.4.4", 60)])?;
        again.apply()
    };
    let blocked = namespace::within(&host, move || {
        rules.apply()?;
        rules.apply()?;
        Rules::blocked("hyper_test")
    })
    .unwrap();
    assert_eq!(blocked["abc123"].packets, 0);
    namespace::within(&host, pinned).unwrap();
    // What was pinned is in the table that took the place of the first, too.
    let set =
        |name: &str| ip(&host, &format!("nft list set inet hyper_test egress-abc123-1-{name}"));
    let ports = set("4p");
    assert!(
        ports.contains("8.8.8.8 . tcp . 443") && ports.contains("8.8.8.8 . udp . 443"),
        "{ports}"
    );
    assert_eq!(ports.matches("tcp . 443").count(), 1, "{ports}");
    let any = set("6");
    assert!(any.contains("2001:4860::8 timeout 1h2m"), "{any}");
    namespace::within(&host, many).unwrap();
    let ports = set("4p");
    assert_eq!(ports.matches("tcp . 443").count(), 1024, "more than a pod may have");
    assert!(!ports.contains("8.8.8.8 ") && ports.contains("9.9.16.63 "), "not the oldest went");
    for name in ["4", "6p"] {
        assert!(!set(name).contains("elements"), "{}", set(name));
    }
    let text = ip(&host, "nft list ruleset");
    for wanted in ["dnat ip to 10.9.0.2:80", "dnat ip6 to [fd00:9::2]:80", "masquerade"] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    assert_eq!(text.matches("dnat ip to").count(), 6, "{text}");
    for wanted in [
        "ip6 daddr fd00:254::1 udp dport 53 numgen inc mod 2 0 dnat ip6 to [fd00:9::3]:53",
        "ip daddr 10.254.0.24 tcp dport 2834 dnat ip to 10.9.0.4:81",
        "ct original ip6 daddr fd00:254::1",
        "jump egress-abc123-1",
    ] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    namespace::within(&host, || {
        Rules::remove("hyper_test")?;
        Rules::remove("hyper_test")?;
        Netlink::open().unwrap().remove("hv1")?;
        Netlink::open().unwrap().remove("hv1")
    })
    .unwrap();
    assert!(!ip(&host, "nft list ruleset").contains("hyper"));
    assert!(!ip(&pod, "ip link").contains("eth0"));
    for path in [&host, &pod] {
        namespace::remove(path);
        assert!(!path.exists());
    }
}

#[test]
fn a_pod_on_a_lan_hears_itself_and_all_groups_and_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let (lan, pod) = (dir.path().join("lan"), dir.path().join("pod"));
    for path in [&lan, &pod] {
        namespace::create(path).unwrap();
    }
    ip(&lan, "ip link add parent type veth peer name far");
    ip(&lan, "ip addr add 10.9.0.9/24 dev far");
    for link in ["parent", "far"] {
        ip(&lan, &format!("ip link set {link} up"));
    }
    ip(&lan, "ip route add 239.0.0.0/8 dev far");
    for last in [2, 3] {
        ip(&lan, &format!("ip neigh add 10.9.0.{last} lladdr 02:42:0a:09:00:0{last} dev far"));
    }
    let inner = pod.clone();
    namespace::within(&lan, move || {
        let mut netlink = Netlink::open().unwrap();
        let kind = OnParent::Macvlan(MacvlanMode::Bridge, [2, 0x42, 10, 9, 0, 2]);
        let on = (netlink.link("parent")?.unwrap().index, kind);
        let file = std::fs::File::open(inner).unwrap();
        netlink.add_on_parent(on, "eth0", std::os::fd::AsFd::as_fd(&file), 1400)?;
        // The name is taken.
        assert!(netlink.add_on_parent(on, "eth0", std::os::fd::AsFd::as_fd(&file), 0).is_err());
        assert!(netlink.link("eth0")?.is_none(), "it is in the other namespace");
        Ok(())
    })
    .unwrap();
    ip(&pod, "ip addr add 10.9.0.2/24 dev eth0");
    ip(&pod, "ip link set eth0 up");
    let (_, wired) = wire(&pod, Manner { strict: true, removed: false }, 1).unwrap();
    assert_eq!((wired[0].card.name.as_str(), wired[0].card.mtu), ("eth0", 1400));
    namespace::within(&lan, || {
        let socket = std::net::UdpSocket::bind("10.9.0.9:0").unwrap();
        // Its own last: what was sent before has come by then.
        for to in ["239.1.2.3:9", "10.9.0.3:9", "10.9.0.2:9"] {
            socket.send_to(to.as_bytes(), to).unwrap();
            // Groups are passed on later than others.
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
        Ok(())
    })
    .unwrap();
    rustix::io::ioctl_fionbio(&wired[0].tap[0], true).unwrap();
    let mut heard = String::new();
    let mut frame = [0; 2048];
    while let Ok(length) = rustix::io::read(&wired[0].tap[0], &mut frame) {
        heard.push_str(&String::from_utf8_lossy(&frame[..length]));
    }
    assert!(heard.contains("239.1.2.3:9") && heard.contains("10.9.0.2:9"), "{heard:?}");
    assert!(!heard.contains("10.9.0.3:9"), "{heard:?}");
    for path in [&lan, &pod] {
        namespace::remove(path);
    }
}

/// Guests could advertise themselves as routers to whatever else is on their network.
#[test]
fn a_guest_is_nobodys_router() {
    let dir = tempfile::tempdir().unwrap();
    let (host, pod) = (dir.path().join("host"), dir.path().join("pod"));
    for path in [&host, &pod] {
        namespace::create(path).unwrap();
    }
    let mac = [2, 0x42, 10, 9, 0, 2];
    let inner = pod.clone();
    namespace::within(&host, move || {
        let mut netlink = Netlink::open().unwrap();
        netlink.add_bridge("br", [2, 0x42, 0, 0, 0, 1], 1500)?;
        let bridge = netlink.link("br")?.unwrap();
        netlink.up(bridge.index)?;
        let file = std::fs::File::open(inner).unwrap();
        let file = std::os::fd::AsFd::as_fd(&file);
        netlink.add_veth(("hv1", bridge.index), ("eth0", mac), file, 1500)
    })
    .unwrap();
    namespace::within(&pod, || {
        let mut netlink = Netlink::open().unwrap();
        let eth0 = netlink.link("eth0")?.unwrap();
        netlink.up(eth0.index)?;
        netlink.add_address(eth0.index, "fd00:9::2/64".parse().unwrap())
    })
    .unwrap();
    let (_wiring, wired) = wire(&pod, Manner { strict: true, removed: false }, 1).unwrap();
    let mut tap = std::fs::File::from(wired[0].tap[0].try_clone().unwrap());
    // From a link-local address of its own to all nodes: header of virtio, Ethernet, IPv6, ICMPv6.
    let mut send = |kind: u8| {
        let mut frame = vec![0; 10];
        frame.extend([0x33, 0x33, 0, 0, 0, 1]);
        frame.extend(mac);
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 16, 58, 255]);
        frame.extend("fe80::42:aff:fe09:2".parse::<std::net::Ipv6Addr>().unwrap().octets());
        frame.extend("ff02::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
        frame.extend([kind, 0, 0, 0]);
        frame.extend([0; 12]);
        std::io::Write::write_all(&mut tap, &frame).unwrap();
    };
    let passed = || -> u32 {
        let shown = ip(&pod, "tc -s filter show dev hypertap0 ingress");
        let counts =
            shown.lines().filter_map(|line| line.split_once(" bytes ")?.1.split_once(" pkt"));
        counts.map(|(count, _)| count.parse::<u32>().unwrap()).sum()
    };
    let before = passed();
    send(134);
    assert_eq!(passed(), before, "a router's advertisement went out");
    send(136);
    assert_eq!(passed(), before + 1, "a neighbour's did not");
}
