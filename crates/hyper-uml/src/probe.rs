//! Whether this host runs user-mode Linux: by booting the kernel in its jail, without an
//! initramfs. One that comes as far as missing its root file system works.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hyper_adapter::{Findings, chain};
use hyper_hypervisor::{GuestKernel, Probe, Vm, VmConfig, VmExit};
use tokio::process::Command;
use tokio::time::timeout;

use crate::{MIN_MEMORY_BYTES, Options, Separation, launch};

const PATIENCE: Duration = Duration::from_secs(20);

/// Looks at jail, host and kernel.
pub async fn probe(options: &Options) -> Probe {
    let mut found = Findings::default();
    found.jail().await;
    if options.separation == Separation::Ptrace {
        let (ok, detail) = tracing();
        found.optional("ptrace", ok, detail);
    }
    let Some(kernel) = &options.kernel else {
        found.required("kernel", false, "none is configured: install hyperkernel-um");
        return found.probe(None);
    };
    let name = format!("kernel `{}`", kernel.display());
    let version = match say(kernel, "--version").await {
        Ok(version) => version,
        Err(why) => {
            found.required(&name, false, why);
            return found.probe(None);
        }
    };
    found.required(&name, true, version.clone());
    let (ok, detail) = disks(options, kernel).await;
    found.optional("kernel: disks", ok, detail);
    let (ok, detail) = boot(options, kernel).await;
    found.required("boots", ok, detail);
    found.probe(Some(version))
}

/// Yama may forbid a process to be traced by its parent.
fn tracing() -> (bool, String) {
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    match scope.as_deref().map(str::trim) {
        Ok(scope @ ("2" | "3")) => {
            (false, format!("kernel.yama.ptrace_scope is {scope}: set it to 0 or 1"))
        }
        _ => (true, "a process may trace its children".to_owned()),
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
async fn disks(options: &Options, kernel: &Path) -> (bool, String) {
    let run = Command::new(kernel).arg("--help").env_clear().kill_on_drop(true).output();
    let text = match timeout(PATIENCE, run).await {
        Ok(Ok(output)) => String::from_utf8_lossy(&output.stdout).into_owned(),
        _ => String::new(),
    };
    let wanted = format!("0 to {}.", options.max_disks.saturating_sub(1));
    if text.contains(&wanted) || options.max_disks <= 16 {
        (true, format!("{} block devices", options.max_disks))
    } else {
        let detail = format!(
            "the kernel is not patched for {} block devices: use hyperkernel-um, or configure 16",
            options.max_disks
        );
        (false, detail)
    }
}

async fn boot(options: &Options, kernel: &Path) -> (bool, String) {
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
        late_disks: false,
        share: None,
        run_dir: PathBuf::new(),
        cgroup: None,
    };
    let started = Instant::now();
    let guest = match launch::start(options, config, false).await {
        Ok(guest) => guest,
        Err(error) => return (false, chain(&error)),
    };
    let ended = timeout(PATIENCE, guest.wait()).await;
    let took = started.elapsed().as_millis();
    guest.kill().await;
    match ended {
        Ok(VmExit::Panicked { message }) if message.contains("root fs") => {
            (true, format!("as far as its root file system, in {took} ms"))
        }
        Ok(other) => (false, format!("the trial ended as {other:?}")),
        Err(_) => (false, format!("not within {PATIENCE:?}")),
    }
}
