//! Whether guests on KVM can be had on this host, for `hyper doctor`.

use std::fs::File;

use hyper_adapter::Findings;
use hyper_hypervisor::Probe;
use hyper_vmm::config::HANDS;

use crate::{Options, launch};

/// Looks at everything a guest needs.
pub async fn probe(options: &Options, problem: Option<String>) -> Probe {
    let mut found = Findings::default();
    match problem {
        None => found.required("KVM", true, "runs kernel code at CPL 0 in 64-bit mode"),
        Some(problem) => found.required("KVM", false, problem),
    }
    match launch::program(options) {
        Ok(program) => found.required("program", true, format!("`{}`", program.display())),
        Err(error) => found.required("program", false, error.to_string()),
    }
    if let Some(path) = options.kernel.clone() {
        let shown = path.display().to_string();
        match tokio::task::spawn_blocking(move || File::open(path)).await {
            Ok(Ok(_)) => found.required("guest kernel", true, format!("`{shown}`")),
            Ok(Err(error)) => found.required("guest kernel", false, format!("`{shown}`: {error}")),
            Err(error) => found.required("guest kernel", false, error.to_string()),
        }
    }
    if options.io_uring {
        match tokio::task::spawn_blocking(hyper_vmm::io_uring).await {
            Ok(Ok(())) => {
                found.optional("io_uring", true, "disks wait for the host's in its kernel");
            }
            Ok(Err(error)) => {
                let why = format!("{error}: up to {HANDS} threads wait for each disk instead");
                found.optional("io_uring", false, why);
            }
            Err(error) => found.optional("io_uring", false, error.to_string()),
        }
    }
    found.jail().await;
    found.probe(Some(env!("CARGO_PKG_VERSION").to_owned()))
}
