//! What the thread is told that waits for the guest's end: the end, and threads to make for those
//! that have given up making any (seccomp.rs).

use std::fmt;
use std::sync::mpsc::Sender;

use crate::wire::End;

/// Something to do, elsewhere.
pub(crate) type Order = Box<dyn FnOnce() + Send>;

pub(crate) enum Event {
    /// How the guest ended. What is told later counts no more.
    Ended(End),
    Make(Order),
}

/// Where threads are ordered.
#[derive(Clone)]
pub(crate) struct Maker {
    events: Sender<Event>,
    /// Whoever orders something waits for it.
    waits: bool,
}

impl Maker {
    pub fn new(events: Sender<Event>) -> Self {
        Self { events, waits: false }
    }

    /// Has `order` carried out soon, or never when the guest ends before.
    pub fn make(&self, order: Order) {
        if !self.waits {
            let _ = self.events.send(Event::Make(order));
            return;
        }
        let (done, waiting) = std::sync::mpsc::channel::<()>();
        let told = move || {
            order();
            drop(done);
        };
        let _ = self.events.send(Event::Make(Box::new(told)));
        let _ = waiting.recv();
    }

    /// One with a thread of its own, which ends with the last copy: for tests and the fuzz targets.
    /// It waits, so that threads are there from the first need on, however short that is.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn apart() -> Self {
        let (events, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            while let Ok(Event::Make(order)) = told.recv() {
                order();
            }
        });
        Self { events, waits: true }
    }
}

impl fmt::Debug for Maker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Maker")
    }
}
