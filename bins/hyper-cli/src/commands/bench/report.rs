//! `bench report` and `bench compare`: what follows from studies on disk. Needs no hyperd.

use std::path::Path;

use anyhow::Context;
use hyper_bench::results::Results;
use hyper_bench::{compare as comparison, page, store, table};

/// Writes `results.json`, `results.csv` and `report.html` into the study's directory and prints its table.
pub fn report(dir: &Path) -> anyhow::Result<i32> {
    let results = store::load(dir)?;
    write(dir, &results)?;
    print!("{}", table::text(&results));
    println!("{}", dir.join("report.html").display());
    Ok(0)
}

pub fn compare(before: &Path, after: &Path) -> anyhow::Result<i32> {
    let [before, after] = [before, after].map(store::load);
    print!("{}", comparison::text(&before?, &after?));
    Ok(0)
}

pub(super) fn write(dir: &Path, results: &Results) -> anyhow::Result<()> {
    store::write(&dir.join("results.json"), &store::pretty(results))?;
    store::write(&dir.join("results.csv"), &table::csv(results))?;
    store::write(&dir.join("report.html"), &page::html(results)).context("the page")
}
