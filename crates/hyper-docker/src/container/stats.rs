//! `GET /containers/{id}/stats`.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::IntoResponse as _;
use bytes::Bytes;
use hyper_engine::{Stats, View};
use serde_json::{Value, json};

use crate::app::App;
use crate::error::ApiResult;
use crate::request::Query;
use crate::system::host_memory;

const INTERVAL: Duration = Duration::from_secs(1);

pub(crate) async fn stats(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
) -> ApiResult {
    let view = app.engine.container(&id)?;
    let first = Sample::take(&app, &view).await?;
    if !query.flag_or("stream", true) {
        let second = if query.flag("one-shot") || first.stats.is_none() {
            return Ok(Json(document(&view, &first, &Sample::default())).into_response());
        } else {
            tokio::time::sleep(INTERVAL).await;
            Sample::take(&app, &view).await?
        };
        return Ok(Json(document(&view, &second, &first)).into_response());
    }
    let closing = app.closing.clone();
    let begin = (app, view, Sample::default(), Some(first));
    let stream = futures_util::stream::unfold(begin, move |(app, view, before, ready)| {
        let closing = closing.clone();
        async move {
            let sample = match ready {
                Some(sample) => sample,
                None => {
                    closing.run_until_cancelled(tokio::time::sleep(INTERVAL)).await?;
                    // A container that is gone ends the stream.
                    let view = app.engine.container(&view.spec.id).ok()?;
                    Sample::take(&app, &view).await.ok()?
                }
            };
            let line = Bytes::from(format!("{}\n", document(&view, &sample, &before)));
            Some((Ok::<_, std::io::Error>(line), (app, view, sample, None)))
        }
    });
    Ok(([(header::CONTENT_TYPE, "application/json")], Body::from_stream(stream)).into_response())
}

/// Counters at a moment.
#[derive(Debug, Clone, Default)]
struct Sample {
    unix_ns: i64,
    stats: Option<Stats>,
    /// CPU time of the host, all CPUs, all states.
    host_cpu_ns: u64,
    /// What Docker shows as the limit of those that have none.
    host_memory_bytes: u64,
}

impl Sample {
    async fn take(app: &App, view: &View) -> ApiResult<Self> {
        let stats = app.engine.stats(&view.spec.id).await?;
        let host_cpu_ns = match tokio::fs::read_to_string("/proc/stat").await {
            Ok(text) => host_cpu_ns(&text),
            Err(_) => 0,
        };
        let host_memory_bytes = host_memory().await;
        Ok(Self { unix_ns: hyper_stdio::now_ns(), stats, host_cpu_ns, host_memory_bytes })
    }
}

/// The first seven columns of `cpu`, in ticks of 10 ms; proc(5).
fn host_cpu_ns(text: &str) -> u64 {
    let line = text.lines().next().unwrap_or_default();
    let ticks: u64 =
        line.split_whitespace().skip(1).take(7).filter_map(|word| word.parse::<u64>().ok()).sum();
    ticks.saturating_mul(10_000_000)
}

fn document(view: &View, now: &Sample, before: &Sample) -> Value {
    let time = |at: i64| match at {
        0 => "0001-01-01T00:00:00Z".to_owned(),
        at => hyper_stdio::rfc3339_nano(at),
    };
    let stats = now.stats.clone().unwrap_or_default();
    let memory = if now.stats.is_some() {
        json!({
            "usage": stats.memory_bytes,
            "stats": { "inactive_file": stats.memory_inactive_file_bytes },
            "failcnt": stats.memory_failures,
            "limit": stats.memory_limit_bytes.min(now.host_memory_bytes),
        })
    } else {
        json!({})
    };
    let pids = if now.stats.is_some() {
        json!({ "current": stats.pids, "limit": stats.pids_limit })
    } else {
        json!({})
    };
    json!({
        "name": format!("/{}", view.name),
        "id": view.spec.id,
        "read": time(now.unix_ns),
        "preread": time(before.unix_ns),
        "num_procs": 0,
        "pids_stats": pids,
        "cpu_stats": cpu(now),
        "precpu_stats": cpu(before),
        "memory_stats": memory,
        "blkio_stats": {
            "io_service_bytes_recursive": io(stats.read_bytes, stats.write_bytes),
            "io_serviced_recursive": io(stats.read_operations, stats.write_operations),
            "io_queue_recursive": null,
            "io_service_time_recursive": null,
            "io_wait_time_recursive": null,
            "io_merged_recursive": null,
            "io_time_recursive": null,
            "sectors_recursive": null,
        },
        "storage_stats": {},
        "networks": networks(&stats),
    })
}

fn cpu(sample: &Sample) -> Value {
    let stats = sample.stats.clone().unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    json!({
        "cpu_usage": {
            "total_usage": stats.cpu_usage_ns,
            "usage_in_kernelmode": stats.cpu_system_ns,
            "usage_in_usermode": stats.cpu_user_ns,
        },
        "system_cpu_usage": sample.host_cpu_ns,
        "online_cpus": if sample.stats.is_some() { cpus } else { 0 },
        "throttling_data": {
            "periods": stats.cpu_periods,
            "throttled_periods": stats.cpu_throttled_periods,
            "throttled_time": stats.cpu_throttled_ns,
        },
    })
}

fn networks(stats: &Stats) -> Value {
    let each = stats.networks.iter().map(|seen| {
        let counters = json!({
            "rx_bytes": seen.rx_bytes,
            "rx_packets": seen.rx_packets,
            "rx_errors": seen.rx_errors,
            "rx_dropped": seen.rx_dropped,
            "tx_bytes": seen.tx_bytes,
            "tx_packets": seen.tx_packets,
            "tx_errors": seen.tx_errors,
            "tx_dropped": seen.tx_dropped,
        });
        (seen.name.clone(), counters)
    });
    Value::Object(each.collect())
}

fn io(read: u64, write: u64) -> Value {
    json!([
        { "major": 0, "minor": 0, "op": "read", "value": read },
        { "major": 0, "minor": 0, "op": "write", "value": write },
    ])
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_hosts_time() {
        assert_eq!(host_cpu_ns("cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1\n"), 280_000_000);
    }
}
