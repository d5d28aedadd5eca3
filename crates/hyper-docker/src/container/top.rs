//! `docker top`: processes as `ps` of the host would list them.
//!
//! Docker runs the host's `ps`; here the guest's agent tells, so the columns are made here: those of
//! `-ef`, `aux` and `-o NAME,…`. Other arguments are refused by name. Process ids are the guest's.

use axum::Json;
use axum::extract::{Path, State};
use axum::response::IntoResponse as _;
use hyper_engine::ProcessInfo;
use serde_json::json;

use crate::app::App;
use crate::error::{ApiError, ApiResult};
use crate::request::Query;

/// What one column shows.
type Show = fn(&ProcessInfo, &Moment) -> String;

/// When the list is made, and what of.
struct Moment {
    now_ns: i64,
    memory_bytes: u64,
}

/// Columns by the names that `ps -o` takes: name, title, content.
const COLUMNS: [(&str, &str, Show); 27] = [
    ("user", "USER", |p, _| user(p)),
    ("uid", "UID", |p, _| p.uid.to_string()),
    ("pid", "PID", |p, _| p.pid.to_string()),
    ("ppid", "PPID", |p, _| p.parent.to_string()),
    ("c", "C", |p, m| format!("{}", cpu_tenths(p, m) / 10)),
    ("stime", "STIME", |p, m| started(p, m)),
    ("start", "START", |p, m| started(p, m)),
    ("tty", "TTY", |p, _| terminal(p)),
    ("tt", "TT", |p, _| terminal(p)),
    ("time", "TIME", |p, _| clock(p.cpu_ms / 1000)),
    ("cputime", "TIME", |p, _| clock(p.cpu_ms / 1000)),
    ("etime", "ELAPSED", |p, m| elapsed(p, m)),
    ("etimes", "ELAPSED", |p, m| seconds(p, m).to_string()),
    ("cmd", "CMD", |p, _| p.command.clone()),
    ("args", "COMMAND", |p, _| p.command.clone()),
    ("command", "COMMAND", |p, _| p.command.clone()),
    ("comm", "COMMAND", |p, _| p.name.clone()),
    ("stat", "STAT", |p, _| p.state.clone()),
    ("s", "S", |p, _| p.state.clone()),
    ("state", "S", |p, _| p.state.clone()),
    ("vsz", "VSZ", |p, _| (p.memory_bytes / 1024).to_string()),
    ("rss", "RSS", |p, _| (p.resident_bytes / 1024).to_string()),
    ("%cpu", "%CPU", |p, m| tenths(cpu_tenths(p, m))),
    ("pcpu", "%CPU", |p, m| tenths(cpu_tenths(p, m))),
    ("%mem", "%MEM", |p, m| tenths(memory_tenths(p, m))),
    ("nlwp", "NLWP", |p, _| p.threads.to_string()),
    ("ni", "NI", |p, _| p.nice.to_string()),
];

pub(crate) async fn top(State(app): State<App>, Path(id): Path<String>, query: Query) -> ApiResult {
    let columns = columns(query.text("ps_args").unwrap_or("-ef"))?;
    let processes = app.engine.processes(&id).await?;
    let view = app.engine.container(&id)?;
    app.engine.note(&view, "top");
    // Memory of the guest; only for a percentage.
    let memory_bytes = match columns.iter().any(|(title, _)| title == "%MEM") {
        true => app.engine.pod_report(&id).await.map_or(0, |pod| pod.guest_memory_total_bytes),
        false => 0,
    };
    let moment = Moment { now_ns: hyper_stdio::now_ns(), memory_bytes };
    let titles: Vec<&str> = columns.iter().map(|(title, _)| title.as_str()).collect();
    let rows: Vec<Vec<String>> = processes
        .iter()
        .map(|process| columns.iter().map(|(_, show)| show(process, &moment)).collect())
        .collect();
    Ok(Json(json!({ "Titles": titles, "Processes": rows })).into_response())
}

/// The columns that arguments of `ps` ask for, with their titles.
fn columns(arguments: &str) -> ApiResult<Vec<(String, Show)>> {
    let refused = |what: &str| {
        ApiError::unsupported(format!(
            "ps argument `{what}` is not supported: -ef, aux and -o COLUMN,… are"
        ))
    };
    let (mut full, mut users, mut chosen) = (false, false, Vec::new());
    let mut words = arguments.split_whitespace();
    while let Some(word) = words.next() {
        let list = match word {
            "-o" | "o" | "-eo" | "-eo=" | "--format" | "axo" | "-axo" => {
                words.next().ok_or_else(|| {
                    ApiError::invalid(format!("ps argument `{word}` has no list of columns"))
                })?
            }
            _ => match word.strip_prefix("-o").or_else(|| word.strip_prefix("--format=")) {
                Some(list) => list,
                None => {
                    // Which processes: always all of the container.
                    let letters = word.strip_prefix('-').unwrap_or(word);
                    for letter in letters.chars() {
                        match letter {
                            'e' | 'A' | 'a' | 'x' | 'w' => {}
                            'f' => full = true,
                            'u' if !word.starts_with('-') || word == "-aux" => users = true,
                            _ => return Err(refused(word)),
                        }
                    }
                    continue;
                }
            },
        };
        for item in list.split(',') {
            let (name, title) = item.split_once('=').map_or((item, None), |(n, t)| (n, Some(t)));
            let column = COLUMNS.iter().find(|(known, ..)| *known == name.to_ascii_lowercase());
            let (_, usual, show) = column.ok_or_else(|| refused(item))?;
            chosen.push((title.unwrap_or(usual).to_owned(), *show));
        }
    }
    if !chosen.is_empty() {
        return Ok(chosen);
    }
    let names: &[(&str, &str)] = match (full, users) {
        (_, true) => &[
            ("user", ""),
            ("pid", ""),
            ("%cpu", ""),
            ("%mem", ""),
            ("vsz", ""),
            ("rss", ""),
            ("tty", ""),
            ("stat", ""),
            ("start", ""),
            ("time", ""),
            ("args", ""),
        ],
        (true, false) => &[
            ("user", "UID"),
            ("pid", ""),
            ("ppid", ""),
            ("c", ""),
            ("stime", ""),
            ("tty", ""),
            ("time", ""),
            ("cmd", ""),
        ],
        (false, false) => &[("pid", ""), ("tty", ""), ("time", ""), ("comm", "CMD")],
    };
    let known = names.iter().filter_map(|(name, title)| {
        let (_, usual, show) = COLUMNS.iter().find(|(known, ..)| known == name)?;
        Some(((if title.is_empty() { usual } else { title }).to_string(), *show))
    });
    Ok(known.collect())
}

/// The name that every image has for it, or the number.
fn user(process: &ProcessInfo) -> String {
    if process.uid == 0 { "root".to_owned() } else { process.uid.to_string() }
}

fn seconds(process: &ProcessInfo, moment: &Moment) -> u64 {
    let ns = moment.now_ns.saturating_sub(process.started_unix_ns);
    u64::try_from(ns / 1_000_000_000).unwrap_or(0)
}

/// Tenths of a percent of one CPU since the start.
fn cpu_tenths(process: &ProcessInfo, moment: &Moment) -> u64 {
    process.cpu_ms / seconds(process, moment).max(1)
}

fn memory_tenths(process: &ProcessInfo, moment: &Moment) -> u64 {
    process.resident_bytes.saturating_mul(1000).checked_div(moment.memory_bytes).unwrap_or(0)
}

fn tenths(number: u64) -> String {
    format!("{}.{}", number / 10, number % 10)
}

/// `HH:MM` today, the day before that.
fn started(process: &ProcessInfo, moment: &Moment) -> String {
    let text = hyper_stdio::rfc3339_nano(process.started_unix_ns);
    let day = |text: &str| text.get(..10).map(str::to_owned);
    if day(&text) == day(&hyper_stdio::rfc3339_nano(moment.now_ns)) {
        return text.get(11..16).unwrap_or("?").to_owned();
    }
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = text.get(5..7).and_then(|month| month.parse::<usize>().ok());
    let month = month.and_then(|month| MONTHS.get(month.checked_sub(1)?)).unwrap_or(&"?");
    format!("{month}{}", text.get(8..10).unwrap_or("?"))
}

/// The guest's terminals are those of its containers.
fn terminal(process: &ProcessInfo) -> String {
    // tty(4), pts(4): minor in the low byte and above bit 20.
    let (major, minor) =
        (process.terminal >> 8 & 0xfff, process.terminal & 0xff | process.terminal >> 12 & 0xfff00);
    match (process.terminal, major) {
        (0, _) => "?".to_owned(),
        (_, 136..=143) => format!("pts/{}", (major - 136) * 256 + minor),
        (_, 4) => format!("tty{minor}"),
        _ => format!("{major},{minor}"),
    }
}

/// `[DAYS-]HH:MM:SS`
fn clock(seconds: u64) -> String {
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let rest = format!("{hours:02}:{:02}:{:02}", seconds / 60 % 60, seconds % 60);
    if days > 0 { format!("{days}-{rest}") } else { rest }
}

/// `[[DAYS-]HH:]MM:SS`
fn elapsed(process: &ProcessInfo, moment: &Moment) -> String {
    let seconds = seconds(process, moment);
    let text = clock(seconds);
    if seconds < 3600 { text[3..].to_owned() } else { text }
}

#[cfg(test)]
mod test {
    use super::*;

    fn titles(arguments: &str) -> Vec<String> {
        columns(arguments).unwrap().into_iter().map(|(title, _)| title).collect()
    }

    #[test]
    fn titles_are_those_of_ps() {
        let full = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"];
        assert_eq!(titles("-ef"), full);
        assert_eq!(titles("-e -f"), full);
        assert_eq!(titles("aux").len(), 11);
        assert_eq!(titles("-o pid,comm,%mem=M"), ["PID", "COMMAND", "M"]);
        assert_eq!(titles("-eo pid"), ["PID"]);
        for bad in ["-L", "--forest", "-o nope", "-o"] {
            let error = columns(bad).err().map(|error| error.message).unwrap_or_default();
            assert!(error.contains(bad.rsplit(' ').next().unwrap()), "{bad}: {error}");
        }
    }

    #[test]
    fn columns_of_a_process() {
        let process = ProcessInfo {
            pid: 7,
            terminal: 136 << 8 | 3,
            started_unix_ns: 1_000_000_000_000_000_000,
            cpu_ms: 90_061_000,
            ..ProcessInfo::default()
        };
        let moment =
            Moment { now_ns: process.started_unix_ns + 3_599_000_000_000, memory_bytes: 0 };
        assert_eq!(terminal(&process), "pts/3");
        assert_eq!(clock(process.cpu_ms / 1000), "1-01:01:01");
        assert_eq!(elapsed(&process, &moment), "59:59");
        assert_eq!(started(&process, &moment), "01:46");
        assert_eq!(user(&process), "root");
        let later = Moment { now_ns: moment.now_ns + 86_400_000_000_000 * 3, memory_bytes: 0 };
        assert_eq!(started(&process, &later), "Sep09");
    }
}
