//! For adapters: the guest kernel's console, its last bytes and the lines that tell how a guest
//! ends; and the hypervisor process's own last words.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::Notify;

/// Bytes kept.
const KEPT: usize = 64 << 10;
/// Bytes of standard error kept.
const TAIL: usize = 8 << 10;
/// Bytes of a line that are looked at.
const LINE: usize = 512;
const PANIC: &str = "Kernel panic - not syncing: ";
/// How Linux begins when it cannot power the machine off: kernel/reboot.c (6.1 and 7.3).
const HALTED: [&str; 2] = ["reboot: System halted", "reboot: Power off not available"];

/// How it says that it is about to reset the machine.
const RESTARTING: &str = "reboot: Restarting system";

/// What a console has said.
#[derive(Debug, Default)]
pub struct Console {
    said: Mutex<Said>,
    /// Wakes when the guest has halted.
    pub halt: Notify,
}

#[derive(Debug, Default)]
struct Said {
    bytes: VecDeque<u8>,
    line: Vec<u8>,
    panic: Option<String>,
    halted: bool,
    restarting: bool,
}

impl Console {
    /// Reads until the other end closes.
    pub async fn follow(&self, mut stream: impl AsyncRead + Unpin) {
        let mut chunk = vec![0; 4096];
        loop {
            match stream.read(&mut chunk).await {
                Ok(0) | Err(_) => break,
                Ok(count) => self.take(&chunk[..count]),
            }
        }
    }

    /// The last bytes as text.
    pub fn text(&self) -> String {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(said.bytes.make_contiguous());
        text.replace('\r', "")
    }

    /// The message of the first panic.
    pub fn panic(&self) -> Option<String> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).panic.clone()
    }

    /// Whether the guest has halted.
    pub fn halted(&self) -> bool {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).halted
    }

    /// Whether the guest has said that it resets its CPUs.
    pub fn restarting(&self) -> bool {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).restarting
    }

    fn take(&self, bytes: &[u8]) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.bytes.extend(bytes);
        let excess = said.bytes.len().saturating_sub(KEPT);
        said.bytes.drain(..excess);
        for byte in bytes {
            if *byte == b'\n' {
                let line = std::mem::take(&mut said.line);
                self.judge(&mut said, &String::from_utf8_lossy(&line));
            } else if said.line.len() < LINE {
                said.line.push(*byte);
            }
        }
    }

    fn judge(&self, said: &mut Said, line: &str) {
        let text = message(line.trim_end());
        if said.panic.is_none()
            && let Some(message) = text.strip_prefix(PANIC)
        {
            said.panic = Some(message.to_owned());
        }
        said.restarting |= text.starts_with(RESTARTING);
        if HALTED.iter().any(|words| text.starts_with(words)) {
            said.halted = true;
            self.halt.notify_one();
        }
    }
}

/// The last bytes of a stream: a hypervisor's standard error.
#[derive(Debug, Default)]
pub struct Tail(Mutex<VecDeque<u8>>);

impl Tail {
    /// Reads until the other end closes.
    pub async fn follow(&self, mut stream: impl AsyncRead + Unpin) {
        let mut chunk = vec![0; 1024];
        while let Ok(count @ 1..) = stream.read(&mut chunk).await {
            let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            bytes.extend(&chunk[..count]);
            let excess = bytes.len().saturating_sub(TAIL);
            bytes.drain(..excess);
        }
    }

    /// What is kept, as text.
    pub fn text(&self) -> String {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(bytes.make_contiguous()).into_owned()
    }
}

/// A kernel line without its `[    1.234567] `.
fn message(line: &str) -> &str {
    let stamped = line.strip_prefix('[').and_then(|rest| rest.split_once("] "));
    stamped.map_or(line, |(_, text)| text)
}

#[cfg(test)]
mod test {
    use super::*;

    #[tokio::test]
    async fn the_end_of_a_guest_is_seen_across_pieces() {
        let console = Console::default();
        console.take(b"[    0.5] Kernel panic - not sync");
        assert_eq!(console.panic(), None);
        console.take(b"ing: Attempted to kill init!\r\n[    0.6] Kernel panic - not syncing: b\n");
        assert_eq!(console.panic().as_deref(), Some("Attempted to kill init!"));
        assert!(!console.halted());
        console.take(b"x reboot: System halted\n[    1.0] reboot: System halted\n");
        assert!(console.halted());
        console.halt.notified().await;
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let console = Console::default();
        for _ in 0..100 {
            console.take(&[b'x'; 4096]);
        }
        console.take(b"\nend\n");
        assert_eq!(console.text().len(), KEPT);
        assert!(console.text().ends_with("\nend\n"));
        assert!(console.said.lock().unwrap().line.capacity() <= 2 * LINE);
    }
}
