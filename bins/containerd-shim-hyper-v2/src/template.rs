//! `template`: makes the template of the shape on standard input. Started by a supervisor that found
//! none, and not waited for: what goes wrong is logged and tried again by the next one.

use std::io::Read as _;
use std::path::PathBuf;

use anyhow::Context as _;
use hyper_pod::{Shape, make_template};

use crate::config::Config;
use crate::hypervisors::hypervisors;

/// Longest shape in bytes.
const MAX_SHAPE: u64 = 1 << 20;
const NICE: i32 = 10;

/// Where templates are.
pub fn directory(config: &Config) -> PathBuf {
    config.state_dir.join("guest-templates")
}

pub fn make() -> anyhow::Result<()> {
    let config = Config::load()?;
    let directory = directory(&config);
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("make `{}`", directory.display()))?;
    crate::log::start(&directory, &config.log, false)?;
    // The pod that found no template is booting now, and goes first.
    if let Err(error) = rustix::process::nice(NICE) {
        tracing::warn!("{error}: a template is made as fast as it can be");
    }
    let runtime = crate::one_thread()?;
    let made = read().and_then(|shape| runtime.block_on(make_one(&config, &shape)));
    if let Err(error) = &made {
        tracing::warn!("no template: {error:#}");
    }
    made
}

fn read() -> anyhow::Result<Shape> {
    let mut text = String::new();
    std::io::stdin().take(MAX_SHAPE).read_to_string(&mut text).context("read the shape")?;
    serde_json::from_str(&text).context("the shape on standard input")
}

async fn make_one(config: &Config, shape: &Shape) -> anyhow::Result<()> {
    let (hypervisors, _) = hypervisors(config);
    let known = hypervisors.iter().find(|one| one.name() == shape.hypervisor);
    let hypervisor = known.with_context(|| format!("unknown hypervisor `{}`", shape.hypervisor))?;
    Ok(make_template(&directory(config), &**hypervisor, shape).await?)
}
