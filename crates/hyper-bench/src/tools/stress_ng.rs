//! stress-ng's YAML: flat enough to be read line by line.

use super::{Figures, ToolError, after, unknown};

pub(super) fn read(output: &str) -> Result<Figures, ToolError> {
    let Some((_, metrics)) = output.split_once("metrics:") else {
        return unknown(
            "stress-ng",
            "`metrics:` (a stressor that is not supported there?)",
            output,
        );
    };
    let Some(rate) = after(metrics, "bogo-ops-per-second-real-time:") else {
        return unknown("stress-ng", "`bogo-ops-per-second-real-time:`", metrics);
    };
    if rate <= 0.0 {
        return unknown("stress-ng", "any work done", metrics);
    }
    let mut figures = Figures::from([("rate", rate)]);
    if let Some(ns) = after(metrics, "nanosecs-per-page-fault:") {
        figures.insert("fault", ns);
    }
    Ok(figures)
}
