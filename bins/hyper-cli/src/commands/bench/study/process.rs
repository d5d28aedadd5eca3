//! Child processes: bounded output, a deadline, gone when nobody waits for them any more.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use hyper_bench::tools::{MAX_OUTPUT, excerpt};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

/// What a child left.
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Why it failed, in words; `None` if it did not.
    pub fn failure(&self) -> Option<String> {
        if self.status.success() {
            return None;
        }
        let said = if self.stderr.trim().is_empty() { &self.stdout } else { &self.stderr };
        Some(format!("{}: {}", self.status, excerpt(said)))
    }
}

/// Settings of every child: no terminal's signals, no input, an end with its waiter.
pub fn prepare(command: &mut Command) -> &mut Command {
    command.process_group(0).stdin(Stdio::null()).kill_on_drop(true)
}

/// Runs a command to its end. Output beyond what is read of tools is dropped.
///
/// # Errors
/// A text: it cannot be started, or is not done in time.
pub async fn run(command: &mut Command, deadline: Duration) -> Result<Ended, String> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    prepare(command).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("start `{program}`: {error}"))?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let all = async { tokio::join!(child.wait(), read(out), read(err)) };
    match tokio::time::timeout(deadline, all).await {
        Ok((Ok(status), stdout, stderr)) => Ok(Ended { status, stdout, stderr }),
        Ok((Err(error), ..)) => Err(format!("wait for `{program}`: {error}")),
        Err(_) => Err(format!("not done within {} s", deadline.as_secs())),
    }
}

async fn read(from: Option<impl AsyncRead + Unpin>) -> String {
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; 16 << 10]);
    if let Some(mut from) = from {
        // What could be read before an error is what was said.
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let room = (MAX_OUTPUT + 1).saturating_sub(bytes.len());
            bytes.extend_from_slice(&buffer[..count.min(room)]);
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
