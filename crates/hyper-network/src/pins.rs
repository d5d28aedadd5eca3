//! Addresses that a pod's resolver has pinned for names of its policy, see [`crate::named`].
//!
//! They are in two places, the sets of the table and a file of the pod: the table is replaced as a
//! whole whenever a rule changes, and what was pinned must be in the new one, too. Who writes either
//! holds a lock, so none is lost in between; the kernel takes it back from whoever dies.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::egress::Policy;
use crate::error::{Result, file};
use crate::{named, rules};

/// Addresses of one pod that are pinned at a time: a guest that asks for ever more names loses the
/// oldest.
const MAX: usize = 1024;
/// Longest file that is read.
const MAX_FILE: u64 = 1 << 20;
/// How long an address stays open after it was answered: as long as the answer may be remembered,
/// but not so short that a client with a pool of connections finds it closed, nor for good.
const OPEN: (u64, u64) = (300, 3600);

/// Seconds more, for which an answer that comes again changes nothing.
const SLACK: u64 = 150;

/// An address that a name was answered with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// Lower case, without a dot at the end.
    pub name: String,
    pub ip: IpAddr,
    /// Seconds since the Unix epoch.
    pub expires: u64,
}

impl Pin {
    /// `ttl`: seconds that the answer may be remembered.
    #[must_use]
    pub fn new(name: &str, ip: IpAddr, ttl: u32) -> Self {
        let expires = now() + u64::from(ttl).clamp(OPEN.0, OPEN.1) + SLACK;
        Self { name: name.to_owned(), ip, expires }
    }

    /// Whether it is pinned already, for about as long.
    #[must_use]
    pub fn is_among(&self, known: &[Self]) -> bool {
        let same = |one: &Self| (&one.name, one.ip) == (&self.name, self.ip);
        known.iter().any(|one| same(one) && one.expires + SLACK >= self.expires)
    }

    pub(crate) fn left(&self) -> Duration {
        Duration::from_secs(self.expires.saturating_sub(now()))
    }
}

/// Where a pod's pins go.
#[derive(Debug)]
pub struct Place<'a> {
    pub table: &'a str,
    /// What is pinned.
    pub file: &'a Path,
    /// Of all pods of a hyperd.
    pub lock: &'a Path,
    /// By chain.
    pub policies: &'a BTreeMap<String, Policy>,
}

impl Place<'_> {
    /// Opens addresses to the pod. Blocking, some milliseconds.
    ///
    /// # Errors
    /// [`crate::NetworkError::File`], [`crate::NetworkError::Rules`]: they may not be open.
    pub fn pin(&self, pins: &[Pin]) -> Result<()> {
        let _held = hold(self.lock)?;
        let mut all = read(self.file);
        if pins.iter().all(|pin| pin.is_among(&all)) {
            return Ok(());
        }
        all.retain(|known| !pins.iter().any(|pin| (&pin.name, pin.ip) == (&known.name, known.ip)));
        all.extend(pins.iter().cloned());
        let surplus = all.len().saturating_sub(MAX);
        let mut lost: Vec<Pin> = all.drain(..surplus).collect();
        lost.retain(|lost| !all.iter().any(|pin| pin.ip == lost.ip));
        let fail = || file("write", self.file);
        let text = serde_json::to_vec(&all).map_err(|error| fail()(error.into()))?;
        let new = self.file.with_extension("new-pins");
        std::fs::write(&new, text).map_err(fail())?;
        std::fs::rename(&new, self.file).map_err(fail())?;
        let commands: Vec<_> = self
            .policies
            .iter()
            .flat_map(|(chain, policy)| {
                let lost = lost.iter().map(|pin| (pin, false));
                let all = lost.chain(pins.iter().map(|pin| (pin, true)));
                all.flat_map(|(pin, stays)| named::pinned(self.table, chain, policy, pin, stays))
            })
            .collect();
        if commands.is_empty() { Ok(()) } else { rules::run(&json!({ "nftables": commands })) }
    }
}

/// What is pinned and still counts, the oldest first. An absent or broken file pins nothing.
#[must_use]
pub fn read(path: &Path) -> Vec<Pin> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes));
    let mut pins: Vec<Pin> = match read {
        Ok(_) => serde_json::from_slice(&bytes).unwrap_or_default(),
        Err(_) => Vec::new(),
    };
    pins.retain(|pin| !pin.left().is_zero());
    pins
}

/// The right to change pins or the table that they are in, until it is dropped. Blocking.
///
/// # Errors
/// [`crate::NetworkError::File`].
pub(crate) fn hold(path: &Path) -> Result<File> {
    let held = File::options().create(true).truncate(false).write(true).open(path);
    let held = held.map_err(file("open", path))?;
    held.lock().map_err(file("lock", path))?;
    Ok(held)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
