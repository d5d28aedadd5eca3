//! Services of a pod: an address and port that only this pod sees, behind which there are backends.
//!
//! ```text
//!   pod ─► VIP:port ─► egress: the policies wait ─► translated to a backend, in turn
//!                   ─► the policies judge the backend ─► forward: not into another network
//!                   ─► masqueraded where the backend is in the pod's own network
//! ```
//! In turn by connections: of UDP a connection is what the kernel takes for one, packets between two
//! same ports with less than its timeout between them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::rules::{Protocol, family, is, payload};

/// Where a pod finds its backends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub ip: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
    pub backends: Vec<SocketAddr>,
}

/// The services of one pod in its network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Services {
    pub bridge: String,
    /// Bridges of the other networks, which are apart.
    pub others: Vec<String>,
    /// The pod's.
    pub addresses: Vec<IpAddr>,
    /// The network's: neighbours are reached whatever policies say.
    pub subnets: Vec<IpNet>,
    /// Chains of the policies that hold for the pod.
    pub policies: Vec<String>,
    pub services: Vec<Service>,
}

/// Base chain in which the policies judge backends.
pub(crate) const JUDGED: &str = "services";

impl Service {
    /// What tells it from the pod's others.
    #[must_use]
    pub fn key(&self) -> (IpAddr, u16, Protocol) {
        (self.ip, self.port, self.protocol)
    }

    /// Why it cannot be, naming the value.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let unicast = |ip: IpAddr| {
            let link_local = match ip {
                IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
                IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.to_ipv4_mapped().is_some(),
            };
            !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || link_local)
        };
        let named = |what: &str| Some(format!("service {self}: {what}"));
        if !unicast(self.ip) {
            return named("its address is none that a pod can send to over its network");
        }
        if self.port == 0 {
            return named("its port is 0");
        }
        if self.protocol == Protocol::Sctp {
            return named("services are of tcp or udp");
        }
        if self.backends.is_empty() {
            return named("it has no backends");
        }
        for backend in &self.backends {
            let why = if backend.port() == 0 {
                "has port 0"
            } else if backend.ip().is_ipv4() != self.ip.is_ipv4() {
                "is of another family than the service"
            } else if !unicast(backend.ip()) {
                "has no address that is reached over the pod's network"
            } else if *backend == SocketAddr::new(self.ip, self.port) {
                "is the service itself"
            } else {
                continue;
            };
            return named(&format!("backend {backend} {why}"));
        }
        None
    }

    /// Packets to it that are not translated yet.
    fn asked(&self) -> [Value; 2] {
        [
            is(payload(family(self.ip), "daddr"), json!(self.ip.to_string())),
            is(payload(self.protocol.word(), "dport"), json!(self.port)),
        ]
    }

    /// Packets that were to it before they were translated.
    fn translated(&self) -> [Value; 3] {
        let original = |key: &str| json!({ "ct": { "key": key, "dir": "original" } });
        [
            is(original(&format!("{} daddr", family(self.ip))), json!(self.ip.to_string())),
            is(json!({ "meta": { "key": "l4proto" } }), json!(self.protocol.word())),
            is(original("proto-dst"), json!(self.port)),
        ]
    }

    /// To the backends in turn: each rule takes its part of those that the ones before have left.
    fn turns(&self) -> impl Iterator<Item = Vec<Value>> {
        let count = self.backends.len();
        self.backends.iter().enumerate().map(move |(at, backend)| {
            let mut parts = Vec::new();
            if count - at > 1 {
                let number = json!({ "numgen": { "mode": "inc", "mod": count - at, "offset": 0 } });
                parts.push(is(number, json!(0)));
            }
            parts.push(json!({ "dnat": {
                "family": family(backend.ip()), "addr": backend.ip().to_string(),
                "port": backend.port(),
            } }));
            parts
        })
    }
}

impl Services {
    /// Each service that an address of the pod can ask for.
    fn each(&self) -> impl Iterator<Item = (Vec<Value>, &Service)> {
        self.services.iter().flat_map(move |service| {
            let own = self.addresses.iter().filter(|ip| ip.is_ipv4() == service.ip.is_ipv4());
            own.map(move |ip| {
                let from = vec![
                    is(json!({ "meta": { "key": "iifname" } }), json!(self.bridge)),
                    is(payload(family(*ip), "saddr"), json!(ip.to_string())),
                ];
                (from, service)
            })
        })
    }

    /// Rules that have to come before those of policies, each with its chain.
    pub(crate) fn waiting(&self) -> Vec<(&'static str, Vec<Value>)> {
        if self.policies.is_empty() {
            return Vec::new();
        }
        // Only what is going to be translated.
        let new = json!({ "match": {
            "op": "in", "left": { "ct": { "key": "state" } }, "right": "new",
        } });
        self.each()
            .map(|(from, service)| {
                let all = [&from[..], &service.asked(), &[new.clone(), accept()]].concat();
                (crate::egress::CHAIN, all)
            })
            .collect()
    }

    /// The translation, to come before that of published ports.
    pub(crate) fn translation(&self) -> Vec<Vec<Value>> {
        self.each()
            .flat_map(|(from, service)| {
                service.turns().map(move |to| [&from[..], &service.asked(), &to].concat())
            })
            .collect()
    }

    /// The policies, on what packets were translated to.
    pub(crate) fn judgement(&self) -> Vec<(&'static str, Vec<Value>)> {
        let mut rules = Vec::new();
        if self.policies.is_empty() {
            return rules;
        }
        for (from, service) in self.each() {
            let whole = |last: &[Value]| [&from[..], &service.translated(), last].concat();
            let answer = json!({ "match": {
                "op": "in", "left": { "ct": { "key": "state" } }, "right": ["established", "related"],
            } });
            rules.push((JUDGED, whole(&[answer, accept()])));
            let local = json!({ "fib": { "result": "type", "flags": ["daddr"] } });
            let elsewhere = json!({ "match": { "op": "!=", "left": local, "right": "local" } });
            for net in
                self.subnets.iter().filter(|net| net.addr().is_ipv4() == service.ip.is_ipv4())
            {
                let to = json!({ "prefix": {
                    "addr": net.network().to_string(), "len": net.prefix_len(),
                } });
                let to = is(payload(family(service.ip), "daddr"), to);
                rules.push((JUDGED, whole(&[to, elsewhere.clone(), accept()])));
            }
            for chain in &self.policies {
                rules.push((JUDGED, whole(&[json!({ "jump": { "target": chain } })])));
            }
        }
        rules
    }

    /// Networks stay apart: a service is no way into another one.
    pub(crate) fn apart(&self) -> Vec<Vec<Value>> {
        if self.others.is_empty() {
            return Vec::new();
        }
        let to = is(json!({ "meta": { "key": "oifname" } }), json!({ "set": self.others }));
        self.each()
            .map(|(from, service)| {
                let last = [to.clone(), json!({ "drop": null })];
                [&from[..], &service.translated(), &last].concat()
            })
            .collect()
    }
}

fn accept() -> Value {
    json!({ "accept": null })
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", SocketAddr::new(self.ip, self.port), self.protocol.word())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn service(at: &str, protocol: Protocol, backends: &[&str]) -> Service {
        let at: SocketAddr = at.parse().unwrap();
        let backends = backends.iter().map(|one| one.parse().unwrap()).collect();
        Service { ip: at.ip(), port: at.port(), protocol, backends }
    }

    #[test]
    fn what_cannot_be_a_service_is_told_with_its_value() {
        use Protocol::{Sctp, Tcp, Udp};
        for (at, protocol, backends, said) in [
            ("10.254.0.24:2834", Tcp, &["10.1.1.2:80"][..], None),
            ("[fd00::1]:53", Udp, &["[fd01::2]:53"], None),
            ("127.0.0.1:80", Tcp, &["10.1.1.2:80"], Some("127.0.0.1:80/tcp")),
            ("224.0.0.1:80", Udp, &["10.1.1.2:80"], Some("224.0.0.1")),
            ("169.254.169.254:80", Tcp, &["10.1.1.2:80"], Some("169.254.169.254")),
            ("10.254.0.24:0", Tcp, &["10.1.1.2:80"], Some("port is 0")),
            ("10.254.0.24:80", Sctp, &["10.1.1.2:80"], Some("tcp or udp")),
            ("10.254.0.24:80", Tcp, &[], Some("no backends")),
            ("10.254.0.24:80", Tcp, &["10.1.1.2:80", "0.0.0.0:80"], Some("backend 0.0.0.0:80")),
            ("10.254.0.24:80", Tcp, &["10.1.1.2:0"], Some("10.1.1.2:0")),
            ("10.254.0.24:80", Tcp, &["[fd00::2]:80"], Some("another family")),
            ("10.254.0.24:80", Tcp, &["10.254.0.24:80"], Some("the service itself")),
        ] {
            let fault = service(at, protocol, backends).fault();
            match said {
                None => assert_eq!(fault, None),
                Some(part) => assert!(fault.as_ref().unwrap().contains(part), "{fault:?}"),
            }
        }
    }

    #[test]
    fn every_backend_has_its_turn() {
        let three =
            service("10.254.0.24:80", Protocol::Tcp, &["10.1.1.2:1", "10.1.1.2:2", "10.1.1.2:3"]);
        let rules: Vec<_> = three.turns().collect();
        // As the kernel does it: each rule counts the packets that come to it.
        let mut counters = [0; 3];
        let mut chosen = Vec::new();
        for _ in 0..9 {
            for (at, rule) in rules.iter().enumerate() {
                let modulus = rule[0]["match"]["left"]["numgen"]["mod"].as_u64();
                counters[at] += 1;
                if modulus.is_none_or(|modulus| (counters[at] - 1) % modulus == 0) {
                    chosen.push(rule[rule.len() - 1]["dnat"]["port"].as_u64().unwrap());
                    break;
                }
            }
        }
        assert_eq!(chosen, [1, 2, 3, 1, 2, 3, 1, 2, 3]);
    }
}
