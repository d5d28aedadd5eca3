//! Pods come into networks and go.
//!
//! Each step is undone by [`Networks::release`], whichever failed: it goes by what is there.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;

use hyper_network::egress::chain as egress_chain;
use hyper_network::subnet;
use ipnet::IpNet;
use tokio::sync::OwnedMutexGuard;

use super::spec::{DEFAULT, EGRESS, Endpoint, Network, Policy, PortWish, RATE, Rates, Wish};
use super::{Networks, direct, host, names, ports};
use crate::container::spec::{HostSpec, Spec};
use crate::{Error, Result, id};

/// What a pod's bundle has to name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attachment {
    pub namespace: Option<PathBuf>,
    /// The pod's names; absent where the guest asks others itself.
    pub names: Option<PathBuf>,
}

/// What is left of a container's networks on the host. What is never removed (hyperd ends before)
/// the next hyperd removes.
#[derive(Debug, Default)]
#[must_use = "links stay until they are removed"]
pub struct Remains {
    links: Vec<Endpoint>,
    /// Its namespace, and the names that its resolver knew.
    files: Option<(PathBuf, PathBuf)>,
    turn: Option<OwnedMutexGuard<()>>,
}

impl Remains {
    /// Removes it: some ten milliseconds for each link.
    pub async fn remove(self) {
        let Self { links, files, turn } = self;
        let gone = crate::core::blocking(move || {
            let Some((namespace, names)) = files else { return Ok(()) };
            // Those that have no end on the host, while there is a way to them.
            let (direct, others): (Vec<_>, Vec<_>) =
                links.iter().partition(|link| link.is_direct());
            direct.into_iter().for_each(|link| host::unplug_endpoint(link, &namespace));
            // With the namespace its end of each link goes, and so the link.
            hyper_network::namespace::remove(&namespace);
            // Not there when the start failed before.
            let _ = std::fs::remove_file(names.with_extension("pins"));
            let _ = std::fs::remove_file(names);
            others.into_iter().for_each(|link| host::unplug_endpoint(link, &namespace));
            Ok(())
        });
        // It fails only as hyperd ends, and the next one does it.
        let _ = gone.await;
        drop(turn);
    }
}

impl Networks {
    /// Gives a container that is about to start all its networks, in its [`Self::turn`]. After a
    /// failure nothing of it is left.
    ///
    /// # Errors
    /// [`Error::NoSuchNetwork`], [`Error::Conflict`] for addresses and ports that are taken.
    pub async fn attach(&self, spec: &Spec, name: &str) -> Result<Attachment> {
        let wanted = wanted(&spec.host);
        if wanted.is_empty() {
            return Ok(Attachment::default());
        }
        self.check()?;
        let attached = self.attach_all(spec, name, &wanted).await;
        if attached.is_err() {
            self.release_now(&spec.id).await;
        }
        attached
    }

    async fn attach_all(
        &self,
        spec: &Spec,
        name: &str,
        wanted: &[(String, Wish)],
    ) -> Result<Attachment> {
        // What an earlier pod of it has left, if hyperd did not see its end.
        self.release_now(&spec.id).await;
        let out = self.way_out(wanted);
        for (at, (network, wish)) in wanted.iter().enumerate() {
            let interface = format!("eth{at}");
            let out = Some(network) == out.as_ref();
            self.plug(spec, name, (network, wish), interface, out).await?;
        }
        if !self.publish(spec).await? {
            self.enforce(spec).await?;
        }
        let names = self.write_pod(spec).await?;
        Ok(Attachment { namespace: Some(self.layout.namespace(&spec.id)), names: Some(names) })
    }

    /// The network that packets for elsewhere leave by: the first that leads anywhere.
    pub(super) fn way_out(&self, wanted: &[(String, Wish)]) -> Option<String> {
        let leads = |name: &str| self.find(name).is_ok_and(|network| !network.internal);
        wanted.iter().map(|(name, _)| name).find(|name| leads(name)).cloned()
    }

    /// One network: the address first, then the link. `out`: it is the way out.
    pub(super) async fn plug(
        &self,
        spec: &Spec,
        name: &str,
        (network, wish): (&str, &Wish),
        interface: String,
        out: bool,
    ) -> Result<()> {
        let network = self.find(network)?;
        direct::check_member(&network, egress(&spec.host)?.as_ref(), &rates(&spec.host)?)?;
        let network = self.bring_up(&network.id).await?;
        let endpoint = self.reserve(spec, name, &network, wish, (interface, out))?;
        self.store.put_endpoint(&endpoint).await?;
        let path = self.layout.namespace(&spec.id);
        let (of, plugged) = (network.clone(), endpoint.clone());
        let done = crate::core::blocking(move || {
            host::plug(&of, &plugged, &path)?;
            if plugged.rates != Rates::default() {
                host::bound(&plugged, &path)?;
            }
            Ok(())
        });
        let done = done.await;
        if done.is_err() {
            // Somebody may have taken the bridge: the next start looks, and makes it again.
            self.state().up.remove(&network.id);
        }
        done?;
        self.write_network(&network).await
    }

    /// Takes addresses, in memory.
    fn reserve(
        &self,
        spec: &Spec,
        name: &str,
        network: &Network,
        wish: &Wish,
        (interface, out): (String, bool),
    ) -> Result<Endpoint> {
        let mut state = self.state();
        let members = state.endpoints.values().filter(|one| one.network == network.id);
        let mut taken: BTreeSet<IpAddr> =
            members.flat_map(|one| one.addresses.iter().map(IpNet::addr)).collect();
        taken.extend(network.subnets.iter().map(|subnet| subnet.gateway));
        let mut addresses = Vec::new();
        for subnet in &network.subnets {
            let asked = match subnet.net {
                IpNet::V4(_) => wish.ipv4.map(IpAddr::V4),
                IpNet::V6(_) => wish.ipv6.map(IpAddr::V6),
            };
            let range = subnet.range.unwrap_or(subnet.net);
            let ip = match asked {
                Some(ip) if !subnet.net.contains(&ip) => {
                    return Err(Error::Invalid(format!(
                        "no configured subnet or ip-range contains the IP address {ip}: network \
                         {} has {}",
                        network.name, subnet.net
                    )));
                }
                Some(ip) if taken.contains(&ip) => {
                    return Err(Error::Forbidden(format!(
                        "Address already in use: {ip} in network {}",
                        network.name
                    )));
                }
                Some(ip) => ip,
                None => {
                    let key = format!("{} {}", network.id, subnet.net);
                    let last = state.last.get(&key).copied();
                    let ip = subnet::next(&subnet.net, &range, &taken, last).ok_or_else(|| {
                        Error::Conflict(format!(
                            "no available IPv4 addresses on this network's address pools: {} \
                             ({range}): remove a container, or make a larger network",
                            network.name
                        ))
                    })?;
                    state.last.insert(key, ip);
                    ip
                }
            };
            let address = IpNet::new(ip, subnet.net.prefix_len())
                .map_err(|error| Error::Invalid(error.to_string()))?;
            addresses.push(address);
        }
        if wish.ipv6.is_some() && !network.has_ipv6() {
            return Err(Error::Invalid(format!(
                "network {} has no IPv6 addresses: make one with --ipv6",
                network.name
            )));
        }
        let first = addresses.first().map_or(IpAddr::from([0, 0, 0, 0]), IpNet::addr);
        let id = id::fresh();
        let endpoint = Endpoint {
            network: network.id.clone(),
            network_name: network.name.clone(),
            container: spec.id.clone(),
            interface,
            link: match network.is_direct() {
                true => String::new(),
                false => format!("{}{}", host::LINK, &id[..12]),
            },
            mac: direct::hardware_address(network, &wish.mac, first)?,
            addresses,
            gateways: if out { network.gateways() } else { Vec::new() },
            aliases: wish.aliases.clone(),
            names: names::of(spec, name, &wish.aliases),
            ports: Vec::new(),
            egress: egress(&spec.host)?,
            rates: rates(&spec.host)?,
            services: Vec::new(),
            id: id.clone(),
        };
        state.endpoints.insert(id, endpoint.clone());
        Ok(endpoint)
    }

    /// Writes the rules if there are policies for it, before anything of it runs.
    pub(super) async fn enforce(&self, spec: &Spec) -> Result<()> {
        let bound = self.endpoints(&spec.id).iter().any(|endpoint| self.is_bound(endpoint));
        if !bound {
            return Ok(());
        }
        let _turn = self.host.lock().await;
        self.apply().await
    }

    /// Holds the ports and sends them to the endpoint of the way out, unless it has them. Whether the
    /// rules have been written for that.
    pub(super) async fn publish(&self, spec: &Spec) -> Result<bool> {
        let wishes = port_wishes(spec);
        let mut endpoints = self.endpoints(&spec.id).into_iter();
        let Some(mut endpoint) = endpoints.find(|endpoint| !endpoint.gateways.is_empty()) else {
            return Ok(false);
        };
        // To an interface on the LAN the host sends nothing on, as with Docker: all its ports are there.
        if wishes.is_empty() || !endpoint.ports.is_empty() || endpoint.is_direct() {
            return Ok(false);
        }
        let mut held = Vec::new();
        for wish in &wishes {
            let family = wish.host.is_some_and(|host| host.is_ipv6());
            let pod = endpoint.address(family).or(endpoint.address(false));
            let pod = pod.map_or(IpAddr::from([0, 0, 0, 0]), |net| net.addr());
            let (host, wish) = (self.ports.clone(), wish.clone());
            let hold = move || ports::hold(&host, &wish, pod);
            let (port, holder) = crate::core::blocking(hold).await?;
            endpoint.ports.push(port);
            held.push(holder);
        }
        self.store.put_endpoint(&endpoint).await?;
        let _turn = self.host.lock().await;
        {
            let mut state = self.state();
            state.held.insert(endpoint.id.clone(), held);
            state.endpoints.insert(endpoint.id.clone(), endpoint);
        }
        self.apply().await.map(|()| true)
    }

    /// Takes all from a container whose pod is gone; fine when it has nothing. Its ports and
    /// addresses are free at once; its links go with [`Remains::remove`], for which the kernel takes
    /// its time: the container keeps its turn for so long.
    pub async fn release(&self, container: &str) -> Remains {
        let turn = self.turn(container).await;
        Remains { turn: Some(turn), ..self.free(container).await }
    }

    /// The same in its turn, to the end.
    async fn release_now(&self, container: &str) {
        self.free(container).await.remove().await;
    }

    async fn free(&self, container: &str) -> Remains {
        let namespace = self.layout.namespace(container);
        let endpoints = self.endpoints(container);
        if endpoints.is_empty() && !namespace.exists() {
            return Remains::default();
        }
        for endpoint in &endpoints {
            self.free_endpoint(endpoint).await;
        }
        Remains {
            links: endpoints,
            files: Some((namespace, self.layout.pod_names(container))),
            turn: None,
        }
    }

    /// Gives up the published ports of a container that has ended: they are free when this returns,
    /// while its guest, and with it its address and its policy, may go on for as long as its output
    /// is read.
    pub(crate) async fn unpublish(&self, container: &str) {
        for mut endpoint in self.endpoints(container) {
            if endpoint.ports.is_empty() {
                continue;
            }
            self.withdraw(&endpoint).await;
            endpoint.ports.clear();
            if let Err(error) = self.store.put_endpoint(&endpoint).await {
                // The next hyperd finds no pod of it, and frees all.
                tracing::warn!(container, error = error.chain(), "endpoint");
            }
        }
    }

    /// Writes the rules without an endpoint's ports, and lets those go.
    async fn withdraw(&self, endpoint: &Endpoint) {
        let _turn = self.host.lock().await;
        if let Some(known) = self.state().endpoints.get_mut(&endpoint.id) {
            known.ports.clear();
        }
        if let Err(error) = self.apply().await {
            tracing::warn!(container = endpoint.container, error = error.chain(), "rules");
        }
        let held = self.state().held.remove(&endpoint.id);
        for port in held.into_iter().flatten() {
            port.release().await;
        }
    }

    /// Takes an endpoint's rules back, and last its address.
    pub(super) async fn free_endpoint(&self, endpoint: &Endpoint) {
        if !endpoint.ports.is_empty() || !endpoint.services.is_empty() || self.is_bound(endpoint) {
            {
                let mut state = self.state();
                state.free.insert(endpoint.id.clone());
                if let Some(known) = state.endpoints.get_mut(&endpoint.id) {
                    known.services.clear();
                }
            }
            self.withdraw(endpoint).await;
        }
        if let Err(error) = self.store.delete_endpoint(&endpoint.id).await {
            // Its address stays taken: the next start of hyperd tries again.
            tracing::warn!(container = endpoint.container, error = error.chain(), "endpoint");
            return;
        }
        {
            let mut state = self.state();
            state.endpoints.remove(&endpoint.id);
            state.free.remove(&endpoint.id);
            state.blocked.remove(&endpoint.id);
        }
        if let Ok(network) = self.find(&endpoint.network)
            && let Err(error) = self.write_network(&network).await
        {
            tracing::warn!(network = network.name, error = error.chain(), "names");
        }
    }

    /// After hyperd came back: pods in `live` keep what they have, all else is removed.
    pub async fn reconcile(&self, live: &HashSet<String>) -> Result<()> {
        let endpoints: Vec<Endpoint> = self.state().endpoints.values().cloned().collect();
        let containers: BTreeSet<&String> = endpoints.iter().map(|one| &one.container).collect();
        for container in containers {
            if !live.contains(container) {
                self.release(container).await.remove().await;
            }
        }
        self.remove_namespaces(live).await;
        let used: BTreeSet<String> =
            self.state().endpoints.values().map(|one| one.network.clone()).collect();
        for id in &used {
            self.hold_again(id).await;
            self.bring_up(id).await?;
        }
        let (known, networks) = {
            let state = self.state();
            let known: Vec<String> = state.endpoints.values().map(|one| one.link.clone()).collect();
            let networks: Vec<Network> = state.networks.values().cloned().collect();
            (known, networks)
        };
        let bridged = || networks.iter().filter(|network| !network.is_direct());
        let all: Vec<String> = bridged().map(|network| network.bridge.clone()).collect();
        let idle: Vec<String> = bridged()
            .filter(|network| !used.contains(&network.id))
            .map(|network| network.bridge.clone())
            .collect();
        if self.trouble.is_none() {
            crate::core::blocking(move || {
                host::sweep(&all, &known)?;
                idle.iter().for_each(|bridge| host::remove_bridge(bridge));
                Ok(())
            })
            .await?;
        }
        for network in networks.iter().filter(|network| used.contains(&network.id)) {
            self.write_network(network).await?;
        }
        let _turn = self.host.lock().await;
        self.apply().await
    }

    async fn hold_again(&self, network: &str) {
        for endpoint in self.members(network) {
            let mut held = Vec::new();
            for port in &endpoint.ports {
                let ipv6 = port.host.is_some_and(|host| host.is_ipv6());
                let Some(pod) = endpoint.address(ipv6).or(endpoint.address(false)) else {
                    continue;
                };
                let (host, port) = (self.ports.clone(), port.clone());
                let hold = move || ports::hold_again(&host, &port, pod.addr());
                match crate::core::blocking(hold).await {
                    Ok(holder) => held.push(holder),
                    // The rules send it to the pod all the same.
                    Err(error) => tracing::warn!(
                        container = endpoint.container,
                        error = error.chain(),
                        "a published port is another's socket now"
                    ),
                }
            }
            self.state().held.insert(endpoint.id, held);
        }
    }

    async fn remove_namespaces(&self, live: &HashSet<String>) {
        let (directory, live) = (self.layout.namespaces(), live.clone());
        let networks = self.layout.networks();
        let done = crate::core::blocking(move || {
            for entry in std::fs::read_dir(networks).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let pod = name.to_str().and_then(|name| name.strip_prefix("pod-"));
                let pod = pod.and_then(|name| Some(name.split_once('.')?.0));
                if pod.is_some_and(|pod| !live.contains(pod)) {
                    let _ = std::fs::remove_file(entry.path());
                }
            }
            for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                if entry.file_name().to_str().is_none_or(|name| !live.contains(name)) {
                    hyper_network::namespace::remove(&entry.path());
                }
            }
            Ok(())
        });
        let _ = done.await;
    }

    pub(super) async fn write_network(&self, network: &Network) -> Result<()> {
        let path = self.layout.network_names(&network.id);
        let _turn = self.written.lock().await;
        if network.name == DEFAULT && tokio::fs::try_exists(&path).await.unwrap_or(false) {
            // Nobody is found by name there.
            return Ok(());
        }
        let known = names::network(&network.name, self.members(&network.id).iter());
        crate::core::blocking(move || names::replace(&path, &known)).await
    }

    /// Writes what a pod's resolver knows.
    pub(super) async fn write_pod(&self, spec: &Spec) -> Result<PathBuf> {
        let mut networks = Vec::new();
        for endpoint in self.endpoints(&spec.id) {
            let network = self.find(&endpoint.network)?;
            let name = super::chain(&endpoint.id);
            let policies = super::policies(&network, &endpoint).into_iter().enumerate();
            let policies = policies.map(|(at, policy)| (egress_chain(name, at), policy)).collect();
            networks.push((network, policies));
        }
        let path = self.layout.pod_names(&spec.id);
        let (at, known) = (path.clone(), names::pod(&self.layout, self.table(), spec, &networks));
        crate::core::blocking(move || names::replace(&at, &known)).await?;
        Ok(path)
    }
}

/// A container's own policy.
///
/// # Errors
/// [`Error::Invalid`]: it is none.
pub(crate) fn egress(host: &HostSpec) -> Result<Option<Policy>> {
    let text = host.annotations.get(EGRESS);
    let policy = text.map(|text| text.parse::<Policy>());
    policy.transpose().map_err(|error| Error::Invalid(error.to_string()))
}

/// What a container may receive and send.
///
/// # Errors
/// [`Error::Invalid`]: it is none.
pub(crate) fn rates(host: &HostSpec) -> Result<Rates> {
    let text = host.annotations.get(RATE).map_or("", String::as_str);
    text.parse::<Rates>().map_err(|error| Error::Invalid(error.to_string()))
}

/// Networks that a container is to be in, the one of its way out first.
pub(crate) fn wanted(host: &HostSpec) -> Vec<(String, Wish)> {
    let mode = match host.network.as_str() {
        "" | super::spec::NONE => return Vec::new(),
        "default" => DEFAULT,
        other => other,
    };
    let wish = |name: &str| host.endpoints.get(name).cloned();
    let first = wish(mode).or_else(|| wish(&host.network)).unwrap_or_default();
    let mut all = vec![(mode.to_owned(), first)];
    for (name, wish) in &host.endpoints {
        if name != mode && name != &host.network {
            all.push((name.clone(), wish.clone()));
        }
    }
    all
}

/// Ports to publish: those named, and with `-P` all that are exposed and not named.
fn port_wishes(spec: &Spec) -> Vec<PortWish> {
    let mut wishes = spec.host.ports.clone();
    if spec.host.publish_all {
        for exposed in &spec.exposed_ports {
            let Some((protocol, first, last)) = parse_exposed(exposed) else { continue };
            for port in first..=last {
                let named = |wish: &PortWish| (wish.protocol, wish.port) == (protocol, port);
                if !wishes.iter().any(named) {
                    wishes.push(PortWish { protocol, port, host: None, range: (0, 0) });
                }
            }
        }
    }
    wishes
}

/// `80`, `80/udp`, `8000-8010/tcp`.
pub(crate) fn parse_exposed(text: &str) -> Option<(super::spec::Protocol, u16, u16)> {
    use super::spec::Protocol;
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "" | "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return None,
    };
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
    (first > 0 && last >= first).then_some((protocol, first, last))
}
