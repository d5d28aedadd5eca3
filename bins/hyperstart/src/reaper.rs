//! How processes end: PID 1 reaps every child, known or not.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    rc::Rc,
    time::SystemTime,
};

use rustix::process::{Pid, WaitOptions, WaitStatus, wait};
use tokio::{io::Interest, sync::oneshot};

use crate::carrier::Descriptor;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// Exit code, or 128 + signal number.
    pub(crate) code: i32,
    /// When it was noticed.
    pub(crate) unix_ns: i64,
}

/// Reaps children and tells those who wait for one.
#[derive(Debug)]
pub(crate) struct Reaper {
    shared: Rc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: RefCell<HashMap<i32, oneshot::Sender<Exit>>>,
    /// Ends of processes nobody waited for yet, kept while some may just have been born.
    early: RefCell<HashMap<i32, Exit>>,
    births: Cell<usize>,
}

impl Reaper {
    /// Must be called within a `LocalSet`, before the first fork.
    ///
    /// # Errors
    /// No descriptor for the signal.
    pub(crate) fn start() -> io::Result<Self> {
        let signals = Descriptor::watching(crate::sys::child_signals()?, Interest::READABLE)?;
        let shared = Rc::new(Shared::default());
        tokio::task::spawn_local({
            let shared = Rc::clone(&shared);
            async move {
                let mut drain = [0; 512];
                loop {
                    let readable = signals.when_readable(|_| match signals.try_read(&mut drain) {
                        Ok(_) => Ok(()),
                        Err(error) => Err(error.into()),
                    });
                    if readable.await.is_err() {
                        return;
                    }
                    shared.reap();
                }
            }
        });
        Ok(Self { shared })
    }

    /// While this lives, no end of a process is forgotten.
    pub(crate) fn expecting(&self) -> Expecting {
        self.shared.births.set(self.shared.births.get() + 1);
        Expecting { shared: Rc::clone(&self.shared) }
    }

    /// The end of `pid`, a child of the agent, now or later.
    pub(crate) fn exit_of(&self, pid: Pid) -> oneshot::Receiver<Exit> {
        let (sender, receiver) = oneshot::channel();
        let pid = pid.as_raw_nonzero().get();
        match self.shared.early.borrow_mut().remove(&pid) {
            Some(exit) => drop(sender.send(exit)),
            None => drop(self.shared.waiting.borrow_mut().insert(pid, sender)),
        }
        receiver
    }
}

impl Shared {
    fn reap(&self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let exit = Exit { code: code(status), unix_ns: now() };
            let pid = pid.as_raw_nonzero().get();
            match self.waiting.borrow_mut().remove(&pid) {
                // Whoever waited may have given up.
                Some(sender) => drop(sender.send(exit)),
                None if self.births.get() > 0 => drop(self.early.borrow_mut().insert(pid, exit)),
                None => {}
            }
        }
    }
}

fn code(status: WaitStatus) -> i32 {
    let by_signal = status.terminating_signal().map(|signal| 128 + signal);
    status.exit_status().or(by_signal).unwrap_or(255)
}

fn now() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

/// See [`Reaper::expecting`].
#[derive(Debug)]
pub(crate) struct Expecting {
    shared: Rc<Shared>,
}

impl Drop for Expecting {
    fn drop(&mut self) {
        let left = self.shared.births.get() - 1;
        self.shared.births.set(left);
        if left == 0 {
            self.shared.early.borrow_mut().clear();
        }
    }
}
