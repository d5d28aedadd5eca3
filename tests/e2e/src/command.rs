//! Runs a client and keeps everything it says.

use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// What a finished command left.
#[derive(Debug)]
pub struct Outcome {
    pub what: String,
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Outcome {
    /// Standard output as text, without the last newline.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end_matches('\n').to_owned()
    }

    /// Panics unless the exit code is 0; returns itself.
    #[track_caller]
    pub fn succeeded(self) -> Self {
        self.exited(0)
    }

    /// Panics unless the exit code is `code`; returns itself.
    #[track_caller]
    pub fn exited(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            code,
            "`{}`\nstdout: {}\nstderr: {}",
            self.what,
            String::from_utf8_lossy(&self.stdout[..self.stdout.len().min(4000)]),
            self.stderr
        );
        self
    }

    /// Panics unless standard error has all `words`.
    #[track_caller]
    pub fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(
                self.stderr.contains(word),
                "`{}` does not say {word:?}:\n{}",
                self.what,
                self.stderr
            );
        }
        self
    }
}

/// Runs a command to its end; killed and failed after `deadline`.
#[track_caller]
pub fn run(program: &str, arguments: &[&str], deadline: Duration) -> Outcome {
    let mut command = Command::new(program);
    command.args(arguments);
    run_command(command, Vec::new(), deadline)
}

/// Same for a prepared command, with `input` on its standard input.
#[track_caller]
pub fn run_command(mut command: Command, input: Vec<u8>, deadline: Duration) -> Outcome {
    let what = format!("{command:?}");
    command.stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() });
    let mut child = match command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn() {
        Ok(child) => child,
        Err(error) => panic!("`{what}` cannot be started: {error}"),
    };
    if let Some(mut stdin) = child.stdin.take() {
        // A command that does not read all of its input is judged by its exit code.
        std::thread::spawn(move || drop(stdin.write_all(&input)));
    }
    let stdout = collect(child.stdout.take().expect("stdout is piped"));
    let stderr = collect(child.stderr.take().expect("stderr is piped"));
    let status = wait(&mut child, deadline);
    let stdout = stdout.join().expect("reader");
    let stderr = String::from_utf8_lossy(&stderr.join().expect("reader")).into_owned();
    let Some(status) = status else {
        panic!(
            "`{what}` did not end within {deadline:?}\nstdout: {}\nstderr: {stderr}",
            String::from_utf8_lossy(&stdout[..stdout.len().min(4000)])
        );
    };
    let code = status.code().unwrap_or_else(|| {
        use std::os::unix::process::ExitStatusExt;
        128 + status.signal().unwrap_or_default()
    });
    Outcome { what, code, stdout, stderr }
}

fn wait(child: &mut Child, deadline: Duration) -> Option<ExitStatus> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("wait for a child") {
            return Some(status);
        }
        if started.elapsed() > deadline {
            child.kill().expect("kill a child");
            child.wait().expect("reap a child");
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn collect(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What could be read before an error is what the command said.
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}
