//! Results as text: a table for a terminal, and CSV.

use std::collections::BTreeSet;

use crate::plan::Axis;
use crate::results::{Results, State};
use crate::summary::Cell;

/// The whole study for a terminal: a table per axis, ratios in brackets, then what failed and what is missing.
#[must_use]
pub fn text(results: &Results) -> String {
    let mut out = String::new();
    let study = &results.study;
    let reference = results.reference();
    for axis in Axis::ALL {
        let mut rows = Vec::new();
        for measure in results.measures(axis) {
            let mut row = vec![format!("{} [{}]", measure.title, measure.unit)];
            let cells = study.subjects.iter().map(|s| results.cell(&measure.id, &s.name));
            row.extend(cells.map(|cell| cell.map_or_else(|| "-".into(), |c| shown(c, reference))));
            rows.push(row);
        }
        if rows.is_empty() {
            continue;
        }
        let mut head = vec![axis.title().to_owned()];
        head.extend(study.subjects.iter().map(|subject| subject.name.clone()));
        rows.insert(0, head);
        out.push_str(&aligned(&rows));
        out.push('\n');
    }
    if let Some(reference) = reference {
        out.push_str(&format!("Medians; in brackets × the median of {reference}.\n"));
    }
    for Failure { subject, error, steps, count } in failures(results) {
        let steps = steps.into_iter().collect::<Vec<_>>().join(", ");
        out.push_str(&format!("failed: {subject}: {steps} ({count} runs): {error}\n"));
    }
    for missing in &study.missing {
        out.push_str(&format!("missing: {}: {}\n", missing.name, missing.why));
    }
    if let State::Partial { why } = &study.state {
        out.push_str(&format!("PARTIAL: {why}\n"));
    }
    out
}

/// A line per cell.
#[must_use]
pub fn csv(results: &Results) -> String {
    let mut out = String::from(
        "axis,measure,title,unit,better,subject,n,failed,median,low,high,min,max,p95,p99,to_runc,to_host,errors\n",
    );
    for cell in &results.summary {
        let Some(measure) = results.study.measures.iter().find(|m| m.id == cell.measure) else {
            continue;
        };
        let number = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
        let better = match measure.better {
            crate::plan::Better::Lower => "lower",
            crate::plan::Better::Higher => "higher",
        };
        let mut fields = vec![
            measure.axis.name().to_owned(),
            measure.id.clone(),
            measure.title.clone(),
            measure.unit.clone(),
            better.to_owned(),
            cell.subject.clone(),
            cell.n.to_string(),
            cell.failed.to_string(),
        ];
        fields.extend(
            [cell.median, cell.low, cell.high, cell.min, cell.max, cell.p95, cell.p99].map(number),
        );
        fields.extend([cell.to_runc, cell.to_host].map(number));
        fields.push(cell.errors.join("; "));
        let fields: Vec<_> = fields.iter().map(|field| quoted(field)).collect();
        out.push_str(&fields.join(","));
        out.push('\n');
    }
    out
}

/// A reason for which runs of a subject failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub subject: String,
    /// As the first one was told; others may differ in numbers.
    pub error: String,
    /// What it was that failed: the first parts of the measures' names.
    pub steps: BTreeSet<String>,
    /// Runs.
    pub count: usize,
}

/// What failed in measured runs, each reason once.
#[must_use]
pub fn failures(results: &Results) -> Vec<Failure> {
    let mut all: Vec<Failure> = Vec::new();
    for sample in results.samples.iter().filter(|sample| sample.round > 0) {
        let mut told = BTreeSet::new();
        for (measure, error) in &sample.errors {
            let step = measure.split('.').next().unwrap_or(measure).to_owned();
            let form = form(error);
            let of = |one: &&mut Failure| {
                one.subject == sample.subject && self::form(&one.error) == form
            };
            match all.iter_mut().find(of) {
                Some(one) => {
                    one.steps.insert(step);
                    one.count += usize::from(told.insert(form));
                }
                None => {
                    told.insert(form);
                    all.push(Failure {
                        subject: sample.subject.clone(),
                        error: error.clone(),
                        steps: BTreeSet::from([step]),
                        count: 1,
                    });
                }
            }
        }
    }
    all
}

/// A text without its numbers and identities, which differ from run to run.
fn form(text: &str) -> String {
    let words = text.split(|c: char| !c.is_alphanumeric());
    let words =
        words.filter(|word| !word.is_empty() && !word.contains(|c: char| c.is_ascii_digit()));
    words.collect::<Vec<_>>().join(" ")
}

/// A figure with as many digits as say something.
#[must_use]
pub fn number(value: f64) -> String {
    let size = value.abs();
    match () {
        () if size >= 100.0 || size == 0.0 => format!("{value:.0}"),
        () if size >= 10.0 => format!("{value:.1}"),
        () if size >= 0.1 => format!("{value:.2}"),
        () => format!("{value:.4}"),
    }
}

fn shown(cell: &Cell, reference: Option<&str>) -> String {
    let Some(median) = cell.median else { return "failed".into() };
    let ratio = match reference {
        Some("runc") => cell.to_runc,
        _ => cell.to_host,
    };
    match ratio.filter(|_| reference != Some(cell.subject.as_str())) {
        Some(ratio) => format!("{} ({})", number(median), number(ratio)),
        None => number(median),
    }
}

/// Columns padded; the first to the left, the others to the right.
pub(crate) fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
            if column == 0 { format!("{cell}{pad}") } else { format!("{pad}{cell}") }
        });
        out.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        out.push('\n');
    }
    out
}

/// RFC 4180; what a spreadsheet would take for a formula is not one.
fn quoted(field: &str) -> String {
    let formula = field.starts_with(['=', '+', '@'])
        || (field.starts_with('-') && field.parse::<f64>().is_err());
    let field = if formula { format!("'{field}") } else { field.to_owned() };
    match field.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field,
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::summary::test::sample_results;

    #[test]
    fn the_table_has_medians_ratios_failures_and_what_is_missing() {
        let text = text(&sample_results());
        assert!(text.contains("202 (1.98)"), "{text}");
        assert!(text.contains("failed: broken: cpu-t1 (3 runs): exit code 1"), "{text}");
        assert!(text.contains("missing: kata: not <installed>"), "{text}");
        assert!(text.contains("PARTIAL: interrupted"), "{text}");
    }

    #[test]
    fn a_reason_is_told_once_whatever_its_numbers() {
        let mut all = sample_results();
        for (place, sample) in all.samples.iter_mut().enumerate() {
            sample.errors.insert("net-in.rate".into(), format!("container a{place}f: no route"));
        }
        let failures = failures(&all);
        let uml: Vec<_> = failures.iter().filter(|one| one.subject == "uml").collect();
        assert_eq!((uml.len(), uml[0].count), (1, 3), "{failures:?}");
    }

    #[test]
    fn csv_keeps_its_columns_whatever_a_tool_says() {
        let csv = csv(&sample_results());
        assert!(csv.contains("startup,start.wall,\"run --rm IMAGE true, without a network\",ms,lower,uml,3,0,202,"), "{csv}");
        assert_eq!(quoted("=cmd()|x"), "'=cmd()|x");
        assert_eq!(quoted("-1.5"), "-1.5");
        assert_eq!(quoted("a \"b\", c"), "\"a \"\"b\"\", c\"");
    }

    #[test]
    fn digits() {
        let all = [1234.5, 12.345, 1.2345, 0.01234, 0.0].map(number);
        assert_eq!(all, ["1234", "12.3", "1.23", "0.0123", "0"]);
    }
}
