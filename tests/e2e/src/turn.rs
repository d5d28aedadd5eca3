//! Several test programs at once on one host: those that have an engine or a containerd there are beside each
//! other, and who counts what is on the host is alone.
//!
//! Two files are locked. The room is held by all who are beside each other (shared) or by the one who is alone. The door
//! is held while somebody waits for the room, so that newcomers do not keep out who wants to be alone. Locks are the
//! kernel's (`flock(2)`) and end with their process.

use std::fs::File;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A place in the room, of the whole process: who is in it already enters again at once. [`crate::Engine`] has one.
#[derive(Debug)]
pub struct Turn(());

/// Nobody else's engine is on the host. Taken before the test's own is started.
#[derive(Debug)]
pub struct Alone(Turn);

/// What this process holds, and for how many.
#[derive(Debug)]
struct Held {
    room: Option<File>,
    count: usize,
}

static HELD: Mutex<Held> = Mutex::new(Held { room: None, count: 0 });

impl Turn {
    /// Waits until nobody is alone but this process.
    #[must_use]
    pub fn beside() -> Self {
        Self::take(File::lock_shared)
    }

    fn take(lock: fn(&File) -> std::io::Result<()>) -> Self {
        let mut held = held();
        if held.count == 0 {
            let (door, room) = (open("door"), open("room"));
            door.lock().expect("lock the door");
            lock(&room).expect("lock the room");
            held.room = Some(room);
        }
        held.count += 1;
        Self(())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut held = held();
        held.count -= 1;
        if held.count == 0 {
            held.room = None;
        }
    }
}

impl Alone {
    /// Waits until nothing of the tests is on the host.
    #[must_use]
    pub fn wait() -> Self {
        assert_eq!(held().count, 0, "taken before everything else of a test");
        Self(Turn::take(File::lock))
    }
}

/// A test that failed has poisoned nothing: what it held was given back.
fn held() -> MutexGuard<'static, Held> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Of all checkouts: they count the same host.
fn open(name: &str) -> File {
    let path = std::env::temp_dir().join(format!("hyper-e2e.{name}"));
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    file.unwrap_or_else(|error| panic!("open {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_wait_until_the_last_of_a_process_that_is_alone_has_gone() {
        let room = || open("room");
        let shared = || room().try_lock_shared().is_ok();
        let first = Turn::beside();
        let second = Turn::beside();
        assert!(shared(), "others may be there as well");
        drop(first);
        assert!(room().try_lock().is_err(), "the second is still there");
        drop(second);
        let alone = Alone::wait();
        let own = Turn::beside();
        assert!(!shared(), "nobody else is let in");
        drop(own);
        assert!(!shared(), "nor when the test's own engine is gone");
        drop(alone);
        assert_eq!(held().count, 0);
    }
}
