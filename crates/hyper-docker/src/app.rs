//! What all handlers share, and the table of routes.

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderValue, Method, Uri, header};
use axum::response::Response;
use axum::routing::{any, delete, get, head, post};
use hyper_engine::Engine;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::ApiError;
use crate::hyper_v1::{guest_exec, pods, services};
use crate::{
    API_VERSION, absent, build, commit, container, event, exec, hyper_v1, image, network, pull,
    system, volume,
};

/// Shared by the handlers. Clones are the same one.
#[derive(Debug, Clone)]
pub struct App {
    pub(crate) engine: Engine,
    /// Cancelled when hyperd ends: requests without end of their own end then.
    pub(crate) closing: CancellationToken,
    /// Tasks of attached clients.
    pub(crate) tasks: TaskTracker,
    pub(crate) registries: Arc<RegistryNames>,
    pub(crate) debug: bool,
}

/// What `info` says about registries.
#[derive(Debug, Clone, Default)]
pub struct RegistryNames {
    pub insecure: Vec<String>,
    pub mirrors: Vec<String>,
}

impl App {
    #[must_use]
    pub fn new(
        engine: Engine,
        closing: CancellationToken,
        registries: RegistryNames,
        debug: bool,
    ) -> Self {
        Self { engine, closing, tasks: TaskTracker::new(), registries: Arc::new(registries), debug }
    }

    /// Every route, without version prefix.
    pub(crate) fn router(self) -> Router {
        Router::new()
            .route("/_ping", get(system::ping))
            .route("/version", get(system::version))
            .route("/info", get(system::info))
            .route("/auth", post(system::auth))
            .route("/events", get(event::stream))
            .route("/system/df", get(system::df))
            .merge(containers())
            .route("/exec/{id}/start", post(exec::start))
            .route("/exec/{id}/resize", post(exec::resize))
            .route("/exec/{id}/json", get(exec::inspect))
            .route("/images/json", get(image::list))
            .route("/images/get", get(image::save))
            .route("/images/create", post(pull::create))
            .route("/images/load", post(pull::load))
            .route("/images/prune", post(image::prune))
            .route("/images/search", get(image::search))
            .route("/images/{*rest}", any(image::by_name))
            .route("/build", post(build::build))
            .route("/build/prune", post(build::prune::prune))
            .route("/commit", post(commit::commit))
            .merge(volume::router())
            .merge(absent::router())
            .merge(network::router())
            .route("/hyper/v1/phases", get(hyper_v1::all_phases))
            .route("/hyper/v1/phases/{id}", get(hyper_v1::phases))
            .route("/hyper/v1/pods", get(pods::list).post(pods::create))
            .route("/hyper/v1/pods/{id}", get(pods::inspect).delete(pods::remove))
            .route("/hyper/v1/pods/{id}/start", post(pods::start))
            .route("/hyper/v1/pods/{id}/stop", post(pods::stop))
            .route("/hyper/v1/pods/{id}/kill", post(pods::kill))
            .route("/hyper/v1/pods/{id}/pause", post(pods::pause))
            .route("/hyper/v1/pods/{id}/unpause", post(pods::unpause))
            .route("/hyper/v1/pods/{id}/update", post(pods::update))
            .route("/hyper/v1/pods/{id}/exec", post(guest_exec::create))
            .route(
                "/hyper/v1/pods/{id}/services",
                get(services::list)
                    .post(services::add)
                    .patch(services::update)
                    .put(services::set)
                    .delete(services::remove),
            )
            .route("/hyper/v1/openapi.json", get(hyper_v1::openapi))
            .route("/hyper/v1/images/verify", post(hyper_v1::verify_images))
            .route("/hyper/v1/images/referrers", get(hyper_v1::referrers))
            .fallback(no_route)
            .method_not_allowed_fallback(no_route)
            .layer(axum::middleware::map_response(stamp))
            .with_state(self)
    }
}

fn containers() -> Router<App> {
    use container::{attach, create, files, inspect, lifecycle, list, logs, stats, top};
    Router::new()
        .route("/containers/create", post(create::create))
        .route("/containers/json", get(list::list))
        .route("/containers/prune", post(lifecycle::prune))
        .route("/containers/{id}", delete(lifecycle::remove))
        .route("/containers/{id}/json", get(inspect::inspect))
        .route("/containers/{id}/start", post(lifecycle::start))
        .route("/containers/{id}/stop", post(lifecycle::stop))
        .route("/containers/{id}/restart", post(lifecycle::restart))
        .route("/containers/{id}/kill", post(lifecycle::kill))
        .route("/containers/{id}/pause", post(lifecycle::pause))
        .route("/containers/{id}/unpause", post(lifecycle::unpause))
        .route("/containers/{id}/rename", post(lifecycle::rename))
        .route("/containers/{id}/update", post(lifecycle::update))
        .route("/containers/{id}/wait", post(lifecycle::wait))
        .route("/containers/{id}/resize", post(lifecycle::resize))
        .route("/containers/{id}/top", get(top::top))
        .route(
            "/containers/{id}/archive",
            head(files::stat).get(files::download).put(files::upload),
        )
        .route("/containers/{id}/changes", get(files::changes))
        .route("/containers/{id}/export", get(files::export))
        .route("/containers/{id}/attach", post(attach::attach))
        .route("/containers/{id}/logs", get(logs::logs))
        .route("/containers/{id}/stats", get(stats::stats))
        .route("/containers/{id}/exec", post(exec::create))
}

async fn no_route(method: Method, uri: Uri) -> ApiError {
    ApiError::not_found(format!("page not found: {method} {} is no route of this API", uri.path()))
}

/// Headers of every answer.
async fn stamp(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        ("api-version", API_VERSION),
        ("docker-experimental", "false"),
        ("ostype", "linux"),
        ("server", concat!("Hyper/", env!("CARGO_PKG_VERSION"), " (linux)")),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    }
    response
}
