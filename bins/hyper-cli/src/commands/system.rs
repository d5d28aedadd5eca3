//! `info`, `version` and `system df`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::client::Client;
use crate::output::{self, Format};

pub async fn info(client: &Client, format: Option<String>) -> anyhow::Result<i32> {
    let info = client.get("/info").await?;
    if print_formatted(&info, format.as_deref())? {
        return Ok(0);
    }
    let text = |key: &str| info[key].as_str().unwrap_or("-").to_owned();
    let number = |key: &str| info[key].as_i64().unwrap_or_default();
    println!("Containers: {}", number("Containers"));
    println!(" Running: {}", number("ContainersRunning"));
    println!(" Paused: {}", number("ContainersPaused"));
    println!(" Stopped: {}", number("ContainersStopped"));
    println!("Images: {}", number("Images"));
    println!("Server Version: {}", text("ServerVersion"));
    println!("Storage Driver: {}", text("Driver"));
    println!("Logging Driver: {}", text("LoggingDriver"));
    println!("Default Runtime: {}", text("DefaultRuntime"));
    if let Some(runtimes) = info["Runtimes"].as_object() {
        let names: Vec<_> = runtimes.iter().map(|(name, told)| walled(name, told)).collect();
        println!("Runtimes: {}", names.join(" "));
    }
    println!("Kernel Version: {}", text("KernelVersion"));
    println!("Operating System: {}", text("OperatingSystem"));
    println!("Architecture: {}", text("Architecture"));
    println!("CPUs: {}", number("NCPU"));
    println!("Total Memory: {} MiB", number("MemTotal") >> 20);
    println!("Data Root: {}", text("DockerRootDir"));
    for warning in info["Warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        println!("WARNING: {}", warning.trim_start_matches("WARNING: "));
    }
    Ok(0)
}

/// `runc (shared-kernel)`
fn walled(name: &str, told: &Value) -> String {
    match told["status"]["io.hyper.wall"].as_str() {
        Some(wall) => format!("{name} ({wall})"),
        None => name.to_owned(),
    }
}

pub async fn version(client: &Client, format: Option<String>) -> anyhow::Result<i32> {
    let server = client.get("/version").await?;
    let versions = json!({
        "Client": {"Version": env!("CARGO_PKG_VERSION"), "ApiVersion": "1.47"},
        "Server": server,
    });
    if print_formatted(&versions, format.as_deref())? {
        return Ok(0);
    }
    println!("Client:");
    println!(" Version:      {}", env!("CARGO_PKG_VERSION"));
    println!(" API version:  1.47");
    println!("Server:");
    for (label, key) in [
        ("Version:", "Version"),
        ("API version:", "ApiVersion"),
        ("Minimum API:", "MinAPIVersion"),
        ("Kernel:", "KernelVersion"),
        ("OS/Arch:", "Os"),
    ] {
        let mut value = server[key].as_str().unwrap_or("-").to_owned();
        if key == "Os" {
            value = format!("{value}/{}", server["Arch"].as_str().unwrap_or("-"));
        }
        println!(" {label:<13} {value}");
    }
    Ok(0)
}

/// What images and containers occupy, and how much of it nothing needs.
pub async fn df(client: &Client, verbose: bool, format: Option<&str>) -> anyhow::Result<i32> {
    let usage = client.get("/system/df").await?;
    let items = |key: &str| usage[key].as_array().cloned().unwrap_or_default();
    let number = |item: &Value, key: &str| item[key].as_i64().unwrap_or_default().max(0);
    let (images, containers) = (items("Images"), items("Containers"));
    if verbose {
        return verbose_df(&images, &containers);
    }
    let used: i64 = images
        .iter()
        .filter(|image| number(image, "Containers") > 0)
        .map(|image| number(image, "Size") - number(image, "SharedSize"))
        .sum();
    let layers = number(&usage, "LayersSize");
    let up = |container: &&Value| {
        matches!(container["State"].as_str(), Some("running" | "paused" | "restarting"))
    };
    let written: i64 = containers.iter().map(|one| number(one, "SizeRw")).sum();
    let kept: i64 = containers.iter().filter(up).map(|one| number(one, "SizeRw")).sum();
    let volumes = items("Volumes");
    let volume_bytes: i64 = volumes.iter().map(|one| number(&one["UsageData"], "Size")).sum();
    let mounted = volumes.iter().filter(|one| number(&one["UsageData"], "RefCount") > 0).count();
    let cache = items("BuildCache");
    let cache_bytes: i64 = cache.iter().map(|one| number(one, "Size")).sum();
    let active = images.iter().filter(|image| number(image, "Containers") > 0).count();
    let row = |kind: &str, total: usize, active: usize, size: i64, free: i64| {
        let share = if size > 0 { format!(" ({}%)", free * 100 / size) } else { String::new() };
        BTreeMap::from([
            ("Type", kind.to_owned()),
            ("TotalCount", total.to_string()),
            ("Active", active.to_string()),
            ("Size", output::size(size)),
            ("Reclaimable", format!("{}{share}", output::size(free))),
        ])
    };
    let rows = [
        row("Images", images.len(), active, layers, (layers - used).max(0)),
        row(
            "Containers",
            containers.len(),
            containers.iter().filter(up).count(),
            written,
            written - kept,
        ),
        row("Local Volumes", volumes.len(), mounted, volume_bytes, 0),
        row("Build Cache", cache.len(), 0, cache_bytes, cache_bytes),
    ];
    let columns = [
        ("TYPE", "Type"),
        ("TOTAL", "TotalCount"),
        ("ACTIVE", "Active"),
        ("SIZE", "Size"),
        ("RECLAIMABLE", "Reclaimable"),
    ];
    output::print_rows(format, &columns, &rows)?;
    Ok(0)
}

fn verbose_df(images: &[Value], containers: &[Value]) -> anyhow::Result<i32> {
    let short = |item: &Value, key: &str| -> String {
        let id = item[key].as_str().unwrap_or_default();
        id.strip_prefix("sha256:").unwrap_or(id).chars().take(12).collect()
    };
    let size = |bytes: i64| output::size(bytes.max(0));
    let number = |item: &Value, key: &str| item[key].as_i64().unwrap_or_default();
    let mut rows = Vec::new();
    for image in images {
        let name = image["RepoTags"][0].as_str().unwrap_or("<none>:<none>");
        let (repository, tag) = name.rsplit_once(':').unwrap_or((name, "<none>"));
        let (all, shared) = (number(image, "Size"), number(image, "SharedSize").max(0));
        rows.push(BTreeMap::from([
            ("Repository", repository.to_owned()),
            ("Tag", tag.to_owned()),
            ("ID", short(image, "Id")),
            ("Size", size(all)),
            ("SharedSize", size(shared)),
            ("UniqueSize", size(all - shared)),
            ("Containers", number(image, "Containers").max(0).to_string()),
        ]));
    }
    println!("Images space usage:\n");
    let columns = [
        ("REPOSITORY", "Repository"),
        ("TAG", "Tag"),
        ("IMAGE ID", "ID"),
        ("SIZE", "Size"),
        ("SHARED SIZE", "SharedSize"),
        ("UNIQUE SIZE", "UniqueSize"),
        ("CONTAINERS", "Containers"),
    ];
    output::print_rows(None, &columns, &rows)?;
    println!("\nContainers space usage:\n");
    let rows: Vec<_> = containers
        .iter()
        .map(|one| {
            BTreeMap::from([
                ("ID", short(one, "Id")),
                ("Image", one["Image"].as_str().unwrap_or_default().to_owned()),
                ("Size", size(number(one, "SizeRw"))),
                ("Status", one["Status"].as_str().unwrap_or_default().to_owned()),
            ])
        })
        .collect();
    let columns =
        [("CONTAINER ID", "ID"), ("IMAGE", "Image"), ("SIZE", "Size"), ("STATUS", "Status")];
    output::print_rows(None, &columns, &rows)?;
    Ok(0)
}

fn print_formatted(value: &Value, format: Option<&str>) -> anyhow::Result<bool> {
    match format {
        None => return Ok(false),
        Some("json") => println!("{value}"),
        Some(text) => println!("{}", Format::parse(text)?.render(value)?),
    }
    Ok(true)
}
