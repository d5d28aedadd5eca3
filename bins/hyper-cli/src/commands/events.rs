//! `events`: what happens in the engine, line by line.

use anyhow::Context;
use bytes::BytesMut;
use http_body_util::BodyExt;
use hyper::Method;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::container::filters;
use super::logs::moment;
use crate::arguments::EventsFlags;
use crate::client::{Body, Client};
use crate::output::Format;

pub async fn events(client: &Client, flags: EventsFlags) -> anyhow::Result<i32> {
    let format = match flags.format.as_deref() {
        None | Some("json") => None,
        Some(text) => Some(Format::parse(text)?),
    };
    let json = flags.format.as_deref() == Some("json");
    let mut path = String::from("/events?");
    for (key, value) in [("since", &flags.since), ("until", &flags.until)] {
        if let Some(value) = value {
            path.push_str(&format!("{key}={}&", moment(value)?));
        }
    }
    if let Some(filters) = filters(&flags.filter)? {
        path.push_str(&format!("filters={filters}"));
    }
    let mut body = client.send(Method::GET, &path, Body::None).await?.into_body();
    let mut buffer = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.context("read the events")?.into_data() else { continue };
        buffer.extend_from_slice(&data);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(end + 1);
            if line.trim_ascii().is_empty() {
                continue;
            }
            let event: Value =
                serde_json::from_slice(&line).context("an event that is not JSON")?;
            match &format {
                Some(format) => println!("{}", format.render(&event)?),
                None if json => println!("{event}"),
                None => println!("{}", sentence(&event)),
            }
        }
    }
    Ok(0)
}

/// `TIME TYPE ACTION ID (KEY=VALUE, …)`, Docker's line.
fn sentence(event: &Value) -> String {
    let nanos = i128::from(event["timeNano"].as_i64().unwrap_or_default());
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanos)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_default();
    let attributes: Vec<_> = event["Actor"]["Attributes"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    format!(
        "{time} {} {} {} ({})",
        word(&event["Type"]),
        word(&event["Action"]),
        word(&event["Actor"]["ID"]),
        attributes.join(", ")
    )
}
