//! Monitors of others, where they are on the `PATH`: the same kernel, initramfs, CPU and memory as
//! guests of `kvm`. Their console, serial or virtio's, is the agent's link, so that its first word is
//! heard on their output. Of the devices that a guest of `kvm` always has they get those they know:
//! entropy, and a balloon that reports free pages.
//!
//! They are started as their users do, without a jail, which the launch of `kvm` counts. None of
//! them takes the guest's order to power off in the same way: it is ended.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::Context as _;
use hyper_hypervisor::Carrier;
use hyper_pod::Flavour;
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};

use super::{Figures, MEMORY, PATIENCE, micros};

/// For all: nothing is said there but by the agent.
const WORDS: &str =
    "quiet loglevel=0 panic=-1 reboot=t 8250.nr_uarts=1 no_timer_check noreplace-smp";
/// Bytes of their words that are told when they fail.
const TOLD: u64 = 2048;

type Arguments = fn(&Flavour, &Path) -> anyhow::Result<Vec<String>>;

const KNOWN: [(&str, Arguments); 2] =
    [("firecracker", firecracker), ("cloud-hypervisor", cloud_hypervisor)];

/// One that is here.
pub(super) struct Other {
    program: PathBuf,
    arguments: Vec<String>,
    pub figures: Figures,
}

/// Those on the `PATH`, for guests of `flavour`; `directory` is for their files.
pub(super) fn found(flavour: &Flavour, directory: &Path) -> anyhow::Result<Vec<Other>> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut others = Vec::new();
    for (name, arguments) in KNOWN {
        let programs = std::env::split_paths(&path).map(|directory| directory.join(name));
        if let Some(program) = programs.into_iter().find(|program| program.is_file()) {
            let arguments = arguments(flavour, directory)?;
            let figures = Figures { name: name.to_owned(), ..Figures::default() };
            others.push(Other { program, arguments, figures });
        }
    }
    Ok(others)
}

impl Other {
    pub async fn round(&mut self, counts: bool) {
        match self.boot().await {
            Ok((ready, bytes)) if counts => {
                self.figures.launch_to_agent.push(ready);
                self.figures.private_bytes.push(bytes);
            }
            Ok(_) => {}
            Err(error) => self.figures.failures.push(format!("{error:#}")),
        }
    }

    /// A guest until its agent's first word; and the bytes that it has by then.
    async fn boot(&self) -> anyhow::Result<(u64, u64)> {
        let started = Instant::now();
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start `{}`", self.program.display()))?;
        let (output, input) = (child.stdout.take(), child.stdin.take());
        let (output, input) = (output.context("its output")?, input.context("its input")?);
        let mut carrier: Box<dyn Carrier> = Box::new(tokio::io::join(output, input));
        let heard = hyper_link::hear(&mut carrier, PATIENCE).await;
        let ready = micros(started);
        let used = child.id().map(|pid| hyper_jail::usage_of(&[pid]));
        child.start_kill().context("end it")?;
        if let Err(error) = heard {
            anyhow::bail!("its agent: {error}; it said: {:?}", last_words(&mut child).await);
        }
        child.wait().await.context("wait for its end")?;
        let used = used.context("it has ended")?.context("read its usage")?;
        Ok((ready, used.private_bytes))
    }
}

async fn last_words(child: &mut Child) -> String {
    let mut words = Vec::new();
    if let Some(errors) = child.stderr.take() {
        // What can be read is told.
        let read = async { errors.take(TOLD).read_to_end(&mut words).await };
        let _ = tokio::time::timeout(PATIENCE, read).await;
    }
    String::from_utf8_lossy(&words).trim().to_owned()
}

fn words(flavour: &Flavour, own: &str) -> String {
    let extra = flavour.extra_cmdline.join(" ");
    format!("{WORDS} {own} {extra}").trim_end().to_owned()
}

/// A file of settings in place of its API (docs/getting-started.md of Firecracker). The interrupt of
/// its serial port is in its MP table, and in its ACPI tables only for kernels with PNP.
fn firecracker(flavour: &Flavour, directory: &Path) -> anyhow::Result<Vec<String>> {
    let settings = json!({
        "boot-source": {
            "kernel_image_path": flavour.kernel,
            "initrd_path": flavour.initramfs,
            "boot_args": words(flavour, "hyper.link=/dev/ttyS0 pci=off acpi=off"),
        },
        "drives": [],
        "entropy": {},
        "balloon": { "amount_mib": 0, "deflate_on_oom": false, "free_page_reporting": true },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": MEMORY >> 20 },
    });
    let file = directory.join("firecracker.json");
    std::fs::write(&file, settings.to_string())
        .with_context(|| format!("write `{}`", file.display()))?;
    Ok(vec!["--no-api".into(), "--config-file".into(), file.display().to_string()])
}

/// Virtio's console, for the same reason; it has no MP table. Entropy is there unasked.
fn cloud_hypervisor(flavour: &Flavour, _: &Path) -> anyhow::Result<Vec<String>> {
    let (kernel, initramfs) = (flavour.kernel.display(), flavour.initramfs.display());
    let memory = format!("size={MEMORY}");
    let words = words(flavour, "hyper.link=/dev/hvc0");
    let pairs = [
        ("--kernel", kernel.to_string()),
        ("--initramfs", initramfs.to_string()),
        ("--cmdline", words),
        ("--cpus", "boot=1".to_owned()),
        ("--memory", memory),
        ("--balloon", "size=0,free_page_reporting=on".to_owned()),
        ("--serial", "null".to_owned()),
        ("--console", "tty".to_owned()),
    ];
    Ok(pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect())
}
