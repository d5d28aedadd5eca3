//! sysbench 1.0's plain reports.

use super::{Figures, ToolError, after, unknown};

pub(super) fn cpu(output: &str) -> Result<Figures, ToolError> {
    let Some(rate) = after(output, "events per second:") else {
        return unknown("sysbench", "`events per second:`", output);
    };
    let mut figures = latencies(output)?;
    figures.insert("rate", rate);
    figures.insert("per10000", 10_000.0 / rate);
    Ok(figures)
}

pub(super) fn memory(output: &str) -> Result<Figures, ToolError> {
    // `18822.77 MiB transferred (18737.74 MiB/sec)`
    match after(output, "MiB transferred (") {
        Some(rate) => Ok(Figures::from([("rate", rate)])),
        None => unknown("sysbench", "`MiB transferred (`", output),
    }
}

/// Events of 1000 calls each.
pub(super) fn calls(output: &str) -> Result<Figures, ToolError> {
    let events = after(output, "total number of events:").filter(|events| *events > 0.0);
    match (after(output, "total time:"), events) {
        (Some(seconds), Some(events)) => Ok(Figures::from([("call", seconds * 1e3 / events)])),
        _ => unknown("sysbench", "`total time:` and `total number of events:`", output),
    }
}

pub(super) fn oltp(output: &str) -> Result<Figures, ToolError> {
    // `transactions:                        2040   (1016.96 per sec.)`
    let line = output.lines().find(|line| line.trim_start().starts_with("transactions:"));
    let Some(rate) = line.and_then(|line| after(line, "(")) else {
        return unknown("sysbench", "`transactions:`", output);
    };
    let mut figures = latencies(output)?;
    figures.insert("rate", rate);
    Ok(figures)
}

fn latencies(output: &str) -> Result<Figures, ToolError> {
    let Some((_, part)) = output.split_once("Latency (ms):") else {
        return unknown("sysbench", "`Latency (ms):`", output);
    };
    let mut figures = Figures::new();
    for (name, label) in
        [("min", "min:"), ("avg", "avg:"), ("max", "max:"), ("p95", "95th percentile:")]
    {
        match after(part, label) {
            Some(value) => drop(figures.insert(name, value)),
            None => return unknown("sysbench", "a latency", part),
        }
    }
    Ok(figures)
}
