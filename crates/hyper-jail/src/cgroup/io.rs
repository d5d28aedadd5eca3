//! Bounds on a jail's disk transfers.
//!
//! The v1 hierarchy of `blkio` is joined only when there is something to bound: each v1 hierarchy
//! costs a start one more wait of the kernel. What it counts is what the jail's own threads do:
//! writes through the page cache pass it by, but for those of a flush ([`IoHeld::Direct`]); v2 counts
//! them, too.

use std::fs;
use std::io;

use super::{CgroupError, Cgroups, Place};

/// How often processes that were born meanwhile are looked for.
const ROUNDS: usize = 10;

/// Transfers per second; `None`: no bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoRates {
    pub read_bytes: Option<u64>,
    pub write_bytes: Option<u64>,
    pub read_operations: Option<u64>,
    pub write_operations: Option<u64>,
}

/// What of a jail's transfers this host can bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoHeld {
    All,
    /// All but writes through the page cache.
    Direct,
}

impl Cgroups {
    /// Bounds transfers of a jail that runs with `device`; `None`: there is no controller for it.
    ///
    /// # Errors
    /// The kernel refuses a value: the device is not there, or not a whole disk.
    pub fn set_io(
        &self,
        device: (u32, u32),
        rates: IoRates,
    ) -> Result<Option<IoHeld>, CgroupError> {
        let (major, minor) = device;
        let v2 = |place: &&Place| place.hierarchy.v2 && place.dir.is_dir() && place.has("io");
        if let Some(place) = self.places.iter().find(v2) {
            let word = |rate: Option<u64>| rate.map_or_else(|| "max".to_owned(), |r| r.to_string());
            let text = format!(
                "{major}:{minor} rbps={} wbps={} riops={} wiops={}",
                word(rates.read_bytes),
                word(rates.write_bytes),
                word(rates.read_operations),
                word(rates.write_operations),
            );
            place.write("io.max", &text)?;
            return Ok(Some(IoHeld::All));
        }
        let v1 = |place: &&Place| !place.hierarchy.v2 && place.has("blkio");
        let Some(place) = self.places.iter().find(v1) else { return Ok(None) };
        self.join(place)?;
        for (file, rate) in [
            ("read_bps", rates.read_bytes),
            ("write_bps", rates.write_bytes),
            ("read_iops", rates.read_operations),
            ("write_iops", rates.write_operations),
        ] {
            // 0 takes a bound away.
            let text = format!("{major}:{minor} {}", rate.unwrap_or(0));
            place.write(&format!("blkio.throttle.{file}_device"), &text)?;
        }
        Ok(Some(IoHeld::Direct))
    }

    /// Moves the jail's processes into the cgroup of `place`, which is made when it is not there.
    fn join(&self, place: &Place) -> Result<(), CgroupError> {
        let fail = |doing| {
            let object = place.dir.display().to_string();
            move |source| CgroupError { doing, object, source, hint: "" }
        };
        if place.dir.is_dir() {
            return Ok(());
        }
        fs::create_dir_all(&place.dir).map_err(fail("make"))?;
        let inside = || fs::read_to_string(place.dir.join("cgroup.procs")).unwrap_or_default();
        for _ in 0..ROUNDS {
            let here = inside();
            let here: Vec<&str> = here.lines().collect();
            let all = self.processes_outside(place);
            let mut new = all.iter().filter(|pid| !here.contains(&pid.to_string().as_str()));
            let moved = new.try_fold(0_usize, |moved, pid| {
                match fs::write(place.dir.join("cgroup.procs"), pid.to_string()) {
                    // It has ended meanwhile.
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(moved),
                    Err(error) => Err(error),
                    Ok(()) => Ok(moved + 1),
                }
            });
            match moved {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(source) => return Err(fail("join")(source)),
            }
        }
        Err(fail("join")(io::Error::from(io::ErrorKind::ResourceBusy)))
    }

    /// Processes of the jail by another of its cgroups.
    fn processes_outside(&self, lazy: &Place) -> Vec<u32> {
        let mut others = self.places.iter().filter(|place| place.dir != lazy.dir);
        let other = others.find(|place| place.dir.is_dir());
        other.map(Place::processes).unwrap_or_default()
    }
}
