//! `check`: what ARCHITECTURE.md says about the tree, held against the tree.
//!
//! - Dependency edges between our crates are exactly those of the block ```` ```edges ````:
//!   an edge that is not written there fails, and so does a written edge that is gone.
//! - `A !> x y` lines in that block forbid foreign crates, direct or through others of ours.
//! - Source files open with `//!` and have at most [`MAX_LINES`] lines.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use cargo_metadata::{DependencyKind, MetadataCommand, Package};

/// Longest source file in lines, tests included.
const MAX_LINES: usize = 800;

/// Runs all checks; an error lists everything that is wrong.
pub fn check(root: &Path) -> anyhow::Result<()> {
    let mut wrong = edges(root)?;
    wrong.extend(sources(root)?);
    if wrong.is_empty() {
        return Ok(());
    }
    for line in &wrong {
        eprintln!("check: {line}");
    }
    bail!("{} things differ from ARCHITECTURE.md and CONTRIBUTING.md", wrong.len())
}

/// Edges and bans as written in ARCHITECTURE.md.
#[derive(Debug, Default, PartialEq, Eq)]
struct Written {
    edges: BTreeMap<String, BTreeSet<String>>,
    bans: BTreeMap<String, BTreeSet<String>>,
}

impl Written {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let block = text
            .split_once("```edges\n")
            .and_then(|(_, rest)| rest.split_once("```"))
            .map(|(block, _)| block)
            .context("ARCHITECTURE.md has no ```edges block")?;
        let mut written = Self::default();
        for line in block.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
            if let Some((from, to)) = line.split_once("!>") {
                written.bans.insert(from.trim().to_owned(), words(to));
            } else if let Some((from, to)) = line.split_once("->") {
                written.edges.insert(from.trim().to_owned(), words(to));
            } else {
                bail!("ARCHITECTURE.md: edge line `{line}` has neither `->` nor `!>`");
            }
        }
        Ok(written)
    }
}

fn edges(root: &Path) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(root.join("ARCHITECTURE.md")).context("ARCHITECTURE.md")?;
    let written = Written::parse(&text)?;
    let metadata = MetadataCommand::new()
        .current_dir(root)
        .no_deps()
        .other_options(["--locked".to_owned()])
        .exec()
        .context("cargo metadata")?;
    let ours: BTreeMap<&str, &Package> =
        metadata.packages.iter().map(|package| (package.name.as_str(), package)).collect();
    let direct = |name: &str| -> BTreeSet<String> {
        ours.get(name)
            .into_iter()
            .flat_map(|package| &package.dependencies)
            .filter(|dependency| dependency.kind != DependencyKind::Development)
            .map(|dependency| dependency.name.clone())
            .collect()
    };
    let mut wrong = Vec::new();
    for name in ours.keys() {
        let real: BTreeSet<String> =
            direct(name).into_iter().filter(|to| ours.contains_key(to.as_str())).collect();
        let Some(wanted) = written.edges.get(*name) else {
            wrong.push(format!("crate `{name}` has no line in the edges block"));
            continue;
        };
        for to in real.difference(wanted) {
            wrong.push(format!("`{name}` depends on `{to}`, which ARCHITECTURE.md does not allow"));
        }
        for to in wanted.difference(&real) {
            wrong.push(format!("ARCHITECTURE.md has an edge `{name}` -> `{to}` that is gone"));
        }
    }
    for name in written.edges.keys().filter(|name| !ours.contains_key(name.as_str())) {
        wrong.push(format!("ARCHITECTURE.md names a crate `{name}` that is gone"));
    }
    for (name, banned) in &written.bans {
        let mut seen = BTreeSet::new();
        let mut queue = vec![name.clone()];
        while let Some(next) = queue.pop() {
            for to in direct(&next) {
                if banned.contains(&to) {
                    wrong
                        .push(format!("`{name}` must not know `{to}`, but `{next}` depends on it"));
                }
                if ours.contains_key(to.as_str()) && seen.insert(to.clone()) {
                    queue.push(to);
                }
            }
        }
    }
    Ok(wrong)
}

fn sources(root: &Path) -> anyhow::Result<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "*.rs"])
        .current_dir(root)
        .output()
        .context("git ls-files")?;
    let mut wrong = Vec::new();
    for name in String::from_utf8(output.stdout).context("file names")?.lines() {
        let Ok(text) = std::fs::read_to_string(root.join(name)) else { continue };
        let lines = text.lines().count();
        if lines > MAX_LINES {
            wrong.push(format!("{name} has {lines} lines: split it by what it is about"));
        }
        if !text.starts_with("//!") {
            wrong.push(format!("{name} does not open with a `//!` line that says what it is for"));
        }
    }
    Ok(wrong)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn edges_block_is_read() {
        let written = Written::parse("x\n```edges\na -> b c\nb ->\na !> z\n```\n").unwrap();
        assert_eq!(written.edges["a"].len(), 2);
        assert!(written.edges["b"].is_empty());
        assert!(written.bans["a"].contains("z"));
        assert!(Written::parse("nothing").is_err());
        assert!(Written::parse("```edges\na b\n```").is_err());
    }
}
