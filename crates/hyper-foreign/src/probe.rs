//! What of other runtimes works on this host: each is made to run `true` once, in a root of the
//! host's own directories, because a program that is there may still refuse (cgroups, kernels).

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};
use tokio::process::Command;

/// For a runtime to start, run and remove a container.
const TRIAL: Duration = Duration::from_secs(20);
const VERSION: Duration = Duration::from_secs(5);
/// Of a trial's directory, and after what age it is one that was left.
const PREFIX: &str = "hyper-probe-";
const LEFT: Duration = Duration::from_secs(600);
/// Of what a runtime says when it fails.
const WORDS: usize = 600;

/// A runtime as `hyper doctor` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    pub name: &'static str,
    /// Word for its wall.
    pub wall: &'static str,
    pub usable: bool,
    pub version: Option<String>,
    pub findings: Vec<Finding>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub what: String,
    pub ok: bool,
    /// What was found, or what to do.
    pub detail: String,
}

/// A runtime that is looked for.
#[derive(Debug, Clone, Copy)]
struct Known {
    name: &'static str,
    wall: &'static str,
    /// How to get it.
    package: &'static str,
    /// Its own shim; the others are driven by containerd's.
    shim: Option<&'static str>,
    /// Flags for the trial.
    flags: &'static [&'static str],
}

const SHIM: &str = "containerd-shim-runc-v2";
const KNOWN: [Known; 5] = [
    Known {
        name: "runc",
        wall: "shared-kernel",
        package: "apt-get install runc",
        shim: None,
        flags: &[],
    },
    Known {
        name: "crun",
        wall: "shared-kernel",
        package: "apt-get install crun",
        shim: None,
        flags: &[],
    },
    Known {
        name: "youki",
        wall: "shared-kernel",
        package: "no Debian package; `cargo install youki --no-default-features --features v1,v2`",
        shim: None,
        flags: &[],
    },
    Known {
        name: "runsc",
        wall: "application-kernel",
        package: "apt-get install runsc",
        shim: None,
        flags: &["--network=none"],
    },
    Known {
        name: "kata",
        wall: "hardware",
        package: "no Debian package: katacontainers.io",
        shim: Some("containerd-shim-kata-v2"),
        flags: &[],
    },
];

/// Looks for all that are known, and at what they need.
pub async fn probe() -> Vec<Report> {
    let mut reports = Vec::new();
    for known in KNOWN {
        reports.push(one(known).await);
    }
    reports
}

async fn one(known: Known) -> Report {
    let Known { name, wall, package, shim, flags } = known;
    let mut report = Report { name, wall, usable: false, version: None, findings: Vec::new() };
    let found = match shim {
        Some(shim) => located(&mut report, shim, package),
        None => located(&mut report, name, package),
    };
    let Some(program) = found else { return report };
    report.version = version(&program).await;
    let driven =
        shim.is_some() || located(&mut report, SHIM, "apt-get install containerd").is_some();
    let mut ok = driven;
    for (kind, since) in [("erofs", "Linux 5.16"), ("overlay", "any kernel")] {
        let finding = file_system(kind, since);
        ok &= finding.ok;
        report.findings.push(finding);
    }
    if shim.is_none() {
        let tried = trial(&program, flags).await;
        ok &= tried.ok;
        report.findings.push(tried);
    }
    if name == "runsc" && Path::new("/proc/sys/net/core/rmem_default").exists() && old_stack().await
    {
        report.findings.push(Finding {
            what: "network".to_owned(),
            ok: false,
            detail: "this kernel is newer than what runsc before 2025 takes for a namespace of \
                     its own: containers with --network none work, others with a newer runsc"
                .to_owned(),
        });
    }
    report.usable = ok;
    report
}

fn located(report: &mut Report, program: &str, package: &str) -> Option<PathBuf> {
    let places = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&places)
        .chain(["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|path| path.is_file());
    report.findings.push(Finding {
        what: program.to_owned(),
        ok: found.is_some(),
        detail: match &found {
            Some(path) => path.display().to_string(),
            None => format!("not on the PATH: {package}"),
        },
    });
    found
}

/// In the kernel, or a module that it loads when it is asked for.
fn file_system(kind: &str, since: &str) -> Finding {
    let listed =
        |text: String| text.lines().any(|line| line.split_whitespace().last() == Some(kind));
    let built_in = std::fs::read_to_string("/proc/filesystems").is_ok_and(listed);
    let module = || {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let modules = format!("/lib/modules/{}/modules.dep", release.trim());
        let name = format!("/{kind}.ko");
        std::fs::read_to_string(modules).is_ok_and(|text| text.contains(&name))
    };
    let ok = built_in || module();
    let detail = if built_in {
        "in the kernel".to_owned()
    } else if ok {
        "a module of the kernel".to_owned()
    } else {
        format!("the kernel has none ({since} or newer, CONFIG_{}_FS)", kind.to_uppercase())
    };
    Finding { what: kind.to_owned(), ok, detail }
}

async fn version(program: &Path) -> Option<String> {
    let asked =
        Command::new(program).arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(VERSION, asked).await.ok()?.ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().next().map(|line| line.chars().take(80).collect())
}

/// Whether namespaces other than the host's have a setting that older versions of gVisor look for
/// to tell them apart.
async fn old_stack() -> bool {
    let looked = tokio::task::spawn_blocking(|| {
        // Runs in a namespace of its own, which ends with it.
        let output = std::process::Command::new("unshare")
            .args(["--net", "test", "-e", "/proc/sys/net/core/rmem_default"])
            .status();
        output.is_ok_and(|status| status.success())
    });
    let old = version_year("runsc").await.is_none_or(|year| year < 2025);
    old && looked.await.unwrap_or(false)
}

/// `runsc version 0.0~20221219.0`, `release-20250407.0`.
async fn version_year(program: &str) -> Option<u32> {
    let text = version(Path::new(program)).await?;
    let digits = text.split(|c: char| !c.is_ascii_digit()).find(|part| part.len() == 8)?;
    digits[..4].parse().ok()
}

/// Removes what trials left that were killed.
fn sweep() {
    let own = rustix::process::geteuid().as_raw();
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let named = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        let old = entry.metadata().is_ok_and(|found| {
            let age = found.modified().ok().and_then(|time| time.elapsed().ok());
            found.is_dir() && found.uid() == own && age.is_some_and(|age| age > LEFT)
        });
        if named && old {
            // The next one tries again.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Runs `true`. What it made is removed, if only by the next trial.
async fn trial(program: &Path, flags: &[&str]) -> Finding {
    let begun = Instant::now();
    sweep();
    let tried = match tempfile::Builder::new().prefix(PREFIX).tempdir() {
        Ok(dir) => run_true(program, flags, dir.path()).await,
        Err(error) => Err(format!("make a directory for it: {error}")),
    };
    match tried {
        Ok(()) => Finding {
            what: "runs a container".to_owned(),
            ok: true,
            detail: format!("{} ms", begun.elapsed().as_millis()),
        },
        Err(why) => Finding { what: "runs a container".to_owned(), ok: false, detail: why },
    }
}

async fn run_true(program: &Path, flags: &[&str], dir: &Path) -> Result<(), String> {
    let wrong = |error: std::io::Error| format!("{}: {error}", dir.display());
    std::fs::create_dir(dir.join("rootfs")).map_err(wrong)?;
    std::fs::write(dir.join("config.json"), bundle().to_string()).map_err(wrong)?;
    let name = format!("hyper-probe-{}", std::process::id());
    let command = |words: &[&str]| {
        let mut command = Command::new(program);
        command.args(flags).arg("--root").arg(dir.join("state")).args(words);
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    };
    let bundle = dir.display().to_string();
    let ran = command(&["run", "--bundle", &bundle, &name]).output();
    let ran = tokio::time::timeout(TRIAL, ran).await;
    // A failed one may be left in its list, with its cgroups.
    if !matches!(&ran, Ok(Ok(output)) if output.status.success()) {
        let removed = command(&["delete", "--force", &name]).output();
        let _ = tokio::time::timeout(TRIAL, removed).await;
    }
    match ran {
        Err(_) => Err(format!("no end within {} s", TRIAL.as_secs())),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let text = String::from_utf8_lossy(&output.stderr);
            Err(text.trim().replace('\n', "; ").chars().take(WORDS).collect())
        }
    }
}

fn bundle() -> Value {
    let own = ["/usr", "/bin", "/lib", "/lib64", "/sbin"];
    let binds = own.iter().filter(|path| Path::new(path).is_dir()).map(|path| {
        json!({ "destination": path, "type": "bind", "source": path, "options": ["rbind", "ro"] })
    });
    let mut mounts = vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc" }),
        // crun looks for it in the root.
        json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "mode=755", "size=64k"] }),
    ];
    mounts.extend(binds);
    json!({
        "ociVersion": "1.0.2",
        "process": { "args": ["/bin/true"], "cwd": "/", "env": ["PATH=/usr/bin:/bin"],
            "user": { "uid": 0, "gid": 0 }, "capabilities": {} },
        "root": { "path": "rootfs" },
        "hostname": "probe",
        "mounts": mounts,
        "linux": {
            "cgroupsPath": format!("/hyper/probe-{}", std::process::id()),
            "namespaces": (["mount", "uts", "ipc", "pid", "network"])
                .map(|kind| json!({ "type": kind })),
            "resources": {},
        },
    })
}

#[cfg(test)]
mod test {
    use super::*;

    #[tokio::test]
    async fn what_is_missing_says_how_to_get_it() {
        let known = Known { name: "no-such-runtime", package: "apt-get install x", ..KNOWN[0] };
        let report = one(known).await;
        assert!(!report.usable && report.findings[0].detail.contains("apt-get install x"));
    }

    #[tokio::test]
    async fn what_fails_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("runtime");
        std::fs::write(&program, "#!/bin/sh\necho no cgroups here >&2\nexit 1\n").unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        let tried = trial(&program, &[]).await;
        assert!(!tried.ok && tried.detail.contains("no cgroups here"), "{tried:?}");
    }
}
