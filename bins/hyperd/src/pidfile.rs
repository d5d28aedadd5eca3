//! The file with our process id; removed when we end in order.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// Removes the file when it is dropped.
#[derive(Debug)]
pub struct Pidfile(PathBuf);

impl Pidfile {
    /// # Errors
    /// The process in it is alive and is a hyperd; or it cannot be written.
    pub fn write(path: &Path) -> anyhow::Result<Self> {
        let what = || format!("pid file {}", path.display());
        if let Ok(text) = std::fs::read_to_string(path)
            && let Ok(pid) = text.trim().parse::<u32>()
            && pid != std::process::id()
            && is_hyperd(pid)
        {
            bail!("{}: hyperd runs as process {pid}: stop it, or name another file", what());
        }
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).with_context(what)?;
        }
        std::fs::write(path, format!("{}\n", std::process::id())).with_context(what)?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for Pidfile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::warn!(file = %self.0.display(), %error, "remove the pid file");
        }
    }
}

/// A number may have been given to another program since.
fn is_hyperd(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "hyperd")
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn stale_numbers_are_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/hyperd.pid");
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        // Process 1 lives, and is no hyperd.
        std::fs::write(&path, "1\n").unwrap();
        let pidfile = Pidfile::write(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap().trim(), std::process::id().to_string());
        drop(pidfile);
        assert!(!path.exists());
    }
}
