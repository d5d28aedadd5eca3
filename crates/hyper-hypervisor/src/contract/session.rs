//! One launched guest and the conversation with its program.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::time::timeout;

use super::bytes::pattern;
use super::{Fixture, hold};
use crate::{Carrier, Disk, Extent, GuestKernel, Hypervisor, Nic, Vm, VmConfig, VmExit};

/// Longest wait for an answer of a guest that runs; emulated guests on busy hosts are slow.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest answer line.
const LINE: u64 = 1024;

/// What a guest is launched with beside the fixture.
#[derive(Debug, Clone, Default)]
pub struct Shape {
    pub disks: Vec<Disk>,
    pub nics: Vec<Nic>,
    /// One unless set.
    pub vcpus: Option<u32>,
    pub extra_cmdline: Vec<String>,
}

/// A guest whose program has said `ready`. Adapters use it in tests of their own, too.
pub struct Session {
    pub vm: Box<dyn Vm>,
    pub link: BufReader<Box<dyn Carrier>>,
    pub run_dir: PathBuf,
}

/// The configuration of a new guest, with a run directory of its own.
pub fn config(fixture: &Fixture, shape: Shape) -> Result<VmConfig, String> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let id = format!("contract-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let run_dir = fixture.work.join(&id);
    std::fs::create_dir(&run_dir).map_err(|error| format!("make `{id}`: {error}"))?;
    Ok(VmConfig {
        id,
        kernel: GuestKernel {
            kernel: fixture.kernel.clone(),
            initramfs: fixture.initramfs.clone(),
            extra_cmdline: shape.extra_cmdline,
        },
        vcpus: shape.vcpus.unwrap_or(1),
        memory_bytes: fixture.memory_bytes,
        disks: shape.disks,
        nics: shape.nics,
        late_disks: true,
        share: None,
        run_dir,
        cgroup: None,
    })
}

/// A disk of files that are made here: extent `i` holds `pattern(seed + i, sizes[i])`.
pub fn disk(fixture: &Fixture, name: &str, seed: u64, sizes: &[usize]) -> Result<Disk, String> {
    let mut extents = Vec::new();
    for (at, size) in sizes.iter().enumerate() {
        let path = fixture.work.join(format!("{name}.{at}"));
        std::fs::write(&path, pattern(seed + at as u64, *size)).map_err(|e| e.to_string())?;
        extents.push(Extent { path, bytes: *size as u64 });
    }
    Ok(Disk { extents, read_only: true, ephemeral: false, mapped: false })
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("pid", &self.vm.pid()).finish_non_exhaustive()
    }
}

impl Session {
    /// Launches a guest and waits for its first word.
    pub async fn boot(
        hypervisor: &dyn Hypervisor,
        fixture: &Fixture,
        shape: Shape,
    ) -> Result<Self, String> {
        let config = config(fixture, shape)?;
        let run_dir = config.run_dir.clone();
        let launched = timeout(fixture.boot, hypervisor.launch(config)).await;
        let vm = launched
            .map_err(|_| "launch did not return in time".to_owned())?
            .map_err(|error| format!("launch: {}", chain(&error)))?;
        let mut session = Self::of(vm, run_dir)?;
        match timeout(fixture.boot, session.line()).await {
            Ok(Ok(line)) if line == "ready" => Ok(session),
            Ok(said) => Err(session.blame(&format!("guest's first word is {said:?}"))),
            Err(_) => Err(session.blame("guest did not speak in time")),
        }
    }

    /// Has the guest saved in `directory` go on as a new one.
    pub async fn go_on(
        hypervisor: &dyn Hypervisor,
        fixture: &Fixture,
        directory: &Path,
        shape: Shape,
    ) -> Result<Self, String> {
        let config = config(fixture, shape)?;
        let run_dir = config.run_dir.clone();
        let restored = timeout(fixture.boot, hypervisor.restore(directory, config)).await;
        let vm = restored
            .map_err(|_| "restore did not return in time".to_owned())?
            .map_err(|error| format!("restore: {}", chain(&error)))?;
        Self::of(vm, run_dir)
    }

    /// The conversation with a guest that runs already.
    pub fn of(mut vm: Box<dyn Vm>, run_dir: PathBuf) -> Result<Self, String> {
        let link = vm.take_link().ok_or("the link is not there")?;
        hold!(vm.take_link().is_none(), "the link can be taken twice");
        Ok(Self { vm, link: BufReader::new(link), run_dir })
    }

    /// Sends a command and returns what follows `ok `.
    pub async fn ask(&mut self, command: &str) -> Result<String, String> {
        self.send(command, b"").await?;
        self.answer(command).await
    }

    /// Sends a command with bytes behind it and returns what follows `ok `.
    pub async fn ask_with(&mut self, command: &str, bytes: &[u8]) -> Result<String, String> {
        self.send(command, bytes).await?;
        self.answer(command).await
    }

    /// Sends a command whose answer is a length and as many bytes.
    pub async fn fetch(&mut self, command: &str) -> Result<Vec<u8>, String> {
        let length: usize = self.ask(command).await?.parse().map_err(|_| "answer is no length")?;
        hold!(length <= 64 << 20, "answer to `{command}` of {length} bytes");
        let mut bytes = vec![0; length];
        match timeout(PATIENCE, self.link.read_exact(&mut bytes)).await {
            Ok(Ok(_)) => Ok(bytes),
            other => Err(self.blame(&format!("`{command}`: {other:?}"))),
        }
    }

    /// Sends a command and does not wait.
    pub async fn send(&mut self, command: &str, bytes: &[u8]) -> Result<(), String> {
        let mut all = format!("{command}\n").into_bytes();
        all.extend_from_slice(bytes);
        let sending = async {
            self.link.write_all(&all).await?;
            self.link.flush().await
        };
        match timeout(PATIENCE, sending).await {
            Ok(Ok(())) => Ok(()),
            other => Err(self.blame(&format!("send `{command}`: {other:?}"))),
        }
    }

    /// The next line within `limit`, `None` when there is none.
    pub async fn line_within(&mut self, limit: Duration) -> Result<Option<String>, String> {
        match timeout(limit, self.line()).await {
            Ok(line) => line.map(Some),
            Err(_) => Ok(None),
        }
    }

    /// Waits for the guest's end.
    pub async fn ended(&mut self) -> Result<VmExit, String> {
        match timeout(PATIENCE, self.vm.wait()).await {
            Ok(exit) => Ok(exit),
            Err(_) => Err(self.blame("the guest did not end in time")),
        }
    }

    /// Powers the guest off and waits for its end.
    pub async fn power_off(mut self) -> Result<(), String> {
        self.send("poweroff", b"").await?;
        let exit = self.ended().await?;
        hold!(exit == VmExit::PoweredOff, "{}", self.blame(&format!("power-off gave {exit:?}")));
        Ok(())
    }

    /// `what` with the end of the console.
    pub fn blame(&self, what: &str) -> String {
        let console = self.vm.console();
        let from = console.char_indices().rev().nth(1500).map_or(0, |(at, _)| at);
        format!("{what}; console ends: {:?}", &console[from..])
    }

    async fn answer(&mut self, command: &str) -> Result<String, String> {
        let line = match timeout(PATIENCE, self.line()).await {
            Ok(line) => line?,
            Err(_) => return Err(self.blame(&format!("no answer to `{command}`"))),
        };
        match line.strip_prefix("ok") {
            Some(rest) => Ok(rest.trim_start().to_owned()),
            None => Err(format!("`{command}`: {line}")),
        }
    }

    async fn line(&mut self) -> Result<String, String> {
        let mut line = Vec::new();
        let mut bounded = (&mut self.link).take(LINE);
        bounded.read_until(b'\n', &mut line).await.map_err(|error| format!("read: {error}"))?;
        if line.pop() != Some(b'\n') {
            return Err(format!("the link ended after {:?}", String::from_utf8_lossy(&line)));
        }
        String::from_utf8(line).map_err(|_| "a line is not text".to_owned())
    }
}

/// An error and its sources, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(&format!(": {source}"));
        next = source.source();
    }
    text
}
