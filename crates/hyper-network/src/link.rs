//! Interfaces, their addresses and the routes over them, in the namespace of a [`Netlink`].

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoIpVlan, InfoKind, InfoMacVlan, InfoVeth, IpVlanMode, LinkAttribute, LinkFlags,
    LinkInfo, LinkLayerType, LinkMessage, MacVlanMode,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::Netlink;
use crate::error::{Result, link};

/// A hardware address.
pub type Mac = [u8; 6];

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub mtu: u32,
    /// `None` for what is not Ethernet.
    pub mac: Option<Mac>,
    pub up: bool,
    pub loopback: bool,
    /// Whether it asks for neighbours' hardware addresses.
    pub arp: bool,
    /// Index of the bridge it is a port of.
    pub master: Option<u32>,
    /// `veth`, `bridge`, `tun`, …
    pub kind: Option<String>,
}

/// Whom interfaces on one parent reach directly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MacvlanMode {
    /// Each other.
    #[default]
    Bridge,
    /// Nobody on the same parent.
    Private,
    /// Each other by a switch that sends frames back.
    Vepa,
}

/// How interfaces on one parent are behind its hardware address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum IpvlanMode {
    /// As machines of the parent's Ethernet.
    #[default]
    L2,
    /// As addresses that the host routes to: no broadcasts, no groups, nobody is asked for.
    L3,
}

/// What is made on an interface of the host, its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnParent {
    /// With a hardware address of its own.
    Macvlan(MacvlanMode, Mac),
    /// With the parent's: who gets a packet is told by its address, which must be the interface's.
    Ipvlan(IpvlanMode),
}

/// A route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// `None`: the default.
    pub destination: Option<IpNet>,
    pub gateway: Option<IpAddr>,
    /// Index of the interface; 0: several, or none.
    pub link: u32,
    /// The kernel's own, made with an address.
    pub automatic: bool,
    pub ipv6: bool,
}

impl Netlink {
    /// All interfaces.
    ///
    /// # Errors
    /// The kernel's.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        let all = self.list(RouteNetlinkMessage::GetLink(LinkMessage::default()));
        let all = all.map_err(link("list", "interfaces"))?;
        Ok(all
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewLink(message) => Some(found(message)),
                _ => None,
            })
            .collect())
    }

    /// The interface of a name.
    ///
    /// # Errors
    /// The kernel's.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>> {
        Ok(self.links()?.into_iter().find(|link| link.name == name))
    }

    /// Addresses of all interfaces, with the interface's index. Link-local ones included.
    ///
    /// # Errors
    /// The kernel's.
    pub fn addresses(&mut self) -> Result<Vec<(u32, IpNet)>> {
        let all = self.list(RouteNetlinkMessage::GetAddress(AddressMessage::default()));
        let all = all.map_err(link("list", "addresses"))?;
        Ok(all
            .into_iter()
            .filter_map(|message| {
                let RouteNetlinkMessage::NewAddress(message) = message else { return None };
                let local = |attribute: &AddressAttribute| match attribute {
                    AddressAttribute::Local(ip) => Some(*ip),
                    _ => None,
                };
                let address = |attribute: &AddressAttribute| match attribute {
                    AddressAttribute::Address(ip) => Some(*ip),
                    _ => None,
                };
                let attributes = &message.attributes;
                let ip = attributes
                    .iter()
                    .find_map(local)
                    .or_else(|| attributes.iter().find_map(address))?;
                let net = IpNet::new(ip, message.header.prefix_len).ok()?;
                Some((message.header.index, net))
            })
            .collect())
    }

    /// Unicast routes of the main table.
    ///
    /// # Errors
    /// The kernel's.
    pub fn routes(&mut self) -> Result<Vec<Route>> {
        let all = self.list(RouteNetlinkMessage::GetRoute(RouteMessage::default()));
        let all = all.map_err(link("list", "routes"))?;
        Ok(all
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewRoute(message) => route(&message),
                _ => None,
            })
            .collect())
    }

    /// Makes a bridge with a fixed hardware address, still down.
    ///
    /// # Errors
    /// The kernel's; the name is taken.
    pub fn add_bridge(&mut self, name: &str, mac: Mac, mtu: u32) -> Result<()> {
        let mut message = named(name, InfoKind::Bridge, None);
        message.attributes.push(LinkAttribute::Address(mac.to_vec()));
        message.attributes.push(LinkAttribute::Mtu(mtu));
        self.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
            .map_err(link("make bridge", name))
    }

    /// Makes a pair of interfaces: `name` here, up and a port of `master`; `peer` in `namespace`,
    /// still down.
    ///
    /// # Errors
    /// The kernel's; a name is taken.
    pub fn add_veth(
        &mut self,
        (name, master): (&str, u32),
        (peer, mac): (&str, Mac),
        namespace: BorrowedFd<'_>,
        mtu: u32,
    ) -> Result<()> {
        let mut other = LinkMessage::default();
        other.attributes.push(LinkAttribute::IfName(peer.to_owned()));
        other.attributes.push(LinkAttribute::Address(mac.to_vec()));
        other.attributes.push(LinkAttribute::Mtu(mtu));
        other.attributes.push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
        let mut message = named(name, InfoKind::Veth, Some(InfoData::Veth(InfoVeth::Peer(other))));
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes.push(LinkAttribute::Controller(master));
        message.attributes.push(LinkAttribute::Mtu(mtu));
        self.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
            .map_err(link("make link", name))
    }

    /// Makes an interface on the interface `parent`; in `namespace`, still down, and gone with either.
    /// An MTU of 0 is the parent's.
    ///
    /// # Errors
    /// The kernel's: it lacks `macvlan` or `ipvlan`, the parent is a port of a bridge or has some of
    /// the other kind, the name is taken.
    pub fn add_on_parent(
        &mut self,
        (parent, kind): (u32, OnParent),
        name: &str,
        namespace: BorrowedFd<'_>,
        mtu: u32,
    ) -> Result<()> {
        let (word, mut message) = match kind {
            OnParent::Macvlan(mode, mac) => {
                let mode = match mode {
                    MacvlanMode::Bridge => MacVlanMode::Bridge,
                    MacvlanMode::Private => MacVlanMode::Private,
                    MacvlanMode::Vepa => MacVlanMode::Vepa,
                };
                let data = InfoData::MacVlan(vec![InfoMacVlan::Mode(mode)]);
                let mut message = named(name, InfoKind::MacVlan, Some(data));
                message.attributes.push(LinkAttribute::Address(mac.to_vec()));
                ("make macvlan", message)
            }
            OnParent::Ipvlan(mode) => {
                let mode = match mode {
                    IpvlanMode::L2 => IpVlanMode::L2,
                    IpvlanMode::L3 => IpVlanMode::L3,
                };
                let data = InfoData::IpVlan(vec![InfoIpVlan::Mode(mode)]);
                ("make ipvlan", named(name, InfoKind::IpVlan, Some(data)))
            }
        };
        message.attributes.push(LinkAttribute::Link(parent));
        message.attributes.push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
        if mtu != 0 {
            message.attributes.push(LinkAttribute::Mtu(mtu));
        }
        self.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
            .map_err(link(word, name))
    }

    /// Lets frames for every multicast group arrive at an interface.
    pub(crate) fn hear_all_groups(&mut self, index: u32) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Allmulti;
        message.header.change_mask = LinkFlags::Allmulti;
        self.change(RouteNetlinkMessage::SetLink(message), 0)
            .map_err(link("hear all multicast groups at link", &index.to_string()))
    }

    /// Removes an interface on a parent; fine when it is gone.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove_from_parent(&mut self, name: &str) -> Result<()> {
        // An ipvlan that hears all groups when it goes leaves its parent hearing them (Linux 6.1).
        let mut message = LinkMessage::default();
        message.header.change_mask = LinkFlags::Allmulti;
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.change(RouteNetlinkMessage::SetLink(message), 0) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
            done => done.map_err(link("hear no multicast groups at link", name))?,
        }
        self.remove(name)
    }

    /// Removes an interface; fine when it is gone.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove(&mut self, name: &str) -> Result<()> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.change(RouteNetlinkMessage::DelLink(message), 0) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            done => done.map_err(link("remove link", name)),
        }
    }

    /// Brings an interface up.
    ///
    /// # Errors
    /// The kernel's.
    pub fn up(&mut self, index: u32) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.change(RouteNetlinkMessage::SetLink(message), 0)
            .map_err(link("bring up link", &index.to_string()))
    }

    /// Sets an interface's MTU and brings it up.
    pub(crate) fn up_with_mtu(&mut self, index: u32, mtu: u32) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes.push(LinkAttribute::Mtu(mtu));
        self.change(RouteNetlinkMessage::SetLink(message), 0)
            .map_err(link("bring up link", &index.to_string()))
    }

    /// Gives an interface an address. IPv6 ones are usable at once: we know that nobody has it.
    ///
    /// # Errors
    /// The kernel's; fine when it has it.
    pub fn add_address(&mut self, index: u32, address: IpNet) -> Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(address.addr());
        message.header.prefix_len = address.prefix_len();
        message.header.scope = AddressScope::Universe;
        message.header.index = index;
        message.attributes.push(AddressAttribute::Local(address.addr()));
        message.attributes.push(AddressAttribute::Address(address.addr()));
        match address {
            IpNet::V4(net) if net.prefix_len() < 31 => {
                message.attributes.push(AddressAttribute::Broadcast(net.broadcast()));
            }
            IpNet::V4(_) => {}
            IpNet::V6(_) => {
                message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            }
        }
        self.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
            .map_err(link("add address", &address.to_string()))
    }

    /// Makes a gateway the default of its family.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add_default_route(&mut self, index: u32, gateway: IpAddr) -> Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(gateway);
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.header.flags = RouteFlags::empty();
        message.attributes.push(RouteAttribute::Gateway(gateway.into()));
        message.attributes.push(RouteAttribute::Oif(index));
        self.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
            .map_err(link("add the default route by", &gateway.to_string()))
    }
}

fn named(name: &str, kind: InfoKind, data: Option<InfoData>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    let mut info = vec![LinkInfo::Kind(kind)];
    info.extend(data.map(LinkInfo::Data));
    message.attributes.push(LinkAttribute::LinkInfo(info));
    message
}

fn found(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mtu: 0,
        mac: None,
        up: message.header.flags.contains(LinkFlags::Up),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        arp: !message.header.flags.contains(LinkFlags::Noarp),
        master: None,
        kind: None,
    };
    let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(address) if ethernet => link.mac = address.try_into().ok(),
            LinkAttribute::Controller(master) => link.master = Some(master),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link
}

fn route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    if header.table != RouteHeader::RT_TABLE_MAIN || header.kind != RouteType::Unicast {
        return None;
    }
    let address = |address: &RouteAddress| match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    };
    let mut route = Route {
        destination: None,
        gateway: None,
        link: 0,
        automatic: header.protocol == RouteProtocol::Kernel,
        ipv6: header.address_family == AddressFamily::Inet6,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(ip) => {
                route.destination =
                    Some(IpNet::new(address(ip)?, header.destination_prefix_length).ok()?);
            }
            RouteAttribute::Gateway(ip) => route.gateway = address(ip),
            RouteAttribute::Oif(index) => route.link = *index,
            _ => {}
        }
    }
    Some(route)
}

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// `02:42:…`, lower case.
#[must_use]
pub fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Reads `02:42:ac:11:00:02`.
///
/// # Errors
/// It is none, or no single card's.
pub fn parse_mac(text: &str) -> io::Result<Mac> {
    let bad = || io::Error::new(io::ErrorKind::InvalidInput, format!("`{text}` is no MAC address"));
    let bytes: Option<Vec<u8>> = text
        .split([':', '-'])
        .map(|part| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2))
        .collect();
    let mac: Mac = bytes.ok_or_else(bad)?.try_into().map_err(|_| bad())?;
    if mac[0] & 1 == 1 || mac == [0; 6] { Err(bad()) } else { Ok(mac) }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn hardware_addresses() {
        let mac = parse_mac("02:42:AC:11:00:02").unwrap();
        assert_eq!(mac_text(mac), "02:42:ac:11:00:02");
        for bad in
            ["", "02:42:ac:11:00", "01:00:5e:00:00:01", "zz:42:ac:11:00:02", "00:00:00:00:00:00"]
        {
            assert!(parse_mac(bad).is_err(), "{bad}");
        }
    }
}
