//! Samples as cells: per measure and subject the middle, the spread, the failures, and the ratio to a reference.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::plan::{Axis, Better, Measure};
use crate::results::{Results, Sample, Study};
use crate::statistics::{Spread, geometric_mean, nearest_rank, sorted};

/// The subject that ratios are taken to first, then the second.
pub const REFERENCES: [&str; 2] = ["runc", "host"];

/// One measure of one subject.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Cell {
    pub measure: String,
    pub subject: String,
    /// Measured runs that gave a value.
    pub n: usize,
    /// Measured runs that gave none.
    pub failed: usize,
    /// Why not, once each.
    pub errors: Vec<String>,
    pub median: Option<f64>,
    /// Quartiles.
    pub low: Option<f64>,
    pub high: Option<f64>,
    pub min: Option<f64>,
    pub max: Option<f64>,
    pub p95: Option<f64>,
    pub p99: Option<f64>,
    /// Median over the median of `runc`.
    pub to_runc: Option<f64>,
    /// Median over the median of the host itself.
    pub to_host: Option<f64>,
}

/// Puts a study and its samples together.
#[must_use]
pub fn results(study: Study, samples: Vec<Sample>) -> Results {
    let mut summary = Vec::new();
    for measure in &study.measures {
        let from = summary.len();
        for subject in &study.subjects {
            summary.extend(cell(measure, &subject.name, &samples));
        }
        let median = |name: &str| {
            let of = |cell: &&Cell| cell.subject == name;
            summary[from..].iter().find(of).and_then(|cell: &Cell| cell.median)
        };
        let [runc, host] = REFERENCES.map(median);
        let ratio = |one: Option<f64>, other: Option<f64>| Some(one? / other.filter(|x| *x > 0.0)?);
        for cell in &mut summary[from..] {
            cell.to_runc = ratio(cell.median, runc);
            cell.to_host = ratio(cell.median, host);
        }
    }
    Results { study, samples, summary }
}

/// Values of a measure on a subject, in the order they were measured; the warm-up is left out.
pub fn values<'a>(
    samples: &'a [Sample],
    measure: &'a str,
    subject: &'a str,
) -> impl Iterator<Item = f64> + 'a {
    let measured = samples.iter().filter(move |s| s.round > 0 && s.subject == subject);
    measured.filter_map(move |sample| sample.values.get(measure).copied())
}

fn cell(measure: &Measure, subject: &str, samples: &[Sample]) -> Option<Cell> {
    let sorted = sorted(values(samples, &measure.id, subject));
    let mut errors = Vec::new();
    let mut failed = 0;
    for sample in samples.iter().filter(|s| s.round > 0 && s.subject == subject) {
        if let Some(error) = sample.errors.get(&measure.id) {
            failed += 1;
            if !errors.contains(error) && errors.len() < 5 {
                errors.push(error.clone());
            }
        }
    }
    if sorted.is_empty() && failed == 0 {
        return None;
    }
    let spread = Spread::of(sorted.iter().copied());
    Some(Cell {
        measure: measure.id.clone(),
        subject: subject.to_owned(),
        n: sorted.len(),
        failed,
        errors,
        median: spread.map(|s| s.median),
        low: spread.map(|s| s.low),
        high: spread.map(|s| s.high),
        min: spread.map(|s| s.min),
        max: spread.map(|s| s.max),
        p95: nearest_rank(&sorted, 0.95),
        p99: nearest_rank(&sorted, 0.99),
        to_runc: None,
        to_host: None,
    })
}

impl Results {
    #[must_use]
    pub fn cell(&self, measure: &str, subject: &str) -> Option<&Cell> {
        self.summary.iter().find(|cell| cell.measure == measure && cell.subject == subject)
    }

    /// The measures of an axis that any subject has a figure or a failure of.
    #[must_use]
    pub fn measures(&self, axis: Axis) -> Vec<&Measure> {
        let seen = |id: &str| self.summary.iter().any(|cell| cell.measure == id);
        let of = |measure: &&Measure| measure.axis == axis && seen(&measure.id);
        self.study.measures.iter().filter(of).collect()
    }

    /// What ratios are to: `runc`, else the host, as far as it was measured.
    #[must_use]
    pub fn reference(&self) -> Option<&'static str> {
        let measured =
            |name: &&str| self.summary.iter().any(|cell| cell.subject == *name && cell.n > 0);
        REFERENCES.into_iter().find(measured)
    }

    /// How many times as good a subject is as a reference on an axis: the middle of its main measures' ratios, and how
    /// many of them there are. Above 1 is better, whatever way a measure is good.
    #[must_use]
    pub fn worth(&self, axis: Axis, subject: &str, reference: &str) -> Option<(f64, usize)> {
        let main = self.study.measures.iter().filter(|m| m.axis == axis && m.main);
        let ratios: Vec<f64> =
            main.filter_map(|measure| self.gain(measure, subject, reference)).collect();
        Some((geometric_mean(&ratios)?, ratios.len()))
    }

    /// How many times as good a subject is in one measure. `None` where one of both has no figure, or a figure is zero.
    #[must_use]
    pub fn gain(&self, measure: &Measure, subject: &str, reference: &str) -> Option<f64> {
        let median = |name| self.cell(&measure.id, name)?.median.filter(|value| *value > 0.0);
        let ratio = median(subject)? / median(reference)?;
        Some(match measure.better {
            Better::Higher => ratio,
            Better::Lower => 1.0 / ratio,
        })
    }

    /// Whether a subject's figures of a measure lie apart from the reference's.
    #[must_use]
    pub fn apart(&self, measure: &str, subject: &str, reference: &str) -> bool {
        let of = |name| Spread::of(values(&self.samples, measure, name));
        matches!((of(subject), of(reference)), (Some(a), Some(b)) if a.apart(&b))
    }
}

#[cfg(test)]
pub(crate) mod test {
    use super::*;
    use crate::plan::{Scope, jobs};
    use crate::results::{FORMAT, Machine, Missing, Settings, State, Subject};

    /// A study of three subjects with known figures, one of which fails everywhere but at the start.
    pub(crate) fn sample_results() -> Results {
        let axes = vec![Axis::Startup, Axis::Cpu, Axis::Memory];
        let plan = jobs(&Scope { quick: true, axes: axes.clone(), cpus: 1 });
        let measures: Vec<Measure> = plan.iter().flat_map(|job| job.measures().cloned()).collect();
        let subject = |name: &str, wall: &str| Subject {
            name: name.into(),
            wall: wall.into(),
            version: Some("1 <beta>".into()),
        };
        let study = Study {
            format: FORMAT,
            started: "2026-01-01T00:00:00Z".into(),
            finished: None,
            state: State::Partial { why: "interrupted".into() },
            settings: Settings {
                quick: true,
                runs: 3,
                axes,
                runtimes: vec![],
                cpus: 1,
                memory: "1g".into(),
                image: "bench".into(),
                image_id: "sha256:0".into(),
            },
            machine: Machine { cpu: "A </script><b>Z80</b>".into(), cpus: 2, ..Machine::default() },
            tools: [("sysbench".to_owned(), "sysbench 1.0.20".to_owned())].into(),
            subjects: vec![
                subject("uml", "user-mode-kernel"),
                subject("runc", "shared-kernel"),
                subject("broken", "hardware"),
            ],
            missing: vec![Missing { name: "kata".into(), why: "not <installed>".into() }],
            measures,
        };
        let mut samples = Vec::new();
        for round in 0..4_u32 {
            for (name, scale) in [("uml", 2.0), ("runc", 1.0), ("broken", 9.0)] {
                let job = "start".to_owned();
                let mut sample = Sample { round, job, subject: name.into(), ..Sample::default() };
                // The warm-up's figures would be seen.
                let value = if round == 0 { 1e9 } else { 100.0 * scale + f64::from(round) };
                sample.values.insert("start.wall".into(), value);
                let rate = if round == 0 { 1e9 } else { 1000.0 + 10.0 * f64::from(round) };
                match name {
                    "broken" => {
                        let why = "exit code 1: <img src=x onerror=alert(1)>";
                        sample.errors.insert("cpu-t1.rate".into(), why.into());
                    }
                    _ => drop(sample.values.insert("cpu-t1.rate".into(), rate)),
                }
                if name == "uml" {
                    sample.phases.insert("process start to exit".into(), 3.0);
                }
                samples.push(sample);
            }
        }
        results(study, samples)
    }

    #[test]
    fn warm_ups_count_nowhere_and_failures_are_kept() {
        let all = sample_results();
        let uml = all.cell("start.wall", "uml").unwrap();
        assert_eq!((uml.n, uml.failed, uml.median, uml.max), (3, 0, Some(202.0), Some(203.0)));
        assert!((uml.to_runc.unwrap() - 202.0 / 102.0).abs() < 1e-9);
        assert_eq!(uml.to_host, None);
        let broken = all.cell("cpu-t1.rate", "broken").unwrap();
        assert_eq!((broken.n, broken.failed, broken.median), (0, 3, None));
        assert_eq!(broken.errors.len(), 1);
        assert_eq!(all.cell("cpu-t2.rate", "uml"), None);
    }

    #[test]
    fn worth_is_above_one_when_better() {
        let all = sample_results();
        assert_eq!(all.reference(), Some("runc"));
        let (startup, n) = all.worth(Axis::Startup, "uml", "runc").unwrap();
        assert!(n == 1 && (startup - 102.0 / 202.0).abs() < 1e-9);
        assert_eq!(all.worth(Axis::Cpu, "broken", "runc"), None);
        assert!(all.apart("start.wall", "uml", "runc"));
        assert!(!all.apart("cpu-t1.rate", "uml", "runc"));
    }
}
