//! `tag history image prune image verify image referrers`: names, steps, and what the store holds.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::super::container::filters;
use crate::arguments::{HistoryFlags, ImagePruneFlags, TagFlags};
use crate::client::{Body, Client, quote};
use crate::output;
use crate::terminal;

/// Longest command shown in a table.
const COMMAND: usize = 45;

pub async fn tag(client: &Client, flags: TagFlags) -> anyhow::Result<i32> {
    let target = &flags.target;
    let (name, tag) = match target.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (target.as_str(), ""),
    };
    let source = quote(&flags.source).replace("%2F", "/");
    let path = format!("/images/{source}/tag?repo={}&tag={}", quote(name), quote(tag));
    client.post(&path, Body::None).await?;
    Ok(0)
}

pub async fn history(client: &Client, flags: HistoryFlags) -> anyhow::Result<i32> {
    let path = format!("/images/{}/history", quote(&flags.image).replace("%2F", "/"));
    let answer = client.get(&path).await?;
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let text = |item: &Value, key: &str| item[key].as_str().unwrap_or_default().to_owned();
    let mut rows = Vec::new();
    for item in answer.as_array().into_iter().flatten() {
        let (id, created) = (text(item, "Id"), item["Created"].as_i64().unwrap_or_default());
        let bare = id.strip_prefix("sha256:").unwrap_or(&id);
        let since = if created <= 0 {
            "N/A".to_owned()
        } else if flags.human {
            format!("{} ago", output::age(now - created))
        } else {
            rfc3339(created)
        };
        let mut command = text(item, "CreatedBy").replace('\t', " ");
        if !flags.no_trunc && command.chars().count() > COMMAND {
            command = command.chars().take(COMMAND - 1).chain(['…']).collect();
        }
        let size = item["Size"].as_i64().unwrap_or_default();
        rows.push(BTreeMap::from([
            ("ID", if flags.no_trunc { id.clone() } else { bare.chars().take(12).collect() }),
            ("CreatedSince", since),
            ("CreatedAt", rfc3339(created)),
            ("CreatedBy", command),
            ("Size", if flags.human { output::size(size) } else { size.to_string() }),
            ("Comment", text(item, "Comment")),
        ]));
    }
    if flags.quiet {
        rows.iter().for_each(|row| println!("{}", row["ID"]));
        return Ok(0);
    }
    let columns = [
        ("IMAGE", "ID"),
        ("CREATED", "CreatedSince"),
        ("CREATED BY", "CreatedBy"),
        ("SIZE", "Size"),
        ("COMMENT", "Comment"),
    ];
    output::print_rows(flags.format.as_deref(), &columns, &rows)?;
    Ok(0)
}

fn rfc3339(seconds: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(seconds).ok();
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default()
}

pub async fn prune(client: &Client, flags: ImagePruneFlags) -> anyhow::Result<i32> {
    if !flags.force {
        let what = if flags.all {
            "all images without at least one container associated to them"
        } else {
            "all dangling images"
        };
        if !terminal::confirms(what)? {
            println!("Total reclaimed space: 0B");
            return Ok(0);
        }
    }
    let mut words = flags.filter.clone();
    words.push(format!("dangling={}", !flags.all));
    let filters = filters(&words)?.unwrap_or_default();
    let answer = client.post(&format!("/images/prune?filters={filters}"), Body::None).await?;
    let deleted: Vec<&Value> = answer["ImagesDeleted"].as_array().into_iter().flatten().collect();
    if !deleted.is_empty() {
        println!("Deleted Images:");
        for item in deleted {
            for (key, word) in [("Untagged", "untagged"), ("Deleted", "deleted")] {
                if let Some(text) = item[key].as_str() {
                    println!("{word}: {text}");
                }
            }
        }
        println!();
    }
    let space = answer["SpaceReclaimed"].as_i64().unwrap_or_default();
    println!("Total reclaimed space: {}", output::size(space));
    Ok(0)
}

pub async fn verify(client: &Client, as_json: bool) -> anyhow::Result<i32> {
    let report = client.post("/hyper/v1/images/verify", Body::None).await?;
    let problems = report["Problems"].as_array().cloned().unwrap_or_default();
    if as_json {
        println!("{report}");
    } else {
        for problem in &problems {
            println!("problem: {}", problem.as_str().unwrap_or_default());
        }
        let count = |key: &str| report.get(key).cloned().unwrap_or(json!(0));
        println!(
            "{} blobs, {} converted layers and {} assembled roots are sound; {} problems",
            count("Blobs"),
            count("Layers"),
            count("Roots"),
            problems.len()
        );
    }
    Ok(i32::from(!problems.is_empty()))
}

pub async fn referrers(
    client: &Client,
    image: &str,
    no_trunc: bool,
    format: Option<&str>,
) -> anyhow::Result<i32> {
    let found = client.get(&format!("/hyper/v1/images/referrers?image={}", quote(image))).await?;
    let mut rows = Vec::new();
    for item in found.as_array().into_iter().flatten() {
        let text = |key: &str| item[key].as_str().unwrap_or_default().to_owned();
        let short = |digest: String| match no_trunc {
            true => digest,
            false => digest.trim_start_matches("sha256:").chars().take(12).collect(),
        };
        rows.push(BTreeMap::from([
            ("Digest", short(text("Digest"))),
            ("ArtifactType", text("ArtifactType")),
            ("Subject", short(text("Subject"))),
            ("Size", output::size(item["Size"].as_i64().unwrap_or_default())),
            ("Annotations", item["Annotations"].to_string()),
        ]));
    }
    let columns =
        [("DIGEST", "Digest"), ("TYPE", "ArtifactType"), ("SUBJECT", "Subject"), ("SIZE", "Size")];
    output::print_rows(format, &columns, &rows)?;
    Ok(0)
}
