//! A fake guest's life: an idle process, a console, and the one way it ended.

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};

use super::wire::Switch;
use crate::{VmError, VmExit};

/// Bytes of console kept.
const CONSOLE: usize = 64 << 10;

#[derive(Debug)]
pub struct Life {
    pub pid: u32,
    pub switch: Arc<Switch>,
    console: Mutex<String>,
    end: mpsc::UnboundedSender<VmExit>,
    exit: watch::Receiver<Option<VmExit>>,
}

impl Life {
    /// Starts the process and the task that owns it.
    pub fn start() -> Result<Self, VmError> {
        // `cat` ends with its standard input, so nothing outlives a test that is killed.
        let child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| VmError::Io { what: "start `cat`", source })?;
        let pid = child.id().unwrap_or_default();
        let switch = Arc::new(Switch::default());
        let (end, ends) = mpsc::unbounded_channel();
        let (exited, exit) = watch::channel(None);
        tokio::spawn(keep(child, ends, exited, Arc::clone(&switch)));
        Ok(Self { pid, switch, console: Mutex::default(), end, exit })
    }

    /// Ends it like this, unless it has ended.
    pub fn end(&self, how: VmExit) {
        if let VmExit::Panicked { message } = &how {
            self.say(&format!("Kernel panic - not syncing: {message}"));
        }
        // The keeper is gone only when the guest has ended.
        let _ = self.end.send(how);
    }

    /// Refuses to `what` when it has ended.
    pub fn running(&self, what: &'static str) -> Result<(), VmError> {
        match &*self.exit.borrow() {
            None => Ok(()),
            Some(_) => Err(VmError::Io { what, source: std::io::ErrorKind::BrokenPipe.into() }),
        }
    }

    /// Until it has ended and the process is reaped.
    pub async fn wait(&self) -> VmExit {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some).await.ok().and_then(|how| how.clone());
        ended.unwrap_or(VmExit::Failed { code: -1, detail: "keeper task is gone".to_owned() })
    }

    pub fn say(&self, line: &str) {
        let mut console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        console.push_str(line);
        console.push('\n');
        let mut excess = console.len().saturating_sub(CONSOLE);
        while !console.is_char_boundary(excess) {
            excess += 1;
        }
        console.drain(..excess);
    }

    pub fn console(&self) -> String {
        self.console.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn keep(
    mut child: Child,
    mut ends: mpsc::UnboundedReceiver<VmExit>,
    exited: watch::Sender<Option<VmExit>>,
    switch: Arc<Switch>,
) {
    // `wait` would close it, and the process would end.
    let _stdin = child.stdin.take();
    let how = tokio::select! {
        status = child.wait() => told_by(status),
        how = ends.recv() => {
            // Fails only when it is dead already; `kill` reaps.
            let _ = child.kill().await;
            how.unwrap_or(VmExit::Killed)
        }
    };
    switch.end();
    exited.send_replace(Some(how));
}

fn told_by(status: std::io::Result<ExitStatus>) -> VmExit {
    match status {
        Ok(status) => match status.signal() {
            Some(signal) => VmExit::Signaled { signal, oom: false },
            None => VmExit::Failed {
                code: status.code().unwrap_or(-1),
                detail: "the process ended by itself".to_owned(),
            },
        },
        Err(error) => VmExit::Failed { code: -1, detail: format!("wait: {error}") },
    }
}
