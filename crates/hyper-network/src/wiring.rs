//! A pod's namespace wired to taps: what the supervisor does with whatever it finds there.
//!
//! ```text
//!  host │ pod's namespace                 │ hypervisor
//!       │ eth0 (veth, macvlan, …) ◀─tc─▶ tap0 ─── descriptor ─▶ guest's eth0
//! ```
//! The addresses stay on the namespace's interface, as Kata and CNI have it: nothing arrives there
//! any more, and who looks from outside sees what the pod has.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::Path;

use ipnet::IpNet;

use crate::error::{NetworkError, Result, link};
use crate::link::{Link, Mac};
use crate::redirect::Guard;
use crate::{Netlink, namespace, tap};

/// Begins the names of our taps.
const TAP: &str = "hypertap";

/// An interface of the pod, for the guest.
#[derive(Debug)]
pub struct Wired {
    pub tap: OwnedFd,
    pub card: Card,
}

/// What the guest's interface is to be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    pub name: String,
    pub mac: Mac,
    pub mtu: u32,
    /// Without link-local ones, which the guest makes itself.
    pub addresses: Vec<IpNet>,
    /// Destination (`None`: default) and gateway.
    pub routes: Vec<(Option<IpNet>, Option<IpAddr>)>,
}

/// How a namespace is wired.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Manner {
    /// The guest can send from its own addresses only, else from its own MAC only.
    pub strict: bool,
    /// The namespace is removed with the pod: taps may stay in it until then.
    pub removed: bool,
}

/// Wires every Ethernet interface of the namespace at `path` to a tap of its own. Blocking.
///
/// # Errors
/// The namespace cannot be entered, taps cannot be had.
pub fn wire(path: &Path, manner: Manner) -> Result<Vec<Wired>> {
    if namespace::is_own(path)? {
        return Err(NetworkError::Unavailable(format!(
            "network namespace `{}` is the host's own: a guest cannot share it, give it another",
            path.display()
        )));
    }
    namespace::within(path, move || {
        let mut netlink = Netlink::open().map_err(link("open", "rtnetlink"))?;
        let cards = cards(&mut netlink)?;
        cards
            .into_iter()
            .enumerate()
            .map(|(at, (found, card))| {
                let name = format!("{TAP}{at}");
                let tap = tap::open(&name)?;
                connect(&mut netlink, &found, &card, &name, manner.strict)?;
                if manner.removed {
                    tap::leave(&tap)?;
                }
                Ok(Wired { tap, card })
            })
            .collect()
    })
}

fn connect(
    netlink: &mut Netlink,
    found: &Link,
    card: &Card,
    tap: &str,
    strict: bool,
) -> Result<()> {
    let tap = netlink.link(tap)?.ok_or_else(|| {
        NetworkError::Unavailable(format!("tap `{tap}` is gone as soon as it was made"))
    })?;
    netlink.up_with_mtu(tap.index, found.mtu)?;
    if !found.up {
        netlink.up(found.index)?;
    }
    let addresses =
        if strict { card.addresses.iter().map(IpNet::addr).collect() } else { Vec::new() };
    netlink.redirect(found.index, tap.index, None)?;
    netlink.redirect(tap.index, found.index, Some(&Guard { mac: card.mac, addresses }))
}

/// The interfaces that a guest can have, in their order.
fn cards(netlink: &mut Netlink) -> Result<Vec<(Link, Card)>> {
    let links = netlink.links()?;
    let addresses = netlink.addresses()?;
    let routes = netlink.routes()?;
    let mut cards = Vec::new();
    for link in links {
        // Namespaces may have idle tunnel devices; taps are a supervisor's before us.
        let Some(mac) = link.mac else { continue };
        if link.loopback || link.kind.as_deref() == Some("tun") {
            continue;
        }
        let own = |at: u32| at == link.index;
        let card = Card {
            name: link.name.clone(),
            mac,
            mtu: link.mtu,
            addresses: addresses
                .iter()
                .filter(|(at, net)| own(*at) && !is_link_local(net.addr()))
                .map(|(_, net)| *net)
                .collect(),
            routes: routes
                .iter()
                .filter(|route| own(route.link) && !route.automatic)
                .filter(|route| !route.destination.is_some_and(|to| is_link_local(to.addr())))
                .map(|route| (route.destination, route.gateway))
                .collect(),
        };
        if card.addresses.is_empty() && !link.up {
            continue;
        }
        cards.push((link, card));
    }
    Ok(cards)
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local() || ip.is_multicast())
}
