//! Templates: guests saved where their agent waits to be answered. A pod of the same shape goes on
//! from there, copy-on-write, in place of booting.
//!
//! ```text
//! DIRECTORY/KEY/guest/      what the hypervisor saved         KEY: hash of the shape
//!               hello       what its agent had said
//! DIRECTORY/KEY.new/        one that is being made, by who holds the lock of KEY.lock
//! ```
//! Invariants
//! - Nothing of any container is in a template: it has no disk, no network, no identity.
//! - It has its name when it is whole; one that does not go on is removed, and the pod boots.
//! - Making one takes no pod's time: a process of its own does it, once per shape.

use std::fs::{File, TryLockError};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper_hypervisor::{Disk, GuestKernel, Hypervisor, Nic, Vm, VmConfig, VmError};
use hyper_link::message::Request;
use hyper_link::{EventReceiver, Greeting, Link};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::create::{blocking, make_private};
use crate::settings::{Flavour, Templates};
use crate::{PodError, chain};

/// Templates kept: of more, those that were not used for the longest time go.
const MOST: usize = 16;
/// Beyond the boot's own bound: a guest that cannot be paused or saved.
const SAVE: Duration = Duration::from_secs(240);
/// How long a clone may take to answer; a loaded host emulates slowly.
const ANSWER: Duration = Duration::from_secs(20);
/// When one that could not be made is tried again: each attempt costs a boot.
const AGAIN: Duration = Duration::from_secs(600);
/// How long the guest may take to do what it puts off at boot.
const SETTLE: Duration = Duration::from_millis(300);

/// All that a template is made of. What differs makes another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    pub hypervisor: String,
    kernel: Part,
    initramfs: Part,
    cmdline: Vec<String>,
    vcpus: u32,
    memory_bytes: u64,
    /// Of its network cards.
    mtus: Vec<u32>,
    /// Of each card.
    queues: usize,
    boot_timeout: Duration,
    /// This program: with another, its hypervisors may be others, too.
    program: Part,
    /// The host since it was booted: not every hypervisor tells that it has another CPU now.
    host: String,
}

/// A file as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Part {
    path: PathBuf,
    bytes: u64,
    modified_ns: i128,
}

impl Part {
    fn of(path: &Path) -> Option<Self> {
        let meta = std::fs::metadata(path).ok()?;
        let modified_ns = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
        Some(Self { path: path.to_owned(), bytes: meta.len(), modified_ns })
    }
}

impl Shape {
    /// The shape of a guest; `None`: none that could be saved, because of a file that is not there.
    /// Blocks.
    pub(crate) fn of(hypervisor: &str, flavour: &Flavour, config: &VmConfig) -> Option<Self> {
        Some(Self {
            hypervisor: hypervisor.to_owned(),
            kernel: Part::of(&flavour.kernel)?,
            initramfs: Part::of(&flavour.initramfs)?,
            cmdline: flavour.extra_cmdline.clone(),
            vcpus: config.vcpus,
            memory_bytes: config.memory_bytes,
            mtus: config.nics.iter().map(|nic| nic.mtu).collect(),
            queues: config.nics.first().map_or(1, |nic| nic.tap.len()),
            boot_timeout: flavour.boot_timeout,
            program: Part::of(&std::env::current_exe().ok()?)?,
            host: std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?,
        })
    }

    fn key(&self) -> String {
        // Plain data is always JSON.
        let text = serde_json::to_vec(self).unwrap_or_default();
        Sha256::digest(text).iter().take(12).map(|byte| format!("{byte:02x}")).collect()
    }

    /// A guest of this shape; without disks, with a template's cards.
    fn config(
        &self,
        id: String,
        run_dir: PathBuf,
        taps: Vec<Vec<Arc<std::os::fd::OwnedFd>>>,
    ) -> VmConfig {
        let nics = taps.into_iter().zip(&self.mtus).enumerate();
        VmConfig {
            id,
            kernel: GuestKernel {
                kernel: self.kernel.path.clone(),
                initramfs: self.initramfs.path.clone(),
                extra_cmdline: self.cmdline.clone(),
            },
            vcpus: self.vcpus,
            memory_bytes: self.memory_bytes,
            disks: Vec::new(),
            nics: nics.map(|(at, (tap, mtu))| Nic { tap, mac: card(at), mtu: *mtu }).collect(),
            late_disks: true,
            share: None,
            run_dir,
            cgroup: None,
        }
    }
}

/// Address of a template's card, by which a clone's agent finds it.
pub(crate) fn card(at: usize) -> String {
    format!("02:00:00:00:74:{at:02x}")
}

/// A template that is there.
#[derive(Debug)]
pub(crate) struct Template {
    key: String,
    directory: PathBuf,
    shape: Shape,
    hello: Greeting,
}

/// A guest whose agent has been met.
pub(crate) struct Met {
    pub vm: Arc<dyn Vm>,
    pub link: Link,
    pub events: EventReceiver,
    /// Nodes of each disk.
    pub devices: Vec<Vec<String>>,
}

/// Why there is no clone.
#[derive(Debug)]
pub(crate) enum NoClone {
    /// The template is of no use to anybody.
    Broken(String),
    /// It is of none to this pod.
    Unsuited(String),
}

impl Template {
    /// The template of `shape`, if there is one. Blocks.
    pub fn find(templates: &Templates, shape: &Shape) -> Option<Self> {
        let key = shape.key();
        let directory = templates.directory.join(&key);
        let hello = Greeting::from(std::fs::read(directory.join("hello")).ok()?);
        // When it was used last.
        if let Ok(file) = File::open(directory.join("hello")) {
            let _ = file.set_modified(SystemTime::now());
        }
        Some(Self { key, directory, shape: shape.clone(), hello })
    }

    /// The start of its key, for people.
    pub fn name(&self) -> &str {
        &self.key[..12]
    }

    /// Goes on as the guest that `config` describes.
    pub async fn go_on(
        &self,
        hypervisor: &dyn Hypervisor,
        config: &VmConfig,
        disks: &[Disk],
    ) -> Result<Met, NoClone> {
        let fail = |what: &str, why: String| NoClone::Broken(format!("{what}: {why}"));
        let taps = config.nics.iter().map(|nic| nic.tap.clone()).collect();
        let mut clone = self.shape.config(config.id.clone(), config.run_dir.clone(), taps);
        clone.cgroup.clone_from(&config.cgroup);
        let restored = hypervisor.restore(&self.directory.join("guest"), clone).await;
        let mut vm = restored.map_err(|error| match error {
            // What the host lacks now is not the template's fault, and is told when the pod boots.
            VmError::Jail { .. } | VmError::Missing { .. } | VmError::Io { .. } => {
                NoClone::Unsuited(format!("continue it: {}", chain(&error)))
            }
            _ => fail("continue it", chain(&error)),
        })?;
        let carrier = vm.take_link().ok_or_else(|| fail("continue it", "no link".to_owned()))?;
        let vm: Arc<dyn Vm> = vm.into();
        let met = async {
            let (link, events) = hyper_link::connect_to(carrier, &self.hello, ANSWER)
                .await
                .map_err(|error| fail("meet its agent", chain(&error)))?;
            let answer = link.call(Request::Ping, ANSWER).await;
            answer.map_err(|error| fail("ask its agent", chain(&error)))?;
            let mut devices = Vec::new();
            for disk in disks {
                // The disk is this pod's, and so is what is wrong with it.
                let added = vm.add_disk(disk.clone()).await;
                devices.push(added.map_err(|error| NoClone::Unsuited(chain(&error)))?);
            }
            Ok((link, events, devices))
        };
        match met.await {
            Ok((link, events, devices)) => Ok(Met { vm, link, events, devices }),
            Err(error) => {
                vm.kill().await;
                Err(error)
            }
        }
    }

    /// Removes it: it is of no use. Clones that run keep what they have open. Blocks.
    pub fn remove(&self) {
        if let Err(error) = remove(&self.directory) {
            tracing::warn!(path = %self.directory.display(), %error, "template not removed");
        }
    }
}

/// Has the template of `shape` made by a process of its own, unless somebody does already. Blocks
/// for a moment.
pub(crate) fn order(templates: &Templates, shape: &Shape) -> Result<(), PodError> {
    make_private(&templates.directory)?;
    let key = shape.key();
    if lock(&templates.directory, &key)?.is_none() {
        return Ok(());
    }
    let failed =
        std::fs::metadata(failure(&templates.directory, &key)).and_then(|meta| meta.modified());
    if failed.is_ok_and(|at| at.elapsed().is_ok_and(|ago| ago < AGAIN)) {
        let log = templates.directory.join("supervisor.log");
        return Err(PodError::Internal(format!("it failed lately, see `{}`", log.display())));
    }
    let program = &templates.maker;
    let mut command = Command::new(program);
    command.arg("template").current_dir("/").stdin(Stdio::piped());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    // It outlives this pod: its own process group gets no signal meant for the supervisor.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut child = command.spawn().map_err(PodError::file("start", program))?;
    let told = child.stdin.take().map(|stdin| serde_json::to_writer(stdin, shape));
    std::thread::spawn(move || drop(child.wait()));
    match told {
        Some(Err(error)) => Err(PodError::Internal(format!("tell the template's maker: {error}"))),
        _ => Ok(()),
    }
}

/// Makes the template of `shape` in `directory`; nothing to do when it is there or being made.
///
/// # Errors
/// The guest does not boot or cannot be saved; nothing is left then.
pub async fn make_template(
    directory: &Path,
    hypervisor: &dyn Hypervisor,
    shape: &Shape,
) -> Result<(), PodError> {
    make_private(directory)?;
    let key = shape.key();
    let Some(_lock) = lock(directory, &key)? else { return Ok(()) };
    let (place, new) = (directory.join(&key), directory.join(format!("{key}.new")));
    if place.exists() {
        return Ok(());
    }
    // One that was killed in the middle.
    let _ = std::fs::remove_dir_all(&new);
    let patience = shape.boot_timeout + SAVE;
    let made = tokio::time::timeout(patience, saved(&new, hypervisor, shape)).await;
    let made = made.unwrap_or_else(|_| {
        Err(PodError::Internal(format!("a template took more than {} s", patience.as_secs())))
    });
    let made = made.and_then(|()| {
        std::fs::rename(&new, &place).map_err(PodError::file("name template", &place))
    });
    match made {
        Ok(()) => {
            let _ = std::fs::remove_file(failure(directory, &key));
            drop_oldest(directory);
            Ok(())
        }
        Err(error) => {
            let _ = std::fs::remove_dir_all(&new);
            let _ = File::create(failure(directory, &key));
            Err(error)
        }
    }
}

async fn saved(new: &Path, hypervisor: &dyn Hypervisor, shape: &Shape) -> Result<(), PodError> {
    let (guest, run_dir) = (new.join("guest"), new.join("run"));
    make_private(&guest)?;
    make_private(&run_dir)?;
    let (cards, queues) = (shape.mtus.len(), shape.queues);
    let taps =
        blocking(move || hyper_network::tap::unconnected(cards, queues).map_err(PodError::Network));
    let taps = taps.await?.into_iter().map(|tap| tap.into_iter().map(Arc::new).collect()).collect();
    let id = format!("template-{:.12}-{}", shape.key(), std::process::id());
    let fail = |what: &str| {
        let action = format!("{what} template guest `{id}`");
        move |source: VmError| PodError::Vm { action, source }
    };
    let config = shape.config(id.clone(), run_dir.clone(), taps);
    let mut vm = hypervisor.launch(config).await.map_err(fail("launch"))?;
    let work = async {
        let mut carrier = vm.take_link().ok_or_else(|| PodError::Internal("no link".to_owned()))?;
        let heard = hyper_link::hear(&mut carrier, shape.boot_timeout).await;
        let hello = heard.map_err(|error| {
            PodError::Internal(format!("agent of a template: {}: {}", chain(&error), vm.console()))
        })?;
        tokio::time::sleep(SETTLE).await;
        vm.pause().await.map_err(fail("pause"))?;
        vm.save(&guest).await.map_err(fail("save"))?;
        Ok(hello)
    };
    let hello = work.await;
    vm.kill().await;
    let path = new.join("hello");
    std::fs::write(&path, hello?.bytes()).map_err(PodError::file("write", &path))?;
    std::fs::remove_dir_all(&run_dir).map_err(PodError::file("remove", &run_dir))
}

/// Its time says when a template could not be made.
fn failure(directory: &Path, key: &str) -> PathBuf {
    directory.join(format!("{key}.failed"))
}

/// `None`: another process has it.
fn lock(directory: &Path, key: &str) -> Result<Option<File>, PodError> {
    let path = directory.join(format!("{key}.lock"));
    let file = File::create(&path).map_err(PodError::file("make", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(PodError::file("lock", &path)(error)),
    }
}

fn drop_oldest(directory: &Path) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    let mut known: Vec<(SystemTime, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let used = std::fs::metadata(entry.path().join("hello")).ok()?.modified().ok()?;
            Some((used, entry.path()))
        })
        .collect();
    known.sort();
    for (_, path) in known.iter().take(known.len().saturating_sub(MOST)) {
        if let Err(error) = remove(path) {
            tracing::warn!(path = %path.display(), %error, "old template not removed");
        }
        let _ = std::fs::remove_file(path.with_extension("lock"));
    }
}

/// Its greeting goes first: nobody begins with the half of one.
fn remove(directory: &Path) -> std::io::Result<()> {
    let _ = std::fs::remove_file(directory.join("hello"));
    std::fs::remove_dir_all(directory)
}

#[cfg(test)]
mod test {
    use super::*;

    fn shape(directory: &Path, memory_bytes: u64) -> Shape {
        let file = directory.join("file");
        std::fs::write(&file, "kernel").unwrap();
        let part = Part::of(&file).unwrap();
        Shape {
            hypervisor: "fake".to_owned(),
            kernel: part.clone(),
            initramfs: part.clone(),
            cmdline: vec![],
            vcpus: 1,
            memory_bytes,
            mtus: vec![],
            queues: 1,
            boot_timeout: Duration::from_secs(1),
            program: part,
            host: "host".to_owned(),
        }
    }

    fn kept(templates: &Templates, shape: &Shape) {
        let directory = templates.directory.join(shape.key());
        std::fs::create_dir_all(directory.join("guest")).unwrap();
        std::fs::write(directory.join("hello"), "hi").unwrap();
    }

    #[test]
    fn every_part_of_a_shape_makes_another_template() {
        let directory = tempfile::tempdir().unwrap();
        let one = shape(directory.path(), 1 << 27);
        let mut keys = vec![one.key(), shape(directory.path(), 1 << 28).key()];
        keys.push(Shape { vcpus: 2, ..one.clone() }.key());
        keys.push(Shape { mtus: vec![1500], ..one.clone() }.key());
        keys.push(Shape { host: "booted again".to_owned(), ..one.clone() }.key());
        keys.push(Shape { cmdline: vec!["quiet".to_owned()], ..one.clone() }.key());
        std::fs::write(directory.path().join("file"), "another kernel").unwrap();
        let kernel = Part::of(&directory.path().join("file")).unwrap();
        keys.push(Shape { kernel, ..one }.key());
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 7);
    }

    #[test]
    fn templates_that_nobody_uses_go_first() {
        let directory = tempfile::tempdir().unwrap();
        let templates =
            Templates { directory: directory.path().join("t"), maker: "/x".into(), on: true };
        let shapes: Vec<Shape> =
            (1..=18).map(|number| shape(directory.path(), number << 20)).collect();
        for (age, shape) in (0_u64..).zip(&shapes) {
            kept(&templates, shape);
            let hello = templates.directory.join(shape.key()).join("hello");
            let then = SystemTime::now() - Duration::from_secs(1000 - age);
            File::open(hello).unwrap().set_modified(then).unwrap();
        }
        // The oldest is used.
        assert!(Template::find(&templates, &shapes[0]).is_some());
        drop_oldest(&templates.directory);
        let there = |shape: &Shape| Template::find(&templates, shape).is_some();
        assert_eq!(shapes.iter().map(there).collect::<Vec<_>>()[..4], [true, false, false, true]);
    }

    #[test]
    fn only_one_makes_a_template() {
        let directory = tempfile::tempdir().unwrap();
        let first = lock(directory.path(), "key").unwrap();
        assert!(first.is_some());
        assert!(lock(directory.path(), "key").unwrap().is_none());
        drop(first);
        assert!(lock(directory.path(), "key").unwrap().is_some());
    }
}
