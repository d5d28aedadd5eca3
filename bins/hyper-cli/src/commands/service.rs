//! `pod service …`: addresses that only one pod sees, with backends behind them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, bail};
use hyper::Method;
use serde_json::{Value, json};

use super::container::report;
use crate::arguments::{ServiceCommand, ServiceFlags};
use crate::client::{Body, Client, quote};
use crate::output;

pub async fn service(client: &Client, command: ServiceCommand) -> anyhow::Result<i32> {
    match command {
        ServiceCommand::Ls { format, pod } => list(client, &pod, format.as_deref()).await,
        ServiceCommand::Add(flags) => send(client, Method::POST, &flags).await,
        ServiceCommand::Update(flags) => send(client, Method::PATCH, &flags).await,
        ServiceCommand::Rm { pod, services } => remove(client, &pod, &services).await,
    }
}

fn path(pod: &str) -> String {
    format!("/hyper/v1/pods/{}/services", quote(pod))
}

async fn list(client: &Client, pod: &str, format: Option<&str>) -> anyhow::Result<i32> {
    let all = client.get(&path(pod)).await?;
    let at = |one: &Value| {
        let ip = one["ip"].as_str().unwrap_or_default();
        let port = &one["port"];
        if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
    };
    let rows: Vec<_> = all
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| {
            let backends: Vec<_> =
                one["backends"].as_array().into_iter().flatten().map(at).collect();
            let protocol = one["protocol"].as_str().unwrap_or_default();
            BTreeMap::from([
                ("Service", format!("{}/{protocol}", at(one))),
                ("Backends", backends.join(",")),
            ])
        })
        .collect();
    output::print_rows(format, &[("SERVICE", "Service"), ("BACKENDS", "Backends")], &rows)?;
    Ok(0)
}

async fn send(client: &Client, method: Method, flags: &ServiceFlags) -> anyhow::Result<i32> {
    let (at, protocol) = split(&flags.service)?;
    let backend = |text: &String| {
        let at: SocketAddr = text
            .parse()
            .with_context(|| format!("backend `{text}` is no ADDRESS:PORT (IPv6 in brackets)"))?;
        Ok(json!({ "ip": at.ip(), "port": at.port() }))
    };
    let backends: Vec<Value> = flags.backends.iter().map(backend).collect::<anyhow::Result<_>>()?;
    let body = json!({
        "ip": at.ip(), "port": at.port(), "protocol": protocol, "backends": backends,
    });
    client.json(method, &path(&flags.pod), Body::Json(body)).await?;
    println!("{at}/{protocol}");
    Ok(0)
}

async fn remove(client: &Client, pod: &str, services: &[String]) -> anyhow::Result<i32> {
    let mut code = 0;
    for text in services {
        let (at, protocol) = split(text)?;
        let query = format!(
            "{}?ip={}&port={}&protocol={protocol}",
            path(pod),
            quote(&at.ip().to_string()),
            at.port()
        );
        code |= report(text, client.json(Method::DELETE, &query, Body::None).await);
    }
    Ok(code)
}

/// `ADDRESS:PORT[/PROTOCOL]`
fn split(text: &str) -> anyhow::Result<(SocketAddr, &str)> {
    let (at, protocol) = text.rsplit_once('/').unwrap_or((text, "tcp"));
    if !matches!(protocol, "tcp" | "udp") {
        bail!("service `{text}`: `{protocol}` is neither tcp nor udp");
    }
    let at = at.parse().with_context(|| {
        format!("service `{text}` is no ADDRESS:PORT[/tcp|udp] (IPv6 in brackets)")
    })?;
    Ok((at, protocol))
}
