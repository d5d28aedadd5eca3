//! Whether guests on KVM can be had on this host, for `hyper doctor`.

use std::fs::File;

use hyper_hypervisor::{Finding, Probe};

use crate::{Options, launch};

/// Looks at everything a guest needs.
pub async fn probe(options: &Options, problem: Option<String>) -> Probe {
    let mut found = Vec::new();
    let mut lacking = false;
    let mut look = |what: &str, required: bool, ok: bool, detail: String| {
        lacking |= required && !ok;
        found.push(Finding { what: what.to_owned(), ok, detail });
    };
    match problem {
        None => look("KVM", true, true, "runs kernel code at CPL 0 in 64-bit mode".to_owned()),
        Some(problem) => look("KVM", true, false, problem),
    }
    match launch::program(options) {
        Ok(program) => look("program", true, true, format!("`{}`", program.display())),
        Err(error) => look("program", true, false, error.to_string()),
    }
    if let Some(path) = options.kernel.clone() {
        let shown = path.display().to_string();
        match tokio::task::spawn_blocking(move || File::open(path)).await {
            Ok(Ok(_)) => look("guest kernel", true, true, format!("`{shown}`")),
            Ok(Err(error)) => look("guest kernel", true, false, format!("`{shown}`: {error}")),
            Err(error) => look("guest kernel", true, false, error.to_string()),
        }
    }
    let jail = tokio::task::spawn_blocking(hyper_jail::probe).await.unwrap_or_default();
    for finding in jail {
        look(&finding.what, finding.required, finding.ok, finding.detail);
    }
    let version = Some(env!("CARGO_PKG_VERSION").to_owned());
    Probe { usable: !lacking, version, findings: found }
}
