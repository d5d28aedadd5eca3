//! Networks, what containers want of them, and what they have got: the engine's own words, stored
//! as JSON. Fields are only ever added, with a default.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use hyper_network::egress::{Blocked, Mode, Policy};
pub use hyper_network::link::{IpvlanMode, MacvlanMode};
pub use hyper_network::rate::Rates;
pub use hyper_network::rules::Protocol;
pub use hyper_network::service::Service;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The network that containers get which name none.
pub const DEFAULT: &str = "bridge";
/// No network but loopback.
pub const NONE: &str = "none";
/// Id of [`NONE`], which is always there.
pub const NONE_ID: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// How the pods of a network reach each other and all else.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// By a bridge of the host.
    #[default]
    Bridge,
    /// By interfaces of their own on one of the host's.
    Macvlan,
    /// The same behind that one's hardware address.
    Ipvlan,
}

impl Driver {
    /// All that there are, as users name them.
    pub const WORDS: [&str; 3] = ["bridge", "macvlan", "ipvlan"];

    /// Its name.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Macvlan => "macvlan",
            Self::Ipvlan => "ipvlan",
        }
    }
}

/// A network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Network {
    pub id: String,
    pub name: String,
    pub created_ns: i64,
    pub driver: Driver,
    /// One of IPv4, and one of IPv6 if it has that.
    pub subnets: Vec<Subnet>,
    /// Nothing in, nothing out.
    pub internal: bool,
    pub labels: BTreeMap<String, String>,
    /// As given.
    pub options: BTreeMap<String, String>,
    /// Name of the host's interface; none without a bridge.
    pub bridge: String,
    /// 0: that of the parent.
    pub mtu: u32,
    /// Pods appear as the host outside.
    pub masquerade: bool,
}

/// A network's option with the policy of all its pods, and the annotation of a container.
pub const EGRESS: &str = hyper_task::annotation::EGRESS;
/// The annotation of a container with what it may receive and send.
pub const RATE: &str = hyper_task::annotation::NETWORK_RATE;

/// The option with the host's interface that a network without a bridge is on.
pub const PARENT: &str = "parent";
/// The option with the [`MacvlanMode`].
pub const MODE: &str = "macvlan_mode";
/// The option with the [`IpvlanMode`].
pub const IPVLAN_MODE: &str = "ipvlan_mode";

impl Network {
    /// Whether pods are in it without a bridge, and so without anything that the host could hold them
    /// to but who they are.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.driver != Driver::Bridge
    }

    /// The host's interface that it is on; empty with a bridge.
    #[must_use]
    pub fn parent(&self) -> &str {
        self.option(PARENT)
    }

    /// Whom its pods reach directly, with [`Driver::Macvlan`].
    #[must_use]
    pub fn mode(&self) -> MacvlanMode {
        // Looked at when the network was made.
        mode(self.option(MODE)).unwrap_or_default()
    }

    /// What its pods are to the LAN, with [`Driver::Ipvlan`].
    #[must_use]
    pub fn ipvlan_mode(&self) -> IpvlanMode {
        ipvlan_mode(self.option(IPVLAN_MODE)).unwrap_or_default()
    }

    /// As given; empty: it was not.
    pub(super) fn option(&self, key: &str) -> &str {
        self.options.get(key).map_or("", String::as_str)
    }

    /// What its pods may reach, where that is restricted.
    #[must_use]
    pub fn egress(&self) -> Option<Policy> {
        // Looked at when the network was made.
        self.options.get(EGRESS).and_then(|text| text.parse().ok())
    }

    /// Whether it is there by itself.
    #[must_use]
    pub fn is_builtin(&self) -> bool {
        self.name == DEFAULT
    }

    /// Where packets for elsewhere go; nowhere from an internal one.
    #[must_use]
    pub fn gateways(&self) -> Vec<IpAddr> {
        let subnets = self.subnets.iter().filter(|_| !self.internal);
        subnets.map(|subnet| subnet.gateway).collect()
    }

    #[must_use]
    pub fn has_ipv6(&self) -> bool {
        self.subnets.iter().any(|subnet| subnet.net.addr().is_ipv6())
    }
}

/// Reads the option [`MODE`].
pub(super) fn mode(word: &str) -> Option<MacvlanMode> {
    match word {
        "" | "bridge" => Some(MacvlanMode::Bridge),
        "private" => Some(MacvlanMode::Private),
        "vepa" => Some(MacvlanMode::Vepa),
        _ => None,
    }
}

/// Reads the option [`IPVLAN_MODE`].
pub(super) fn ipvlan_mode(word: &str) -> Option<IpvlanMode> {
    match word {
        "" | "l2" => Some(IpvlanMode::L2),
        "l3" => Some(IpvlanMode::L3),
        _ => None,
    }
}

/// Addresses of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    pub net: IpNet,
    /// Where addresses are taken from.
    pub range: Option<IpNet>,
    /// The bridge's own address; without a bridge that of the LAN's router.
    pub gateway: IpAddr,
    /// Chosen by us: another may be chosen while nobody uses it.
    pub automatic: bool,
}

/// What a client asks for.
#[derive(Debug, Clone, Default)]
pub struct NetworkRequest {
    pub name: String,
    pub driver: Driver,
    /// Net, range, gateway; those absent are chosen.
    pub subnets: Vec<(Option<IpNet>, Option<IpNet>, Option<IpAddr>)>,
    pub ipv6: bool,
    pub internal: bool,
    pub labels: BTreeMap<String, String>,
    pub options: BTreeMap<String, String>,
}

/// What a container wants of a network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Wish {
    pub ipv4: Option<Ipv4Addr>,
    pub ipv6: Option<Ipv6Addr>,
    /// `02:…`; empty: made of the address.
    pub mac: String,
    pub aliases: Vec<String>,
    /// Other containers of the network, by names that only this one knows.
    pub links: Vec<Link>,
}

/// `--link CONTAINER:ALIAS`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// As asked for; its id once the container that has the link is made.
    pub container: String,
    pub alias: String,
}

/// A port that is to be published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortWish {
    pub protocol: Protocol,
    pub port: u16,
    /// `None`: every address of the host.
    pub host: Option<IpAddr>,
    /// The first free one of these; 0, 0: any.
    pub range: (u16, u16),
}

/// A port that is published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    pub protocol: Protocol,
    pub port: u16,
    pub host: Option<IpAddr>,
    pub host_port: u16,
}

/// A running container in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    pub id: String,
    pub network: String,
    pub network_name: String,
    pub container: String,
    /// Its interface in the guest.
    pub interface: String,
    /// The other end, on the host; empty where there is none.
    pub link: String,
    pub mac: String,
    pub addresses: Vec<IpNet>,
    pub gateways: Vec<IpAddr>,
    pub aliases: Vec<String>,
    /// All it is found by: container's name, aliases, short id, hostname.
    pub names: Vec<String>,
    #[serde(default)]
    pub ports: Vec<Published>,
    /// Its own policy, beside the network's.
    #[serde(default)]
    pub egress: Option<Policy>,
    /// Of the pod.
    #[serde(default)]
    pub services: Vec<Service>,
    /// What passes its link.
    #[serde(default)]
    pub rates: Rates,
}

impl Endpoint {
    /// Whether its network has no bridge, see [`Network::is_direct`].
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.link.is_empty()
    }

    /// Its address of a family.
    #[must_use]
    pub fn address(&self, ipv6: bool) -> Option<IpNet> {
        self.addresses.iter().copied().find(|net| net.addr().is_ipv6() == ipv6)
    }

    /// The gateway of a family.
    #[must_use]
    pub fn gateway(&self, ipv6: bool) -> Option<IpAddr> {
        self.gateways.iter().copied().find(|ip| ip.is_ipv6() == ipv6)
    }
}
