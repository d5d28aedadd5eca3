//! Starts a supervisor the way containerd starts a shim, see [`hyper_shim::Program`].

use std::path::{Path, PathBuf};

use hyper_shim::Program;

use super::{ADDRESS_FILE, Address};
use crate::{Error, Result};

/// What every launch has in common.
#[derive(Debug, Clone)]
pub(crate) struct Launcher {
    /// `containerd-shim-hyper-v2`.
    pub program: PathBuf,
    /// Socket of [`super::publish`].
    pub events: PathBuf,
    pub debug: bool,
}

impl Launcher {
    /// Starts the supervisor of `bundle`, or finds that of the pod it has `joined`, and leaves its
    /// address there.
    pub async fn launch(&self, id: &str, bundle: &Path, joined: bool) -> Result<Address> {
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
