//! The user's terminal: its modes, its size, detach keys, and questions before a removal.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use anyhow::Context as _;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Another mode of standard input, until dropped.
pub struct Mode(Termios);

impl Mode {
    /// Every key as it is typed; `None` when it is no terminal.
    pub fn raw() -> Option<Self> {
        Self::changed(Termios::make_raw).ok()
    }

    /// Nothing that is typed shows.
    pub fn hidden() -> std::io::Result<Self> {
        Self::changed(|modes| modes.local_modes.remove(LocalModes::ECHO))
    }

    fn changed(change: impl FnOnce(&mut Termios)) -> std::io::Result<Self> {
        let stdin = std::io::stdin();
        let saved = tcgetattr(&stdin)?;
        let mut other = saved.clone();
        change(&mut other);
        tcsetattr(&stdin, OptionalActions::Now, &other)?;
        Ok(Self(saved))
    }
}

impl Drop for Mode {
    fn drop(&mut self) {
        // The terminal may be gone already; there is nobody left to tell.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Asks before something is removed for good.
pub fn confirms(removal: &str) -> anyhow::Result<bool> {
    print!("WARNING! This will remove {removal}.\nAre you sure you want to continue? [y/N] ");
    std::io::stdout().flush().context("ask")?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).context("read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y"))
}

/// Is standard input a terminal?
pub fn stdin_is_terminal() -> bool {
    std::io::stdin().is_terminal()
}

/// Is standard output a terminal?
pub fn stdout_is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Rows and columns.
pub fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(std::io::stdout()).or_else(|_| tcgetwinsize(std::io::stdin())).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}
