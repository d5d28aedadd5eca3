//! Tables and Go templates, as Docker's `--format` has them.

mod template;

use std::collections::BTreeMap;

use serde_json::Value;

pub use template::Format;

/// One column: the header, and the name templates know it by.
pub type Column = (&'static str, &'static str);

/// Prints `rows` as `--format` says: a table of `columns` by default.
pub fn print_rows(
    format: Option<&str>,
    columns: &[Column],
    rows: &[BTreeMap<&'static str, String>],
) -> anyhow::Result<()> {
    match format.map(str::trim) {
        None | Some("table") => {
            let header = columns.iter().map(|(header, _)| (*header).to_owned()).collect();
            let lines = rows
                .iter()
                .map(|row| {
                    columns
                        .iter()
                        .map(|(_, key)| row.get(key).cloned().unwrap_or_default())
                        .collect()
                })
                .collect::<Vec<_>>();
            print_aligned(std::iter::once(header).chain(lines));
        }
        Some("json") => {
            for row in rows {
                println!("{}", serde_json::to_string(row)?);
            }
        }
        Some(template) => {
            let (table, template) = match template.strip_prefix("table ") {
                Some(rest) => (true, rest),
                None => (false, template),
            };
            let template = Format::parse(template)?;
            let mut lines = Vec::new();
            if table {
                let header: serde_json::Map<_, _> = columns
                    .iter()
                    .map(|(header, key)| ((*key).to_owned(), Value::from(*header)))
                    .collect();
                lines.push(template.render(&header.into())?);
            }
            for row in rows {
                lines.push(template.render(&serde_json::to_value(row)?)?);
            }
            if table {
                print_aligned(
                    lines.iter().map(|line| line.split('\t').map(str::to_owned).collect()),
                );
            } else {
                for line in lines {
                    println!("{line}");
                }
            }
        }
    }
    Ok(())
}

/// Lines of cells in columns.
pub fn print_aligned(lines: impl IntoIterator<Item = Vec<String>>) {
    let lines: Vec<Vec<String>> = lines.into_iter().collect();
    let mut widths = Vec::new();
    for line in &lines {
        for (index, cell) in line.iter().enumerate() {
            let width = cell.chars().count();
            match widths.get_mut(index) {
                Some(widest) => *widest = width.max(*widest),
                None => widths.push(width),
            }
        }
    }
    for line in &lines {
        let mut text = String::new();
        for (index, cell) in line.iter().enumerate() {
            text.push_str(cell);
            if index + 1 < line.len() {
                let padding = widths[index] - cell.chars().count() + 3;
                text.extend(std::iter::repeat_n(' ', padding));
            }
        }
        println!("{}", text.trim_end());
    }
}

/// `3 minutes ago` without the `ago`, as Docker says it.
pub fn age(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let count = |n: i64, unit: &str| format!("{n} {unit}{}", if n == 1 { "" } else { "s" });
    match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => count(seconds, "second"),
        60..120 => "About a minute".to_owned(),
        120..3600 => count(seconds / 60, "minute"),
        3600..7200 => "About an hour".to_owned(),
        7200..172_800 => count(seconds / 3600, "hour"),
        172_800..1_209_600 => count(seconds / 86_400, "day"),
        1_209_600..5_184_000 => count(seconds / 604_800, "week"),
        5_184_000..63_072_000 => count(seconds / 2_592_000, "month"),
        _ => count(seconds / 31_536_000, "year"),
    }
}

/// `1.23MB`, powers of 1000, as Docker's lists have it.
pub fn size(bytes: i64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = bytes.max(0) as f64;
    let mut unit = "B";
    for next in ["kB", "MB", "GB", "TB"] {
        if value < 1000.0 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    let text = if value >= 100.0 || unit == "B" {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    };
    format!("{text}{unit}")
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn sizes_and_ages_read_like_dockers() {
        assert_eq!(size(1_230_000), "1.23MB");
        assert_eq!(size(999), "999B");
        assert_eq!(age(90), "About a minute");
        assert_eq!(age(7200), "2 hours");
    }
}
