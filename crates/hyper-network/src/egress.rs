//! What pods may reach, as text and as rules of the packet filter.
//!
//! ```text
//! none|public|all [,allow=TARGET]… [,deny=TARGET]…      TARGET: ADDRESS[/BITS][:PORT[/PROTOCOL]]
//!                                                       to allow, HOST[:PORT[/PROTOCOL]], too
//!
//! packet of a pod, before it is routed:
//!   answer to somebody ─► passes
//!   each policy: denied ─► dropped │ allowed, or pinned (see `named.rs`) ─► passes │ none ─► dropped
//!                public: to private or local addresses, of the host too ─► dropped │ else passes
//!
//! IPv6 of a pod, before that:
//!   answer; neighbour discovery and multicast membership to the host or a group ─► passes
//!   from its link-local address or from none, to the host or a group ─► dropped
//! ```
//! Containers of one network reach each other: a policy is about the way out of it. Those that shall
//! not meet get networks of their own. A pod's names are not asked of the network: its resolver answers over the link. Enforced on the
//! host, by the pod's own addresses, which it cannot change (see `redirect.rs`).

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{NetworkError, Result};
use crate::link::{Mac, mac_text};
use crate::named::{self, Named};
use crate::pins::{self, Pin};
use crate::rules::{Protocol, family, is, payload};

/// What a pod may reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    pub mode: Mode,
    /// Reached all the same.
    #[serde(default)]
    pub allow: Vec<Target>,
    /// Hosts that are reached by name, at addresses that their names were answered with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<Named>,
    /// Not reached, whatever else is said.
    #[serde(default)]
    pub deny: Vec<Target>,
}

/// What holds where no list says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Nothing.
    None,
    /// The internet, but no private, local or reserved address, metadata services among them, and
    /// no address of the host.
    Public,
    All,
}

/// Addresses, with a port or all of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub net: IpNet,
    pub port: Option<u16>,
    /// Of the port; absent: TCP and UDP.
    pub protocol: Option<Protocol>,
}

/// The policies of one pod in one network: it reaches what all of them let it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Egress {
    /// Names its chains: letters and digits.
    pub name: String,
    pub bridge: String,
    /// By which its packets from link-local addresses are known.
    pub mac: Mac,
    pub addresses: Vec<IpAddr>,
    /// Its network's: neighbours are reached whatever the policies say. They are no way out, and
    /// most hosts do not show the filter what stays on a bridge.
    pub subnets: Vec<IpNet>,
    pub policies: Vec<Policy>,
    /// File with what is pinned for names of its policies.
    pub pins: PathBuf,
}

/// Packets and bytes that were dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Blocked {
    pub packets: u64,
    pub bytes: u64,
}

/// Addresses that are not the internet: IANA's special-purpose registries (RFC 6890), multicast.
const PRIVATE_V4: [(&str, u8); 14] = [
    ("0.0.0.0", 8),
    ("10.0.0.0", 8),
    ("100.64.0.0", 10),
    ("127.0.0.0", 8),
    ("169.254.0.0", 16),
    ("172.16.0.0", 12),
    ("192.0.0.0", 24),
    ("192.0.2.0", 24),
    ("192.168.0.0", 16),
    ("198.18.0.0", 15),
    ("198.51.100.0", 24),
    ("203.0.113.0", 24),
    ("224.0.0.0", 4),
    ("240.0.0.0", 4),
];
const PRIVATE_V6: [(&str, u8); 8] = [
    ("::", 127),
    ("::ffff:0:0", 96),
    ("64:ff9b:1::", 48),
    ("100::", 64),
    ("2001:db8::", 32),
    ("fc00::", 7),
    ("fe80::", 10),
    ("ff00::", 8),
];
/// ICMPv6 without which a host cannot speak at all (RFC 4890, 4.3.1), without router advertisements:
/// pods are no routers.
const NEIGHBOUR_TYPES: [&str; 7] = [
    "nd-router-solicit",
    "nd-neighbor-solicit",
    "nd-neighbor-advert",
    "mld-listener-query",
    "mld-listener-report",
    "mld-listener-done",
    "mld2-listener-report",
];
/// Base chain; those of pods are `egress-NAME-N`.
pub(crate) const CHAIN: &str = "egress";

/// The chain of the policy at a place in [`Egress::policies`].
#[must_use]
pub fn chain(name: &str, at: usize) -> String {
    format!("{CHAIN}-{name}-{at}")
}

impl Egress {
    fn chain(&self, at: usize) -> String {
        chain(&self.name, at)
    }

    /// What its link needs, and no more from link-local addresses.
    fn link_chain(&self) -> String {
        format!("{CHAIN}-{}-link", self.name)
    }

    /// The chains of its policies.
    #[must_use]
    pub fn policy_chains(&self) -> Vec<String> {
        (0..self.policies.len()).map(|at| self.chain(at)).collect()
    }

    /// Its chains: they must be there before a rule jumps to them.
    pub(crate) fn chains(&self) -> Vec<String> {
        self.policy_chains().into_iter().chain([self.link_chain()]).collect()
    }

    /// What its rules look into, with what is pinned: it must be there before them.
    pub(crate) fn sets(&self, table: &str) -> Vec<Value> {
        let pins: Vec<Pin> = if self.has_names() { pins::read(&self.pins) } else { Vec::new() };
        let policies = self.policies.iter().enumerate();
        policies
            .flat_map(|(at, policy)| named::sets(table, &self.chain(at), policy, &pins))
            .collect()
    }

    pub(crate) fn has_names(&self) -> bool {
        self.policies.iter().any(|policy| !policy.names.is_empty())
    }

    /// Its rules, each with the chain it is for.
    pub(crate) fn rules(&self) -> Vec<(String, Vec<Value>)> {
        let mut rules = Vec::new();
        if self.addresses.iter().any(IpAddr::is_ipv6) {
            rules.extend(self.link_rules());
        }
        for address in &self.addresses {
            let from = [
                is(json!({ "meta": { "key": "iifname" } }), json!(self.bridge)),
                is(payload(family(*address), "saddr"), json!(address.to_string())),
            ];
            let rule = |last: Value| [&from[..], &[last]].concat();
            let mut passes = rule(answer());
            passes.push(json!({ "accept": null }));
            rules.push((CHAIN.to_owned(), passes));
            for net in self.subnets.iter().filter(|net| net.addr().is_ipv4() == address.is_ipv4()) {
                let to = prefix(&net.network().to_string(), net.prefix_len());
                let mut passes = rule(is(payload(family(*address), "daddr"), to));
                let local = json!({ "fib": { "result": "type", "flags": ["daddr"] } });
                passes.push(json!({ "match": { "op": "!=", "left": local, "right": "local" } }));
                passes.push(json!({ "accept": null }));
                rules.push((CHAIN.to_owned(), passes));
            }
            for at in 0..self.policies.len() {
                let jump = json!({ "jump": { "target": self.chain(at) } });
                rules.push((CHAIN.to_owned(), rule(jump)));
            }
        }
        for (at, policy) in self.policies.iter().enumerate() {
            rules.extend(
                policy.rules(&self.chain(at)).into_iter().map(|rule| (self.chain(at), rule)),
            );
        }
        rules
    }

    /// Without neighbour discovery nobody is reached; policies know nothing of it. The redirection
    /// lets link-local addresses through for its sake: they must be good for nothing else, or they
    /// were a way to the host around every policy.
    fn link_rules(&self) -> Vec<(String, Vec<Value>)> {
        let jump = vec![
            is(json!({ "meta": { "key": "iifname" } }), json!(self.bridge)),
            is(payload("ether", "saddr"), json!(mac_text(self.mac))),
            is(json!({ "meta": { "key": "nfproto" } }), json!("ipv6")),
            json!({ "jump": { "target": self.link_chain() } }),
        ];
        let here = json!({ "fib": { "result": "type", "flags": ["daddr"] } });
        let here = is(here, json!({ "set": ["local", "multicast"] }));
        let found = is(payload("icmpv6", "type"), json!({ "set": NEIGHBOUR_TYPES }));
        let unrouted = json!({ "set": [prefix("fe80::", 10), "::"] });
        let unrouted = is(payload("ip6", "saddr"), unrouted);
        let accept = || json!({ "accept": null });
        let chain = [
            vec![answer(), accept()],
            vec![here.clone(), found, accept()],
            dropped(vec![unrouted, here]),
        ];
        let chain = chain.into_iter().map(|rule| (self.link_chain(), rule));
        [(CHAIN.to_owned(), jump)].into_iter().chain(chain).collect()
    }
}

impl Policy {
    /// Whether a name may be asked for on the pod's behalf: with `none`, only what is allowed.
    #[must_use]
    pub fn asks(&self, name: &str) -> bool {
        self.mode != Mode::None || self.covers(name)
    }

    /// Whether the answer to a name is to be pinned.
    #[must_use]
    pub fn covers(&self, name: &str) -> bool {
        self.names.iter().any(|target| target.covers(name))
    }

    fn rules(&self, chain: &str) -> Vec<Vec<Value>> {
        let mut rules = Vec::new();
        for target in &self.deny {
            rules.extend(target.matches().into_iter().map(dropped));
        }
        for target in &self.allow {
            let passes = |mut parts: Vec<Value>| {
                parts.push(json!({ "return": null }));
                parts
            };
            rules.extend(target.matches().into_iter().map(passes));
        }
        for mut pinned in named::matches(chain, self) {
            pinned.push(json!({ "return": null }));
            rules.push(pinned);
        }
        match self.mode {
            Mode::All => {}
            Mode::None => rules.push(dropped(Vec::new())),
            Mode::Public => {
                let local = json!({ "fib": { "result": "type", "flags": ["daddr"] } });
                rules.push(dropped(vec![is(local, json!("local"))]));
                for family in ["ip", "ip6"] {
                    rules.push(dropped(vec![is(payload(family, "daddr"), private(family))]));
                }
            }
        }
        rules
    }
}

impl Target {
    /// The rule's matches; two rules where a port is of two protocols.
    fn matches(&self) -> Vec<Vec<Value>> {
        let to = prefix(&self.net.network().to_string(), self.net.prefix_len());
        let to = is(payload(family(self.net.addr()), "daddr"), to);
        let Some(port) = self.port else { return vec![vec![to]] };
        let at = |protocol: Protocol| is(payload(protocol.word(), "dport"), json!(port));
        protocols(self.protocol)
            .into_iter()
            .map(|protocol| vec![to.clone(), at(protocol)])
            .collect()
    }
}

/// Those that a port without one is of.
pub(crate) fn protocols(protocol: Option<Protocol>) -> Vec<Protocol> {
    protocol.map_or_else(|| vec![Protocol::Tcp, Protocol::Udp], |one| vec![one])
}

/// Reads `PORT[/PROTOCOL]` or nothing.
pub(crate) fn port_and_protocol(text: &str) -> Option<(Option<u16>, Option<Protocol>)> {
    let (port, protocol) = match text.split_once('/') {
        Some((port, "tcp")) => (port, Some(Protocol::Tcp)),
        Some((port, "udp")) => (port, Some(Protocol::Udp)),
        Some((port, "sctp")) => (port, Some(Protocol::Sctp)),
        Some(_) => return None,
        None => (text, None),
    };
    match port {
        "" => protocol.is_none().then_some((None, None)),
        text => Some((Some(text.parse().ok().filter(|port| *port > 0)?), protocol)),
    }
}

/// The set of a family's addresses that are not the internet.
fn private(family: &str) -> Value {
    let nets = if family == "ip" { &PRIVATE_V4[..] } else { &PRIVATE_V6[..] };
    let nets: Vec<Value> = nets.iter().map(|(net, len)| prefix(net, *len)).collect();
    json!({ "set": nets })
}

/// Matches of a destination in the internet that is not the host.
pub(crate) fn public(family: &str) -> Vec<Value> {
    let local = json!({ "fib": { "result": "type", "flags": ["daddr"] } });
    let not = |left: Value, right: Value| json!({ "match": { "op": "!=", "left": left, "right": right } });
    vec![not(payload(family, "daddr"), private(family)), not(local, json!("local"))]
}

/// What was dropped, by [`Egress::name`], out of `nft -j list table`.
pub(crate) fn blocked(listing: &Value) -> BTreeMap<String, Blocked> {
    let mut all: BTreeMap<String, Blocked> = BTreeMap::new();
    for rule in listing["nftables"].as_array().into_iter().flatten().map(|one| &one["rule"]) {
        let chain = rule["chain"].as_str().unwrap_or_default();
        let Some(name) = chain.strip_prefix(CHAIN).and_then(|rest| rest.strip_prefix('-')) else {
            continue;
        };
        let name = name.rsplit_once('-').map_or(name, |(name, _)| name);
        for part in rule["expr"].as_array().into_iter().flatten() {
            let number = |key: &str| part["counter"][key].as_u64().unwrap_or(0);
            let sum = all.entry(name.to_owned()).or_default();
            sum.packets += number("packets");
            sum.bytes += number("bytes");
        }
    }
    all
}

fn answer() -> Value {
    json!({ "match": {
        "op": "in", "left": { "ct": { "key": "state" } }, "right": ["established", "related"],
    } })
}

fn dropped(mut parts: Vec<Value>) -> Vec<Value> {
    parts.push(json!({ "counter": { "packets": 0, "bytes": 0 } }));
    parts.push(json!({ "drop": null }));
    parts
}

fn prefix(net: &str, len: u8) -> Value {
    json!({ "prefix": { "addr": net, "len": len } })
}

impl FromStr for Policy {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: String| NetworkError::Egress { text: text.to_owned(), why };
        let mut words = text.split(',').map(str::trim);
        let mode = match words.next().unwrap_or_default() {
            "none" => Mode::None,
            "public" => Mode::Public,
            "all" => Mode::All,
            other => return Err(wrong(format!("`{other}` is not none, public or all"))),
        };
        let mut policy = Self { mode, allow: Vec::new(), names: Vec::new(), deny: Vec::new() };
        for word in words {
            match word.split_once('=') {
                Some(("allow", target)) => match (target.parse(), target.parse()) {
                    (Ok(target), _) => policy.allow.push(target),
                    (Err(_), Ok(named)) => policy.names.push(named),
                    (Err(address), Err(name)) => return Err(wrong(format!("{address}; {name}"))),
                },
                Some(("deny", target)) => match target.parse() {
                    Ok(target) => policy.deny.push(target),
                    Err(why) if target.parse::<Named>().is_ok() => {
                        return Err(wrong(format!(
                            "{why}; a name cannot be denied: its host is reached without it, too"
                        )));
                    }
                    Err(why) => return Err(wrong(why)),
                },
                _ => return Err(wrong(format!("`{word}` is not allow=TARGET or deny=TARGET"))),
            }
        }
        Ok(policy)
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong =
            || format!("`{text}` is no ADDRESS[/BITS][:PORT[/tcp|udp|sctp]] (IPv6 in brackets)");
        let (net, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (net, port) = rest.split_once(']').ok_or_else(wrong)?;
                (net, port.strip_prefix(':').or(port.is_empty().then_some("")).ok_or_else(wrong)?)
            }
            None if text.matches(':').count() > 1 => (text, ""),
            None => text.split_once(':').unwrap_or((text, "")),
        };
        let net = match net.parse::<IpNet>() {
            Ok(net) => net.trunc(),
            Err(_) => net.parse::<IpAddr>().map(IpNet::from).map_err(|_| wrong())?,
        };
        let (port, protocol) = port_and_protocol(port).ok_or_else(wrong)?;
        Ok(Self { net, port, protocol })
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.mode {
            Mode::None => "none",
            Mode::Public => "public",
            Mode::All => "all",
        })?;
        self.allow.iter().try_for_each(|target| write!(f, ",allow={target}"))?;
        self.names.iter().try_for_each(|named| write!(f, ",allow={named}"))?;
        self.deny.iter().try_for_each(|target| write!(f, ",deny={target}"))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.port, self.net) {
            (None, net) => return write!(f, "{net}"),
            (Some(port), IpNet::V4(net)) => write!(f, "{net}:{port}")?,
            (Some(port), IpNet::V6(net)) => write!(f, "[{net}]:{port}")?,
        }
        self.protocol.map_or(Ok(()), |protocol| write!(f, "/{}", protocol.word()))
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn policies_are_read_and_written() {
        for text in [
            "none",
            "public",
            "all,deny=198.51.100.7/32",
            "none,allow=10.0.0.0/8:443,allow=[fd00::/8]:53/udp,deny=10.1.0.0/16",
            "none,allow=10.0.0.0/8,allow=*.example.org:443/tcp,allow=example.org,deny=10.1.0.0/16",
        ] {
            assert_eq!(text.parse::<Policy>().unwrap().to_string(), text);
        }
        let short: Policy = "public, allow=10.2.3.4, deny=fd00::1".parse().unwrap();
        assert_eq!(short.to_string(), "public,allow=10.2.3.4/32,deny=fd00::1/128");
        let host: Policy = "none,allow=10.9.9.9/8".parse().unwrap();
        assert_eq!(host.to_string(), "none,allow=10.0.0.0/8");
    }

    #[test]
    fn what_is_no_policy_is_refused_by_its_part() {
        for (text, part) in [
            ("", "``"),
            ("open", "`open`"),
            ("public,10.0.0.0/8", "`10.0.0.0/8`"),
            ("none,allow=exa mple.org", "`exa mple.org` is no HOST"),
            ("public,deny=example.org", "a name cannot be denied"),
            ("none,allow=*.org", "too wide"),
            ("none,allow=10.0.0.0/33", "`10.0.0.0/33`"),
            ("none,allow=10.0.0.1:0", "`10.0.0.1:0`"),
            ("none,allow=10.0.0.1:80/icmp", "80/icmp"),
            ("none,deny=[fd00::1", "[fd00::1"),
        ] {
            let said = text.parse::<Policy>().unwrap_err().to_string();
            assert!(said.contains(part), "{text}: {said}");
        }
    }

    #[test]
    fn counters_are_summed_by_pod() {
        let rule = |chain: &str, packets: u64| {
            json!({ "rule": { "chain": chain, "expr": [{ "counter": {
                "packets": packets, "bytes": packets * 10 } }, { "drop": null }] } })
        };
        let listing = json!({ "nftables": [
            rule("egress-abc-0", 2), rule("egress-abc-link", 3), rule("egress-de-0", 0),
            rule("forward", 9),
        ] });
        let all = blocked(&listing);
        assert_eq!(all["abc"], Blocked { packets: 5, bytes: 50 });
        assert_eq!((all["de"], all.len()), (Blocked::default(), 2));
    }
}
