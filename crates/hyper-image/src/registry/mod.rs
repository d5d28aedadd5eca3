//! Pulling from and pushing to registries of the OCI distribution-spec, over reqwest.
//!
//! Why not `oci-client`: it has no OAuth2 refresh grant (identity tokens), reads manifests and token answers without a
//! bound, and takes protocol, CAs and retries per client where we need them per host.
//!
//! ```text
//!  Reference ─► endpoints: mirror … mirror, https, (http if the host is insecure)
//!               └─ the first that answers serves the rest of the pull; the others are asked when it fails
//!  request ─► 401 ─► challenge ─► Basic, or a token from its realm ─► request
//! ```

mod challenge;
mod endpoint;
mod fault;
mod login;
mod referrers;
mod repository;
mod tls;
mod token;
mod transfer;
mod upload;

pub(crate) use repository::{Access, Repository};
pub(crate) use transfer::{Chunk, Wanted};
pub(crate) use upload::{Blob, Uploaded};

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use endpoint::ClientKey;

/// How registries are reached.
#[derive(Debug, Clone)]
pub struct RegistryOptions {
    /// Registries (`host`, `host:port`) and networks (`10.0.0.0/8`) whose certificate is not checked and that may speak
    /// plain HTTP. 127.0.0.0/8, `::1` and `localhost` always are, as in Docker.
    pub insecure: Vec<String>,
    /// Per registry (`docker.io`), base URLs asked first, in order; the registry itself comes last. Mirrors get no
    /// credentials.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Directories with one directory per `host[:port]`, holding `*.crt` (CAs) and `*.cert` with `*.key` (client).
    pub certificates: Vec<PathBuf>,
    /// What to do about transient failures.
    pub retry: Retry,
    /// Layers fetched at once, over all pulls.
    pub concurrency: usize,
    /// Layers sent at once, over all pushes.
    pub uploads: usize,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            insecure: Vec::new(),
            mirrors: BTreeMap::new(),
            certificates: vec!["/etc/hyper/certs.d".into(), "/etc/docker/certs.d".into()],
            retry: Retry::default(),
            concurrency: 3,
            uploads: 5,
        }
    }
}

/// Retries: after timeouts, broken connections, and statuses 408, 429 and 5xx.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Attempts in a row without a byte of progress, at least 1.
    pub attempts: u32,
    /// Pause before the second attempt; doubled each time, with jitter.
    pub first: Duration,
    /// Longest pause.
    pub longest: Duration,
    /// Longest time to connect, and longest silence of a connection.
    pub silence: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 5,
            first: Duration::from_millis(500),
            longest: Duration::from_secs(15),
            silence: Duration::from_secs(30),
        }
    }
}

impl Retry {
    /// The pause after the `failures`th failure in a row: between half and all of the doubled time, so that many
    /// clients of one broken registry do not come back at the same moment.
    fn pause(&self, failures: u32) -> Duration {
        let full =
            self.first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(self.longest);
        let nanos = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |now| now.subsec_nanos());
        full / 2 + (full / 2).mul_f64(f64::from(nanos % 1000) / 1000.0)
    }
}

/// What pulls share: HTTP clients with their open connections, and what was learnt about hosts.
#[derive(Debug)]
pub(crate) struct Registries {
    options: RegistryOptions,
    /// With what `certs.d` held when they were made.
    clients: Mutex<HashMap<ClientKey, (tls::Stamp, reqwest::Client)>>,
    /// Insecure hosts that were found to speak plain HTTP.
    plain: Mutex<std::collections::HashSet<String>>,
    /// Small things to be said to registries after whoever wanted them is gone; they end with this.
    background: Mutex<tokio::task::JoinSet<()>>,
}

impl Registries {
    pub(crate) fn new(options: RegistryOptions) -> Self {
        Self {
            options,
            clients: Mutex::default(),
            plain: Mutex::default(),
            background: Mutex::default(),
        }
    }
}

impl Registries {
    /// Does something small and bounded in time, if there still is a runtime to do it.
    pub(crate) fn later(&self, work: impl Future<Output = ()> + Send + 'static) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let mut background = lock(&self.background);
        while background.try_join_next().is_some() {}
        background.spawn_on(work, &runtime);
    }
}

/// A `WWW-Authenticate` header, for the fuzz targets.
#[cfg(feature = "fuzzing")]
pub(crate) fn parse_challenge(header: &str) {
    let _ = challenge::parse(header);
}

/// Locks, whatever happened to an earlier holder: the maps behind these locks are whole at every moment.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn pauses_grow_to_the_limit() {
        let retry = Retry {
            first: Duration::from_secs(1),
            longest: Duration::from_secs(8),
            ..Retry::default()
        };
        for (failures, full) in [(1, 1), (2, 2), (3, 4), (4, 8), (5, 8), (40, 8)] {
            let pause = retry.pause(failures);
            let full = Duration::from_secs(full);
            assert!(pause >= full / 2 && pause <= full, "{failures}: {pause:?}");
        }
    }
}
