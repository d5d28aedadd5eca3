//! `bench vmm`: bare guests of each hypervisor; the supervisor measures, because only it knows them.
//!
//! Figures are of guests without containers, disks and networks: kernel and agent, one CPU,
//! 128 MiB. What a copy of a saved guest has of its own is what a template's pods will cost.

use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde_json::Value;

use super::quantile;
use crate::arguments::BenchVmmFlags;
use crate::daemon;

/// Key of the report, what it is, and what one unit of it is divided by to be shown.
const ROWS: [(&str, &str, f64); 6] = [
    ("launch_to_agent", "launch to agent, ms", 1e3),
    ("exits_to_agent", "exits until then", 1.0),
    ("shutdown_to_gone", "shutdown to gone, ms", 1e3),
    ("private_bytes", "private memory, MB", 1e6),
    ("restore_to_answer", "copy: restore to answer, ms", 1e3),
    ("copy_private_bytes", "copy: private memory, MB", 1e6),
];

/// Runs the supervisor's measurement and shows it.
pub fn vmm(flags: &BenchVmmFlags) -> anyhow::Result<i32> {
    let program = daemon::supervisor();
    // Saved guests are files: in memory they would count twice.
    let directory = tempfile::Builder::new().prefix("hyper-bench").tempdir_in("/var/tmp");
    let directory = directory.context("make a directory in /var/tmp")?;
    open_to_jails(directory.path())?;
    eprintln!("bench: {} guests of each hypervisor, in turn", flags.runs + 1);
    let output = Command::new(&program)
        .args(["-runs", &flags.runs.to_string(), "-bundle"])
        .arg(directory.path())
        .arg("bench")
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("run `{} bench`", program.display()))?;
    if !output.status.success() {
        bail!("`{} bench` failed ({})", program.display(), output.status);
    }
    let report: Vec<Value> = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("`{} bench` sent no JSON", program.display()))?;
    if flags.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        show(&report);
    }
    let measured =
        |one: &Value| one["launch_to_agent"].as_array().is_some_and(|all| !all.is_empty());
    Ok(i32::from(!report.iter().any(measured)))
}

/// The jails' users go through it to their sockets.
fn open_to_jails(path: &std::path::Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o711))
        .with_context(|| format!("open `{}`", path.display()))
}

fn show(report: &[Value]) {
    for one in report {
        println!("{}", one["name"].as_str().unwrap_or("-"));
        for (key, label, unit) in ROWS {
            let mut values: Vec<f64> =
                one[key].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
            if values.is_empty() {
                continue;
            }
            values.sort_by(f64::total_cmp);
            let [median, p95] = [0.5, 0.95].map(|q| quantile(&values, q) / unit);
            println!("  {label:<28} median {median:>9.1}   p95 {p95:>9.1}");
        }
        for failure in one["failures"].as_array().into_iter().flatten() {
            println!("  failed: {}", failure.as_str().unwrap_or("-"));
        }
    }
}
