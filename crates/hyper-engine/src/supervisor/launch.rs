//! Starts a supervisor the way containerd starts a shim, see [`hyper_shim::Program`].
//!
//! A launch that has begun is carried out, also when nobody waits for it any more: a program that
//! is only just becoming a supervisor is in no file yet, so that nobody could end it. Who gives a
//! start up lets it [settle](Launcher::settled) before looking for what it has left.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper_shim::Program;
use tokio_util::task::TaskTracker;

use super::{ADDRESS_FILE, Address};
use crate::turns::Turns;
use crate::{Error, Result};

/// What every launch has in common.
#[derive(Debug, Clone)]
pub(crate) struct Launcher {
    /// `containerd-shim-hyper-v2`.
    pub program: PathBuf,
    /// Socket of [`super::publish`].
    pub events: PathBuf,
    pub debug: bool,
    /// Launches that nobody may wait for.
    pub tasks: TaskTracker,
    /// One launch at a time, by the container's or the pod's id.
    pub turns: Arc<Turns>,
}

impl Launcher {
    /// Starts the supervisor of `bundle`, or finds that of the pod it has `joined`, and leaves its
    /// address there.
    pub async fn launch(&self, id: &str, bundle: &Path, joined: bool) -> Result<Address> {
        let turn = self.turns.take(id).await;
        let (launcher, id, bundle) = (self.clone(), id.to_owned(), bundle.to_owned());
        let launching = async move {
            let _turn = turn;
            launcher.carry_out(&id, &bundle, joined).await
        };
        self.tasks.spawn(launching).await.map_err(|_| Error::ShuttingDown)?
    }

    /// Waits for a launch that is under way: then its address is in the bundle, or it has failed.
    pub async fn settled(&self, id: &str) {
        self.turns.take(id).await;
    }

    async fn carry_out(&self, id: &str, bundle: &Path, joined: bool) -> Result<Address> {
        let failed = |why: String| Error::Supervisor {
            id: crate::id::short(id).to_owned(),
            what: "start the supervisor",
            why,
        };
        let started = self.program().start(id, bundle).await.map_err(failed)?;
        let address = Address { address: started.address, version: started.version, joined };
        let file = bundle.join(ADDRESS_FILE);
        let text = serde_json::to_vec(&address).map_err(|e| failed(e.to_string()))?;
        tokio::fs::write(&file, text).await.map_err(Error::file("write", file))?;
        Ok(address)
    }

    /// Lets the program remove what a dead supervisor left behind.
    pub async fn clean(&self, id: &str, bundle: &Path) {
        if let Err(why) = self.program().delete(id, bundle).await {
            tracing::warn!(container = id, why, "clean up after the supervisor");
        }
    }

    fn program(&self) -> Program {
        Program {
            path: self.program.clone(),
            address: self.events.clone(),
            events: self.events.clone(),
            debug: self.debug,
        }
    }
}
