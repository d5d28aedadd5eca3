//! The image's own tree on this host: the same programs without any wall, and the clients that ask servers in containers.
//!
//! Invariants
//! - Nothing is mounted but in mount namespaces that end with the process for which they were made.
//! - All processes end with this program, also when it is killed (`setpriv --pdeathsig`, `unshare --kill-child`).

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tempfile::TempDir;
use tokio::process::Command;

use super::limits::Limits;
use super::process;

const PREFIX: &str = "hyper-bench-";
const MINUTES: Duration = Duration::from_secs(300);
/// `$1` the tree, `$2` the script, then the directories of cgroups to enter. tmpfs: what containers get on request.
/// Capabilities: what containers have.
const ENTER: &str = r#"set -e
tree=$1; script=$2; shift 2
for group; do echo 0 >"$group/cgroup.procs"; done
mount -t proc proc "$tree/proc"
mount --rbind /dev "$tree/dev"
if [ -d "$tree/bench-tmpfs" ]; then mount -t tmpfs -o size=512m tmpfs "$tree/bench-tmpfs"; fi
caps=-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,+net_raw,+sys_chroot,+mknod,+audit_write,+setfcap
exec setpriv --bounding-set "$caps" chroot "$tree" /bin/sh -c "$script""#;

/// A directory with the image's files; goes when dropped.
pub struct Tree {
    dir: TempDir,
    /// Of the subject `host`, if it is one.
    pub limits: Option<Limits>,
}

impl Tree {
    /// Takes the tree out of a container of `runtime` that does not run.
    pub async fn export(
        hyper: &[String],
        runtime: &str,
        image: &str,
        work: &Path,
    ) -> anyhow::Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("needs root (chroot)");
        }
        let prefix = format!("{PREFIX}{}-", std::process::id());
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir_in(work);
        let dir = dir.with_context(|| format!("a directory in `{}`", work.display()))?;
        let tree = Self { dir, limits: None };
        let name = format!("bench-tree-{}", std::process::id());
        let create = ["create", "--name", &name, "--label", super::LABEL, "--network", "none"];
        run(hyper, &[&create[..], &["--runtime", runtime, image, "true"]].concat()).await?;
        let archive = tree.dir.path().join("tree.tar");
        let path = archive.display().to_string();
        let exported = run(hyper, &["export", "-o", &path, &name]).await;
        run(hyper, &["rm", "-f", &name]).await?;
        exported?;
        std::fs::create_dir(tree.root()).context("the tree's directory")?;
        let root = tree.root().display().to_string();
        let unpack = ["tar".to_owned(), "--numeric-owner".into(), "-xpf".into(), path];
        run(&unpack, &["-C", &root]).await?;
        std::fs::remove_file(&archive).context("remove the archive")?;
        for name in ["bench-tmpfs", "bench-volume"] {
            std::fs::create_dir_all(tree.root().join(name)).context("a mount point")?;
        }
        Ok(tree)
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// A script in the tree, with the limits of containers or without any.
    pub fn command(&self, script: &str, limits: Option<&Limits>) -> Command {
        let mut command = self.bare("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork"]);
        command.args(["--kill-child", "--propagation", "private", "sh", "-c", ENTER, "sh"]);
        command.arg(self.root()).arg(script);
        command.args(limits.iter().flat_map(|limits| &limits.dirs));
        command
    }

    /// `true` of the tree, as bare as a process can be started in it.
    pub fn start(&self) -> Command {
        let mut command = self.bare("chroot");
        command.arg(self.root()).arg("/bin/true");
        command
    }

    /// A program of this host with the environment that containers get.
    fn bare(&self, program: &str) -> Command {
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let mut command = Command::new(program);
        command.env_clear().env("PATH", path).env("HOME", "/root");
        process::prepare(&mut command).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }
}

/// Removes what a bench that was killed has left.
pub fn sweep(work: &Path) {
    for entry in work.read_dir().into_iter().flatten().flatten() {
        let name = entry.file_name();
        let maker = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
        // Of this process: it has let go of it.
        let gone = |maker: &str| {
            maker == std::process::id().to_string() || !Path::new("/proc").join(maker).exists()
        };
        if maker.is_some_and(gone) && entry.path().is_dir() {
            // A process that has just been killed may still write.
            for _ in 0..20 {
                if std::fs::remove_dir_all(entry.path()).is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Runs a program with some words before the others.
async fn run(program: &[String], arguments: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new(&program[0]);
    command.args(&program[1..]).args(arguments);
    let ended = process::run(&mut command, MINUTES).await.map_err(anyhow::Error::msg)?;
    match ended.failure() {
        Some(failure) => bail!("`{}`: {failure}", arguments.first().unwrap_or(&"")),
        None => Ok(()),
    }
}
