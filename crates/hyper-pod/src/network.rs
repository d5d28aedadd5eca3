//! The pod's network: whatever the host prepared in a namespace, wired to cards of the guest.
//!
//! containerd's CRI plugin (CNI) and hyperd give a network namespace by path. Its interfaces are
//! redirected to taps, and their names, MACs, MTUs, addresses and routes are the guest's, which the
//! agent sets. Without a namespace a guest has its loopback only. What comes into the namespace, or
//! goes, while the guest runs counts when hyperd says so ([`Guest::rewire`]).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper_hypervisor::Nic;
use hyper_link::message::{Interface, Request, Route};
use hyper_network::counters::Counters;
use hyper_network::link::mac_text;
use hyper_network::{Manner, Rider, Wiring};
use hyper_task::annotation;
use hyper_task::pod::NetworkCounters;
use serde_json::Value;

use crate::PodError;
use crate::create::blocking;
use crate::guest::Guest;

/// How long the agent may take to change its interfaces.
const REWIRE: Duration = Duration::from_secs(10);

/// What the host prepared for this pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// The namespace that `config.json` names.
    pub namespace: Option<PathBuf>,
    pub manner: Manner,
    /// The resolver's names.
    pub names: Option<PathBuf>,
}

impl Found {
    pub fn new(namespace: Option<PathBuf>, spec: &Value) -> Self {
        let note = |key: &str| spec["annotations"][key].as_str();
        Self {
            namespace,
            manner: Manner {
                strict: note(annotation::NETWORK_STRICT) == Some("true"),
                removed: note(annotation::NETWORK_REMOVED) == Some("true"),
            },
            names: note(annotation::NAMES).map(PathBuf::from),
        }
    }

    /// One line for the pod's report.
    pub fn report(&self) -> Vec<String> {
        self.namespace
            .iter()
            .map(|path| format!("network namespace `{}`", path.display()))
            .collect()
    }
}

/// Cards for the guest, and what they are to be like there.
#[derive(Debug, Default)]
pub(crate) struct Network {
    pub nics: Vec<Nic>,
    pub interfaces: Vec<Interface>,
    pub routes: Vec<Route>,
    /// Absent without a namespace.
    pub wiring: Option<Wiring>,
}

/// Wires the namespace, if there is one, to taps with so many queues.
pub(crate) async fn wire(found: &Found, queues: usize) -> Result<Network, PodError> {
    let Some(path) = found.namespace.clone() else { return Ok(Network::default()) };
    let manner = found.manner;
    let (wiring, wired) =
        blocking(move || hyper_network::wire(&path, manner, queues).map_err(PodError::Network))
            .await?;
    let mut network = Network { wiring: Some(wiring), ..Network::default() };
    for wired in wired {
        let card = wired.card;
        let mac = mac_text(card.mac);
        let tap = wired.tap.into_iter().map(Arc::new).collect();
        network.nics.push(Nic { tap, mac: mac.clone(), mtu: card.mtu });
        network.routes.extend(routes(&card));
        network.interfaces.push(interface(&Rider { card, carrier: None }));
    }
    Ok(network)
}

impl Guest {
    /// What has passed each of the pod's interfaces; of a pod without network nothing.
    ///
    /// # Errors
    /// [`PodError::Network`].
    pub async fn network_counters(&self) -> Result<Vec<NetworkCounters>, PodError> {
        let Some(wiring) = self.wiring.lock().await.clone() else { return Ok(Vec::new()) };
        let all = blocking(move || wiring.counters().map_err(PodError::Network)).await?;
        Ok(all.into_iter().map(counters).collect())
    }

    /// Brings the interfaces of a guest that runs to what is in its namespace now. One at a time: the
    /// wiring is held for so long.
    ///
    /// # Errors
    /// [`PodError::Network`], [`PodError::State`], the agent's. What could not be done is tried again
    /// by the next call.
    pub async fn rewire(&self, pod: &str) -> Result<(), PodError> {
        let mut held = self.wiring.lock().await;
        let Some(wiring) = held.clone() else {
            return Err(PodError::State {
                what: "pod",
                id: pod.to_owned(),
                state: "without a network",
                action: "change its networks",
            });
        };
        let renewed = blocking(move || {
            let mut wiring = wiring;
            let done = wiring.renew();
            Ok((wiring, done))
        });
        let (wiring, done) = renewed.await?;
        *held = Some(wiring.clone());
        done.map_err(PodError::Network)?;
        let all = wiring.interfaces();
        let request = Request::ChangeNetwork {
            gone: wiring.gone().iter().map(interface).collect(),
            interfaces: all.iter().map(interface).collect(),
            routes: all.iter().flat_map(|rider| routes(&rider.card)).collect(),
        };
        self.call(pod, request, REWIRE).await?;
        if let Some(wiring) = held.as_mut() {
            wiring.told();
        }
        Ok(())
    }
}

/// As hyperd and the client have them.
#[must_use]
pub fn counters(seen: Counters) -> NetworkCounters {
    let Counters { name, received, sent } = seen;
    NetworkCounters {
        name,
        rx_bytes: received.bytes,
        rx_packets: received.packets,
        rx_errors: received.errors,
        rx_dropped: received.dropped,
        tx_bytes: sent.bytes,
        tx_packets: sent.packets,
        tx_errors: sent.errors,
        tx_dropped: sent.dropped,
    }
}

fn interface(rider: &Rider) -> Interface {
    let card = &rider.card;
    Interface {
        mac: mac_text(card.mac),
        found_by: None,
        carrier: rider.carrier.map(mac_text),
        name: card.name.clone(),
        mtu: card.mtu,
        addresses: card.addresses.iter().map(ToString::to_string).collect(),
        no_arp: !card.arp,
    }
}

/// Those on the link first: gateways are found by them.
fn routes(card: &hyper_network::Card) -> Vec<Route> {
    let mut routes = card.routes.clone();
    routes.sort_by_key(|(_, gateway)| gateway.is_some());
    routes
        .into_iter()
        .map(|(destination, gateway)| Route {
            destination: match (destination, gateway) {
                (Some(net), _) => net.to_string(),
                (None, _) => "default".to_owned(),
            },
            gateway: gateway.map(|ip| ip.to_string()),
            interface: card.name.clone(),
        })
        .collect()
}
