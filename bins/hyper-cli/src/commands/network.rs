//! `network` and `port`.

use std::collections::BTreeMap;

use anyhow::bail;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use super::container::filters;
use crate::arguments::{NetworkCommand, NetworkCreateFlags, NetworkListFlags, endpoint};
use crate::client::{Body, Client, ClientError, quote};
use crate::output::{self, Format};

pub async fn network(client: &Client, command: NetworkCommand) -> anyhow::Result<i32> {
    match command {
        NetworkCommand::Create(flags) => create(client, &flags).await,
        NetworkCommand::Ls(flags) => list(client, flags).await,
        NetworkCommand::Inspect { format, networks } => {
            inspect(client, format.as_deref(), &networks).await
        }
        NetworkCommand::Rm { force, networks } => remove(client, force, &networks).await,
        NetworkCommand::Prune { force: _, filter } => prune(client, &filter).await,
        NetworkCommand::Connect { ip, ip6, alias, network, container } => {
            let wanted = endpoint(ip.as_deref(), ip6.as_deref(), &alias);
            let body = json!({ "Container": container, "EndpointConfig": wanted });
            let path = format!("/networks/{}/connect", quote(&network));
            client.post(&path, Body::Json(body)).await?;
            Ok(0)
        }
        NetworkCommand::Disconnect { force, network, container } => {
            let body = json!({ "Container": container, "Force": force });
            let path = format!("/networks/{}/disconnect", quote(&network));
            client.post(&path, Body::Json(body)).await?;
            Ok(0)
        }
    }
}

async fn create(client: &Client, flags: &NetworkCreateFlags) -> anyhow::Result<i32> {
    let pairs = |words: &[String]| -> BTreeMap<String, String> {
        words
            .iter()
            .map(|word| {
                let (key, value) = word.split_once('=').unwrap_or((word, ""));
                (key.to_owned(), value.to_owned())
            })
            .collect()
    };
    if flags.subnet.is_empty() && !(flags.gateway.is_empty() && flags.ip_range.is_empty()) {
        bail!("--gateway and --ip-range need a --subnet");
    }
    // Each belongs to the subnet of its family.
    let family = |words: &[String], ipv6: bool| {
        words.iter().find(|word| word.contains(':') == ipv6).cloned()
    };
    let config: Vec<Value> = flags
        .subnet
        .iter()
        .map(|subnet| {
            let ipv6 = subnet.contains(':');
            json!({
                "Subnet": subnet,
                "Gateway": family(&flags.gateway, ipv6).unwrap_or_default(),
                "IPRange": family(&flags.ip_range, ipv6).unwrap_or_default(),
            })
        })
        .collect();
    let mut options = json!(pairs(&flags.opt));
    if let Some(policy) = &flags.egress {
        options["io.hyper.egress"] = json!(policy);
    }
    let body = json!({
        "Name": flags.name,
        "Driver": flags.driver,
        "Internal": flags.internal,
        "EnableIPv6": flags.ipv6,
        "IPAM": { "Driver": "default", "Config": config },
        "Labels": pairs(&flags.label),
        "Options": options,
    });
    let answer = client.post("/networks/create", Body::Json(body)).await?;
    println!("{}", answer["Id"].as_str().unwrap_or_default());
    Ok(0)
}

async fn list(client: &Client, flags: NetworkListFlags) -> anyhow::Result<i32> {
    let mut path = "/networks".to_owned();
    if let Some(filters) = filters(&flags.filter)? {
        path.push_str(&format!("?filters={filters}"));
    }
    let answer = client.get(&path).await?;
    let mut rows = Vec::new();
    for item in answer.as_array().into_iter().flatten() {
        let text = |key: &str| item[key].as_str().unwrap_or_default().to_owned();
        let id = text("Id");
        let id = if flags.no_trunc { id } else { id.chars().take(12).collect() };
        if flags.quiet {
            println!("{id}");
        }
        rows.push(BTreeMap::from([
            ("ID", id),
            ("Name", text("Name")),
            ("Driver", text("Driver")),
            ("Scope", text("Scope")),
        ]));
    }
    if !flags.quiet {
        let columns =
            [("NETWORK ID", "ID"), ("NAME", "Name"), ("DRIVER", "Driver"), ("SCOPE", "Scope")];
        output::print_rows(flags.format.as_deref(), &columns, &rows)?;
    }
    Ok(0)
}

async fn inspect(client: &Client, format: Option<&str>, names: &[String]) -> anyhow::Result<i32> {
    let format = format.map(Format::parse).transpose()?;
    let (mut found, mut code) = (Vec::new(), 0);
    for name in names {
        match client.get(&format!("/networks/{}", quote(name))).await {
            Ok(value) => found.push(value),
            Err(ClientError::Refused { status: StatusCode::NOT_FOUND, message }) => {
                eprintln!("hyper: {message}");
                code = 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
    match format {
        None => println!("{}", serde_json::to_string_pretty(&found)?),
        Some(format) => {
            for value in &found {
                println!("{}", format.render(value)?);
            }
        }
    }
    Ok(code)
}

async fn remove(client: &Client, force: bool, names: &[String]) -> anyhow::Result<i32> {
    let mut code = 0;
    for name in names {
        match client.json(Method::DELETE, &format!("/networks/{}", quote(name)), Body::None).await {
            Ok(_) => println!("{name}"),
            Err(ClientError::Refused { status: StatusCode::NOT_FOUND, .. }) if force => {}
            Err(ClientError::Refused { message, .. }) => {
                eprintln!("hyper: {message}");
                code = 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(code)
}

async fn prune(client: &Client, words: &[String]) -> anyhow::Result<i32> {
    let mut path = "/networks/prune".to_owned();
    if let Some(filters) = filters(words)? {
        path.push_str(&format!("?filters={filters}"));
    }
    let answer = client.post(&path, Body::None).await?;
    for name in answer["NetworksDeleted"].as_array().into_iter().flatten() {
        println!("{}", name.as_str().unwrap_or_default());
    }
    Ok(0)
}

/// `port CONTAINER [PORT[/PROTOCOL]]`.
pub async fn port(client: &Client, container: &str, port: Option<&str>) -> anyhow::Result<i32> {
    let answer = client.get(&format!("/containers/{}/json", quote(container))).await?;
    let ports = answer["NetworkSettings"]["Ports"].as_object().cloned().unwrap_or_default();
    let wanted =
        port.map(|port| if port.contains('/') { port.to_owned() } else { format!("{port}/tcp") });
    let mut shown = 0;
    for (name, bindings) in ports {
        if wanted.as_ref().is_some_and(|wanted| *wanted != name) {
            continue;
        }
        for binding in bindings.as_array().into_iter().flatten() {
            let host = binding["HostIp"].as_str().unwrap_or_default();
            let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
            let at = format!("{host}:{}", binding["HostPort"].as_str().unwrap_or_default());
            if wanted.is_some() {
                println!("{at}");
            } else {
                println!("{name} -> {at}");
            }
            shown += 1;
        }
    }
    match wanted {
        Some(wanted) if shown == 0 => {
            bail!("no public port '{wanted}' published for {container}")
        }
        _ => Ok(0),
    }
}

/// The PORTS column: `0.0.0.0:8080->80/tcp, 90/udp`.
pub fn column(ports: &Value) -> String {
    let mut words: Vec<String> = ports
        .as_array()
        .into_iter()
        .flatten()
        .map(|port| {
            let inner =
                format!("{}/{}", port["PrivatePort"], port["Type"].as_str().unwrap_or("tcp"));
            match (port["IP"].as_str(), port["PublicPort"].as_u64()) {
                (Some(ip), Some(outer)) if ip.contains(':') => format!("[{ip}]:{outer}->{inner}"),
                (Some(ip), Some(outer)) => format!("{ip}:{outer}->{inner}"),
                _ => inner,
            }
        })
        .collect();
    words.sort();
    words.join(", ")
}
