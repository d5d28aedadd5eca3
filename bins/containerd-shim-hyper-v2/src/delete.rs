//! `delete`: called when a supervisor does not answer any more; ends what is left of it and tells
//! how the container ended.
//!
//! The hypervisor ends with its supervisor by itself (hyper-jail). What can be left is a
//! supervisor that hangs, the socket, and the pod's directories.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::Message as _;
use hyper_task::pod::ExitRecord;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::args::Args;
use crate::config::Config;
use crate::place::{ADDRESS_FILE, PID_FILE, bundle_hash, joined_pod};
use crate::wire::timestamp;

/// How long a killed supervisor may take to be gone.
const PATIENCE: Duration = Duration::from_secs(5);

pub fn delete(args: &Args) -> anyhow::Result<()> {
    let bundle = args.bundle()?;
    let config = Config::load().unwrap_or_default();
    let joined = joined_pod(&bundle).unwrap_or_default().is_some();
    let run_dir = config.run_dir.join("pods").join(bundle_hash(&bundle));
    let mut pid = 0;
    // A container that joined a pod has nothing here of its own, and its pod may live on.
    if !joined {
        pid = kill_supervisor(&run_dir.join(PID_FILE))?;
        // Not before: its supervisor would take what is undone here for a failure.
        if hyper_foreign::clean(&args.id, &bundle) {
            tracing::debug!("what another runtime's shim left is removed");
        }
        for dir in [run_dir, config.state_dir.join("pods").join(bundle_hash(&bundle))] {
            remove_dir(&dir)?;
        }
        if let Ok(address) = std::fs::read_to_string(bundle.join(ADDRESS_FILE)) {
            // Another supervisor of this name would have removed it before.
            let _ = std::fs::remove_file(address.trim_start_matches("unix://"));
        }
    }
    let record = match hyper_pod::read_exit(&bundle) {
        Ok(Some(record)) => record,
        _ => {
            let record = ExitRecord {
                code: 137,
                unix_ns: hyper_stdio::now_ns(),
                reason: Some("supervisor was killed".to_owned()),
                ..ExitRecord::default()
            };
            // containerd removes the bundle next; hyperd reads it there.
            let _ = hyper_pod::write_exit(&bundle, &record);
            record
        }
    };
    let response = DeleteResponse {
        pid,
        exit_status: record.code.cast_unsigned(),
        exited_at: Some(timestamp(record.unix_ns)).into(),
        ..DeleteResponse::default()
    };
    Ok(std::io::stdout().write_all(&response.write_to_bytes()?)?)
}

/// Kills the supervisor that the file names, if that is still what the number means; returns it.
fn kill_supervisor(file: &Path) -> anyhow::Result<u32> {
    let Ok(text) = std::fs::read_to_string(file) else { return Ok(0) };
    let pid: u32 = text.trim().parse().with_context(|| format!("`{}`", file.display()))?;
    let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(0) };
    // Held before it is looked at, so that what is killed is what was looked at.
    let Ok(held) = pidfd_open(number, PidfdFlags::empty()) else { return Ok(pid) };
    let ours = std::fs::read_link(format!("/proc/{pid}/exe")).ok() == std::env::current_exe().ok();
    if !ours {
        return Ok(pid);
    }
    let _ = pidfd_send_signal(&held, Signal::KILL);
    let begun = Instant::now();
    while Path::new(&format!("/proc/{pid}/exe")).read_link().is_ok() && begun.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(pid)
}

fn remove_dir(dir: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove `{}`", dir.display()))
        }
        _ => Ok(()),
    }
}
