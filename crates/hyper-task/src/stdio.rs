//! Where a process's stdio goes: the strings in Task `Create` and `Exec` requests.
//!
//! containerd gives FIFO paths. hyperd gives [`HUB`] URIs: the supervisor itself keeps the log and
//! lets clients attach through the pod socket, so output outlives hyperd.
//!
//! ```text
//! stdin:  hub:                          clients may attach stdin
//! stdout: hub:                          clients may attach, nothing is logged (execs)
//! stdout: hub:?driver=json-file&path=/…/ID-json.log&max-size=10485760&max-file=3
//! ```
//! stderr follows stdout: the same URI, or empty with a terminal.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// Scheme of hub URIs.
pub const HUB: &str = "hub:";
/// Before the name of a journal's field.
const FIELD: &str = "field.";

/// Where one stream goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sink {
    /// Nowhere (stdin: end-of-file at once).
    Null,
    /// A FIFO (or file) that the caller made.
    Path(PathBuf),
    /// The supervisor's hub, with a log when one is wanted.
    Hub(Option<LogConfig>),
}

/// A container's log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogConfig {
    /// `json-file`, `local`, `journald`; others are refused by the supervisor by name.
    pub driver: String,
    /// The file that is read; also with `journald`.
    pub path: PathBuf,
    /// Bytes at which the file is rotated; `None`: never.
    pub max_size: Option<u64>,
    /// Files kept, the current one included; at least 1.
    pub max_file: u32,
    /// Where else every line goes.
    pub journal: Option<JournalConfig>,
}

/// A journal that a log is written to, too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JournalConfig {
    /// journald's socket of the native protocol.
    pub socket: PathBuf,
    /// What every entry says beside its text.
    pub fields: BTreeMap<String, String>,
}

/// A URI that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("stdio `{uri}`: {why}")]
pub struct BadUri {
    pub uri: String,
    pub why: &'static str,
}

impl Sink {
    /// Parses a Task API stdio string.
    pub fn parse(uri: &str) -> Result<Self, BadUri> {
        let bad = |why| BadUri { uri: uri.to_owned(), why };
        if uri.is_empty() {
            return Ok(Self::Null);
        }
        let Some(rest) = uri.strip_prefix(HUB) else {
            let path = uri.strip_prefix("fifo://").or(uri.strip_prefix("file://")).unwrap_or(uri);
            return if path.starts_with('/') {
                Ok(Self::Path(path.into()))
            } else {
                Err(bad("neither an absolute path nor a known scheme"))
            };
        };
        let Some(query) = rest.strip_prefix('?') else {
            return if rest.is_empty() { Ok(Self::Hub(None)) } else { Err(bad("unknown form")) };
        };
        let mut keys = BTreeMap::new();
        for pair in query.split('&') {
            let (key, value) = pair.split_once('=').ok_or_else(|| bad("a key has no value"))?;
            keys.insert(key, decode(value).ok_or_else(|| bad("bad percent escape"))?);
        }
        let number = |key: &str| match keys.get(key) {
            None => Ok(None),
            Some(value) => value.parse::<u64>().map(Some).map_err(|_| bad("not a number")),
        };
        Ok(Self::Hub(Some(LogConfig {
            driver: keys.get("driver").cloned().ok_or_else(|| bad("`driver` is missing"))?,
            path: keys.get("path").ok_or_else(|| bad("`path` is missing"))?.into(),
            max_size: number("max-size")?,
            max_file: match number("max-file")? {
                None => 1,
                Some(files) => {
                    u32::try_from(files).ok().filter(|f| *f > 0).ok_or_else(|| bad("max-file"))?
                }
            },
            journal: keys.get("journal").map(|socket| JournalConfig {
                socket: socket.into(),
                fields: keys
                    .iter()
                    .filter_map(|(key, value)| {
                        Some((key.strip_prefix(FIELD)?.to_owned(), value.clone()))
                    })
                    .collect(),
            }),
        })))
    }

    /// The Task API stdio string.
    pub fn to_uri(&self) -> String {
        match self {
            Self::Null => String::new(),
            Self::Path(path) => path.display().to_string(),
            Self::Hub(None) => HUB.to_owned(),
            Self::Hub(Some(log)) => {
                let mut uri = format!(
                    "{HUB}?driver={}&path={}&max-file={}",
                    encode(&log.driver),
                    encode(&log.path.display().to_string()),
                    log.max_file
                );
                if let Some(size) = log.max_size {
                    uri.push_str(&format!("&max-size={size}"));
                }
                if let Some(journal) = &log.journal {
                    let socket = encode(&journal.socket.display().to_string());
                    uri.push_str(&format!("&journal={socket}"));
                    for (name, value) in &journal.fields {
                        uri.push_str(&format!("&{FIELD}{name}={}", encode(value)));
                    }
                }
                uri
            }
        }
    }
}

fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02x}")),
        }
    }
    out
}

fn decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let high = char::from(bytes.next()?).to_digit(16)?;
            let low = char::from(bytes.next()?).to_digit(16)?;
            out.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn uris_round_trip() {
        let log = LogConfig {
            driver: "json-file".into(),
            path: "/var/lib/a b&c/é.log".into(),
            max_size: Some(10),
            max_file: 3,
            journal: Some(JournalConfig {
                socket: "/run/systemd/journal/socket".into(),
                fields: [("IMAGE_NAME".to_owned(), "a=b & ü".to_owned())].into(),
            }),
        };
        for sink in
            [Sink::Null, Sink::Hub(None), Sink::Hub(Some(log)), Sink::Path("/run/fifo".into())]
        {
            assert_eq!(Sink::parse(&sink.to_uri()), Ok(sink));
        }
    }

    #[test]
    fn unknown_scheme_is_refused_by_name() {
        let error = Sink::parse("binary:///usr/bin/logger").unwrap_err();
        assert!(error.to_string().contains("binary:///usr/bin/logger"));
    }
}
