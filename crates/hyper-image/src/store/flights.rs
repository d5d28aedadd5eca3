//! One worker per thing: the same layer wanted twice at once is fetched and converted once.
//!
//! A lock per key, alive while somebody holds or awaits it. The second comer waits, then finds the work done, or,
//! if the first one failed or was cancelled, does it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use crate::digest::Digest;

/// What is worked on. Whoever needs two takes `Blob` or `Root` before `Layer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// Fetching `blobs/…`.
    Blob(Digest),
    /// Converting to `layers/…`, by diff id.
    Layer(Digest),
    /// Assembling `rootfs/…`, by chain.
    Root(Digest),
}

/// Held while the work is done.
pub(crate) type Flight = OwnedMutexGuard<()>;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Flights(Mutex<HashMap<Key, Weak<AsyncMutex<()>>>>);

impl Flights {
    /// Waits until nobody else works on `key`; `waiting` is called if somebody does.
    pub(crate) async fn acquire(&self, key: Key, waiting: impl FnOnce()) -> Flight {
        let lock = self.lock_of(key);
        match Arc::clone(&lock).try_lock_owned() {
            Ok(guard) => guard,
            Err(_) => {
                waiting();
                lock.lock_owned().await
            }
        }
    }

    fn lock_of(&self, key: Key) -> Arc<AsyncMutex<()>> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(&key).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(AsyncMutex::new(()));
        locks.insert(key, Arc::downgrade(&lock));
        lock
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    #[tokio::test]
    async fn one_at_a_time_per_key() {
        let flights = Arc::new(Flights::default());
        let (inside, waited) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let key = Key::Blob(Digest::of(b"x"));
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let (flights, inside, waited) = (flights.clone(), inside.clone(), waited.clone());
                tokio::spawn(async move {
                    let _flight = flights
                        .acquire(key, || {
                            waited.fetch_add(1, Ordering::SeqCst);
                        })
                        .await;
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(waited.load(Ordering::SeqCst), 7);
        let _other = flights.acquire(Key::Layer(Digest::of(b"x")), || panic!("another key")).await;
    }
}
