//! A container's networks change.

use std::sync::Arc;

use super::{Actor, Work};
use crate::container::spec::Spec;
use crate::container::start::renew_hosts;
use crate::container::state::Status;
use crate::network::spec::{NONE, Wish};
use crate::network::wanted;
use crate::{Error, Result, runtime};

impl Actor {
    /// Into a network, or out of it (`None`).
    pub(super) async fn network(&mut self, name: &str, wish: Option<Wish>) -> Result<()> {
        let id = self.core.networks.find(name)?.id;
        let same = |known: &str| self.core.networks.find(known).is_ok_and(|one| one.id == id);
        let inside = wanted(&self.spec.host).iter().any(|(known, _)| same(known));
        let mut spec = Spec::clone(&self.spec);
        let host = &mut spec.host;
        match &wish {
            Some(_) if inside => {
                return Err(Error::Forbidden(format!(
                    "endpoint with name {} already exists in network {name}",
                    self.name
                )));
            }
            None if !inside => {
                return Err(Error::Forbidden(format!(
                    "container {} is not connected to network {name}",
                    self.spec.id
                )));
            }
            Some(wish) if matches!(host.network.as_str(), "" | NONE) => {
                host.network = name.to_owned();
                host.endpoints = [(name.to_owned(), wish.clone())].into();
            }
            Some(wish) => {
                host.endpoints.insert(name.to_owned(), wish.clone());
            }
            None => {
                host.endpoints.retain(|known, _| !same(known));
                if same(&host.network) {
                    let next = host.endpoints.keys().next().cloned();
                    host.network = next.unwrap_or_else(|| NONE.to_owned());
                }
            }
        }
        if let Work::Up { pod, .. } = &self.work {
            if self.state.status == Status::Paused {
                return Err(Error::Conflict(format!(
                    "container {} is paused: unpause it first",
                    self.name
                )));
            }
            let (pod, networks) = (pod.clone(), &self.core.networks);
            runtime::check_policies(&self.core, &spec.host)?;
            networks.check_changeable(&self.spec, &self.name).await?;
            if let Err(error) = networks.change(&spec, &self.name, &pod).await {
                if let Err(again) = networks.change(&self.spec, &self.name, &pod).await {
                    tracing::warn!(container = self.spec.id, error = again.chain(), "networks");
                }
                return Err(error);
            }
        } else if !matches!(self.work, Work::Idle) {
            return Err(Error::Conflict(format!(
                "container {} is being started or stopped: try again",
                self.name
            )));
        }
        self.core.store.set_spec(&spec).await?;
        self.spec = Arc::new(spec);
        self.publish(self.pod());
        if matches!(self.work, Work::Up { .. }) {
            renew_hosts(&self.core, &self.spec.id).await;
        }
        Ok(())
    }
}
