//! Which URLs serve a registry, and the HTTP client for each host.

use std::net::IpAddr;
use std::time::Duration;

use reqwest::redirect;

use super::{Registries, lock, tls};
use crate::error::Error;
use crate::reference::{DEFAULT_REGISTRY, Reference};

/// The host behind `docker.io`.
const DOCKER_HUB: &str = "registry-1.docker.io";
/// Redirects followed for one request: registry → storage, with room.
const MAX_REDIRECTS: usize = 5;

/// One base URL of a registry or mirror.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    /// `https://host:port`, perhaps with a path, without a slash at the end.
    pub base: String,
    /// `host:port` as in the reference or mirror URL.
    pub host: String,
    /// Mirrors are asked without credentials, and may lack content.
    pub mirror: bool,
    /// The certificate is checked, and credentials only go to https realms.
    pub secure: bool,
    pub client: reqwest::Client,
}

/// Clients differ by certificates and by whether these are checked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ClientKey {
    host: String,
    secure: bool,
    uploads: bool,
}

impl Registries {
    /// The endpoints for a reference, in the order they are to be asked; never empty. Nothing is uploaded to mirrors.
    pub(super) async fn endpoints(
        &self,
        reference: &Reference,
        uploads: bool,
    ) -> Result<Vec<Endpoint>, Error> {
        let mut endpoints = Vec::new();
        let mirrors = self.options.mirrors.get(reference.registry()).into_iter().flatten();
        for url in mirrors.filter(|_| !uploads) {
            let base = url.trim_end_matches('/');
            let Some((scheme @ ("http" | "https"), rest)) = base.split_once("://") else {
                tracing::warn!(mirror = url, "not a http or https URL: mirror left out");
                continue;
            };
            let host = rest.split('/').next().unwrap_or(rest);
            let secure = scheme == "https" && !self.is_insecure(host);
            endpoints.push(self.endpoint(base.to_owned(), host, (true, secure, false)).await?);
        }
        let registry = reference.registry();
        let host = if registry == DEFAULT_REGISTRY { DOCKER_HUB } else { registry };
        if !self.is_insecure(registry) {
            endpoints.push(
                self.endpoint(format!("https://{host}"), registry, (false, true, uploads)).await?,
            );
            return Ok(endpoints);
        }
        if !lock(&self.plain).contains(registry) {
            endpoints.push(
                self.endpoint(format!("https://{host}"), registry, (false, false, uploads)).await?,
            );
        }
        endpoints.push(
            self.endpoint(format!("http://{host}"), registry, (false, false, uploads)).await?,
        );
        Ok(endpoints)
    }

    /// Remembers that an insecure registry answered over plain HTTP, so that the next pull does not try TLS first.
    pub(super) fn answered(&self, endpoint: &Endpoint) {
        if endpoint.base.starts_with("http://") && !endpoint.mirror {
            lock(&self.plain).insert(endpoint.host.clone());
        }
    }

    /// Forgets what [`answered`](Self::answered) remembered, when it no longer holds.
    pub(super) fn failed(&self, endpoint: &Endpoint) {
        lock(&self.plain).remove(&endpoint.host);
    }

    async fn endpoint(
        &self,
        base: String,
        host: &str,
        (mirror, secure, uploads): (bool, bool, bool),
    ) -> Result<Endpoint, Error> {
        let client = self.client_for(host, secure, uploads).await?;
        Ok(Endpoint { base, host: host.to_owned(), mirror, secure, client })
    }

    /// The client for a host. `secure` means that its certificate is checked.
    pub(crate) async fn client(&self, host: &str, secure: bool) -> Result<reqwest::Client, Error> {
        self.client_for(host, secure, false).await
    }

    /// reqwest counts the time of sending a body as silence, so uploads are watched over by those who send them.
    async fn client_for(
        &self,
        host: &str,
        secure: bool,
        uploads: bool,
    ) -> Result<reqwest::Client, Error> {
        let key = ClientKey { host: host.to_owned(), secure, uploads };
        let directories = self.options.certificates.clone();
        let owned = host.to_owned();
        // Looked at before it is read: what changes in between is seen the next time.
        let (stamp, directories) = tokio::task::spawn_blocking(move || {
            (tls::Stamp::of(&owned, &directories), directories)
        })
        .await
        .map_err(|_| Error::Cancelled)?;
        if let Some((of, client)) = lock(&self.clients).get(&key)
            && *of == stamp
        {
            return Ok(client.clone());
        }
        let owned = host.to_owned();
        let tls = tokio::task::spawn_blocking(move || tls::config(&owned, secure, &directories))
            .await
            .map_err(|_| Error::Cancelled)??;
        let silence = self.options.retry.silence;
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .user_agent(concat!("hyper/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(silence.min(Duration::from_secs(15)))
            .pool_idle_timeout(Duration::from_secs(20))
            .redirect(redirect::Policy::custom(follow));
        if !uploads {
            builder = builder.read_timeout(silence);
        }
        if is_loopback(host) {
            builder = builder.no_proxy();
        }
        let client = builder
            .build()
            .map_err(|error| Error::Unreachable { url: host.to_owned(), source: error.into() })?;
        lock(&self.clients).insert(key, (stamp, client.clone()));
        Ok(client)
    }

    pub(super) fn is_insecure(&self, host: &str) -> bool {
        is_loopback(host)
            || self.options.insecure.iter().any(|rule| {
                rule == host
                    || rule == name_of(host)
                    || address_of(host).is_some_and(|address| in_network(address, rule))
            })
    }
}

/// Never from https to http: the credentials of the next request and a tag's manifest would travel in the open.
fn follow(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let was_tls = attempt.previous().iter().any(|url| url.scheme() == "https");
    if attempt.previous().len() > MAX_REDIRECTS {
        return attempt.error("too many redirects");
    }
    if was_tls && attempt.url().scheme() != "https" {
        return attempt.error("redirected from https to http");
    }
    attempt.follow()
}

/// The host without its port.
fn name_of(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    host.split(':').next().unwrap_or(host)
}

fn address_of(host: &str) -> Option<IpAddr> {
    name_of(host).parse().ok()
}

fn is_loopback(host: &str) -> bool {
    name_of(host) == "localhost" || address_of(host).is_some_and(|address| address.is_loopback())
}

/// Whether `rule` is a network (`10.0.0.0/8`) with this address.
fn in_network(address: IpAddr, rule: &str) -> bool {
    let Some((network, bits)) = rule.split_once('/') else { return false };
    let (Ok(network), Ok(bits)) = (network.parse::<IpAddr>(), bits.parse::<u32>()) else {
        return false;
    };
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(n)) if bits <= 32 => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            (a.to_bits() ^ n.to_bits()) & mask == 0
        }
        (IpAddr::V6(a), IpAddr::V6(n)) if bits <= 128 => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            (a.to_bits() ^ n.to_bits()) & mask == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::registry::RegistryOptions;

    #[test]
    fn insecure_hosts() {
        let registries = Registries::new(RegistryOptions {
            insecure: vec![
                "reg.lan:5000".into(),
                "plain.lan".into(),
                "10.1.0.0/16".into(),
                "fd00::/8".into(),
            ],
            ..RegistryOptions::default()
        });
        for host in [
            "127.0.0.1:5000",
            "127.9.9.9",
            "localhost",
            "localhost:80",
            "[::1]:5000",
            "reg.lan:5000",
            "plain.lan:1",
            "10.1.255.1:5000",
            "[fd12::1]:5000",
        ] {
            assert!(registries.is_insecure(host), "{host}");
        }
        for host in [
            "docker.io",
            "reg.lan",
            "reg.lan:5001",
            "10.2.0.1",
            "128.0.0.1",
            "localhost.evil.example",
            "[fe80::1]",
        ] {
            assert!(!registries.is_insecure(host), "{host}");
        }
    }

    #[tokio::test]
    async fn order() {
        let registries = Registries::new(RegistryOptions {
            mirrors: [(
                "docker.io".to_owned(),
                vec!["http://127.0.0.1:5001/".to_owned(), "ftp://x".to_owned()],
            )]
            .into(),
            ..RegistryOptions::default()
        });
        let bases =
            |endpoints: Vec<Endpoint>| endpoints.into_iter().map(|e| e.base).collect::<Vec<_>>();
        let hub = registries.endpoints(&"busybox".parse().unwrap(), false).await.unwrap();
        assert_eq!(bases(hub), ["http://127.0.0.1:5001", "https://registry-1.docker.io"]);
        let local: Reference = "localhost:5000/a".parse().unwrap();
        let endpoints = registries.endpoints(&local, false).await.unwrap();
        registries.answered(&endpoints[1]);
        assert_eq!(bases(endpoints), ["https://localhost:5000", "http://localhost:5000"]);
        assert_eq!(
            bases(registries.endpoints(&local, false).await.unwrap()),
            ["http://localhost:5000"]
        );
    }
}
