//! Starts a shim the way containerd does, and lets it clean up.
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

const WITHIN: Duration = Duration::from_secs(20);
/// Of what a shim prints.
const MAX_OUTPUT: u64 = 64 << 10;
/// containerd's word for a group of containers; ours are all in one.
const NAMESPACE: &str = "hyper";

/// Where a shim listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// `unix:///…`
    pub address: String,
    /// Major version of the Task API it speaks.
    pub version: u32,
}

/// A shim's program and what every start of it has in common.
#[derive(Debug, Clone)]
pub struct Program {
    pub path: PathBuf,
    /// containerd's own socket; shims make the name of theirs from it, the namespace and the id.
    pub address: PathBuf,
    /// Socket that its events go to.
    pub events: PathBuf,
    /// It is to log more.
    pub debug: bool,
}

impl Program {
    /// Starts the shim of `bundle`, or finds the one it is to share.
    ///
    /// # Errors
    /// In words: the program is missing, failed, printed no address, or took too long.
    pub async fn start(&self, id: &str, bundle: &Path) -> Result<Address, String> {
        parse(&self.run(id, bundle, "start").await?)
    }

    /// Lets the program remove what a dead shim left behind; the `DeleteResponse` it prints.
    ///
    /// # Errors
    /// As [`Program::start`].
    pub async fn delete(&self, id: &str, bundle: &Path) -> Result<Vec<u8>, String> {
        self.run(id, bundle, "delete").await
    }

    async fn run(&self, id: &str, bundle: &Path, action: &str) -> Result<Vec<u8>, String> {
        let program = self.path.display();
        let mut command = Command::new(&self.path);
        command
            .arg("-namespace")
            .arg(NAMESPACE)
            .arg("-address")
            .arg(&self.address)
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
            // Else containerd's shims write the environment of every exec to a file in /tmp.
            .env("XDG_RUNTIME_DIR", bundle)
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
            Ok(Address { address: text.to_owned(), version: 2 })
        } else {
            Err(format!("it printed `{text}`, which is no address"))
        };
    }
    let bootstrap: Bootstrap =
        serde_json::from_str(text).map_err(|e| format!("it printed `{text}`: {e}"))?;
    if !matches!(bootstrap.protocol.as_str(), "" | "ttrpc") {
        return Err(format!("it speaks `{}`, not ttrpc", bootstrap.protocol));
    }
    Ok(Address { address: bootstrap.address, version: bootstrap.version })
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn both_forms_of_addresses() {
        assert_eq!(
            parse(b"unix:///run/containerd/s/1\n"),
            Ok(Address { address: "unix:///run/containerd/s/1".into(), version: 2 })
        );
        assert_eq!(
            parse(br#"{"version":3,"address":"unix:///x","protocol":"ttrpc"}"#),
            Ok(Address { address: "unix:///x".into(), version: 3 })
        );
        for bad in [&b"panic"[..], b"", b"{}", br#"{"version":3,"address":"x","protocol":"grpc"}"#]
        {
            assert!(parse(bad).is_err());
        }
    }

    #[tokio::test]
    async fn a_failing_program_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shim");
        std::fs::write(&path, "#!/bin/sh\necho no kernel >&2\nexit 3\n").unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        let program = Program { path, address: "/x".into(), events: "/x".into(), debug: false };
        let error = program.start("abc", dir.path()).await.unwrap_err();
        assert!(error.contains("no kernel") && error.contains('3'), "{error}");
        let program = Program { path: "/no/shim".into(), ..program };
        let error = program.start("abc", dir.path()).await.unwrap_err();
        assert!(error.contains("/no/shim"), "{error}");
    }
}
