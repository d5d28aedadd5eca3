//! Restart policies: whether a container that has ended is started again, and when.
//!
//! Docker's rules. Stopping by hand (`stop`, `kill` with SIGKILL or the stop signal) ends it for
//! every policy until it is started by hand, or, with `always`, until hyperd starts again. A
//! container that never ran is not started by a policy.
//!
//! ```text
//!   ended ─ wanted? ─ no ─▶ Exited
//!             └ yes ─▶ Restarting ─ back-off, a free place ─▶ Starting
//!   hyperd starts ─ wanted_at_boot? ─ yes ─▶ Restarting, without back-off
//! ```

use std::time::Duration;

use super::spec::{Restart, RestartPolicy};
use super::state::State;
use crate::{Error, Result};

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(60);
/// Who ran so long has not failed at once.
const LONG_RUN: Duration = Duration::from_secs(10);
/// Containers that are started at once by their policies: after a reboot there may be hundreds.
pub(crate) const AT_ONCE: usize = 4;

/// Whether a container that has just ended is started again.
pub(crate) fn wanted(restart: Restart, state: &State) -> bool {
    if state.stopped {
        return false;
    }
    match restart.policy {
        RestartPolicy::No => false,
        RestartPolicy::Always | RestartPolicy::UnlessStopped => true,
        RestartPolicy::OnFailure => {
            state.exit_code != 0
                && (restart.max_retries == 0 || state.restarts < restart.max_retries)
        }
    }
}

/// Whether a container that does not run is started with hyperd.
pub(crate) fn wanted_at_boot(restart: Restart, state: &State) -> bool {
    let ran = state.started_ns.is_some();
    ran && (restart.policy == RestartPolicy::Always || wanted(restart, state))
}

/// The waits of one container.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    wait: Duration,
}

impl Backoff {
    /// How long to wait after a run of `ran`: twice as long as before, up to a minute.
    pub fn after(&mut self, ran: Duration) -> Duration {
        if ran >= LONG_RUN {
            self.wait = Duration::ZERO;
        }
        self.wait = (self.wait * 2).clamp(FIRST, LONGEST);
        self.wait
    }

    /// Started by hand: from the beginning.
    pub fn reset(&mut self) {
        self.wait = Duration::ZERO;
    }
}

/// Refuses policies that contradict themselves, in Docker's words.
pub(crate) fn check(restart: Restart, auto_remove: bool) -> Result<()> {
    if restart.policy != RestartPolicy::OnFailure && restart.max_retries > 0 {
        return Err(Error::Invalid(format!(
            "invalid restart policy: maximum retry count can only be used with 'on-failure', not \
             with '{}'",
            restart.policy.word()
        )));
    }
    if auto_remove && restart.policy != RestartPolicy::No {
        return Err(Error::Invalid(
            "can't create 'AutoRemove' container with restart policy".to_owned(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use super::*;

    fn policy(policy: RestartPolicy, max_retries: u32) -> Restart {
        Restart { policy, max_retries }
    }

    #[test]
    fn dockers_table() {
        use RestartPolicy::{Always, No, OnFailure, UnlessStopped};
        let ended = |exit_code: i32, restarts: u32, stopped: bool| State {
            exit_code,
            restarts,
            stopped,
            started_ns: Some(1),
            ..State::default()
        };
        for (restart, state, now, at_boot) in [
            (policy(No, 0), ended(1, 0, false), false, false),
            (policy(Always, 0), ended(0, 9, false), true, true),
            (policy(Always, 0), ended(0, 0, true), false, true),
            (policy(UnlessStopped, 0), ended(0, 0, false), true, true),
            (policy(UnlessStopped, 0), ended(0, 0, true), false, false),
            (policy(OnFailure, 0), ended(0, 0, false), false, false),
            (policy(OnFailure, 0), ended(3, 99, false), true, true),
            (policy(OnFailure, 2), ended(3, 1, false), true, true),
            (policy(OnFailure, 2), ended(3, 2, false), false, false),
        ] {
            assert_eq!(wanted(restart, &state), now, "{restart:?} {state:?}");
            assert_eq!(wanted_at_boot(restart, &state), at_boot, "{restart:?} {state:?}");
        }
        assert!(!wanted_at_boot(policy(Always, 0), &State::default()));
    }

    #[test]
    fn the_wait_doubles_up_to_a_minute_and_starts_anew_after_a_long_run() {
        let mut backoff = Backoff::default();
        let short = Duration::from_secs(1);
        let waits: Vec<u128> = (0..12).map(|_| backoff.after(short).as_millis()).collect();
        assert_eq!(waits[..4], [100, 200, 400, 800]);
        assert_eq!(waits[11], 60_000);
        assert_eq!(backoff.after(Duration::from_secs(10)), FIRST);
    }

    #[test]
    fn contradictions_are_refused() {
        let text = |restart, rm| check(restart, rm).map_err(|e| e.to_string());
        assert!(text(policy(RestartPolicy::Always, 3), false).unwrap_err().contains("on-failure"));
        assert!(text(policy(RestartPolicy::Always, 0), true).unwrap_err().contains("AutoRemove"));
        text(policy(RestartPolicy::OnFailure, 3), false).unwrap();
    }
}
