//! Go templates, as Docker's `--format` has them.
//!
//! gtmpl prints lists and maps as Rust does. So what every action prints goes through a function
//! that writes them as Go does: `[a b]`, `map[key:value]`. A `range` over a map has no order.

use std::collections::BTreeMap;

use anyhow::{Context, anyhow};
use gtmpl::{FuncError, Template};
use serde_json::Value;

/// The function that every action ends in; nobody writes it.
const AS_GO: &str = "hyper_as_go";
/// Actions that begin with one of these print nothing by themselves.
const SILENT: [&str; 9] =
    ["if", "else", "end", "range", "with", "define", "template", "block", "break"];

/// A parsed Go template.
pub struct Format(Template);

impl Format {
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut template = Template::default();
        template.add_func(AS_GO, as_go);
        template.add_func("json", to_json);
        template.add_func("upper", |arguments| text_function(arguments, str::to_uppercase));
        template.add_func("lower", |arguments| text_function(arguments, str::to_lowercase));
        template.add_func("join", join);
        template.add_func("index", index);
        let text = text.replace("\\t", "\t").replace("\\n", "\n");
        template.parse(shown(&text)).map_err(|error| anyhow!("format `{text}`: {error}"))?;
        Ok(Self(template))
    }

    pub fn render(&self, value: &Value) -> anyhow::Result<String> {
        self.0
            .render(&gtmpl::Context::from(to_template(value)))
            .map_err(|error| anyhow!("format: {error}"))
            .context("evaluate the template")
    }
}

/// The template with [`AS_GO`] at the end of every action that prints.
fn shown(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("{{") {
        let (before, action) = rest.split_at(at);
        out.push_str(before);
        let Some(end) = action_end(action) else {
            rest = action;
            break;
        };
        let (action, after) = action.split_at(end);
        let inner = action.trim_start_matches("{{").trim_start_matches("- ").trim_start();
        let word = inner.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
        let silent = SILENT.contains(&word)
            || inner.starts_with("/*")
            || inner.starts_with("}}")
            || (inner.starts_with('$') && inner.contains(":="));
        if silent {
            out.push_str(action);
        } else {
            let close = if action.ends_with(" -}}") { " -}}" } else { "}}" };
            let body = action.strip_suffix(close).unwrap_or(action);
            out.push_str(&format!("{body} | {AS_GO}{close}"));
        }
        rest = after;
    }
    out + rest
}

/// Behind the `}}` of the action that `text` begins with; one in quotes does not count.
fn action_end(text: &str) -> Option<usize> {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some('"') if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            None if c == '"' || c == '`' => quote = Some(c),
            None if text[at..].starts_with("}}") => return Some(at + 2),
            Some(_) | None => {}
        }
    }
    None
}

fn as_go(arguments: &[gtmpl::Value]) -> Result<gtmpl::Value, FuncError> {
    let value = arguments.last().cloned().unwrap_or(gtmpl::Value::NoValue);
    Ok(match value {
        gtmpl::Value::Array(_) | gtmpl::Value::Object(_) | gtmpl::Value::Map(_) => {
            gtmpl::Value::from(go_text(&value))
        }
        gtmpl::Value::Nil => gtmpl::Value::from("<no value>"),
        plain => plain,
    })
}

/// As `fmt.Print` writes what `encoding/json` reads.
fn go_text(value: &gtmpl::Value) -> String {
    match value {
        gtmpl::Value::Array(items) => {
            let items: Vec<_> = items.iter().map(go_text).collect();
            format!("[{}]", items.join(" "))
        }
        gtmpl::Value::Object(fields) | gtmpl::Value::Map(fields) => {
            let sorted: BTreeMap<_, _> = fields.iter().collect();
            let fields: Vec<_> =
                sorted.iter().map(|(key, value)| format!("{key}:{}", go_text(value))).collect();
            format!("map[{}]", fields.join(" "))
        }
        gtmpl::Value::Nil | gtmpl::Value::NoValue => "<nil>".to_owned(),
        plain => plain.to_string(),
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

/// As Go's: what a map has not is nothing, not an error.
fn index(arguments: &[gtmpl::Value]) -> Result<gtmpl::Value, FuncError> {
    let Some((value, keys)) = arguments.split_first() else {
        return Err(FuncError::Generic("index needs a map or a list".into()));
    };
    keys.iter().try_fold(value.clone(), |value, key| match (value, key) {
        (gtmpl::Value::Object(fields) | gtmpl::Value::Map(fields), gtmpl::Value::String(name)) => {
            Ok(fields.get(name).cloned().unwrap_or(gtmpl::Value::Nil))
        }
        (gtmpl::Value::Array(items), gtmpl::Value::Number(number)) => {
            let at = number.as_u64().and_then(|at| usize::try_from(at).ok());
            let item = at.and_then(|at| items.get(at).cloned());
            item.ok_or_else(|| FuncError::Generic(format!("index out of range: {number:?}")))
        }
        (_, key) => Err(FuncError::Generic(format!("index: no place for {key}"))),
    })
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
    fn maps_and_lists_look_as_go_prints_them() {
        let value = json!({"Labels": {"b": "2", "a": "1"}, "Cmd": ["sh", "-c"], "No": null,
            "Ports": {"80/tcp": [{"HostPort": "8080"}]}, "N": 3, "Empty": {}, "One": {"k": "v"}});
        for (template, text) in [
            ("{{.Labels}}", "map[a:1 b:2]"),
            ("{{ .Cmd }} {{.N}}", "[sh -c] 3"),
            ("{{.Ports}}", "map[80/tcp:[map[HostPort:8080]]]"),
            ("{{.Empty}}{{.No}}", "map[]<no value>"),
            ("{{range .Cmd}}<{{.}}>{{end}}", "<sh><-c>"),
            ("{{if .N}}yes{{else}}no{{end}} {{join .Cmd \"}}\"}}", "yes sh}}-c"),
            ("{{range $key, $value := .One}}{{$key}}={{$value}};{{end}}", "k=v;"),
            ("{{with .Labels}}{{.a}}{{end}}{{/* nothing */}}", "1"),
            ("{{index .Labels \"b\"}}{{index .Cmd 1}}", "2-c"),
            ("{{with index .Labels \"none\"}}{{.}}{{end}}", ""),
            ("{{(index .Ports \"80/tcp\" 0).HostPort}}", "8080"),
        ] {
            let told = Format::parse(template).unwrap().render(&value);
            assert_eq!(told.unwrap(), text, "{template}");
        }
    }
}
