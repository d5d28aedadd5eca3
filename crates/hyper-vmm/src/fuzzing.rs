//! What the fuzz targets call: hostile bytes in the places where a guest or a file has them.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use rustix::fs::MemfdFlags;
use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::images::Place;
use crate::memory::{self, Memory};
use crate::save::State;
use crate::virtio::mem::{Mem, Region};
use crate::virtio::{
    Balloon, Block, Console, Device, Entropy, File as Disk, Host, Net, Pmem, Transport,
};
use crate::{boot, config};

const MEMORY: u64 = 1 << 20;
/// Where rings and descriptors are.
const RINGS: u64 = 0x1_0000;
const DISK: u64 = 64 << 10;
/// Memory that comes and goes is the last part, in blocks.
const COMES: u64 = 512 << 10;
const BLOCK: u64 = 64 << 10;

/// The bytes as a kernel.
pub fn kernel(bytes: &[u8]) {
    let Some(memory) = memory::brief(config::MIN_MEMORY) else { return };
    let _ = boot::load_kernel(&memory, file(bytes));
}

/// The bytes as a saved guest; what can be read is given to devices, which then go on.
pub fn saved(bytes: &[u8]) {
    let Ok(state) = State::read(&mut file(bytes)).or_else(|_| State::parse(bytes)) else { return };
    let Some(memory) = memory::brief(MEMORY) else { return };
    let (mut devices, _far_ends) = all(&memory);
    for (transport, state) in devices.iter_mut().zip(state.devices) {
        if transport.load(state).is_ok() {
            transport.go_on();
        }
        transport.halt();
    }
}

/// The first byte chooses a device, the next its driver's accesses, the rest is memory around its
/// rings. Each access: what (a register, a queue's notification), then a value.
pub fn devices(bytes: &[u8]) {
    let Some(memory) = memory::brief(MEMORY) else { return };
    let Some((chosen, rest)) = bytes.split_first() else { return };
    let Some((length, rest)) = rest.split_first() else { return };
    let (accesses, rings) = rest.split_at(rest.len().min(usize::from(*length) * 5));
    let _ = memory.write_slice(&rings[..rings.len().min(0xf000)], GuestAddress(RINGS));
    let (mut devices, _far_ends) = all(&memory);
    let at = usize::from(*chosen) % devices.len();
    let device = &mut devices[at];
    let write = |device: &mut Transport, offset: u64, value: u32| {
        device.write(offset, &value.to_le_bytes());
    };
    for (offset, value) in [(0x70, 3), (0x24, 1), (0x20, 1), (0x24, 0), (0x20, 0), (0x70, 11)] {
        write(device, offset, value);
    }
    for queue in 0..6 {
        for (offset, value) in [(0x30, queue), (0x38, 8), (0x80, 0x1_0000), (0x90, 0x1_4000)] {
            write(device, offset, value);
        }
        write(device, 0xa0, 0x1_8000);
        write(device, 0x44, 1);
    }
    write(device, 0x70, 15);
    for access in accesses.chunks_exact(5) {
        let value = u32::from_le_bytes([access[1], access[2], access[3], access[4]]);
        if access[0] & 1 == 0 {
            write(device, u64::from(access[0]) * 2, value);
        } else {
            device.read(u64::from(access[0]) * 2, &mut value.to_le_bytes());
        }
    }
    device.halt();
    device.go_on();
    device.halt();
}

/// One of each, and the far ends of those that have one.
fn all(memory: &Memory) -> (Vec<Transport>, Vec<OwnedFd>) {
    let mut far_ends: Vec<OwnedFd> = Vec::new();
    let host = Host::apart();
    let disk = |read_only| Disk::new(vec![(file(&[7; DISK as usize]), DISK)], read_only, false);
    let region = Arc::new(Region::new(MEMORY - COMES, COMES, BLOCK));
    region.use_up_to(COMES - BLOCK);
    region.ask(4 * BLOCK);
    let mut devices: Vec<(&str, Box<dyn Device>)> = vec![
        ("mem", Box::new(Mem::new(region))),
        ("rng", Box::new(Entropy::default())),
        ("balloon", Box::new(Balloon::new(true))),
        ("pmem", Box::new(Pmem::new("pmem".to_owned(), Place { start: 1 << 32, bytes: 2 << 20 }))),
        ("spare", Box::new(Block::spare("spare".to_owned(), false, host.clone()))),
    ];
    for read_only in [true, false] {
        if let Ok(disk) = disk(read_only) {
            devices.push(("disk", Box::new(Block::new("disk".to_owned(), disk, host.clone()))));
        }
    }
    if let Ok((ours, theirs)) = std::os::unix::net::UnixStream::pair() {
        let _ = ours.set_nonblocking(true);
        let _ = (&theirs).write_all(b"bytes for the guest");
        devices.push(("link", Box::new(Console::new(ours.into()))));
        far_ends.push(theirs.into());
    }
    // Pipe-like files in the places of a tap's queues: a card of one pair, and one of two.
    for pairs in 1..3 {
        let mut taps = Vec::new();
        for _ in 0..pairs {
            let Ok((ours, theirs)) = std::os::unix::net::UnixDatagram::pair() else { continue };
            let _ = ours.set_nonblocking(true);
            let _ = theirs.send(&[0; 100]);
            taps.push(ours.into());
            far_ends.push(theirs.into());
        }
        if let Ok(net) = Net::untold("net".to_owned(), taps) {
            devices.push(("net", Box::new(net)));
        }
    }
    let made = devices.into_iter().filter_map(|(name, device)| {
        let line = EventFd::new(libc::EFD_NONBLOCK).ok()?;
        Transport::new(name.to_owned(), device, Arc::clone(memory), line, false).ok()
    });
    (made.collect(), far_ends)
}

fn file(bytes: &[u8]) -> File {
    let file = rustix::fs::memfd_create("fuzz", MemfdFlags::CLOEXEC).map(File::from);
    let file = file.unwrap_or_else(|error| panic!("memfd: {error}"));
    if let Err(error) = file.write_all_at(bytes, 0) {
        panic!("memfd: {error}");
    }
    file
}
