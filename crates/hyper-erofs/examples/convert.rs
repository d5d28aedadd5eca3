//! Converts layers to a directory of blobs, indexes and one metadata image, and says how long each step took.
//!
//! `convert OUTDIR LAYER…`, where each layer is an uncompressed tar file or a directory.
//! Result: `blobN`, `indexN`, `meta`, `disk` (all stitched, sparse copy made by `--stitch`), `devices` (order of blobs).

use anyhow::{Context, bail};
use hyper_erofs::{
    BlobRef, ImageOptions, LayerIndex, Limits, convert_directory, convert_layer, merge,
};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

fn main() -> anyhow::Result<()> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let stitch = take_flag(&mut arguments, "--stitch");
    let device_table = !take_flag(&mut arguments, "--no-device-table");
    let [out, layers @ ..] = &arguments[..] else {
        bail!("usage: convert [--stitch] OUTDIR LAYER…")
    };
    let out = PathBuf::from(out);
    fs::create_dir_all(&out)?;
    let mut indexes = Vec::new();
    let mut blobs = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let index =
            timed(&format!("convert {layer}"), || convert(Path::new(layer), &blob(&out, number)))?;
        fs::write(out.join(format!("index{number}")), index.encode())?;
        blobs.push(BlobRef { id: format!("blob{number}"), len: index.blob_len() });
        indexes.push(index);
    }
    let tree = timed("merge", || Ok(merge(&indexes)?))?;
    let layout = timed("write metadata", || {
        let meta = File::create(out.join("meta"))?;
        Ok(tree.write_metadata(meta, &blobs, &ImageOptions { device_table })?)
    })?;
    let mut devices = String::new();
    for placed in &layout.blobs {
        devices.push_str(&format!("blob{}\n", placed.layer));
    }
    fs::write(out.join("devices"), devices)?;
    println!("metadata {} bytes, disk {} bytes", layout.meta_len, layout.total_len());
    if stitch {
        let mut disk = File::create(out.join("disk"))?;
        io::copy(&mut File::open(out.join("meta"))?, &mut disk)?;
        for placed in &layout.blobs {
            io::copy(&mut File::open(blob(&out, placed.layer))?, &mut disk)?;
        }
    }
    Ok(())
}

fn take_flag(arguments: &mut Vec<String>, flag: &str) -> bool {
    let before = arguments.len();
    arguments.retain(|argument| argument != flag);
    arguments.len() != before
}

fn blob(out: &Path, number: usize) -> PathBuf {
    out.join(format!("blob{number}"))
}

fn convert(layer: &Path, blob: &Path) -> anyhow::Result<LayerIndex> {
    let blob = File::create(blob)?;
    let limits = Limits::default();
    if layer.is_dir() {
        return Ok(convert_directory(layer, blob, &limits)?);
    }
    let tar = File::open(layer).with_context(|| format!("cannot open {layer:?}"))?;
    Ok(convert_layer(tar, blob, &limits)?)
}

fn timed<T>(what: &str, step: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let start = Instant::now();
    let result = step()?;
    println!("{:8.1} ms  {what}", start.elapsed().as_secs_f64() * 1e3);
    Ok(result)
}
