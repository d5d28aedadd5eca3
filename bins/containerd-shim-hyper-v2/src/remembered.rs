//! A hypervisor whose probe is remembered for the host.
//!
//! A probe runs a jail or guest code to know, 50 to 100 ms that every `docker run` would pay.
//! ```text
//! probe ─ file younger than AGE, same kernel? ─yes─► usable
//!            └ no ─► ask ─ usable ─► write file
//! launch ─ fails ─► remove file: the next probe asks again
//! ```
//! Failures are remembered only when that is asked for: what was missing may come. The memory of
//! one ends when KVM's device changes, too.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use hyper_hypervisor::{Capabilities, Disk, Hypervisor, Probe, Vm, VmConfig, VmError};
use serde::{Deserialize, Serialize};

const AGE: Duration = Duration::from_secs(3600);

/// The hypervisor, and the file.
pub struct Remembered<H> {
    inner: H,
    kernel: PathBuf,
    file: PathBuf,
    failures: bool,
}

/// What a hypervisor may be missing.
const DEVICE: &str = "/dev/kvm";

#[derive(Debug, Serialize, Deserialize)]
struct Memory {
    /// Program and kernel that were probed.
    of: String,
    probe: Probe,
}

impl<H: Hypervisor> Remembered<H> {
    /// Remembers in `dir`, which does not outlive a boot.
    pub fn new(inner: H, kernel: PathBuf, dir: &Path) -> Self {
        let file = dir.join(format!("probe-{}.json", inner.name()));
        Self { inner, kernel, file, failures: false }
    }

    /// Remembers that it is not usable as well.
    pub fn failures_too(self) -> Self {
        Self { failures: true, ..self }
    }

    fn recall(&self) -> Option<Probe> {
        let written = std::fs::metadata(&self.file).ok()?.modified().ok()?;
        // A clock that was set back makes the age an error.
        if SystemTime::now().duration_since(written).ok()? > AGE {
            return None;
        }
        let memory: Memory = serde_json::from_slice(&std::fs::read(&self.file).ok()?).ok()?;
        (memory.of == self.of()).then_some(memory.probe)
    }

    fn keep(&self, probe: &Probe) -> std::io::Result<()> {
        if let Some(dir) = self.file.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let new = self.file.with_extension(std::process::id().to_string());
        let memory = Memory { of: self.of(), probe: probe.clone() };
        std::fs::write(&new, serde_json::to_vec(&memory)?)?;
        std::fs::rename(&new, &self.file)
    }

    fn of(&self) -> String {
        let stamp = |path: &Path| {
            let meta = std::fs::metadata(path).ok()?;
            Some((meta.len(), meta.modified().ok()?))
        };
        let program = std::env::current_exe().unwrap_or_default();
        let (kernel, device) = (stamp(&self.kernel), stamp(Path::new(DEVICE)));
        format!("{:?} {:?} {kernel:?} {device:?}", stamp(&program), self.kernel)
    }
}

#[async_trait]
impl<H: Hypervisor> Hypervisor for Remembered<H> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn probe(&self) -> Probe {
        if let Some(probe) = self.recall() {
            return probe;
        }
        let probe = self.inner.probe().await;
        if (probe.usable || self.failures)
            && let Err(error) = self.keep(&probe)
        {
            tracing::warn!(path = %self.file.display(), %error, "probe not remembered");
        }
        probe
    }

    async fn launch(&self, config: VmConfig) -> Result<Box<dyn Vm>, VmError> {
        self.inner.launch(config).await.inspect_err(|_| {
            // It may not be there.
            let _ = std::fs::remove_file(&self.file);
        })
    }

    async fn restore(&self, directory: &Path, config: VmConfig) -> Result<Box<dyn Vm>, VmError> {
        self.inner.restore(directory, config).await
    }

    fn guest_devices(&self, disks: &[Disk], disk: usize) -> Vec<String> {
        self.inner.guest_devices(disks, disk)
    }
}
