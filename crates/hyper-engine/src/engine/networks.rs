//! Networks, as dialects ask for them.

use std::collections::{BTreeMap, HashMap};

use super::{Engine, ask};
use crate::container::actor::Command;
use crate::event::Kind;
use crate::network::spec::{Blocked, Endpoint, Network, NetworkRequest, PortWish, Wish};
use crate::{Result, View};

impl Engine {
    /// Why this host can have no networks but `none`.
    #[must_use]
    pub fn network_trouble(&self) -> Option<&str> {
        self.core.networks.trouble()
    }

    /// All networks but `none`, by name.
    #[must_use]
    pub fn networks(&self) -> Vec<Network> {
        self.core.networks.all()
    }

    /// The network that a name, an id, or the start of one means.
    ///
    /// # Errors
    /// [`crate::Error::NoSuchNetwork`].
    pub fn network(&self, reference: &str) -> Result<Network> {
        self.core.networks.find(reference)
    }

    /// Running containers in a network.
    #[must_use]
    pub fn members(&self, network: &str) -> Vec<Endpoint> {
        self.core.networks.members(network)
    }

    /// What a running container has, the network of its way out first: its own, or that of the pod
    /// it has joined, with those ports that it asked for.
    #[must_use]
    pub fn endpoints(&self, view: &View) -> Vec<Endpoint> {
        let (spec, known) = (&view.spec, &self.core.networks);
        if spec.host.pod.is_empty() {
            return known.endpoints(&spec.id);
        }
        if !view.state.status.is_up() {
            return Vec::new();
        }
        let mut all = known.endpoints(&spec.host.pod);
        for endpoint in &mut all {
            endpoint.ports.retain(|port| {
                let same =
                    |wish: &PortWish| (wish.port, wish.protocol) == (port.port, port.protocol);
                spec.host.ports.iter().any(same)
            });
        }
        all
    }

    /// What egress policies have dropped, by endpoint; endpoints without one are not in it.
    pub async fn blocked(&self) -> HashMap<String, Blocked> {
        self.core.networks.blocked().await
    }

    /// Makes a network.
    ///
    /// # Errors
    /// [`crate::Error::Conflict`], [`crate::Error::Forbidden`], [`crate::Error::Invalid`].
    pub async fn create_network(&self, request: NetworkRequest) -> Result<Network> {
        let core = self.core.clone();
        self.detached(async move {
            let network = core.networks.create(request).await?;
            core.events.publish(Kind::Network, "create", &network.id, about(&network, None));
            Ok(network)
        })
        .await
    }

    /// Removes a network that nobody is in.
    ///
    /// # Errors
    /// [`crate::Error::NoSuchNetwork`], [`crate::Error::Forbidden`].
    pub async fn remove_network(&self, reference: &str) -> Result<()> {
        let (core, reference) = (self.core.clone(), reference.to_owned());
        self.detached(async move {
            let network = core.networks.remove(&reference).await?;
            core.events.publish(Kind::Network, "destroy", &network.id, about(&network, None));
            Ok(())
        })
        .await
    }

    /// Brings a container into one more network.
    ///
    /// # Errors
    /// [`crate::Error::NoSuchContainer`], [`crate::Error::NoSuchNetwork`],
    /// [`crate::Error::Forbidden`] when it is in it.
    pub async fn connect(&self, container: &str, network: &str, mut wish: Wish) -> Result<()> {
        crate::container::create::resolve_links(&self.core, std::iter::once(&mut wish))?;
        let handle = self.core.find(container)?;
        let network = self.core.networks.find(network)?;
        let id = handle.view.borrow().spec.id.clone();
        let change = (network.name.clone(), Some(wish));
        ask(&handle, |reply| Command::Network { change, reply }).await?;
        self.core.events.publish(Kind::Network, "connect", &network.id, about(&network, Some(&id)));
        Ok(())
    }

    /// Takes a container out of a network.
    ///
    /// # Errors
    /// [`crate::Error::NoSuchContainer`], [`crate::Error::NoSuchNetwork`],
    /// [`crate::Error::Forbidden`] when it is not in it.
    pub async fn disconnect(&self, container: &str, network: &str) -> Result<()> {
        let handle = self.core.find(container)?;
        let network = self.core.networks.find(network)?;
        let id = handle.view.borrow().spec.id.clone();
        let change = (network.name.clone(), None);
        ask(&handle, |reply| Command::Network { change, reply }).await?;
        let about = about(&network, Some(&id));
        self.core.events.publish(Kind::Network, "disconnect", &network.id, about);
        Ok(())
    }
}

fn about(network: &Network, container: Option<&str>) -> BTreeMap<String, String> {
    let mut all = BTreeMap::from([
        ("name".to_owned(), network.name.clone()),
        ("type".to_owned(), network.driver.word().to_owned()),
    ]);
    all.extend(container.map(|id| ("container".to_owned(), id.to_owned())));
    all
}
