//! `--secret` and `--config`: files of the caller's that a container is given.

use std::io::Read as _;
use std::path::Path;

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::{Value, json};

/// Largest file in bytes; hyperd's own bound.
pub const MAX_BYTES: u64 = 1 << 20;

#[derive(Debug, Args)]
pub struct GivenFlags {
    /// id=NAME,src=FILE|env=VAR[,target=PATH][,mode=0400][,uid=N][,gid=N]: a file at
    /// /run/secrets/NAME that is kept in memory only; type=env,target=NAME makes it a variable
    #[arg(long, value_name = "SECRET")]
    pub secret: Vec<String>,
    /// id=NAME,src=FILE|env=VAR[,target=PATH][,mode=0444][,uid=N][,gid=N]: a read-only file at /NAME
    #[arg(long, value_name = "CONFIG")]
    pub config: Vec<String>,
}

impl GivenFlags {
    /// Puts what they say into a create request.
    pub fn apply(&self, body: &mut Value) -> anyhow::Result<()> {
        let (mut files, mut variables) = (Vec::new(), Vec::new());
        for (flag, words) in [("secret", &self.secret), ("config", &self.config)] {
            for word in words {
                // The word has no contents in it: it can be shown.
                let wish = Wish::parse(word, flag == "secret");
                let wish = wish.with_context(|| format!("--{flag} `{word}`"))?;
                let content = wish.content().with_context(|| format!("--{flag} `{word}`"))?;
                match wish.variable {
                    true => variables.push(json!({
                        "Name": wish.target, "Secret": wish.id, "Value": STANDARD.encode(content),
                    })),
                    false => files.push(json!({ "Target": wish.target, "Files": [{
                        "Mode": wish.mode, "Uid": wish.uid, "Gid": wish.gid,
                        "Secret": (flag == "secret").then_some(wish.id),
                        "Content": STANDARD.encode(content),
                    }] })),
                }
            }
        }
        for (key, list) in [("HyperFiles", files), ("HyperSecretEnv", variables)] {
            if !list.is_empty() {
                body["HostConfig"][key] = list.into();
            }
        }
        Ok(())
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Wish {
    id: String,
    source: Source,
    /// A variable of the environment, not a file.
    variable: bool,
    target: String,
    mode: u32,
    uid: u32,
    gid: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum Source {
    File(String),
    Variable(String),
}

impl Wish {
    fn parse(text: &str, secret: bool) -> anyhow::Result<Self> {
        let (mut id, mut source, mut target) = (None, None, None);
        let (mut variable, mut mode, mut uid, mut gid) = (false, None, None, None);
        for field in text.split(',') {
            let Some((key, value)) = field.split_once('=').filter(|(_, value)| !value.is_empty())
            else {
                bail!("`{field}` is not of the form KEY=VALUE");
            };
            let number =
                || value.parse::<u32>().with_context(|| format!("{key} `{value}` is not a number"));
            let twice = match key {
                "id" => id.replace(value.to_owned()).is_some(),
                "src" | "source" => source.replace(Source::File(value.to_owned())).is_some(),
                "env" => source.replace(Source::Variable(value.to_owned())).is_some(),
                "target" | "dst" | "destination" => target.replace(value.to_owned()).is_some(),
                "type" if secret => {
                    variable = match value {
                        "mount" => false,
                        "env" => true,
                        _ => bail!("type `{value}` is neither mount nor env"),
                    };
                    false
                }
                "mode" => {
                    let parsed = u32::from_str_radix(value, 8).ok().filter(|mode| *mode <= 0o7777);
                    let Some(parsed) = parsed else {
                        bail!("mode `{value}` is no octal mode, such as 0400");
                    };
                    mode.replace(parsed).is_some()
                }
                "uid" => uid.replace(number()?).is_some(),
                "gid" => gid.replace(number()?).is_some(),
                _ => bail!("`{key}` is not known: id, src, env, target, type, mode, uid, gid are"),
            };
            if twice {
                bail!("`{key}` is given twice, or beside what means the same");
            }
        }
        let id = id.context("id=NAME is missing")?;
        if id.contains('/') || id == "." || id == ".." {
            bail!("id `{id}` is no name of a file");
        }
        let source =
            source.context("src=FILE or env=VARIABLE is missing: secrets are not stored")?;
        if variable && (mode, uid, gid) != (None, None, None) {
            bail!("a variable of the environment has no mode and no owner");
        }
        let target = target.unwrap_or_else(|| id.clone());
        let target = match (variable || target.starts_with('/'), secret) {
            (true, _) => target,
            (false, true) => format!("/run/secrets/{target}"),
            (false, false) => format!("/{target}"),
        };
        Ok(Self {
            id,
            source,
            variable,
            target,
            mode: mode.unwrap_or(if secret { 0o400 } else { 0o444 }),
            uid: uid.unwrap_or_default(),
            gid: gid.unwrap_or_default(),
        })
    }

    fn content(&self) -> anyhow::Result<Vec<u8>> {
        match &self.source {
            Source::File(path) => read(Path::new(path)),
            Source::Variable(name) => {
                use std::os::unix::ffi::OsStringExt as _;
                let value = std::env::var_os(name);
                Ok(value.with_context(|| format!("variable `{name}` is not set"))?.into_vec())
            }
        }
    }
}

/// A file's bytes; also those of a FIFO (`<(command)`).
pub fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes))
        .with_context(|| format!("read `{}`", path.display()))?;
    if bytes.len() as u64 > MAX_BYTES {
        bail!(
            "`{}` has more than {MAX_BYTES} bytes: put it into a volume or the image",
            path.display()
        );
    }
    Ok(bytes)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn words_of_a_secret() {
        let wish = Wish::parse("id=db,src=./pw", true).unwrap();
        assert_eq!((wish.target.as_str(), wish.mode), ("/run/secrets/db", 0o400));
        assert_eq!(wish.source, Source::File("./pw".to_owned()));
        let wish = Wish::parse("id=db,env=PW,target=/etc/pw,mode=0440,uid=5,gid=6", true).unwrap();
        assert_eq!((wish.target.as_str(), wish.mode, wish.uid, wish.gid), ("/etc/pw", 0o440, 5, 6));
        let wish = Wish::parse("id=db,env=PW,type=env", true).unwrap();
        assert!(wish.variable && wish.target == "db");
        assert_eq!(Wish::parse("id=a,src=b,target=c", true).unwrap().target, "/run/secrets/c");
        let wish = Wish::parse("id=app.conf,src=b", false).unwrap();
        assert_eq!((wish.target.as_str(), wish.mode), ("/app.conf", 0o444));
    }

    #[test]
    fn what_is_meant_otherwise_is_refused() {
        for (text, secret, words) in [
            ("db", true, "KEY=VALUE"),
            ("id=db", true, "src=FILE"),
            ("src=x", true, "id=NAME"),
            ("id=a/b,src=x", true, "a/b"),
            ("id=a,src=x,env=y", true, "twice"),
            ("id=a,src=x,mode=9", true, "octal"),
            ("id=a,src=x,type=file", true, "neither mount nor env"),
            ("id=a,src=x,type=env,mode=0400", true, "no mode"),
            ("id=a,src=x,type=env", false, "`type` is not known"),
            ("id=a,src=x,required=true", true, "`required`"),
            ("id=a,src=x,uid=root", true, "`root`"),
        ] {
            let error = format!("{:#}", Wish::parse(text, secret).unwrap_err());
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
