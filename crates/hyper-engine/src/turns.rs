//! One at a time, by name: who changes what a container has waits for who does so already.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

/// Held until dropped.
pub(crate) type Turn = OwnedMutexGuard<()>;

/// Names without a holder or one who waits cost nothing.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    taken: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl Turns {
    /// Waits for the turn of `name`, in the order of those who ask.
    pub async fn take(&self, name: &str) -> Turn {
        let turn = {
            let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            taken.retain(|_, turn| turn.strong_count() > 0);
            match taken.get(name).and_then(Weak::upgrade) {
                Some(turn) => turn,
                None => {
                    let turn = Arc::default();
                    taken.insert(name.to_owned(), Arc::downgrade(&turn));
                    turn
                }
            }
        };
        turn.lock_owned().await
    }
}

#[cfg(test)]
mod test {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn one_name_waits_and_another_does_not() {
        let turns = Turns::default();
        let first = turns.take("one").await;
        turns.take("other").await;
        let soon = Duration::from_millis(20);
        assert!(timeout(soon, turns.take("one")).await.is_err(), "two have the turn");
        drop(first);
        timeout(soon, turns.take("one")).await.expect("the turn was not given back");
        turns.take("third").await;
        assert_eq!(turns.taken.lock().unwrap().len(), 1, "names are kept for nothing");
    }
}
