//! `info` and `version`.

use serde_json::{Value, json};

use crate::client::Client;
use crate::output::Format;

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
        let names: Vec<_> = runtimes.keys().map(String::as_str).collect();
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

fn print_formatted(value: &Value, format: Option<&str>) -> anyhow::Result<bool> {
    match format {
        None => return Ok(false),
        Some("json") => println!("{value}"),
        Some(text) => println!("{}", Format::parse(text)?.render(value)?),
    }
    Ok(true)
}
