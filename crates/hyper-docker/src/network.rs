//! `/networks`.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use axum::routing::{get, post};
use axum::{Json, Router};
use bollard_stubs::models::{
    NetworkConnectRequest, NetworkCreateRequest, NetworkDisconnectRequest,
};
use hyper_engine::networks::{Driver, NONE, NONE_ID, Network, NetworkRequest};
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::container::network::wish;
use crate::error::{ApiError, ApiResult};
use crate::request::{self, Filters, Query};

const FILTERS: [&str; 8] = ["dangling", "driver", "id", "label", "label!", "name", "scope", "type"];

pub(crate) fn router() -> Router<App> {
    Router::new()
        .route("/networks", get(list))
        .route("/networks/create", post(create))
        .route("/networks/prune", post(prune))
        .route("/networks/{id}", get(inspect).delete(remove))
        .route("/networks/{id}/connect", post(connect))
        .route("/networks/{id}/disconnect", post(disconnect))
}

async fn list(State(app): State<App>, query: Query) -> ApiResult {
    let filters = query.filters(&FILTERS)?;
    let dangling = filters.boolean("dangling")?;
    let mut all = app.engine.networks();
    all.push(none());
    let shown: Vec<Value> = all
        .iter()
        .filter(|network| passes(&filters, network))
        .filter(|network| {
            dangling.is_none_or(|wanted| {
                let used = network.is_builtin()
                    || network.name == NONE
                    || !app.engine.members(&network.id).is_empty();
                wanted != used
            })
        })
        .map(|network| document(&app, network))
        .collect();
    Ok(Json(shown).into_response())
}

fn passes(filters: &Filters, network: &Network) -> bool {
    let builtin = network.is_builtin() || network.name == NONE;
    filters.any("name", |name| network.name.contains(name.as_str()))
        && filters.any("driver", |name| name == driver(network))
        && filters.any("id", |id| network.id.starts_with(id.as_str()))
        && filters.any("scope", |scope| scope == "local")
        && filters.any("type", |kind| (kind == "builtin") == builtin)
        && filters.labels(&network.labels)
}

async fn inspect(State(app): State<App>, Path(id): Path<String>) -> ApiResult {
    let network = find(&app, &id)?;
    let mut shown = document(&app, &network);
    // Ours: what policies have kept its members from.
    let blocked = app.engine.blocked().await;
    for member in app.engine.members(&network.id) {
        if let Some(dropped) = blocked.get(&member.id) {
            let policies = network.egress().into_iter().chain(member.egress);
            let policies: Vec<String> = policies.map(|policy| policy.to_string()).collect();
            shown["Containers"][&member.container]["Hyper"] = json!({
                "Egress": policies,
                "Blocked": { "Packets": dropped.packets, "Bytes": dropped.bytes },
            });
        }
    }
    Ok(Json(shown).into_response())
}

fn find(app: &App, id: &str) -> ApiResult<Network> {
    if id == NONE || (!id.is_empty() && NONE_ID.starts_with(id)) {
        return Ok(none());
    }
    Ok(app.engine.network(id)?)
}

async fn create(State(app): State<App>, body: Body) -> ApiResult {
    let body: NetworkCreateRequest = request::json(body).await?;
    let created = app.engine.create_network(translate(body)?).await?;
    Ok((StatusCode::CREATED, Json(json!({ "Id": created.id, "Warning": "" }))).into_response())
}

fn translate(body: NetworkCreateRequest) -> ApiResult<NetworkRequest> {
    let no = |what: &str, value: &str, why: &str| {
        Err(ApiError::unsupported(format!("{what} \"{value}\" is not supported: {why}")))
    };
    let driver = match body.driver.as_deref() {
        None | Some("" | "bridge" | "default") => Driver::Bridge,
        Some("macvlan") => Driver::Macvlan,
        Some("ipvlan") => Driver::Ipvlan,
        Some(name @ ("overlay" | "host")) => {
            return no("Driver", name, "this engine is no cluster, and a guest is not the host");
        }
        Some(name) => {
            return Err(ApiError::not_found(format!(
                "plugin \"{name}\" not found: {} are there",
                Driver::WORDS.join(", ")
            )));
        }
    };
    if body.enable_ipv4 == Some(false) {
        return no("EnableIPv4", "false", "every network has IPv4");
    }
    for (what, set) in [
        ("Ingress", body.ingress),
        ("ConfigOnly", body.config_only),
        // Without a cluster it means nothing; compose sends it.
        ("Scope swarm", Some(body.scope.as_deref() == Some("swarm"))),
    ] {
        if set == Some(true) {
            return no(what, "true", "this engine is no cluster");
        }
    }
    let ipam = body.ipam.unwrap_or_default();
    if let Some(driver) = ipam.driver.as_deref().filter(|d| !matches!(*d, "" | "default")) {
        return no("IPAM.Driver", driver, "addresses are given by the engine itself");
    }
    let mut subnets = Vec::new();
    for config in ipam.config.unwrap_or_default() {
        if let Some((name, ip)) = config.auxiliary_addresses.iter().flatten().next() {
            let value = format!("{name}={ip}");
            return no("IPAM AuxiliaryAddresses", &value, "leave it out of the --ip-range instead");
        }
        subnets.push((
            parsed(config.subnet.as_deref(), "subnet")?,
            parsed(config.ip_range.as_deref(), "ip-range")?,
            parsed(config.gateway.as_deref(), "gateway")?,
        ));
    }
    Ok(NetworkRequest {
        name: body.name,
        driver,
        subnets,
        ipv6: body.enable_ipv6.unwrap_or_default(),
        internal: body.internal.unwrap_or_default(),
        labels: body.labels.unwrap_or_default().into_iter().collect(),
        options: body.options.unwrap_or_default().into_iter().collect(),
    })
}

fn parsed<T: std::str::FromStr>(text: Option<&str>, what: &str) -> ApiResult<Option<T>> {
    text.filter(|text| !text.is_empty())
        .map(|text| text.parse().map_err(|_| ApiError::invalid(format!("invalid {what}: {text}"))))
        .transpose()
}

async fn remove(State(app): State<App>, Path(id): Path<String>) -> ApiResult {
    if find(&app, &id)?.name == NONE {
        let text = "none is a pre-defined network and cannot be removed";
        return Err(ApiError::new(StatusCode::FORBIDDEN, text));
    }
    app.engine.remove_network(&id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn prune(State(app): State<App>, query: Query) -> ApiResult {
    let filters = query.filters(&["label", "label!", "until"])?;
    let now = hyper_stdio::now_ns();
    let mut until = i64::MAX;
    for text in filters.values("until") {
        let limit = request::age_or_time(text, now)
            .ok_or_else(|| ApiError::invalid(format!("invalid until `{text}`: not a time")))?;
        until = until.min(limit);
    }
    let mut deleted = Vec::new();
    for network in app.engine.networks() {
        let idle = !network.is_builtin() && app.engine.members(&network.id).is_empty();
        let wanted_by = |view: &hyper_engine::View| {
            let wanted = hyper_engine::wanted_networks(&view.spec);
            wanted.iter().any(|(name, _)| *name == network.name || *name == network.id)
        };
        let wanted = app.engine.containers().iter().any(wanted_by);
        if !idle || wanted || network.created_ns > until || !filters.labels(&network.labels) {
            continue;
        }
        // One that is used since is none of ours.
        if app.engine.remove_network(&network.id).await.is_ok() {
            deleted.push(network.name);
        }
    }
    let deleted = if deleted.is_empty() { Value::Null } else { json!(deleted) };
    Ok(Json(json!({ "NetworksDeleted": deleted })).into_response())
}

async fn connect(State(app): State<App>, Path(id): Path<String>, body: Body) -> ApiResult {
    let body: NetworkConnectRequest = request::json(body).await?;
    let network = joinable(&app, &id)?;
    let wanted = wish(&body.endpoint_config.unwrap_or_default())?;
    app.engine.connect(&body.container, &network, wanted).await?;
    Ok(StatusCode::OK.into_response())
}

async fn disconnect(State(app): State<App>, Path(id): Path<String>, body: Body) -> ApiResult {
    let body: NetworkDisconnectRequest = request::json(body).await?;
    let network = joinable(&app, &id)?;
    app.engine.disconnect(&body.container, &network).await?;
    Ok(StatusCode::OK.into_response())
}

fn joinable(app: &App, id: &str) -> ApiResult<String> {
    match find(app, id)? {
        network if network.name == NONE => Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "container cannot be connected to or disconnected from network none: it is there \
             when nothing else is",
        )),
        network => Ok(network.name),
    }
}

fn driver(network: &Network) -> &'static str {
    if network.name == NONE { "null" } else { network.driver.word() }
}

/// Loopback only.
fn none() -> Network {
    Network { id: NONE_ID.to_owned(), name: NONE.to_owned(), ..Network::default() }
}

fn document(app: &App, network: &Network) -> Value {
    let config: Vec<Value> = network
        .subnets
        .iter()
        .map(|subnet| {
            let mut one = json!({
                "Subnet": subnet.net.to_string(), "Gateway": subnet.gateway.to_string(),
            });
            if let Some(range) = subnet.range {
                one["IPRange"] = json!(range.to_string());
            }
            one
        })
        .collect();
    let mut containers = Map::new();
    for member in app.engine.members(&network.id) {
        let text = |ipv6| member.address(ipv6).map_or_else(String::new, |net| net.to_string());
        let value = json!({
            "Name": member.names.first(),
            "EndpointID": member.id,
            "MacAddress": member.mac,
            "IPv4Address": text(false),
            "IPv6Address": text(true),
        });
        containers.insert(member.container, value);
    }
    let mut options: BTreeMap<&str, &str> =
        network.options.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    if network.is_builtin() {
        options.insert("com.docker.network.bridge.default_bridge", "true");
        options.insert("com.docker.network.bridge.name", &network.bridge);
    }
    json!({
        "Name": network.name,
        "Id": network.id,
        "Created": hyper_stdio::rfc3339_nano(network.created_ns),
        "Scope": "local",
        "Driver": driver(network),
        "EnableIPv4": true,
        "EnableIPv6": network.has_ipv6(),
        "IPAM": {
            "Driver": "default",
            "Options": null,
            "Config": if config.is_empty() { Value::Null } else { json!(config) },
        },
        "Internal": network.internal,
        "Attachable": false,
        "Ingress": false,
        "ConfigFrom": { "Network": "" },
        "ConfigOnly": false,
        "Containers": containers,
        "Options": options,
        "Labels": network.labels,
    })
}
