//! A container's networks: what a create request asks for, and how they are shown.

use std::collections::BTreeMap;

use bollard_stubs::models::{EndpointSettings, HostConfig, NetworkingConfig, PortBinding};
use hyper_engine::View;
use hyper_engine::networks::{Endpoint, Link, PortWish, Protocol, Wish};
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::error::{ApiError, ApiResult};

/// What it wants of each network.
pub(super) fn wishes(
    networking: Option<&NetworkingConfig>,
    host: &HostConfig,
) -> ApiResult<BTreeMap<String, Wish>> {
    let endpoints = networking.and_then(|config| config.endpoints_config.as_ref());
    let mut all = BTreeMap::new();
    for (name, settings) in endpoints.into_iter().flatten() {
        if name != "none" {
            all.insert(name.clone(), wish(settings)?);
        }
    }
    let mode = host.network_mode.as_deref().filter(|mode| !mode.is_empty()).unwrap_or("default");
    let links = links(host.links.as_deref().unwrap_or_default())?;
    if !links.is_empty() {
        if mode == "none" || mode.starts_with("container:") {
            return Err(ApiError::invalid(format!(
                "conflicting options: links can't be used with the network mode {mode}"
            )));
        }
        all.entry(mode.to_owned()).or_default().links.extend(links);
    }
    let fixed = all.get(mode).is_some_and(|wish| wish.ipv4.is_some() || wish.ipv6.is_some());
    if fixed && matches!(mode, "default" | "bridge") {
        return Err(ApiError::invalid(
            "invalid config for network bridge: user specified IP address is supported on user \
             defined networks only",
        ));
    }
    Ok(all)
}

/// What it wants of one network.
pub(crate) fn wish(settings: &EndpointSettings) -> ApiResult<Wish> {
    let ipam = settings.ipam_config.clone().unwrap_or_default();
    if let Some(address) = ipam.link_local_ips.as_ref().and_then(|list| list.first()) {
        return Err(ApiError::unsupported(format!(
            "IPAMConfig.LinkLocalIPs \"{address}\" is not supported: guests choose theirs"
        )));
    }
    if let Some((key, value)) = settings.driver_opts.iter().flatten().next() {
        return Err(ApiError::unsupported(format!(
            "EndpointsConfig.DriverOpts \"{key}={value}\" is not supported: there are none"
        )));
    }
    let mac = settings.mac_address.clone().unwrap_or_default();
    Ok(Wish {
        ipv4: address(ipam.ipv4_address.as_deref(), "IPv4")?,
        ipv6: address(ipam.ipv6_address.as_deref(), "IPv6")?,
        mac: if mac.is_empty() {
            mac
        } else {
            hyper_engine::mac(&mac).map_err(|e| ApiError::invalid(e.to_string()))?
        },
        aliases: settings.aliases.clone().unwrap_or_default(),
        links: links(settings.links.as_deref().unwrap_or_default())?,
    })
}

/// `CONTAINER[:ALIAS]`
fn links(all: &[String]) -> ApiResult<Vec<Link>> {
    let link = |text: &String| {
        let (container, alias) = text.split_once(':').unwrap_or((text, text));
        // As Docker's older clients write it.
        let (container, alias) = (container.trim_start_matches('/'), alias.rsplit('/').next());
        match (container, alias.unwrap_or_default()) {
            ("", _) | (_, "") => {
                Err(ApiError::invalid(format!("bad format for links: {text}: CONTAINER[:ALIAS]")))
            }
            (container, alias) => {
                Ok(Link { container: container.to_owned(), alias: alias.to_owned() })
            }
        }
    };
    all.iter().map(link).collect()
}

fn address<T: std::str::FromStr>(text: Option<&str>, family: &str) -> ApiResult<Option<T>> {
    text.filter(|text| !text.is_empty())
        .map(|text| {
            text.parse().map_err(|_| ApiError::invalid(format!("invalid {family} address: {text}")))
        })
        .transpose()
}

/// `PortBindings`: ports to publish.
pub(super) fn ports(host: &HostConfig) -> ApiResult<Vec<PortWish>> {
    let mut all = Vec::new();
    let mut bindings: Vec<_> = host.port_bindings.iter().flatten().collect();
    bindings.sort_by_key(|(port, _)| (*port).clone());
    for (port, to) in bindings {
        let (protocol, first, last) = exposed(port)?;
        if first != last {
            return Err(ApiError::invalid(format!("invalid port specification: \"{port}\"")));
        }
        let any = [PortBinding::default()];
        let to = to.as_deref().filter(|to| !to.is_empty()).unwrap_or(&any);
        for binding in to {
            all.push(PortWish {
                protocol,
                port: first,
                host: address(binding.host_ip.as_deref(), "host IP")?,
                range: range(binding.host_port.as_deref().unwrap_or_default())?,
            });
        }
    }
    Ok(all)
}

fn range(text: &str) -> ApiResult<(u16, u16)> {
    let bad = || ApiError::invalid(format!("invalid port specification: \"{text}\""));
    if text.is_empty() {
        return Ok((0, 0));
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (u16, u16) =
        (first.parse().map_err(|_| bad())?, last.parse().map_err(|_| bad())?);
    if last < first || (first == 0) != (last == 0) { Err(bad()) } else { Ok((first, last)) }
}

fn exposed(text: &str) -> ApiResult<(Protocol, u16, u16)> {
    hyper_engine::exposed_port(text)
        .ok_or_else(|| ApiError::invalid(format!("invalid port specification: \"{text}\"")))
}

/// `HostConfig.PortBindings` for `inspect`.
pub(super) fn bindings(wishes: &[PortWish]) -> Value {
    let mut all = Map::new();
    for wish in wishes {
        let host_port = match wish.range {
            (0, 0) => String::new(),
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}-{last}"),
        };
        let host = wish.host.map_or_else(String::new, |ip| ip.to_string());
        let entry = all.entry(format!("{}/{}", wish.port, wish.protocol.word()));
        if let Some(list) = entry.or_insert_with(|| json!([])).as_array_mut() {
            list.push(json!({ "HostIp": host, "HostPort": host_port }));
        }
    }
    Value::Object(all)
}

/// `NetworkSettings`.
pub(crate) fn settings(app: &App, view: &View) -> Value {
    let endpoints = app.engine.endpoints(view);
    let first = endpoints.first().filter(|one| one.network_name == "bridge");
    let mut ports = Map::new();
    if !endpoints.is_empty() {
        for port in &view.spec.exposed_ports {
            let name = if port.contains('/') { port.clone() } else { format!("{port}/tcp") };
            ports.insert(name, Value::Null);
        }
    }
    for port in endpoints.iter().flat_map(|endpoint| &endpoint.ports) {
        let name = format!("{}/{}", port.port, port.protocol.word());
        let list = ports.entry(name).or_insert(Value::Null);
        if list.is_null() {
            *list = json!([]);
        }
        if let Some(list) = list.as_array_mut() {
            for host in shown_hosts(port) {
                list.push(json!({ "HostIp": host, "HostPort": port.host_port.to_string() }));
            }
        }
    }
    let mut networks = Map::new();
    for endpoint in &endpoints {
        networks.insert(endpoint.network_name.clone(), shown(Some(endpoint), None));
    }
    let alone = view.spec.host.pod.is_empty();
    for (name, wish) in hyper_engine::wanted_networks(&view.spec).into_iter().filter(|_| alone) {
        let name = app.engine.network(&name).map_or(name, |network| network.name);
        networks.entry(name).or_insert_with(|| shown(None, Some(&wish)));
    }
    if networks.is_empty() {
        networks.insert("none".to_owned(), shown(None, None));
    }
    let top = shown(first, None);
    let key = if endpoints.is_empty() {
        String::new()
    } else {
        app.engine.config().layout.namespace(&view.spec.id).display().to_string()
    };
    json!({
        "Bridge": "",
        "SandboxID": if endpoints.is_empty() { "" } else { view.spec.id.as_str() },
        "SandboxKey": key,
        "Ports": ports,
        "HairpinMode": false,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": null,
        "SecondaryIPv6Addresses": null,
        "EndpointID": top["EndpointID"],
        "Gateway": top["Gateway"],
        "GlobalIPv6Address": top["GlobalIPv6Address"],
        "GlobalIPv6PrefixLen": top["GlobalIPv6PrefixLen"],
        "IPAddress": top["IPAddress"],
        "IPPrefixLen": top["IPPrefixLen"],
        "IPv6Gateway": top["IPv6Gateway"],
        "MacAddress": top["MacAddress"],
        "Networks": networks,
    })
}

/// `Ports` of the list.
pub(super) fn list(app: &App, view: &View) -> Vec<Value> {
    let endpoints = app.engine.endpoints(view);
    let published: Vec<_> = endpoints.iter().flat_map(|endpoint| &endpoint.ports).collect();
    let mut all = Vec::new();
    for port in &published {
        for host in shown_hosts(port) {
            all.push(json!({
                "IP": host, "PrivatePort": port.port, "PublicPort": port.host_port,
                "Type": port.protocol.word(),
            }));
        }
    }
    for text in &view.spec.exposed_ports {
        let Some((protocol, first, last)) = hyper_engine::exposed_port(text) else { continue };
        for port in first..=last {
            if !published.iter().any(|one| (one.protocol, one.port) == (protocol, port)) {
                all.push(json!({ "PrivatePort": port, "Type": protocol.word() }));
            }
        }
    }
    all
}

fn shown_hosts(port: &hyper_engine::networks::Published) -> Vec<String> {
    match port.host {
        Some(host) => vec![host.to_string()],
        None => vec!["0.0.0.0".to_owned(), "::".to_owned()],
    }
}

fn shown(endpoint: Option<&Endpoint>, wish: Option<&Wish>) -> Value {
    let address = |ipv6| {
        let net = endpoint.and_then(|one| one.address(ipv6));
        net.map_or((String::new(), 0), |net| (net.addr().to_string(), net.prefix_len()))
    };
    let gateway = |ipv6| {
        let ip = endpoint.and_then(|one| one.gateway(ipv6));
        ip.map_or_else(String::new, |ip| ip.to_string())
    };
    let ((ipv4, length4), (ipv6, length6)) = (address(false), address(true));
    let ipam = wish.filter(|wish| wish.ipv4.is_some() || wish.ipv6.is_some()).map(|wish| {
        let text = |ip: Option<String>| ip.unwrap_or_default();
        json!({
            "IPv4Address": text(wish.ipv4.map(|ip| ip.to_string())),
            "IPv6Address": text(wish.ipv6.map(|ip| ip.to_string())),
        })
    });
    let aliases = endpoint.map(|one| &one.aliases).or(wish.map(|wish| &wish.aliases));
    json!({
        "IPAMConfig": ipam,
        "Links": null,
        "Aliases": aliases.filter(|aliases| !aliases.is_empty()),
        "MacAddress": endpoint.map_or("", |one| one.mac.as_str()),
        "DriverOpts": null,
        "GwPriority": 0,
        "NetworkID": endpoint.map_or("", |one| one.network.as_str()),
        "EndpointID": endpoint.map_or("", |one| one.id.as_str()),
        "Gateway": gateway(false),
        "IPAddress": ipv4,
        "IPPrefixLen": length4,
        "IPv6Gateway": gateway(true),
        "GlobalIPv6Address": ipv6,
        "GlobalIPv6PrefixLen": length6,
        "DNSNames": endpoint.filter(|one| one.network_name != "bridge").map(|one| &one.names),
    })
}
