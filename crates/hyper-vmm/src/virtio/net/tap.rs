//! A tap with one or several queues: Linux, if_tun.h. What comes for the guest is spread over those that are
//! attached; at first that is one, as the driver has it.
//!
//! *Invariant:* a guest has the host's kernel change the interface a few times, then ten times a second at most: each
//! change holds a lock that all of the host's interfaces share (RTNL), and waits for all of its CPUs.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::{F_GUEST_CSUM, F_GUEST_TSO4, F_GUEST_TSO6};
use crate::virtio::DeviceState;

const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const TUNSETQUEUE: libc::c_ulong = 0x4004_54d9;
const TUN_F_CSUM: u32 = 1;
const TUN_F_TSO4: u32 = 2;
const TUN_F_TSO6: u32 = 4;
/// Changes that need not wait: a driver's start makes two.
const AT_ONCE: u32 = 8;
/// No offloads: nothing was told yet.
const UNTOLD: u32 = u32::MAX;
const APART: Duration = Duration::from_millis(100);

/// The tap. Who attaches and detaches is one at a time: the thread of the control queue, or the device while that
/// thread does not run.
#[derive(Debug)]
pub(super) struct Tap {
    queues: Vec<Queue>,
    attached: AtomicUsize,
    /// The offloads that it was told of last.
    offloads: AtomicU32,
    /// When all changes so far would have been made, one each [`APART`].
    paid: Mutex<Instant>,
}

#[derive(Debug)]
struct Queue {
    file: OwnedFd,
    /// It has been attached or detached.
    turned: EventFd,
}

impl Tap {
    /// Of descriptors that are all of the same tap, the first one attached.
    pub fn new(files: Vec<OwnedFd>) -> io::Result<Self> {
        let mut queues = Vec::new();
        for file in files {
            let turned = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
            queues.push(Queue { file, turned });
        }
        let attached = AtomicUsize::new(queues.len());
        let offloads = AtomicU32::new(UNTOLD);
        let tap = Self { queues, attached, offloads, paid: Mutex::new(Instant::now()) };
        tap.attach(1)?;
        Ok(tap)
    }

    /// Queues that it has.
    pub fn pairs(&self) -> usize {
        self.queues.len()
    }

    /// What packets of pair `at` come and go by.
    pub fn file(&self, at: usize) -> BorrowedFd<'_> {
        self.queues[at].file.as_fd()
    }

    /// Can be read when pair `at` has been attached or detached.
    pub fn turned(&self, at: usize) -> &EventFd {
        &self.queues[at].turned
    }

    /// Whether packets come and go by pair `at`.
    pub fn is_attached(&self, at: usize) -> bool {
        at < self.attached.load(Ordering::SeqCst)
    }

    /// Attaches the first `count` queues, and no others.
    pub fn attach(&self, count: usize) -> io::Result<()> {
        let count = count.clamp(1, self.queues.len().max(1));
        let before = self.attached.load(Ordering::SeqCst);
        if count == before {
            return Ok(());
        }
        self.pace();
        // A thread whose queue is gone before it is told takes it for an error of the tap's.
        self.attached.store(count.min(before), Ordering::SeqCst);
        for queue in self.queues.iter().take(before).skip(count) {
            queue.turn(libc::IFF_DETACH_QUEUE)?;
        }
        for queue in self.queues.iter().take(count).skip(before) {
            queue.turn(libc::IFF_ATTACH_QUEUE)?;
        }
        self.attached.store(count, Ordering::SeqCst);
        for queue in &self.queues {
            let _ = queue.turned.write(1);
        }
        Ok(())
    }

    /// As [`Self::attach`], of whom no driver waits for an answer.
    pub fn use_pairs(&self, pairs: u16) {
        if let Err(error) = self.attach(pairs.into()) {
            eprintln!("hyper-vmm: {pairs} queues of a tap: {error}");
        }
    }

    /// Length of the header before each packet.
    pub fn set_header(&self, bytes: usize) -> io::Result<()> {
        let bytes = libc::c_int::try_from(bytes).map_err(io::Error::other)?;
        // SAFETY: the request reads an int from the pointer; the descriptor is open.
        self.each(|file| unsafe { libc::ioctl(file, TUNSETVNETHDRSZ, &raw const bytes) })
    }

    /// Tells it what the driver does for the host: checksums, and cutting of long segments.
    pub fn agree(&self, features: u64) -> io::Result<()> {
        let has = |feature| features & feature != 0;
        let bit = |wanted, bit| if wanted { bit } else { 0 };
        let offloads = if has(F_GUEST_CSUM) {
            TUN_F_CSUM | bit(has(F_GUEST_TSO4), TUN_F_TSO4) | bit(has(F_GUEST_TSO6), TUN_F_TSO6)
        } else {
            0
        };
        // The same driver goes on, e.g. with more memory.
        if self.offloads.swap(UNTOLD, Ordering::SeqCst) != offloads {
            self.pace();
            // All queues are of one interface, and the first is always attached.
            let Some(first) = self.queues.first() else { return Ok(()) };
            let told = libc::c_ulong::from(offloads);
            // SAFETY: the request takes a number, no pointer; the descriptor is open.
            done(unsafe { libc::ioctl(first.file.as_raw_fd(), TUNSETOFFLOAD, told) })?;
        }
        self.offloads.store(offloads, Ordering::SeqCst);
        Ok(())
    }

    /// How many pairs the driver uses, where it can choose.
    pub fn save(&self) -> DeviceState {
        let attached = self.attached.load(Ordering::SeqCst);
        let pairs = (self.queues.len() > 1).then(|| u16::try_from(attached).unwrap_or(1));
        DeviceState { pairs, ..DeviceState::default() }
    }

    /// Waits until there may be one more change. Blocks whoever the guest's driver waits for.
    fn pace(&self) {
        let wait = {
            let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
            let (then, wait) = one_more(*paid, Instant::now());
            *paid = then;
            wait
        };
        if !wait.is_zero() {
            std::thread::sleep(wait);
        }
    }

    fn each(&self, ask: impl Fn(i32) -> i32) -> io::Result<()> {
        self.queues.iter().try_for_each(|queue| done(ask(queue.file.as_raw_fd())))
    }
}

impl Queue {
    fn turn(&self, flag: i32) -> io::Result<()> {
        // SAFETY: all of this C structure may be zero.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_ifru.ifru_flags = i16::try_from(flag).map_err(io::Error::other)?;
        // SAFETY: the request reads an ifreq from the pointer, which outlives the call; the descriptor is open.
        match done(unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETQUEUE, &raw const request) }) {
            // It is already: another monitor had it before, which a clone failed in.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            // That of tests and fuzz targets is no tap.
            Err(_) if cfg!(any(test, feature = "fuzzing")) => Ok(()),
            turned => turned,
        }
    }
}

/// What `paid` is after one more change at `now`, and how long that has to wait.
fn one_more(paid: Instant, now: Instant) -> (Instant, Duration) {
    let then = paid.max(now) + APART;
    (then, (then - now).saturating_sub(APART * AT_ONCE))
}

fn done(code: i32) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_driver_that_changes_its_mind_waits() {
        let (start, mut waited) = (Instant::now(), Duration::ZERO);
        let mut paid = start;
        for change in 1..=AT_ONCE + 20 {
            let (then, wait) = one_more(paid, start + waited);
            (paid, waited) = (then, waited + wait);
            assert_eq!(waited, APART * change.saturating_sub(AT_ONCE), "change {change}");
        }
        // What was not used in a long time is not owed more than once.
        let later = start + Duration::from_secs(3600);
        assert_eq!(one_more(paid, later), (later + APART, Duration::ZERO));
    }
}
