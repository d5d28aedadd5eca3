//! Whether QEMU works on this host, for `hyper doctor`.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use hyper_adapter::{Findings, chain};
use hyper_hypervisor::Probe;
use tokio::process::Command;
use tokio::time::timeout;

use crate::accelerator::Chosen;
use crate::{Options, kernel, launch};

/// Longest run of QEMU to ask it something.
const ASK: Duration = Duration::from_secs(10);

pub async fn probe(options: &Options, chosen: &Chosen) -> Probe {
    let mut found = Findings::default();
    let version = match launch::program(options) {
        Ok(program) => ask_program(&mut found, &program).await,
        Err(error) => {
            found.required("program", false, error.to_string());
            None
        }
    };
    let detail = chosen.kvm_detail.clone();
    if chosen.refused {
        found.required("KVM", false, detail);
    } else if chosen.kvm_works {
        found.optional("KVM", true, detail);
    } else {
        found.optional("KVM", false, format!("{detail}; guests are emulated (TCG)"));
    }
    if let Some(path) = options.kernel.clone() {
        look_at_kernel(&mut found, path).await;
    }
    found.jail().await;
    found.probe(version)
}

async fn ask_program(found: &mut Findings, program: &Path) -> Option<String> {
    let shown = program.display().to_string();
    let version = match ask(program, "--version").await {
        Ok(said) => said
            .split("version ")
            .nth(1)
            .and_then(|rest| Some(rest.split_whitespace().next()?.to_owned())),
        Err(why) => {
            found.required("program", false, format!("`{shown} --version`: {why}"));
            return None;
        }
    };
    found.required("program", version.is_some(), format!("`{shown}`"));
    let machines = ask(program, "-machine help");
    let (ok, detail) = match machines.await {
        Ok(list) if list.lines().any(|line| line.starts_with("microvm ")) => {
            (true, "this QEMU has it".to_owned())
        }
        Ok(_) => (false, "this QEMU is built without it".to_owned()),
        Err(why) => (false, format!("`{shown} -machine help`: {why}")),
    };
    found.required("machine `microvm`", ok, detail);
    version
}

async fn look_at_kernel(found: &mut Findings, path: std::path::PathBuf) {
    let shown = path.display().to_string();
    let looked = tokio::task::spawn_blocking(move || kernel::check(&path)).await;
    let (ok, detail) = match looked {
        Ok(Ok(())) => (true, format!("`{shown}`")),
        Ok(Err(error)) => (false, chain(&error)),
        Err(error) => (false, error.to_string()),
    };
    found.required("guest kernel", ok, detail);
}

async fn ask(program: &Path, words: &str) -> Result<String, String> {
    let running = Command::new(program)
        .args(words.split(' '))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    match timeout(ASK, running).await {
        Ok(Ok(said)) if said.status.success() => {
            Ok(String::from_utf8_lossy(&said.stdout).into_owned())
        }
        Ok(Ok(said)) => Err(format!("{}", said.status)),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", ASK.as_secs())),
    }
}
