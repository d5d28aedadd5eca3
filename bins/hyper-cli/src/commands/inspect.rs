//! `inspect`: everything the engine says about containers and images.

use anyhow::bail;
use hyper::StatusCode;
use serde_json::Value;

use crate::arguments::InspectFlags;
use crate::client::{Client, ClientError, quote};
use crate::output::Format;

pub async fn inspect(client: &Client, flags: InspectFlags) -> anyhow::Result<i32> {
    let kinds: &[&str] = match flags.kind.as_deref() {
        None => &["containers", "images"],
        Some("container") => &["containers"],
        Some("image") => &["images"],
        Some(other) => bail!("--type `{other}` is not one of container, image"),
    };
    let format = flags.format.as_deref().map(Format::parse).transpose()?;
    let mut found = Vec::new();
    let mut code = 0;
    for name in &flags.names {
        match look_up(client, kinds, name).await? {
            Some(value) => found.push(value),
            None => {
                eprintln!("hyper: no such container or image: {name}");
                code = 1;
            }
        }
    }
    match format {
        None => println!("{}", serde_json::to_string_pretty(&found)?),
        Some(format) => {
            for value in &found {
                println!("{}", format.render(value)?);
            }
        }
    }
    Ok(code)
}

async fn look_up(client: &Client, kinds: &[&str], name: &str) -> anyhow::Result<Option<Value>> {
    for kind in kinds {
        match client.get(&format!("/{kind}/{}/json", quote(name).replace("%2F", "/"))).await {
            Ok(value) => return Ok(Some(value)),
            Err(ClientError::Refused { status: StatusCode::NOT_FOUND, .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}
