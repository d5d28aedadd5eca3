//! Two studies beside each other: what changed by more than their spread.

use crate::plan::Better;
use crate::results::Results;
use crate::statistics::Spread;
use crate::summary::values;
use crate::table::{aligned, number};

/// One figure of both studies.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    pub subject: String,
    pub measure: String,
    pub title: String,
    pub unit: String,
    pub before: f64,
    pub after: f64,
    pub verdict: Verdict,
}

/// What a change means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Better,
    Worse,
    /// The spreads overlap.
    Same,
}

/// All figures that both have.
#[must_use]
pub fn changes(before: &Results, after: &Results) -> Vec<Change> {
    let mut all = Vec::new();
    for measure in &after.study.measures {
        for subject in &after.study.subjects {
            let of = |all: &Results| Spread::of(values(&all.samples, &measure.id, &subject.name));
            let (Some(old), Some(new)) = (of(before), of(after)) else { continue };
            let rises = new.median > old.median;
            let verdict = match (old.apart(&new), rises == (measure.better == Better::Higher)) {
                (false, _) => Verdict::Same,
                (true, true) => Verdict::Better,
                (true, false) => Verdict::Worse,
            };
            all.push(Change {
                subject: subject.name.clone(),
                measure: measure.id.clone(),
                title: measure.title.clone(),
                unit: measure.unit.clone(),
                before: old.median,
                after: new.median,
                verdict,
            });
        }
    }
    all
}

/// Why the two should not be compared, as far as it is known.
#[must_use]
pub fn caveats(before: &Results, after: &Results) -> Vec<String> {
    let (a, b) = (&before.study, &after.study);
    let mut all = Vec::new();
    let mut differ = |what: &str, a: &str, b: &str| {
        if a != b {
            all.push(format!("{what} differs: `{a}` and `{b}`"));
        }
    };
    differ("the CPU", &a.machine.cpu, &b.machine.cpu);
    differ("the host's kernel", &a.machine.kernel, &b.machine.kernel);
    differ("hyper", &a.machine.hyper, &b.machine.hyper);
    differ("--quick", &a.settings.quick.to_string(), &b.settings.quick.to_string());
    differ("--cpus", &a.settings.cpus.to_string(), &b.settings.cpus.to_string());
    differ("--memory", &a.settings.memory, &b.settings.memory);
    differ("the image", &a.settings.image_id, &b.settings.image_id);
    all
}

/// For a terminal.
#[must_use]
pub fn text(before: &Results, after: &Results) -> String {
    let all = changes(before, after);
    let mut rows = vec![["", "before", "after", "change", ""].map(str::to_owned).to_vec()];
    for change in &all {
        let percent = (change.after / change.before - 1.0) * 100.0;
        let percent = if percent.is_finite() { format!("{percent:+.0} %") } else { "-".into() };
        let verdict = match change.verdict {
            Verdict::Better => "better",
            Verdict::Worse => "WORSE",
            Verdict::Same => "within the spread",
        };
        rows.push(vec![
            format!("{}: {} [{}]", change.subject, change.title, change.unit),
            number(change.before),
            number(change.after),
            percent,
            verdict.to_owned(),
        ]);
    }
    let mut out = String::new();
    for caveat in caveats(before, after) {
        out.push_str(&format!("note: {caveat}\n"));
    }
    out.push_str(&aligned(&rows));
    let count = |verdict| all.iter().filter(|change| change.verdict == verdict).count();
    let (better, worse) = (count(Verdict::Better), count(Verdict::Worse));
    let same = count(Verdict::Same);
    out.push_str(&format!(
        "{} figures: {better} better, {worse} worse, {same} within the spread\n",
        all.len()
    ));
    out
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::summary::test::sample_results;

    #[test]
    fn only_what_lies_apart_is_a_change_and_its_sign_is_the_measures() {
        let before = sample_results();
        let mut after = before.clone();
        for sample in &mut after.samples {
            for (id, value) in &mut sample.values {
                *value *= if id == "start.wall" { 2.0 } else { 1.001 };
            }
        }
        after.study.machine.cpu = "another".into();
        let all = changes(&before, &after);
        let of = |id: &str, subject: &str| {
            all.iter().find(|c| c.measure == id && c.subject == subject).unwrap().verdict
        };
        assert_eq!(of("start.wall", "uml"), Verdict::Worse);
        assert_eq!(of("cpu-t1.rate", "uml"), Verdict::Same);
        let text = text(&before, &after);
        assert!(text.contains("+100 %") && text.contains("the CPU differs"), "{text}");
        assert!(changes(&before, &before).iter().all(|c| c.verdict == Verdict::Same));
    }
}
