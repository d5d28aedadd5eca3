//! What every hypervisor must do, as one suite of checks that run over any of them.
//!
//! ```no_run
//! # async fn test(hypervisor: &dyn hyper_hypervisor::Hypervisor) {
//! use hyper_hypervisor::contract;
//! let work = std::path::Path::new("/tmp/work"); // empty, private
//! let fixture = contract::Fixture {
//!     kernel: "/path/of/hyperkernel".into(),
//!     initramfs: contract::initramfs(work).expect("cc makes static programs"),
//!     work: work.into(),
//!     memory_bytes: 128 << 20,
//!     boot: std::time::Duration::from_secs(20),
//!     net: None,
//! };
//! contract::run(hypervisor, &fixture).await.expect("the contract is kept");
//! # }
//! ```
//!
//! Run it in a test binary of its own, as root: it looks at the process's children, descriptors
//! and mounts to see what was left behind. `HYPER_CONTRACT=word,word` runs only checks with such a word.
//!
//! Obligations it adds to the text of the port:
//! - the command line names the link's device: `hyper.link=/dev/…`;
//! - [`crate::Hypervisor::guest_devices`] gives absolute paths of device nodes;
//! - a disk of the configuration has exactly its extents' length in the guest; one that was added
//!   may be longer, and the guest must drop cached blocks of it (`BLKFLSBUF`) before it reads;
//! - a guest kernel that panics ends the guest: the hypervisor adds `panic=-1` or the like;
//! - `run_dir` holds nothing of the hypervisor's once the guest is gone and the `Vm` dropped.

mod bytes;
mod cpio;
mod disk;
mod image;
mod leftover;
mod life;
mod memory;
mod play;
mod refuse;
mod removed;
mod saved;
mod session;
mod stream;

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::{Duration, Instant};

use crate::{Hypervisor, Nic};
pub use cpio::Archive;
pub use image::{guest_program, initramfs};
pub use play::play;
pub use session::{Session, Shape, config, disk};

/// What the suite needs to launch guests.
#[derive(Debug, Clone)]
pub struct Fixture {
    pub kernel: PathBuf,
    /// Made by [`initramfs`].
    pub initramfs: PathBuf,
    /// An empty directory that only this test uses; its disks and run directories are made there.
    pub work: PathBuf,
    /// Memory of the guests.
    pub memory_bytes: u64,
    /// Longest time from launch to the guest's first word, on a busy machine.
    pub boot: Duration,
    /// A network to try; without it the check is skipped.
    pub net: Option<Net>,
}

/// A tap with a host behind it.
#[derive(Debug, Clone)]
pub struct Net {
    pub nic: Nic,
    /// Address that the tap's interface has on the host, in a /24.
    pub host: Ipv4Addr,
    /// Address for the guest, in the same /24.
    pub guest: Ipv4Addr,
}

/// The checks that failed, each with its reason.
#[derive(Debug)]
pub struct Broken(Vec<(&'static str, String)>);

/// Runs every check, one after the other, and tells which are broken. Prints a line for each.
pub async fn run(hypervisor: &dyn Hypervisor, fixture: &Fixture) -> Result<(), Broken> {
    run_only(hypervisor, fixture, &std::env::var("HYPER_CONTRACT").unwrap_or_default()).await
}

/// Runs the checks whose name has one of the words of `wanted`, which commas separate.
pub async fn run_only(
    hypervisor: &dyn Hypervisor,
    fixture: &Fixture,
    wanted: &str,
) -> Result<(), Broken> {
    let mut broken = Vec::new();
    for (name, check) in CHECKS {
        if !wanted.split(',').any(|word| name.contains(word)) {
            continue;
        }
        let started = Instant::now();
        // No check takes longer than a few boots; a hang must name itself.
        let limit = fixture.boot * 4 + Duration::from_secs(60);
        let result = match tokio::time::timeout(limit, check(hypervisor, fixture)).await {
            Ok(result) => result,
            Err(_) => Err(format!("not done after {} s", limit.as_secs())),
        };
        let took = started.elapsed().as_secs_f32();
        let said = match &result {
            Ok(()) => "ok".to_owned(),
            Err(why) => format!("BROKEN: {why}"),
        };
        println!("contract: {}: {name} … {said} ({took:.2} s)", hypervisor.name());
        if let Err(why) = result {
            broken.push((*name, why));
        }
    }
    if broken.is_empty() { Ok(()) } else { Err(Broken(broken)) }
}

/// What a check says: nothing, or what is wrong.
type Verdict = Result<(), String>;
type Running<'a> = Pin<Box<dyn Future<Output = Verdict> + Send + 'a>>;
type Check = for<'a> fn(&'a dyn Hypervisor, &'a Fixture) -> Running<'a>;

const CHECKS: &[(&str, Check)] = &[
    ("the link carries lines and megabytes", |h, f| Box::pin(stream::link(h, f))),
    ("disks have order, length, content", |h, f| Box::pin(disk::content(h, f))),
    ("as many disks as it says", |h, f| Box::pin(disk::many(h, f))),
    ("read-only holds, writes persist", |h, f| Box::pin(disk::writing(h, f))),
    ("mapped disks have their content", |h, f| Box::pin(disk::mapped(h, f))),
    ("a disk is added while running", |h, f| Box::pin(disk::adding(h, f))),
    ("a removed disk is out of reach", |h, f| Box::pin(removed::gone(h, f))),
    ("its place takes other disks, often", |h, f| Box::pin(removed::often(h, f))),
    ("pause stops, resume continues", |h, f| Box::pin(stream::pausing(h, f))),
    ("a saved guest goes on, twice", |h, f| Box::pin(saved::twice(h, f))),
    ("memory comes while it runs, and goes", |h, f| Box::pin(memory::grows(h, f))),
    ("the guest gets what was asked", |h, f| Box::pin(life::shape(h, f))),
    ("the network device works", |h, f| Box::pin(life::network(h, f))),
    ("power-off is told, often", |h, f| Box::pin(life::power_off(h, f))),
    ("a panic is told with its message", |h, f| Box::pin(life::panic(h, f))),
    ("kill returns when all is gone", |h, f| Box::pin(life::kill(h, f))),
    ("a foreign signal is told", |h, f| Box::pin(life::signal(h, f))),
    ("bad kernels are refused in time", |h, f| Box::pin(refuse::kernels(h, f))),
    ("what cannot be had is refused", |h, f| Box::pin(refuse::excess(h, f))),
    ("shared directories need their device", |h, f| Box::pin(refuse::share(h, f))),
    ("nothing is left behind", |h, f| Box::pin(leftover::nothing(h, f))),
];

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} checks of the contract are broken", self.0.len())?;
        self.0.iter().try_for_each(|(name, why)| write!(f, "\n- {name}: {why}"))
    }
}

impl std::error::Error for Broken {}

/// Ends a check with a reason unless the condition holds.
macro_rules! hold {
    ($condition:expr, $($why:tt)+) => {
        if !$condition {
            return Err(format!($($why)+));
        }
    };
}
use hold;
