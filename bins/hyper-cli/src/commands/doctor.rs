//! `doctor`: what this host offers. The supervisor looks, because only it knows hypervisors.

use std::process::Command;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::daemon;

pub fn doctor(json: bool) -> anyhow::Result<i32> {
    let program = daemon::supervisor();
    let output = Command::new(&program)
        .arg("probe")
        .output()
        .with_context(|| format!("run `{} probe`", program.display()))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("`{} probe` failed ({}): {}", program.display(), output.status, text.trim());
    }
    let report: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("`{} probe` sent no JSON", program.display()))?;
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        show(&report);
    }
    Ok(i32::from(report["usable"] != true))
}

fn show(report: &Value) {
    let all = ["hypervisors", "runtimes"].map(|key| report[key].as_array());
    for hypervisor in all.into_iter().flatten().flatten() {
        let usable = hypervisor["usable"] == true;
        println!(
            "{} {} (wall: {}){}",
            match (usable, hypervisor["version"].is_string()) {
                (true, _) => "works  ",
                (false, true) => "fails  ",
                (false, false) => "missing",
            },
            hypervisor["name"].as_str().unwrap_or("-"),
            hypervisor["wall"].as_str().unwrap_or("-"),
            hypervisor["version"].as_str().map(|v| format!(", {v}")).unwrap_or_default(),
        );
        print_findings(&hypervisor["findings"]);
    }
    println!("host");
    print_findings(&report["host"]);
    match report["auto"].as_str() {
        Some(name) => println!("runtime `auto` means `{name}` on this host"),
        None => println!("no hypervisor works on this host: see above"),
    }
}

fn print_findings(findings: &Value) {
    for finding in findings.as_array().into_iter().flatten() {
        println!(
            "  {} {}: {}",
            if finding["ok"] == true { "ok" } else { "--" },
            finding["what"].as_str().unwrap_or("-"),
            finding["detail"].as_str().unwrap_or("-"),
        );
    }
}
