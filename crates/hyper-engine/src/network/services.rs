//! Services of pods: what is stored with an endpoint, and written as rules with all others.

use hyper_network::service::Services;
use ipnet::IpNet;

use super::spec::{Endpoint, Network, Service};
use super::{Networks, State};
use crate::{Error, Result};

impl Networks {
    /// Gives a pod that has its network these services in place of those it has. After a failure
    /// it has what it had.
    ///
    /// # Errors
    /// As [`Self::check_services`].
    pub async fn set_services(&self, pod: &str, services: &[Service]) -> Result<()> {
        let _turn = self.turn(pod).await;
        let Some(endpoint) = self.endpoints(pod).into_iter().next() else {
            return if services.is_empty() { Ok(()) } else { Err(unconnected()) };
        };
        if endpoint.services == services {
            return Ok(());
        }
        self.check_services(&endpoint.network, services)?;
        self.put(Endpoint { services: services.to_vec(), ..endpoint.clone() }, endpoint).await
    }

    /// Whether a pod of `network` can have them.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the one that it cannot; [`Error::NoSuchNetwork`].
    pub fn check_services(&self, network: &str, services: &[Service]) -> Result<()> {
        if services.is_empty() {
            return Ok(());
        }
        if matches!(network, "" | super::spec::NONE) {
            return Err(unconnected());
        }
        let network = self.find(network)?;
        let invalid = |service: &Service, why: String| {
            Err(Error::Invalid(format!("service {service}: {why}")))
        };
        for service in services {
            if network.is_direct() {
                let (name, word) = (&network.name, network.driver.word());
                let why = format!(
                    "network {name} is of driver {word}, where packets do not pass the host, which \
                     translates them: take a bridge network"
                );
                return invalid(service, why);
            }
            if network.internal {
                let why = format!("network {} is internal: no way leads out of it", network.name);
                return invalid(service, why);
            }
            if let Some(subnet) = network.subnets.iter().find(|one| one.net.contains(&service.ip)) {
                let why = format!(
                    "its address is in {}, which is the pod's own network, where packets do not \
                     pass the host: take one outside of it",
                    subnet.net
                );
                return invalid(service, why);
            }
            if service.ip.is_ipv6() && !network.has_ipv6() {
                return invalid(service, format!("network {} has no IPv6", network.name));
            }
        }
        Ok(())
    }
}

/// The services of an endpoint as rules, where it has some; `policies` are the chains for it.
pub(super) fn rules(
    state: &State,
    network: &Network,
    endpoint: &Endpoint,
    policies: Vec<String>,
) -> Option<Services> {
    (!endpoint.services.is_empty()).then(|| Services {
        bridge: network.bridge.clone(),
        others: state
            .networks
            .values()
            .filter(|other| other.id != network.id && state.up.contains(&other.id))
            .map(|other| other.bridge.clone())
            .collect(),
        addresses: endpoint.addresses.iter().map(IpNet::addr).collect(),
        subnets: network.subnets.iter().map(|subnet| subnet.net).collect(),
        policies,
        services: endpoint.services.clone(),
    })
}

fn unconnected() -> Error {
    Error::Invalid("a pod without network cannot have services: give it one".to_owned())
}
