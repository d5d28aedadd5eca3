//! `start stop kill rm ps wait pause unpause`: containers that are there already.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use hyper::Method;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use super::run::Session;
use crate::arguments::{KillFlags, PsFlags, RmFlags, StartFlags, StopFlags};
use crate::client::{Body, Client, quote};
use crate::output;

pub async fn start(client: &Client, flags: StartFlags) -> anyhow::Result<i32> {
    if !(flags.attach || flags.interactive) {
        return post_each(client, flags.containers, "start").await;
    }
    let [name] = flags.containers.as_slice() else {
        bail!("only one container can be started with its streams attached");
    };
    let inspect = client.get(&format!("/containers/{}/json", quote(name))).await?;
    let tty = inspect["Config"]["Tty"] == true;
    let session = Session {
        id: inspect["Id"].as_str().context("the engine sent no container id")?,
        stdin: flags.interactive && inspect["Config"]["OpenStdin"] == true,
        tty,
        detach_keys: flags.detach_keys.as_deref(),
        sig_proxy: !tty,
    };
    let removed = inspect["HostConfig"]["AutoRemove"] == true;
    session.run(client, if removed { "removed" } else { "next-exit" }, true).await
}

pub async fn stop(client: &Client, flags: StopFlags) -> anyhow::Result<i32> {
    let mut query = String::from("stop?");
    if let Some(seconds) = flags.time {
        query.push_str(&format!("t={seconds}&"));
    }
    if let Some(signal) = &flags.signal {
        query.push_str(&format!("signal={}", quote(signal)));
    }
    post_each(client, flags.containers, &query).await
}

pub async fn kill(client: &Client, flags: KillFlags) -> anyhow::Result<i32> {
    post_each(client, flags.containers, &format!("kill?signal={}", quote(&flags.signal))).await
}

pub async fn remove(client: &Client, flags: RmFlags) -> anyhow::Result<i32> {
    let query = format!("?force={}&v={}", u8::from(flags.force), u8::from(flags.volumes));
    let mut code = 0;
    for name in flags.containers {
        let path = format!("/containers/{}{query}", quote(&name));
        code |= report(&name, client.json(Method::DELETE, &path, Body::None).await);
    }
    Ok(code)
}

pub async fn wait(client: &Client, containers: Vec<String>) -> anyhow::Result<i32> {
    let mut code = 0;
    for name in containers {
        match client.post(&format!("/containers/{}/wait", quote(&name)), Body::None).await {
            Ok(answer) => println!("{}", answer["StatusCode"]),
            Err(error) => {
                eprintln!("hyper: {error}");
                code = 1;
            }
        }
    }
    Ok(code)
}

/// `POST /containers/NAME/VERB` for each; prints the names that worked.
pub async fn post_each(client: &Client, names: Vec<String>, verb: &str) -> anyhow::Result<i32> {
    let mut code = 0;
    for name in names {
        let path = format!("/containers/{}/{verb}", quote(&name));
        code |= report(&name, client.post(&path, Body::None).await);
    }
    Ok(code)
}

pub fn report<T>(name: &str, outcome: Result<T, crate::client::ClientError>) -> i32 {
    match outcome {
        Ok(_) => {
            println!("{name}");
            0
        }
        Err(error) => {
            eprintln!("hyper: {:#}", anyhow::Error::from(error));
            1
        }
    }
}

/// `--filter KEY=VALUE` words as the API's JSON.
pub fn filters(words: &[String]) -> anyhow::Result<Option<String>> {
    if words.is_empty() {
        return Ok(None);
    }
    let mut filters: Map<String, Value> = Map::new();
    for word in words {
        let (key, value) = word
            .split_once('=')
            .with_context(|| format!("--filter `{word}` is not of the form KEY=VALUE"))?;
        filters
            .entry(key)
            .or_insert_with(|| json!({}))
            .as_object_mut()
            .context("filters")?
            .insert(value.to_owned(), json!(true));
    }
    Ok(Some(quote(&Value::from(filters).to_string())))
}

pub async fn list(client: &Client, flags: PsFlags) -> anyhow::Result<i32> {
    let mut path = format!("/containers/json?all={}", u8::from(flags.all));
    if let Some(limit) = flags.last.or(flags.latest.then_some(1)) {
        path.push_str(&format!("&limit={limit}"));
    }
    if let Some(filters) = filters(&flags.filter)? {
        path.push_str(&format!("&filters={filters}"));
    }
    let answer = client.get(&path).await?;
    let rows: Vec<_> =
        answer.as_array().into_iter().flatten().map(|item| row(item, flags.no_trunc)).collect();
    if flags.quiet {
        for row in &rows {
            println!("{}", row["ID"]);
        }
        return Ok(0);
    }
    let columns = [
        ("CONTAINER ID", "ID"),
        ("IMAGE", "Image"),
        ("COMMAND", "Command"),
        ("CREATED", "RunningFor"),
        ("STATUS", "Status"),
        ("PORTS", "Ports"),
        ("NAMES", "Names"),
        ("WALL", "Wall"),
    ];
    output::print_rows(flags.format.as_deref(), &columns, &rows)?;
    Ok(0)
}

fn row(item: &Value, whole: bool) -> BTreeMap<&'static str, String> {
    let text = |key: &str| item[key].as_str().unwrap_or_default().to_owned();
    let created = item["Created"].as_i64().unwrap_or_default();
    let id = text("Id");
    let command = text("Command");
    let short = |text: &str, length: usize| {
        if whole || text.chars().count() <= length {
            text.to_owned()
        } else {
            text.chars().take(length - 1).chain(std::iter::once('…')).collect()
        }
    };
    let names: Vec<_> = item["Names"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(|name| name.trim_start_matches('/'))
        .collect();
    let labels: Vec<_> = item["Labels"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    let now = OffsetDateTime::now_utc().unix_timestamp();
    BTreeMap::from([
        ("ID", if whole { id } else { id.chars().take(12).collect() }),
        ("Image", text("Image")),
        ("Command", format!("\"{}\"", short(&command, 20))),
        (
            "CreatedAt",
            OffsetDateTime::from_unix_timestamp(created)
                .map_or_else(|_| String::new(), |at| at.to_string()),
        ),
        ("RunningFor", format!("{} ago", output::age(now - created))),
        ("Status", text("Status")),
        ("State", text("State")),
        ("Ports", super::network::column(&item["Ports"])),
        ("Names", names.join(",")),
        ("Labels", labels.join(",")),
        ("Runtime", item["Hyper"]["Runtime"].as_str().unwrap_or_default().to_owned()),
        ("Wall", item["Hyper"]["Wall"].as_str().unwrap_or("-").to_owned()),
    ])
}
