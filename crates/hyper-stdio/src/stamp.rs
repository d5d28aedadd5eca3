//! Time stamps as Docker writes them: RFC 3339 with nanoseconds, UTC.

use std::time::{SystemTime, UNIX_EPOCH};

use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

const SECOND: i64 = 1_000_000_000;

/// Nanoseconds since the Unix epoch; 0 for a clock before it.
pub fn now_ns() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |age| i64::try_from(age.as_nanos()).unwrap_or(i64::MAX))
}

/// Go's `time.RFC3339Nano`: trailing zeros of the fraction are cut.
pub fn rfc3339_nano(unix_ns: i64) -> String {
    let mut text = seconds(unix_ns.div_euclid(SECOND));
    push_fraction(&mut text, unix_ns.rem_euclid(SECOND));
    text
}

/// Nine digits always: what `docker logs --timestamps` prints.
pub fn rfc3339_fixed(unix_ns: i64) -> String {
    format!("{}.{:09}Z", seconds(unix_ns.div_euclid(SECOND)), unix_ns.rem_euclid(SECOND))
}

/// Nanoseconds since the Unix epoch of an RFC 3339 stamp.
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    let moment = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    i64::try_from(moment.unix_timestamp_nanos()).ok()
}

/// Formats many stamps; remembers the last second's text, which is most of the work.
#[derive(Debug, Default)]
pub(crate) struct Stamper {
    second: Option<(i64, String)>,
}

impl Stamper {
    /// Appends [`rfc3339_nano`] of `unix_ns`.
    pub(crate) fn push(&mut self, out: &mut Vec<u8>, unix_ns: i64) {
        let second = unix_ns.div_euclid(SECOND);
        let text = match &mut self.second {
            Some((at, text)) if *at == second => text,
            slot => &mut slot.insert((second, seconds(second))).1,
        };
        out.extend_from_slice(text.as_bytes());
        let mut fraction = String::with_capacity(11);
        push_fraction(&mut fraction, unix_ns.rem_euclid(SECOND));
        out.extend_from_slice(fraction.as_bytes());
    }
}

/// `2026-11-21T22:04:05`, without zone.
fn seconds(unix: i64) -> String {
    let moment = OffsetDateTime::from_unix_timestamp(unix)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
        .to_offset(UtcOffset::UTC);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
        moment.year(),
        u8::from(moment.month()),
        moment.day(),
        moment.hour(),
        moment.minute(),
        moment.second()
    )
}

fn push_fraction(text: &mut String, nanoseconds: i64) {
    if nanoseconds != 0 {
        text.push_str(format!(".{nanoseconds:09}").trim_end_matches('0'));
    }
    text.push('Z');
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn stamps_are_gos() {
        let at = 1_700_000_000 * SECOND;
        assert_eq!(rfc3339_nano(at), "2023-11-14T22:13:20Z");
        assert_eq!(rfc3339_nano(at + 120_000_000), "2023-11-14T22:13:20.12Z");
        assert_eq!(rfc3339_fixed(at + 1), "2023-11-14T22:13:20.000000001Z");
        let mut out = Vec::new();
        let mut stamper = Stamper::default();
        stamper.push(&mut out, at + 500_000_000);
        stamper.push(&mut out, at + SECOND);
        assert_eq!(out, b"2023-11-14T22:13:20.5Z2023-11-14T22:13:21Z");
        assert_eq!(parse_rfc3339("2023-11-14T23:13:20.12+01:00"), Some(at + 120_000_000));
    }
}
