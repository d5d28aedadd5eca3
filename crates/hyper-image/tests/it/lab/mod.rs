//! What the tests need around the store: images, a registry, a server that misbehaves.

pub mod handmade;
pub mod registry;
pub mod server;

use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_image::{
    Credentials, Error, Event, Image, LayerState, Options, Platform, Progress, Reference, Retry,
    Rootfs, Store,
};

/// Runs a command that must succeed; returns what it printed.
pub fn run(command: &mut Command) -> String {
    let output = output(command);
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub fn output(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Options with short pauses, so that retries take milliseconds.
pub fn options() -> Options {
    let mut options = Options::default();
    options.registry.retry = Retry {
        attempts: 3,
        first: Duration::from_millis(5),
        longest: Duration::from_millis(20),
        silence: Duration::from_secs(10),
    };
    options
}

pub async fn open(root: &Path) -> Store {
    Store::open(root, options()).await.unwrap()
}

pub async fn pull(store: &Store, reference: &str) -> Result<Image, Error> {
    let (reference, platform): (Reference, Platform) =
        (reference.parse().unwrap(), "linux/amd64".parse().unwrap());
    store.pull(&reference, &platform, &Credentials::default(), Progress::none()).await
}

/// Collects the events of a pull or load.
#[derive(Default, Clone)]
pub struct Recorder(Arc<Mutex<Vec<Event>>>);

impl Recorder {
    pub fn progress(&self) -> Progress {
        let events = self.0.clone();
        Progress::new(move |event| events.lock().unwrap().push(event))
    }

    pub fn events(&self) -> Vec<Event> {
        self.0.lock().unwrap().clone()
    }

    pub fn count(&self, wanted: impl Fn(&LayerState) -> bool) -> usize {
        let of_layer =
            |event: &&Event| matches!(event, Event::Layer { state, .. } if wanted(state));
        self.events().iter().filter(of_layer).count()
    }
}

/// Everything of the store checks out, and nothing unfinished is left.
pub async fn assert_sound(store: &Store, root: &Path) {
    let report = store.verify().await.unwrap();
    assert_eq!(report.problems, [""; 0], "{report:?}");
    let left: Vec<_> =
        std::fs::read_dir(root.join("ingest")).unwrap().flatten().map(|e| e.path()).collect();
    assert!(left.is_empty(), "left in ingest: {left:?}");
}

/// Stitches an assembled root to one disk, as guests see it, checks it with fsck.erofs and unpacks it.
pub fn unpack_rootfs(rootfs: &Rootfs, to: &Path) {
    let disk = to.with_extension("disk");
    let mut out = std::fs::File::create(&disk).unwrap();
    for file in std::iter::once(&rootfs.image.metadata).chain(&rootfs.image.layers) {
        assert_eq!(file.bytes % 4096, 0);
        let copied =
            std::io::copy(&mut std::fs::File::open(&file.path).unwrap(), &mut out).unwrap();
        assert_eq!(copied, file.bytes, "{}", file.path.display());
    }
    // It wants to see as many devices as the table has, and reads from the one disk.
    let devices =
        rootfs.image.layers.iter().map(|layer| format!("--device={}", layer.path.display()));
    run(Command::new("fsck.erofs")
        .arg(format!("--extract={}", to.display()))
        .args(devices)
        .arg(&disk));
}
