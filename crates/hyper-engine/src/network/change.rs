//! Networks of containers that run: in and out of one, another name, policy or rate.
//!
//! ```text
//!   connect     address (database) ─▶ link into the namespace ─▶ guest ─▶ rules ─▶ spec
//!   disconnect  link ─▶ rules, names, address ─▶ way out by another ─▶ guest ─▶ spec
//! ```
//! What a container is in is compared with what its spec says, and changed: so a change that failed
//! is undone by the old spec, and one that a crash cut off by the next hyperd ([`Networks::settle`]).

use std::collections::{BTreeSet, HashSet};

use super::attach::{egress, rates, wanted};
use super::spec::{Endpoint, Policy, Rates};
use super::{Networks, direct, host, names};
use crate::container::spec::Spec;
use crate::supervisor::Pod;
use crate::{Error, Result};

impl Networks {
    /// Whether a running container can be brought into networks.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it has no network of its own.
    pub async fn check_changeable(&self, spec: &Spec, name: &str) -> Result<()> {
        self.check()?;
        let path = self.layout.namespace(&spec.id);
        if tokio::fs::try_exists(&path).await.unwrap_or(false) {
            return Ok(());
        }
        Err(Error::Conflict(format!(
            "container {name} was started without a network and has no card for one: stop it first"
        )))
    }

    /// Brings a running container to the networks of its spec. After a failure it is somewhere in
    /// between: the same with the spec of before brings it back.
    ///
    /// # Errors
    /// As [`Self::attach`]; [`Error::Supervisor`] when its guest does not follow.
    pub async fn change(&self, spec: &Spec, name: &str, pod: &Pod) -> Result<()> {
        let _turn = self.turn(&spec.id).await;
        for endpoint in self.stray(spec).await? {
            let (gone, path) = (endpoint.clone(), self.layout.namespace(&spec.id));
            // First: an address must not be another's while the guest can still send from it.
            crate::core::blocking(move || {
                host::unplug_endpoint(&gone, &path);
                Ok(())
            })
            .await?;
            self.free_endpoint(&endpoint).await;
        }
        self.join(spec, name).await?;
        pod.rewire().await?;
        if !self.publish(spec).await? {
            self.enforce(spec).await?;
        }
        self.write_pod(spec).await.map(drop)
    }

    /// After hyperd came back, for a container that runs: finishes or undoes a change that was cut off.
    pub async fn settle(&self, spec: &Spec, name: &str, pod: &Pod) -> Result<()> {
        let known = self.endpoints(&spec.id).len();
        let namespace = self.layout.namespace(&spec.id);
        if !tokio::fs::try_exists(&namespace).await.unwrap_or(false) {
            return Ok(());
        }
        if self.stray(spec).await?.is_empty() && known == wanted(&spec.host).len() {
            return Ok(());
        }
        tracing::info!(container = spec.id, "a change of its networks was cut off");
        self.change(spec, name, pod).await
    }

    /// What a container has and is not to have, or has no link for.
    async fn stray(&self, spec: &Spec) -> Result<Vec<Endpoint>> {
        let wanted: BTreeSet<String> = wanted(&spec.host)
            .iter()
            .filter_map(|(name, _)| Some(self.find(name).ok()?.id))
            .collect();
        let (mut all, path) = (self.endpoints(&spec.id), self.layout.namespace(&spec.id));
        crate::core::blocking(move || {
            let links = host::links()?;
            let inner = match all.iter().any(Endpoint::is_direct) {
                true => direct::links(&path)?,
                false => HashSet::new(),
            };
            let there = |one: &Endpoint| match one.is_direct() {
                true => inner.contains(&one.interface),
                false => links.contains(&one.link),
            };
            all.retain(|one| !(wanted.contains(&one.network) && there(one)));
            Ok(all)
        })
        .await
    }

    /// Plugs in what is missing, and sees to it that there is a way out.
    async fn join(&self, spec: &Spec, name: &str) -> Result<()> {
        let wanted = wanted(&spec.host);
        let mut out = match self.endpoints(&spec.id).iter().any(|one| !one.gateways.is_empty()) {
            // It stays: connections go by it.
            true => None,
            false => self.way_out(&wanted),
        };
        for (network, wish) in &wanted {
            let id = self.find(network)?.id;
            let all = self.endpoints(&spec.id);
            let leads = out.as_ref() == Some(network);
            if let Some(known) = all.iter().find(|one| one.network == id) {
                if leads {
                    self.lead_out(known.clone()).await?;
                    out = None;
                }
                continue;
            }
            let free = (0..).map(|at| format!("eth{at}"));
            let mut free = free.filter(|name| all.iter().all(|one| one.interface != *name));
            let interface = free.next().unwrap_or_default();
            self.plug(spec, name, (network, wish), interface, leads).await?;
        }
        Ok(())
    }

    /// Makes a network that a container is in its way out.
    async fn lead_out(&self, mut endpoint: Endpoint) -> Result<()> {
        endpoint.gateways = self.find(&endpoint.network)?.gateways();
        self.store.put_endpoint(&endpoint).await?;
        let path = self.layout.namespace(&endpoint.container);
        self.state().endpoints.insert(endpoint.id.clone(), endpoint.clone());
        crate::core::blocking(move || host::lead_out(&endpoint, &path)).await
    }

    /// The container has another name now.
    pub async fn renamed(&self, spec: &Spec, name: &str) {
        for mut endpoint in self.endpoints(&spec.id) {
            endpoint.names = names::of(spec, name, &endpoint.aliases);
            let stored = self.store.put_endpoint(&endpoint).await;
            self.state().endpoints.insert(endpoint.id.clone(), endpoint.clone());
            let written = match self.find(&endpoint.network) {
                Ok(network) => self.write_network(&network).await,
                Err(error) => Err(error),
            };
            if let Err(error) = stored.and(written) {
                tracing::warn!(container = spec.id, error = error.chain(), "names");
            }
        }
    }

    /// Puts the policy that a container asks for in place of the one that it has. What it does not let
    /// through ends at once, also what has begun. After a failure it has what it had.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::Network`].
    pub async fn set_egress(&self, spec: &Spec) -> Result<()> {
        let policy = egress(&spec.host)?;
        let _turn = self.turn(&spec.id).await;
        self.check_direct(spec, policy.as_ref(), &Rates::default())?;
        for endpoint in self.endpoints(&spec.id) {
            if endpoint.egress == policy {
                continue;
            }
            self.put(Endpoint { egress: policy.clone(), ..endpoint.clone() }, endpoint).await?;
            self.write_pod(spec).await?;
        }
        Ok(())
    }

    /// Holds the links of a container to the rates that it asks for.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::Network`].
    pub async fn set_rates(&self, spec: &Spec) -> Result<()> {
        let rates = rates(&spec.host)?;
        let _turn = self.turn(&spec.id).await;
        self.check_direct(spec, None, &rates)?;
        for endpoint in self.endpoints(&spec.id) {
            if endpoint.rates == rates {
                continue;
            }
            let (changed, path) = (Endpoint { rates, ..endpoint }, self.layout.namespace(&spec.id));
            self.store.put_endpoint(&changed).await?;
            // Known before it is so: one of two links may be bound when this fails, and asking for
            // the rates of before then changes it back.
            self.state().endpoints.insert(changed.id.clone(), changed.clone());
            crate::core::blocking(move || host::bound(&changed, &path)).await?;
        }
        Ok(())
    }

    /// Whether all networks of a container can hold it to these.
    fn check_direct(&self, spec: &Spec, policy: Option<&Policy>, rates: &Rates) -> Result<()> {
        let of = |one: Endpoint| self.find(&one.network).ok();
        let networks = self.endpoints(&spec.id).into_iter().filter_map(of);
        networks.into_iter().try_for_each(|one| direct::check_member(&one, policy, rates))
    }

    /// Changes an endpoint and the rules with it, or nothing.
    pub(super) async fn put(&self, changed: Endpoint, before: Endpoint) -> Result<()> {
        self.store.put_endpoint(&changed).await?;
        let _turn = self.host.lock().await;
        self.state().endpoints.insert(changed.id.clone(), changed);
        let applied = self.apply().await;
        if applied.is_err() {
            if let Err(error) = self.store.put_endpoint(&before).await {
                tracing::warn!(container = before.container, error = error.chain(), "endpoint");
            }
            self.state().endpoints.insert(before.id.clone(), before);
        }
        applied
    }
}
