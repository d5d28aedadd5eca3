//! Threads that wait for the host's disk while the device's own goes on.
//!
//! ```text
//!  none ── a request that would have others wait ──► ordered ── Maker ──► threads ── end ──► joined
//! ```
//! Until they are there, the device's thread does without. What was handed over is carried out in
//! any order: a driver may not count on one among requests that are not done, and a flush is for
//! the writes that were done before it. Never more are in flight than the queue has entries.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

use super::Shared;
use super::request::Request;
use crate::config::HANDS;
use crate::event::Maker;
use crate::seccomp;
use crate::virtio::worker::STACK;

/// System calls of each.
const CALLS: &[i64] = &[libc::SYS_fallocate, libc::SYS_fdatasync, libc::SYS_preadv];

/// Those of a device. They end when this is dropped.
#[derive(Debug)]
pub(super) struct Hands {
    inner: Arc<Inner>,
    maker: Maker,
}

#[derive(Debug)]
struct Inner {
    name: String,
    state: Mutex<State>,
    in_flight: AtomicUsize,
    /// There is a request, or the end.
    work: Condvar,
    /// A request is done, or something has failed.
    done: Condvar,
}

#[derive(Debug, Default)]
struct State {
    requests: VecDeque<Request>,
    /// What they work on; none at the end.
    shared: Option<Arc<Shared>>,
    ordered: bool,
    threads: Vec<JoinHandle<()>>,
    failed: Option<io::Error>,
}

impl Hands {
    /// None yet, for the device called `name`.
    pub fn new(name: &str, maker: Maker, shared: Arc<Shared>) -> Self {
        let inner = Arc::new(Inner {
            name: format!("{name}+"),
            state: Mutex::new(State { shared: Some(shared), ..State::default() }),
            in_flight: AtomicUsize::new(0),
            work: Condvar::new(),
            done: Condvar::new(),
        });
        Self { inner, maker }
    }

    /// Whether they have something to do.
    pub fn busy(&self) -> bool {
        self.inner.in_flight.load(Ordering::Relaxed) > 0
    }

    /// Waits until fewer than `limit` requests are in flight; tells what has failed.
    pub fn wait_for_room(&self, limit: u16) -> io::Result<()> {
        let mut state = self.inner.lock();
        let full = || self.inner.in_flight.load(Ordering::Relaxed) >= usize::from(limit);
        while full() && state.failed.is_none() {
            state = self.inner.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.failed.take().map_or(Ok(()), Err)
    }

    /// Takes a request, or gives it back when nobody is there.
    pub fn take(&self, request: Request) -> Option<Request> {
        let mut state = self.inner.lock();
        if !std::mem::replace(&mut state.ordered, true) {
            drop(state);
            let inner = Arc::downgrade(&self.inner);
            self.maker.make(Box::new(move || make(&inner)));
            state = self.inner.lock();
        }
        if state.threads.is_empty() {
            return Some(request);
        }
        self.inner.in_flight.fetch_add(1, Ordering::Relaxed);
        state.requests.push_back(request);
        drop(state);
        self.inner.work.notify_one();
        None
    }

    /// Returns when they have done what they had, and have ended.
    pub fn end(&self) -> io::Result<()> {
        let threads = {
            let mut state = self.inner.lock();
            state.shared = None;
            std::mem::take(&mut state.threads)
        };
        self.inner.work.notify_all();
        for thread in threads {
            // What a panic was is told by `failed`.
            let _ = thread.join();
        }
        self.inner.lock().failed.take().map_or(Ok(()), Err)
    }
}

impl Drop for Hands {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Makes the threads, as many as the host has to give.
fn make(inner: &Weak<Inner>) {
    let Some(inner) = inner.upgrade() else { return };
    let mut state = inner.lock();
    let Some(shared) = state.shared.clone() else { return };
    for _ in 0..HANDS {
        let (own, shared) = (Arc::clone(&inner), Arc::clone(&shared));
        let named = std::thread::Builder::new().name(inner.name.clone()).stack_size(STACK);
        match named.spawn(move || own.work(&shared)) {
            Ok(thread) => state.threads.push(thread),
            Err(error) => {
                eprintln!("hyper-vmm: {}: no thread can be made: {error}", inner.name);
                break;
            }
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, shared: &Shared) {
        let panicked = |_| Err(io::Error::other("one of its threads panicked"));
        let worked = catch_unwind(AssertUnwindSafe(|| self.run(shared))).unwrap_or_else(panicked);
        if let Err(error) = worked {
            self.lock().failed.get_or_insert(error);
            self.done.notify_all();
        }
    }

    fn run(&self, shared: &Shared) -> io::Result<()> {
        seccomp::device(CALLS)?;
        while let Some(request) = self.next() {
            let head = request.head;
            let flight = Flight(self);
            let written = shared.carry_out(request);
            // Before the guest is told: what it offers then must not look as if it were not alone.
            drop(flight);
            shared.used(head, written)?;
        }
        Ok(())
    }

    /// Waits for a request; `None` at the end.
    fn next(&self) -> Option<Request> {
        let mut state = self.lock();
        loop {
            let request = state.requests.pop_front();
            if request.is_some() || state.shared.is_none() {
                return request;
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A request in flight, until this is dropped.
struct Flight<'a>(&'a Inner);

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        // Under the lock: who waits for room looks and sleeps in one.
        let state = self.0.lock();
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
        drop(state);
        self.0.done.notify_one();
    }
}
