//! `builder prune`: the steps of builds that no image needs.

use serde_json::Value;

use crate::arguments::BuilderPruneFlags;
use crate::client::{Body, Client};
use crate::commands::container::filters;
use crate::output;
use crate::terminal;

pub async fn prune(client: &Client, flags: BuilderPruneFlags) -> anyhow::Result<i32> {
    if !flags.force && !terminal::confirms("all steps of builds that no image needs")? {
        println!("Total reclaimed space: 0B");
        return Ok(0);
    }
    let filters = filters(&flags.filter)?.unwrap_or_default();
    let all = u8::from(flags.all);
    let path = format!("/build/prune?all={all}&filters={filters}");
    let answer = client.post(&path, Body::None).await?;
    let deleted = answer["CachesDeleted"].as_array().into_iter().flatten();
    let deleted: Vec<&str> = deleted.filter_map(Value::as_str).collect();
    if !deleted.is_empty() {
        println!("Deleted build cache objects:\n{}\n", deleted.join("\n"));
    }
    let space = answer["SpaceReclaimed"].as_i64().unwrap_or_default();
    println!("Total reclaimed space: {}", output::size(space));
    Ok(0)
}
