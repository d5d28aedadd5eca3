//! Pulling from registries of the OCI distribution-spec.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// How registries are reached.
#[derive(Debug, Clone)]
pub struct RegistryOptions {
    /// Registries (`host`, `host:port`) and networks (`10.0.0.0/8`) whose certificate is not checked and that may speak
    /// plain HTTP. 127.0.0.0/8, `::1` and `localhost` always are, as in Docker.
    pub insecure: Vec<String>,
    /// Per registry (`docker.io`), base URLs asked first, in order; the registry itself comes last.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Directories with one directory per `host[:port]`, holding `*.crt` (CAs) and `*.cert` with `*.key` (client).
    pub certificates: Vec<PathBuf>,
    /// What to do about transient failures.
    pub retry: Retry,
    /// Layers fetched at once, over all pulls.
    pub concurrency: usize,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            insecure: Vec::new(),
            mirrors: BTreeMap::new(),
            certificates: vec!["/etc/hyper/certs.d".into(), "/etc/docker/certs.d".into()],
            retry: Retry::default(),
            concurrency: 3,
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
