//! What is measured: axes, measures, and the jobs that yield them. Made anew from the settings each time; the measures
//! are kept with the results.

mod axes;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::tools::Tool;

/// A side of the comparison, in the study's order.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Axis {
    Startup,
    Cpu,
    Memory,
    Disk,
    Network,
    Syscalls,
    Nginx,
    Mysql,
}

impl Axis {
    pub const ALL: [Self; 8] = [
        Self::Startup,
        Self::Cpu,
        Self::Memory,
        Self::Disk,
        Self::Network,
        Self::Syscalls,
        Self::Nginx,
        Self::Mysql,
    ];

    /// As it is written on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Network => "network",
            Self::Syscalls => "syscalls",
            Self::Nginx => "nginx",
            Self::Mysql => "mysql",
        }
    }

    /// As a heading.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Startup => "Start-up",
            Self::Cpu => "CPU",
            Self::Memory => "Memory",
            Self::Disk => "Disk",
            Self::Network => "Network",
            Self::Syscalls => "System calls",
            Self::Nginx => "Nginx",
            Self::Mysql => "MySQL (MariaDB)",
        }
    }

    /// The axis of a name, or the list of names.
    ///
    /// # Errors
    /// A text with the names that there are.
    pub fn parse(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|axis| axis.name() == name);
        found.ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|axis| axis.name()).collect();
            format!("unknown axis `{name}`: {}", names.join(", "))
        })
    }
}

/// Which way a figure is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Better {
    Lower,
    Higher,
}

/// One figure that is compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Measure {
    /// `STEP.FIGURE`
    pub id: String,
    pub axis: Axis,
    pub title: String,
    pub unit: String,
    pub better: Better,
    /// It stands for its axis in the words; others are details.
    pub main: bool,
}

/// What is run at once, on one subject after the other.
#[derive(Debug, Clone)]
pub struct Job {
    pub id: String,
    pub kind: Kind,
    /// Runs in each round.
    pub repeat: u32,
    /// About how long one takes, its container with it; the first runs correct it.
    pub seconds: f64,
    pub steps: Vec<Step>,
}

/// How a job is run.
#[derive(Debug, Clone)]
pub enum Kind {
    /// `run --rm IMAGE true`, with the clock running; of a clone of a saved guest, or of one that boots.
    Start { network: bool, cloned: bool },
    /// As many containers as this started at once, looked at, removed.
    Crowd { count: u32 },
    /// The steps run in one container without a network, after `setup`.
    Inside { setup: String, mounts: Mounts },
    /// `/proc/meminfo` of a subject with a kernel of its own.
    Guest,
    /// `server` runs in a container and is ready when it takes connections at `port`; the steps run in the image's tree on
    /// the host, where `@IP@` is the server's address.
    Served { server: String, port: u16 },
    /// The same, but the steps run in another container of the subject.
    Between { server: String, port: u16 },
}

/// What the container of [`Kind::Inside`] has mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mounts {
    None,
    /// A volume at `/bench-volume` and a tmpfs at `/bench-tmpfs`.
    Volumes,
    /// A volume of the driver `disk` at `/bench-disk`, which only guests have.
    Disk,
}

/// One command and what is taken from its output.
#[derive(Debug, Clone)]
pub struct Step {
    pub name: String,
    pub command: String,
    pub tool: Option<Tool>,
    /// The host's CPU time while it runs is taken as `cpu`, seconds per Gbit.
    pub host_cpu: bool,
    pub takes: Vec<(&'static str, Measure)>,
}

/// What shapes a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    pub quick: bool,
    pub axes: Vec<Axis>,
    pub cpus: u32,
}

/// All jobs of a study.
#[must_use]
pub fn jobs(scope: &Scope) -> Vec<Job> {
    let mut jobs: Vec<Job> =
        scope.axes.iter().flat_map(|axis| axes::of(*axis, scope.quick, scope.cpus)).collect();
    // Startup and memory share a job.
    let mut seen = Vec::new();
    jobs.retain(|job| {
        let new = !seen.contains(&job.id);
        seen.push(job.id.clone());
        new
    });
    jobs
}

impl Job {
    pub fn measures(&self) -> impl Iterator<Item = &Measure> {
        self.steps.iter().flat_map(|step| step.takes.iter().map(|(_, measure)| measure))
    }

    /// What it cannot be run without, with the axis it is for.
    #[must_use]
    pub fn tools(&self) -> Vec<&'static str> {
        let mut tools: Vec<_> = self.steps.iter().filter_map(|step| step.tool).collect();
        tools.retain(|tool| *tool != Tool::Meminfo);
        let mut names: Vec<_> = tools.iter().map(|tool| tool.name()).collect();
        match &self.kind {
            Kind::Served { server, .. } if server.contains("nginx") => names.push("nginx"),
            Kind::Served { server, .. } | Kind::Between { server, .. }
                if server.contains("python3") =>
            {
                names.push("python3");
            }
            Kind::Inside { setup, .. } if setup.contains("mariadbd") => names.push("mariadbd"),
            _ => {}
        }
        names.sort_unstable();
        names.dedup();
        names
    }

    /// When it has surely hung: emulated guests are an order of magnitude slower than the rest.
    #[must_use]
    pub fn deadline(&self) -> std::time::Duration {
        std::time::Duration::from_secs_f64(60.0 + self.seconds * 10.0)
    }
}

/// Whose turn is first in a round: each in turn.
pub fn turned<T>(subjects: &[T], round: u32) -> impl Iterator<Item = &T> {
    let first = if subjects.is_empty() { 0 } else { round as usize % subjects.len() };
    subjects.iter().cycle().skip(first).take(subjects.len())
}

#[cfg(test)]
mod test {
    use super::*;

    fn all(quick: bool) -> Vec<Job> {
        jobs(&Scope { quick, axes: Axis::ALL.to_vec(), cpus: 2 })
    }

    #[test]
    fn measures_have_names_of_their_own_and_every_axis_has_a_main_one() {
        for quick in [true, false] {
            let jobs = all(quick);
            let mut ids: Vec<_> = jobs.iter().flat_map(Job::measures).map(|m| &m.id).collect();
            let count = ids.len();
            ids.sort();
            ids.dedup();
            assert_eq!(ids.len(), count);
            for axis in Axis::ALL {
                let mut of = jobs.iter().flat_map(Job::measures).filter(|m| m.axis == axis);
                assert!(of.any(|measure| measure.main), "{axis:?}");
                assert_eq!(Axis::parse(axis.name()), Ok(axis));
            }
        }
        assert!(Axis::parse("speed").unwrap_err().contains("syscalls"));
    }

    #[test]
    fn a_quick_study_of_four_subjects_and_two_rounds_is_planned_for_five_minutes() {
        let planned = |job: &Job| job.seconds * f64::from(job.repeat);
        let round: f64 = all(true).iter().map(planned).sum();
        assert!(round * 4.0 * 2.0 <= 300.0, "{} s", round * 4.0 * 2.0);
    }

    #[test]
    fn tools_are_known_before_the_start() {
        let mut tools: Vec<_> = all(true).iter().flat_map(Job::tools).collect();
        tools.sort_unstable();
        tools.dedup();
        let wanted = "fio iperf3 mariadbd nginx python3 sockperf stress-ng sysbench wrk";
        assert_eq!(tools.join(" "), wanted);
    }

    #[test]
    fn each_subject_is_first_in_its_turn() {
        let order = |round| turned(&['a', 'b', 'c'], round).collect::<String>();
        assert_eq!([order(0), order(1), order(2), order(3)], ["abc", "bca", "cab", "abc"]);
        assert_eq!(turned::<u8>(&[], 3).count(), 0);
    }
}
