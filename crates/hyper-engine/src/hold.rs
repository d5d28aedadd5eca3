//! Images that somebody works with who is no container: the stages of a build.
//!
//! A stage's image has no name, and for long moments no container and no child: pruning would take it from under the
//! build. Held by count, for as long as a guard lives; nothing of it is stored, for a build ends with hyperd.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use hyper_image::{Digest, ImageUser};

/// What is held.
#[derive(Debug, Default)]
pub(crate) struct Holds(Arc<Mutex<BTreeMap<Digest, usize>>>);

impl Holds {
    pub(crate) fn hold(&self, image: Digest) -> ImageHold {
        *lock(&self.0).entry(image).or_default() += 1;
        ImageHold { image, holds: Arc::clone(&self.0) }
    }

    /// As the image store asks for it, before it removes something.
    pub(crate) fn users(&self) -> Vec<ImageUser> {
        let user = |image: &Digest| ImageUser {
            image: *image,
            container: "of a build".to_owned(),
            running: true,
        };
        lock(&self.0).keys().map(user).collect()
    }
}

/// Keeps an image from being removed until dropped.
#[derive(Debug)]
pub struct ImageHold {
    image: Digest,
    holds: Arc<Mutex<BTreeMap<Digest, usize>>>,
}

impl Drop for ImageHold {
    fn drop(&mut self) {
        let mut holds = lock(&self.holds);
        if let Some(count) = holds.get_mut(&self.image) {
            *count -= 1;
            if *count == 0 {
                holds.remove(&self.image);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn held_until_the_last_guard_goes() {
        let (holds, image) = (Holds::default(), Digest::of(b"x"));
        let (first, second) = (holds.hold(image), holds.hold(image));
        assert_eq!(holds.users().len(), 1);
        drop(first);
        assert_eq!(holds.users()[0].image, image);
        drop(second);
        assert!(holds.users().is_empty());
    }
}
