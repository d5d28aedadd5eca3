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
    /// Who is asked for everything else; empty: the host's resolvers.
    pub servers: Vec<IpAddr>,
    /// Whether anybody is asked for anything else.
    pub forward: bool,
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
