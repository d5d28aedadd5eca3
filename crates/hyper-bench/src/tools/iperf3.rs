//! iperf3's JSON, of TCP and UDP, either way and any number of streams.

use super::{Figures, ToolError, json, unknown};

pub(super) fn read(output: &str) -> Result<Figures, ToolError> {
    let report = json("iperf3", output)?;
    if let Some(said) = report["error"].as_str() {
        return Err(ToolError::Failed { tool: "iperf3", said: super::excerpt(said) });
    }
    let end = &report["end"];
    let arrived = &end["sum_received"];
    let (Some(rate), Some(bytes)) =
        (arrived["bits_per_second"].as_f64(), arrived["bytes"].as_f64())
    else {
        return unknown("iperf3", "`end.sum_received`", output);
    };
    let mut figures = Figures::from([("rate", rate / 1e9), ("gbit", bytes * 8.0 / 1e9)]);
    if let Some(lost) = end["sum"]["lost_percent"].as_f64() {
        figures.insert("lost", lost);
    }
    Ok(figures)
}
