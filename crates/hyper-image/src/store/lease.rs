//! Leases: what a pull or load is working on is not garbage, though no name refers to it yet.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::digest::Digest;

/// How often each digest is leased.
#[derive(Debug, Default)]
pub(crate) struct Leases(Mutex<HashMap<Digest, u32>>);

/// Keeps digests until it is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    leases: Arc<Leases>,
    held: Mutex<Vec<Digest>>,
}

impl Leases {
    pub(crate) fn lease(self: &Arc<Self>) -> Lease {
        Lease { leases: Arc::clone(self), held: Mutex::default() }
    }

    /// Runs `discard` unless the digest is leased; nobody can lease it meanwhile, so it should be quick.
    pub(crate) fn unless_held<T>(&self, digest: &Digest, discard: impl FnOnce() -> T) -> Option<T> {
        let counts = lock(&self.0);
        if counts.contains_key(digest) { None } else { Some(discard()) }
    }
}

impl Lease {
    /// Keeps a digest, whatever it names: blob, diff id or chain. To be called before looking whether it is there.
    pub(crate) fn keep(&self, digest: Digest) {
        *lock(&self.leases.0).entry(digest).or_default() += 1;
        lock(&self.held).push(digest);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut counts = lock(&self.leases.0);
        for digest in lock(&self.held).drain(..) {
            if let Some(count) = counts.get_mut(&digest) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&digest);
                }
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn counted() {
        let leases = Arc::new(Leases::default());
        let digest = Digest::of(b"x");
        let (a, b) = (leases.lease(), leases.lease());
        a.keep(digest);
        b.keep(digest);
        drop(a);
        assert_eq!(leases.unless_held(&digest, || ()), None);
        drop(b);
        assert_eq!(leases.unless_held(&digest, || ()), Some(()));
    }
}
