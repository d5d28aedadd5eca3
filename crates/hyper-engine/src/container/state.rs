//! What a container is doing.
//!
//! ```text
//!               start            ok               pause
//!   Created ───────────▶ Starting ───▶ Running ◀────────▶ Paused
//!      ▲                  │  ▲  ▲         │   unpause        │
//!      └── failed, first ─┘  │  │ start   │ exit             │ exit (killed)
//!                         │  │  │         ▼                  │
//!                failed ──┴──│▶ Exited ◀──┴──────────────────┘
//!                            │   │  ▲
//!               back-off over│   ▼  │ stopped by hand
//!                            Restarting        (by the container's restart policy)
//! ```
//! Any of `Created` and `Exited` may be removed; then the record is deleted. `Starting` is never
//! stored: after a crash in the middle, the pod that a client was not told of is discarded.
//! [`Event`] and [`State::apply`] are the only way from one status to another.

use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    #[default]
    Created,
    Starting,
    Running,
    Paused,
    Exited,
    /// Ended, and is started again after a while.
    Restarting,
}

impl Status {
    /// Has a process in a pod.
    #[must_use]
    pub fn is_up(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }

    /// Docker's word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Created | Self::Starting => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Exited => "exited",
            Self::Restarting => "restarting",
        }
    }
}

/// Stored with the container. Times are nanoseconds since the Unix epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    pub status: Status,
    /// Process id of the first process, in the guest.
    pub pid: u32,
    pub started_ns: Option<i64>,
    pub finished_ns: Option<i64>,
    pub exit_code: i32,
    pub oom_killed: bool,
    /// Why it ended or did not start, when that was not the process itself.
    pub error: String,
    /// The pod ended under the process; `error` says why.
    pub lost: bool,
    /// How often it ended or failed to start: tells one end from the next.
    pub exits: u64,
    /// How often its restart policy started it since it was last started by hand.
    pub restarts: u32,
    /// It was stopped by hand: see [`super::restart`].
    pub stopped: bool,
    /// What its health check says; `None` without one, and before the first start.
    pub health: Option<super::health::Health>,
}

/// What happens to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// By hand.
    StartAsked,
    /// The back-off is over.
    RestartDue,
    /// Its restart policy wants it to run; `counted`: because it has ended.
    RestartPlanned {
        counted: bool,
    },
    /// By hand.
    StopAsked,
    Started {
        pid: u32,
        unix_ns: i64,
    },
    StartFailed {
        exit_code: i32,
        why: String,
    },
    Paused,
    Unpaused,
    Ended(Exit),
}

/// How the first process ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exit {
    pub code: i32,
    pub unix_ns: i64,
    pub oom_killed: bool,
    /// Empty: by itself.
    pub reason: String,
    /// What went wrong beside it, e.g. lost log lines.
    pub note: String,
}

/// An [`Event`] that cannot happen in this status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} cannot happen to a container that is {}", status.word())]
pub struct Misplaced {
    pub status: Status,
    pub event: Event,
}

impl State {
    /// Moves along one edge of the diagram.
    ///
    /// # Errors
    /// [`Misplaced`]; the state is unchanged.
    pub fn apply(&mut self, event: Event) -> Result<(), Misplaced> {
        use Status::{Created, Exited, Paused, Restarting, Running, Starting};
        match (self.status, event) {
            (Created | Exited | Restarting, Event::StartAsked) => {
                self.starting();
                self.restarts = 0;
                self.stopped = false;
            }
            (Restarting, Event::RestartDue) => self.starting(),
            (Exited, Event::RestartPlanned { counted }) => {
                self.status = Restarting;
                self.restarts += u32::from(counted);
            }
            (Starting | Running | Paused, Event::StopAsked) => self.stopped = true,
            (Restarting, Event::StopAsked) => {
                self.status = Exited;
                self.stopped = true;
            }
            (Starting, Event::Started { pid, unix_ns }) => {
                self.status = Running;
                self.pid = pid;
                self.started_ns = Some(unix_ns);
                self.finished_ns = None;
                self.exit_code = 0;
            }
            (Starting, Event::StartFailed { exit_code, why }) => {
                self.status = if self.started_ns.is_some() { Exited } else { Created };
                self.error = why;
                self.exit_code = exit_code;
                self.exits += 1;
                self.pid = 0;
            }
            (Running, Event::Paused) => self.status = Paused,
            (Paused, Event::Unpaused) => self.status = Running,
            (Running | Paused, Event::Ended(exit)) => {
                self.status = Exited;
                self.exit_code = exit.code;
                self.oom_killed = exit.oom_killed;
                self.lost = !exit.reason.is_empty();
                self.error = if self.lost { exit.reason } else { exit.note };
                self.finished_ns = Some(exit.unix_ns);
                self.exits += 1;
                self.pid = 0;
            }
            (status, event) => return Err(Misplaced { status, event }),
        }
        Ok(())
    }

    fn starting(&mut self) {
        self.status = Status::Starting;
        self.error.clear();
        self.oom_killed = false;
        self.lost = false;
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn started(unix_ns: i64) -> Event {
        Event::Started { pid: 7, unix_ns }
    }

    #[test]
    fn a_life() {
        let mut state = State::default();
        for event in [
            Event::StartAsked,
            started(1),
            Event::Paused,
            Event::Unpaused,
            Event::Ended(Exit { code: 17, unix_ns: 2, ..Exit::default() }),
        ] {
            state.apply(event).expect("on the diagram");
        }
        assert_eq!((state.status, state.exit_code, state.exits), (Status::Exited, 17, 1));
        assert_eq!(state.pid, 0);
        state.apply(Event::StartAsked).expect("again");
        state.apply(started(3)).expect("again");
        assert_eq!((state.exit_code, state.finished_ns), (0, None));
    }

    #[test]
    fn a_failed_first_start_leaves_it_created() {
        let mut state = State::default();
        state.apply(Event::StartAsked).expect("created");
        let failed = Event::StartFailed { exit_code: 127, why: "no".into() };
        state.apply(failed).expect("starting");
        assert_eq!((state.status, state.exit_code), (Status::Created, 127));
    }

    #[test]
    fn off_the_diagram_nothing_changes() {
        let mut state = State::default();
        let before = state.clone();
        for event in [
            started(1),
            Event::Paused,
            Event::Unpaused,
            Event::Ended(Exit::default()),
            Event::RestartDue,
            Event::RestartPlanned { counted: true },
            Event::StopAsked,
        ] {
            assert!(state.apply(event).is_err());
            assert_eq!(state, before);
        }
    }
}
