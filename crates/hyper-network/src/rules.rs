//! The packet filter: one nftables table of ours, written as a whole from what is to hold.
//!
//! [`Rules::apply`] replaces the table in one transaction, so that there is never a half of it, and
//! what a crash left is gone with the next one. No other table is touched. `nft` is Debian's
//! program, driven as JSON (libnftables-json(5)) by the `nftables` crate.
//!
//! | chain | does |
//! | --- | --- |
//! | `guard` (prerouting, raw) | a pod never reaches the host's loopback |
//! | `egress` (prerouting, filter) | pods with a policy reach what it lets them, see `egress.rs` |
//! | `services` (prerouting, filter) | the same for what services are translated to, see `service.rs` |
//! | `published` (prerouting, output: dstnat) | published ports to their pod |
//! | `masquerade` (postrouting, srcnat) | pods appear as the host outside |
//! | `forward` | networks are apart; nobody but published ports gets in; `internal` stays inside |

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use nftables::helper;
use serde_json::{Value, json};

use crate::egress::{self, Blocked, Egress};
use crate::error::{NetworkError, Result};
use crate::pins;
use crate::service::{self, Services};

/// What is to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// The table's name.
    pub table: String,
    pub networks: Vec<Network>,
    pub ports: Vec<Port>,
    /// What pods may reach; those that are not here reach all.
    pub egress: Vec<Egress>,
    /// Services of pods that have some.
    pub services: Vec<Services>,
    /// Held while the table is replaced, if policies have names, see [`crate::pins`].
    pub lock: PathBuf,
}

/// A bridge and what is behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    pub bridge: String,
    pub subnets: Vec<IpNet>,
    /// Nothing in, nothing out.
    pub internal: bool,
    pub masquerade: bool,
}

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    pub protocol: Protocol,
    /// `None`: every address of the host.
    pub host: Option<IpAddr>,
    pub host_port: u16,
    pub pod: IpAddr,
    pub pod_port: u16,
}

/// What has ports.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// As Docker and nft write it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl Rules {
    /// Replaces the table. Blocking, some ten milliseconds.
    ///
    /// # Errors
    /// [`NetworkError::Rules`] with `nft`'s words.
    pub fn apply(&self) -> Result<()> {
        let named = self.egress.iter().any(Egress::has_names);
        let _held = named.then(|| pins::hold(&self.lock)).transpose()?;
        run(&json!({ "nftables": self.commands() }))
    }

    /// What was dropped by [`Egress`] policies since the table was written, by their names.
    /// Blocking.
    ///
    /// # Errors
    /// [`NetworkError::Rules`]. No table is no error: nothing has been dropped then.
    pub fn blocked(table: &str) -> Result<BTreeMap<String, Blocked>> {
        let words = ["list", "table", "inet", table];
        let listed = match helper::get_current_ruleset_raw(None::<&str>, words).map_err(told) {
            Ok(listed) => listed,
            Err(NetworkError::Rules(text)) if text.contains("No such file or directory") => {
                return Ok(BTreeMap::new());
            }
            Err(error) => return Err(error),
        };
        let listing = serde_json::from_str(&listed)
            .map_err(|error| NetworkError::Rules(format!("nft's listing: {error}")))?;
        Ok(egress::blocked(&listing))
    }

    /// Removes the table; fine when there is none.
    ///
    /// # Errors
    /// [`NetworkError::Rules`].
    pub fn remove(table: &str) -> Result<()> {
        let table = json!({ "family": "inet", "name": table });
        run(
            &json!({ "nftables": [{ "add": { "table": table } }, { "delete": { "table": table } }] }),
        )
    }

    fn commands(&self) -> Vec<Value> {
        let table = json!({ "family": "inet", "name": self.table });
        let mut all = vec![
            json!({ "add": { "table": table } }),
            json!({ "delete": { "table": table } }),
            json!({ "add": { "table": table } }),
        ];
        for (name, kind, hook, priority) in [
            ("guard", "filter", "prerouting", -300),
            // After connections are known, before destinations are translated.
            (egress::CHAIN, "filter", "prerouting", -150),
            ("published", "nat", "prerouting", -100),
            // After that.
            (service::JUDGED, "filter", "prerouting", -90),
            ("published-here", "nat", "output", -100),
            ("masquerade", "nat", "postrouting", 100),
            ("forward", "filter", "forward", 0),
        ] {
            all.push(json!({ "add": { "chain": {
                "family": "inet", "table": self.table, "name": name, "type": kind, "hook": hook,
                "prio": priority, "policy": "accept",
            } } }));
        }
        for chain in self.egress.iter().flat_map(Egress::chains) {
            all.push(json!({ "add": { "chain": {
                "family": "inet", "table": self.table, "name": chain,
            } } }));
        }
        all.extend(self.egress.iter().flat_map(|egress| egress.sets(&self.table)));
        let mut rule = |chain: &str, parts: Vec<Value>| {
            all.push(json!({ "add": { "rule": {
                "family": "inet", "table": self.table, "chain": chain, "expr": parts,
            } } }));
        };
        self.guard(&mut rule);
        for (chain, parts) in self.services.iter().flat_map(Services::waiting) {
            rule(chain, parts);
        }
        for (chain, parts) in self.egress.iter().flat_map(Egress::rules) {
            rule(&chain, parts);
        }
        for parts in self.services.iter().flat_map(Services::translation) {
            rule("published", parts);
        }
        for (chain, parts) in self.services.iter().flat_map(Services::judgement) {
            rule(chain, parts);
        }
        for port in &self.ports {
            for chain in ["published", "published-here"] {
                rule(chain, port.rule());
            }
        }
        self.masquerade(&mut rule);
        self.forward(&mut rule);
        all
    }

    fn guard(&self, rule: &mut impl FnMut(&str, Vec<Value>)) {
        for network in &self.networks {
            let local = json!({ "prefix": { "addr": "127.0.0.0", "len": 8 } });
            let parts = vec![iif(&network.bridge), is(payload("ip", "daddr"), local), drop_it()];
            rule("guard", parts);
        }
    }

    fn masquerade(&self, rule: &mut impl FnMut(&str, Vec<Value>)) {
        let masquerade = || json!({ "masquerade": null });
        for network in &self.networks {
            for subnet in &network.subnets {
                let family = family(subnet.addr());
                let from = is(payload(family, "saddr"), prefix(subnet));
                // A pod that asks for a port of its own network by the host's address: the answer
                // has to come back this way.
                let here = vec![from.clone(), oif(&network.bridge), translated(), masquerade()];
                rule("masquerade", here);
                if network.masquerade && !network.internal {
                    rule("masquerade", vec![from, not_oif(&network.bridge), masquerade()]);
                }
            }
            let local = json!({ "prefix": { "addr": "127.0.0.0", "len": 8 } });
            let from_loopback = is(payload("ip", "saddr"), local);
            rule("masquerade", vec![oif(&network.bridge), from_loopback, masquerade()]);
        }
    }

    fn forward(&self, rule: &mut impl FnMut(&str, Vec<Value>)) {
        let state = json!({ "match": {
            "op": "in", "left": { "ct": { "key": "state" } }, "right": ["established", "related"],
        } });
        for network in self.networks.iter().filter(|network| network.internal) {
            rule("forward", vec![iif(&network.bridge), not_oif(&network.bridge), drop_it()]);
            rule("forward", vec![oif(&network.bridge), not_iif(&network.bridge), drop_it()]);
        }
        for parts in self.services.iter().flat_map(Services::apart) {
            rule("forward", parts);
        }
        for network in &self.networks {
            let to = oif(&network.bridge);
            rule("forward", vec![to.clone(), state.clone(), accept()]);
            rule("forward", vec![to.clone(), translated(), accept()]);
            rule("forward", vec![to, not_iif(&network.bridge), drop_it()]);
        }
    }
}

impl Port {
    fn rule(&self) -> Vec<Value> {
        let family = family(self.pod);
        let mut parts = match self.host {
            Some(ip) => vec![is(payload(family, "daddr"), json!(ip.to_string()))],
            None => {
                let local = json!({ "fib": { "result": "type", "flags": ["daddr"] } });
                let version = if self.pod.is_ipv4() { "ipv4" } else { "ipv6" };
                vec![is(meta("nfproto"), json!(version)), is(local, json!("local"))]
            }
        };
        if self.pod.is_ipv6() {
            // There is no way from ::1 to another address.
            parts.push(json!({ "match": {
                "op": "!=", "left": payload("ip6", "daddr"), "right": "::1",
            } }));
        }
        parts.push(is(payload(self.protocol.word(), "dport"), json!(self.host_port)));
        parts.push(json!({ "dnat": {
            "family": family, "addr": self.pod.to_string(), "port": self.pod_port,
        } }));
        parts
    }
}

pub(crate) fn run(commands: &Value) -> Result<()> {
    let none: [&str; 0] = [];
    helper::apply_ruleset_raw(&commands.to_string(), None::<&str>, none).map(drop).map_err(told)
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn told(error: helper::NftablesError) -> NetworkError {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    NetworkError::Rules(text)
}

pub(crate) fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "ip" } else { "ip6" }
}

pub(crate) fn payload(protocol: &str, field: &str) -> Value {
    json!({ "payload": { "protocol": protocol, "field": field } })
}

fn meta(key: &str) -> Value {
    json!({ "meta": { "key": key } })
}

#[expect(clippy::needless_pass_by_value, reason = "JSON is built from parts")]
pub(crate) fn is(left: Value, right: Value) -> Value {
    json!({ "match": { "op": "==", "left": left, "right": right } })
}

fn iif(name: &str) -> Value {
    is(meta("iifname"), json!(name))
}

fn oif(name: &str) -> Value {
    is(meta("oifname"), json!(name))
}

fn not_iif(name: &str) -> Value {
    json!({ "match": { "op": "!=", "left": meta("iifname"), "right": name } })
}

fn not_oif(name: &str) -> Value {
    json!({ "match": { "op": "!=", "left": meta("oifname"), "right": name } })
}

/// The destination was one of our published ports (or another's).
fn translated() -> Value {
    json!({ "match": { "op": "in", "left": { "ct": { "key": "status" } }, "right": "dnat" } })
}

fn prefix(net: &IpNet) -> Value {
    json!({ "prefix": { "addr": net.network().to_string(), "len": net.prefix_len() } })
}

fn accept() -> Value {
    json!({ "accept": null })
}

fn drop_it() -> Value {
    json!({ "drop": null })
}
