//! The agent: PID 1 of the guest.
//!
//! One thread. It mounts the guest's file systems, introduces itself on the link and does what the
//! supervisor asks. Whatever may block or fail in kernel code (mounting disks, making containers)
//! runs in a short-lived child of its own, so that neither stalls nor ends the agent.
//!
//! ```text
//!  boot ── link device ── AgentHello ──► serve ──┬── Shutdown ──► kill all, sync, power off
//!                            ▲                   └── link lost ─► the same, once containers exist
//!                            └─────────── link lost, no container yet (a template) ──┘
//! ```
//!
//! - [`boot`]: file systems, kernel command line. [`carrier`]: the link device.
//! - [`agent`]: requests. [`container`]: making and running containers. [`cgroup`]: their limits.
//! - [`files`]: reading and writing a container's files. [`processes`]: what runs in it.
//! - [`init`]: another program in this one: the first process of a container that wants one.
//! - [`oci`]: the part of the OCI runtime specification that is carried out here.
//! - [`stdio`]: bytes between processes and streams. [`reaper`]: how processes end.
//! - [`pod`], [`network`]: identity, clock, entropy, interfaces, routes. [`power`]: the end.
//! - [`kernel_file`]: files under /proc and /sys.
//! - [`sys`]: the system calls that need `unsafe`.

mod agent;
mod boot;
mod carrier;
mod cgroup;
mod container;
mod files;
mod init;
mod kernel_file;
mod localhost;
mod names;
mod network;
mod oci;
mod pod;
mod power;
mod processes;
mod reaper;
mod stdio;
mod sys;

use std::{io, rc::Rc, time::Duration};

use hyper_files::failure;
use hyper_link::{accept, message::AgentHello};
use tokio::task::LocalSet;

use crate::{agent::Agent, boot::Boot, reaper::Reaper};

/// How long to wait for the next host after one that was none.
const RETRY: Duration = Duration::from_millis(10);
/// Versions of the link protocol spoken here.
const LINK_VERSIONS: (u16, u16) = (1, 1);

fn main() {
    let mut words = std::env::args_os();
    if words.next().is_some_and(|name| name == init::NAME) {
        init::run(words);
    }
    if std::process::id() != 1 {
        eprintln!("hyperstart is the first process of a guest kernel; nothing to do here");
        std::process::exit(1);
    }
    let error = match boot::boot() {
        Ok(boot) => run(&boot),
        Err(error) => error,
    };
    // The end of PID 1 is a kernel panic, which the host sees; this line says why.
    panic!("hyperstart: {error}");
}

/// Serves until the power goes off; returns only what went wrong.
fn run(boot: &Boot) -> io::Error {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return error,
    };
    LocalSet::new().block_on(&runtime, async {
        match serve(boot).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    })
}

async fn serve(boot: &Boot) -> io::Result<std::convert::Infallible> {
    let reaper = Rc::new(Reaper::start()?);
    loop {
        let device = carrier::open(&boot.link).await?;
        let terminal = device.is_terminal();
        let (link, mut requests) = match accept(device, hello()).await {
            Ok(ends) => ends,
            // A host that went away, or talked nonsense, before it asked for anything.
            Err(_) if !terminal => {
                tokio::time::sleep(RETRY).await;
                continue;
            }
            Err(error) => return Err(io::Error::other(error)),
        };
        let agent = Rc::new(Agent::new(link, Rc::clone(&reaper)));
        while let Some((request, replier)) = requests.recv().await {
            let agent = Rc::clone(&agent);
            tokio::task::spawn_local(async move { agent.answer(request, replier).await });
        }
        if terminal || agent.has_containers() {
            power::off();
        }
    }
}

fn hello() -> AgentHello {
    let capabilities =
        ["exec", "terminal", "seccomp", "cgroup2", "freeze", "erofs", "overlay", "files"];
    AgentHello {
        min_version: LINK_VERSIONS.0,
        max_version: LINK_VERSIONS.1,
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        capabilities: capabilities.map(str::to_owned).to_vec(),
        ready_us: sys::uptime_us(),
    }
}
