//! What the engine does to the host for networks. All of it blocks.

use std::collections::HashSet;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use hyper_network::link::{Mac, parse_mac};
use hyper_network::{Netlink, NetworkError, firewall, namespace, subnet};
use ipnet::IpNet;
use sha2::{Digest as _, Sha256};

use super::direct;
use super::spec::{Endpoint, Network};
use crate::{Error, Result};

/// Begins the names of the host's ends of pods' links.
pub(super) const LINK: &str = "hv";
/// How long another hyperd may be choosing its subnet.
const CHOICE: Duration = Duration::from_secs(10);

pub(super) fn wrong(error: NetworkError) -> Error {
    Error::Network(error)
}

pub(super) fn open() -> Result<Netlink> {
    Netlink::open().map_err(unopened).map_err(wrong)
}

pub(super) fn unopened(source: std::io::Error) -> NetworkError {
    NetworkError::Link { action: "open", name: "rtnetlink".to_owned(), source }
}

/// Six letters that tell this exec root from others, whose hyperds may run beside us.
pub(super) fn tag(exec_root: &Path) -> String {
    let hash = Sha256::digest(exec_root.as_os_str().as_encoded_bytes());
    hash.iter().take(3).map(|byte| format!("{byte:02x}")).collect()
}

/// Only one hyperd at a time looks what is free and takes it: an abstract socket is a lock in this
/// network namespace that ends with its holder.
struct Turn(#[expect(dead_code, reason = "held, not used")] rustix::fd::OwnedFd);

impl Turn {
    fn wait() -> Result<Self> {
        use rustix::net::{
            AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with,
        };
        let fail = |error: rustix::io::Errno| {
            Error::Conflict(format!("wait for another hyperd to choose its subnet: {error}"))
        };
        let name = SocketAddrUnix::new_abstract_name(b"hyper-subnets").map_err(fail)?;
        let begun = Instant::now();
        loop {
            let (family, kind) = (AddressFamily::UNIX, SocketType::DGRAM);
            let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None).map_err(fail)?;
            match bind(&socket, &name) {
                Ok(()) => return Ok(Self(socket)),
                Err(error) if begun.elapsed() > CHOICE => return Err(fail(error)),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

/// Makes the bridge of a network, unless it is there. Chooses another subnet where that is allowed
/// (`free`) and the host has come to use this one; `others` are our networks that are not up.
pub(super) fn bridge(network: &mut Network, free: bool, others: &[IpNet]) -> Result<()> {
    let mut netlink = open()?;
    if let Some(link) = netlink.link(&network.bridge).map_err(wrong)? {
        return netlink.up(link.index).map_err(wrong);
    }
    let turn = Turn::wait()?;
    let mut taken = subnet::in_use(&mut netlink).map_err(wrong)?;
    for at in &mut network.subnets {
        let Some(clash) = taken.iter().find(|net| subnet::overlap(net, &at.net)) else { continue };
        if !(free && at.automatic && at.net.addr().is_ipv4()) {
            return Err(Error::Conflict(format!(
                "network {}: its subnet {} overlaps with {clash}, which the host uses: give the \
                 network another --subnet",
                network.name, at.net
            )));
        }
        taken.extend(others);
        at.net = subnet::free(&taken).ok_or_else(no_subnet)?;
        at.gateway = subnet::first(&at.net);
    }
    let made = make(&mut netlink, network);
    if made.is_err() {
        let _ = netlink.remove(&network.bridge);
    }
    drop(turn);
    made
}

pub(super) fn no_subnet() -> Error {
    Error::Conflict(
        "could not find an available, non-overlapping subnet: give one with --subnet".to_owned(),
    )
}

/// A subnet that neither the host nor `others` has.
pub(super) fn choose(others: &[IpNet]) -> Result<IpNet> {
    let mut taken = subnet::in_use(&mut open()?).map_err(wrong)?;
    taken.extend(others);
    subnet::free(&taken).ok_or_else(no_subnet)
}

fn make(netlink: &mut Netlink, network: &Network) -> Result<()> {
    let hash = Sha256::digest(network.id.as_bytes());
    // Fixed: a bridge without one changes it with its ports.
    let mac = [0x02, 0x42, hash[0], hash[1], hash[2], hash[3]];
    netlink.add_bridge(&network.bridge, mac, network.mtu).map_err(wrong)?;
    let link = netlink.link(&network.bridge).map_err(wrong)?;
    let index = link
        .map(|link| link.index)
        .ok_or_else(|| Error::Conflict(format!("bridge {} went as it was made", network.bridge)))?;
    // Connections to 127.0.0.1:PORT are sent on to a pod; the rules keep pods off the loopback.
    set(&format!("ipv4/conf/{}/route_localnet", network.bridge), "1")?;
    if network.has_ipv6() {
        let _ = set(&format!("ipv6/conf/{}/accept_dad", network.bridge), "0");
    } else {
        // The host has nothing to say there. A host without IPv6 has no such file.
        let _ = set(&format!("ipv6/conf/{}/disable_ipv6", network.bridge), "1");
    }
    for subnet in &network.subnets {
        let address = IpNet::new(subnet.gateway, subnet.net.prefix_len())
            .map_err(|error| Error::Invalid(error.to_string()))?;
        netlink.add_address(index, address).map_err(wrong)?;
    }
    netlink.up(index).map_err(wrong)?;
    if !network.internal {
        forwarding("ipv4/ip_forward")?;
        if network.has_ipv6() {
            forwarding("ipv6/conf/all/forwarding")?;
        }
    }
    Ok(())
}

fn forwarding(name: &str) -> Result<()> {
    let path = format!("/proc/sys/net/{name}");
    if std::fs::read_to_string(&path).is_ok_and(|text| text.trim() != "0") {
        return Ok(());
    }
    tracing::info!(setting = name, "the host forwards packets from now on: pods need it");
    set(name, "1")
}

fn set(name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/{name}");
    std::fs::write(&path, value).map_err(Error::file("set", path))
}

/// Makes a pod's namespace, if it is not there, and its link into the network.
pub(super) fn plug(network: &Network, endpoint: &Endpoint, path: &Path) -> Result<()> {
    if !path.exists() {
        namespace::create(path).map_err(wrong)?;
    }
    if network.is_direct() {
        direct::add(network, endpoint, path)?;
    } else {
        add_veth(network, endpoint, path)?;
    }
    let given = endpoint.clone();
    namespace::within(path, move || {
        let mut netlink = Netlink::open().map_err(unopened)?;
        let Some(link) = netlink.link(&given.interface)? else { return Ok(()) };
        let conf = |file: &str| format!("/proc/sys/net/ipv6/conf/{}/{file}", link.name);
        // Nobody but us gives it addresses and routes: a LAN has routers that would.
        let _ = std::fs::write(conf("accept_ra"), "0");
        if given.address(true).is_none() {
            // The kernel of the namespace is not to talk for the guest.
            let _ = std::fs::write(conf("disable_ipv6"), "1");
        }
        netlink.up(link.index)?;
        for address in &given.addresses {
            netlink.add_address(link.index, *address)?;
        }
        given.gateways.iter().try_for_each(|ip| netlink.add_default_route(link.index, *ip))
    })
    .map_err(|error| direct::explained(network, error))
}

fn add_veth(network: &Network, endpoint: &Endpoint, path: &Path) -> Result<()> {
    let mac: Mac = parse_mac(&endpoint.mac).map_err(|e| Error::Invalid(e.to_string()))?;
    let mut netlink = open()?;
    let bridge = netlink.link(&network.bridge).map_err(wrong)?.ok_or_else(|| {
        Error::Conflict(format!(
            "network {}: its bridge {} is gone: start the container again to have it made anew",
            network.name, network.bridge
        ))
    })?;
    let file = std::fs::File::open(path).map_err(Error::file("open", path))?;
    netlink
        .add_veth(
            (&endpoint.link, bridge.index),
            (&endpoint.interface, mac),
            file.as_fd(),
            network.mtu,
        )
        .map_err(wrong)
}

/// Lets the packets of the namespace at `path` leave by an endpoint's gateways.
pub(super) fn lead_out(endpoint: &Endpoint, path: &Path) -> Result<()> {
    let given = endpoint.clone();
    namespace::within(path, move || {
        let mut netlink = Netlink::open().map_err(unopened)?;
        let Some(link) = netlink.link(&given.interface)? else { return Ok(()) };
        given.gateways.iter().try_for_each(|ip| netlink.add_default_route(link.index, *ip))
    })
    .map_err(wrong)
}

/// Makes the bridges known to other firewalls of the host. Better a pod without a way out than no
/// pod: what they refuse is told and no more.
pub(super) fn admit(chain: &str, bridges: &[String]) {
    if let Err(error) = firewall::admit(chain, bridges).map_err(wrong) {
        tracing::warn!(error = error.chain(), "pods may not get out of their networks");
    }
}

/// Takes a bridge from the host.
pub(super) fn remove_bridge(bridge: &str) {
    unplug(bridge);
    if let Err(error) = firewall::forget(bridge).map_err(wrong) {
        tracing::warn!(bridge, error = error.chain(), "a firewall still knows it");
    }
}

/// Names of all the host's interfaces.
pub(super) fn links() -> Result<HashSet<String>> {
    let links = open()?.links().map_err(wrong)?;
    Ok(links.into_iter().map(|link| link.name).collect())
}

/// Holds the link of an endpoint to its rates, at the host's end and at the pod's in `path`.
pub(super) fn bound(endpoint: &Endpoint, path: &Path) -> Result<()> {
    let rates = endpoint.rates;
    let mut netlink = open()?;
    if let Some(link) = netlink.link(&endpoint.link).map_err(wrong)? {
        netlink.bound(link.index, rates.inward).map_err(wrong)?;
    }
    let interface = endpoint.interface.clone();
    namespace::within(path, move || {
        let mut netlink = Netlink::open().map_err(unopened)?;
        match netlink.link(&interface)? {
            Some(link) => netlink.bound(link.index, rates.outward),
            None => Ok(()),
        }
    })
    .map_err(wrong)
}

/// Removes an endpoint's link, of a pod with its namespace at `path`.
pub(super) fn unplug_endpoint(endpoint: &Endpoint, path: &Path) {
    if endpoint.is_direct() {
        direct::remove(endpoint, path);
    } else {
        unplug(&endpoint.link);
    }
}

/// Removes the host's end of a link, and so the other.
fn unplug(link: &str) {
    if let Err(error) = open().and_then(|mut netlink| netlink.remove(link).map_err(wrong)) {
        tracing::warn!(link, error = error.chain(), "link not removed");
    }
}

/// Removes links that belong to nobody any more: ports of `bridges` that are not in `known`.
pub(super) fn sweep(bridges: &[String], known: &[String]) -> Result<()> {
    let mut netlink = open()?;
    let links = netlink.links().map_err(wrong)?;
    let masters: Vec<u32> =
        links.iter().filter(|link| bridges.contains(&link.name)).map(|link| link.index).collect();
    for link in &links {
        let ours = link.name.starts_with(LINK)
            && link.master.is_some_and(|master| masters.contains(&master));
        if ours && !known.contains(&link.name) {
            tracing::info!(link = link.name, "remove a link that nobody has");
            netlink.remove(&link.name).map_err(wrong)?;
        }
    }
    Ok(())
}

/// The hardware address that goes with an address.
pub(super) fn mac(ip: IpAddr) -> String {
    let tail = match ip {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(ip) => {
            let bytes = ip.octets();
            [bytes[12], bytes[13], bytes[14], bytes[15]]
        }
    };
    hyper_network::link::mac_text([0x02, 0x42, tail[0], tail[1], tail[2], tail[3]])
}
