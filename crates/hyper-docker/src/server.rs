//! Connections: HTTP/1.1 with upgrades, the version prefix, an orderly end.

use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Uri};
use axum::response::{IntoResponse as _, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixListener;
use tokio_util::task::TaskTracker;

use crate::app::App;
use crate::error::ApiError;
use crate::request::Version;
use crate::{API_VERSION, MIN_API_VERSION};

/// Where clients connect.
#[derive(Debug)]
pub struct Listener {
    pub socket: UnixListener,
    /// For the log.
    pub name: String,
}

/// After a failed accept (out of descriptors), before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Removes what an earlier hyperd's builds left, then serves until `app`'s token is cancelled, then lets requests finish for at most `grace`.
pub async fn serve(app: App, listeners: Vec<Listener>, grace: Duration) {
    hyper_build::sweep(&app.engine).await;
    let closing = app.closing.clone();
    let clients = app.tasks.clone();
    let router = app.router();
    let connections = TaskTracker::new();
    for listener in listeners {
        let (router, closing, tracker) = (router.clone(), closing.clone(), connections.clone());
        connections.spawn(async move {
            closing.run_until_cancelled(accept(listener, router, &closing, &tracker)).await;
        });
    }
    closing.cancelled().await;
    connections.close();
    clients.close();
    let ended = async { tokio::join!(connections.wait(), clients.wait()) };
    if tokio::time::timeout(grace, ended).await.is_err() {
        tracing::info!(open = connections.len() + clients.len(), "connections are cut");
    }
}

async fn accept(
    listener: Listener,
    router: Router,
    closing: &tokio_util::sync::CancellationToken,
    connections: &TaskTracker,
) {
    loop {
        let stream = match listener.socket.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, socket = listener.name, "accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (router, closing) = (router.clone(), closing.clone());
        connections.spawn(async move {
            let service = service_fn(move |request| answer(router.clone(), request));
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            let mut connection = pin!(connection);
            let result = tokio::select! {
                result = connection.as_mut() => result,
                () = closing.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = result {
                tracing::debug!(%error, "connection");
            }
        });
    }
}

async fn answer(router: Router, request: Request<Incoming>) -> Result<Response, Infallible> {
    let mut request = request.map(Body::new);
    let began = std::time::Instant::now();
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let response = match unversioned(request.uri()) {
        Err(error) => error.into_response(),
        Ok((uri, version)) => {
            *request.uri_mut() = uri;
            if let Some(version) = version {
                request.extensions_mut().insert(version);
            }
            let service = TowerToHyperService::new(router);
            hyper::service::Service::call(&service, request).await?
        }
    };
    tracing::debug!(
        %method, path = uri.path(), status = response.status().as_u16(),
        us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX), "request"
    );
    Ok(response)
}

/// The URI without `/v1.NN`.
fn unversioned(uri: &Uri) -> Result<(Uri, Option<Version>), ApiError> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let versioned = path.strip_prefix("/v").and_then(|rest| {
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        Some((Version::parse(&rest[..end])?, &rest[end..]))
    });
    let Some((version, rest)) = versioned else { return Ok((uri.clone(), None)) };
    let limits = (Version::parse(MIN_API_VERSION), Version::parse(API_VERSION));
    let Version(major, minor) = version;
    if limits.0.is_some_and(|oldest| version < oldest) {
        return Err(ApiError::invalid(format!(
            "client version {major}.{minor} is too old. Minimum supported API version is \
             {MIN_API_VERSION}, please upgrade your client to a newer version"
        )));
    }
    if limits.1.is_some_and(|newest| version > newest) {
        return Err(ApiError::invalid(format!(
            "client version {major}.{minor} is too new. Maximum supported API version is \
             {API_VERSION}"
        )));
    }
    let rest = if rest.starts_with('/') { rest.to_owned() } else { format!("/{rest}") };
    let uri = rest.parse().map_err(|e| ApiError::invalid(format!("invalid path `{rest}`: {e}")))?;
    Ok((uri, Some(version)))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_version_is_optional_and_checked() {
        let strip = |text: &str| unversioned(&text.parse().unwrap());
        let (uri, version) = strip("/v1.41/containers/json?all=1").unwrap();
        assert_eq!(
            (uri.to_string().as_str(), version),
            ("/containers/json?all=1", Some(Version(1, 41)))
        );
        assert_eq!(strip("/version").unwrap(), ("/version".parse().unwrap(), None));
        assert_eq!(strip("/volumes").unwrap().1, None);
        assert!(strip("/v1.12/info").unwrap_err().message.contains("too old"));
        assert!(strip("/v1.99/info").unwrap_err().message.contains("too new"));
    }
}
