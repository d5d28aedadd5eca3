//! Starts a supervisor the way containerd starts a shim.
//!
//! `containerd-shim-NAME -namespace N -address A -publish-binary B -id ID start`, in the bundle as
//! working directory and with `TTRPC_ADDRESS` for its events. It prints the address of the daemon
//! that it left behind and ends. Source: containerd, core/runtime/v2/README.md, "Shim start".

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use super::{ADDRESS_FILE, Address};
use crate::{Error, Result};

const WITHIN: Duration = Duration::from_secs(20);
/// Of what a supervisor prints.
const MAX_OUTPUT: u64 = 64 << 10;
/// containerd's word for a group of containers; ours are all in one.
const NAMESPACE: &str = "hyper";

/// What every launch has in common.
#[derive(Debug, Clone)]
pub(crate) struct Launcher {
    /// `containerd-shim-hyper-v2`.
    pub program: PathBuf,
    /// Socket of [`super::publish`].
    pub events: PathBuf,
    pub debug: bool,
}

impl Launcher {
    /// Starts the supervisor of `bundle`, or finds that of the pod it has `joined`, and leaves its
    /// address there.
    pub async fn launch(&self, id: &str, bundle: &Path, joined: bool) -> Result<Address> {
        let failed = |why: String| Error::Supervisor {
            id: crate::id::short(id).to_owned(),
            what: "start the supervisor",
            why,
        };
        let output = self.run(id, bundle, "start").await.map_err(failed)?;
        let address = Address { joined, ..parse(&output).map_err(failed)? };
        let file = bundle.join(ADDRESS_FILE);
        let text = serde_json::to_vec(&address).map_err(|e| failed(e.to_string()))?;
        tokio::fs::write(&file, text).await.map_err(Error::file("write", file))?;
        Ok(address)
    }

    /// Lets the program remove what a dead supervisor left behind.
    pub async fn clean(&self, id: &str, bundle: &Path) {
        if let Err(why) = self.run(id, bundle, "delete").await {
            tracing::warn!(container = id, why, "clean up after the supervisor");
        }
    }

    async fn run(&self, id: &str, bundle: &Path, action: &str) -> Result<Vec<u8>, String> {
        let program = self.program.display();
        let mut command = Command::new(&self.program);
        command
            .arg("-namespace")
            .arg(NAMESPACE)
            .arg("-address")
            .arg(&self.events)
            .arg("-publish-binary")
            .arg("/bin/true")
            .args(["-id", id])
            .arg("-bundle")
            .arg(bundle);
        if self.debug {
            command.arg("-debug");
        }
        command
            .arg(action)
            .current_dir(bundle)
            .env("TTRPC_ADDRESS", &self.events)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A terminal's signals are hyperd's, not the pod's.
            .process_group(0)
            .kill_on_drop(true);
        let work = async {
            let mut child = command
                .spawn()
                .map_err(|e| format!("{program}: {e}: install it beside hyperd or on PATH"))?;
            let (mut out, mut err) = (Vec::new(), Vec::new());
            if let Some(stdout) = child.stdout.take() {
                stdout.take(MAX_OUTPUT).read_to_end(&mut out).await.map_err(|e| e.to_string())?;
            }
            let status = child.wait().await.map_err(|e| e.to_string())?;
            if status.success() {
                return Ok(out);
            }
            if let Some(stderr) = child.stderr.take() {
                // The daemon may have inherited the pipe, so there may be no end of it.
                let mut stderr = stderr.take(MAX_OUTPUT);
                let read = stderr.read_to_end(&mut err);
                let _ = tokio::time::timeout(Duration::from_millis(100), read).await;
            }
            let text = String::from_utf8_lossy(&err);
            Err(format!("{program} {action} ended with {status}: {}", text.trim()))
        };
        tokio::time::timeout(WITHIN, work)
            .await
            .unwrap_or_else(|_| Err(format!("{program} {action} took over {} s", WITHIN.as_secs())))
    }
}

/// Plain address (version 2 shims), or `{"version":…,"address":…,"protocol":…}`.
fn parse(output: &[u8]) -> Result<Address, String> {
    #[derive(Deserialize)]
    struct Bootstrap {
        version: u32,
        address: String,
        #[serde(default)]
        protocol: String,
    }
    let text = String::from_utf8_lossy(output);
    let text = text.trim();
    if !text.starts_with('{') {
        return if text.starts_with("unix://") {
            Ok(Address { address: text.to_owned(), version: 2, joined: false })
        } else {
            Err(format!("it printed `{text}`, which is no address"))
        };
    }
    let bootstrap: Bootstrap =
        serde_json::from_str(text).map_err(|e| format!("it printed `{text}`: {e}"))?;
    if !matches!(bootstrap.protocol.as_str(), "" | "ttrpc") {
        return Err(format!("it speaks `{}`, not ttrpc", bootstrap.protocol));
    }
    Ok(Address { address: bootstrap.address, version: bootstrap.version, joined: false })
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn both_forms_of_addresses() {
        assert_eq!(
            parse(b"unix:///run/containerd/s/1\n"),
            Ok(Address { address: "unix:///run/containerd/s/1".into(), version: 2, joined: false })
        );
        assert_eq!(
            parse(br#"{"version":3,"address":"unix:///x","protocol":"ttrpc"}"#),
            Ok(Address { address: "unix:///x".into(), version: 3, joined: false })
        );
        for bad in [&b"panic"[..], b"", b"{}", br#"{"version":3,"address":"x","protocol":"grpc"}"#]
        {
            assert!(parse(bad).is_err());
        }
    }

    #[tokio::test]
    async fn a_failing_program_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("shim");
        std::fs::write(&program, "#!/bin/sh\necho no kernel >&2\nexit 3\n").unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        let launcher = Launcher { program, events: "/x".into(), debug: false };
        let error = launcher.launch("abc", dir.path(), false).await.unwrap_err().to_string();
        assert!(error.contains("no kernel") && error.contains('3'), "{error}");
        let launcher = Launcher { program: "/no/shim".into(), ..launcher };
        let error = launcher.launch("abc", dir.path(), false).await.unwrap_err().to_string();
        assert!(error.contains("/no/shim"), "{error}");
    }
}
