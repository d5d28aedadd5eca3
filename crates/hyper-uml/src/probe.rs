//! Whether this host runs user-mode Linux: by booting the kernel in its jail, without an
//! initramfs. One that comes as far as missing its root file system works.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hyper_hypervisor::{Finding, GuestKernel, Probe, Vm, VmConfig, VmExit};
use tokio::process::Command;
use tokio::time::timeout;

use crate::{MIN_MEMORY_BYTES, Options, Separation, chain, launch};

const PATIENCE: Duration = Duration::from_secs(20);

/// Looks at jail, host and kernel.
pub async fn probe(options: &Options) -> Probe {
    let jail = tokio::task::spawn_blocking(hyper_jail::probe).await.unwrap_or_default();
    let mut usable = jail.iter().all(|found| found.ok || !found.required);
    let mut findings: Vec<Finding> = jail
        .into_iter()
        .map(|found| Finding { what: found.what, ok: found.ok, detail: found.detail })
        .collect();
    if options.separation == Separation::Ptrace {
        findings.push(tracing());
    }
    let Some(kernel) = &options.kernel else {
        findings.push(finding("kernel", false, "none is configured: install hyperkernel-um"));
        return Probe { usable: false, version: None, findings };
    };
    let version = say(kernel, "--version").await;
    let detail = version.clone().unwrap_or_else(|error| error);
    let name = format!("kernel `{}`", kernel.display());
    findings.push(finding(&name, version.is_ok(), &detail));
    usable &= version.is_ok();
    if version.is_ok() {
        findings.push(disks(options, kernel).await);
        let booted = boot(options, kernel).await;
        usable &= booted.ok;
        findings.push(booted);
    }
    Probe { usable, version: version.ok(), findings }
}

fn finding(what: &str, ok: bool, detail: &str) -> Finding {
    Finding { what: what.to_owned(), ok, detail: detail.to_owned() }
}

/// Yama may forbid a process to be traced by its parent.
fn tracing() -> Finding {
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    match scope.as_deref().map(str::trim) {
        Ok(scope @ ("2" | "3")) => {
            let detail = format!("kernel.yama.ptrace_scope is {scope}: set it to 0 or 1");
            finding("ptrace", false, &detail)
        }
        _ => finding("ptrace", true, "a process may trace its children"),
    }
}

/// First line that the kernel prints for an option.
async fn say(kernel: &Path, option: &str) -> Result<String, String> {
    let run = Command::new(kernel).arg(option).env_clear().kill_on_drop(true).output();
    let output = match timeout(PATIENCE, run).await {
        Err(_) => return Err(format!("`{option}` did not end within {PATIENCE:?}")),
        Ok(Err(error)) => return Err(format!("cannot be executed: {error}")),
        Ok(Ok(output)) => output,
    };
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().next() {
        Some(line) if output.status.success() => Ok(line.trim().chars().take(100).collect()),
        _ => Err(format!("`{option}` gave {}", output.status)),
    }
}

/// Whether the kernel has as many block devices as we were told.
async fn disks(options: &Options, kernel: &Path) -> Finding {
    let run = Command::new(kernel).arg("--help").env_clear().kill_on_drop(true).output();
    let text = match timeout(PATIENCE, run).await {
        Ok(Ok(output)) => String::from_utf8_lossy(&output.stdout).into_owned(),
        _ => String::new(),
    };
    let wanted = format!("0 to {}.", options.max_disks.saturating_sub(1));
    if text.contains(&wanted) || options.max_disks <= 16 {
        finding("kernel: disks", true, &format!("{} block devices", options.max_disks))
    } else {
        let detail = format!(
            "the kernel is not patched for {} block devices: use hyperkernel-um, or configure 16",
            options.max_disks
        );
        finding("kernel: disks", false, &detail)
    }
}

async fn boot(options: &Options, kernel: &Path) -> Finding {
    let config = VmConfig {
        id: format!("probe-uml-{}", std::process::id()),
        kernel: GuestKernel {
            kernel: kernel.to_owned(),
            initramfs: PathBuf::new(),
            extra_cmdline: Vec::new(),
        },
        vcpus: 1,
        memory_bytes: MIN_MEMORY_BYTES,
        disks: Vec::new(),
        nics: Vec::new(),
        share: None,
        run_dir: PathBuf::new(),
        cgroup: None,
    };
    let started = Instant::now();
    let guest = match launch::start(options, config, false).await {
        Ok(guest) => guest,
        Err(error) => return finding("boots", false, &chain(&error)),
    };
    let ended = timeout(PATIENCE, guest.wait()).await;
    let took = started.elapsed().as_millis();
    guest.kill().await;
    match ended {
        Ok(VmExit::Panicked { message }) if message.contains("root fs") => {
            finding("boots", true, &format!("as far as its root file system, in {took} ms"))
        }
        Ok(other) => finding("boots", false, &format!("the trial ended as {other:?}")),
        Err(_) => finding("boots", false, &format!("not within {PATIENCE:?}")),
    }
}
