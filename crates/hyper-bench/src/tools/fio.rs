//! fio's JSON: one job that either reads or writes.

use super::{Figures, ToolError, json, unknown};

pub(super) fn read(output: &str) -> Result<Figures, ToolError> {
    let report = json("fio", output)?;
    let job = &report["jobs"][0];
    if let Some(error) = job["error"].as_i64().filter(|error| *error != 0) {
        let said = format!("error {error} of its job");
        return Err(ToolError::Failed { tool: "fio", said });
    }
    let done = ["read", "write"].map(|way| &job[way]);
    let done = done.into_iter().find(|way| way["total_ios"].as_u64().is_some_and(|n| n > 0));
    let Some(done) = done else {
        return unknown("fio", "a job that read or wrote", output);
    };
    let number = |value: &serde_json::Value| value.as_f64();
    let (Some(bytes), Some(iops)) = (number(&done["bw_bytes"]), number(&done["iops"])) else {
        return unknown("fio", "`bw_bytes` and `iops`", output);
    };
    let mut figures = Figures::from([("rate", bytes / f64::from(1 << 20)), ("iops", iops)]);
    if let Some(ns) = number(&done["clat_ns"]["percentile"]["99.000000"]) {
        figures.insert("p99", ns / 1e3);
    }
    Ok(figures)
}
