//! What can go wrong on the host's side of a network.

use std::io;
use std::path::PathBuf;

/// Why the host's network is not as it was asked to be.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The kernel refused, or its socket failed.
    #[error("{action} `{name}`")]
    Link {
        action: &'static str,
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("{action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// `nft` said no, or is not there.
    #[error("set the packet filter's rules: {0}")]
    Rules(String),
    /// Another firewall of the host did not take what it was told.
    #[error("tell {firewall} of the host about networks: {why}")]
    Firewall { firewall: &'static str, why: String },
    #[error("egress policy `{text}`: {why}")]
    Egress { text: String, why: String },
    #[error("{0}")]
    Unavailable(String),
}

pub(crate) type Result<T, E = NetworkError> = std::result::Result<T, E>;

pub(crate) fn link(
    action: &'static str,
    name: &str,
) -> impl FnOnce(io::Error) -> NetworkError + use<> {
    let name = name.to_owned();
    move |source| NetworkError::Link { action, name, source }
}

pub(crate) fn file(
    action: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(io::Error) -> NetworkError {
    let path = path.into();
    move |source| NetworkError::File { action, path, source }
}
