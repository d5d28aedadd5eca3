//! sockperf's report, and the kernel's `meminfo`.

use super::{Figures, ToolError, after, unknown};

pub(super) fn sockperf(output: &str) -> Result<Figures, ToolError> {
    let mut figures = Figures::new();
    for (name, label) in [("p50", "percentile 50.000 ="), ("p99", "percentile 99.000 =")] {
        match after(output, label) {
            // sockperf tells half a round trip.
            Some(half) => drop(figures.insert(name, half * 2.0)),
            None => return unknown("sockperf", "percentiles", output),
        }
    }
    Ok(figures)
}

pub(super) fn meminfo(output: &str) -> Result<Figures, ToolError> {
    let (total, free) = (after(output, "MemTotal:"), after(output, "MemAvailable:"));
    let (Some(total), Some(free)) = (total, free) else {
        return unknown("/proc/meminfo", "`MemTotal:` and `MemAvailable:`", output);
    };
    Ok(Figures::from([("used", (total - free) / 1024.0), ("total", total / 1024.0)]))
}
