//! The guest program's part for guests of the fake: what `guest.c` does, over host files.

use std::io::{self, ErrorKind, SeekFrom};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncSeekExt, AsyncWriteExt, BufReader};
use tokio::time::{Duration, sleep};

use crate::fake::{Guest, GuestLink, Power};
use crate::{Disk, VmExit};

/// Plays the guest program until the guest ends.
pub async fn play(guest: Guest) {
    let Guest { config, link, power } = guest;
    let cmdline = format!("hyper.link=/dev/fakelink {}\n", config.kernel.extra_cmdline.join(" "));
    let cpus: String = (0..config.vcpus).map(|at| format!("processor\t: {at}\n")).collect();
    let memory = format!("MemTotal: {} kB\n", config.memory_bytes >> 10);
    let files = [("/proc/cmdline", cmdline), ("/proc/cpuinfo", cpus), ("/proc/meminfo", memory)];
    let mut player = Player { link: BufReader::new(link), power, files };
    // The link fails when the guest ends, and then there is nothing more to play.
    let _ = player.run().await;
}

struct Player {
    link: BufReader<GuestLink>,
    power: Power,
    files: [(&'static str, String); 3],
}

impl Player {
    async fn run(&mut self) -> io::Result<()> {
        self.power.say("fake kernel boots");
        self.say("ready\n").await?;
        loop {
            let mut line = String::new();
            if self.link.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            if let Err(error) = self.obey(&words, line.trim_end()).await {
                if error.kind() == ErrorKind::BrokenPipe {
                    return Err(error);
                }
                self.say(&format!("err {error}\n")).await?;
            }
        }
    }

    async fn obey(&mut self, words: &[&str], line: &str) -> io::Result<()> {
        match words {
            ["echo", ..] => self.say(&format!("ok {}\n", &line[5..])).await,
            ["mirror", count] => self.mirror(number(count)?).await,
            ["beat", count, millis] => self.beat(number(count)?, number(millis)?).await,
            ["cat", path] => self.cat(path).await,
            ["size", node] => {
                let size: u64 = self.device(node)?.extents.iter().map(|e| e.bytes).sum();
                self.say(&format!("ok {size}\n")).await
            }
            ["read", node, offset, length] => {
                let bytes = self.read(node, number(offset)?, number(length)?).await?;
                self.say(&format!("ok {}\n", bytes.len())).await?;
                self.link.write_all(&bytes).await
            }
            ["write", node, offset, length] => {
                let mut bytes = vec![0; usize::try_from(number(length)?).unwrap_or(0)];
                self.link.read_exact(&mut bytes).await?;
                self.write(node, number(offset)?, &bytes).await?;
                self.say("ok\n").await
            }
            ["forget" | "hold", node] => {
                self.device(node)?;
                self.say("ok\n").await
            }
            ["release"] => self.say("ok\n").await,
            ["poweroff"] => self.end(VmExit::PoweredOff).await,
            ["panic"] => {
                let message = "Attempted to kill init! exitcode=0x00000700".to_owned();
                self.end(VmExit::Panicked { message }).await
            }
            _ => Err(io::Error::new(ErrorKind::InvalidInput, "unknown command")),
        }
    }

    async fn mirror(&mut self, mut left: u64) -> io::Result<()> {
        self.say("ok\n").await?;
        let mut chunk = vec![0; 16 << 10];
        while left > 0 {
            let most = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let got = self.link.read(&mut chunk[..most]).await?;
            if got == 0 {
                return Err(ErrorKind::BrokenPipe.into());
            }
            self.link.write_all(&chunk[..got]).await?;
            left -= got as u64;
        }
        Ok(())
    }

    async fn beat(&mut self, count: u64, millis: u64) -> io::Result<()> {
        for at in 0..count {
            self.say(&format!("beat {at}\n")).await?;
            sleep(Duration::from_millis(millis)).await;
        }
        self.say("ok\n").await
    }

    async fn cat(&mut self, path: &str) -> io::Result<()> {
        let found = self.files.iter().find(|(name, _)| *name == path);
        let text = found.ok_or(ErrorKind::NotFound)?.1.clone();
        self.say(&format!("ok {}\n{text}", text.len())).await
    }

    async fn read(&self, node: &str, offset: u64, length: u64) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        for extent in self.device(node)?.extents {
            let file = tokio::fs::File::open(&extent.path).await?;
            file.take(extent.bytes).read_to_end(&mut all).await?;
        }
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let to = from.saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
        all.get(from..to).map(<[u8]>::to_vec).ok_or_else(|| ErrorKind::UnexpectedEof.into())
    }

    async fn write(&self, node: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let disk = self.device(node)?;
        if disk.read_only {
            return Err(ErrorKind::ReadOnlyFilesystem.into());
        }
        let [extent] = &disk.extents[..] else {
            return Err(io::Error::new(ErrorKind::Unsupported, "a write over several extents"));
        };
        let mut file = tokio::fs::OpenOptions::new().write(true).open(&extent.path).await?;
        file.seek(SeekFrom::Start(offset)).await?;
        file.write_all(bytes).await?;
        file.sync_all().await
    }

    /// Asks for the end and waits for it.
    async fn end(&mut self, how: VmExit) -> io::Result<()> {
        self.power.end(how);
        self.link.read_u8().await?;
        Ok(())
    }

    async fn say(&mut self, text: &str) -> io::Result<()> {
        self.link.write_all(text.as_bytes()).await?;
        self.link.flush().await
    }

    fn device(&self, node: &str) -> io::Result<Disk> {
        self.power.device(node).ok_or_else(|| ErrorKind::NotFound.into())
    }
}

fn number(text: &str) -> io::Result<u64> {
    text.parse().map_err(|_| ErrorKind::InvalidInput.into())
}
