//! A pod's namespace wired to taps: what the supervisor does with whatever it finds there.
//!
//! ```text
//!  host │ pod's namespace                 │ hypervisor
//!       │ eth0 (veth, macvlan, …) ◀─tc─▶ tap0 ─── descriptor ─▶ guest's eth0
//!       │ eth1, which came later  ◀─tc─▶ tap0                   └▶ eth1, a macvlan on it
//! ```
//! The addresses stay on the namespace's interface, as Kata and CNI have it: nothing arrives there
//! any more, and who looks from outside sees what the pod has.
//!
//! No hypervisor need put a card into a guest that runs: an interface that comes later rides on a
//! card that is there, told apart by its MAC. What is broadcast in one of two networks that share a
//! card is seen by the guest in both.
//!
//! An ipvlan has its parent's MAC, and so has the guest's card; the kernel delivers by the addresses of
//! the namespace's interface. One that asks for no neighbours (`l3`) has a card that asks for none.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use crate::counters::{self, Counters};
use crate::error::{NetworkError, Result, file, link};
use crate::link::{Link, Mac, mac_text};
use crate::redirect::{Guard, MAX_SLOTS};
use crate::{Netlink, namespace, tap};

/// Begins the names of our taps.
const TAP: &str = "hypertap";
/// The kind of interface whose hardware address is its parent's.
const IPVLAN: &str = "ipvlan";

/// An interface of the pod, for the guest.
#[derive(Debug)]
pub struct Wired {
    /// The tap's queues.
    pub tap: Vec<OwnedFd>,
    pub card: Card,
}

/// What the guest's interface is to be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    pub name: String,
    pub mac: Mac,
    pub mtu: u32,
    /// Without link-local ones, which the guest makes itself, unless others have its MAC.
    pub addresses: Vec<IpNet>,
    /// Whether it asks for neighbours.
    pub arp: bool,
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

/// Wires every Ethernet interface of the namespace at `path` to a tap of its own, which has so many queues. Blocking.
///
/// # Errors
/// The namespace cannot be entered, taps cannot be had.
pub fn wire(path: &Path, manner: Manner, queues: usize) -> Result<(Wiring, Vec<Wired>)> {
    if namespace::is_own(path)? {
        return Err(NetworkError::Unavailable(format!(
            "network namespace `{}` is the host's own: a guest cannot share it, give it another",
            path.display()
        )));
    }
    let mut wiring = Wiring { path: path.to_owned(), manner, ..Wiring::default() };
    namespace::within(path, move || {
        let mut netlink = Netlink::open().map_err(link("open", "rtnetlink"))?;
        let cards = cards(&mut netlink)?;
        for (at, (_, card)) in cards.iter().enumerate() {
            alone(card, cards.iter().take(at).map(|(_, other)| other))?;
        }
        let mut all = Vec::new();
        for (at, (found, card)) in cards.into_iter().enumerate() {
            let name = format!("{TAP}{at}");
            let tap = tap::open(&name, queues)?;
            let index = made(&mut netlink, &name)?;
            netlink.up_with_mtu(index, found.mtu)?;
            if let Some(first) = tap.first().filter(|_| manner.removed) {
                tap::leave(first)?;
            }
            let (mac, mtu) = (card.mac, card.mtu);
            wiring.taps.push(Tap { index, mac, mtu });
            let port = Port { index: found.index, card: card.clone(), tap: at, slot: 0 };
            wiring.connect(&mut netlink, &port, &found)?;
            wiring.ports.push(port);
            all.push(Wired { tap, card });
        }
        Ok((wiring, all))
    })
}

/// How a namespace is wired, for as long as its pod lives.
#[derive(Debug, Clone, Default)]
pub struct Wiring {
    path: PathBuf,
    manner: Manner,
    /// In the order of the guest's cards.
    taps: Vec<Tap>,
    ports: Vec<Port>,
    /// Gone from the namespace, and the guest may not know yet.
    gone: Vec<Rider>,
}

#[derive(Debug, Clone)]
struct Tap {
    index: u32,
    /// The guest's card at its other end.
    mac: Mac,
    mtu: u32,
}

/// An interface of the namespace that is wired to one of [`Wiring::taps`].
#[derive(Debug, Clone)]
struct Port {
    index: u32,
    card: Card,
    tap: usize,
    /// Which rules of the tap are its own.
    slot: u32,
}

/// An interface for the guest, and the card it rides on if it is none itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rider {
    pub card: Card,
    pub carrier: Option<Mac>,
}

impl Wiring {
    /// Wires what has come into the namespace and forgets what has gone. Blocking.
    ///
    /// # Errors
    /// [`NetworkError::Unavailable`] without a card that could carry it; the kernel's. What could be
    /// wired is; the rest is tried again by the next call.
    pub fn renew(&mut self) -> Result<()> {
        let path = self.path.clone();
        let mut wiring = self.clone();
        let (wiring, done) = namespace::within(&path, move || {
            let done = wiring.renew_here();
            Ok((wiring, done))
        })?;
        *self = wiring;
        done
    }

    /// All interfaces that the guest is to have.
    #[must_use]
    pub fn interfaces(&self) -> Vec<Rider> {
        self.ports.iter().map(|port| self.rider(port)).collect()
    }

    /// What has passed the pod's interfaces, at their ends on the host: a guest that lies changes
    /// nothing of it. Blocking.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn counters(&self) -> Result<Vec<Counters>> {
        let own = |one: &Counters| self.ports.iter().any(|port| port.card.name == one.name);
        let mut all = namespace::within(&self.path, || {
            let path = "/proc/thread-self/net/dev";
            std::fs::read_to_string(path)
                .map_err(file("read", path))
                .map(|text| counters::read(&text))
        })?;
        all.retain(own);
        Ok(all)
    }

    /// Interfaces that the guest is not to have any more, until [`Self::told`].
    #[must_use]
    pub fn gone(&self) -> &[Rider] {
        &self.gone
    }

    /// The guest has let go of what is [gone](Self::gone).
    pub fn told(&mut self) {
        self.gone.clear();
    }

    fn rider(&self, port: &Port) -> Rider {
        let Some(tap) = self.taps.get(port.tap).filter(|tap| tap.mac != port.card.mac) else {
            return Rider { card: port.card.clone(), carrier: None };
        };
        // A rider's frames are its carrier's.
        let mtu = port.card.mtu.min(tap.mtu);
        Rider { card: Card { mtu, ..port.card.clone() }, carrier: Some(tap.mac) }
    }

    fn renew_here(&mut self) -> Result<()> {
        let mut netlink = Netlink::open().map_err(link("open", "rtnetlink"))?;
        let found = cards(&mut netlink)?;
        let there = |port: &Port| {
            let same = |(link, card): &&(Link, Card)| {
                (link.index, card.mac) == (port.index, port.card.mac)
            };
            found.iter().find(same).map(|(_, card)| card.clone())
        };
        let (mut kept, mut gone) = (Vec::new(), Vec::new());
        for mut port in std::mem::take(&mut self.ports) {
            match there(&port) {
                Some(card) => {
                    port.card = card;
                    kept.push(port);
                }
                None => gone.push(port),
            }
        }
        self.ports = kept;
        let mut bare: Vec<usize> = gone.iter().map(|port| port.tap).collect();
        bare.sort_unstable();
        bare.dedup();
        let gone: Vec<Rider> = gone.iter().map(|port| self.rider(port)).collect();
        self.gone.extend(gone);
        for tap in bare {
            self.rewire(&mut netlink, tap)?;
        }
        for (link, card) in found {
            if self.ports.iter().any(|port| port.index == link.index) {
                continue;
            }
            let (tap, slot) = self.place(&card)?;
            let port = Port { index: link.index, card, tap, slot };
            if let Err(error) = self.connect(&mut netlink, &port, &link) {
                // Half of its rules would be in the way of the next attempt.
                self.rewire(&mut netlink, tap)?;
                return Err(error);
            }
            self.ports.push(port);
        }
        Ok(())
    }

    /// A tap with room for one more, and its slot there.
    fn place(&self, card: &Card) -> Result<(usize, u32)> {
        alone(card, self.ports.iter().map(|port| &port.card))?;
        if self.taps.is_empty() {
            return Err(NetworkError::Unavailable(format!(
                "the guest has no card that could carry {}: it was started without a network",
                card.name
            )));
        }
        // An idle card of this address is that card again: nothing else in the guest can have it.
        let own = self.taps.iter().position(|tap| tap.mac == card.mac);
        let wide = || self.taps.iter().position(|tap| tap.mtu >= card.mtu);
        let at = own.or_else(wide).unwrap_or(0);
        let taken = |slot: &u32| self.ports.iter().any(|one| (one.tap, one.slot) == (at, *slot));
        // The first is that of the card itself.
        let slot = (1..MAX_SLOTS).find(|slot| !taken(slot)).ok_or_else(|| {
            NetworkError::Unavailable(format!(
                "{} networks share the guest's card already: no room for {}",
                MAX_SLOTS - 1,
                card.name
            ))
        })?;
        Ok((at, slot))
    }

    /// Writes all rules of a tap anew.
    fn rewire(&self, netlink: &mut Netlink, tap: usize) -> Result<()> {
        let Some(index) = self.taps.get(tap).map(|tap| tap.index) else { return Ok(()) };
        netlink.stop_redirect(index)?;
        let own = self.ports.iter().filter(|port| port.tap == tap);
        own.into_iter().try_for_each(|port| self.guard(netlink, port))
    }

    fn connect(&self, netlink: &mut Netlink, port: &Port, found: &Link) -> Result<()> {
        if !found.up {
            netlink.up(port.index)?;
        }
        if matches!(found.kind.as_deref(), Some("macvlan" | IPVLAN)) {
            // It passes on groups that its own namespace is in; those of the guest nobody knows here.
            netlink.hear_all_groups(port.index)?;
        }
        let Some(tap) = self.taps.get(port.tap) else { return Ok(()) };
        // What is left of an attempt that failed.
        netlink.stop_redirect(port.index)?;
        if self.manner.strict {
            netlink.keep_advertisements(port.index)?;
        }
        netlink.redirect(port.index, tap.index, 0, None)?;
        self.guard(netlink, port)
    }

    /// What the guest sends as this card goes out by its interface.
    fn guard(&self, netlink: &mut Netlink, port: &Port) -> Result<()> {
        let Some(tap) = self.taps.get(port.tap) else { return Ok(()) };
        let addresses = match self.manner.strict {
            true => port.card.addresses.iter().map(IpNet::addr).collect(),
            false => Vec::new(),
        };
        let guard = Guard { mac: port.card.mac, addresses };
        netlink.redirect(tap.index, port.index, port.slot, Some(&guard))
    }
}

/// A guest tells its cards apart by their hardware addresses.
fn alone<'a>(card: &Card, mut others: impl Iterator<Item = &'a Card>) -> Result<()> {
    let Some(other) = others.find(|other| other.mac == card.mac) else { return Ok(()) };
    Err(NetworkError::Unavailable(format!(
        "{} has the hardware address of {}, {}: give it another, or a parent of another if it is an \
         ipvlan",
        card.name,
        other.name,
        mac_text(card.mac)
    )))
}

fn made(netlink: &mut Netlink, tap: &str) -> Result<u32> {
    let found = netlink.link(tap)?.ok_or_else(|| {
        NetworkError::Unavailable(format!("tap `{tap}` is gone as soon as it was made"))
    })?;
    Ok(found.index)
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
        // All on one parent would make themselves the same address of it.
        let shared = link.kind.as_deref() == Some(IPVLAN);
        let card = Card {
            name: link.name.clone(),
            mac,
            mtu: link.mtu,
            arp: link.arp,
            addresses: addresses
                .iter()
                .filter(|(at, net)| own(*at) && (shared || !is_link_local(net.addr())))
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
