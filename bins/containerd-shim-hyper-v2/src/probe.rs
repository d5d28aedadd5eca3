//! `probe`: looks at the host and prints what it found as JSON; `hyper doctor` shows it.
//!
//! Nothing remembered is used: what is printed was tried now.

use std::path::Path;

use anyhow::Context as _;
use hyper_hypervisor::{Finding, Probe, Wall};
use serde::Serialize;

use crate::config::Config;
use crate::hypervisors;

/// What `hyper doctor` reads.
#[derive(Debug, Serialize)]
struct Report {
    /// At least one hypervisor works.
    usable: bool,
    /// The hypervisor that `auto` takes.
    auto: Option<&'static str>,
    hypervisors: Vec<Entry>,
    /// Of others.
    runtimes: Vec<hyper_foreign::Report>,
    /// What all of them need.
    host: Vec<Finding>,
}

#[derive(Debug, Serialize)]
struct Entry {
    name: &'static str,
    wall: Wall,
    #[serde(flatten)]
    probe: Probe,
}

/// Prints the report.
pub fn probe() -> anyhow::Result<()> {
    let config = Config::load()?;
    let (hypervisors, flavours) = hypervisors::unremembered(&config);
    let runtime = crate::one_thread()?;
    let entries = runtime.block_on(async {
        let mut entries = Vec::new();
        for hypervisor in &hypervisors {
            let probe = hypervisor.probe().await;
            let wall = hypervisor.capabilities().wall;
            entries.push(Entry { name: hypervisor.name(), wall, probe });
        }
        entries
    });
    let runtimes = runtime.block_on(hyper_foreign::probe());
    let mut host = vec![mke2fs()];
    host.extend(flavours.values().map(|flavour| initramfs(&flavour.initramfs)));
    host.dedup();
    host.extend(network());
    let auto = entries.iter().find(|entry| entry.probe.usable).map(|entry| entry.name);
    let report = Report { usable: auto.is_some(), auto, hypervisors: entries, runtimes, host };
    println!("{}", serde_json::to_string_pretty(&report).context("encode the report")?);
    Ok(())
}

/// Prints the wall of each hypervisor and which `auto` takes. What was seen to work is remembered:
/// hyperd asks at every start.
pub fn walls() -> anyhow::Result<()> {
    let config = Config::load()?;
    let (hypervisors, _) = hypervisors::hypervisors(&config);
    let runtime = crate::one_thread()?;
    let mut auto = None;
    let mut walls = Vec::new();
    for hypervisor in &hypervisors {
        if auto.is_none() && runtime.block_on(hypervisor.probe()).usable {
            auto = Some(hypervisor.name());
        }
        let wall = hypervisor.capabilities().wall;
        walls.push(serde_json::json!({ "name": hypervisor.name(), "wall": wall }));
    }
    println!("{}", serde_json::json!({ "auto": auto, "hypervisors": walls }));
    Ok(())
}

/// A container's writable disk is made from a template that `mke2fs` makes once.
fn mke2fs() -> Finding {
    let places = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&places)
        .chain(["/sbin".into(), "/usr/sbin".into()])
        .map(|dir| dir.join("mke2fs"))
        .find(|path| path.is_file());
    Finding {
        what: "mke2fs".to_owned(),
        ok: found.is_some(),
        detail: found.map_or_else(
            || "not on the PATH: apt-get install e2fsprogs".to_owned(),
            |path| path.display().to_string(),
        ),
    }
}

/// What networks need, and who else has a say in what pods may send.
fn network() -> Vec<Finding> {
    let trouble = hyper_network::trouble();
    let mut all = vec![Finding {
        what: "networks".to_owned(),
        ok: trouble.is_none(),
        detail: match trouble {
            None => "taps and nft are there".to_owned(),
            Some(why) => format!("{why}; until then containers have --network none only"),
        },
    }];
    if !rustix::process::geteuid().is_root() {
        let missing = hyper_network::rootless::missing();
        all.push(Finding {
            what: "hyperd without root".to_owned(),
            ok: missing.is_empty(),
            detail: if missing.is_empty() {
                "namespaces of a user, with pasta as their way out".to_owned()
            } else {
                missing.join("; ")
            },
        });
    }
    // Without nft, or the right to ask it, there is nothing to tell.
    for chain in hyper_network::firewall::strangers().unwrap_or_default() {
        all.push(Finding {
            what: "firewall".to_owned(),
            ok: false,
            detail: format!(
                "nft's chain `{chain}` drops what it does not know, pods' packets too: nft insert \
                 rule {chain} iifname \"hy-*\" accept; nft insert rule {chain} oifname \"hy-*\" \
                 accept"
            ),
        });
    }
    all
}

fn initramfs(path: &Path) -> Finding {
    let ok = path.is_file();
    let shown = path.display();
    Finding {
        what: "initramfs".to_owned(),
        ok,
        detail: if ok { shown.to_string() } else { format!("`{shown}` is missing: make guest") },
    }
}
