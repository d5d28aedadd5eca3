//! Interfaces, addresses and routes, over a handful of rtnetlink messages (`rtnetlink(7)`).

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr},
    os::fd::OwnedFd,
};

use hyper_link::message::{Interface, Route};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

use crate::failure::{Doing as _, Outcome, invalid};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
/// `NLM_F_REQUEST | NLM_F_ACK`.
const ASK: u16 = 0x01 | 0x04;
/// `NLM_F_REPLACE | NLM_F_CREATE`.
const MAKE: u16 = 0x100 | 0x400;
/// `NLM_F_EXCL | NLM_F_CREATE`.
const MAKE_NEW: u16 = 0x200 | 0x400;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_MACVLAN_MODE: u16 = 1;
/// Riders of one card do not hear each other: the networks they are in meet on the host, if at all.
const MACVLAN_MODE_PRIVATE: u32 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
/// The address is usable at once; nobody else can have it in a pod's network.
const IFA_F_NODAD: u8 = 0x02;
const IFF_UP: u32 = 1;
const IFF_NOARP: u32 = 0x80;
const RTNH_F_ONLINK: u32 = 4;
const LOOPBACK: u32 = 1;
/// Begins the name of a card that has nothing of its own any more.
const IDLE: &str = "idle";

/// Brings `lo` up.
///
/// # Errors
/// No rtnetlink in this kernel, or no loopback.
pub(crate) fn loopback_up() -> io::Result<()> {
    Rtnetlink::open()?.change_link(LOOPBACK, IFF_UP, &[])
}

/// Index and name of the interface with hardware address `mac`.
pub(crate) fn find(mac: &str) -> Option<(u32, String)> {
    let entries = fs::read_dir("/sys/class/net").ok()?;
    entries.flatten().find_map(|entry| {
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).ok();
        let address = read("address")?;
        let index = read("ifindex")?.trim().parse().ok()?;
        let same = address.trim().eq_ignore_ascii_case(mac);
        same.then(|| (index, entry.file_name().to_string_lossy().into_owned()))
    })
}

/// A connection to the kernel's routing tables.
#[derive(Debug)]
pub(crate) struct Rtnetlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Rtnetlink {
    pub(crate) fn open() -> io::Result<Self> {
        let kind = SocketType::RAW;
        // No protocol is protocol 0, NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, kind, SocketFlags::CLOEXEC, None)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Names the interface, gives it its addresses, and brings it up.
    pub(crate) fn set_up(&mut self, index: u32, name: &str, wanted: &Interface) -> Outcome<()> {
        let describe = |what: &str| format!("{what} interface {} ({})", wanted.name, wanted.mac);
        let mut attributes = Vec::new();
        let renamed = wanted.name != name && !wanted.name.is_empty();
        if renamed || wanted.found_by.is_some() {
            // A running interface keeps its name, and some their address.
            self.change_link(index, 0, &[]).doing(|| describe("take down"))?;
        }
        if renamed {
            let zero_ended = [wanted.name.as_bytes(), b"\0"].concat();
            attributes.extend(attribute(IFLA_IFNAME, &zero_ended));
        }
        if wanted.found_by.is_some() {
            attributes.extend(attribute(IFLA_ADDRESS, &mac(&wanted.mac)?));
        }
        if wanted.mtu != 0 {
            attributes.extend(attribute(IFLA_MTU, &wanted.mtu.to_ne_bytes()));
        }
        if has_link_local(wanted) {
            make_link_local(name, false);
        }
        let flags = if wanted.no_arp { IFF_UP | IFF_NOARP } else { IFF_UP };
        self.change_link(index, flags, &attributes).doing(|| describe("bring up"))?;
        for address in &wanted.addresses {
            let (ip, length) = parse_prefix(address)?;
            self.add_address(index, ip, length).doing(|| describe(&format!("add {address} to")))?;
        }
        Ok(())
    }

    /// Makes an interface that rides on a card, by [`Interface::carrier`]; still down.
    pub(crate) fn add_rider(&mut self, card: u32, wanted: &Interface) -> Outcome<()> {
        let describe = || format!("make interface {} ({})", wanted.name, wanted.mac);
        let mac = mac(&wanted.mac)?;
        let mode = attribute(IFLA_MACVLAN_MODE, &MACVLAN_MODE_PRIVATE.to_ne_bytes());
        let info = [attribute(IFLA_INFO_KIND, b"macvlan"), attribute(IFLA_INFO_DATA, &mode)];
        let name = [wanted.name.as_bytes(), b"\0"].concat();
        let attributes = [
            attribute(IFLA_LINK, &card.to_ne_bytes()),
            attribute(IFLA_IFNAME, &name),
            attribute(IFLA_ADDRESS, &mac),
            attribute(IFLA_LINKINFO, &info.concat()),
        ];
        let body = link_message(0, 0, &attributes.concat());
        self.ask(RTM_NEWLINK, MAKE_NEW, &body).doing(describe)
    }

    /// Removes an interface that rides on a card; a card loses its addresses and its name, since it
    /// may carry others, and others may be called so.
    pub(crate) fn take_down(&mut self, index: u32, name: &str, gone: &Interface) -> Outcome<()> {
        let describe = || format!("take down interface {} ({})", gone.name, gone.mac);
        if gone.carrier.is_some() {
            return self.ask(RTM_DELLINK, 0, &link_message(index, 0, &[])).doing(describe);
        }
        for address in &gone.addresses {
            let (ip, length) = parse_prefix(address)?;
            match self.ask(RTM_DELADDR, 0, &address_message(index, ip, length)) {
                Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {}
                done => done.doing(describe)?,
            }
        }
        if has_link_local(gone) {
            make_link_local(name, true);
        }
        let idle = format!("{IDLE}{index}");
        if idle == name {
            return Ok(());
        }
        let renamed = attribute(IFLA_IFNAME, &[idle.as_bytes(), b"\0"].concat());
        // It stays up: what rides on it runs.
        self.change_link(index, IFF_UP, &renamed).doing(describe)
    }

    /// Adds a route, or replaces the one to the same destination.
    pub(crate) fn add_route(&mut self, route: &Route) -> Outcome<()> {
        let gateway = route.gateway.as_deref().filter(|gateway| !gateway.is_empty());
        let gateway: Option<IpAddr> = gateway
            .map(|text| text.parse().map_err(|_no_address| invalid(format!("gateway {text:?}"))))
            .transpose()?;
        let destination = match route.destination.as_str() {
            "default" | "" => None,
            prefix => Some(parse_prefix(prefix)?),
        };
        let describe = || format!("add route to {} by {}", route.destination, route.interface);
        let index = fs::read_to_string(format!("/sys/class/net/{}/ifindex", route.interface));
        let index = index.doing(describe)?.trim().parse().doing(describe)?;
        match self.new_route(destination, gateway, index, 0) {
            // The gateway is in none of the interface's networks, as some CNI plugins have it.
            Err(error) if error.raw_os_error() == Some(libc::ENETUNREACH) => {
                self.new_route(destination, gateway, index, RTNH_F_ONLINK)
            }
            outcome => outcome,
        }
        .doing(describe)
    }

    fn change_link(&mut self, index: u32, flags: u32, attributes: &[u8]) -> io::Result<()> {
        self.ask(RTM_NEWLINK, 0, &link_message(index, flags, attributes))
    }

    fn add_address(&mut self, index: u32, ip: IpAddr, length: u8) -> io::Result<()> {
        let mut body = address_message(index, ip, length);
        if let IpAddr::V4(v4) = ip
            && length < 31
        {
            let broadcast = Ipv4Addr::from(u32::from(v4) | (u32::MAX >> length));
            body.extend(attribute(IFA_BROADCAST, &broadcast.octets()));
        }
        self.ask(RTM_NEWADDR, MAKE, &body)
    }

    fn new_route(
        &mut self,
        destination: Option<(IpAddr, u8)>,
        gateway: Option<IpAddr>,
        index: u32,
        flags: u32,
    ) -> io::Result<()> {
        const MAIN_TABLE: u8 = 254;
        const STATIC: u8 = 4;
        const UNICAST: u8 = 1;
        const SCOPE_LINK: u8 = 253;
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let kind = destination.map(|(ip, _)| ip).or(gateway).unwrap_or(any);
        let scope = if gateway.is_none() && kind.is_ipv4() { SCOPE_LINK } else { 0 };
        let length = destination.map_or(0, |(_, length)| length);
        // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags.
        let mut body = vec![family(kind), length, 0, 0, MAIN_TABLE, STATIC, scope, UNICAST];
        body.extend(flags.to_ne_bytes());
        if let Some((ip, _)) = destination {
            body.extend(attribute(RTA_DST, &bytes(ip)));
        }
        if let Some(gateway) = gateway {
            body.extend(attribute(RTA_GATEWAY, &bytes(gateway)));
        }
        body.extend(attribute(RTA_OIF, &index.to_ne_bytes()));
        self.ask(RTM_NEWROUTE, MAKE, &body)
    }

    /// Sends one request and waits for the kernel's verdict, which it gives at once.
    fn ask(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        const HEADER: usize = 16;
        const NLMSG_ERROR: u16 = 2;
        self.sequence += 1;
        let len = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend(len.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((ASK | flags).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(body);
        send(&self.socket, &message, SendFlags::empty())?;
        let mut answer = [0; 4096];
        let (len, _) = recv(&self.socket, &mut answer, RecvFlags::empty())?;
        let answer = &answer[..len.min(answer.len())];
        let (Some(kind), Some(error)) = (answer.get(4..6), answer.get(HEADER..HEADER + 4)) else {
            return Err(io::Error::other("short answer from rtnetlink"));
        };
        let error = i32::from_ne_bytes([error[0], error[1], error[2], error[3]]);
        match u16::from_ne_bytes([kind[0], kind[1]]) {
            NLMSG_ERROR if error == 0 => Ok(()),
            NLMSG_ERROR => Err(io::Error::from_raw_os_error(-error)),
            other => Err(io::Error::other(format!("answer {other} from rtnetlink"))),
        }
    }
}

fn has_link_local(interface: &Interface) -> bool {
    let local = |ip: IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    interface.addresses.iter().any(|text| parse_prefix(text).is_ok_and(|(ip, _)| local(ip)))
}

/// Whether an interface makes itself a link-local address when it comes up (`ip-sysctl`,
/// `addr_gen_mode`). Without IPv6 there is nothing to say.
fn make_link_local(name: &str, itself: bool) {
    let mode = if itself { "0" } else { "1" };
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/addr_gen_mode"), mode);
}

/// `struct ifinfomsg` (family, pad, type, index, flags, change) with attributes.
fn link_message(index: u32, flags: u32, attributes: &[u8]) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body.extend((IFF_UP | IFF_NOARP).to_ne_bytes());
    body.extend(attributes);
    body
}

/// `struct ifaddrmsg` (family, prefix length, flags, scope, index) with the address.
fn address_message(index: u32, ip: IpAddr, length: u8) -> Vec<u8> {
    let flags = if ip.is_ipv6() { IFA_F_NODAD } else { 0 };
    let mut body = vec![family(ip), length, flags, 0];
    body.extend(index.to_ne_bytes());
    body.extend(attribute(IFA_LOCAL, &bytes(ip)));
    body.extend(attribute(IFA_ADDRESS, &bytes(ip)));
    body
}

/// A routing attribute, padded to four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = 4 + value.len();
    let mut out = Vec::with_capacity(len.next_multiple_of(4));
    out.extend(u16::try_from(len).unwrap_or(u16::MAX).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(len.next_multiple_of(4), 0);
    out
}

fn family(ip: IpAddr) -> u8 {
    // AF_INET and AF_INET6.
    if ip.is_ipv4() { 2 } else { 10 }
}

fn bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn mac(text: &str) -> Outcome<[u8; 6]> {
    parse_mac(text).ok_or_else(|| invalid(format!("{text:?} is no MAC address")))
}

/// Reads `02:42:ac:11:00:02`.
fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut bytes = text.split(':').map(|byte| {
        let digits = byte.len() == 2 && byte.bytes().all(|digit| digit.is_ascii_hexdigit());
        digits.then(|| u8::from_str_radix(byte, 16).ok()).flatten()
    });
    let mut mac = [0; 6];
    for byte in &mut mac {
        *byte = bytes.next()??;
    }
    bytes.next().is_none().then_some(mac)
}

/// Reads `10.1.2.3/24`; without a length it is a single address.
fn parse_prefix(text: &str) -> Outcome<(IpAddr, u8)> {
    let bad = || invalid(format!("{text:?} is no address with prefix length"));
    let (ip, length) = text.split_once('/').map_or((text, None), |(ip, len)| (ip, Some(len)));
    let ip: IpAddr = ip.parse().map_err(|_no_address| bad())?;
    let most = if ip.is_ipv4() { 32 } else { 128 };
    let length = length.map_or(Ok(most), |length| length.parse().map_err(|_no_number| bad()))?;
    if length > most { Err(bad()) } else { Ok((ip, length)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_read_and_bounded() {
        assert_eq!(parse_prefix("10.1.2.3/24").unwrap(), ("10.1.2.3".parse().unwrap(), 24));
        assert_eq!(parse_prefix("fd00::3/64").unwrap(), ("fd00::3".parse().unwrap(), 64));
        assert_eq!(parse_prefix("10.1.2.3").unwrap().1, 32);
        for wrong in ["10.1.2.3/33", "10.1.2/8", "", "x/1", "1.2.3.4/-1"] {
            assert!(parse_prefix(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn addresses_of_cards_are_read_and_nothing_else() {
        assert_eq!(parse_mac("02:42:ac:11:00:fF"), Some([2, 0x42, 0xac, 0x11, 0, 0xff]));
        for wrong in
            ["", "02:42:ac:11:00", "02:42:ac:11:00:02:03", "2:42:ac:11:00:02", "+2:42:ac:11:00:02"]
        {
            assert_eq!(parse_mac(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn attributes_are_padded() {
        assert_eq!(attribute(3, b"lo\0"), [7, 0, 3, 0, b'l', b'o', 0, 0]);
    }
}
