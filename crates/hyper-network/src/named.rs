//! Hosts by their names in egress policies.
//!
//! ```text
//! allow=HOST[:PORT[/PROTOCOL]]        HOST: registry.example, or *.example.org for all below it
//!
//! guest asks for a name ─► the pod's resolver asks on ─► answer: the name is in the policy?
//!                            └ its addresses are pinned: into sets of the pod's chain ─► answered
//! ```
//! What counts is the answer that the guest got: its addresses are open to it, for as long as it
//! may remember them, and those of other answers are not. Invariants
//! - A pinned address is public: whoever owns an allowed name cannot open the host, a metadata
//!   service or a private network by an answer of theirs. The rule itself looks, not who pins.
//! - `deny` and the policies of the network hold for what is pinned as well.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::egress::{Policy, port_and_protocol, protocols, public};
use crate::pins::Pin;
use crate::rules::{Protocol, payload};

/// Longest name (RFC 1035, 2.3.4), and the longest part between two dots.
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// A host, or all hosts below a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// Lower case; `*.` in front: all below it.
    pub host: String,
    pub port: Option<u16>,
    /// Of the port; absent: TCP and UDP.
    pub protocol: Option<Protocol>,
}

impl Named {
    /// Whether it means `name`: lower case, without a dot at the end.
    #[must_use]
    pub fn covers(&self, name: &str) -> bool {
        match self.host.strip_prefix('*') {
            Some(below) => name.len() > below.len() && name.ends_with(below),
            None => name == self.host,
        }
    }
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| Err(format!("`{text}` is no HOST[:PORT[/tcp|udp|sctp]]: {why}"));
        let (host, port) = text.split_once(':').unwrap_or((text, ""));
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let Some((port, protocol)) = port_and_protocol(port) else {
            return wrong("that is no port");
        };
        let (wild, name) = match host.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, host.as_str()),
        };
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let label =
            |label: &str| (1..=MAX_LABEL).contains(&label.len()) && label.bytes().all(letter);
        if name.len() > MAX_NAME || !name.split('.').all(label) {
            return wrong("a name has letters, digits, `-` and `_` between its dots");
        }
        if name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit())) {
            return wrong("it looks like an address and is none");
        }
        if wild && !name.contains('.') {
            return wrong("`*` for all of a top-level domain is too wide");
        }
        Ok(Self { host, port, protocol })
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))?;
        self.protocol.map_or(Ok(()), |protocol| write!(f, "/{}", protocol.word()))
    }
}

/// Sets of a chain, each with what one element is: of a family, with any port or certain ones.
const SETS: [(&str, bool, bool); 4] =
    [("4", false, false), ("6", true, false), ("4p", false, true), ("6p", true, true)];

fn set(chain: &str, suffix: &str) -> String {
    format!("{chain}-{suffix}")
}

/// The sets that a policy's chain needs, with what is pinned.
pub(crate) fn sets(table: &str, chain: &str, policy: &Policy, pins: &[Pin]) -> Vec<Value> {
    if policy.names.is_empty() {
        return Vec::new();
    }
    let one = |(suffix, ipv6, ports): (&str, bool, bool)| {
        let address = if ipv6 { "ipv6_addr" } else { "ipv4_addr" };
        let kind = match ports {
            false => json!(address),
            true => json!([address, "inet_proto", "inet_service"]),
        };
        let pins = pins.iter().filter(|pin| pin.ip.is_ipv6() == ipv6);
        let elements = distinct(pins.flat_map(|pin| elements_of(policy, pin, ports)));
        let mut set = json!({
            "family": "inet", "table": table, "name": set(chain, suffix), "type": kind,
            "flags": ["timeout"],
        });
        if !elements.is_empty() {
            set["elem"] = json!(elements);
        }
        json!({ "add": { "set": set } })
    };
    SETS.into_iter().map(one).collect()
}

/// Commands that put a pin into the sets of a chain whose table is there, or take it out.
pub(crate) fn pinned(
    table: &str,
    chain: &str,
    policy: &Policy,
    pin: &Pin,
    stays: bool,
) -> Vec<Value> {
    let mut all = Vec::new();
    for (suffix, _, ports) in SETS.iter().filter(|(_, ipv6, _)| *ipv6 == pin.ip.is_ipv6()) {
        let elements = distinct(elements_of(policy, pin, *ports).into_iter());
        if elements.is_empty() {
            continue;
        }
        let element = json!({ "element": {
            "family": "inet", "table": table, "name": set(chain, suffix), "elem": elements,
        } });
        // What is there already would keep the time that it has left; what is not there cannot be
        // deleted.
        let words = if stays { &["add", "delete", "add"][..] } else { &["add", "delete"] };
        all.extend(words.iter().map(|word| json!({ *word: element })));
    }
    all
}

fn elements_of(policy: &Policy, pin: &Pin, ports: bool) -> Vec<Value> {
    let mut all = Vec::new();
    for target in policy.names.iter().filter(|target| target.covers(&pin.name)) {
        let ip = pin.ip.to_string();
        let values = match target.port {
            None if !ports => vec![json!(ip)],
            Some(port) if ports => protocols(target.protocol)
                .into_iter()
                .map(|protocol| json!({ "concat": [ip, protocol.word(), port] }))
                .collect(),
            _ => continue,
        };
        let left = pin.left().as_secs().max(1);
        all.extend(
            values.into_iter().map(|val| json!({ "elem": { "val": val, "timeout": left } })),
        );
    }
    all
}

/// One element for each value, with the longest time: several names may have one address.
fn distinct(elements: impl Iterator<Item = Value>) -> Vec<Value> {
    let mut all: BTreeMap<String, Value> = BTreeMap::new();
    for element in elements {
        let left = |element: &Value| element["elem"]["timeout"].as_u64();
        let key = element["elem"]["val"].to_string();
        if all.get(&key).is_none_or(|known| left(known) < left(&element)) {
            all.insert(key, element);
        }
    }
    all.into_values().collect()
}

/// Matches of rules that let what is pinned pass.
pub(crate) fn matches(chain: &str, policy: &Policy) -> Vec<Vec<Value>> {
    let needed = |ports: bool| policy.names.iter().any(|target| target.port.is_some() == ports);
    let sets = SETS.iter().filter(|(_, _, ports)| needed(*ports));
    sets.map(|(suffix, ipv6, ports)| {
        let family = if *ipv6 { "ip6" } else { "ip" };
        let to = payload(family, "daddr");
        let key = match ports {
            false => to,
            true => json!({ "concat": [
                to, { "meta": { "key": "l4proto" } }, payload("th", "dport"),
            ] }),
        };
        let inside = json!({ "match": {
            "op": "==", "left": key, "right": format!("@{}", set(chain, suffix)),
        } });
        [vec![inside], public(family)].concat()
    })
    .collect()
}

#[cfg(test)]
mod test {
    use super::*;

    fn named(text: &str) -> Named {
        text.parse().unwrap()
    }

    #[test]
    fn hosts_are_read_and_written() {
        for text in ["registry.example", "*.example.org:443", "a-b.c_d.e:53/udp"] {
            assert_eq!(named(text).to_string(), text);
        }
        assert_eq!(named("Example.ORG.").host, "example.org");
        for (text, why) in [
            ("10.0.0.300", "looks like an address"),
            ("*.org", "too wide"),
            ("*", "letters"),
            ("a..b", "letters"),
            ("a.*.b", "letters"),
            ("a b", "letters"),
            ("", "letters"),
            ("x.y:0", "no port"),
            ("x.y:80/icmp", "no port"),
        ] {
            let said = text.parse::<Named>().unwrap_err();
            assert!(said.contains(why), "{text}: {said}");
        }
        assert!("a".repeat(64).parse::<Named>().is_err());
    }

    #[test]
    fn a_star_means_what_is_below_and_nothing_that_ends_alike() {
        let star = named("*.example.org");
        assert!(star.covers("a.example.org") && star.covers("a.b.example.org"));
        for other in ["example.org", "badexample.org", ".example.org.evil", "x.example.com"] {
            assert!(!star.covers(other), "{other}");
        }
        assert!(named("example.org").covers("example.org"));
        assert!(!named("example.org").covers("a.example.org"));
    }

    #[test]
    fn a_pin_opens_the_ports_of_the_targets_that_mean_it() {
        let policy: Policy =
            "none,allow=*.example.org:443/tcp,allow=a.example.org:53,allow=other".parse().unwrap();
        let pin = Pin::new("a.example.org", "8.8.8.8".parse().unwrap(), 600);
        let told = pinned("t", "c", &policy, &pin, true);
        assert_eq!(told.len(), 3, "one set: {told:?}");
        let elements = &told[0]["add"]["element"];
        assert_eq!(elements["name"], "c-4p");
        let values: Vec<String> = elements["elem"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["elem"]["val"]["concat"].to_string())
            .collect();
        let wanted =
            [r#"["8.8.8.8","tcp",443]"#, r#"["8.8.8.8","tcp",53]"#, r#"["8.8.8.8","udp",53]"#];
        assert_eq!(values, wanted);
        assert!(pinned("t", "c", &policy, &Pin::new("b.org", pin.ip, 600), true).is_empty());
        assert_eq!(sets("t", "c", &policy, &[pin.clone(), pin]).len(), 4);
    }
}
