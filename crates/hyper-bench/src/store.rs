//! A study's directory: `study.json`, `samples.jsonl`, and what `report` makes of them.
//!
//! Invariants
//! - A sample is on disk, whole, before the next run begins; a line cut short by a crash is dropped and measured again.
//! - `study.json` changes by rename.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use crate::results::{FORMAT, Results, Sample, Study};
use crate::summary;

const HEAD: &str = "study.json";
const SAMPLES: &str = "samples.jsonl";
/// Longest line of a sample, and the most of them.
const MAX_LINE: u64 = 1 << 20;
const MAX_SAMPLES: usize = 1_000_000;

/// Why a directory is no study.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("no study in `{}`: `hyper bench run --out` makes one", .0.display())]
    Absent(PathBuf),
    #[error("`{}`", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("`{}` is not understood", path.display())]
    Form {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("`{}` is of format {found}, this program knows {FORMAT}", path.display())]
    Format { path: PathBuf, found: u32 },
    #[error("`{}` line {line} is not understood", path.display())]
    Line {
        path: PathBuf,
        line: usize,
        #[source]
        source: serde_json::Error,
    },
    #[error("`{}` has a line of more than {MAX_LINE} bytes, or more than {MAX_SAMPLES} lines", .0.display())]
    TooLong(PathBuf),
}

/// A study's directory that is written to.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    samples: File,
}

impl Store {
    /// Begins a study in a directory, which is made if need be.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn create(dir: &Path, study: &Study) -> Result<Self, StoreError> {
        std::fs::create_dir_all(dir).map_err(io(dir))?;
        let path = dir.join(SAMPLES);
        let samples = OpenOptions::new().create(true).write(true).truncate(true).open(&path);
        let mut store = Self { dir: dir.to_owned(), samples: samples.map_err(io(&path))? };
        store.head(study)?;
        Ok(store)
    }

    /// Goes on with a study: what it has, and where to put more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn resume(dir: &Path) -> Result<(Self, Study, Vec<Sample>), StoreError> {
        let study = study(dir)?;
        let path = dir.join(SAMPLES);
        let (samples, whole) = samples(dir)?;
        let file = OpenOptions::new().append(true).open(&path).map_err(io(&path))?;
        file.set_len(whole).map_err(io(&path))?;
        Ok((Self { dir: dir.to_owned(), samples: file }, study, samples))
    }

    /// Keeps a sample.
    ///
    /// # Errors
    /// [`StoreError::Io`], as on a full disk.
    pub fn append(&mut self, sample: &Sample) -> Result<(), StoreError> {
        let path = self.dir.join(SAMPLES);
        let mut line = serde_json::to_vec(sample)
            .map_err(|source| StoreError::Form { path: path.clone(), source })?;
        line.push(b'\n');
        self.samples.write_all(&line).map_err(io(&path))
    }

    /// Replaces the study's head.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn head(&mut self, study: &Study) -> Result<(), StoreError> {
        write(&self.dir.join(HEAD), &pretty(study))
    }
}

/// Whether a study was begun in a directory.
#[must_use]
pub fn exists(dir: &Path) -> bool {
    dir.join(HEAD).exists()
}

/// A whole study.
///
/// # Errors
/// [`StoreError`].
pub fn load(dir: &Path) -> Result<Results, StoreError> {
    Ok(summary::results(study(dir)?, samples(dir)?.0))
}

/// Replaces a file by rename.
///
/// # Errors
/// [`StoreError::Io`].
pub fn write(path: &Path, text: &str) -> Result<(), StoreError> {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, text).map_err(io(&fresh))?;
    std::fs::rename(&fresh, path).map_err(io(path))
}

/// JSON as it is kept.
#[must_use]
pub fn pretty(value: &impl serde::Serialize) -> String {
    // Maps with string keys and plain fields: nothing in them can fail.
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}

fn study(dir: &Path) -> Result<Study, StoreError> {
    #[derive(serde::Deserialize)]
    struct Version {
        format: u32,
    }
    let path = dir.join(HEAD);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(StoreError::Absent(dir.to_owned()));
        }
        Err(source) => return Err(StoreError::Io { path, source }),
    };
    let form = |source| StoreError::Form { path: path.clone(), source };
    let version: Version = serde_json::from_str(&text).map_err(form)?;
    if version.format != FORMAT {
        return Err(StoreError::Format { path, found: version.format });
    }
    serde_json::from_str(&text).map_err(form)
}

/// The samples, and how many bytes of the file are whole lines.
fn samples(dir: &Path) -> Result<(Vec<Sample>, u64), StoreError> {
    let path = dir.join(SAMPLES);
    let mut reader = BufReader::new(File::open(&path).map_err(io(&path))?);
    let (mut samples, mut whole, mut line) = (Vec::new(), 0, Vec::new());
    loop {
        line.clear();
        let count = reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line);
        let count = count.map_err(io(&path))? as u64;
        if line.last() != Some(&b'\n') {
            // Cut short, unless it is only too long.
            return match count < MAX_LINE {
                true => Ok((samples, whole)),
                false => Err(StoreError::TooLong(path)),
            };
        }
        if samples.len() == MAX_SAMPLES {
            return Err(StoreError::TooLong(path));
        }
        let number = samples.len() + 1;
        samples.push(serde_json::from_slice(&line).map_err(|source| StoreError::Line {
            path: path.clone(),
            line: number,
            source,
        })?);
        whole += count;
    }
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { path, source }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::summary::test::sample_results;

    #[test]
    fn what_was_measured_is_there_again_but_for_a_line_cut_short() {
        let dir = tempfile::tempdir().unwrap();
        let all = sample_results();
        let mut store = Store::create(dir.path(), &all.study).unwrap();
        for sample in &all.samples {
            store.append(sample).unwrap();
        }
        assert_eq!(load(dir.path()).unwrap(), all);
        let path = dir.path().join(SAMPLES);
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"round\":1,\"rep").unwrap();
        assert_eq!(load(dir.path()).unwrap(), all);
        let (mut store, study, samples) = Store::resume(dir.path()).unwrap();
        assert_eq!((&study, &samples), (&all.study, &all.samples));
        store.append(&all.samples[0]).unwrap();
        assert_eq!(load(dir.path()).unwrap().samples.len(), samples.len() + 1);
    }

    /// A report made anew differed from the first in the last digits.
    #[test]
    fn figures_are_the_same_when_they_are_read_again() {
        for text in ["984.0372600000001", "97.19427499999999", "2.9774760000000002", "1e-300"] {
            let exact: f64 = text.parse().unwrap();
            let read: f64 = serde_json::from_str(text).unwrap();
            assert_eq!(read.to_bits(), exact.to_bits(), "{text}");
        }
    }

    #[test]
    fn what_is_no_study_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let error = |dir: &Path| load(dir).unwrap_err().to_string();
        assert!(error(dir.path()).contains("no study"), "{}", error(dir.path()));
        std::fs::write(dir.path().join(HEAD), "{\"format\": 9}").unwrap();
        assert!(error(dir.path()).contains("format 9"));
        std::fs::write(dir.path().join(HEAD), "{").unwrap();
        assert!(error(dir.path()).contains("not understood"));
        Store::create(dir.path(), &sample_results().study).unwrap();
        std::fs::write(dir.path().join(SAMPLES), "{}\n").unwrap();
        assert!(error(dir.path()).contains("line 1"));
        let long = "x".repeat(usize::try_from(MAX_LINE).unwrap() + 1);
        std::fs::write(dir.path().join(SAMPLES), long).unwrap();
        assert!(error(dir.path()).contains("more than"));
    }
}
