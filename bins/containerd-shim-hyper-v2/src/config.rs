//! `/etc/hyper/supervisor.toml`, or the file named by `HYPER_SUPERVISOR_CONFIG`; all keys optional.
//!
//! ```toml
//! hypervisor = "auto"                  # or kvm, uml, qemu: the first of them that works
//! min-isolation = "user-mode-kernel"   # emulated, hardware
//! memory = 134217728                   # bytes of a guest without a limit; sparse
//! memory-overhead = 67108864           # bytes over a container's limit
//! vcpus = 1
//! upper-bytes = 10737418240            # size of a container's sparse disk
//! run-dir = "/run/hyper"
//! state-dir = "/var/lib/hyper"
//! guest-dir = "/usr/share/hyper"       # hyperkernel-um, hyperkernel-x86_64, initramfs.cpio
//! templates = false                    # clone pods from saved guests of their shape
//! log = "info"                         # a tracing-subscriber filter
//! [kvm]
//! kernel = "…"  initramfs = "…"  cmdline = ["…"]  boot-timeout-seconds = 20
//! program = "…"                        # the monitor, hyper-vmm
//! huge-pages = "off"                   # or transparent, reserved (of vm.nr_hugepages)
//! prefault = false                     # all memory of a guest is there before it runs
//! map-images = true                    # guests use the host's page cache of their image
//! io-uring = true                      # disks wait by io_uring where the host has it, else by threads
//! [uml]
//! kernel = "…"  initramfs = "…"  cmdline = ["…"]  boot-timeout-seconds = 20
//! separation = "ptrace"                # or seccomp
//! [qemu]
//! kernel = "…"  initramfs = "…"  cmdline = ["…"]  boot-timeout-seconds = 60
//! program = "…"
//! accelerator = "auto"                 # or kvm, tcg
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use hyper_hypervisor::Wall;
use hyper_pod::Flavour;
use hyper_task::environment;
use serde::Deserialize;

const FILE: &str = "/etc/hyper/supervisor.toml";

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    pub hypervisor: String,
    pub min_isolation: Wall,
    pub memory: u64,
    pub memory_overhead: u64,
    pub vcpus: u32,
    pub upper_bytes: u64,
    pub run_dir: PathBuf,
    pub state_dir: PathBuf,
    pub guest_dir: Option<PathBuf>,
    pub templates: bool,
    pub log: String,
    pub kvm: Kvm,
    pub uml: Uml,
    pub qemu: Qemu,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Kvm {
    pub kernel: Option<PathBuf>,
    pub initramfs: Option<PathBuf>,
    pub cmdline: Vec<String>,
    pub boot_timeout_seconds: Option<u64>,
    pub program: Option<PathBuf>,
    pub huge_pages: HugePages,
    pub prefault: bool,
    pub map_images: bool,
    pub io_uring: bool,
}

impl Default for Kvm {
    fn default() -> Self {
        Self {
            kernel: None,
            initramfs: None,
            cmdline: Vec::new(),
            boot_timeout_seconds: None,
            program: None,
            huge_pages: HugePages::default(),
            prefault: false,
            map_images: true,
            io_uring: true,
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HugePages {
    #[default]
    Off,
    Transparent,
    Reserved,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Uml {
    pub kernel: Option<PathBuf>,
    pub initramfs: Option<PathBuf>,
    pub cmdline: Vec<String>,
    pub boot_timeout_seconds: Option<u64>,
    pub separation: Separation,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Separation {
    #[default]
    Ptrace,
    Seccomp,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Qemu {
    pub kernel: Option<PathBuf>,
    pub initramfs: Option<PathBuf>,
    pub cmdline: Vec<String>,
    pub boot_timeout_seconds: Option<u64>,
    pub program: Option<PathBuf>,
    pub accelerator: Accelerator,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accelerator {
    #[default]
    Auto,
    Kvm,
    Tcg,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hypervisor: "auto".to_owned(),
            min_isolation: Wall::UserModeKernel,
            memory: 128 << 20,
            memory_overhead: 64 << 20,
            vcpus: 1,
            upper_bytes: 10 << 30,
            run_dir: told(environment::RUN_DIR, "/run/hyper"),
            state_dir: told(environment::STATE_DIR, "/var/lib/hyper"),
            guest_dir: None,
            templates: false,
            log: "info".to_owned(),
            kvm: Kvm::default(),
            uml: Uml::default(),
            qemu: Qemu::default(),
        }
    }
}

/// What the environment says, else the usual place.
fn told(variable: &str, usual: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| usual.into(), PathBuf::from)
}

impl Config {
    /// Reads the file that the environment names, else the usual one, else takes the defaults.
    pub fn load() -> anyhow::Result<Self> {
        match std::env::var_os(environment::CONFIG) {
            Some(path) => Self::read(Path::new(&path)),
            None if Path::new(FILE).exists() => Self::read(Path::new(FILE)),
            None => Ok(Self::default()),
        }
    }

    fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("read config `{}`", path.display()))?;
        Self::parse(&text).with_context(|| format!("config `{}`", path.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let config: Self = toml::from_str(text)?;
        if !config.upper_bytes.is_multiple_of(4096) || config.upper_bytes < 16 << 20 {
            bail!(
                "upper-bytes is {}, which is not a multiple of 4096 of at least 16 MiB",
                config.upper_bytes
            );
        }
        Ok(config)
    }

    /// What our own monitor boots.
    pub fn kvm_flavour(&self) -> Flavour {
        let Kvm { kernel, initramfs, cmdline, boot_timeout_seconds: timeout, .. } = &self.kvm;
        self.flavour((kernel, "hyperkernel-x86_64"), initramfs, cmdline, timeout.unwrap_or(20))
    }

    /// What user-mode Linux boots.
    pub fn uml_flavour(&self) -> Flavour {
        let Uml { kernel, initramfs, cmdline, boot_timeout_seconds: timeout, .. } = &self.uml;
        self.flavour((kernel, "hyperkernel-um"), initramfs, cmdline, timeout.unwrap_or(20))
    }

    /// What QEMU boots. An emulated kernel is slow, on a busy host very slow.
    pub fn qemu_flavour(&self) -> Flavour {
        let Qemu { kernel, initramfs, cmdline, boot_timeout_seconds: timeout, .. } = &self.qemu;
        self.flavour((kernel, "hyperkernel-x86_64"), initramfs, cmdline, timeout.unwrap_or(60))
    }

    fn flavour(
        &self,
        (kernel, name): (&Option<PathBuf>, &str),
        initramfs: &Option<PathBuf>,
        cmdline: &[String],
        timeout: u64,
    ) -> Flavour {
        Flavour {
            kernel: kernel.clone().unwrap_or_else(|| self.guest_file(name)),
            initramfs: initramfs.clone().unwrap_or_else(|| self.guest_file("initramfs.cpio")),
            extra_cmdline: cmdline.to_vec(),
            boot_timeout: Duration::from_secs(timeout),
        }
    }

    /// In the configured directory, else the first place that has it: beside the program when run
    /// from a build, installed, or the system's.
    fn guest_file(&self, name: &str) -> PathBuf {
        if let Some(dir) = &self.guest_dir {
            return dir.join(name);
        }
        let program = std::env::current_exe().ok();
        let beside = program.as_deref().and_then(Path::parent);
        let dirs: Vec<PathBuf> = beside
            .into_iter()
            .flat_map(|dir| [dir.join("../guest"), dir.join("../share/hyper")])
            .chain(["/usr/local/share/hyper".into(), "/usr/share/hyper".into()])
            .collect();
        let found = dirs.iter().map(|dir| dir.join(name)).find(|path| path.exists());
        // None: the first place, for the error that will name it.
        let path = found.or_else(|| dirs.first().map(|dir| dir.join(name))).unwrap_or_default();
        std::fs::canonicalize(&path).unwrap_or(path)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_documented_file_is_understood() {
        let text: String = include_str!("config.rs")
            .lines()
            .skip_while(|line| !line.contains("```toml"))
            .skip(1)
            .take_while(|line| !line.contains("```"))
            .map(|line| {
                line.trim_start_matches("//! ")
                    .replace("  initramfs", "\ninitramfs")
                    .replace("  cmdline", "\ncmdline")
                    .replace("  boot", "\nboot")
                    + "\n"
            })
            .collect();
        let config = Config::parse(&text).unwrap();
        assert_eq!(config.upper_bytes, Config::default().upper_bytes);
        assert_eq!(config.uml.boot_timeout_seconds, Some(20));
    }

    #[test]
    fn unknown_keys_are_named() {
        for (text, key) in [
            ("memroy = 1", "memroy"),
            ("[uml]\nkernal = 'x'", "kernal"),
            ("upper-bytes = 5", "upper-bytes"),
            ("[kvm]\nhuge-pages = 'big'", "`off`, `transparent`, `reserved`"),
        ] {
            let error = format!("{:#}", Config::parse(text).unwrap_err());
            assert!(error.contains(key), "{error}");
        }
    }
}
