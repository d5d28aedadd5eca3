//! The pod's network: whatever the host prepared in a namespace, wired to cards of the guest.
//!
//! containerd's CRI plugin (CNI) and hyperd give a network namespace by path. Its interfaces are
//! redirected to taps, and their names, MACs, MTUs, addresses and routes are the guest's, which the
//! agent sets. Without a namespace a guest has its loopback only.

use std::path::PathBuf;
use std::sync::Arc;

use hyper_hypervisor::Nic;
use hyper_link::message::{Interface, Route};
use hyper_network::Manner;
use hyper_network::link::mac_text;
use hyper_task::annotation;
use serde_json::Value;

use crate::PodError;
use crate::create::blocking;

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
}

/// Wires the namespace, if there is one.
pub(crate) async fn wire(found: &Found) -> Result<Network, PodError> {
    let Some(path) = found.namespace.clone() else { return Ok(Network::default()) };
    let manner = found.manner;
    let wired =
        blocking(move || hyper_network::wire(&path, manner).map_err(PodError::Network)).await?;
    let mut network = Network::default();
    for wired in wired {
        let card = wired.card;
        let mac = mac_text(card.mac);
        let tap = Arc::new(wired.tap);
        network.nics.push(Nic { tap, mac: mac.clone(), mtu: card.mtu });
        network.routes.extend(routes(&card));
        network.interfaces.push(Interface {
            found_by: None,
            mac,
            name: card.name,
            mtu: card.mtu,
            addresses: card.addresses.iter().map(ToString::to_string).collect(),
        });
    }
    Ok(network)
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
