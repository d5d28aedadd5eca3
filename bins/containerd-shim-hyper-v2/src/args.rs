//! The command line, as containerd's Go programs write it: `-name value`, `-name=value`, one word.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context as _, bail};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Start,
    /// Our own: the supervisor itself.
    Serve,
    Delete,
    /// Our own: looks at the host, for `hyper doctor`.
    Probe,
    /// Our own: measures bare guests, for `hyper bench vmm`.
    Bench,
    /// Our own: how strong the walls of the hypervisors are, for hyperd.
    Walls,
    /// Our own: makes a template, for supervisors.
    Template,
    Version,
    Info,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    pub action: Action,
    pub namespace: String,
    pub id: String,
    /// containerd's main socket; part of the supervisor's socket name.
    pub address: String,
    pub bundle: Option<PathBuf>,
    /// The supervisor's socket, for `serve`.
    pub socket: Option<PathBuf>,
    /// Rounds, for `bench`; what it writes goes to `bundle`.
    pub runs: u32,
    pub debug: bool,
}

impl Args {
    pub fn parse(words: impl Iterator<Item = OsString>) -> anyhow::Result<Self> {
        let mut args = Self {
            action: Action::Serve,
            namespace: String::new(),
            id: String::new(),
            address: String::new(),
            bundle: None,
            socket: None,
            runs: 10,
            debug: false,
        };
        let mut action = None;
        let mut words = words.map(|word| {
            word.into_string().map_err(|word| anyhow::anyhow!("{word:?} is not UTF-8"))
        });
        while let Some(word) = words.next().transpose()? {
            let Some(flag) = word.strip_prefix('-') else {
                action = Some(word);
                // Go's flag package stops at the first word that is no flag.
                break;
            };
            let flag = flag.strip_prefix('-').unwrap_or(flag);
            let (name, inline) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            match name {
                "debug" => args.debug = inline.as_deref() != Some("false"),
                "v" | "version" => action = Some("version".to_owned()),
                "info" => action = Some("info".to_owned()),
                _ => {
                    let value = match inline {
                        Some(value) => value,
                        None => words
                            .next()
                            .transpose()?
                            .with_context(|| format!("-{name} has no value"))?,
                    };
                    match name {
                        "namespace" => args.namespace = value,
                        "id" => args.id = value,
                        "address" => args.address = value,
                        "bundle" if value.is_empty() => {}
                        "bundle" => args.bundle = Some(value.into()),
                        "runs" => {
                            let number = value.parse();
                            args.runs = number.with_context(|| format!("-runs {value}"))?;
                        }
                        "socket" => args.socket = Some(value.into()),
                        "publish-binary" => {}
                        _ => bail!("unknown flag -{name}"),
                    }
                }
            }
        }
        args.action = match action.as_deref() {
            Some("start") => Action::Start,
            Some("serve") => Action::Serve,
            Some("delete") => Action::Delete,
            Some("probe") => Action::Probe,
            Some("walls") => Action::Walls,
            Some("bench") => Action::Bench,
            Some("template") => Action::Template,
            Some("version") => Action::Version,
            Some("info") => Action::Info,
            Some(other) => bail!("unknown action `{other}`: start, delete, serve, probe"),
            None => bail!("an action is missing: start, delete, serve, probe"),
        };
        if matches!(args.action, Action::Start | Action::Serve | Action::Delete) {
            check_id(&args.id)?;
        }
        Ok(args)
    }

    /// The bundle: by flag, or where we were started.
    pub fn bundle(&self) -> anyhow::Result<PathBuf> {
        match &self.bundle {
            Some(bundle) => Ok(bundle.clone()),
            None => std::env::current_dir().context("current directory"),
        }
    }
}

/// The id becomes file and cgroup names: containerd's own rule (`pkg/identifiers`).
fn check_id(id: &str) -> anyhow::Result<()> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let first = id.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if !first || id.len() > 128 || !id.bytes().all(good) {
        bail!("container id `{id}` is not 1 to 128 letters, digits, `_`, `.`, `-`");
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use super::*;

    fn parse(words: &[&str]) -> anyhow::Result<Args> {
        Args::parse(words.iter().map(OsString::from))
    }

    #[test]
    fn containerds_command_lines() {
        let args = parse(&[
            "-namespace",
            "k8s.io",
            "-id",
            "abc",
            "-address",
            "/run/c.sock",
            "-publish-binary",
            "/usr/bin/containerd",
            "-debug",
            "start",
        ])
        .unwrap();
        assert_eq!((args.action, args.id.as_str(), args.debug), (Action::Start, "abc", true));
        let args = parse(&["-id=abc", "-bundle", "/b", "delete"]).unwrap();
        assert_eq!((args.action, args.bundle), (Action::Delete, Some("/b".into())));
        for bad in [
            &["-id", "../x", "start"][..],
            &["-id", "a"],
            &["-wrong", "1", "start"],
            &["-id", "a", "run"],
        ] {
            parse(bad).unwrap_err();
        }
    }
}
