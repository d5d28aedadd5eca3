//! Networks of containers: bridges of the host or the LAN itself, addresses, published ports, names.
//!
//! ```text
//!   create ─▶ database          first pod: bridge, rules
//!   start  ─▶ address, ports held (database) ─▶ namespace, link ─▶ rules ─▶ names ─▶ supervisor
//!   end    ─▶ the same backwards
//! ```
//! Invariants
//! - An address is an endpoint's in the database before it is anywhere else, and it is given away
//!   again after all else is gone.
//! - What a crash left is found by the database and by names that are ours, and removed
//!   ([`Networks::reconcile`]); pods that live are not touched.
//! - A pod without network costs nothing, and a hyperd without such pods changes nothing of the
//!   host: bridges and rules come with the first pod of a network.
//!
//! Files: [`spec`] words, [`manage`] making and removing networks, [`attach`] pods come and go,
//! [`change`] what changes while they run, [`services`], [`ports`] (with [`sockets`] and [`datagrams`]), [`names`], [`direct`] networks without
//! a bridge, [`host`] the blocking work.

pub(crate) mod attach;
mod change;
mod datagrams;
mod direct;
mod host;
mod manage;
mod messages;
mod names;
mod ports;
mod services;
pub(crate) mod sockets;
pub mod spec;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper_network::egress::Egress;
use hyper_network::link::parse_mac;
use hyper_network::rules::{self, Rules};
use ipnet::IpNet;

use crate::container::spec::Spec;
use crate::layout::Layout;
use crate::store::Store;
use crate::turns::{Turn, Turns};
use crate::{Error, Result};
pub(crate) use attach::{egress, rates};
pub(crate) use attach::{parse_exposed, wanted};
use sockets::HostSockets;
use spec::{Blocked, DEFAULT, Endpoint, Network, Policy};

/// How long other firewalls of the host are taken to be as they were.
const ADMITTED: Duration = Duration::from_secs(5);

/// The networks of one engine.
#[derive(Debug)]
pub(crate) struct Networks {
    layout: Layout,
    store: Store,
    /// Tells our interfaces and our table from those of other hyperds.
    tag: String,
    /// Why there are none on this host.
    trouble: Option<String>,
    ports: ports::Host,
    state: Mutex<State>,
    /// One at a time makes and removes bridges and rules.
    host: tokio::sync::Mutex<()>,
    /// One at a time writes what resolvers read: what is written last is what is known last.
    written: tokio::sync::Mutex<()>,
    /// One at a time changes what a container has, by its id.
    turns: Turns,
}

#[derive(Debug, Default)]
struct State {
    networks: BTreeMap<String, Network>,
    /// By id.
    endpoints: BTreeMap<String, Endpoint>,
    /// By endpoint.
    held: HashMap<String, Vec<ports::Held>>,
    /// Networks whose bridge is there.
    up: BTreeSet<String>,
    /// The address given last, by network.
    last: HashMap<String, IpAddr>,
    /// Endpoints that are on their way out: no rule is for them any more.
    free: BTreeSet<String>,
    /// Bridges that the host's other firewalls know, and since when.
    admitted: Option<(Vec<String>, Instant)>,
    /// What policies have dropped before the rules were written last, by endpoint.
    blocked: HashMap<String, Blocked>,
}

impl Networks {
    /// Reads what there is and makes the default network if this is new. Changes nothing of the
    /// host.
    pub async fn open(layout: Layout, store: Store, sockets: Arc<dyn HostSockets>) -> Result<Self> {
        let networks = store.networks().await?;
        let endpoints = store.endpoints().await?;
        let tag = host::tag(&layout.exec_root);
        let trouble = crate::core::blocking(|| Ok(hyper_network::trouble())).await?;
        if let Some(why) = &trouble {
            tracing::warn!(why, "no networks on this host: containers have --network none only");
        }
        let state = State {
            networks: networks.into_iter().map(|one| (one.id.clone(), one)).collect(),
            endpoints: endpoints.into_iter().map(|one| (one.id.clone(), one)).collect(),
            ..State::default()
        };
        let opened = Self {
            layout,
            store,
            tag,
            trouble,
            ports: ports::Host::new(sockets),
            state: Mutex::new(state),
            host: tokio::sync::Mutex::default(),
            written: tokio::sync::Mutex::default(),
            turns: Turns::default(),
        };
        if opened.trouble.is_none() && opened.find(DEFAULT).is_err() {
            opened.make_default().await?;
        }
        Ok(opened)
    }

    /// Why there are no networks on this host.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// The right to change what a container has.
    pub async fn turn(&self, container: &str) -> Turn {
        self.turns.take(container).await
    }

    fn check(&self) -> Result<()> {
        match &self.trouble {
            None => Ok(()),
            Some(why) => Err(Error::Unsupported(format!(
                "this host cannot have networks: {why}; until then run containers with \
                 --network none"
            ))),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All networks, by name.
    pub fn all(&self) -> Vec<Network> {
        let mut all: Vec<Network> = self.state().networks.values().cloned().collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all
    }

    /// The network that a name, an id, or the start of one means.
    pub fn find(&self, reference: &str) -> Result<Network> {
        let reference = if reference == "default" { DEFAULT } else { reference };
        let missing = || Error::NoSuchNetwork(reference.to_owned());
        if reference.is_empty() {
            return Err(missing());
        }
        let state = self.state();
        if let Some(found) = state.networks.values().find(|network| network.name == reference) {
            return Ok(found.clone());
        }
        let mut starting = state
            .networks
            .range(reference.to_owned()..)
            .take_while(|(id, _)| id.starts_with(reference));
        match (starting.next(), starting.next()) {
            (Some((_, found)), None) => Ok(found.clone()),
            (Some(_), Some(_)) => Err(Error::Invalid(format!(
                "network {reference} is ambiguous: several ids begin so: give more digits"
            ))),
            (None, _) => Err(missing()),
        }
    }

    /// Endpoints of a network.
    pub fn members(&self, network: &str) -> Vec<Endpoint> {
        let state = self.state();
        state.endpoints.values().filter(|one| one.network == network).cloned().collect()
    }

    /// Endpoints of a container, the way out first and then by interface.
    pub fn endpoints(&self, container: &str) -> Vec<Endpoint> {
        let state = self.state();
        let mut own: Vec<Endpoint> =
            state.endpoints.values().filter(|one| one.container == container).cloned().collect();
        let place =
            |one: &Endpoint| (one.gateways.is_empty(), one.interface.len(), one.interface.clone());
        own.sort_by_key(place);
        own
    }

    /// Whether a policy for a container means hosts by name: only our resolver can hold it then.
    pub fn has_names(&self, spec: &Spec) -> Result<bool> {
        let of_network = |(name, _): &(String, _)| self.find(name).ok()?.egress();
        let mut all: Vec<Policy> = match spec.host.pod.as_str() {
            "" => wanted(&spec.host).iter().filter_map(of_network).collect(),
            pod => {
                let of_pod = |endpoint: &Endpoint| {
                    Some(policies(&self.find(&endpoint.network).ok()?, endpoint))
                };
                self.endpoints(pod).iter().filter_map(of_pod).flatten().collect()
            }
        };
        all.extend(egress(&spec.host)?);
        Ok(all.iter().any(|policy| !policy.names.is_empty()))
    }

    /// Whether a policy is for it, its own or the network's.
    fn is_bound(&self, endpoint: &Endpoint) -> bool {
        let of_network = || self.find(&endpoint.network).is_ok_and(|one| one.egress().is_some());
        endpoint.egress.is_some() || of_network()
    }

    /// What policies have dropped, by endpoint; those without one are not in it.
    pub async fn blocked(&self) -> HashMap<String, Blocked> {
        let chains = self.chains();
        if chains.is_empty() {
            return HashMap::new();
        }
        let _turn = self.host.lock().await;
        self.count(&chains).await
    }

    /// Counters of the table as it is, added to those that went with tables before it.
    async fn count(&self, chains: &[(String, String)]) -> HashMap<String, Blocked> {
        let table = self.table();
        let now =
            crate::core::blocking(move || Rules::blocked(&table).map_err(Error::Network)).await;
        let now = now.unwrap_or_else(|error| {
            // Better a figure that is too small than a container that does not start.
            tracing::warn!("what egress policies have dropped is not counted: {error}");
            BTreeMap::new()
        });
        let state = self.state();
        let sum = |(id, chain): &(String, String)| {
            let before = state.blocked.get(id).copied().unwrap_or_default();
            let more = now.get(chain).copied().unwrap_or_default();
            let (packets, bytes) = (before.packets + more.packets, before.bytes + more.bytes);
            (id.clone(), Blocked { packets, bytes })
        };
        chains.iter().map(sum).collect()
    }

    /// The packet filter as it is to be now.
    fn rules(&self) -> Rules {
        let state = self.state();
        let (mut egress, mut services) = (Vec::new(), Vec::new());
        for endpoint in state.endpoints.values().filter(|one| !state.free.contains(&one.id)) {
            let Some(network) = state.networks.get(&endpoint.network) else { continue };
            let policies = policies(network, endpoint);
            if !state.up.contains(&network.id) {
                continue;
            }
            let mut chains = Vec::new();
            if !policies.is_empty() {
                let own = Egress {
                    name: chain(&endpoint.id).to_owned(),
                    bridge: network.bridge.clone(),
                    // Read when it was attached.
                    mac: parse_mac(&endpoint.mac).unwrap_or_default(),
                    addresses: endpoint.addresses.iter().map(IpNet::addr).collect(),
                    subnets: network.subnets.iter().map(|subnet| subnet.net).collect(),
                    policies,
                    pins: self.layout.pod_pins(&endpoint.container),
                };
                chains = own.policy_chains();
                egress.push(own);
            }
            services.extend(services::rules(&state, network, endpoint, chains));
        }
        let networks = state.networks.values().filter(|network| state.up.contains(&network.id));
        let mut ports = Vec::new();
        for endpoint in state.endpoints.values() {
            for port in &endpoint.ports {
                for ipv6 in [false, true] {
                    let Some(pod) = endpoint.address(ipv6) else { continue };
                    if port.host.is_some_and(|host| host.is_ipv6() != ipv6) {
                        continue;
                    }
                    // An unspecified address is every one of its family.
                    let host = port.host.filter(|host| !host.is_unspecified());
                    ports.push(rules::Port {
                        protocol: port.protocol,
                        host,
                        host_port: port.host_port,
                        pod: pod.addr(),
                        pod_port: port.port,
                    });
                }
            }
        }
        Rules {
            table: self.table(),
            networks: networks
                .map(|network| rules::Network {
                    bridge: network.bridge.clone(),
                    subnets: network.subnets.iter().map(|subnet| subnet.net).collect(),
                    internal: network.internal,
                    masquerade: network.masquerade,
                })
                .collect(),
            ports,
            egress,
            services,
            lock: self.layout.rules_lock(),
        }
    }

    /// Endpoints with a policy, and the names of their chains.
    fn chains(&self) -> Vec<(String, String)> {
        let state = self.state();
        let bound = |one: &&Endpoint| {
            let network = state.networks.get(&one.network);
            one.egress.is_some() || network.is_some_and(|network| network.egress().is_some())
        };
        let all = state.endpoints.values().filter(bound);
        all.map(|one| (one.id.clone(), chain(&one.id).to_owned())).collect()
    }

    fn table(&self) -> String {
        format!("hyper_{}", self.tag)
    }

    /// Ours in iptables.
    fn firewall_chain(&self) -> String {
        format!("HYPER-{}", self.tag)
    }

    /// Writes the rules, with [`Self::host`] held.
    async fn apply(&self) -> Result<()> {
        let (rules, mark) = (self.rules(), self.layout.rules_mark());
        let chains = self.chains();
        if !chains.is_empty() {
            // The counters go with the table.
            let counted = self.count(&chains).await;
            self.state().blocked = counted;
        }
        let bridges: Vec<String> = rules.networks.iter().map(|one| one.bridge.clone()).collect();
        let chain = self.firewall_chain();
        let admitted = {
            let mut state = self.state();
            let known =
                |(known, at): &(Vec<String>, Instant)| *known == bridges && at.elapsed() < ADMITTED;
            let admitted = state.admitted.as_ref().is_some_and(known);
            state.admitted = Some((bridges.clone(), Instant::now()));
            admitted
        };
        crate::core::blocking(move || {
            if !admitted && (mark.exists() || !bridges.is_empty()) {
                host::admit(&chain, &bridges);
            }
            if rules.networks.is_empty() {
                if mark.exists() {
                    Rules::remove(&rules.table).map_err(host::wrong)?;
                    let _ = std::fs::remove_file(mark);
                }
                return Ok(());
            }
            // First: a table without mark would never be removed.
            std::fs::write(&mark, &rules.table).map_err(Error::file("write", &mark))?;
            rules.apply().map_err(host::wrong)
        })
        .await
    }

    /// Every subnet that is spoken for.
    fn subnets(&self, but: &str) -> Vec<IpNet> {
        let state = self.state();
        let others = state.networks.values().filter(|network| network.id != but);
        others.flat_map(|network| network.subnets.iter().map(|subnet| subnet.net)).collect()
    }
}

/// All that hold for an endpoint, in the order of their chains.
fn policies(network: &Network, endpoint: &Endpoint) -> Vec<Policy> {
    network.egress().into_iter().chain(endpoint.egress.clone()).collect()
}

/// Names the chains of an endpoint.
fn chain(endpoint: &str) -> &str {
    endpoint.get(..12).unwrap_or(endpoint)
}
