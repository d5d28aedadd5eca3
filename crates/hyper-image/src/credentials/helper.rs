//! Docker credential helpers: `docker-credential-NAME get`, the registry on stdin, JSON on stdout.
//!
//! Source: docker/docker-credential-helpers README, "Development".

use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::Credentials;
use crate::error::Error;

/// A helper may ask a keyring or a cloud service, but not for ever.
const DEADLINE: Duration = Duration::from_secs(30);
/// Most bytes of an answer that are read.
const MAX_ANSWER: u64 = 1 << 20;
/// What all helpers print for a registry they do not know.
const NOT_FOUND: &str = "credentials not found in native keychain";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Asks the helper `name` for `registry` (as written in the Docker config).
pub(super) async fn get(name: &str, registry: &str) -> Result<Credentials, Error> {
    let failed = |reason: String| Error::Credentials { registry: registry.to_owned(), reason };
    let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if !name.bytes().all(word) {
        return Err(failed(format!("`{name}` is not the name of a credential helper")));
    }
    ask(&format!("docker-credential-{name}"), registry).await
}

/// Asks a program.
async fn ask(program: &str, registry: &str) -> Result<Credentials, Error> {
    let failed = |reason: String| Error::Credentials { registry: registry.to_owned(), reason };
    let answer = tokio::time::timeout(DEADLINE, run(program, registry))
        .await
        .map_err(|_| failed(format!("{program} did not answer in {} s", DEADLINE.as_secs())))?
        .map_err(|error| failed(format!("cannot run {program}: {error}")))?;
    if !answer.success {
        let text = String::from_utf8_lossy(&answer.stdout);
        if text.contains(NOT_FOUND) {
            return Ok(Credentials::Anonymous);
        }
        let text: String = text.trim().chars().take(300).collect();
        return Err(failed(format!("{program} failed: {text}")));
    }
    // The answer holds a secret: nothing of it goes into the error.
    let answer: Answer = serde_json::from_slice(&answer.stdout)
        .map_err(|_| failed(format!("{program} printed something else than credentials")))?;
    Ok(match answer.username.as_str() {
        "<token>" => Credentials::IdentityToken(answer.secret),
        "" => Credentials::Anonymous,
        _ => Credentials::Basic { username: answer.username, password: answer.secret },
    })
}

struct Output {
    success: bool,
    stdout: Vec<u8>,
}

async fn run(program: &str, input: &str) -> std::io::Result<Output> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read its input says so by its exit code.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let mut stdout = Vec::new();
    if let Some(pipe) = child.stdout.take() {
        pipe.take(MAX_ANSWER).read_to_end(&mut stdout).await?;
    }
    Ok(Output { success: child.wait().await?.success(), stdout })
}

#[cfg(test)]
mod test {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    /// A helper that runs these lines of shell after it read the registry into `$r`.
    async fn helper(lines: &str) -> Result<Credentials, Error> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("docker-credential-test");
        std::fs::write(
            &path,
            format!("#!/bin/sh\nread -r r\n[ \"$1 $r\" = 'get reg:5000' ] || exit 9\n{lines}\n"),
        )
        .unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        ask(path.to_str().unwrap(), "reg:5000").await
    }

    #[tokio::test]
    async fn answers() {
        let basic =
            helper(r#"echo '{"ServerURL":"x","Username":"u","Secret":"hunter2"}'"#).await.unwrap();
        assert_eq!(basic, Credentials::Basic { username: "u".into(), password: "hunter2".into() });
        let token = helper(r#"echo '{"Username":"<token>","Secret":"t"}'"#).await.unwrap();
        assert_eq!(token, Credentials::IdentityToken("t".into()));
        let unknown =
            helper("echo 'credentials not found in native keychain'; exit 1").await.unwrap();
        assert_eq!(unknown, Credentials::Anonymous);
        let error = helper("echo locked; exit 1").await.unwrap_err().to_string();
        assert!(error.contains("reg:5000") && error.contains("locked"), "{error}");
        let error =
            helper(r#"echo '{"Username":"u","Secret":hunter2}'"#).await.unwrap_err().chain();
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[tokio::test]
    async fn names() {
        for name in ["../evil", "a b", "a/b"] {
            assert!(get(name, "reg").await.unwrap_err().to_string().contains(name));
        }
        let missing = get("no-such-helper", "reg").await.unwrap_err().to_string();
        assert!(missing.contains("docker-credential-no-such-helper"), "{missing}");
    }
}
