//! `volume`: make, list, look at, remove, prune.

use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use std::collections::BTreeMap;

use super::container::{filters, report};
use crate::arguments::{
    VolumeCommand, VolumeCreateFlags, VolumeListFlags, VolumePruneFlags, loose_pairs,
};
use crate::client::{Body, Client, ClientError, quote};
use crate::output::{self, Format};
use crate::terminal;

pub async fn run(client: &Client, command: VolumeCommand) -> anyhow::Result<i32> {
    match command {
        VolumeCommand::Create(flags) => create(client, flags).await,
        VolumeCommand::Inspect { format, volumes } => inspect(client, format, volumes).await,
        VolumeCommand::Ls(flags) => list(client, flags).await,
        VolumeCommand::Prune(flags) => prune(client, flags).await,
        VolumeCommand::Rm { force, volumes } => remove(client, force, volumes).await,
    }
}

async fn create(client: &Client, flags: VolumeCreateFlags) -> anyhow::Result<i32> {
    let body = json!({
        "Name": flags.name.unwrap_or_default(),
        "Driver": flags.driver,
        "DriverOpts": loose_pairs(&flags.opt),
        "Labels": loose_pairs(&flags.label),
    });
    let made = client.json(Method::POST, "/volumes/create", Body::Json(body)).await?;
    println!("{}", made["Name"].as_str().unwrap_or_default());
    Ok(0)
}

async fn inspect(
    client: &Client,
    format: Option<String>,
    volumes: Vec<String>,
) -> anyhow::Result<i32> {
    let format = format.as_deref().map(Format::parse).transpose()?;
    let (mut found, mut code) = (Vec::new(), 0);
    for name in &volumes {
        match client.get(&format!("/volumes/{}", quote(name))).await {
            Ok(value) => found.push(value),
            Err(ClientError::Refused { status: StatusCode::NOT_FOUND, .. }) => {
                eprintln!("hyper: no such volume: {name}");
                code = 1;
            }
            Err(error) => return Err(error.into()),
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

async fn list(client: &Client, flags: VolumeListFlags) -> anyhow::Result<i32> {
    let mut path = "/volumes".to_owned();
    if let Some(filters) = filters(&flags.filter)? {
        path.push_str(&format!("?filters={filters}"));
    }
    let answer = client.get(&path).await?;
    let text = |item: &Value, key: &str| item[key].as_str().unwrap_or_default().to_owned();
    let rows: Vec<BTreeMap<&'static str, String>> = answer["Volumes"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|item| {
            let labels = item["Labels"].as_object().into_iter().flatten();
            let labels = labels.map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()));
            BTreeMap::from([
                ("Driver", text(item, "Driver")),
                ("Name", text(item, "Name")),
                ("Mountpoint", text(item, "Mountpoint")),
                ("Scope", text(item, "Scope")),
                ("Labels", labels.collect::<Vec<_>>().join(",")),
            ])
        })
        .collect();
    if flags.quiet {
        for row in &rows {
            println!("{}", row["Name"]);
        }
        return Ok(0);
    }
    let columns = [("DRIVER", "Driver"), ("VOLUME NAME", "Name")];
    output::print_rows(flags.format.as_deref(), &columns, &rows)?;
    Ok(0)
}

async fn remove(client: &Client, force: bool, volumes: Vec<String>) -> anyhow::Result<i32> {
    let mut code = 0;
    for name in volumes {
        let path = format!("/volumes/{}?force={}", quote(&name), u8::from(force));
        code |= report(&name, client.json(Method::DELETE, &path, Body::None).await);
    }
    Ok(code)
}

async fn prune(client: &Client, flags: VolumePruneFlags) -> anyhow::Result<i32> {
    if !flags.force {
        let what = if flags.all { "all" } else { "anonymous" };
        if !terminal::confirms(&format!("{what} local volumes not used by at least one container"))?
        {
            println!("Total reclaimed space: 0B");
            return Ok(0);
        }
    }
    let mut words = flags.filter.clone();
    if flags.all {
        words.push("all=true".to_owned());
    }
    let query = filters(&words)?.map(|filters| format!("?filters={filters}")).unwrap_or_default();
    let answer = client.post(&format!("/volumes/prune{query}"), Body::None).await?;
    let deleted: Vec<&str> = answer["VolumesDeleted"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if !deleted.is_empty() {
        println!("Deleted Volumes:\n{}\n", deleted.join("\n"));
    }
    let bytes = answer["SpaceReclaimed"].as_i64().unwrap_or_default();
    println!("Total reclaimed space: {}", output::size(bytes));
    Ok(0)
}
