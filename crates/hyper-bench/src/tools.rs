//! What the tools print, as figures.
//!
//! Each reader takes a tool's whole output and gives figures by a short name, in the units documented there. The bytes
//! come out of a container and are judged as such: bounded, every figure finite.

mod fio;
mod iperf3;
mod plain;
mod stress_ng;
mod sysbench;
mod wrk;

use std::collections::BTreeMap;

/// Longest output of one tool that is read.
pub const MAX_OUTPUT: usize = 1 << 20;

/// Figures by name.
pub type Figures = BTreeMap<&'static str, f64>;

/// Whose output it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// `sysbench cpu`: `rate` events/s, `min`, `avg`, `p95`, `max` ms, `per10000` s for 10000 events.
    SysbenchCpu,
    /// `sysbench memory`: `rate` MiB/s.
    SysbenchMemory,
    /// `sysbench` with a script whose events are 1000 system calls each: `call` µs.
    SysbenchCalls,
    /// `sysbench oltp_*`: `rate` transactions/s, `p95` ms.
    SysbenchOltp,
    /// `fio --output-format=json` of one job that reads or writes: `rate` MiB/s, `iops` 1/s, `p99` µs.
    Fio,
    /// `iperf3 --json`: `rate` Gbit/s that arrived, `gbit` Gbit in all, `lost` % of datagrams.
    Iperf3,
    /// `stress-ng --metrics --yaml FILE` of one stressor: `rate` bogo-ops/s of real time, `fault` ns per page fault.
    StressNg,
    /// `wrk --latency`: `rate` requests/s, `p99` ms, `failed` % of requests.
    Wrk,
    /// `sockperf ping-pong`: `p50`, `p99` µs for a whole round trip.
    Sockperf,
    /// `/proc/meminfo`: `used` MiB that are not available any more, `total` MiB.
    Meminfo,
}

/// Why an output is no figure.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    #[error("{tool} printed {bytes} bytes: more than {MAX_OUTPUT} are not read")]
    TooLong { tool: &'static str, bytes: usize },
    #[error("{tool} did not print {wanted}, but: {printed}")]
    Unknown { tool: &'static str, wanted: &'static str, printed: String },
    #[error("{tool} says: {said}")]
    Failed { tool: &'static str, said: String },
}

impl Tool {
    pub const ALL: [Self; 10] = [
        Self::SysbenchCpu,
        Self::SysbenchMemory,
        Self::SysbenchCalls,
        Self::SysbenchOltp,
        Self::Fio,
        Self::Iperf3,
        Self::StressNg,
        Self::Wrk,
        Self::Sockperf,
        Self::Meminfo,
    ];

    /// The program's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SysbenchCpu | Self::SysbenchMemory | Self::SysbenchCalls | Self::SysbenchOltp => {
                "sysbench"
            }
            Self::Fio => "fio",
            Self::Iperf3 => "iperf3",
            Self::StressNg => "stress-ng",
            Self::Wrk => "wrk",
            Self::Sockperf => "sockperf",
            Self::Meminfo => "/proc/meminfo",
        }
    }

    /// The figures in its output.
    ///
    /// # Errors
    /// [`ToolError`].
    pub fn read(self, output: &str) -> Result<Figures, ToolError> {
        if output.len() > MAX_OUTPUT {
            return Err(ToolError::TooLong { tool: self.name(), bytes: output.len() });
        }
        let mut figures = match self {
            Self::SysbenchCpu => sysbench::cpu(output),
            Self::SysbenchMemory => sysbench::memory(output),
            Self::SysbenchCalls => sysbench::calls(output),
            Self::SysbenchOltp => sysbench::oltp(output),
            Self::Fio => fio::read(output),
            Self::Iperf3 => iperf3::read(output),
            Self::StressNg => stress_ng::read(output),
            Self::Wrk => wrk::read(output),
            Self::Sockperf => plain::sockperf(output),
            Self::Meminfo => plain::meminfo(output),
        }?;
        figures.retain(|_, value| value.is_finite());
        Ok(figures)
    }
}

fn unknown<T>(tool: &'static str, wanted: &'static str, output: &str) -> Result<T, ToolError> {
    Err(ToolError::Unknown { tool, wanted, printed: excerpt(output) })
}

/// The end of a text, as it fits in an error: one line, control characters gone.
#[must_use]
pub fn excerpt(text: &str) -> String {
    const LONGEST: usize = 300;
    let words: Vec<&str> = text.split_whitespace().collect();
    let line: String = words.join(" ").chars().filter(|c| !c.is_control()).collect();
    if line.is_empty() {
        return "nothing".into();
    }
    let length = line.chars().count();
    match length > LONGEST {
        true => format!("…{}", line.chars().skip(length - LONGEST).collect::<String>()),
        false => line,
    }
}

/// The first number after `label`; labels end where the number begins, but for spaces.
fn after(text: &str, label: &str) -> Option<f64> {
    let (_, rest) = text.split_once(label)?;
    let rest = rest.trim_start();
    let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

/// JSON that may follow other words, such as warnings.
fn json(tool: &'static str, output: &str) -> Result<serde_json::Value, ToolError> {
    let start = output.find('{').unwrap_or(0);
    let mut values = serde_json::Deserializer::from_str(&output[start..]).into_iter();
    match values.next() {
        Some(Ok(value)) => Ok(value),
        _ => unknown(tool, "JSON", output),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    /// What a tool of Debian 12 printed in a container.
    fn captured(name: &str) -> String {
        let path = format!("{}/captured/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(path).unwrap()
    }

    fn figure(tool: Tool, name: &str, figure: &str) -> f64 {
        tool.read(&captured(name)).unwrap()[figure]
    }

    #[test]
    fn figures_of_real_outputs() {
        for (tool, name, key, wanted) in [
            (Tool::SysbenchCpu, "sysbench-cpu.txt", "rate", 2102.83),
            (Tool::SysbenchCpu, "sysbench-cpu.txt", "max", 22.47),
            (Tool::SysbenchCpu, "sysbench-cpu.txt", "avg", 0.47),
            (Tool::SysbenchMemory, "sysbench-memory.txt", "rate", 18737.74),
            (Tool::SysbenchCalls, "sysbench-calls.txt", "call", 0.925_976_385),
            (Tool::SysbenchOltp, "sysbench-oltp.txt", "rate", 324.83),
            (Tool::SysbenchOltp, "sysbench-oltp.txt", "p95", 6.91),
            (Tool::Fio, "fio-write.json", "iops", 1486.513487),
            (Tool::Fio, "fio-write.json", "p99", 3883.008),
            (Tool::Iperf3, "iperf3-tcp.json", "rate", 17.513_835_004_749_29),
            (Tool::Iperf3, "iperf3-udp.json", "lost", 66.467_678_100_263_85),
            (Tool::Wrk, "wrk.txt", "rate", 38977.98),
            (Tool::Wrk, "wrk.txt", "p99", 5.75),
            (Tool::Wrk, "wrk.txt", "failed", 0.0),
            (Tool::Sockperf, "sockperf.txt", "p50", 6.628),
        ] {
            let seen = figure(tool, name, key);
            assert!((seen - wanted).abs() < 1e-6, "{name} {key}: {seen}");
        }
        assert!(figure(Tool::Fio, "fio-randread.json", "iops") > 1000.0);
        assert!(figure(Tool::StressNg, "stress-ng-fault.yaml", "fault") > 100.0);
        let used = figure(Tool::Meminfo, "meminfo.txt", "used");
        assert!(used > 1.0 && used < figure(Tool::Meminfo, "meminfo.txt", "total"), "{used}");
    }

    #[test]
    fn other_words_are_errors_that_name_the_tool_and_what_was_printed() {
        for tool in Tool::ALL {
            let error = tool.read("Killed\n").unwrap_err().to_string();
            assert!(error.contains(tool.name()) && error.contains("Killed"), "{error}");
            let error = tool.read(&"x".repeat(MAX_OUTPUT + 1)).unwrap_err();
            assert!(matches!(error, ToolError::TooLong { .. }));
        }
        let refused = Tool::Iperf3.read("{\"error\": \"unable to connect\"}").unwrap_err();
        assert_eq!(refused.to_string(), "iperf3 says: unable to connect");
        let failed = Tool::Fio.read("{\"jobs\": [{\"error\": 28}]}").unwrap_err().to_string();
        assert!(failed.contains("28"));
    }

    #[test]
    fn outputs_cut_anywhere_give_figures_or_errors_but_never_end_the_program() {
        for name in [
            "sysbench-cpu.txt",
            "fio-write.json",
            "wrk.txt",
            "stress-ng-fault.yaml",
            "sockperf.txt",
        ] {
            let text = captured(name);
            for end in (0..text.len()).filter(|end| text.is_char_boundary(*end)).step_by(7) {
                for tool in Tool::ALL {
                    if let Ok(figures) = tool.read(&text[..end]) {
                        assert!(figures.values().all(|value| value.is_finite()));
                    }
                }
            }
        }
    }

    #[test]
    fn excerpts_are_one_bounded_line() {
        assert_eq!(excerpt(" a\n\u{1b}[2J b "), "a [2J b");
        assert_eq!(excerpt(""), "nothing");
        assert!(excerpt(&"word ".repeat(1000)).chars().count() <= 301);
    }
}
