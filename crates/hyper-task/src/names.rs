//! What a pod's resolver knows: files that hyperd replaces atomically and supervisors read at each
//! question, so that names go on being answered while there is no hyperd.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Address that the agent answers on in the guest, Docker's.
pub const ADDRESS: &str = "127.0.0.11";

/// For one pod; its path is in the annotation [`crate::annotation::NAMES`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodNames {
    /// Files of the pod's networks ([`NetworkNames`]).
    pub networks: Vec<PathBuf>,
    /// Names that only this pod knows, lower case, and what they are called in its networks.
    pub aliases: BTreeMap<String, String>,
    /// Who is asked for everything else; empty: the host's resolvers.
    pub servers: Vec<IpAddr>,
    /// Whether anybody is asked for anything else.
    pub forward: bool,
    /// Policies that mean hosts by name; absent: there are none.
    pub pinning: Option<Pinning>,
}

/// Addresses that names are answered with are opened to the pod, where its policies allow the name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pinning {
    /// nft's, of the hyperd.
    pub table: String,
    /// What is pinned.
    pub file: PathBuf,
    /// Held by who changes the table or what is pinned.
    pub lock: PathBuf,
    /// For each way out, the policies that all hold there: as text, by their chain in the table.
    pub ways: Vec<BTreeMap<String, String>>,
}

/// For one network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkNames {
    /// Lower case, without a dot at the end.
    pub names: BTreeMap<String, Vec<IpAddr>>,
    /// The one name that an address is shown as.
    pub addresses: BTreeMap<IpAddr, String>,
}
