//! The runtimes that this host offers beside hypervisors: what the configuration names, as for
//! dockerd, and what is found on the PATH.
//!
//! ```text
//! {"runtimes": {"fast": {"path": "/opt/crun", "runtimeArgs": ["--debug"]},
//!               "kata": {"runtimeType": "io.containerd.kata.v2", "options": {"ConfigPath": "…"}}}}
//! ```

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use hyper_engine::{Runtimes, find_program, shim_name, wall_of};
use hyper_task::foreign::{RUNC_TYPE, Runtime, WALLS, strength};
use serde::Deserialize;
use serde_json::Value;

/// `auto` and the hypervisors that supervisors know.
pub const HYPERVISORS: [&str; 4] = ["auto", "kvm", "qemu", "uml"];
/// OCI runtimes that are offered by themselves, and the packages they come in.
const OCI: [(&str, &str); 4] = [
    ("runc", "apt-get install runc"),
    ("crun", "apt-get install crun"),
    ("youki", "no Debian package; `cargo install youki --no-default-features --features v1,v2`"),
    ("runsc", "apt-get install runsc"),
];
/// Shims that bring their runtime, with the name that they are offered by.
const SHIMS: [(&str, &str, &str); 2] = [
    ("runsc", "io.containerd.runsc.v1", "gvisor.dev/docs/user_guide/install"),
    ("kata", "io.containerd.kata.v2", "no Debian package: katacontainers.io"),
];
const NO_SHIM: &str = "containerd-shim-runc-v2, which drives it, is not on the PATH: apt-get \
                       install containerd";

/// One runtime in the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Configured {
    /// Program of an OCI runtime.
    pub path: Option<PathBuf>,
    pub runtime_args: Vec<String>,
    /// Type of a shim, `io.containerd.NAME.vN`, or its program's path.
    pub runtime_type: Option<String>,
    pub options: BTreeMap<String, Value>,
    /// How strong its wall is; the weakest is assumed of what is not known.
    pub isolation: Option<String>,
}

/// What containers may be created with. Scripts that add arguments are written to `scripts`.
pub fn runtimes(
    configured: &BTreeMap<String, Configured>,
    default: &str,
    min_isolation: &str,
    scripts: &Path,
) -> anyhow::Result<Runtimes> {
    let mut found = Runtimes {
        default: default.to_owned(),
        hypervisors: HYPERVISORS.map(str::to_owned).to_vec(),
        min_isolation: min_isolation.to_owned(),
        ..Runtimes::default()
    };
    on_path(&mut found);
    if let Some(runsc) = found.foreign.get_mut("runsc").filter(|runsc| runsc.kind == RUNC_TYPE) {
        // Its stack of its own is not needed then, and older ones refuse to make it on new kernels.
        let none = ["--network=none".to_owned()];
        runsc.offline = script("runsc-offline", &runsc.program, &none, scripts)?;
    }
    for (name, wanted) in configured {
        if found.hypervisors.contains(name) {
            bail!("runtime `{name}` is a hypervisor's name: give the other runtime another");
        }
        let runtime = one(name, wanted, scripts).with_context(|| format!("runtime `{name}`"))?;
        found.missing.remove(name);
        found.foreign.insert(name.clone(), runtime);
    }
    if !min_isolation.is_empty() && strength(min_isolation).is_none() {
        bail!("min-isolation `{min_isolation}` is no wall: {}", WALLS.join(", "));
    }
    let known = found.names().contains(&default) || found.foreign(default).is_some();
    if !known {
        let why = found.missing.get(default).map(|why| format!("{why}; ")).unwrap_or_default();
        bail!("default-runtime `{default}`: {why}this host has {}", found.names().join(", "));
    }
    Ok(found)
}

fn on_path(found: &mut Runtimes) {
    let shim = find_program("containerd-shim-runc-v2");
    for (name, package) in OCI {
        match (find_program(name), &shim) {
            (Some(program), Some(shim)) => {
                let runtime = Runtime {
                    name: name.to_owned(),
                    kind: RUNC_TYPE.to_owned(),
                    shim: shim.clone(),
                    program,
                    wall: wall_of(name).to_owned(),
                    ..Runtime::default()
                };
                found.foreign.insert(name.to_owned(), runtime);
            }
            (Some(_), None) => _ = found.missing.insert(name.to_owned(), NO_SHIM.to_owned()),
            (None, _) => {
                let why = format!("{name} is not on hyperd's PATH: {package}");
                found.missing.insert(name.to_owned(), why);
            }
        }
    }
    for (name, kind, source) in SHIMS {
        let Some(shim) = shim_name(kind) else { continue };
        match find_program(&shim) {
            // A runtime's own shim knows it better than the general one.
            Some(program) => {
                let runtime = Runtime {
                    name: name.to_owned(),
                    kind: kind.to_owned(),
                    shim: program,
                    wall: wall_of(name).to_owned(),
                    ..Runtime::default()
                };
                found.missing.remove(name);
                found.foreign.insert(name.to_owned(), runtime);
            }
            None if !found.foreign.contains_key(name) => {
                let why = format!("its shim, {shim}, is not on hyperd's PATH: {source}");
                found.missing.entry(name.to_owned()).or_insert(why);
            }
            None => {}
        }
    }
}

fn one(name: &str, wanted: &Configured, scripts: &Path) -> anyhow::Result<Runtime> {
    let word = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if name.is_empty() || !name.chars().all(word) {
        bail!("a name has letters, digits, `_`, `.` and `-` only");
    }
    let mut runtime =
        Runtime { name: name.to_owned(), options: wanted.options.clone(), ..Runtime::default() };
    let hint;
    match (&wanted.path, &wanted.runtime_type) {
        (Some(_), Some(_)) => bail!("has both path and runtimeType: one says what it is"),
        (None, None) => bail!("has neither path nor runtimeType"),
        (Some(path), None) => {
            let path = program(path)?;
            hint = path.display().to_string();
            RUNC_TYPE.clone_into(&mut runtime.kind);
            runtime.shim = find_program("containerd-shim-runc-v2").context(NO_SHIM)?;
            runtime.program = match wanted.runtime_args.is_empty() {
                true => path,
                false => script(name, &path, &wanted.runtime_args, scripts)?,
            };
        }
        (None, Some(kind)) => {
            if !wanted.runtime_args.is_empty() {
                bail!("runtimeArgs are for a path; a runtimeType has options");
            }
            let option = wanted.options.get("BinaryName").and_then(Value::as_str);
            hint = option.unwrap_or(kind).to_owned();
            runtime.shim = match kind.starts_with('/') {
                true => program(Path::new(kind))?,
                false => {
                    let shim = shim_name(kind).with_context(|| {
                        format!("runtimeType `{kind}` is neither io.containerd.NAME.vN nor a path")
                    })?;
                    find_program(&shim).with_context(|| format!("{shim} is not on the PATH"))?
                }
            };
            runtime.kind.clone_from(kind);
        }
    }
    runtime.wall = match &wanted.isolation {
        None => wall_of(&hint).to_owned(),
        Some(wall) if strength(wall).is_some() => wall.clone(),
        Some(other) => bail!("isolation `{other}` is no wall: {}", WALLS.join(", ")),
    };
    Ok(runtime)
}

/// As it is given, or by name on the PATH.
fn program(path: &Path) -> anyhow::Result<PathBuf> {
    let found = match path.is_absolute() {
        true => Some(path.to_owned()).filter(|path| {
            path.metadata()
                .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
        }),
        false => find_program(&path.to_string_lossy()),
    };
    found.with_context(|| format!("`{}` is not a program", path.display()))
}

/// A shim takes a program, not its arguments: as dockerd does, a script of that name adds them.
fn script(
    name: &str,
    program: &Path,
    arguments: &[String],
    scripts: &Path,
) -> anyhow::Result<PathBuf> {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let words: Vec<String> = std::iter::once(program.to_string_lossy().into_owned())
        .chain(arguments.iter().cloned())
        .map(|word| quoted(&word))
        .collect();
    let path = scripts.join(name);
    let write = || {
        std::fs::create_dir_all(scripts)?;
        let new = scripts.join(format!(".{name}.new"));
        std::fs::write(&new, format!("#!/bin/sh\nexec {} \"$@\"\n", words.join(" ")))?;
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755))?;
        // Containers that run may be executing the old one.
        std::fs::rename(&new, &path)
    };
    write().with_context(|| format!("write `{}`", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod test {
    use super::*;

    fn read(text: &str) -> BTreeMap<String, Configured> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn dockerds_configuration_is_understood() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"plain": {"runtimeType": "/bin/true", "options": {"ConfigPath": "/c"}}}"#;
        let found = runtimes(&read(text), "plain", "shared-kernel", dir.path()).unwrap();
        let plain = &found.foreign["plain"];
        assert_eq!(
            (plain.shim.as_path(), plain.wall.as_str()),
            (Path::new("/bin/true"), "shared-kernel")
        );
        let path =
            script("x", Path::new("/bin/echo"), &["it's".to_owned(), "a b".to_owned()], dir.path());
        let output = std::process::Command::new(path.unwrap()).arg("c").output().unwrap();
        assert_eq!(output.stdout, b"it's a b c\n");
    }

    #[test]
    fn mistakes_are_named() {
        let dir = tempfile::tempdir().unwrap();
        for (text, default, least, named) in [
            (r#"{"uml": {"path": "/bin/true"}}"#, "auto", "", "`uml`"),
            (r#"{"a": {}}"#, "auto", "", "neither"),
            (r#"{"a": {"path": "/no/such"}}"#, "auto", "", "/no/such"),
            (r#"{"a": {"runtimeType": "runc"}}"#, "auto", "", "`runc`"),
            (r#"{"a": {"runtimeType": "/bin/true", "isolation": "brick"}}"#, "auto", "", "brick"),
            ("{}", "nope", "", "`nope`"),
            ("{}", "auto", "brick", "`brick`"),
        ] {
            let error = runtimes(&read(text), default, least, dir.path()).unwrap_err();
            assert!(format!("{error:#}").contains(named), "{error:#}");
        }
    }
}
