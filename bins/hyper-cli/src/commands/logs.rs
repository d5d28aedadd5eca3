//! `logs`: a container's output so far, and from now on.

use anyhow::Context;
use bytes::BytesMut;
use http_body_util::BodyExt;
use hyper::Method;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::arguments::LogsFlags;
use crate::client::{Body, Client, quote};
use crate::streams::{Wanted, take_frames};

pub async fn logs(client: &Client, flags: LogsFlags) -> anyhow::Result<i32> {
    let name = quote(&flags.container);
    let inspect = client.get(&format!("/containers/{name}/json")).await?;
    let mut path = format!(
        "/containers/{name}/logs?stdout=1&stderr=1&follow={}&timestamps={}&tail={}",
        u8::from(flags.follow),
        u8::from(flags.timestamps),
        quote(&flags.tail)
    );
    for (key, value) in [("since", &flags.since), ("until", &flags.until)] {
        if let Some(value) = value {
            path.push_str(&format!("&{key}={}", moment(value)?));
        }
    }
    let mut body = client.send(Method::GET, &path, Body::None).await?.into_body();
    let framed = inspect["Config"]["Tty"] != true;
    let wanted = Wanted { stdin: false, stdout: true, stderr: true };
    let mut buffer = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.context("read the log")?.into_data() else { continue };
        if framed {
            buffer.extend_from_slice(&data);
            take_frames(&mut buffer, wanted)?;
        } else {
            use std::io::Write;
            std::io::stdout().write_all(&data).context("write to standard output")?;
        }
    }
    Ok(0)
}

/// A time as the API wants it: seconds since the epoch with a fraction.
pub fn moment(text: &str) -> anyhow::Result<String> {
    if let Ok(at) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(format!("{}.{:09}", at.unix_timestamp(), at.nanosecond()));
    }
    if text.parse::<f64>().is_ok() {
        return Ok(text.to_owned());
    }
    let age = span(text).with_context(|| {
        format!("`{text}` is not an RFC 3339 time, Unix seconds or an age like 1h30m")
    })?;
    let at = OffsetDateTime::now_utc() - age;
    Ok(format!("{}.{:09}", at.unix_timestamp(), at.nanosecond()))
}

/// Go's duration form: `1h30m`, `45s`, `250ms`.
fn span(text: &str) -> Option<time::Duration> {
    let mut total = time::Duration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let (seconds, length) = if rest.starts_with("ms") {
            (0.001, 2)
        } else {
            match rest.as_bytes()[0] {
                b'h' => (3600.0, 1),
                b'm' => (60.0, 1),
                b's' => (1.0, 1),
                _ => return None,
            }
        };
        total += time::Duration::checked_seconds_f64(number * seconds)?;
        rest = &rest[length..];
    }
    Some(total)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn spans_are_gos() {
        assert_eq!(span("1h30m"), Some(time::Duration::minutes(90)));
        assert_eq!(span("250ms"), Some(time::Duration::milliseconds(250)));
        assert_eq!(span("12"), None);
        assert_eq!(span("x"), None);
        assert!(moment("2026-01-02T03:04:05Z").unwrap().starts_with("1767323045."));
    }
}
