//! When a guest that does not answer is dead, and when its host only gives it no time to.
//!
//! ```text
//! every PING_EVERY: asked ─ answered ─► alive
//!                     └ nothing for ANSWER ─► had it the time? ─ yes ─► dead
//!                                                 └ no ─► asked again, MOST times at last
//! ```
//! A second counts against the guest when this process saw it pass on time (a host that was
//! suspended, or stopped for a snapshot, has everybody's deadline pass at once), as far as the guest
//! was not waiting for a CPU, and when it did not wait for a disk of the host.

use std::time::Duration;

use hyper_hypervisor::VmWaits;
use hyper_link::CallError;
use hyper_link::message::Request;

use crate::guest::Guest;

/// How long one question may take. Together with the time between two questions it is the ten
/// seconds within which a guest that hangs is told.
const ANSWER: Duration = Duration::from_secs(7);
const PING_EVERY: Duration = Duration::from_secs(3);
const TICK: Duration = Duration::from_secs(1);
/// A guest that could have run for so long has nothing to say any more: less than what is left of
/// [`ANSWER`] after its first tick.
const ENOUGH: Duration = Duration::from_secs(4);
/// … and one that has been asked so often, for a minute, is of no use to anybody.
const MOST: u32 = 9;

/// Resolves when the agent does not answer although the guest is not paused: for how long it was
/// asked.
pub(crate) async fn silence(guest: &Guest) -> Duration {
    let mut silence = Silence::default();
    loop {
        if silence.questions == 0 {
            tokio::time::sleep(PING_EVERY).await;
        }
        if guest.is_paused() || ask(guest, &mut silence).await || guest.is_paused() {
            silence = Silence::default();
        } else if silence.is_death() {
            return ANSWER * silence.questions;
        }
    }
}

/// Whether there is an answer.
async fn ask(guest: &Guest, silence: &mut Silence) -> bool {
    // The sign of life that is asked for brings the guest's clock along.
    let request = Request::SetTime { unix_ns: hyper_stdio::now_ns() };
    let mut answer = std::pin::pin!(guest.link.call(request, ANSWER));
    loop {
        tokio::select! {
            biased;
            // A link that has ended is seen by the watch itself.
            answer = &mut answer => {
                silence.questions += 1;
                return !matches!(answer, Err(CallError::TimedOut { .. }));
            }
            () = tokio::time::sleep(TICK) => silence.tick(&guest.vm.waits().await, guest.vcpus),
        }
    }
}

/// Questions without an answer.
#[derive(Debug, Default)]
struct Silence {
    questions: u32,
    /// Time in which the guest could have answered.
    unheard: Duration,
    before: Option<VmWaits>,
}

impl Silence {
    /// One has passed.
    fn tick(&mut self, now: &VmWaits, vcpus: u32) {
        if let Some(before) = self.before.replace(now.clone())
            && !now.blocked
        {
            self.unheard += TICK.saturating_sub(waited(&before, now, vcpus));
        }
    }

    fn is_death(&self) -> bool {
        self.unheard >= ENOUGH || self.questions >= MOST
    }
}

/// How long a guest was kept from running. Tasks that run by turns, as those of user-mode Linux,
/// wait by turns, too; of several CPUs the one that is wanted may be the one that waits.
fn waited(before: &VmWaits, now: &VmWaits, vcpus: u32) -> Duration {
    let each = now.ready.iter().map(|(task, waited)| {
        waited.saturating_sub(before.ready.get(task).copied().unwrap_or_default())
    });
    let (mut all, mut most) = (Duration::ZERO, Duration::ZERO);
    for one in each {
        (all, most) = (all + one, most.max(one));
    }
    most.max(all / vcpus.max(1))
}

#[cfg(test)]
mod test {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn waits(ready: &[u64]) -> VmWaits {
        let ready = (1..).zip(ready.iter().map(|waited| MS(*waited))).collect();
        VmWaits { ready, blocked: false }
    }

    /// How many questions have no answer until it is dead; told what it has waited in each second.
    fn questions(each: impl Fn(u64) -> VmWaits) -> u32 {
        let mut silence = Silence::default();
        let mut seconds = 0..100;
        while !silence.is_death() {
            // The seventh is the last's end.
            for second in seconds.by_ref().take(6) {
                silence.tick(&each(second), 1);
            }
            silence.questions += 1;
        }
        silence.questions
    }

    #[test]
    fn a_guest_that_had_its_time_is_dead_within_one_question() {
        assert_eq!(questions(|_| waits(&[5, 7])), 1);
        // A host that tells nothing.
        assert_eq!(questions(|_| VmWaits::default()), 1);
    }

    /// Dozens of healthy pods were killed in the same moment on a host with too much to do.
    #[test]
    fn a_guest_without_a_cpu_has_time_but_not_for_ever() {
        assert_eq!(questions(|second| waits(&[second * 1000, 0])), MOST);
        assert_eq!(questions(|second| waits(&[second * 500, second * 500])), MOST);
        assert_eq!(questions(|second| waits(&[second * 800])), 4);
        assert_eq!(questions(|_| VmWaits { blocked: true, ..VmWaits::default() }), MOST);
    }

    /// All deadlines of a host that was suspended pass at once.
    #[test]
    fn a_question_without_ticks_says_nothing() {
        let mut silence = Silence::default();
        silence.tick(&waits(&[0]), 1);
        silence.tick(&waits(&[0]), 1);
        silence.questions += 1;
        assert!(!silence.is_death());
    }

    #[test]
    fn of_several_cpus_one_that_waits_is_enough() {
        let (before, now) = (waits(&[0, 0, 0, 0]), waits(&[800, 0, 0, 0]));
        assert_eq!(waited(&before, &now, 4), MS(800));
        assert_eq!(waited(&before, &waits(&[400, 400, 400, 400]), 4), MS(400));
        assert_eq!(waited(&waits(&[500]), &waits(&[600, 30]), 1), MS(130), "a new task");
    }
}
