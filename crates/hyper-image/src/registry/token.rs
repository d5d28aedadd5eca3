//! Answers to challenges: Basic, or a token from the realm.
//!
//! Source: distribution `docs/content/spec/auth/token.md` (GET with Basic) and `oauth.md` (POST with a refresh token,
//! and with user and password where a server does not know the GET).

use std::convert::Infallible;

use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use reqwest::{StatusCode, Url};
use serde::Deserialize;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Registries;
use super::challenge::Challenge;
use super::endpoint::Endpoint;
use super::fault::Fault;
use super::repository::{body_text, read_bounded};
use crate::credentials::Credentials;
use crate::error::Error;
use crate::reference::Reference;

/// Largest answer of a token server, in bytes.
const MAX_ANSWER: u64 = 1 << 20;
/// What we are called there.
const CLIENT: &str = "hyper";

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    refresh_token: Option<String>,
}

/// What a login brought.
#[derive(Debug)]
pub(super) struct Granted {
    pub header: Option<HeaderValue>,
    /// Stands for user name and password from now on.
    pub identity: Option<String>,
}

/// The `Authorization` header that credentials give without asking anybody.
pub(super) fn direct(credentials: &Credentials) -> Option<HeaderValue> {
    match credentials {
        Credentials::RegistryToken(token) => bearer(token),
        _ => None,
    }
}

/// The `Authorization` header that answers a challenge; `None` if there is nothing to answer with. `needed` is the
/// scope to ask for, whatever the challenge says.
pub(super) async fn answer(
    registries: &Registries,
    endpoint: &Endpoint,
    challenge: &Challenge,
    credentials: &Credentials,
    reference: &Reference,
    needed: Option<&str>,
) -> Result<Option<HeaderValue>, Fault> {
    match challenge {
        Challenge::Basic => Ok(basic(credentials)),
        Challenge::Bearer { realm, service, scope } => {
            let scope = needed
                .map(str::to_owned)
                .or_else(|| scope.clone())
                .unwrap_or_else(|| format!("repository:{}:pull", reference.repository()));
            let service = service.as_deref().unwrap_or("");
            let query = Query { realm, service, scope: &scope, offline: false };
            let granted = fetch(registries, endpoint, &query, credentials, reference).await?;
            Ok(granted.header)
        }
    }
}

/// As [`answer`], for nothing but to be known: no scope, and an identity token if there is one to be had.
pub(super) async fn login(
    registries: &Registries,
    endpoint: &Endpoint,
    challenge: &Challenge,
    credentials: &Credentials,
    reference: &Reference,
) -> Result<Granted, Fault> {
    match challenge {
        Challenge::Basic => Ok(Granted { header: basic(credentials), identity: None }),
        Challenge::Bearer { realm, service, .. } => {
            let service = service.as_deref().unwrap_or("");
            let query = Query { realm, service, scope: "", offline: true };
            fetch(registries, endpoint, &query, credentials, reference).await
        }
    }
}

struct Query<'a> {
    realm: &'a str,
    service: &'a str,
    scope: &'a str,
    /// Asks for an identity token too.
    offline: bool,
}

async fn fetch(
    registries: &Registries,
    endpoint: &Endpoint,
    query: &Query<'_>,
    credentials: &Credentials,
    reference: &Reference,
) -> Result<Granted, Fault> {
    let refused = |message: String| {
        let registry = reference.registry().to_owned();
        if query.offline {
            return Fault::fatal(Error::LoginRefused { registry, message });
        }
        Fault::fatal(Error::Unauthorized {
            action: "use",
            reference: reference.familiar(),
            registry,
            message,
        })
    };
    let url = Url::parse(query.realm)
        .map_err(|_| refused(format!("its token server `{}` is not a URL", query.realm)))?;
    // The realm is the registry's word. Credentials never go out in the open because of it.
    let anonymous = *credentials == Credentials::Anonymous;
    match url.scheme() {
        "https" => {}
        "http" if anonymous || !endpoint.secure => {}
        _ => {
            return Err(refused(format!(
                "its token server `{url}` would get the credentials unprotected"
            )));
        }
    }
    let host = match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (Some(host), None) => host.to_owned(),
        (None, _) => return Err(refused(format!("its token server `{url}` has no host"))),
    };
    let secure = !registries.is_insecure(&host);
    let client = registries.client(&host, secure).await.map_err(Fault::fatal)?;
    let realm = Endpoint { host, mirror: false, secure, client, base: String::new() };
    let mut request = match credentials {
        Credentials::IdentityToken(token) => {
            let secret = [("grant_type", "refresh_token"), ("refresh_token", token)];
            post(&realm, url.clone(), query, &secret)
        }
        _ => get(&realm, url.clone(), query, credentials),
    };
    let mut again = None;
    if let Credentials::Basic { username, password } = credentials {
        // A server of OAuth2 alone.
        let secret = [("grant_type", "password"), ("username", username), ("password", password)];
        again = Some(post(&realm, url, query, &secret));
    }
    let response = loop {
        let sent = request.timeout(registries.options.retry.silence).send().await;
        let response =
            sent.map_err(|error| Fault::request(registries, &realm, query.realm, 0, error))?;
        let refused =
            matches!(response.status(), StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED);
        match again.take().filter(|_| refused) {
            Some(other) => request = other,
            None => break response,
        }
    };
    let status = response.status();
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST)
    {
        let text = body_text(response).await;
        return Err(refused(format!("the token server {} answered {status}: {text}", realm.host)));
    }
    if !status.is_success() {
        let transient = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
        let message = body_text(response).await;
        let error =
            Error::Registry { status: status.as_u16(), url: query.realm.to_owned(), message };
        return Err(Fault { error, transient, elsewhere: true, after: None });
    }
    let bytes = read_bounded(registries, &realm, response, query.realm, MAX_ANSWER).await?;
    // The answer holds a secret: nothing of it goes into the error.
    let answer: Answer = serde_json::from_slice(&bytes)
        .map_err(|_| refused(format!("the token server {} sent no token", realm.host)))?;
    let token = answer.token.or(answer.access_token).unwrap_or_default();
    match bearer(&token) {
        Some(header) if !token.is_empty() => {
            let identity = answer.refresh_token.filter(|token| query.offline && !token.is_empty());
            Ok(Granted { header: Some(header), identity })
        }
        _ => Err(refused(format!("the token server {} sent no usable token", realm.host))),
    }
}

/// Asks as most servers want it: by `GET`, with name and password beside it.
fn get(
    realm: &Endpoint,
    mut url: Url,
    query: &Query<'_>,
    credentials: &Credentials,
) -> reqwest::RequestBuilder {
    if !query.service.is_empty() {
        url.query_pairs_mut().append_pair("service", query.service);
    }
    for scope in query.scope.split(' ').filter(|scope| !scope.is_empty()) {
        url.query_pairs_mut().append_pair("scope", scope);
    }
    if query.offline {
        url.query_pairs_mut().append_pair("offline_token", "true");
        url.query_pairs_mut().append_pair("client_id", CLIENT);
    }
    let request = realm.client.get(url);
    match basic(credentials) {
        Some(header) => request.header(AUTHORIZATION, header),
        None => request,
    }
}

/// Asks by OAuth2.
fn post(
    realm: &Endpoint,
    url: Url,
    query: &Query<'_>,
    secret: &[(&str, &str)],
) -> reqwest::RequestBuilder {
    let mut fields =
        vec![("service", query.service), ("scope", query.scope), ("client_id", CLIENT)];
    if query.offline {
        fields.push(("access_type", "offline"));
    }
    fields.extend_from_slice(secret);
    let form = form(&fields);
    // A stream cannot be sent twice, so a redirect (307, 308) does not carry the secret elsewhere.
    let (length, whole) = (form.len(), futures_util::stream::iter([Ok::<_, Infallible>(form)]));
    let request = realm.client.post(url).header(CONTENT_LENGTH, length);
    request
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(reqwest::Body::wrap_stream(whole))
}

fn bearer(token: &str) -> Option<HeaderValue> {
    secret(&format!("Bearer {token}"))
}

fn basic(credentials: &Credentials) -> Option<HeaderValue> {
    let Credentials::Basic { username, password } = credentials else { return None };
    secret(&format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
}

fn secret(value: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(value).ok()?;
    header.set_sensitive(true);
    Some(header)
}

/// `application/x-www-form-urlencoded`; an URL's query has the same encoding.
fn form(fields: &[(&str, &str)]) -> String {
    let mut url = Url::parse("http://form").expect("a constant URL parses");
    url.query_pairs_mut().extend_pairs(fields);
    url.query().unwrap_or_default().to_owned()
}
