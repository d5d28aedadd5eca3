//! The process of one guest in its jail, and what it says.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_hypervisor::{Console, Tail, VmError, VmExit};
use hyper_jail::{JailExit, JailSpec, Jailed, Outcome};
use tokio::net::{UnixStream, unix::pipe};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::jail;

/// How long the last bytes of console and standard error may take.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long a process may take to end that is about to.
const SOON: Duration = Duration::from_secs(2);

/// What a process is called in errors.
#[derive(Debug, Clone, Copy)]
pub struct Name {
    /// The word users pick it by.
    pub hypervisor: &'static str,
    /// The program: `QEMU`, `the monitor`.
    pub program: &'static str,
}

/// One process. Dropping it ends it, see [`Jailed`].
#[derive(Debug)]
pub struct Process {
    pub name: Name,
    pub jailed: Jailed,
    pub console: Arc<Console>,
    tail: Arc<Tail>,
    /// They end with what they read.
    readers: Mutex<Option<[JoinHandle<()>; 2]>>,
}

impl Process {
    /// Starts it, and reads the guest's console and its standard error from now on.
    pub async fn start(
        name: Name,
        pod: &str,
        spec: JailSpec,
        said: UnixStream,
        errors: pipe::Receiver,
    ) -> Result<Self, VmError> {
        let jailed = jail::spawn(name.hypervisor, pod, spec).await?;
        let (console, tail) = (Arc::new(Console::default()), Arc::new(Tail::default()));
        let (listener, reader) = (Arc::clone(&console), Arc::clone(&tail));
        let readers = [
            tokio::spawn(async move { listener.follow(said).await }),
            tokio::spawn(async move { reader.follow(errors).await }),
        ];
        Ok(Self { name, jailed, console, tail, readers: Mutex::new(Some(readers)) })
    }

    /// For a process that has ended: waits until all it has said is read.
    pub async fn settle(&self) {
        let readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner).take();
        for mut reader in readers.into_iter().flatten() {
            if timeout(LAST_WORDS, &mut reader).await.is_err() {
                reader.abort();
            }
        }
    }

    /// Ends it; returns when it is gone.
    pub async fn end(&self) -> JailExit {
        self.jailed.kill().await;
        self.jailed.wait().await
    }

    /// `what`, and the process's own last words behind it, when it had some.
    pub fn last(&self, what: &str) -> String {
        let words = self.tail.text();
        let words = words.trim_end();
        if words.is_empty() { what.to_owned() } else { format!("{what}: {words}") }
    }

    /// For a guest that does not come up: how its process has ended, and its last words; `None` when
    /// it runs still.
    pub async fn obituary(&self) -> Option<String> {
        let exit = timeout(SOON, self.jailed.wait()).await.ok()?;
        self.settle().await;
        let words = self.tail.text();
        let words = if words.is_empty() { "it said nothing" } else { words.trim_end() };
        Some(format!("{}: {words}", how(self.name.program, &exit.outcome)))
    }

    /// How the guest ended, as process and console tell it.
    ///
    /// # Errors
    /// The exit code of a process that ended by itself, without a guest that was seen to halt.
    pub(crate) fn judge(&self, exit: &JailExit) -> Result<VmExit, i32> {
        let told = how(self.name.program, &exit.outcome);
        Ok(match exit.outcome {
            _ if self.console.halted() => VmExit::PoweredOff,
            Outcome::Killed => VmExit::Killed,
            Outcome::Signaled(libc::SIGSYS) => {
                VmExit::Failed { code: 128 + libc::SIGSYS, detail: self.last(&told) }
            }
            Outcome::Signaled(signal) => VmExit::Signaled { signal, oom: exit.oom },
            Outcome::LauncherDied => VmExit::Failed { code: -1, detail: self.last(&told) },
            Outcome::Exited(code) => return Err(code),
        })
    }
}

fn how(program: &str, outcome: &Outcome) -> String {
    match outcome {
        Outcome::Exited(code) => format!("{program} ended with code {code}"),
        Outcome::Signaled(libc::SIGSYS) => {
            format!("{program} made a system call that its jail forbids")
        }
        Outcome::Signaled(signal) => format!("signal {signal} ended {program}"),
        Outcome::Killed | Outcome::LauncherDied => format!("the launcher of {program} was killed"),
    }
}
