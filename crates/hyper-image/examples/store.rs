//! A store from the command line: what the tests kill, and what measurements run.
//!
//! `store ROOT pull REF [PLATFORM] | load PATH | list | rootfs IMAGE | remove IMAGE | verify`

use std::time::Instant;

use anyhow::{Context as _, bail};
use hyper_image::{Credentials, Event, LayerState, Options, Platform, Progress, Reference, Store};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [root, verb, rest @ ..] = arguments.as_slice() else { bail!("usage: store ROOT VERB …") };
    let store = Store::open(*root, Options::default()).await?;
    let started = Instant::now();
    match (*verb, rest) {
        ("pull", [reference, rest @ ..]) => {
            let reference: Reference = reference.parse()?;
            let platform = match rest {
                [platform] => platform.parse()?,
                _ => Platform::host(),
            };
            let nobody = Credentials::Anonymous;
            let image = store.pull(&reference, &platform, &nobody, Progress::new(show)).await;
            println!("{}", image.map_err(|error| anyhow::anyhow!(error.chain()))?.id);
        }
        ("load", [path]) => {
            for loaded in store.load_path(*path, Progress::new(show)).await? {
                println!("{} {}", loaded.image.id, loaded.names.join(" "));
            }
        }
        ("list", []) => {
            for image in store.list() {
                println!(
                    "{} {:?} {:?} {}",
                    image.id.short(),
                    image.repo_tags,
                    image.repo_digests,
                    image.size
                );
            }
        }
        ("rootfs", [image]) => {
            let rootfs = store.rootfs(&store.resolve(image)?.id).await?;
            println!("{}", rootfs.path.display());
        }
        ("remove", [image]) => {
            for removed in store.remove(image, false, &[]).await? {
                println!("{removed:?}");
            }
        }
        ("verify", []) => {
            let report = store.verify().await?;
            println!("{report:?}");
            if !report.problems.is_empty() {
                bail!("{} problems", report.problems.len());
            }
        }
        _ => bail!("unknown verb {verb}"),
    }
    let peak = std::fs::read_to_string("/proc/self/status").context("reading the peak memory")?;
    let peak = peak.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default().to_owned();
    eprintln!("{:.3} s, {peak}", started.elapsed().as_secs_f64());
    Ok(())
}

fn show(event: Event) {
    match event {
        Event::Layer {
            state: LayerState::Downloading { .. } | LayerState::Extracting { .. },
            ..
        } => {}
        other => eprintln!("{other:?}"),
    }
}
