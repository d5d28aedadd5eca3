//! Which subnets and addresses are free. Pure but for [`in_use`].

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::Netlink;
use crate::error::Result;

/// What the host already reaches: networks of its addresses and routes, without default routes.
///
/// # Errors
/// The kernel's.
pub fn in_use(netlink: &mut Netlink) -> Result<Vec<IpNet>> {
    let mut all: Vec<IpNet> =
        netlink.addresses()?.into_iter().map(|(_, net)| net.trunc()).collect();
    all.extend(netlink.routes()?.into_iter().filter_map(|route| route.destination));
    // A tunnel's catch-all routes are no reason to have no network.
    all.retain(|net| net.prefix_len() > 3);
    Ok(all)
}

/// Whether the two have an address in common.
#[must_use]
pub fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

/// The first of Docker's default subnets that overlaps with none of `taken`: 172.17.0.0/16 to
/// 172.31.0.0/16, then 192.168.0.0/20 to 192.168.240.0/20.
#[must_use]
pub fn free(taken: &[IpNet]) -> Option<IpNet> {
    let large = (17..32).map(|at| (Ipv4Addr::new(172, at, 0, 0), 16));
    let small = (0..16).map(|at| (Ipv4Addr::new(192, 168, at * 16, 0), 20));
    large
        .chain(small)
        .filter_map(|(ip, length)| Ipv4Net::new(ip, length).ok().map(IpNet::V4))
        .find(|net| !taken.iter().any(|other| overlap(net, other)))
}

/// A unique local /64 (RFC 4193) made of a network's random id.
#[must_use]
pub fn unique_local(seed: [u8; 7]) -> IpNet {
    let mut bytes = [0; 16];
    bytes[0] = 0xfd;
    bytes[1..8].copy_from_slice(&seed);
    let ip = Ipv6Addr::from(bytes);
    IpNet::V6(Ipv6Net::new_assert(ip, 64))
}

/// The first address of a subnet.
#[must_use]
pub fn first(net: &IpNet) -> IpAddr {
    nth(net, 1)
}

/// The first address of `range` (a part of `net`) that is not taken, after `last` if that has not
/// come round, so that an address is not given away again at once.
#[must_use]
pub fn next(
    net: &IpNet,
    range: &IpNet,
    taken: &BTreeSet<IpAddr>,
    last: Option<IpAddr>,
) -> Option<IpAddr> {
    let usable = |ip: &IpAddr| {
        !taken.contains(ip)
            && *ip != net.network()
            && (net.addr().is_ipv6() || *ip != net.broadcast())
    };
    // A range may be huge; what is taken is not: one more than that is enough to look at.
    let most = taken.len() + 3;
    let after = last.filter(|ip| range.contains(ip)).map_or(0, |ip| offset(range, ip) + 1);
    let size = size(range);
    (0..u128::try_from(most).unwrap_or(u128::MAX))
        .map(|at| nth(range, (after + at) % size))
        .find(usable)
        .or_else(|| (0..size.min(1 << 20)).map(|at| nth(range, at)).find(usable))
}

fn size(net: &IpNet) -> u128 {
    let bits = u32::from(net.max_prefix_len() - net.prefix_len());
    1u128.checked_shl(bits).unwrap_or(u128::MAX)
}

fn nth(net: &IpNet, at: u128) -> IpAddr {
    match net.network() {
        IpAddr::V4(ip) => IpAddr::V4(Ipv4Addr::from_bits(ip.to_bits().wrapping_add(at as u32))),
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits().wrapping_add(at))),
    }
}

fn offset(net: &IpNet, ip: IpAddr) -> u128 {
    match (net.network(), ip) {
        (IpAddr::V4(net), IpAddr::V4(ip)) => u128::from(ip.to_bits() - net.to_bits()),
        (IpAddr::V6(net), IpAddr::V6(ip)) => ip.to_bits() - net.to_bits(),
        _ => 0,
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn subnets_that_the_host_has_are_left_alone() {
        assert_eq!(free(&[]), Some(net("172.17.0.0/16")));
        let taken = [net("172.17.3.0/24"), net("172.18.0.0/15"), net("fd00::/8")];
        assert_eq!(free(&taken), Some(net("172.20.0.0/16")));
        assert_eq!(free(&[net("172.16.0.0/12")]), Some(net("192.168.0.0/20")));
        assert_eq!(free(&[net("172.16.0.0/12"), net("192.168.0.0/16")]), None);
    }

    #[test]
    fn every_address_once_and_then_none() {
        let all = net("10.0.0.0/29");
        let mut taken = BTreeSet::from([first(&all)]);
        let mut last = None;
        while let Some(ip) = next(&all, &all, &taken, last) {
            assert!(all.contains(&ip) && taken.insert(ip));
            last = Some(ip);
        }
        assert_eq!(taken.len(), 6);
        // What was given back is not given away again at once.
        taken.remove(&"10.0.0.3".parse().unwrap());
        taken.remove(&"10.0.0.5".parse().unwrap());
        let next = next(&all, &all, &taken, Some("10.0.0.3".parse().unwrap()));
        assert_eq!(next, Some("10.0.0.5".parse().unwrap()));
    }

    #[test]
    fn ranges_and_ipv6() {
        let (all, range) = (net("172.30.0.0/16"), net("172.30.5.0/24"));
        let got = next(&all, &range, &BTreeSet::new(), None);
        assert_eq!(got, Some("172.30.5.0".parse().unwrap()));
        let six = unique_local([1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(six, net("fd01:203:405:607::/64"));
        let taken = BTreeSet::from([first(&six)]);
        assert_eq!(next(&six, &six, &taken, None), Some("fd01:203:405:607::2".parse().unwrap()));
    }
}
