//! `restart rename update top stats`: what goes on in containers, and changing it.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::container::post_each;
use crate::arguments::{
    RestartFlags, StatsFlags, TopFlags, UpdateFlags, bytes, nano_cpus, restart_policy,
};
use crate::client::{Body, Client, quote};
use crate::output;

pub async fn restart(client: &Client, flags: RestartFlags) -> anyhow::Result<i32> {
    let mut query = String::from("restart?");
    if let Some(seconds) = flags.time {
        query.push_str(&format!("t={seconds}&"));
    }
    if let Some(signal) = &flags.signal {
        query.push_str(&format!("signal={}", quote(signal)));
    }
    post_each(client, flags.containers, &query).await
}

pub async fn rename(client: &Client, container: &str, name: &str) -> anyhow::Result<i32> {
    let path = format!("/containers/{}/rename?name={}", quote(container), quote(name));
    client.post(&path, Body::None).await?;
    Ok(0)
}

pub async fn update(client: &Client, flags: UpdateFlags) -> anyhow::Result<i32> {
    let mut body = json!({});
    for (key, flag, value) in [
        ("Memory", "memory", &flags.memory),
        ("MemorySwap", "memory-swap", &flags.memory_swap),
        ("MemoryReservation", "memory-reservation", &flags.memory_reservation),
    ] {
        if let Some(value) = value {
            let number = match value.as_str() {
                "-1" => -1,
                size => bytes(size).with_context(|| format!("--{flag} `{size}`"))?,
            };
            body[key] = json!(number);
        }
    }
    for (key, value) in [
        ("CpuShares", flags.cpu_shares),
        ("CpuPeriod", flags.cpu_period),
        ("CpuQuota", flags.cpu_quota),
        ("PidsLimit", flags.pids_limit),
        ("BlkioWeight", flags.blkio_weight.map(i64::from)),
    ] {
        if let Some(value) = value {
            body[key] = json!(value);
        }
    }
    if let Some(cpus) = flags.cpus {
        body["NanoCpus"] = json!(nano_cpus(cpus)?);
    }
    if let Some(list) = &flags.cpuset_cpus {
        body["CpusetCpus"] = json!(list);
    }
    if let Some(policy) = &flags.restart {
        body["RestartPolicy"] = restart_policy(policy)?;
    }
    let mut code = 0;
    for name in flags.containers {
        let path = format!("/containers/{}/update", quote(&name));
        match client.post(&path, Body::Json(body.clone())).await {
            Ok(answer) => {
                for warning in answer["Warnings"].as_array().into_iter().flatten() {
                    eprintln!("WARNING: {}", warning.as_str().unwrap_or_default());
                }
                println!("{name}");
            }
            Err(error) => {
                eprintln!("hyper: {:#}", anyhow::Error::from(error));
                code = 1;
            }
        }
    }
    Ok(code)
}

pub async fn top(client: &Client, flags: TopFlags) -> anyhow::Result<i32> {
    let arguments = match flags.ps.is_empty() {
        true => "-ef".to_owned(),
        false => flags.ps.join(" "),
    };
    let path = format!("/containers/{}/top?ps_args={}", quote(&flags.container), quote(&arguments));
    let answer = client.get(&path).await?;
    let line = |words: &Value| -> Vec<String> {
        let words = words.as_array().into_iter().flatten();
        words.map(|word| word.as_str().unwrap_or_default().to_owned()).collect()
    };
    let titles = line(&answer["Titles"]);
    let processes = answer["Processes"].as_array().into_iter().flatten().map(line);
    output::print_aligned(std::iter::once(titles).chain(processes));
    Ok(0)
}

pub async fn stats(client: &Client, flags: StatsFlags) -> anyhow::Result<i32> {
    let columns = [
        ("CONTAINER ID", "ID"),
        ("NAME", "Name"),
        ("CPU %", "CPUPerc"),
        ("MEM USAGE / LIMIT", "MemUsage"),
        ("MEM %", "MemPerc"),
        ("NET I/O", "NetIO"),
        ("BLOCK I/O", "BlockIO"),
        ("PIDS", "PIDs"),
    ];
    loop {
        let names = match flags.containers.is_empty() {
            false => flags.containers.clone(),
            true => {
                let all = u8::from(flags.all);
                let list = client.get(&format!("/containers/json?all={all}")).await?;
                let ids = list.as_array().into_iter().flatten();
                ids.filter_map(|item| item["Id"].as_str().map(str::to_owned)).collect()
            }
        };
        // All at once: each look takes a second.
        let looks = names.iter().map(|name| async move {
            let path = format!("/containers/{}/stats?stream=0", quote(name));
            client.get(&path).await.with_context(|| format!("stats of `{name}`"))
        });
        let mut rows = Vec::new();
        for look in futures_util::future::join_all(looks).await {
            match look {
                Ok(stats) => rows.push(row(&stats, flags.no_trunc)),
                // One that is gone meanwhile is no row of all.
                Err(error) if !flags.containers.is_empty() => return Err(error),
                Err(_) => {}
            }
        }
        if !flags.no_stream && std::io::stdout().is_terminal() {
            print!("\x1b[2J\x1b[H");
            std::io::stdout().flush()?;
        }
        output::print_rows(flags.format.as_deref(), &columns, &rows)?;
        if flags.no_stream {
            return Ok(0);
        }
        if rows.is_empty() {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
    }
}

fn row(stats: &Value, whole: bool) -> BTreeMap<&'static str, String> {
    let number = |pointer: &str| stats.pointer(pointer).and_then(Value::as_f64).unwrap_or(0.0);
    let id = stats["id"].as_str().unwrap_or_default();
    // As Docker: the share of the host's time since the look before, of one CPU.
    let used =
        number("/cpu_stats/cpu_usage/total_usage") - number("/precpu_stats/cpu_usage/total_usage");
    let host = number("/cpu_stats/system_cpu_usage") - number("/precpu_stats/system_cpu_usage");
    let share = if host > 0.0 && used > 0.0 {
        used / host * number("/cpu_stats/online_cpus") * 100.0
    } else {
        0.0
    };
    let memory =
        (number("/memory_stats/usage") - number("/memory_stats/stats/inactive_file")).max(0.0);
    let limit = number("/memory_stats/limit");
    let part = if limit > 0.0 { memory / limit * 100.0 } else { 0.0 };
    #[expect(clippy::cast_possible_truncation, reason = "bytes of a host")]
    let size = |bytes: f64| output::size(bytes as i64);
    let network = |key: &str| -> f64 {
        let all = stats["networks"].as_object().into_iter().flatten();
        all.filter_map(|(_, counters)| counters[key].as_f64()).sum()
    };
    let blocks = |operation: &str| -> f64 {
        let all = stats.pointer("/blkio_stats/io_service_bytes_recursive");
        let all = all.and_then(Value::as_array).into_iter().flatten();
        all.filter(|entry| entry["op"] == operation)
            .filter_map(|entry| entry["value"].as_f64())
            .sum()
    };
    let pair = |left: f64, right: f64| format!("{} / {}", size(left), size(right));
    BTreeMap::from([
        ("ID", if whole { id.to_owned() } else { id.chars().take(12).collect() }),
        ("Container", id.to_owned()),
        ("Name", stats["name"].as_str().unwrap_or_default().trim_start_matches('/').to_owned()),
        ("CPUPerc", format!("{share:.2}%")),
        ("MemUsage", pair(memory, limit)),
        ("MemPerc", format!("{part:.2}%")),
        ("NetIO", pair(network("rx_bytes"), network("tx_bytes"))),
        ("BlockIO", pair(blocks("read"), blocks("write"))),
        ("PIDs", format!("{}", number("/pids_stats/current"))),
    ])
}
