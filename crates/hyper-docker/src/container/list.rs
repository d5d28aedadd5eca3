//! `GET /containers/json`.

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse as _;
use hyper_engine::{HealthStatus, Status, View};
use regex::RegexBuilder;
use serde_json::{Value, json};

use super::{mounts, network};
use crate::app::App;
use crate::error::{ApiError, ApiResult};
use crate::human;
use crate::request::{Filters, Query};

const FILTERS: [&str; 16] = [
    "ancestor",
    "before",
    "exited",
    "expose",
    "health",
    "id",
    "is-task",
    "isolation",
    "label",
    "label!",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
];
const STATUSES: [&str; 7] =
    ["created", "dead", "exited", "paused", "removing", "restarting", "running"];
/// Of a compiled name filter.
const MAX_PATTERN: usize = 1 << 20;

pub(crate) async fn list(State(app): State<App>, query: Query) -> ApiResult {
    let filters = query.filters(&FILTERS)?;
    let limit = query.number("limit")?.and_then(|limit| usize::try_from(limit).ok());
    // A limit and a status mean: of all.
    let all = query.flag("all")
        || limit.is_some_and(|limit| limit > 0)
        || filters.has("status")
        || filters.has("exited");
    let mut views = app.engine.containers();
    let shown = |status: Status| status.is_up() || status == Status::Restarting;
    views.retain(|view| all || shown(view.state.status));
    let mut views = filter(&app, views, &filters)?;
    if let Some(limit) = limit.filter(|limit| *limit > 0) {
        views.truncate(limit);
    }
    let mut items = Vec::with_capacity(views.len());
    for view in views {
        let mut item = item(&app, &view);
        if query.flag("size") {
            let bytes = app.engine.container_bytes(&view.spec.id).await.unwrap_or(0);
            let image = app.engine.image(&view.spec.image_id).map_or(0, |image| image.size);
            item["SizeRw"] = json!(bytes);
            item["SizeRootFs"] = json!(bytes + image);
        }
        items.push(item);
    }
    Ok(Json(items).into_response())
}

/// Those that pass; errors name the filter that is none.
pub(crate) fn filter(app: &App, views: Vec<View>, filters: &Filters) -> ApiResult<Vec<View>> {
    let mut names = Vec::new();
    for pattern in filters.values("name") {
        let regex = RegexBuilder::new(pattern).size_limit(MAX_PATTERN).build();
        names.push(
            regex
                .map_err(|e| ApiError::invalid(format!("invalid filter 'name={pattern}': {e}")))?,
        );
    }
    for status in filters.values("status") {
        if !STATUSES.contains(&status.as_str()) {
            return Err(ApiError::invalid(format!("invalid filter 'status={status}'")));
        }
    }
    let mut codes = Vec::new();
    for code in filters.values("exited") {
        codes.push(code.parse::<i32>().map_err(|_| {
            ApiError::invalid(format!("invalid filter 'exited={code}': not a number"))
        })?);
    }
    let created = |key: &str| -> ApiResult<Vec<i64>> {
        filters.values(key).iter().map(|id| Ok(app.engine.container(id)?.spec.created_ns)).collect()
    };
    let (before, since) = (created("before")?, created("since")?);
    let ancestors: Vec<String> = filters
        .values("ancestor")
        .iter()
        .map(|name| {
            app.engine.image(name).map_or_else(|_| name.clone(), |image| image.id.to_string())
        })
        .collect();
    let passes = |view: &View| {
        let spec = &view.spec;
        let named = names.is_empty()
            || names
                .iter()
                .any(|name| name.is_match(&view.name) || name.is_match(&format!("/{}", view.name)));
        named
            && filters.any("id", |id| spec.id.starts_with(id.as_str()))
            && filters.any("status", |status| view.state.status.word() == status)
            && filters.any("ancestor", |_| ancestors.contains(&spec.image_id))
            && (codes.is_empty()
                || (view.state.status == Status::Exited && codes.contains(&view.state.exit_code)))
            && before.iter().all(|limit| spec.created_ns < *limit)
            && since.iter().all(|limit| spec.created_ns > *limit)
            && filters.labels(&spec.labels)
            && filters.any("network", |wanted| in_network(app, view, wanted))
            && filters.any("health", |wanted| {
                let health = view.state.health.as_ref();
                wanted == health.map_or("none", |health| health.status.word())
            })
            && filters.any("is-task", |wanted| wanted == "false" || wanted == "0")
            && filters.any("isolation", |wanted| wanted.is_empty() || wanted == "default")
            && filters.any("volume", |volume| mounts::has(&spec.host, volume))
            && filters.any("expose", |port| {
                spec.exposed_ports.iter().any(|has| has.split('/').next() == port.split('/').next())
            })
            && filters.any("publish", |port| published(app, view, port))
    };
    Ok(views.into_iter().filter(passes).collect())
}

fn in_network(app: &App, view: &View, wanted: &str) -> bool {
    let all = hyper_engine::wanted_networks(&view.spec);
    let Ok(network) = app.engine.network(wanted) else {
        return wanted == "none" && all.is_empty();
    };
    all.iter().any(|(name, _)| app.engine.network(name).is_ok_and(|one| one.id == network.id))
}

fn published(app: &App, view: &View, text: &str) -> bool {
    let Some((protocol, first, last)) = hyper_engine::exposed_port(text) else { return false };
    app.engine
        .endpoints(view)
        .iter()
        .flat_map(|endpoint| &endpoint.ports)
        .any(|port| port.protocol == protocol && (first..=last).contains(&port.host_port))
}

fn item(app: &App, view: &View) -> Value {
    let spec = &view.spec;
    // A name that points elsewhere by now would lie.
    let image = match app.engine.image(&spec.image) {
        Ok(image) if image.id.to_string() == spec.image_id => spec.image.clone(),
        _ => spec.image_id.clone(),
    };
    let networks = network::settings(app, view);
    json!({
        "Id": spec.id,
        "Names": [format!("/{}", view.name)],
        "Image": image,
        "ImageID": spec.image_id,
        "Command": command(&spec.args()),
        "Created": spec.created_ns / 1_000_000_000,
        "Ports": network::list(app, view),
        "Labels": spec.labels,
        "State": view.state.status.word(),
        "Status": status(view),
        "HostConfig": { "NetworkMode": spec.host.network },
        "NetworkSettings": { "Networks": networks["Networks"] },
        "Mounts": mounts::shown(app, &spec.host),
        "Hyper": super::inspect::wall(app, spec),
    })
}

/// As Docker: arguments with blanks are quoted.
fn command(args: &[String]) -> String {
    let quoted: Vec<String> = args
        .iter()
        .map(|arg| {
            if arg.contains(' ') {
                format!("'{}'", arg.replace('\'', "'\\''"))
            } else {
                arg.clone()
            }
        })
        .collect();
    quoted.join(" ")
}

fn status(view: &View) -> String {
    let now = hyper_stdio::now_ns();
    let since = |at: Option<i64>| human::duration(now - at.unwrap_or(now));
    let state = &view.state;
    match state.status {
        Status::Running => {
            let health = state.health.as_ref().map_or("", |health| match health.status {
                HealthStatus::Starting => " (health: starting)",
                HealthStatus::Healthy => " (healthy)",
                HealthStatus::Unhealthy => " (unhealthy)",
            });
            format!("Up {}{health}", since(state.started_ns))
        }
        Status::Paused => format!("Up {} (Paused)", since(state.started_ns)),
        Status::Exited => format!("Exited ({}) {} ago", state.exit_code, since(state.finished_ns)),
        Status::Restarting => {
            format!("Restarting ({}) {} ago", state.exit_code, since(state.finished_ns))
        }
        Status::Created | Status::Starting => "Created".to_owned(),
    }
}
