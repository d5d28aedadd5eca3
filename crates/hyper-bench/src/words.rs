//! What the figures say, in words. Every sentence is made from figures of the study at hand.

use crate::plan::{Axis, Better, Measure};
use crate::results::{Results, Subject};
use crate::table::number;

/// What one subject's wall costs beside the reference.
#[derive(Debug, Clone, PartialEq)]
pub struct Cost {
    pub subject: Subject,
    /// One sentence over all axes.
    pub headline: String,
    /// One per axis that was measured or failed.
    pub axes: Vec<(Axis, String)>,
}

/// All subjects but the reference, in the study's order.
#[must_use]
pub fn costs(results: &Results) -> Vec<Cost> {
    let Some(reference) = results.reference() else { return Vec::new() };
    let others = results.study.subjects.iter().filter(|subject| subject.name != reference);
    others.map(|subject| cost(results, subject, reference)).collect()
}

fn cost(results: &Results, subject: &Subject, reference: &str) -> Cost {
    let mut axes = Vec::new();
    let mut worths = Vec::new();
    for axis in results.study.settings.axes.iter().copied() {
        if let Some((words, worth)) = axis_words(results, axis, subject, reference) {
            axes.push((axis, words));
            worths.extend(worth.map(|worth| (axis, worth)));
        }
    }
    worths.sort_by(|a, b| a.1.total_cmp(&b.1));
    let name = &subject.name;
    let headline = match (worths.first(), worths.last()) {
        (Some(worst), Some(best)) if worths.len() > 1 => {
            let told = |(axis, worth): &(Axis, f64)| {
                format!("{} ({})", axis.title(), times(*worth, reference))
            };
            format!(
                "{name} is furthest behind in {}, and stands best in {}.",
                told(worst),
                told(best)
            )
        }
        (Some((axis, worth)), _) => {
            format!("{name}: {}: {}.", axis.title(), times(*worth, reference))
        }
        _ => format!("{name} has no figure that {reference} has, too."),
    };
    Cost { subject: subject.clone(), headline, axes }
}

/// A sentence, and the axis' worth if it has one.
fn axis_words(
    results: &Results,
    axis: Axis,
    subject: &Subject,
    reference: &str,
) -> Option<(String, Option<f64>)> {
    let name = &subject.name;
    let main: Vec<&Measure> =
        results.study.measures.iter().filter(|m| m.axis == axis && m.main).collect();
    let failed = main
        .iter()
        .filter_map(|m| results.cell(&m.id, name))
        .filter(|cell| cell.n == 0 && cell.failed > 0);
    let failed: Vec<_> = failed.collect();
    let Some((worth, count)) = results.worth(axis, name, reference) else {
        let why = failed.first().and_then(|cell| cell.errors.first())?;
        return Some((format!("failed: {why}"), None));
    };
    let gains = || main.iter().filter_map(|m| Some((*m, results.gain(m, name, reference)?)));
    let apart = gains().any(|(measure, _)| results.apart(&measure.id, name, reference));
    let mut words = match apart {
        false => {
            format!("no difference to {reference} beyond the spread ({})", times(worth, reference))
        }
        true => times(worth, reference),
    };
    if count > 1 && apart {
        let worst = gains().min_by(|a, b| a.1.total_cmp(&b.1));
        let best = gains().max_by(|a, b| a.1.total_cmp(&b.1));
        if let (Some((low, worst)), Some((high, best))) = (worst, best) {
            words.push_str(&format!(
                "; from {} in “{}” to {} in “{}”",
                short(worst),
                low.title,
                short(best),
                high.title
            ));
        }
    }
    if !failed.is_empty() {
        words.push_str(&format!("; {} of {} measures failed", failed.len(), main.len()));
    }
    Some((words, Some(worth)))
}

/// `2.1 × worse than runc`
fn times(worth: f64, reference: &str) -> String {
    match short(worth).as_str() {
        "even" => format!("even with {reference}"),
        words => format!("{words} than {reference}"),
    }
}

/// `2.1 × worse`; `even` below what two digits show.
#[must_use]
pub fn short(worth: f64) -> String {
    match () {
        () if (0.98..=1.02).contains(&worth) => "even".into(),
        () if worth < 1.0 => format!("{} × worse", number(1.0 / worth)),
        () => format!("{} × better", number(worth)),
    }
}

/// What a good figure is, for a heading.
#[must_use]
pub fn better(better: Better) -> &'static str {
    match better {
        Better::Lower => "less is better",
        Better::Higher => "more is better",
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::summary::test::sample_results;

    #[test]
    fn words_follow_from_the_figures() {
        let all = costs(&sample_results());
        let uml = all.iter().find(|cost| cost.subject.name == "uml").unwrap();
        let axis = |axis| &uml.axes.iter().find(|(one, _)| *one == axis).unwrap().1;
        assert_eq!(axis(Axis::Startup), "1.98 × worse than runc");
        assert!(axis(Axis::Cpu).starts_with("no difference to runc beyond the spread"));
        assert!(uml.headline.contains("furthest behind in Start-up"), "{}", uml.headline);
        let broken = all.iter().find(|cost| cost.subject.name == "broken").unwrap();
        let cpu = &broken.axes.iter().find(|(axis, _)| *axis == Axis::Cpu).unwrap().1;
        assert!(cpu.starts_with("failed: exit code 1"), "{cpu}");
        assert!(
            all.iter().all(|cost| cost.subject.name != "runc"),
            "it is what others are held against"
        );
    }

    #[test]
    fn better_and_worse() {
        assert_eq!([0.5, 1.01, 3.0].map(short), ["2.00 × worse", "even", "3.00 × better"]);
    }
}
