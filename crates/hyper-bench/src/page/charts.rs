//! The charts' data, as the page's script reads them.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::plan::Measure;
use crate::results::Results;
use crate::statistics::{Spread, sorted};
use crate::summary::values;

/// Bars that differ by more than this are drawn on a logarithmic scale.
const LOGARITHMIC: f64 = 30.0;

/// One canvas; its element is `chart-ID`.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(super) enum Chart {
    /// A bar per subject with the quartiles' range, or the whole range of fewer than five values.
    Bars {
        id: String,
        unit: String,
        labels: Vec<String>,
        values: Vec<f64>,
        low: Vec<f64>,
        high: Vec<f64>,
        logarithmic: bool,
    },
    /// A line per subject: the share of runs that took no longer.
    Lines { id: String, unit: String, sets: Vec<Line> },
    /// A stack per subject.
    Stack { id: String, unit: String, labels: Vec<String>, sets: Vec<Part> },
}

#[derive(Debug, Serialize)]
pub(super) struct Line {
    label: String,
    points: Vec<Point>,
}

#[derive(Debug, Serialize)]
struct Point {
    x: f64,
    y: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct Part {
    label: String,
    values: Vec<f64>,
}

/// `None` when no subject has a figure.
pub(super) fn bars(results: &Results, measure: &Measure) -> Option<Chart> {
    let subjects = results.study.subjects.iter();
    let all: Vec<(String, Spread)> = subjects
        .filter_map(|subject| {
            let spread = Spread::of(values(&results.samples, &measure.id, &subject.name))?;
            Some((subject.name.clone(), spread))
        })
        .collect();
    let medians = sorted(all.iter().map(|(_, spread)| spread.median));
    let (first, last) = (*medians.first()?, *medians.last()?);
    Some(Chart::Bars {
        id: identity(&measure.id),
        unit: measure.unit.clone(),
        labels: all.iter().map(|(name, _)| name.clone()).collect(),
        values: all.iter().map(|(_, spread)| spread.median).collect(),
        low: all.iter().map(|(_, spread)| spread.range().0).collect(),
        high: all.iter().map(|(_, spread)| spread.range().1).collect(),
        logarithmic: first > 0.0 && last / first > LOGARITHMIC,
    })
}

/// The distribution of a measure.
pub(super) fn distribution(results: &Results, measure: &str, unit: &str) -> Option<Chart> {
    let mut sets = Vec::new();
    for subject in &results.study.subjects {
        let sorted = sorted(values(&results.samples, measure, &subject.name));
        #[expect(clippy::cast_precision_loss, reason = "a place in a small list")]
        let share = |place: usize| (place + 1) as f64 / sorted.len() as f64;
        let points: Vec<_> =
            sorted.iter().enumerate().map(|(place, x)| Point { x: *x, y: share(place) }).collect();
        if !points.is_empty() {
            sets.push(Line { label: subject.name.clone(), points });
        }
    }
    let id = format!("{}-distribution", identity(measure));
    (!sets.is_empty()).then(|| Chart::Lines { id, unit: unit.to_owned(), sets })
}

/// Median of each phase of a job's runs.
pub(super) fn phases(results: &Results, job: &str) -> Option<Chart> {
    let mut all: BTreeMap<&str, BTreeMap<&str, Vec<f64>>> = BTreeMap::new();
    let measured = results.samples.iter().filter(|s| s.round > 0 && s.job == job);
    for sample in measured {
        for (phase, ms) in &sample.phases {
            let of = all.entry(phase).or_default();
            of.entry(&sample.subject).or_default().push(*ms);
        }
    }
    let has = |name: &str| all.values().any(|of| of.contains_key(name));
    let subjects = results.study.subjects.iter().map(|subject| subject.name.as_str());
    let labels: Vec<&str> = subjects.filter(|name| has(name)).collect();
    let median = |of: &BTreeMap<&str, Vec<f64>>, name: &str| {
        let spread = of.get(name).and_then(|values| Spread::of(values.iter().copied()));
        spread.map_or(0.0, |spread| spread.median)
    };
    let mut phases: Vec<&str> = all.keys().copied().collect();
    phases.sort_by_key(|phase| place(phase));
    let sets = phases.iter().map(|phase| Part {
        label: (*phase).to_owned(),
        values: labels.iter().map(|name| median(&all[phase], name)).collect(),
    });
    let sets: Vec<Part> = sets.collect();
    (!labels.is_empty()).then(|| Chart::Stack {
        id: format!("{job}-phases"),
        unit: "ms".into(),
        labels: labels.iter().map(|name| (*name).to_owned()).collect(),
        sets,
    })
}

/// Phases as they follow each other; unknown ones last.
fn place(phase: &str) -> usize {
    const ORDER: [&str; 8] =
        ["create", "start", "supervisor", "hypervisor", "agent", "process", "exit", "guest"];
    ORDER.iter().position(|first| phase.starts_with(first)).unwrap_or(ORDER.len())
}

/// A measure's name as an element's.
pub(super) fn identity(measure: &str) -> String {
    measure.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}
