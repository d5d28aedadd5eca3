//! Frames from one interface to another, by traffic control: `tc-u32(8)` and `tc-mirred(8)`, the
//! classifier and the action that every distribution's kernel has.
//!
//! ```text
//!  veth ──all──▶ tap         what arrives for the pod goes to the guest
//!  tap ──guard──▶ veth       what the guest sends goes out, if the guard lets it
//! ```
//! With a guard only frames that name the guest as their sender pass; what is left falls to the
//! namespace's own stack, where nothing waits for it.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirrorOption, TcActionOption, TcActionType, TcAttribute,
    TcFilterU32Option, TcHandle, TcHeader, TcMessage, TcMirror, TcMirrorActionType, TcOption,
    TcU32Key, TcU32Selector, TcU32SelectorFlags,
};

use crate::Netlink;
use crate::error::{Result, link};
use crate::link::Mac;

const ETH_ALL: u16 = 0x0003;
const ETH_IP: u16 = 0x0800;
const ETH_ARP: u16 = 0x0806;
const ETH_IPV6: u16 = 0x86dd;

/// Guards that one interface can have: the 16 bits of a rule's priority hold so many.
pub(crate) const MAX_SLOTS: u32 = 60;
/// Priorities of one guard.
const SLOT: u32 = 0x400;

/// Whom frames of a guest may name as their sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    pub mac: Mac,
    /// Empty: any address. Without a link-local one all of those are good.
    pub addresses: Vec<IpAddr>,
}

impl Netlink {
    /// Sends all frames that arrive at `from` out of `to`; with a guard only the good ones. Several
    /// guards at `from` have slots of their own, below [`MAX_SLOTS`].
    ///
    /// # Errors
    /// The kernel's: it lacks `sch_ingress`, `cls_u32` or `act_mirred`.
    pub(crate) fn redirect(
        &mut self,
        from: u32,
        to: u32,
        slot: u32,
        guard: Option<&Guard>,
    ) -> Result<()> {
        self.ingress(from)?;
        let base = slot * SLOT;
        let Some(guard) = guard else {
            // After what is kept, which has the first priority.
            return self.filter(from, to, (ETH_ALL, base + 2), vec![key(0, 0, 0)]);
        };
        let mac = sender(guard.mac);
        if guard.addresses.is_empty() {
            return self.filter(from, to, (ETH_ALL, base + 1), mac);
        }
        for (at, address) in (base + 1..).zip(&guard.addresses) {
            match address {
                IpAddr::V4(ip) => {
                    let ip = u32::from(*ip);
                    self.filter(from, to, (ETH_IP, at), with(&mac, [key(12, u32::MAX, ip)]))?;
                    // The sender's protocol address in ARP is at 14, over two words.
                    let halves = [key(12, 0xffff, ip >> 16), key(16, 0xffff_0000, ip << 16)];
                    self.filter(from, to, (ETH_ARP, 0x100 + at), with(&mac, halves))?;
                }
                IpAddr::V6(ip) => {
                    let words = ip.to_bits();
                    let keys = [96, 64, 32, 0].map(|shift| (words >> shift) as u32);
                    let keys = [0, 1, 2, 3].map(|at: i32| {
                        let word = keys[usize::try_from(at).unwrap_or_default()];
                        key(8 + 4 * at, u32::MAX, word)
                    });
                    self.filter(from, to, (ETH_IPV6, 0x200 + at), with(&mac, keys))?;
                }
            }
        }
        // A look whether an address is taken names none: before DHCP, and for duplicates.
        let none = [key(12, 0xffff, 0), key(16, 0xffff_0000, 0)];
        self.filter(from, to, (ETH_ARP, base + 0x300), with(&mac, none))?;
        let local = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        if guard.addresses.iter().any(IpAddr::is_ipv6) {
            // Nor is a guest anybody's router: a LAN's machines would believe it. Before what is redirected.
            self.classify(from, (ETH_IPV6, base + 0x1ff), advertisement(), None)?;
            // Neighbours are found from link-local addresses, and from none.
            if !guard.addresses.iter().any(local) {
                let local = [key(8, 0xffc0_0000, 0xfe80_0000)];
                self.filter(from, to, (ETH_IPV6, base + 0x301), with(&mac, local))?;
            }
            let none = [0, 1, 2, 3].map(|at| key(8 + 4 * at, u32::MAX, 0));
            self.filter(from, to, (ETH_IPV6, base + 0x302), with(&mac, none))?;
        }
        Ok(())
    }

    /// Leaves routers' advertisements that arrive at `from` to its own namespace: a guest would give
    /// itself addresses and routes that its guard lets nothing out by.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn keep_advertisements(&mut self, from: u32) -> Result<()> {
        self.ingress(from)?;
        // Before all that are redirected.
        self.classify(from, (ETH_IPV6, 1), advertisement(), None)
    }

    /// Undoes [`Self::redirect`]; fine when there is none.
    ///
    /// # Errors
    /// The kernel's.
    pub fn stop_redirect(&mut self, from: u32) -> Result<()> {
        match self.change(RouteNetlinkMessage::DelQueueDiscipline(ingress(from)), 0) {
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EINVAL | libc::ENOENT | libc::ENODEV)
                ) =>
            {
                Ok(())
            }
            done => done.map_err(link("remove the redirection of link", &from.to_string())),
        }
    }

    fn ingress(&mut self, index: u32) -> Result<()> {
        match self.change(
            RouteNetlinkMessage::NewQueueDiscipline(ingress(index)),
            NLM_F_CREATE | NLM_F_EXCL,
        ) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            done => done.map_err(link("classify what arrives at link", &index.to_string())),
        }
    }

    fn filter(&mut self, from: u32, to: u32, at: (u16, u32), keys: Vec<TcU32Key>) -> Result<()> {
        let mut mirror = TcMirror::default();
        mirror.generic.action = TcActionType::Stolen;
        mirror.eaction = TcMirrorActionType::EgressRedir;
        mirror.ifindex = to;
        let mut action = TcAction::default();
        action.attributes = vec![
            TcActionAttribute::Kind("mirred".to_owned()),
            TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(
                mirror,
            ))]),
        ];
        self.classify(from, at, keys, Some(action))
    }

    /// What matches has the action, or goes on to the namespace's own stack.
    fn classify(
        &mut self,
        from: u32,
        (protocol, priority): (u16, u32),
        keys: Vec<TcU32Key>,
        action: Option<TcAction>,
    ) -> Result<()> {
        let mut selector = TcU32Selector::default();
        selector.flags = TcU32SelectorFlags::Terminal;
        selector.nkeys = u8::try_from(keys.len()).unwrap_or(u8::MAX);
        selector.keys = keys;
        let mut options = vec![TcOption::U32(TcFilterU32Option::Selector(selector))];
        options.extend(action.map(|action| TcOption::U32(TcFilterU32Option::Action(vec![action]))));
        let message = TcMessage::from_parts(
            TcHeader {
                index: from.cast_signed(),
                parent: TcHandle { major: 0xffff, minor: 0 },
                info: (priority << 16) | u32::from(protocol.to_be()),
                ..TcHeader::default()
            },
            vec![TcAttribute::Kind("u32".to_owned()), TcAttribute::Options(options)],
        );
        self.change(RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_CREATE | NLM_F_EXCL)
            .map_err(link("redirect frames of link", &from.to_string()))
    }
}

/// A router's: next header ICMPv6, type 134, in a packet that has no other header between (RFC 4861, 4.2).
fn advertisement() -> Vec<TcU32Key> {
    vec![key(4, 0x0000_ff00, 58 << 8), key(40, 0xff00_0000, 134 << 24)]
}

fn ingress(index: u32) -> TcMessage {
    TcMessage::from_parts(
        TcHeader {
            index: index.cast_signed(),
            handle: TcHandle { major: 0xffff, minor: 0 },
            parent: TcHandle { major: 0xffff, minor: 0xfff1 },
            ..TcHeader::default()
        },
        vec![TcAttribute::Kind("ingress".to_owned())],
    )
}

fn key(off: i32, mask: u32, val: u32) -> TcU32Key {
    let mut key = TcU32Key::default();
    (key.off, key.mask, key.val) = (off, mask, val);
    key
}

/// The sender's hardware address lies 8 bytes before the network header.
fn sender(mac: Mac) -> Vec<TcU32Key> {
    let [a, b, c, d, e, f] = mac;
    let (high, low) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, 0, 0]));
    vec![key(-8, u32::MAX, high), key(-4, 0xffff_0000, low)]
}

fn with<const N: usize>(mac: &[TcU32Key], more: [TcU32Key; N]) -> Vec<TcU32Key> {
    mac.iter().cloned().chain(more).collect()
}
