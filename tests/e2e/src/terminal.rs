//! A command on a pseudo-terminal, spoken to as a person would.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

use crate::eventually;

/// A command whose standard streams are a terminal. Dropped, it is killed.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    keyboard: File,
    line: File,
    screen: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// Starts it.
    pub fn start(mut command: Command) -> Self {
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("open a terminal");
        grantpt(&keyboard).and_then(|()| unlockpt(&keyboard)).expect("unlock the terminal");
        let name = ptsname(&keyboard, Vec::new()).expect("the terminal's name");
        let line = File::options().read(true).write(true).open(name.to_str().expect("a name"));
        let line = line.expect("open the terminal's line");
        let end = || line.try_clone().expect("the line once more");
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().expect("start");
        let keyboard = File::from(keyboard);
        let screen = Arc::new(Mutex::new(Vec::new()));
        let (mut shown, filled) =
            (keyboard.try_clone().expect("the terminal once more"), Arc::clone(&screen));
        // It ends with the terminal.
        std::thread::spawn(move || {
            let mut bytes = [0; 1024];
            while let Ok(count @ 1..) = shown.read(&mut bytes) {
                filled.lock().expect("the screen").extend_from_slice(&bytes[..count]);
            }
        });
        Self { child, keyboard, line, screen }
    }

    /// Waits until the screen shows `prompt`, and types.
    #[track_caller]
    pub fn answer(&mut self, prompt: &str, typed: &str) {
        eventually(prompt, Duration::from_secs(30), || self.screen().contains(prompt));
        self.keyboard.write_all(typed.as_bytes()).expect("type");
    }

    /// Waits for the command's end: its exit code, if it was not killed.
    #[track_caller]
    pub fn ended(&mut self) -> Option<i32> {
        let mut status = None;
        eventually("the command ends", Duration::from_secs(60), || {
            status = self.child.try_wait().expect("wait");
            status.is_some()
        });
        status.and_then(|status| status.code())
    }

    /// All that was shown.
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().expect("the screen")).into_owned()
    }

    /// What is typed shows.
    pub fn echoes(&self) -> bool {
        tcgetattr(&self.line).expect("modes").local_modes.contains(LocalModes::ECHO)
    }

    /// The command, for signals.
    pub fn process(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Already gone is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
