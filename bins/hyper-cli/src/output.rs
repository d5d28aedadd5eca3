//! Tables and Go templates, as Docker's `--format` has them.

use std::collections::BTreeMap;

use anyhow::{Context, anyhow};
use gtmpl::{FuncError, Template};
use serde_json::Value;

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

/// A parsed Go template.
pub struct Format(Template);

impl Format {
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut template = Template::default();
        template.add_func("json", to_json);
        template.add_func("upper", |arguments| text_function(arguments, str::to_uppercase));
        template.add_func("lower", |arguments| text_function(arguments, str::to_lowercase));
        template.add_func("join", join);
        let text = text.replace("\\t", "\t").replace("\\n", "\n");
        template.parse(&text).map_err(|error| anyhow!("format `{text}`: {error}"))?;
        Ok(Self(template))
    }

    pub fn render(&self, value: &Value) -> anyhow::Result<String> {
        self.0
            .render(&gtmpl::Context::from(to_template(value)))
            .map_err(|error| anyhow!("format: {error}"))
            .context("evaluate the template")
    }
}

fn to_template(value: &Value) -> gtmpl::Value {
    match value {
        Value::Null => gtmpl::Value::Nil,
        Value::Bool(flag) => gtmpl::Value::Bool(*flag),
        Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(number), _, _) => gtmpl::Value::from(number),
            (_, Some(number), _) => gtmpl::Value::from(number),
            (_, _, number) => gtmpl::Value::from(number.unwrap_or_default()),
        },
        Value::String(text) => gtmpl::Value::from(text.clone()),
        Value::Array(items) => gtmpl::Value::Array(items.iter().map(to_template).collect()),
        Value::Object(fields) => gtmpl::Value::Object(
            fields.iter().map(|(key, value)| (key.clone(), to_template(value))).collect(),
        ),
    }
}

fn from_template(value: &gtmpl::Value) -> Value {
    match value {
        gtmpl::Value::Bool(flag) => Value::Bool(*flag),
        gtmpl::Value::String(text) => Value::String(text.clone()),
        gtmpl::Value::Array(items) => items.iter().map(from_template).collect(),
        gtmpl::Value::Object(fields) | gtmpl::Value::Map(fields) => {
            let sorted: BTreeMap<_, _> =
                fields.iter().map(|(key, value)| (key.clone(), from_template(value))).collect();
            sorted.into_iter().collect::<serde_json::Map<_, _>>().into()
        }
        gtmpl::Value::Number(number) => number
            .as_i64()
            .map(Value::from)
            .or_else(|| number.as_u64().map(Value::from))
            .or_else(|| number.as_f64().map(Value::from))
            .unwrap_or(Value::Null),
        _ => Value::Null,
    }
}

fn to_json(arguments: &[gtmpl::Value]) -> Result<gtmpl::Value, FuncError> {
    let value = arguments.first().map_or(Value::Null, from_template);
    Ok(gtmpl::Value::from(value.to_string()))
}

fn text_function(
    arguments: &[gtmpl::Value],
    change: impl Fn(&str) -> String,
) -> Result<gtmpl::Value, FuncError> {
    match arguments.first() {
        Some(gtmpl::Value::String(text)) => Ok(gtmpl::Value::from(change(text))),
        _ => Err(FuncError::Generic("the argument is not text".into())),
    }
}

fn join(arguments: &[gtmpl::Value]) -> Result<gtmpl::Value, FuncError> {
    match arguments {
        [gtmpl::Value::Array(items), gtmpl::Value::String(separator)] => {
            let words: Vec<String> = items.iter().map(ToString::to_string).collect();
            Ok(gtmpl::Value::from(words.join(separator)))
        }
        _ => Err(FuncError::Generic("join needs a list and a separator".into())),
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
    use serde_json::json;

    #[test]
    fn templates_reach_nested_fields() {
        let format =
            Format::parse("{{.State.ExitCode}} {{json .Labels}}\\t{{upper .Name}}").unwrap();
        let value = json!({"State": {"ExitCode": 17}, "Labels": {"a": "b"}, "Name": "x"});
        assert_eq!(format.render(&value).unwrap(), "17 {\"a\":\"b\"}\tX");
    }

    #[test]
    fn bad_template_is_named() {
        let Err(error) = Format::parse("{{.ID") else { panic!("accepted") };
        assert!(error.to_string().contains("{{.ID"));
    }

    #[test]
    fn sizes_and_ages_read_like_dockers() {
        assert_eq!(size(1_230_000), "1.23MB");
        assert_eq!(size(999), "999B");
        assert_eq!(age(90), "About a minute");
        assert_eq!(age(7200), "2 hours");
    }
}
