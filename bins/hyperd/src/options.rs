//! Options: the command line over the configuration file over the defaults.
//!
//! The flags are dockerd's. The file is JSON or TOML by its name, with the same words; a key that
//! is not known is an error, and so is one that is given in both places (dockerd's rule).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Parser;
use serde::Deserialize;

use crate::rootless;
use crate::runtimes::Configured;

/// Used when it is there.
const POLICY_FILE: &str = "policy.toml";
/// Read when they are there.
const CONFIG_FILES: [&str; 2] = ["hyperd.json", "hyperd.toml"];

/// Runs every container in a kernel of its own, behind the Docker Engine API.
#[derive(Debug, Parser)]
#[command(name = "hyperd", version, max_term_width = 100)]
pub struct Arguments {
    /// Socket to listen on: unix://PATH, or fd:// for systemd's [default: unix:///run/hyper/hyper.sock,
    /// without root unix://$XDG_RUNTIME_DIR/hyper/hyper.sock]
    #[arg(short = 'H', long = "host", value_name = "HOST")]
    host: Vec<String>,
    /// Directory of images, containers and state [default: /var/lib/hyper, without root
    /// ~/.local/share/hyper]
    #[arg(long, value_name = "DIR")]
    data_root: Option<PathBuf>,
    /// Directory of running pods, on a tmpfs [default: /run/hyper, without root
    /// $XDG_RUNTIME_DIR/hyper]
    #[arg(long, value_name = "DIR")]
    exec_root: Option<PathBuf>,
    /// Configuration file, JSON or TOML [default: hyperd.json or hyperd.toml in
    /// /etc/hyper, without root in ~/.config/hyper]
    #[arg(long, value_name = "FILE")]
    config_file: Option<PathBuf>,
    /// File to write the process id to
    #[arg(short, long, value_name = "FILE")]
    pidfile: Option<PathBuf>,
    /// Log more: the same as --log-level debug
    #[arg(short = 'D', long)]
    debug: bool,
    /// error, warn, info, debug, trace, or a filter such as hyper_engine=debug [default: info]
    #[arg(short, long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Registry that is reached by plain HTTP or with an unknown certificate (host[:port] or CIDR)
    #[arg(long, value_name = "REGISTRY")]
    insecure_registry: Vec<String>,
    /// Mirror of docker.io
    #[arg(long, value_name = "URL")]
    registry_mirror: Vec<String>,
    /// Directory with a directory per registry (host[:port]) that holds its CAs and client certificates
    /// [default: /etc/hyper/certs.d and /etc/docker/certs.d]
    #[arg(long, value_name = "DIR")]
    registry_certificates: Vec<PathBuf>,
    /// Layers fetched at once [default: 3]
    #[arg(long, value_name = "N")]
    max_concurrent_downloads: Option<usize>,
    /// Layers sent at once [default: 5]
    #[arg(long, value_name = "N")]
    max_concurrent_uploads: Option<usize>,
    /// Attempts at a transfer that brings nothing [default: 5]
    #[arg(long, value_name = "N")]
    max_download_attempts: Option<u32>,
    /// Bytes the image store may hold, as 500M or 20G [default: as many as the disk has]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    image_store_limit: Option<u64>,
    /// Pull what refers to an image (signatures, bills of materials) with it [default: true]
    #[arg(long, value_name = "BOOL")]
    keep_referrers: Option<bool>,
    /// Policy for signatures of images, TOML [default: /etc/hyper/policy.toml if it is there]
    #[arg(long, value_name = "FILE")]
    signature_policy: Option<PathBuf>,
    /// Runtime of containers that name none: auto, qemu, uml, runc, … [default: auto]
    #[arg(long, value_name = "RUNTIME")]
    default_runtime: Option<String>,
    /// Weakest wall that containers may have: shared-kernel, application-kernel, user-mode-kernel,
    /// emulated, hardware [default: any that is asked for]
    #[arg(long, value_name = "WALL")]
    min_isolation: Option<String>,
    /// Supervisor program [default: containerd-shim-hyper-v2 beside hyperd or on PATH]
    #[arg(long, value_name = "FILE")]
    supervisor: Option<PathBuf>,
}

/// The configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct File {
    hosts: Vec<String>,
    data_root: Option<PathBuf>,
    exec_root: Option<PathBuf>,
    pidfile: Option<PathBuf>,
    debug: Option<bool>,
    log_level: Option<String>,
    insecure_registries: Vec<String>,
    registry_mirrors: Vec<String>,
    /// By registry: mirrors and whether it is insecure.
    registries: BTreeMap<String, Registry>,
    registry_certificates: Vec<PathBuf>,
    max_concurrent_downloads: Option<usize>,
    max_concurrent_uploads: Option<usize>,
    max_download_attempts: Option<u32>,
    image_store_limit: Option<Size>,
    /// Signatures and other documents about an image are pulled with it.
    keep_referrers: Option<bool>,
    signature_policy: Option<PathBuf>,
    layer_limits: LayerLimits,
    default_runtime: Option<String>,
    min_isolation: Option<String>,
    /// Runtimes of others, as dockerd has them.
    runtimes: BTreeMap<String, Configured>,
    supervisor: Option<PathBuf>,
}

/// How one registry is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Registry {
    /// Base URLs that are asked first, in order.
    pub mirrors: Vec<String>,
    /// Plain HTTP, or a certificate that is not checked.
    pub insecure: bool,
}

/// What one layer may cost; what is not given is as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct LayerLimits {
    /// Files, directories and links.
    pub entries: Option<u64>,
    /// Path components.
    pub depth: Option<usize>,
    /// Bytes of file contents, sparse files expanded.
    pub data_bytes: Option<u64>,
    /// Bytes of holes.
    pub hole_bytes: Option<u64>,
    /// Bytes of the uncompressed archive.
    pub stream_bytes: Option<u64>,
    /// Bytes of names, targets and xattrs, which are held in memory.
    pub index_bytes: Option<u64>,
}

/// Where things are that nobody has named.
#[derive(Debug)]
struct Places {
    data_root: PathBuf,
    exec_root: PathBuf,
    config: PathBuf,
}

impl Places {
    fn of_the_host() -> Self {
        Self {
            data_root: "/var/lib/hyper".into(),
            exec_root: "/run/hyper".into(),
            config: "/etc/hyper".into(),
        }
    }

    /// By the XDG base directory specification.
    fn of_a_user(exec_root_given: bool) -> anyhow::Result<Self> {
        let exec_root = match rootless::directory("XDG_RUNTIME_DIR", None) {
            Err(_) if exec_root_given => "/".into(),
            found => found?,
        };
        Ok(Self {
            data_root: rootless::directory("XDG_DATA_HOME", Some(".local/share"))?.join("hyper"),
            exec_root: exec_root.join("hyper"),
            config: rootless::directory("XDG_CONFIG_HOME", Some(".config"))?.join("hyper"),
        })
    }

    fn host(&self) -> String {
        format!("unix://{}", self.exec_root.join("hyper.sock").display())
    }
}

/// What counts.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    pub hosts: Vec<String>,
    pub data_root: PathBuf,
    pub exec_root: PathBuf,
    pub pidfile: Option<PathBuf>,
    pub debug: bool,
    pub log_level: String,
    pub insecure_registries: Vec<String>,
    pub registry_mirrors: Vec<String>,
    pub registries: BTreeMap<String, Registry>,
    pub registry_certificates: Vec<PathBuf>,
    pub max_concurrent_downloads: Option<usize>,
    pub max_concurrent_uploads: Option<usize>,
    pub max_download_attempts: Option<u32>,
    pub image_store_limit: Option<u64>,
    pub keep_referrers: bool,
    pub signature_policy: Option<PathBuf>,
    pub layer_limits: LayerLimits,
    pub default_runtime: String,
    /// Empty: any.
    pub min_isolation: String,
    pub runtimes: BTreeMap<String, Configured>,
    pub supervisor: Option<PathBuf>,
}

impl Options {
    /// # Errors
    /// A file that cannot be read, an unknown key, an option in both places, a bad value.
    pub fn read(arguments: Arguments) -> anyhow::Result<Self> {
        let places = if rootless::is_ours() {
            Places::of_a_user(arguments.exec_root.is_some() && !arguments.host.is_empty())?
        } else {
            Places::of_the_host()
        };
        let usual = CONFIG_FILES.map(|name| places.config.join(name));
        let path = arguments.config_file.clone();
        let path = path.or_else(|| usual.into_iter().find(|path| path.exists()));
        let file = path.map_or_else(|| Ok(File::default()), |path| read_file(&path))?;
        Self::merge(arguments, file, &places)
    }

    fn merge(arguments: Arguments, file: File, places: &Places) -> anyhow::Result<Self> {
        let debug = arguments.debug || file.debug.unwrap_or(false);
        let hosts = list("host", arguments.host, file.hosts)?;
        let log_level = one("log-level", arguments.log_level, file.log_level)?;
        let options = Self {
            hosts: if hosts.is_empty() { vec![places.host()] } else { hosts },
            data_root: absolute(
                "data-root",
                one("data-root", arguments.data_root, file.data_root)?,
                &places.data_root,
            )?,
            exec_root: absolute(
                "exec-root",
                one("exec-root", arguments.exec_root, file.exec_root)?,
                &places.exec_root,
            )?,
            pidfile: one("pidfile", arguments.pidfile, file.pidfile)?,
            debug,
            log_level: match (log_level, debug) {
                (Some(level), _) => level,
                (None, true) => "debug,h2=info,hyper_util=info".to_owned(),
                (None, false) => "info".to_owned(),
            },
            insecure_registries: list(
                "insecure-registry",
                arguments.insecure_registry,
                file.insecure_registries,
            )?,
            registry_mirrors: list(
                "registry-mirror",
                arguments.registry_mirror,
                file.registry_mirrors,
            )?,
            registries: file.registries,
            registry_certificates: list(
                "registry-certificates",
                arguments.registry_certificates,
                file.registry_certificates,
            )?,
            max_concurrent_downloads: positive(
                "max-concurrent-downloads",
                arguments.max_concurrent_downloads,
                file.max_concurrent_downloads,
            )?,
            max_concurrent_uploads: positive(
                "max-concurrent-uploads",
                arguments.max_concurrent_uploads,
                file.max_concurrent_uploads,
            )?,
            max_download_attempts: positive(
                "max-download-attempts",
                arguments.max_download_attempts,
                file.max_download_attempts,
            )?,
            keep_referrers: one("keep-referrers", arguments.keep_referrers, file.keep_referrers)?
                .unwrap_or(true),
            image_store_limit: positive(
                "image-store-limit",
                arguments.image_store_limit,
                match file.image_store_limit {
                    None => None,
                    Some(Size::Bytes(bytes)) => Some(bytes),
                    Some(Size::Text(text)) => Some(
                        size(&text).map_err(|why| anyhow::anyhow!("`image-store-limit`: {why}"))?,
                    ),
                },
            )?,
            signature_policy: one(
                "signature-policy",
                arguments.signature_policy,
                file.signature_policy,
            )?
            .or_else(|| Some(places.config.join(POLICY_FILE)).filter(|path| path.exists())),
            layer_limits: file.layer_limits,
            default_runtime: one(
                "default-runtime",
                arguments.default_runtime,
                file.default_runtime,
            )?
            .unwrap_or_else(|| "auto".to_owned()),
            min_isolation: one("min-isolation", arguments.min_isolation, file.min_isolation)?
                .unwrap_or_default(),
            runtimes: file.runtimes,
            supervisor: one("supervisor", arguments.supervisor, file.supervisor)?,
        };
        for host in &options.hosts {
            crate::listen::check(host)?;
        }
        Ok(options)
    }
}

/// A size in the file: a number, or as on the command line.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Size {
    Bytes(u64),
    Text(String),
}

/// `20G`, `20GB`, `20GiB`, `500m`, `1048576`: units are powers of 1024, as dockerd has them.
fn size(text: &str) -> Result<u64, String> {
    let bad = || format!("`{text}` is not a size: give bytes, or a number with k, m, g or t");
    let lower = text.trim().to_ascii_lowercase();
    let end = lower.find(|c: char| !c.is_ascii_digit()).unwrap_or(lower.len());
    let (number, unit) = lower.split_at(end);
    let number: u64 = number.parse().map_err(|_| bad())?;
    let shift = match unit.trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(bad()),
    };
    number.checked_mul(1 << shift).ok_or_else(bad)
}

fn one<T>(name: &str, argument: Option<T>, file: Option<T>) -> anyhow::Result<Option<T>> {
    match (argument, file) {
        (Some(_), Some(_)) => {
            bail!("`{name}` is given on the command line and in the configuration file: remove one")
        }
        (argument, file) => Ok(argument.or(file)),
    }
}

fn positive<T: PartialEq + Default>(
    name: &str,
    argument: Option<T>,
    file: Option<T>,
) -> anyhow::Result<Option<T>> {
    let value = one(name, argument, file)?;
    if value.as_ref() == Some(&T::default()) {
        bail!("`{name}` must be at least 1");
    }
    Ok(value)
}

fn list<T>(name: &str, arguments: Vec<T>, file: Vec<T>) -> anyhow::Result<Vec<T>> {
    if !arguments.is_empty() && !file.is_empty() {
        bail!("`{name}` is given on the command line and in the configuration file: remove one");
    }
    Ok(if arguments.is_empty() { file } else { arguments })
}

/// Supervisors have another working directory.
fn absolute(name: &str, path: Option<PathBuf>, default: &Path) -> anyhow::Result<PathBuf> {
    let path = path.unwrap_or_else(|| default.to_owned());
    std::path::absolute(&path).with_context(|| format!("{name} `{}`", path.display()))
}

fn read_file(path: &Path) -> anyhow::Result<File> {
    let what = || format!("configuration file {}", path.display());
    let text = std::fs::read_to_string(path).with_context(what)?;
    if path.extension().is_some_and(|extension| extension == "toml") {
        return toml::from_str(&text).with_context(what);
    }
    if text.trim().is_empty() {
        return Ok(File::default());
    }
    serde_json::from_str(&text).with_context(what)
}

#[cfg(test)]
mod test {
    use super::*;

    fn options(words: &[&str]) -> anyhow::Result<Options> {
        Options::read(Arguments::try_parse_from(words)?)
    }

    fn with_file(name: &str, text: &str, words: &[&str]) -> anyhow::Result<Options> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        let path = path.display().to_string();
        options(&[&["hyperd", "--config-file", &path], words].concat())
    }

    #[test]
    fn dockerds_flags() {
        let options = with_file(
            "x.json",
            "",
            &["-H", "unix:///a", "-H", "unix:///b", "-D", "--data-root", "/d", "-p", "/p"],
        )
        .unwrap();
        assert_eq!(options.hosts, ["unix:///a", "unix:///b"]);
        assert!(options.debug && options.log_level.starts_with("debug"));
        assert_eq!(options.data_root, Path::new("/d"));
        assert_eq!(options.exec_root, Path::new("/run/hyper"));
        assert_eq!(options.default_runtime, "auto");
    }

    #[test]
    fn both_kinds_of_files() {
        let json = r#"{"hosts": ["unix:///x"], "debug": true, "registry-mirrors": ["http://m"]}"#;
        let toml = "hosts = [\"unix:///x\"]\ndebug = true\nregistry-mirrors = [\"http://m\"]\n";
        let from_json = with_file("x.json", json, &[]).unwrap();
        assert_eq!(from_json, with_file("x.toml", toml, &[]).unwrap());
        assert_eq!(from_json.registry_mirrors, ["http://m"]);
    }

    #[test]
    fn registries_and_limits() {
        let toml = "max-concurrent-downloads = 8\n[registries.\"ghcr.io\"]\nmirrors = [\"https://m\"]\n\
                    [registries.\"reg.lan:5000\"]\ninsecure = true\n[layer-limits]\nentries = 10\n";
        let options = with_file("x.toml", toml, &["--registry-certificates", "/c"]).unwrap();
        assert_eq!(options.registries["ghcr.io"].mirrors, ["https://m"]);
        assert!(options.registries["reg.lan:5000"].insecure);
        assert_eq!(options.layer_limits.entries, Some(10));
        assert_eq!(options.max_concurrent_downloads, Some(8));
        let sized =
            |text, words: &[&str]| with_file("x.toml", text, words).unwrap().image_store_limit;
        assert_eq!(sized("image-store-limit = \"2GiB\"", &[]), Some(2 << 30));
        assert_eq!(sized("image-store-limit = 5000", &[]), Some(5000));
        assert_eq!(sized("", &["--image-store-limit", "500m"]), Some(500 << 20));
        assert_eq!(options.registry_certificates, [Path::new("/c")]);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, words, named) in [
            (r#"{"data-rot": "/x"}"#, &[][..], "data-rot"),
            (r#"{"data-root": "/x"}"#, &["--data-root", "/y"][..], "data-root"),
            (r#"{"hosts": ["unix:///x"]}"#, &["-H", "unix:///y"][..], "host"),
            (r#"{"runtimes": {"x": {"pathh": "/y"}}}"#, &[][..], "pathh"),
            (r#"{"min-isolation": "a"}"#, &["--min-isolation", "b"][..], "min-isolation"),
            (r#"{"max-concurrent-uploads": 0}"#, &[][..], "max-concurrent-uploads"),
            (r#"{"layer-limits": {"entires": 1}}"#, &[][..], "entires"),
            (r#"{"image-store-limit": "20X"}"#, &[][..], "20X"),
            ("{}", &["--image-store-limit", "0"][..], "at least 1"),
            ("{}", &["-H", "tcp://0.0.0.0:2375"][..], "TLS"),
            ("{", &[][..], "line 1"),
        ] {
            let error = format!("{:#}", with_file("x.json", text, words).unwrap_err());
            assert!(error.contains(named), "{error}");
        }
    }
}
