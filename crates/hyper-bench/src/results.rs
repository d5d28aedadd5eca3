//! What a study is on disk: its head (`study.json`), its samples (a line each), and all of it in one document
//! (`results.json`), whose schema is committed.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::plan::{Axis, Measure};
use crate::summary::Cell;

/// Version of the format; another one is refused.
pub const FORMAT: u32 = 1;

/// Everything about one study.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Results {
    pub study: Study,
    pub samples: Vec<Sample>,
    /// A cell per measure and subject that has values or failures.
    pub summary: Vec<Cell>,
}

/// What was measured, where, with what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Study {
    pub format: u32,
    /// RFC 3339.
    pub started: String,
    /// RFC 3339, when it came to its end.
    pub finished: Option<String>,
    pub state: State,
    pub settings: Settings,
    pub machine: Machine,
    /// Version of each tool as it names itself.
    pub tools: BTreeMap<String, String>,
    /// In the order of the first round.
    pub subjects: Vec<Subject>,
    pub missing: Vec<Missing>,
    pub measures: Vec<Measure>,
}

/// How far a study came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum State {
    /// It goes on, or was killed.
    Running,
    /// It ended early; the next `bench run --out` of the directory goes on.
    Partial {
        why: String,
    },
    Complete,
}

/// What was asked for. A study is only gone on with by the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Settings {
    pub quick: bool,
    /// Measured rounds, after the warm-up.
    pub runs: u32,
    pub axes: Vec<Axis>,
    /// Runtimes asked for by name; empty: all that work.
    pub runtimes: Vec<String>,
    /// CPUs of every subject.
    pub cpus: u32,
    /// Memory of every subject, as `--memory` takes it.
    pub memory: String,
    pub image: String,
    /// The image's identity.
    pub image_id: String,
}

/// The host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Machine {
    pub os: String,
    pub kernel: String,
    pub cpu: String,
    pub cpus: u32,
    pub memory_bytes: u64,
    /// The CPU says it is a hypervisor's.
    pub virtual_machine: bool,
    /// Governor of CPU 0's frequency, where the host tells.
    pub governor: Option<String>,
    /// File system below hyperd's data and the host's copy of the image.
    pub file_system: String,
    /// Versions of hyperd and this program, and how it was compiled.
    pub hyper: String,
}

/// One thing that is measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Subject {
    /// A runtime's name, `host` or `docker`.
    pub name: String,
    /// As in `hyper info`; `none` for the host itself.
    pub wall: String,
    pub version: Option<String>,
}

/// What could have been measured on another machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Missing {
    pub name: String,
    pub why: String,
}

/// One run of one job on one subject.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Sample {
    /// 0 is the warm-up, which no figure comes from.
    pub round: u32,
    /// Runs of the same job within a round.
    pub repeat: u32,
    pub job: String,
    pub subject: String,
    /// RFC 3339.
    pub at: String,
    pub seconds: f64,
    /// Load average of the last minute when it began.
    pub load: f64,
    /// Highest frequency of a CPU when it began, where the host tells.
    pub mhz: Option<f64>,
    /// By measure, in the measure's unit.
    pub values: BTreeMap<String, f64>,
    /// Milliseconds by phase of a start, where the engine stamps them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub phases: BTreeMap<String, f64>,
    /// Why a measure has no value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub errors: BTreeMap<String, String>,
}

/// The schema of [`Results`].
#[must_use]
pub fn schema() -> schemars::Schema {
    schemars::schema_for!(Results)
}

#[cfg(test)]
mod test {
    /// `HYPER_WRITE_DOCS=1 cargo test -p hyper-bench schema` writes it anew.
    #[test]
    fn the_committed_schema_is_not_stale() {
        let path = format!("{}/../../docs/schema/bench.json", env!("CARGO_MANIFEST_DIR"));
        let fresh = format!("{}\n", serde_json::to_string_pretty(&super::schema()).unwrap());
        if std::env::var_os("HYPER_WRITE_DOCS").is_some() {
            std::fs::write(&path, &fresh).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), fresh, "stale: {path}");
    }
}
