//! Flags of `run` and `create`, and the create request they make.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Map, Value, json};

use super::given::GivenFlags;
use super::mount;
use super::network::NetworkFlags;
use super::settings::SettingFlags;
use crate::terminal;

#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub struct CreateFlags {
    /// Print help; `-h` is Docker's for the hostname
    #[arg(long, action = clap::ArgAction::Help)]
    pub help: Option<bool>,
    /// Name of the container
    #[arg(long)]
    pub name: Option<String>,
    /// Join a pod instead of having one alone
    #[arg(long, value_name = "POD")]
    pub pod: Option<String>,
    /// How strong the wall is: auto, kvm, uml, qemu, … or a runtime of others: runc, crun, runsc, …
    #[arg(long)]
    pub runtime: Option<String>,
    /// Weakest wall that will do: shared-kernel, application-kernel, user-mode-kernel, emulated,
    /// hardware
    #[arg(long, value_name = "WALL")]
    pub min_isolation: Option<String>,
    /// What it may reach: none, public or all, then ,allow=TARGET and ,deny=TARGET as often as
    /// needed (TARGET: ADDRESS[/BITS][:PORT[/PROTOCOL]], to allow HOST[:PORT[/PROTOCOL]], too)
    #[arg(long, value_name = "POLICY")]
    pub egress: Option<String>,
    /// Bits per second that it may receive and send, e.g. in=10m,out=5m
    #[arg(long, value_name = "RATES")]
    pub network_rate: Option<String>,
    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Remove the container when it ends
    #[arg(long)]
    pub rm: bool,
    /// NAME=VALUE, or NAME to pass on the caller's
    #[arg(short, long)]
    pub env: Vec<String>,
    /// File of NAME=VALUE lines
    #[arg(long)]
    pub env_file: Vec<PathBuf>,
    #[arg(short, long)]
    pub workdir: Option<String>,
    /// NAME or UID, with :GROUP or :GID
    #[arg(short, long)]
    pub user: Option<String>,
    #[arg(long)]
    pub group_add: Vec<String>,
    #[arg(short = 'h', long)]
    pub hostname: Option<String>,
    #[arg(long)]
    pub entrypoint: Option<String>,
    /// KEY or KEY=VALUE
    #[arg(short, long)]
    pub label: Vec<String>,
    /// KEY=VALUE for the runtime
    #[arg(long)]
    pub annotation: Vec<String>,
    /// Another guest kernel
    #[arg(long, value_name = "PATH")]
    pub kernel: Option<PathBuf>,
    /// Memory limit, e.g. 512m
    #[arg(short, long)]
    pub memory: Option<String>,
    /// CPUs, e.g. 1.5
    #[arg(long)]
    pub cpus: Option<f64>,
    #[arg(long)]
    pub cpu_shares: Option<i64>,
    #[arg(long)]
    pub pids_limit: Option<i64>,
    #[arg(long)]
    pub read_only: bool,
    /// PATH[:OPTIONS]
    #[arg(long)]
    pub tmpfs: Vec<String>,
    #[arg(long)]
    pub shm_size: Option<String>,
    #[command(flatten)]
    pub settings: SettingFlags,
    #[command(flatten)]
    pub networks: NetworkFlags,
    #[command(flatten)]
    pub given: GivenFlags,
    #[arg(long)]
    pub cap_add: Vec<String>,
    #[arg(long)]
    pub cap_drop: Vec<String>,
    #[arg(long)]
    pub privileged: bool,
    #[arg(long)]
    pub security_opt: Vec<String>,
    /// NAME=SOFT[:HARD]
    #[arg(long)]
    pub ulimit: Vec<String>,
    #[arg(long)]
    pub sysctl: Vec<String>,
    #[arg(long)]
    pub stop_signal: Option<String>,
    #[arg(long)]
    pub stop_timeout: Option<i64>,
    #[arg(long)]
    pub init: bool,
    #[arg(long)]
    pub restart: Option<String>,
    /// [DIRECTORY|VOLUME:]PATH[:OPTIONS]
    #[arg(short, long)]
    pub volume: Vec<String>,
    /// type=bind|volume|tmpfs,source=…,target=…
    #[arg(long)]
    pub mount: Vec<String>,
    /// Mount what another container mounts: CONTAINER[:ro]
    #[arg(long)]
    pub volumes_from: Vec<String>,
    /// Driver of volumes that are made: local, disk or tmpfs
    #[arg(long)]
    pub volume_driver: Option<String>,
    #[arg(long)]
    pub log_driver: Option<String>,
    #[arg(long)]
    pub log_opt: Vec<String>,
    /// always, missing or never
    #[arg(long, default_value = "missing")]
    pub pull: String,
    #[arg(long)]
    pub platform: Option<String>,
    /// Write the container's id to a file
    #[arg(long)]
    pub cidfile: Option<PathBuf>,
    /// IMAGE [COMMAND] [ARGUMENT...]
    #[arg(required = true, trailing_var_arg = true, value_name = "IMAGE [COMMAND]")]
    pub image_and_command: Vec<String>,
}

impl CreateFlags {
    pub fn image(&self) -> &str {
        // clap requires at least one word.
        self.image_and_command.first().map_or("", String::as_str)
    }

    /// Body of `POST /containers/create`.
    pub fn to_body(&self, attach: bool) -> anyhow::Result<Value> {
        let command = &self.image_and_command[1..];
        let mut annotations = pairs(&self.annotation, "annotation")?;
        if let Some(pod) = &self.pod {
            annotations.insert("io.hyper.pod".into(), pod.clone());
        }
        if let Some(wall) = &self.min_isolation {
            annotations.insert("io.hyper.min-isolation".into(), wall.clone());
        }
        if let Some(policy) = &self.egress {
            annotations.insert("io.hyper.egress".into(), policy.clone());
        }
        if let Some(rates) = &self.network_rate {
            annotations.insert("io.hyper.network-rate".into(), rates.clone());
        }
        if let Some(kernel) = &self.kernel {
            let path = std::fs::canonicalize(kernel)
                .with_context(|| format!("kernel `{}`", kernel.display()))?;
            annotations.insert("io.hyper.kernel".into(), path.display().to_string());
        }
        let mut body = json!({
            "Image": self.image(),
            "Cmd": if command.is_empty() { Value::Null } else { json!(command) },
            "Env": self.environment()?,
            "Labels": self.settings.labels(&self.label)?,
            "Tty": self.tty,
            "OpenStdin": self.interactive,
            "StdinOnce": self.interactive && attach,
            "AttachStdin": self.interactive && attach,
            "AttachStdout": attach,
            "AttachStderr": attach,
            "Hostname": self.hostname.as_deref().unwrap_or(""),
            "User": self.user.as_deref().unwrap_or(""),
            "WorkingDir": self.workdir.as_deref().unwrap_or(""),
            "HostConfig": {
                "AutoRemove": self.rm,
                "Runtime": self.runtime.as_deref().unwrap_or(""),
                "Annotations": annotations,
                "Privileged": self.privileged,
                "ReadonlyRootfs": self.read_only,
                "CapAdd": self.cap_add,
                "CapDrop": self.cap_drop,
                "SecurityOpt": self.security_opts()?,
                "GroupAdd": self.group_add,
                "Sysctls": pairs(&self.sysctl, "sysctl")?,
                "Binds": self.volume.iter().map(|text| mount::bind(text)).collect::<Result<Vec<_>, _>>()?,
                "Mounts": self.mount.iter().map(|text| mount::mount(text)).collect::<Result<Vec<_>, _>>()?,
                "VolumesFrom": self.volumes_from,
                "VolumeDriver": self.volume_driver.as_deref().unwrap_or(""),
                "LogConfig": {
                    "Type": self.log_driver.as_deref().unwrap_or(""),
                    "Config": pairs(&self.log_opt, "log-opt")?,
                },
            },
        });
        let host = &mut body["HostConfig"];
        // Told with the request: a change that comes before the process is there is lost.
        if self.tty
            && let Some((rows, columns)) = terminal::size()
        {
            host["ConsoleSize"] = json!([rows, columns]);
        }
        if let Some(memory) = &self.memory {
            host["Memory"] = json!(bytes(memory).with_context(|| format!("--memory `{memory}`"))?);
        }
        if let Some(size) = &self.shm_size {
            host["ShmSize"] = json!(bytes(size).with_context(|| format!("--shm-size `{size}`"))?);
        }
        if let Some(cpus) = self.cpus {
            host["NanoCpus"] = json!(nano_cpus(cpus)?);
        }
        if let Some(shares) = self.cpu_shares {
            host["CpuShares"] = json!(shares);
        }
        if let Some(limit) = self.pids_limit {
            host["PidsLimit"] = json!(limit);
        }
        if self.init {
            host["Init"] = json!(true);
        }
        if !self.tmpfs.is_empty() {
            host["Tmpfs"] = self
                .tmpfs
                .iter()
                .map(|mount| {
                    let (path, options) = mount.split_once(':').unwrap_or((mount, ""));
                    (path.to_owned(), json!(options))
                })
                .collect::<Map<_, _>>()
                .into();
        }
        if !self.ulimit.is_empty() {
            host["Ulimits"] =
                self.ulimit.iter().map(|limit| ulimit(limit)).collect::<Result<_, _>>()?;
        }
        if let Some(policy) = &self.restart {
            host["RestartPolicy"] = restart(policy)?;
        }
        if let Some(entrypoint) = &self.entrypoint {
            body["Entrypoint"] = json!([entrypoint]);
        }
        self.settings.apply(&mut body)?;
        self.networks.apply(&mut body)?;
        self.given.apply(&mut body)?;
        if let Some(signal) = &self.stop_signal {
            body["StopSignal"] = json!(signal);
        }
        if let Some(timeout) = self.stop_timeout {
            body["StopTimeout"] = json!(timeout);
        }
        Ok(body)
    }

    fn environment(&self) -> anyhow::Result<Vec<String>> {
        let mut variables = Vec::new();
        for file in &self.env_file {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("env file `{}`", file.display()))?;
            for line in text.lines().map(str::trim_start) {
                if !line.is_empty() && !line.starts_with('#') {
                    variables.extend(variable(line)?);
                }
            }
        }
        for word in &self.env {
            variables.extend(variable(word)?);
        }
        Ok(variables)
    }

    /// A seccomp profile is a file of the caller's: its text is sent, not its path.
    fn security_opts(&self) -> anyhow::Result<Vec<String>> {
        self.security_opt
            .iter()
            .map(|option| match option.split_once('=') {
                Some(("seccomp", path)) if path != "unconfined" && path != "builtin" => {
                    let text = std::fs::read_to_string(Path::new(path))
                        .with_context(|| format!("seccomp profile `{path}`"))?;
                    let profile: Value = serde_json::from_str(&text)
                        .with_context(|| format!("seccomp profile `{path}` is not JSON"))?;
                    Ok(format!("seccomp={profile}"))
                }
                _ => Ok(option.clone()),
            })
            .collect()
    }
}

/// `NAME=VALUE`, or `NAME` taken from the caller's environment if it is there.
pub fn variable(word: &str) -> anyhow::Result<Option<String>> {
    match word.split_once('=') {
        Some(("", _)) => bail!("environment variable `{word}` has no name"),
        Some(_) => Ok(Some(word.to_owned())),
        None if word.is_empty() => bail!("an environment variable has no name"),
        None => Ok(std::env::var(word).ok().map(|value| format!("{word}={value}"))),
    }
}

pub fn pairs(words: &[String], what: &str) -> anyhow::Result<BTreeMap<String, String>> {
    words
        .iter()
        .map(|word| match word.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => bail!("--{what} `{word}` is not of the form KEY=VALUE"),
        })
        .collect()
}

pub fn loose_pairs(words: &[String]) -> BTreeMap<String, String> {
    words
        .iter()
        .map(|word| {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            (key.to_owned(), value.to_owned())
        })
        .collect()
}

/// Billionths of a CPU.
pub fn nano_cpus(cpus: f64) -> anyhow::Result<i64> {
    if !(cpus.is_finite() && cpus > 0.0 && cpus <= 4096.0) {
        bail!("--cpus `{cpus}` is not a positive number of CPUs");
    }
    #[expect(clippy::cast_possible_truncation, reason = "bounded above")]
    let nanos = (cpus * 1e9) as i64;
    Ok(nanos)
}

/// `512m`, `1.5g`, `1024`: bytes; units are powers of 1024, as in Docker.
pub fn bytes(text: &str) -> anyhow::Result<i64> {
    let lower = text.trim().to_ascii_lowercase();
    let number = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor: f64 = match &lower[number.len()..] {
        "" | "b" => 1.0,
        "k" | "kb" | "kib" => 1024.0,
        "m" | "mb" | "mib" => 1024.0 * 1024.0,
        "g" | "gb" | "gib" => 1024.0 * 1024.0 * 1024.0,
        "t" | "tb" | "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        unit => bail!("unknown unit `{unit}`: use b, k, m, g or t"),
    };
    let value: f64 = number.parse().context("not a number")?;
    if !(value.is_finite() && value >= 0.0 && value * factor < 9e18) {
        bail!("out of range");
    }
    #[expect(clippy::cast_possible_truncation, reason = "bounded above")]
    let whole = (value * factor) as i64;
    Ok(whole)
}

fn ulimit(word: &str) -> anyhow::Result<Value> {
    let parse = || -> Option<Value> {
        let (name, limits) = word.split_once('=')?;
        let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
        Some(
            json!({"Name": name, "Soft": soft.parse::<i64>().ok()?, "Hard": hard.parse::<i64>().ok()?}),
        )
    };
    parse().with_context(|| format!("--ulimit `{word}` is not of the form NAME=SOFT[:HARD]"))
}

/// `--restart` as the API has it.
pub fn restart(policy: &str) -> anyhow::Result<Value> {
    let (name, count) = policy.split_once(':').unwrap_or((policy, "0"));
    if !["no", "always", "on-failure", "unless-stopped"].contains(&name) {
        bail!("--restart `{policy}` is not one of no, on-failure[:N], always, unless-stopped");
    }
    let count: u32 = count.parse().with_context(|| format!("--restart `{policy}`: retries"))?;
    Ok(json!({"Name": name, "MaximumRetryCount": count}))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(bytes("512m").unwrap(), 512 << 20);
        assert_eq!(bytes("1.5G").unwrap(), 3 << 29);
        assert_eq!(bytes("100").unwrap(), 100);
        assert!(bytes("12x").unwrap_err().to_string().contains("`x`"));
        assert!(bytes("-1m").is_err());
        assert!(bytes("").is_err());
    }

    #[test]
    fn restart_policy_is_checked() {
        assert_eq!(restart("on-failure:3").unwrap()["MaximumRetryCount"], 3);
        assert!(restart("sometimes").unwrap_err().to_string().contains("sometimes"));
    }
}
