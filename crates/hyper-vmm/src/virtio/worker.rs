//! A device's thread: waits for kicks and for its files, until it is told to stop.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::EventFd;

use crate::seccomp;

/// Bytes of a thread's stack.
pub(super) const STACK: usize = 128 << 10;

/// A running thread that gives back `T` when it is stopped.
#[derive(Debug)]
pub(super) struct Worker<T> {
    thread: JoinHandle<T>,
    stop: EventFd,
    asked: Arc<AtomicBool>,
}

/// What a thread waits with.
#[derive(Debug)]
pub(super) struct Stop {
    event: EventFd,
    asked: Arc<AtomicBool>,
}

impl<T: Send + 'static> Worker<T> {
    /// Runs `work` on `state` in a thread of its own, which may make the system calls `calls` beside
    /// those of every device.
    pub fn start(
        name: &str,
        calls: &'static [i64],
        mut state: T,
        work: impl FnOnce(&mut T, &Stop) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let stop = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let asked = Arc::new(AtomicBool::new(false));
        let told = Stop { event: stop.try_clone()?, asked: Arc::clone(&asked) };
        let shown = name.to_owned();
        let named = std::thread::Builder::new().name(name.to_owned()).stack_size(STACK);
        let thread = named.spawn(move || {
            let worked = seccomp::device(calls).and_then(|()| work(&mut state, &told));
            if let Err(error) = worked {
                // The guest's own doing: it has lost the device, and its driver will say so.
                eprintln!("hyper-vmm: {shown}: {error}");
            }
            state
        })?;
        Ok(Self { thread, stop, asked })
    }

    /// Ends the thread; `None` when it panicked.
    pub fn stop(self) -> Option<T> {
        self.asked.store(true, Ordering::Relaxed);
        let _ = self.stop.write(1);
        self.thread.join().ok()
    }
}

impl Stop {
    /// Whether the thread shall end, for one that has too much to do to wait.
    pub fn asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Waits for `time`, or until the thread shall end: whether it shall.
    pub fn wait_for(&self, time: Duration) -> io::Result<bool> {
        let time = Timespec::try_from(time).map_err(io::Error::other)?;
        let mut stop = [PollFd::from_borrowed_fd(borrow(&self.event), PollFlags::IN)];
        match poll(&mut stop, Some(&time)) {
            Err(rustix::io::Errno::INTR) => Ok(false),
            other => Ok(other? > 0),
        }
    }

    /// Waits until one of `files` is ready for what is asked of it; says which, or `None` when the
    /// thread shall end.
    pub fn wait<const N: usize>(
        &self,
        files: [(BorrowedFd<'_>, PollFlags); N],
    ) -> io::Result<Option<[bool; N]>> {
        let mut all = Vec::with_capacity(N + 1);
        all.push(PollFd::from_borrowed_fd(borrow(&self.event), PollFlags::IN));
        for (file, flags) in files {
            all.push(PollFd::from_borrowed_fd(file, flags));
        }
        loop {
            match poll(&mut all, None) {
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => break,
            }
        }
        if !all[0].revents().is_empty() {
            return Ok(None);
        }
        let mut ready = [false; N];
        for (ready, file) in ready.iter_mut().zip(&all[1..]) {
            *ready = !file.revents().is_empty();
        }
        Ok(Some(ready))
    }
}

/// An eventfd as a descriptor that can be polled.
pub(super) fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as `event`, whose borrow this one has.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
