//! File system device (virtio 1.2, 5.11), served by another process over vhost-user: the process
//! that a guest can attack has no files, and the one that has files runs no guest.

use std::io;
use std::os::unix::net::UnixStream;

use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend as _};
use vhost::{VhostBackend as _, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::{Queue, QueueT as _};
use vm_memory::{GuestAddress, GuestMemory as _, GuestMemoryRegion as _};

use super::{COMMON, Device, Live, copy_config};
use crate::memory::Memory;

const KIND: u32 = 26;
/// High priority, requests.
const SIZES: [u16; 2] = [64, 256];
/// Tag, number of request queues.
const CONFIG_BYTES: usize = 40;

/// The device's near end.
pub(crate) struct Share {
    frontend: Frontend,
    features: u64,
    config: [u8; CONFIG_BYTES],
    active: bool,
}

impl std::fmt::Debug for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Share").field("active", &self.active).finish_non_exhaustive()
    }
}

impl Share {
    /// First words with the process at the other end.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        let mut frontend = Frontend::from_stream(socket, SIZES.len() as u64);
        frontend.set_owner().map_err(io::Error::other)?;
        let features = frontend.get_features().map_err(io::Error::other)?;
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        if features & protocol == 0 {
            return Err(io::Error::other("the other side has no vhost-user protocol features"));
        }
        // Before anything that needs one of them.
        frontend.set_features(protocol & features).map_err(io::Error::other)?;
        let offered = frontend.get_protocol_features().map_err(io::Error::other)?;
        let wanted = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK;
        frontend.set_protocol_features(offered & wanted).map_err(io::Error::other)?;
        if !offered.contains(VhostUserProtocolFeatures::CONFIG) {
            return Err(io::Error::other("the other side does not tell its tag"));
        }
        let blank = [0; CONFIG_BYTES];
        let length = u32::try_from(CONFIG_BYTES).unwrap_or(0);
        let flags = VhostUserConfigFlags::empty();
        let (_, said) = frontend.get_config(0, length, flags, &blank).map_err(io::Error::other)?;
        let mut config = blank;
        copy_config(&said, 0, &mut config);
        Ok(Self { frontend, features, config, active: false })
    }

    fn connect(&mut self, live: &Live) -> io::Result<()> {
        let failed = |error: vhost::Error| io::Error::other(error);
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        let accepted = (live.features & self.features) | protocol;
        self.frontend.set_features(accepted).map_err(failed)?;
        self.tell_memory(&live.memory)?;
        for (at, queue) in live.queues.iter().enumerate() {
            if !queue.ready() {
                continue;
            }
            self.frontend.set_vring_num(at, queue.size()).map_err(failed)?;
            self.frontend
                .set_vring_addr(
                    at,
                    &VringConfigData {
                        queue_max_size: queue.max_size(),
                        queue_size: queue.size(),
                        flags: 0,
                        desc_table_addr: host(&live.memory, queue.desc_table())?,
                        used_ring_addr: host(&live.memory, queue.used_ring())?,
                        avail_ring_addr: host(&live.memory, queue.avail_ring())?,
                        log_addr: None,
                    },
                )
                .map_err(failed)?;
            self.frontend.set_vring_base(at, queue.next_avail()).map_err(failed)?;
            self.frontend.set_vring_call(at, live.interrupt.line()).map_err(failed)?;
            let kick = live.kicks.get(at).ok_or(io::ErrorKind::InvalidInput)?;
            self.frontend.set_vring_kick(at, kick).map_err(failed)?;
            self.frontend.set_vring_enable(at, true).map_err(failed)?;
        }
        Ok(())
    }

    /// The server maps all of it anew; what it works on it ends with what it had.
    fn tell_memory(&self, memory: &Memory) -> io::Result<()> {
        let mut regions = Vec::new();
        // Mapped disks are not the other side's to see.
        for region in memory.iter().filter(|region| region.file_offset().is_some()) {
            let region = VhostUserMemoryRegionInfo::from_guest_region(region);
            regions.push(region.map_err(io::Error::other)?);
        }
        self.frontend.set_mem_table(&regions).map_err(io::Error::other)
    }
}

/// Where a guest address is here: the protocol names rings by our addresses.
fn host(memory: &Memory, address: u64) -> io::Result<u64> {
    let at = memory.get_host_address(GuestAddress(address)).map_err(io::Error::other)?;
    Ok(at as u64)
}

impl Device for Share {
    fn kind(&self) -> u32 {
        KIND
    }

    fn features(&self) -> u64 {
        self.features & COMMON
    }

    fn queues(&self) -> &[u16] {
        &SIZES
    }

    fn config(&self, offset: usize, data: &mut [u8]) {
        copy_config(&self.config, offset, data);
    }

    fn is_served_elsewhere(&self) -> bool {
        true
    }

    fn activate(&mut self, live: Live) -> io::Result<()> {
        self.connect(&live)?;
        self.active = true;
        Ok(())
    }

    fn extend(&mut self, memory: &Memory) -> Option<io::Result<()>> {
        Some(self.tell_memory(memory))
    }

    fn cannot_be_saved(&self) -> Option<&'static str> {
        Some("what the server of shared directories knows is not ours to save")
    }

    fn stop(&mut self) -> Vec<Queue> {
        if !std::mem::take(&mut self.active) {
            return Vec::new();
        }
        for at in 0..SIZES.len() {
            // It answers when it has stopped; when it is gone it has stopped, too.
            let _ = self.frontend.set_vring_enable(at, false);
            let _ = self.frontend.get_vring_base(at);
        }
        // Only a reset follows: such a guest is not saved.
        Vec::new()
    }
}
