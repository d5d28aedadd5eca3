//! The inner bundle: what the other runtime's shim is given, below hyperd's bundle.
//!
//! ```text
//! BUNDLE/foreign/ID/  config.json  rootfs/  init-stdout …  log     what shims know
//!                     image.json   shim.pid                           what `delete` needs
//! ```

use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hyper_task::foreign::{FILE, Foreign};
use hyper_task::rootfs::RootfsImage;
use rustix::fs::OFlags;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::error::{Result, file};
use crate::root::release_left;

/// The container's merged root.
pub(crate) const ROOTFS: &str = "rootfs";
/// A shim's own log: a FIFO in containerd's bundles, here a file.
const LOG: &str = "log";
const IMAGE: &str = "image.json";
const SHIM: &str = "shim.pid";
/// How long a killed shim may take to be gone.
const PATIENCE: Duration = Duration::from_secs(5);
/// Of a shim's log that is quoted.
const TAIL: u64 = 2 << 10;

/// The container's id, the name of hyperd's bundle, is its name, too: containerd's shim looks for
/// what it has to delete by its own id beside the directory that it is started in.
pub(crate) fn of(bundle: &Path) -> PathBuf {
    bundle.join("foreign").join(bundle.file_name().unwrap_or_default())
}

pub(crate) fn make(place: &Path) -> Result<()> {
    std::fs::create_dir_all(place).map_err(file("make directory", place))?;
    let log = place.join(LOG);
    std::fs::write(&log, "").map_err(file("write", log))
}

/// Writes a file that is its owner's business only: an environment may hold secrets. Small, and in
/// memory: it does not block.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write as _;
    let options = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).clone();
    let written = options.open(path).and_then(|mut out| out.write_all(bytes));
    written.map_err(file("write", path))
}

/// For a `delete` that knows only the bundle.
pub(crate) fn remember(place: &Path, image: &RootfsImage) -> Result<()> {
    let path = place.join(IMAGE);
    let text =
        serde_json::to_vec(image).map_err(|e| file("write", &path)(std::io::Error::from(e)))?;
    std::fs::write(&path, text).map_err(file("write", path))
}

pub(crate) fn remember_shim(place: &Path, pid: u32) {
    if let Err(error) = std::fs::write(place.join(SHIM), pid.to_string()) {
        tracing::warn!(%error, "shim's process id not written");
    }
}

/// Kills the shim whose number was remembered, if that is still `program`.
pub(crate) fn kill_shim(place: &Path, program: &Path) {
    let Ok(text) = std::fs::read_to_string(place.join(SHIM)) else { return };
    let Some(pid) = text.trim().parse().ok().and_then(Pid::from_raw) else { return };
    // Held before it is looked at, so that what is killed is what was looked at.
    let Ok(held) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    let exe = PathBuf::from(format!("/proc/{}/exe", pid.as_raw_nonzero()));
    let canonical = std::fs::canonicalize(program).unwrap_or_else(|_| program.to_owned());
    if std::fs::read_link(&exe).ok().as_deref() != Some(&canonical) {
        return;
    }
    let _ = pidfd_send_signal(&held, Signal::KILL);
    let begun = Instant::now();
    while exe.read_link().is_ok() && begun.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Removes what a supervisor that was killed has left of a bundle's container: processes, cgroups,
/// shim, mounts. `false`: the bundle is not of this kind. Blocking.
#[must_use]
pub fn clean(id: &str, bundle: &Path) -> bool {
    let Ok(text) = std::fs::read(bundle.join(FILE)) else { return false };
    let foreign: Foreign = serde_json::from_slice(&text).unwrap_or_default();
    let place = of(bundle);
    if place.join("config.json").exists() {
        let output = std::process::Command::new(&foreign.runtime.shim)
            .args(["-namespace", "hyper", "-publish-binary", "/bin/true", "-address"])
            .arg(&place)
            .args(["-id", id, "-bundle"])
            .arg(&place)
            .arg("delete")
            .current_dir(&place)
            .stdin(std::process::Stdio::null())
            .output();
        match output {
            Ok(output) if output.status.success() => {}
            Ok(output) => tracing::warn!(
                why = %String::from_utf8_lossy(&output.stderr).trim(),
                "clean up after the shim"
            ),
            Err(error) => tracing::warn!(%error, "clean up after the shim"),
        }
        kill_shim(&place, &foreign.runtime.shim);
    }
    let image = std::fs::read(place.join(IMAGE)).ok();
    if let Some(image) = image.and_then(|text| serde_json::from_slice(&text).ok()) {
        release_left(&image, &foreign.roots, &place.join(ROOTFS));
    }
    true
}

/// The end of what a shim has logged, for errors.
pub(crate) fn log_tail(place: &Path) -> String {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed());
    let mut text = Vec::new();
    if let Ok(log) = options.open(place.join(LOG)) {
        let _ = log.take(TAIL).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).trim().to_owned()
}
