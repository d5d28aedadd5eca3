//! wrk's report with `--latency`.

use super::{Figures, ToolError, after, unknown};

pub(super) fn read(output: &str) -> Result<Figures, ToolError> {
    let Some(rate) = after(output, "Requests/sec:") else {
        return unknown("wrk", "`Requests/sec:`", output);
    };
    let mut figures = Figures::from([("rate", rate)]);
    let line = output.lines().find_map(|line| line.trim().strip_prefix("99%"));
    if let Some(ms) = line.and_then(milliseconds) {
        figures.insert("p99", ms);
    }
    // `  42890 requests in 1.10s, 51.70MB read`
    let line = output.lines().find(|line| line.contains(" requests in "));
    let requests = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    let Some(requests) = requests.filter(|requests| *requests > 0.0) else {
        return unknown("wrk", "any request answered", output);
    };
    let refused = after(output, "Non-2xx or 3xx responses:").unwrap_or(0.0);
    let broken: f64 = ["connect ", "read ", "write ", "timeout "]
        .iter()
        .filter_map(|label| after(output.split_once("Socket errors:")?.1, label))
        .sum();
    figures.insert("failed", (refused + broken) * 100.0 / (requests + broken));
    Ok(figures)
}

/// `5.75ms`, `336.00us`, `1.20s`, `1.00m`
fn milliseconds(text: &str) -> Option<f64> {
    let text = text.trim();
    let units = [("us", 1e-3), ("ms", 1.0), ("s", 1e3), ("m", 6e4)];
    let (number, scale) =
        units.iter().find_map(|(unit, scale)| Some((text.strip_suffix(unit)?, scale)))?;
    Some(number.parse::<f64>().ok()? * scale)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn units_of_latencies() {
        let of = |text| milliseconds(text).unwrap();
        assert!((of(" 336.00us") - 0.336).abs() < 1e-9 && (of("1.20s") - 1200.0).abs() < 1e-9);
        assert!((of("5.75ms") - 5.75).abs() < 1e-9 && milliseconds("soon").is_none());
    }

    #[test]
    fn errors_are_a_share() {
        let text = "  90 requests in 1.00s, 1MB read\n  Socket errors: connect 0, read 4, write 0, timeout 6\nRequests/sec: 90.00\n";
        assert!((read(text).unwrap()["failed"] - 10.0).abs() < 1e-9);
    }
}
