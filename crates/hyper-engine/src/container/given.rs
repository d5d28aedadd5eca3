//! Files and secrets that a container is given: what they are, and what of them may be asked for.
//!
//! ```text
//!   request ──check──▶ spec (SQLite): places, modes, owners; contents of what is no secret
//!              └─────▶ EXEC_ROOT/secrets/ID (memory): contents of secrets      [`super::secrets`]
//! ```
//! Invariant: contents of a secret are in no stored spec, no error and no `Debug` output.

use std::collections::BTreeSet;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::spec::HostSpec;
use crate::{Error, Result, oci};

/// Largest file and value in bytes; Kubernetes' bound of a whole ConfigMap.
pub const MAX_FILE: usize = 1 << 20;
/// All files and secrets of a container: one message carries them to a guest.
pub const MAX_TOTAL: usize = 2 << 20;
/// Longest variable with its name: the kernel's bound of one string (`MAX_ARG_STRLEN`).
const MAX_VARIABLE: usize = (128 << 10) - 2;
/// Of all places together.
const MAX_FILES: usize = 2048;
/// What a file costs beside its contents and its name.
const OVERHEAD: usize = 128;

/// Bytes that tell nothing of themselves but their number. Base64 in JSON.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Contents(pub Vec<u8>);

/// Files at one place of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Given {
    /// Absolute path in the container.
    pub target: String,
    /// A directory with exactly these files; else one file, whose `path` is empty.
    pub directory: bool,
    /// Of the directory.
    pub mode: u32,
    /// What the container writes there is gone with its next start.
    pub writable: bool,
    pub files: Vec<GivenFile>,
}

/// One file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GivenFile {
    /// Below the directory: `a/b`.
    pub path: String,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// `USER[:GROUP]` by the image's names, in place of the two; not in a directory.
    pub owner: Option<String>,
    /// What it is called, if it is a secret.
    pub secret: Option<String>,
    /// Of a secret: empty, once the container is made.
    pub content: Contents,
}

/// A variable of the environment whose value is a secret.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SecretVariable {
    pub name: String,
    /// What the secret is called.
    pub secret: String,
    /// Empty, once the container is made.
    pub value: Contents,
}

impl fmt::Debug for Contents {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} bytes", self.0.len())
    }
}

impl Serialize for Contents {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Contents {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let wrong = || serde::de::Error::custom("contents are wanted as base64");
        // The parser's own words would quote a value of another type.
        let value = serde_json::Value::deserialize(from).map_err(|_| wrong())?;
        let text = value.as_str().ok_or_else(wrong)?;
        STANDARD.decode(text).map(Self).map_err(|_| wrong())
    }
}

/// Names of the secrets of a container: its files' in order, then its variables'. A secret's place
/// in this list is the name of the file that holds it.
pub(crate) fn secrets(host: &HostSpec) -> Vec<&str> {
    let files = host.files.iter().flat_map(|given| &given.files);
    let files = files.filter_map(|file| file.secret.as_deref());
    files.chain(host.secret_env.iter().map(|variable| variable.secret.as_str())).collect()
}

/// Takes the contents of the secrets out of a spec, in the order of [`secrets`].
pub(crate) fn take_secrets(host: &mut HostSpec) -> Vec<Contents> {
    let files = host.files.iter_mut().flat_map(|given| &mut given.files);
    let files = files.filter(|file| file.secret.is_some()).map(|file| &mut file.content);
    let values = host.secret_env.iter_mut().map(|variable| &mut variable.value);
    files.chain(values).map(std::mem::take).collect()
}

/// Makes paths plain, and refuses what could not be given. `env` is the client's.
pub(crate) fn check(host: &mut HostSpec, env: &[String]) -> Result<()> {
    let mut total = 0;
    let mut count = 0;
    for given in &mut host.files {
        given.target = place(&given.target)?;
        for file in &given.files {
            count += 1;
            total += file.content.0.len() + file.path.len() + OVERHEAD;
            check_file(given, file)?;
        }
        if !given.directory && given.files.len() != 1 {
            let number = given.files.len();
            return Err(Error::Invalid(format!("{number} files for the one `{}`", given.target)));
        }
        names(given)?;
        if given.mode > 0o7777 {
            return Err(Error::Invalid(format!("mode {:o} of `{}`", given.mode, given.target)));
        }
    }
    let mut known = BTreeSet::new();
    for variable in &host.secret_env {
        let SecretVariable { name, secret, value } = variable;
        if name.contains('=') {
            return Err(Error::Invalid(format!("invalid environment variable: `{name}`")));
        }
        oci::check_environment(std::slice::from_ref(name))?;
        if value.0.len() + name.len() > MAX_VARIABLE
            || value.0.contains(&0)
            || str::from_utf8(&value.0).is_err()
        {
            return Err(Error::Invalid(format!(
                "secret `{secret}` cannot be the value of the variable `{name}`: a text of up to \
                 {MAX_VARIABLE} bytes with its name, and without NUL, is wanted; give it as a file"
            )));
        }
        let prefix = format!("{name}=");
        if env.iter().any(|entry| entry.starts_with(&prefix)) || !known.insert(name) {
            return Err(Error::Invalid(format!(
                "the environment variable `{name}` is given twice, once as secret `{secret}`"
            )));
        }
        total += value.0.len() + name.len() + OVERHEAD;
    }
    if total > MAX_TOTAL || count > MAX_FILES {
        return Err(Error::Invalid(format!(
            "{count} files and secrets of {total} bytes are given to the container, more than \
             {MAX_FILES} files or {MAX_TOTAL} bytes: put what is large into a volume or the image"
        )));
    }
    Ok(())
}

/// After the mounts are known: nothing is mounted at or below what is given, or hides it.
pub(crate) fn check_places(host: &HostSpec) -> Result<()> {
    let mounts = host.mounts.iter().map(|mount| mount.target.as_str());
    let others: Vec<&str> = mounts.chain(host.tmpfs.keys().map(String::as_str)).collect();
    for (number, given) in host.files.iter().enumerate() {
        let target = given.target.as_str();
        let others = others.iter().copied();
        let mut below = others.chain(host.files[..number].iter().map(|other| &*other.target));
        if below.clone().any(|other| other.trim_end_matches('/') == target) {
            return Err(Error::Invalid(format!("Duplicate mount point: {target}")));
        }
        let inside =
            |path: &str, of: &str| path.strip_prefix(of).is_some_and(|rest| rest.starts_with('/'));
        if let Some(path) = below.find(|path| inside(path, target)) {
            return Err(Error::Invalid(format!(
                "`{path}` cannot be mounted below `{target}`, where files are given: choose \
                 another place for one of them"
            )));
        }
        let above = host.files.iter().find(|other| inside(target, &other.target));
        if let Some(other) = above {
            return Err(Error::Invalid(format!(
                "`{target}` cannot be given below `{}`, where files are given: choose another \
                 place for one of them",
                other.target
            )));
        }
    }
    Ok(())
}

fn place(target: &str) -> Result<String> {
    let bad = |why: &str| Error::Invalid(format!("file to be given at `{target}`: {why}"));
    if !target.starts_with('/') || target.contains('\0') || target.len() > 4000 {
        return Err(bad("the path must be absolute"));
    }
    let parts: Vec<&str> =
        target.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return Err(bad("the path must be without `..`"));
    }
    match parts.first() {
        None => Err(bad("it would hide the whole root")),
        Some(kernel @ (&"proc" | &"sys")) => {
            Err(bad(&format!("/{kernel} is the kernel's: choose another place")))
        }
        Some(_) => Ok(format!("/{}", parts.join("/"))),
    }
}

fn check_file(given: &Given, file: &GivenFile) -> Result<()> {
    let name = match file.path.as_str() {
        "" => given.target.clone(),
        path => format!("{}/{path}", given.target),
    };
    let bad = |why: String| Err(Error::Invalid(format!("file `{name}` cannot be given: {why}")));
    let plain = |part: &str| !matches!(part, "" | "." | "..") && part.len() <= 255;
    let parts = file.path.split('/');
    if given.directory == file.path.is_empty() {
        return bad("a file in a directory has a path, any other has none".to_owned());
    }
    if given.directory && (file.path.contains('\0') || !parts.clone().all(plain)) {
        return bad("its path is not of plain names".to_owned());
    }
    if parts.count() > 16 || file.path.len() > 4000 {
        return bad("its path is too long".to_owned());
    }
    if let Some(owner) = &file.owner {
        let strange = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ',');
        if given.directory || owner.is_empty() || owner.len() > 255 || owner.contains(strange) {
            let why = format!("owner `{owner}`: USER[:GROUP] of a file that is not in a directory");
            return bad(why);
        }
    }
    if file.mode > 0o7777 {
        return bad(format!("mode {:o} is none", file.mode));
    }
    if file.content.0.len() > MAX_FILE {
        let bytes = file.content.0.len();
        let hint = "put it into a volume or the image";
        return bad(format!("it has {bytes} bytes, more than {MAX_FILE}: {hint}"));
    }
    if file.secret.as_deref() == Some("") {
        return bad("a secret has a name".to_owned());
    }
    Ok(())
}

/// No path twice, and none below another.
fn names(given: &Given) -> Result<()> {
    let mut paths: Vec<&str> = given.files.iter().map(|file| file.path.as_str()).collect();
    paths.sort_unstable();
    for (number, path) in paths.iter().enumerate() {
        let below = format!("{path}/");
        if paths[number + 1..].iter().any(|other| other == path || other.starts_with(&below)) {
            return Err(Error::Invalid(format!(
                "`{path}` is given twice in `{}`, or as a file and a directory",
                given.target
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "given/tests.rs"]
mod test;
