//! What went wrong with a request, sorted: whose fault, and whether trying again may help.

use std::error::Error as StdError;
use std::time::Duration;

use super::endpoint::Endpoint;
use super::{Registries, tls};
use crate::error::Error;

/// A failed attempt.
#[derive(Debug)]
pub(super) struct Fault {
    pub error: Error,
    /// Another attempt at the same endpoint may succeed.
    pub transient: bool,
    /// Another endpoint may know better.
    pub elsewhere: bool,
    /// The server's own wish (`Retry-After`).
    pub after: Option<Duration>,
}

impl Fault {
    /// No attempt, here or elsewhere, would change this.
    pub(super) fn fatal(error: Error) -> Self {
        Self { error, transient: false, elsewhere: false, after: None }
    }

    /// A request that brought no answer, or an answer that broke off after `received` bytes.
    pub(super) fn request(
        registries: &Registries,
        endpoint: &Endpoint,
        url: &str,
        received: u64,
        error: reqwest::Error,
    ) -> Self {
        let url = url.to_owned();
        let error = error.without_url();
        if let Some(tls) = find::<rustls::Error>(&error) {
            let error = if matches!(tls, rustls::Error::InvalidMessage(_)) {
                Error::PlainHttp { registry: endpoint.host.clone(), url }
            } else {
                let hint = tls::hint(&endpoint.host, &registries.options.certificates);
                Error::Tls { url, hint, source: innermost(&error) }
            };
            return Self { error, transient: false, elsewhere: true, after: None };
        }
        if error.is_redirect() {
            return Self::fatal(Error::Unreachable { url, source: error.into() });
        }
        if error.is_connect() {
            // Refused and unknown hosts stay so for the seconds a retry would wait; a timeout or a reset may not.
            let transient = error.is_timeout()
                || find::<std::io::Error>(&error)
                    .is_some_and(|io| io.kind() == std::io::ErrorKind::ConnectionReset);
            let error = Error::Unreachable { url, source: innermost(&error) };
            return Self { error, transient, elsewhere: true, after: None };
        }
        let error = Error::Transfer { url, received, source: innermost(&error) };
        Self { error, transient: true, elsewhere: true, after: None }
    }
}

/// The first error of a type in a chain. `io::Error` hides what it wraps from `source()`, so it is looked into.
fn find<'e, T: StdError + 'static>(error: &'e (dyn StdError + 'static)) -> Option<&'e T> {
    let mut next = Some(error);
    while let Some(current) = next {
        if let Some(found) = current.downcast_ref::<T>() {
            return Some(found);
        }
        let wrapped = current.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if let Some(found) = wrapped.and_then(|inner| find::<T>(inner)) {
            return Some(found);
        }
        next = current.source();
    }
    None
}

/// The last cause as an error of its own: the layers between (`client error (Connect)`, `tcp connect error`) tell a
/// user nothing.
fn innermost(error: &reqwest::Error) -> crate::error::Source {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = cause.to_string();
        next = cause.source();
    }
    if error.is_timeout() {
        text = "timed out".to_owned();
    }
    text.into()
}
