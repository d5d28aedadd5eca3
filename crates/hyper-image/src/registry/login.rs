//! Whether a registry knows somebody: `GET /v2/`, and the challenge answered.

use reqwest::header::{AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode};

use super::endpoint::Endpoint;
use super::fault::Fault;
use super::repository::body_text;
use super::{Registries, challenge, token};
use crate::credentials::Credentials;
use crate::error::Error;
use crate::reference::{DEFAULT_REGISTRY, Reference};

impl Registries {
    /// Shows credentials to a registry (`docker.io`, `https://index.docker.io/v1/`, `localhost:5000`). Returns the
    /// identity token that stands for them from now on, if the registry gave one.
    pub(crate) async fn login(
        &self,
        server: &str,
        credentials: &Credentials,
    ) -> Result<Option<String>, Error> {
        let registry = registry_of(server);
        // Endpoints are found by reference; the repository is never asked for.
        let reference: Reference = format!("{registry}/login").parse()?;
        let mut last = Error::Cancelled;
        for endpoint in self.endpoints(&reference, true).await? {
            match self.try_login(&endpoint, credentials, &reference).await {
                Ok(token) => {
                    self.answered(&endpoint);
                    return Ok(token);
                }
                Err(fault) if fault.elsewhere => last = fault.error,
                Err(fault) => return Err(fault.error),
            }
        }
        Err(last)
    }

    async fn try_login(
        &self,
        endpoint: &Endpoint,
        credentials: &Credentials,
        reference: &Reference,
    ) -> Result<Option<String>, Fault> {
        let first = self.base(endpoint, None).await?;
        if first.status() != StatusCode::UNAUTHORIZED {
            return judged(first, endpoint, reference).await.map(|()| None);
        }
        let headers = first.headers().get_all(WWW_AUTHENTICATE).iter();
        let joined: Vec<&str> = headers.filter_map(|value| value.to_str().ok()).collect();
        let Some(challenge) = challenge::parse(&joined.join(", ")) else {
            return judged(first, endpoint, reference).await.map(|()| None);
        };
        drop(first);
        let granted = token::login(self, endpoint, &challenge, credentials, reference).await?;
        let second = self.base(endpoint, granted.header.as_ref()).await?;
        judged(second, endpoint, reference).await?;
        Ok(granted.identity)
    }

    async fn base(
        &self,
        endpoint: &Endpoint,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, Fault> {
        let url = format!("{}/v2/", endpoint.base);
        let mut request = endpoint.client.get(&url).timeout(self.options.retry.silence);
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        request.send().await.map_err(|error| Fault::request(self, endpoint, &url, 0, error))
    }
}

async fn judged(
    response: Response,
    endpoint: &Endpoint,
    reference: &Reference,
) -> Result<(), Fault> {
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let message = body_text(response).await;
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        let registry = reference.registry().to_owned();
        return Err(Fault::fatal(Error::LoginRefused { registry, message }));
    }
    let url = format!("{}/v2/", endpoint.base);
    let error = Error::Registry { status: status.as_u16(), url, message };
    Err(Fault { error, transient: false, elsewhere: true, after: None })
}

/// The registry of an address as Docker's clients write it.
fn registry_of(server: &str) -> &str {
    let bare = server.trim_start_matches("https://").trim_start_matches("http://");
    match bare.split('/').next().unwrap_or(bare) {
        "" | "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY,
        host => host,
    }
}

#[cfg(test)]
mod test {
    use super::registry_of;

    #[test]
    fn addresses_of_dockers_clients() {
        for (server, registry) in [
            ("", "docker.io"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("http://127.0.0.1:5000", "127.0.0.1:5000"),
            ("ghcr.io/v2/", "ghcr.io"),
        ] {
            assert_eq!(registry_of(server), registry);
        }
    }
}
