//! The disks of a running guest: which container uses which, and their way back.
//!
//! ```text
//! add ─► used by containers ── the last one goes ──► agent has let go? ──► Vm::remove_disk ─► gone
//!                                                     └ not in time: stays, asked again with the next
//! ```
//! What a guest was launched with stays until its end: its places are not for others.

use std::collections::BTreeSet;
use std::fs::File;
use std::time::Duration;

use hyper_hypervisor::{Disk, DiskModel, VmError};
use hyper_link::CallError;
use hyper_link::message::{GuestDisk, Request, Rootfs};

use crate::PodError;
use crate::error::chain;
use crate::guest::Guest;
use crate::rootfs::RootDisks;

/// How long the agent may take to see that nothing uses a disk. It gives up before.
const RELEASE: Duration = Duration::from_secs(8);

/// The disks of a guest, in the order in which they were given.
#[derive(Debug, Default)]
pub(crate) struct Given {
    disks: Vec<GivenDisk>,
    held: Vec<Held>,
}

#[derive(Debug)]
struct GivenDisk {
    disk: Disk,
    files: Files,
    /// Its nodes in the guest, as the hypervisor said when it was given: a disk that came later may
    /// have passed over places that do not suit it.
    devices: Vec<String>,
    /// It was added to the running guest, and can be taken back.
    late: bool,
    /// Containers.
    users: BTreeSet<String>,
}

/// Which files a disk is: device and inode of each extent. A file that the hypervisor holds open
/// keeps its inode, whatever becomes of its name. Empty when one of them cannot be looked at.
type Files = Vec<(u64, u64)>;

/// Locks on a volume that is a disk, for as long as the guest may write to it.
#[derive(Debug)]
struct Held {
    files: Files,
    read_only: bool,
    _locks: Vec<File>,
}

impl Given {
    /// One that `container` uses; `late`: it was added to the guest while it ran.
    pub fn push(&mut self, disk: Disk, devices: Vec<String>, late: bool, container: &str) {
        let (files, users) = (files(&disk), BTreeSet::from([container.to_owned()]));
        self.disks.push(GivenDisk { disk, files, devices, late, users });
    }

    /// Keeps a volume's locks.
    pub fn hold(&mut self, disk: &Disk, locks: Vec<File>) {
        let (files, read_only) = (files(disk), disk.read_only);
        self.held.push(Held { files, read_only, _locks: locks });
    }

    fn holds(&self, disk: &Disk) -> bool {
        let files = files(disk);
        let same = |held: &Held| held.files == files && held.read_only == disk.read_only;
        !files.is_empty() && self.held.iter().any(same)
    }

    /// Nodes of a disk that the guest has already, e.g. an image that another container has too;
    /// `container` uses it from now on.
    fn again(&mut self, disk: &Disk, container: &str) -> Option<Vec<String>> {
        let files = files(disk);
        let same = |given: &&mut GivenDisk| given.files == files && given.disk == *disk;
        let known = (!files.is_empty()).then(|| self.disks.iter_mut().find(same)).flatten()?;
        known.users.insert(container.to_owned());
        Some(known.devices.clone())
    }

    fn at(&self, at: usize) -> Vec<String> {
        self.disks.get(at).map(|given| given.devices.clone()).unwrap_or_default()
    }

    /// Nodes of the disks that can be taken back and that no container uses once this one is gone.
    fn unused_without(&mut self, container: &str) -> Vec<Vec<String>> {
        for given in &mut self.disks {
            given.users.remove(container);
        }
        let unused = self.disks.iter().filter(|given| given.late && given.users.is_empty());
        unused.map(|given| given.devices.clone()).collect()
    }

    /// Forgets a disk; `out_of_reach`: so that another guest may have it.
    fn forget(&mut self, devices: &[String], out_of_reach: bool) {
        let Some(at) = self.disks.iter().position(|given| given.devices == devices) else { return };
        let gone = self.disks.remove(at);
        if out_of_reach {
            self.held.retain(|held| held.files != gone.files);
        }
    }
}

fn files(disk: &Disk) -> Files {
    let file = |extent: &hyper_hypervisor::Extent| {
        rustix::fs::stat(&extent.path).map(|stat| (stat.st_dev, stat.st_ino))
    };
    disk.extents.iter().map(file).collect::<Result<_, _>>().unwrap_or_default()
}

impl Guest {
    /// The root of the container whose disks the guest was booted with.
    pub async fn first_root(&self, root: &RootDisks) -> Rootfs {
        let given = self.disks.lock().await;
        let upper = root.upper.as_ref().map(|_| given.at(1));
        rootfs(root, self.model(), &given.at(0), upper.as_deref())
    }

    /// Adds the disks of a later container.
    pub async fn add_root(&self, container: &str, root: &RootDisks) -> Result<Rootfs, PodError> {
        if !self.hypervisor.capabilities().disk_hotplug {
            return Err(PodError::Unsupported(format!(
                "hypervisor `{}` cannot add a disk to a running guest, so its pods hold one \
                 container",
                self.hypervisor.name()
            )));
        }
        let mut given = self.disks.lock().await;
        let image = self.add_disk(&mut given, container, &root.image).await?;
        let upper = match &root.upper {
            None => None,
            Some(disk) => Some(self.add_disk(&mut given, container, disk).await?),
        };
        Ok(rootfs(root, self.model(), &image, upper.as_deref()))
    }

    /// Device node of a disk that holds one file system.
    pub async fn device(&self, at: usize) -> String {
        let given = self.disks.lock().await;
        given.at(at).into_iter().next().unwrap_or_default()
    }

    /// Adds a volume that is a disk for a later container; returns its device node.
    pub async fn add_volume(&self, container: &str, disk: &Disk) -> Result<String, PodError> {
        let mut given = self.disks.lock().await;
        if given.again(disk, container).is_none() && !given.holds(disk) {
            let locks = crate::volume::hold(disk).await?;
            given.hold(disk, locks);
        }
        let devices = self.add_disk(&mut given, container, disk).await?;
        Ok(devices.into_iter().next().unwrap_or_default())
    }

    async fn add_disk(
        &self,
        given: &mut Given,
        container: &str,
        disk: &Disk,
    ) -> Result<Vec<String>, PodError> {
        if let Some(devices) = given.again(disk, container) {
            return Ok(devices);
        }
        let devices = self.vm.add_disk(disk.clone()).await.map_err(|source| {
            let path = disk.extents.first().map(|extent| extent.path.display().to_string());
            let action = format!("add disk `{}` to the guest", path.unwrap_or_default());
            PodError::Vm { action, source }
        })?;
        given.push(disk.clone(), devices.clone(), true, container);
        Ok(devices)
    }

    /// Takes back the disks that only this container had, which is gone from the guest. What cannot
    /// be had back is logged, stays, and is tried again with the next container that goes.
    pub async fn take_back_disks(&self, container: &str) {
        let mut given = self.disks.lock().await;
        let unused = given.unused_without(container);
        // A paused agent does not answer.
        if self.is_paused() {
            return;
        }
        for devices in unused {
            let stays = |why: String| {
                tracing::warn!(container, ?devices, why, "a disk stays in the guest");
            };
            // Its place must not have another disk while a file system is on it: the guest would
            // take the one for the other.
            let request = Request::ReleaseDisks { devices: devices.clone() };
            match self.link.call(request, RELEASE).await {
                Ok(_) => {}
                // With its guest.
                Err(CallError::Link { .. }) => return,
                Err(error) => {
                    stays(chain(&error));
                    continue;
                }
            }
            match self.vm.remove_disk(&devices).await {
                Ok(()) => given.forget(&devices, self.hypervisor.capabilities().disk_revoke),
                Err(error @ VmError::Busy { .. }) => stays(chain(&error)),
                Err(error) => {
                    stays(chain(&error));
                    // Nobody knows in which state.
                    given.forget(&devices, false);
                }
            }
        }
    }

    fn model(&self) -> DiskModel {
        self.hypervisor.capabilities().disk_model
    }
}

fn rootfs(
    root: &RootDisks,
    model: DiskModel,
    image: &[String],
    upper: Option<&[String]>,
) -> Rootfs {
    let sizes: Vec<u64> = root.image.extents.iter().map(|extent| extent.bytes).collect();
    let mut parts: Vec<GuestDisk> = match model {
        DiskModel::Stitched => image
            .iter()
            .take(1)
            .map(|device| GuestDisk { device: device.clone(), bytes: sizes.iter().sum() })
            .collect(),
        DiskModel::DevicePerExtent => image
            .iter()
            .zip(&sizes)
            .map(|(device, bytes)| GuestDisk { device: device.clone(), bytes: *bytes })
            .collect(),
    };
    let layers = parts.split_off(parts.len().min(1));
    let bytes = root.upper.iter().flat_map(|disk| &disk.extents).map(|extent| extent.bytes).sum();
    Rootfs {
        image: parts.pop().unwrap_or(GuestDisk { device: String::new(), bytes: 0 }),
        layers,
        upper: upper
            .and_then(<[String]>::first)
            .map(|device| GuestDisk { device: device.clone(), bytes }),
        read_only: root.read_only,
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use hyper_hypervisor::Extent;

    fn disk(directory: &tempfile::TempDir, name: &str, read_only: bool) -> Disk {
        let path = directory.path().join(name);
        std::fs::write(&path, [0; 4096]).unwrap();
        Disk {
            extents: vec![Extent { path, bytes: 4096 }],
            read_only,
            ephemeral: false,
            mapped: false,
        }
    }

    fn nodes(name: &str) -> Vec<String> {
        vec![name.to_owned()]
    }

    /// The volume of a container that came back was looked for where the next disk would have been.
    #[test]
    fn a_disk_that_passed_over_a_place_is_found_where_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let disk = |name: &str, read_only| disk(&directory, name, read_only);
        let mut given = Given::default();
        for (name, read_only, device) in [
            ("image", true, "/dev/vda"),
            ("upper", false, "/dev/vdb"),
            ("volume", false, "/dev/vdd"),
        ] {
            given.push(disk(name, read_only), nodes(device), false, "c");
        }
        assert_eq!(given.again(&disk("volume", false), "d"), Some(nodes("/dev/vdd")));
        assert_eq!((given.at(2), given.at(3)), (nodes("/dev/vdd"), vec![]));
        assert_eq!(given.again(&disk("another", false), "d"), None);
    }

    #[test]
    fn a_disk_is_unused_when_its_last_container_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let image = disk(&directory, "image", true);
        let mut given = Given::default();
        given.push(disk(&directory, "first", true), nodes("/dev/vda"), false, "a");
        given.push(image.clone(), nodes("/dev/vdb"), true, "b");
        given.push(disk(&directory, "upper", false), nodes("/dev/vdc"), true, "b");
        assert!(given.again(&image, "c").is_some());
        assert_eq!(given.unused_without("a"), Vec::<Vec<String>>::new(), "of the launch");
        assert_eq!(given.unused_without("b"), [nodes("/dev/vdc")]);
        // It could not be taken back: the next one tries again.
        assert_eq!(given.unused_without("c"), [nodes("/dev/vdb"), nodes("/dev/vdc")]);
        given.forget(&nodes("/dev/vdb"), true);
        assert_eq!(given.again(&image, "d"), None);
    }

    #[test]
    fn a_lock_stays_where_the_guest_may_still_write() {
        let directory = tempfile::tempdir().unwrap();
        let volume = disk(&directory, "volume", false);
        let mut given = Given::default();
        for (out_of_reach, held) in [(false, true), (true, false)] {
            given.push(volume.clone(), nodes("/dev/vdb"), true, "c");
            if !given.holds(&volume) {
                given.hold(&volume, Vec::new());
            }
            given.forget(&nodes("/dev/vdb"), out_of_reach);
            assert_eq!(given.holds(&volume), held);
        }
    }
}
