//! Networks without a bridge: each pod has an interface of its own on one of the host's (`macvlan`,
//! `ipvlan`).
//!
//! ```text
//!   LAN ── parent (eth0) ─┬─ pod's eth0 in its namespace ◀─tc─▶ tap ── guest
//!                         └─ another's
//! ```
//! There is no other end on the host: such an endpoint's link has no name, and what there is of it is
//! looked for in the namespace. What the host does at bridges (policies, ports, services, the rate
//! inward) it cannot do here: it is refused, but for ports, which Docker ignores here, too.

use std::collections::HashSet;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::Path;

use hyper_network::link::{Link, OnParent, parse_mac};
use hyper_network::{Netlink, NetworkError, namespace};
use rustix::io::Errno;

use super::host::{open, unopened, wrong};
use super::spec::{
    Driver, Endpoint, IPVLAN_MODE, MODE, Network, PARENT, Policy, Rates, ipvlan_mode, mode,
};
use crate::{Error, Result};

/// Looks at the options of a new network.
pub(super) fn check(network: &Network) -> Result<()> {
    let name = &network.name;
    if network.parent().is_empty() {
        return Err(Error::Invalid(format!(
            "network {name}: {} needs -o {PARENT}=INTERFACE, one of the host's that the LAN is \
             behind: for containers that only reach each other take a bridge with --internal",
            network.driver.word()
        )));
    }
    let (key, good) = match network.driver {
        Driver::Ipvlan => (IPVLAN_MODE, "l2 and l3"),
        Driver::Macvlan | Driver::Bridge => (MODE, "bridge, private and vepa"),
    };
    let word = network.option(key);
    let known = match network.driver {
        Driver::Ipvlan => ipvlan_mode(word).is_some(),
        Driver::Macvlan | Driver::Bridge => mode(word).is_some(),
    };
    let why = match word {
        _ if known => return Ok(()),
        "l3s" => ", since its packets come past the place where guests get theirs",
        _ => "",
    };
    Err(Error::Unsupported(format!(
        "network {name}: option {key}={word} is not supported{why}: {good} are"
    )))
}

/// Whether a new network can be beside those that are there. What the kernel has once for a parent,
/// the last would change for all.
pub(super) fn check_beside<'a>(
    network: &Network,
    mut others: impl Iterator<Item = &'a Network>,
) -> Result<()> {
    let (name, parent) = (&network.name, network.parent());
    let clashes = |other: &&Network| {
        let same = other.driver == network.driver
            && (network.driver != Driver::Ipvlan || other.ipvlan_mode() == network.ipvlan_mode());
        other.is_direct() && other.parent() == parent && !same
    };
    let Some(other) = others.find(clashes) else { return Ok(()) };
    Err(Error::Forbidden(format!(
        "network {name}: its parent {parent} is that of network {}, and all on one parent are of one \
         driver and ipvlan_mode: give it another parent",
        other.name
    )))
}

/// Whether a container may have these in such a network, where the host holds nobody to them.
pub(super) fn check_member(
    network: &Network,
    policy: Option<&Policy>,
    rates: &Rates,
) -> Result<()> {
    if !network.is_direct() {
        return Ok(());
    }
    let cannot = |what: String| {
        Err(Error::Invalid(format!(
            "network {} is of driver {}, where packets do not pass the host, which cannot hold a \
             container to {what}: leave that out, or take a bridge network",
            network.name,
            network.driver.word()
        )))
    };
    match (policy, rates.inward) {
        (Some(policy), _) => cannot(format!("its egress policy `{policy}`")),
        (None, Some(bits)) => cannot(format!("what it receives (network rate `in={bits}`)")),
        (None, None) => Ok(()),
    }
}

/// The hardware address that a container is given in such a network; empty: its parent's.
pub(super) fn hardware_address(network: &Network, asked: &str, first: IpAddr) -> Result<String> {
    match (network.driver, asked) {
        (Driver::Ipvlan, "") => Ok(String::new()),
        (Driver::Ipvlan, asked) => Err(Error::Invalid(format!(
            "network {} is of driver ipvlan, where all have the hardware address of the parent: leave \
             out {asked}",
            network.name
        ))),
        (_, "") => Ok(super::host::mac(first)),
        (_, asked) => Ok(asked.to_owned()),
    }
}

/// The host's interface that a network is on. Blocking.
pub(super) fn parent(network: &Network) -> Result<Link> {
    let (name, wanted) = (&network.name, network.parent());
    let bad = |why: &str| Error::Invalid(format!("network {name}: its parent {wanted} {why}"));
    let Some(link) = open()?.link(wanted).map_err(wrong)? else {
        return Err(match wanted.rsplit_once('.') {
            Some((base, tag)) if !base.is_empty() && tag.parse::<u16>().is_ok() => bad(&format!(
                "is no interface of the host, and VLANs are not made here: ip link add link {base} \
                 name {wanted} type vlan id {tag}"
            )),
            _ => bad("is no interface of the host: `ip link` lists them"),
        });
    };
    if link.loopback || link.mac.is_none() {
        let driver = network.driver.word();
        return Err(bad(&format!("is no Ethernet interface: {driver} needs one")));
    }
    Ok(link)
}

/// Makes a pod's interface in its namespace at `path`, still down. Blocking.
pub(super) fn add(network: &Network, endpoint: &Endpoint, path: &Path) -> Result<()> {
    let parent = parent(network)?;
    if !parent.up {
        return Err(Error::Conflict(format!(
            "network {}: its parent {name} is down: ip link set {name} up",
            network.name,
            name = parent.name
        )));
    }
    if network.mtu > parent.mtu {
        return Err(Error::Conflict(format!(
            "network {}: its parent {} has a smaller MTU than the network: {} and {}",
            network.name, parent.name, parent.mtu, network.mtu
        )));
    }
    let kind = match network.driver {
        Driver::Ipvlan => OnParent::Ipvlan(network.ipvlan_mode()),
        Driver::Macvlan | Driver::Bridge => {
            let mac = parse_mac(&endpoint.mac).map_err(|e| Error::Invalid(e.to_string()))?;
            OnParent::Macvlan(network.mode(), mac)
        }
    };
    let file = std::fs::File::open(path).map_err(Error::file("open", path))?;
    let (on, name) = ((parent.index, kind), endpoint.interface.as_str());
    let added = open()?.add_on_parent(on, name, file.as_fd(), network.mtu);
    added.map_err(|error| explained(network, error))
}

/// What the kernel's word on an interface means here.
pub(super) fn explained(network: &Network, error: NetworkError) -> Error {
    let (action, source) = match &error {
        NetworkError::Link { action, source, .. } if network.is_direct() => (*action, source),
        _ => return wrong(error),
    };
    let driver = network.driver.word();
    let why = match Errno::from_io_error(source) {
        Some(Errno::OPNOTSUPP) => format!(
            "the host's kernel has no {driver}: load its module `{driver}`, or take a bridge network"
        ),
        Some(Errno::BUSY) => {
            "its parent is a port of a bridge or a bond (give the bridge or bond itself as parent), or \
             has macvlans where these are to be ipvlans, or the other way round"
                .to_owned()
        }
        Some(Errno::ADDRINUSE) if action == "add address" => {
            "its address is another's on this parent: give another --ip".to_owned()
        }
        Some(Errno::ADDRINUSE) => {
            "its hardware address is another's there: give another --mac-address".to_owned()
        }
        Some(Errno::INVAL) if action.starts_with("make ") => {
            format!("its parent takes no {driver}")
        }
        _ => return wrong(error),
    };
    Error::Conflict(format!(
        "network {} on {}: {why} ({error}: {source})",
        network.name,
        network.parent()
    ))
}

/// Interfaces of the namespace at `path`; none where there is no namespace. Blocking.
pub(super) fn links(path: &Path) -> Result<HashSet<String>> {
    if !path.exists() {
        return Ok(HashSet::new());
    }
    let links = namespace::within(path, || Netlink::open().map_err(unopened)?.links());
    Ok(links.map_err(wrong)?.into_iter().map(|link| link.name).collect())
}

/// Removes a pod's interface; fine when it is gone. Blocking.
pub(super) fn remove(endpoint: &Endpoint, path: &Path) {
    if !path.exists() {
        return;
    }
    let interface = endpoint.interface.clone();
    let gone = namespace::within(path, move || {
        Netlink::open().map_err(unopened)?.remove_from_parent(&interface)
    });
    if let Err(error) = gone.map_err(wrong) {
        // After a reboot it is a file and no namespace.
        tracing::warn!(container = endpoint.container, error = error.chain(), "link not removed");
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn network(options: &[(&str, &str)]) -> Network {
        let options = options.iter().map(|(key, value)| ((*key).into(), (*value).into()));
        Network {
            name: "lan".into(),
            driver: Driver::Macvlan,
            options: options.collect(),
            ..Network::default()
        }
    }

    #[test]
    fn options_are_read_and_bad_ones_named() {
        let good = network(&[("parent", "eth0"), ("macvlan_mode", "vepa")]);
        check(&good).unwrap();
        assert_eq!((good.parent(), good.mode()), ("eth0", super::super::spec::MacvlanMode::Vepa));
        check(&network(&[("parent", "eth0")])).unwrap();
        for (options, word) in [
            (&[][..], "-o parent=INTERFACE"),
            (&[("parent", "eth0"), ("macvlan_mode", "passthru")], "macvlan_mode=passthru"),
        ] {
            let error = check(&network(options)).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn ipvlan_has_modes_of_its_own_and_one_for_all_on_a_parent() {
        let ipvlan = |name: &str, parent: &str, mode: &str| Network {
            name: name.into(),
            driver: Driver::Ipvlan,
            ..network(&[("parent", parent), ("ipvlan_mode", mode)])
        };
        for mode in ["", "l2", "l3"] {
            check(&ipvlan("good", "eth0", mode)).unwrap();
        }
        for mode in ["l3s", "bridge"] {
            let error = check(&ipvlan("bad", "eth0", mode)).unwrap_err().to_string();
            assert!(error.contains(mode) && error.contains("l2 and l3 are"), "{error}");
        }
        let first = ipvlan("first", "eth0", "");
        let beside =
            |other: &Network| check_beside(other, [&first, &Network::default()].into_iter());
        beside(&ipvlan("same", "eth0", "l2")).unwrap();
        beside(&ipvlan("elsewhere", "eth1", "l3")).unwrap();
        for other in [ipvlan("other", "eth0", "l3"), network(&[("parent", "eth0")])] {
            let error = beside(&other).unwrap_err().to_string();
            assert!(error.contains("network first"), "{error}");
        }
        let ip = IpAddr::from([10, 0, 0, 9]);
        assert_eq!(hardware_address(&first, "", ip).unwrap(), "");
        hardware_address(&first, "02:42:00:00:00:01", ip).unwrap_err();
        assert_eq!(hardware_address(&network(&[]), "", ip).unwrap(), "02:42:0a:00:00:09");
    }

    #[test]
    fn what_the_host_cannot_hold_is_refused() {
        let (lan, bridge) = (network(&[("parent", "eth0")]), Network::default());
        let policy: Policy = "none".parse().unwrap();
        let (inward, outward) = ("in=1m".parse().unwrap(), "out=1m".parse().unwrap());
        check_member(&lan, None, &outward).unwrap();
        check_member(&bridge, Some(&policy), &inward).unwrap();
        let error = check_member(&lan, Some(&policy), &outward).unwrap_err().to_string();
        assert!(error.contains("egress policy `none`"), "{error}");
        let error = check_member(&lan, None, &inward).unwrap_err().to_string();
        assert!(error.contains("in=1000000"), "{error}");
    }

    #[test]
    fn networks_that_were_stored_before_have_a_bridge() {
        let text = r#"{ "id": "a", "name": "old", "bridge": "hy-a" }"#;
        let old: Network = serde_json::from_str(text).unwrap();
        assert!(!old.is_direct());
        let text = serde_json::to_string(&network(&[])).unwrap();
        assert!(text.contains(r#""driver":"macvlan""#), "{text}");
    }
}
