//! `pod …`: pods that containers join.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use bytes::BytesMut;
use http_body_util::BodyExt;
use hyper::Method;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::task::JoinSet;

use super::container::report;
use super::{exec, service};
use crate::arguments::{
    PodCommand, PodCreateFlags, PodExecFlags, PodLogsFlags, PodPsFlags, PodUpdateFlags, bytes,
    loose_pairs, pairs,
};
use crate::client::{Body, Client, quote};
use crate::output::{self, Format};
use crate::streams::next_frame;

pub async fn pod(client: &Client, command: PodCommand) -> anyhow::Result<i32> {
    match command {
        PodCommand::Create(flags) => {
            println!("{}", create(client, &flags).await?);
            Ok(0)
        }
        PodCommand::Start { pods } => post_each(client, pods, "start").await,
        PodCommand::Stop { time, pods } => {
            let grace = time.map_or_else(String::new, |seconds| format!("?t={seconds}"));
            post_each(client, pods, &format!("stop{grace}")).await
        }
        PodCommand::Kill(flags) => {
            let verb = format!("kill?signal={}", quote(&flags.signal));
            post_each(client, flags.containers, &verb).await
        }
        PodCommand::Rm { force, pods } => remove(client, pods, force).await,
        PodCommand::Ps(flags) => list(client, &flags).await,
        PodCommand::Inspect { format, pods } => inspect(client, format.as_deref(), &pods).await,
        PodCommand::Logs(flags) => logs(client, flags).await,
        PodCommand::Exec(flags) => exec_in(client, flags).await,
        PodCommand::Stats { format, pods } => stats(client, format.as_deref(), pods).await,
        PodCommand::Pause { pods } => post_each(client, pods, "pause").await,
        PodCommand::Update(flags) => update(client, flags).await,
        PodCommand::Service(command) => service::service(client, command).await,
        PodCommand::Unpause { pods } => post_each(client, pods, "unpause").await,
    }
}

async fn update(client: &Client, flags: PodUpdateFlags) -> anyhow::Result<i32> {
    let mut labels: BTreeMap<String, Value> = loose_pairs(&flags.label)
        .into_iter()
        .map(|(key, value)| (key, Value::String(value)))
        .collect();
    labels.extend(flags.label_rm.into_iter().map(|key| (key, Value::Null)));
    let body = json!({
        "labels": labels,
        "vcpus": flags.cpus,
        "memory_bytes": memory_bytes(flags.memory.as_deref())?,
        "egress": flags.egress,
        "network_rate": flags.network_rate,
    });
    let mut code = 0;
    for name in flags.pods {
        let path = format!("/hyper/v1/pods/{}/update", quote(&name));
        code |= report(&name, client.post(&path, Body::Json(body.clone())).await);
    }
    Ok(code)
}

fn memory_bytes(flag: Option<&str>) -> anyhow::Result<Option<i64>> {
    flag.map(|text| bytes(text).with_context(|| format!("--memory `{text}`"))).transpose()
}

async fn create(client: &Client, flags: &PodCreateFlags) -> anyhow::Result<String> {
    let body = json!({
        "name": flags.name,
        "hostname": flags.hostname,
        "labels": loose_pairs(&flags.label),
        "runtime": flags.runtime,
        "vcpus": flags.cpus,
        "memory_bytes": memory_bytes(flags.memory.as_deref())?,
        "network": flags.network,
        "egress": flags.egress,
        "network_rate": flags.network_rate,
        "sysctls": pairs(&flags.sysctl, "sysctl")?,
    });
    make(client, body).await
}

/// `POST /hyper/v1/pods`; the id.
pub async fn make(client: &Client, body: Value) -> anyhow::Result<String> {
    let answer = client.post("/hyper/v1/pods", Body::Json(body)).await?;
    Ok(answer["id"].as_str().context("the engine sent no pod id")?.to_owned())
}

/// `POST /hyper/v1/pods/NAME/VERB` for each; prints the names that worked.
async fn post_each(client: &Client, names: Vec<String>, verb: &str) -> anyhow::Result<i32> {
    let mut code = 0;
    for name in names {
        let path = format!("/hyper/v1/pods/{}/{verb}", quote(&name));
        code |= report(&name, client.post(&path, Body::None).await);
    }
    Ok(code)
}

async fn remove(client: &Client, names: Vec<String>, force: bool) -> anyhow::Result<i32> {
    let mut code = 0;
    for name in names {
        let path = format!("/hyper/v1/pods/{}?force={}", quote(&name), u8::from(force));
        code |= report(&name, client.json(Method::DELETE, &path, Body::None).await);
    }
    Ok(code)
}

async fn list(client: &Client, flags: &PodPsFlags) -> anyhow::Result<i32> {
    let answer = client.get("/hyper/v1/pods").await?;
    let pods = answer.as_array().map_or(&[][..], Vec::as_slice);
    if flags.quiet {
        for pod in pods {
            println!("{}", short(pod["id"].as_str().unwrap_or_default(), flags.no_trunc));
        }
        return Ok(0);
    }
    let rows: Vec<_> = pods.iter().map(|pod| row(pod, flags.no_trunc)).collect();
    let columns = [
        ("POD ID", "ID"),
        ("NAME", "Name"),
        ("STATUS", "Status"),
        ("CREATED", "RunningFor"),
        ("RUNTIME", "Runtime"),
        ("RUNNING", "Running"),
        ("CONTAINERS", "Containers"),
    ];
    output::print_rows(flags.format.as_deref(), &columns, &rows)?;
    Ok(0)
}

fn row(pod: &Value, whole: bool) -> BTreeMap<&'static str, String> {
    let text = |key: &str| pod[key].as_str().unwrap_or_default().to_owned();
    let members = pod["containers"].as_array().map_or(&[][..], Vec::as_slice);
    let names: Vec<_> = members.iter().filter_map(|member| member["name"].as_str()).collect();
    let up = members.iter().filter(|member| member["status"] == "running").count();
    let created = pod["created_ns"].as_i64().unwrap_or_default() / 1_000_000_000;
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let status = match pod["reason"].as_str() {
        None | Some("") => text("status"),
        Some(reason) => format!("{} ({reason})", text("status")),
    };
    let runtime = text("runtime");
    BTreeMap::from([
        ("ID", short(&text("id"), whole)),
        ("Name", text("name")),
        ("Status", status),
        ("RunningFor", format!("{} ago", output::age(now - created))),
        ("Runtime", if runtime.is_empty() { "default".to_owned() } else { runtime }),
        ("Running", format!("{up}/{}", members.len())),
        ("Containers", names.join(",")),
    ])
}

fn short(id: &str, whole: bool) -> String {
    if whole { id.to_owned() } else { id.chars().take(12).collect() }
}

async fn get(client: &Client, name: &str) -> anyhow::Result<Value> {
    let pod = client.get(&format!("/hyper/v1/pods/{}", quote(name))).await?;
    if pod["containers"].as_array().is_some_and(|all| all.iter().all(Value::is_object))
        && pod["status"].is_string()
    {
        return Ok(pod);
    }
    bail!("`{name}` is a container with a pod to itself: use `hyper inspect {name}`")
}

async fn inspect(client: &Client, format: Option<&str>, names: &[String]) -> anyhow::Result<i32> {
    let format = format.map(Format::parse).transpose()?;
    let mut found = Vec::new();
    let mut code = 0;
    for name in names {
        match get(client, name).await {
            Ok(pod) => found.push(pod),
            Err(error) => {
                eprintln!("hyper: {error:#}");
                code = 1;
            }
        }
    }
    match format {
        None => println!("{}", serde_json::to_string_pretty(&found)?),
        Some(format) => {
            for pod in &found {
                println!("{}", format.render(pod)?);
            }
        }
    }
    Ok(code)
}

/// The containers of a pod that are meant, id and name: the one called `wanted`, or all.
async fn members(
    client: &Client,
    pod: &str,
    wanted: Option<&str>,
) -> anyhow::Result<Vec<(String, String)>> {
    let described = get(client, pod).await?;
    let mut all = Vec::new();
    for member in described["containers"].as_array().into_iter().flatten() {
        let text = |key: &str| member[key].as_str().unwrap_or_default().to_owned();
        all.push((text("id"), text("name")));
    }
    let Some(wanted) = wanted else { return Ok(all) };
    // A manifest's containers are called POD-CONTAINER.
    let long = format!("{}-{wanted}", described["name"].as_str().unwrap_or_default());
    let known: Vec<_> = all.iter().map(|(_, name)| name.clone()).collect();
    all.retain(|(id, name)| name == wanted || *name == long || id.starts_with(wanted));
    if all.is_empty() {
        bail!("pod `{pod}` has no container `{wanted}`: it has {}", known.join(", "));
    }
    Ok(all)
}

async fn exec_in(client: &Client, flags: PodExecFlags) -> anyhow::Result<i32> {
    let PodExecFlags { member, guest, exec: mut flags } = flags;
    if guest {
        return exec::exec_in_guest(client, member.as_deref(), flags).await;
    }
    let pod = flags.container;
    let all = members(client, &pod, member.as_deref()).await?;
    let Some((id, _)) = all.into_iter().next() else {
        bail!("pod `{pod}` has no containers: add one with `hyper run --pod {pod}`");
    };
    flags.container = id;
    exec::exec(client, flags).await
}

async fn logs(client: &Client, flags: PodLogsFlags) -> anyhow::Result<i32> {
    let all = members(client, &flags.pod, flags.container.as_deref()).await?;
    let width = all.iter().map(|(_, name)| name.chars().count()).max().unwrap_or(0);
    let mut readers = JoinSet::new();
    for (id, name) in all {
        let path = format!(
            "/containers/{id}/logs?stdout=1&stderr=1&follow={}&timestamps={}&tail={}",
            u8::from(flags.follow),
            u8::from(flags.timestamps),
            quote(&flags.tail)
        );
        let tty = client.get(&format!("/containers/{id}/json")).await?["Config"]["Tty"] == true;
        let prefix = format!("{name:width$} | ");
        let reading = prefixed(client.clone(), path, prefix, !tty);
        if flags.follow {
            readers.spawn(reading);
        } else {
            reading.await?;
        }
    }
    while let Some(read) = readers.join_next().await {
        read.context("read a log")??;
    }
    Ok(0)
}

/// Copies a log to standard output, each line behind `prefix`.
async fn prefixed(
    client: Client,
    path: String,
    prefix: String,
    framed: bool,
) -> anyhow::Result<()> {
    let mut body = client.send(Method::GET, &path, Body::None).await?.into_body();
    let (mut frames, mut text) = (BytesMut::new(), Vec::new());
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.context("read the log")?.into_data() else { continue };
        if framed {
            frames.extend_from_slice(&data);
            while let Some((_, data)) = next_frame(&mut frames)? {
                text.extend_from_slice(&data);
            }
        } else {
            text.extend_from_slice(&data);
        }
        if let Some(end) = text.iter().rposition(|byte| *byte == b'\n') {
            let rest = text.split_off(end + 1);
            print_lines(&text, &prefix)?;
            text = rest;
        }
    }
    print_lines(&text, &prefix)
}

/// One lock for all of them, so that lines of several containers do not mix.
fn print_lines(text: &[u8], prefix: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let end = if line.ends_with(b"\n") { "" } else { "\n" };
        out.write_all(prefix.as_bytes())
            .and_then(|()| out.write_all(line))
            .and_then(|()| out.write_all(end.as_bytes()))
            .context("write to standard output")?;
    }
    Ok(())
}

async fn stats(client: &Client, format: Option<&str>, names: Vec<String>) -> anyhow::Result<i32> {
    let names = match names.is_empty() {
        false => names,
        true => {
            let all = client.get("/hyper/v1/pods").await?;
            let up = all.as_array().into_iter().flatten().filter(|pod| pod["status"] == "running");
            up.filter_map(|pod| pod["id"].as_str()).map(str::to_owned).collect()
        }
    };
    let mut rows = Vec::new();
    for name in names {
        let pod = get(client, &name).await?;
        let report = &pod["report"];
        if report.is_null() {
            bail!("pod `{name}` is not running: start it with `hyper pod start {name}`");
        }
        let size = |key: &str| output::size(report[key].as_i64().unwrap_or_default());
        rows.push(BTreeMap::from([
            ("ID", short(pod["id"].as_str().unwrap_or_default(), false)),
            ("Name", pod["name"].as_str().unwrap_or_default().to_owned()),
            ("Hypervisor", report["hypervisor"].as_str().unwrap_or_default().to_owned()),
            ("VCPUs", report["vcpus"].to_string()),
            (
                "Guest",
                format!(
                    "{} / {}",
                    size("guest_memory_used_bytes"),
                    size("guest_memory_total_bytes")
                ),
            ),
            ("HypervisorMemory", size("hypervisor_resident_bytes")),
            ("SupervisorMemory", size("supervisor_resident_bytes")),
            ("Private", {
                let of = |key: &str| report[key].as_i64().unwrap_or_default();
                let sum = of("hypervisor_private_bytes") + of("supervisor_private_bytes");
                output::size(sum)
            }),
        ]));
    }
    let columns = [
        ("POD ID", "ID"),
        ("NAME", "Name"),
        ("HYPERVISOR", "Hypervisor"),
        ("VCPUS", "VCPUs"),
        ("GUEST USED / TOTAL", "Guest"),
        ("HYPERVISOR RSS", "HypervisorMemory"),
        ("SUPERVISOR RSS", "SupervisorMemory"),
        ("HOST PRIVATE", "Private"),
    ];
    output::print_rows(format, &columns, &rows)?;
    Ok(0)
}
