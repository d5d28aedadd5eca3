//! `images rmi`, and below: archives, names, the store.

mod archive;
mod store;

pub use archive::{import, load, save};
pub use store::{history, prune, referrers, tag, verify};

use std::collections::BTreeMap;

use hyper::Method;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::container::filters;
use crate::arguments::{ImagesFlags, RmiFlags};
use crate::client::{Body, Client, quote};
use crate::output;

pub async fn list(client: &Client, flags: ImagesFlags) -> anyhow::Result<i32> {
    let mut words = flags.filter.clone();
    if let Some(repository) = &flags.repository {
        words.push(format!("reference={repository}"));
    }
    let mut path = format!("/images/json?all={}", u8::from(flags.all));
    if let Some(filters) = filters(&words)? {
        path.push_str(&format!("&filters={filters}"));
    }
    let answer = client.get(&path).await?;
    let mut rows = Vec::new();
    for item in answer.as_array().into_iter().flatten() {
        rows.extend(rows_of(item, &flags));
    }
    if flags.quiet {
        let mut seen = std::collections::HashSet::new();
        for row in &rows {
            if seen.insert(row["ID"].clone()) {
                println!("{}", row["ID"]);
            }
        }
        return Ok(0);
    }
    let mut columns = vec![("REPOSITORY", "Repository"), ("TAG", "Tag")];
    if flags.digests {
        columns.push(("DIGEST", "Digest"));
    }
    columns.extend([("IMAGE ID", "ID"), ("CREATED", "CreatedSince"), ("SIZE", "Size")]);
    output::print_rows(flags.format.as_deref(), &columns, &rows)?;
    Ok(0)
}

/// One row for each tag; `<none>` for an image without.
fn rows_of(item: &Value, flags: &ImagesFlags) -> Vec<BTreeMap<&'static str, String>> {
    let strings = |key: &str| -> Vec<String> {
        item[key]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect()
    };
    let digest = strings("RepoDigests")
        .first()
        .and_then(|digest| digest.split_once('@').map(|(_, digest)| digest.to_owned()))
        .unwrap_or_else(|| "<none>".to_owned());
    let mut tags = strings("RepoTags");
    if tags.is_empty() {
        tags.push("<none>:<none>".to_owned());
    }
    let id = item["Id"].as_str().unwrap_or_default();
    let bare = id.strip_prefix("sha256:").unwrap_or(id);
    let created = item["Created"].as_i64().unwrap_or_default();
    let now = OffsetDateTime::now_utc().unix_timestamp();
    tags.iter()
        .map(|name| {
            let (repository, tag) = name.rsplit_once(':').unwrap_or((name, "<none>"));
            BTreeMap::from([
                ("Repository", repository.to_owned()),
                ("Tag", tag.to_owned()),
                ("Digest", digest.clone()),
                (
                    "ID",
                    if flags.no_trunc { id.to_owned() } else { bare.chars().take(12).collect() },
                ),
                ("CreatedSince", format!("{} ago", output::age(now - created))),
                ("Size", output::size(item["Size"].as_i64().unwrap_or_default())),
            ])
        })
        .collect()
}

pub async fn remove(client: &Client, flags: RmiFlags) -> anyhow::Result<i32> {
    let query = format!("?force={}&noprune={}", u8::from(flags.force), u8::from(flags.no_prune));
    let mut code = 0;
    for name in &flags.images {
        let path = format!("/images/{}{query}", quote(name).replace("%2F", "/"));
        match client.json(Method::DELETE, &path, Body::None).await {
            Ok(answer) => {
                for item in answer.as_array().unwrap_or(&vec![json!({})]) {
                    for key in ["Untagged", "Deleted"] {
                        if let Some(text) = item[key].as_str() {
                            println!("{key}: {text}");
                        }
                    }
                }
            }
            Err(error) => {
                eprintln!("hyper: {:#}", anyhow::Error::from(error));
                code = 1;
            }
        }
    }
    Ok(code)
}
