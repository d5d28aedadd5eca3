//! Networks are made, brought up, removed.

use std::net::IpAddr;

use hyper_network::subnet;
use ipnet::IpNet;

use super::spec::{
    DEFAULT, Driver, EGRESS, IPVLAN_MODE, MODE, NONE, Network, NetworkRequest, PARENT, Policy,
    Subnet,
};
use super::{Networks, direct, host};
use crate::{Error, Result, id};

/// Docker's options that have a meaning here.
const MTU: &str = "com.docker.network.driver.mtu";
const NAME: &str = "com.docker.network.bridge.name";
const MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
const DEFAULT_MTU: u32 = 1500;
/// Of an interface's name, in bytes.
const MAX_NAME: usize = 15;

impl Networks {
    /// The network of containers that name none.
    pub(super) async fn make_default(&self) -> Result<()> {
        let mut network = Network {
            bridge: format!("hy-{}", self.tag),
            ..fresh(NetworkRequest { name: DEFAULT.to_owned(), ..NetworkRequest::default() })?
        };
        let others = self.subnets("");
        let net = crate::core::blocking(move || host::choose(&others)).await?;
        network.subnets.push(automatic(net));
        self.store.put_network(&network).await?;
        self.state().networks.insert(network.id.clone(), network);
        Ok(())
    }

    /// Makes a network. The host gets it with its first pod.
    ///
    /// # Errors
    /// [`Error::Conflict`] for a name or a subnet that is taken, [`Error::Invalid`].
    pub async fn create(&self, request: NetworkRequest) -> Result<Network> {
        self.check()?;
        let name = request.name.clone();
        // One letter is enough, as for Docker; containers need two there.
        if !id::is_name(&format!("n{name}")) || name.starts_with(['_', '.', '-']) {
            return Err(Error::Invalid(format!(
                "invalid network name `{name}`: only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
            )));
        }
        if [NONE, "host", "default", "container"].contains(&name.as_str()) {
            return Err(Error::Forbidden(format!(
                "operation is not permitted on predefined {name} network: choose another name"
            )));
        }
        let wanted = request.subnets.clone();
        let ipv6 = request.ipv6;
        let mut network = fresh(request)?;
        // One at a time: two of a name, or with one subnet, are refused.
        let _turn = self.host.lock().await;
        if self.state().networks.values().any(|known| known.name == name) {
            return Err(Error::Conflict(format!("network with name {name} already exists")));
        }
        if network.is_direct() {
            direct::check_beside(&network, self.state().networks.values())?;
        }
        let others = self.subnets("");
        let (seed, of) = (id_bytes(&network.id), network.clone());
        network.subnets = crate::core::blocking(move || {
            if of.is_direct() {
                direct::parent(&of)?;
            }
            let mut subnets = Vec::new();
            for (net, range, gateway) in wanted {
                subnets.push(given(net, range, gateway, &others)?);
            }
            if !subnets.iter().any(|subnet| subnet.net.addr().is_ipv4()) {
                subnets.insert(0, automatic(host::choose(&others)?));
            }
            if ipv6 && !subnets.iter().any(|subnet| subnet.net.addr().is_ipv6()) {
                subnets.push(automatic(subnet::unique_local(seed)));
            }
            Ok(subnets)
        })
        .await?;
        for ipv6 in [false, true] {
            let count = network.subnets.iter().filter(|one| one.net.addr().is_ipv6() == ipv6);
            if count.count() > 1 {
                return Err(Error::Unsupported(format!(
                    "network {name}: several subnets of one family are not supported: give one"
                )));
            }
        }
        self.store.put_network(&network).await?;
        self.state().networks.insert(network.id.clone(), network.clone());
        Ok(network)
    }

    /// Removes a network that nobody is in.
    ///
    /// # Errors
    /// [`Error::NoSuchNetwork`]; [`Error::Forbidden`] while it is used, and for the default one.
    pub async fn remove(&self, reference: &str) -> Result<Network> {
        let network = self.find(reference)?;
        if network.is_builtin() {
            return Err(Error::Forbidden(format!(
                "{} is a pre-defined network and cannot be removed",
                network.name
            )));
        }
        let _turn = self.host.lock().await;
        if let Some(member) = self.members(&network.id).first() {
            return Err(Error::Forbidden(format!(
                "error while removing network: network {} id {} has active endpoints: container \
                 {}: disconnect it first",
                network.name,
                network.id,
                member.names.first().unwrap_or(&member.container)
            )));
        }
        self.store.delete_network(&network.id).await?;
        self.state().networks.remove(&network.id);
        self.take_down(&network).await?;
        let names = self.layout.network_names(&network.id);
        let _ = tokio::fs::remove_file(names).await;
        Ok(network)
    }

    /// Makes the bridge, if it is not there. Returns the network as it is then.
    pub(super) async fn bring_up(&self, id: &str) -> Result<Network> {
        let known = |networks: &Self| {
            let state = networks.state();
            let network = state.networks.get(id).cloned();
            (state.up.contains(id), network)
        };
        let missing = || Error::NoSuchNetwork(id.to_owned());
        if let (true, Some(network)) = known(self) {
            return Ok(network);
        }
        let _turn = self.host.lock().await;
        let (up, network) = known(self);
        let mut network = network.ok_or_else(missing)?;
        // One on the LAN has nothing of its own on the host.
        if up || network.is_direct() {
            return Ok(network);
        }
        let free = self.members(id).is_empty();
        let others = self.subnets(id);
        let before = network.clone();
        let made = crate::core::blocking(move || {
            host::bridge(&mut network, free, &others)?;
            Ok(network)
        });
        let network = made.await?;
        if network != before {
            self.store.put_network(&network).await?;
        }
        {
            let mut state = self.state();
            state.networks.insert(network.id.clone(), network.clone());
            state.up.insert(network.id.clone());
        }
        if let Err(error) = self.apply().await {
            // Bridges without rules would be open to everyone.
            self.state().up.remove(id);
            return Err(error);
        }
        Ok(network)
    }

    /// Removes the bridge, with [`Self::host`] held.
    async fn take_down(&self, network: &Network) -> Result<()> {
        if !self.state().up.remove(&network.id) {
            return Ok(());
        }
        let bridge = network.bridge.clone();
        crate::core::blocking(move || {
            host::remove_bridge(&bridge);
            Ok(())
        })
        .await?;
        self.apply().await
    }

    /// hyperd ends: what no pod uses is taken from the host.
    pub async fn close(&self) {
        let _turn = self.host.lock().await;
        for network in self.all() {
            if self.members(&network.id).is_empty()
                && let Err(error) = self.take_down(&network).await
            {
                tracing::warn!(network = network.name, error = error.chain(), "not taken down");
            }
        }
    }
}

fn fresh(request: NetworkRequest) -> Result<Network> {
    let id = id::fresh();
    let option = |key: &str| request.options.get(key).filter(|value| !value.is_empty());
    let bad = |key: &str, value: &str, why: &str| {
        Error::Invalid(format!("network {}: option {key}={value}: {why}", request.name))
    };
    let known: &[&str] = match request.driver {
        Driver::Bridge => &[MTU, NAME, MASQUERADE, EGRESS],
        Driver::Macvlan => &[PARENT, MODE, MTU],
        Driver::Ipvlan => &[PARENT, IPVLAN_MODE, MTU],
    };
    if request.driver != Driver::Bridge && request.options.contains_key(EGRESS) {
        return Err(Error::Unsupported(format!(
            "network {}: option {EGRESS} is not supported with driver {}: packets do not pass \
             the host there, which would hold containers to it: take a bridge network",
            request.name,
            request.driver.word()
        )));
    }
    if let Some((key, value)) = request.options.iter().find(|(key, _)| !known.contains(&&***key)) {
        return Err(Error::Unsupported(format!(
            "network {}: option {key}={value} is not supported with driver {}: {} are",
            request.name,
            request.driver.word(),
            known.join(", ")
        )));
    }
    let bridge = match option(NAME) {
        None if request.driver != Driver::Bridge => String::new(),
        None => format!("hy-{}", &id[..10]),
        Some(name) => {
            let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
            if name.len() > MAX_NAME || !name.bytes().all(good) {
                return Err(bad(NAME, name, "not 1 to 15 letters, digits, `_`, `.`, `-`"));
            }
            name.clone()
        }
    };
    let mtu = match option(MTU) {
        None if request.driver == Driver::Bridge => DEFAULT_MTU,
        None => 0,
        Some(text) => match text.parse() {
            Ok(mtu @ 68..=65535) => mtu,
            _ => return Err(bad(MTU, text, "not 68 to 65535")),
        },
    };
    if let Some(text) = request.options.get(EGRESS) {
        text.parse::<Policy>().map_err(|error| bad(EGRESS, text, &error.to_string()))?;
    }
    let network = Network {
        masquerade: option(MASQUERADE).is_none_or(|value| value != "false"),
        id,
        name: request.name,
        driver: request.driver,
        created_ns: hyper_stdio::now_ns(),
        subnets: Vec::new(),
        internal: request.internal,
        labels: request.labels,
        options: request.options,
        bridge,
        mtu,
    };
    if network.is_direct() {
        direct::check(&network)?;
    }
    Ok(network)
}

fn automatic(net: IpNet) -> Subnet {
    Subnet { net, range: None, gateway: subnet::first(&net), automatic: true }
}

fn given(
    net: Option<IpNet>,
    range: Option<IpNet>,
    gateway: Option<IpAddr>,
    others: &[IpNet],
) -> Result<Subnet> {
    let Some(net) = net else {
        return match (range, gateway) {
            (None, None) => host::choose(others).map(automatic),
            _ => Err(Error::Invalid(
                "an IP range or gateway without a subnet: give the --subnet, too".to_owned(),
            )),
        };
    };
    let most = if net.addr().is_ipv4() { 30 } else { 126 };
    if net.trunc() != net || net.prefix_len() > most {
        return Err(Error::Invalid(format!(
            "invalid subnet {net}: it should be {} and have room for a gateway and a container",
            net.trunc()
        )));
    }
    if let Some(clash) = others.iter().find(|other| subnet::overlap(other, &net)) {
        return Err(Error::Forbidden(format!(
            "Pool overlaps with other one on this address space: subnet {net} overlaps with \
             {clash} of another network"
        )));
    }
    if let Some(range) = range.filter(|range| !net.contains(range)) {
        return Err(Error::Invalid(format!("the IP range {range} is not in the subnet {net}")));
    }
    if let Some(gateway) = gateway.filter(|ip| !net.contains(ip)) {
        return Err(Error::Invalid(format!("the gateway {gateway} is not in the subnet {net}")));
    }
    let gateway = gateway.unwrap_or_else(|| subnet::first(&net));
    Ok(Subnet { net, range, gateway, automatic: false })
}

fn id_bytes(id: &str) -> [u8; 7] {
    let mut bytes = [0; 7];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(id.get(2 * at..2 * at + 2).unwrap_or("0"), 16).unwrap_or(0);
    }
    bytes
}
