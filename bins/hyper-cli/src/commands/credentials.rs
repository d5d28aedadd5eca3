//! Docker's `config.json` and the credential helpers that it names.
//!
//! `~/.docker/config.json`, or the one in `$DOCKER_CONFIG`. What the file has beside credentials stays as it is. Order
//! per registry, as in docker/cli: `credHelpers[registry]`, `credsStore`, `auths[registry]`. Helpers are programs
//! `docker-credential-NAME` that get a verb as their argument and secrets on standard input, never on a command line;
//! what they print may hold secrets, and is quoted only when they say that they failed.
//!
//! Our own, because the crate `docker_credential` waits for a helper for ever and cannot store.
//!
//! Source: docker/docker-credential-helpers README, "Development".

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// How Docker's tools call `docker.io`.
pub const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// A helper may have to ask its user, but not for ever.
const DEADLINE: Duration = Duration::from_secs(60);
/// Seconds to wait for a helper instead.
const DEADLINE_VARIABLE: &str = "HYPER_CREDENTIAL_TIMEOUT";
/// Most bytes of a helper's answer that are read.
const MAX_ANSWER: u64 = 1 << 20;
/// What all helpers print for a registry they do not know.
const NOT_FOUND: &str = "credentials not found in native keychain";
/// The user's name in place of which a helper keeps an identity token.
const TOKEN: &str = "<token>";

/// What is shown to a registry.
#[derive(Debug, PartialEq, Eq)]
pub enum Stored {
    Password {
        username: String,
        password: String,
    },
    /// Exchanged at the registry's token server; of a user, if the file tells whose it is.
    Identity {
        username: String,
        token: String,
    },
    /// Shown as it is. `login` gets none; some write it into the file.
    Registry(String),
}

impl Stored {
    /// As the header `X-Registry-Auth` has it.
    pub fn header(&self, server: &str) -> Value {
        match self {
            Self::Password { username, password } => {
                json!({ "username": username, "password": password, "serveraddress": server })
            }
            Self::Identity { token, .. } => {
                json!({ "identitytoken": token, "serveraddress": server })
            }
            Self::Registry(token) => json!({ "registrytoken": token, "serveraddress": server }),
        }
    }

    /// As the file has it.
    fn entry(&self) -> Value {
        match self {
            Self::Password { username, password } => {
                json!({ "auth": STANDARD.encode(format!("{username}:{password}")) })
            }
            Self::Identity { username, token } => {
                json!({ "auth": STANDARD.encode(format!("{username}:")), "identitytoken": token })
            }
            Self::Registry(token) => json!({ "registrytoken": token }),
        }
    }

    /// As a helper has it: a name and a secret.
    fn pair(&self) -> (&str, &str) {
        match self {
            Self::Password { username, password } => (username, password),
            Self::Identity { token, .. } | Self::Registry(token) => (TOKEN, token),
        }
    }
}

/// Docker's file, with everything that is in it.
pub struct Config {
    path: PathBuf,
    content: Map<String, Value>,
}

impl Config {
    pub fn read() -> anyhow::Result<Self> {
        let directory = match std::env::var_os("DOCKER_CONFIG").filter(|value| !value.is_empty()) {
            Some(directory) => PathBuf::from(directory),
            None => match std::env::var_os("HOME") {
                Some(home) => Path::new(&home).join(".docker"),
                // A service has none, and so no credentials; only writing needs a place.
                None => return Ok(Self { path: PathBuf::new(), content: Map::new() }),
            },
        };
        let path = directory.join("config.json");
        let content = match std::fs::read(&path) {
            Ok(text) if text.trim_ascii().is_empty() => Map::new(),
            // serde's text may quote the file, which holds secrets: only the place is told.
            Ok(text) => serde_json::from_slice(&text).map_err(|error| {
                anyhow::anyhow!(
                    "{} is not valid JSON at line {}, column {}",
                    path.display(),
                    error.line(),
                    error.column()
                )
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Map::new(),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        Ok(Self { path, content })
    }

    /// What is known for a registry.
    pub async fn get(&self, server: &str) -> anyhow::Result<Option<Stored>> {
        let own = self.own_helper(server);
        if let Some(helper) = own.clone().or_else(|| self.general_helper()) {
            let found = helper.get(server).await?;
            // A helper named for this registry is the only source; the general store may just not know it.
            if own.is_some() || found.is_some() {
                return Ok(found);
            }
        }
        self.entry(server)
    }

    pub async fn store(mut self, server: &str, stored: &Stored) -> anyhow::Result<()> {
        if let Some(helper) = self.helper(server) {
            let (name, secret) = stored.pair();
            let input = json!({ "ServerURL": server, "Username": name, "Secret": secret });
            helper.told("store", &input.to_string()).await?;
            // Docker's client lists what helpers have by empty entries.
            self.auths()?.insert(server.to_owned(), json!({}));
            return self.write();
        }
        eprintln!(
            "WARNING! Your credentials are stored unencrypted in '{}'.\nConfigure a credential \
             helper to remove this warning.",
            self.path.display()
        );
        self.auths()?.insert(server.to_owned(), stored.entry());
        self.write()
    }

    /// Whether there was anything.
    pub async fn erase(mut self, server: &str) -> anyhow::Result<bool> {
        let helper = self.helper(server);
        let mut known = self.auths()?.remove(server).is_some();
        if known {
            self.write()?;
        }
        if let Some(helper) = helper {
            known |= match helper.ask("erase", server).await? {
                Answer::Done(_) => true,
                Answer::Failed(text) if text.contains(NOT_FOUND) => false,
                Answer::Failed(text) => bail!("{} erase failed: {text}", helper.0),
            };
        }
        Ok(known)
    }

    /// The helper that keeps the credentials of a registry.
    fn helper(&self, server: &str) -> Option<Helper> {
        self.own_helper(server).or_else(|| self.general_helper())
    }

    fn own_helper(&self, server: &str) -> Option<Helper> {
        let all = self.content.get("credHelpers")?.as_object()?;
        let same = |(name, _): &(&String, &Value)| host_of(name) == host_of(server);
        let named = all.get(server).or_else(|| all.iter().find(same).map(|(_, helper)| helper))?;
        Helper::named(named)
    }

    fn general_helper(&self) -> Option<Helper> {
        Helper::named(self.content.get("credsStore")?)
    }

    /// What the file itself keeps.
    fn entry(&self, server: &str) -> anyhow::Result<Option<Stored>> {
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct Entry {
            auth: String,
            username: String,
            password: String,
            identitytoken: String,
            registrytoken: String,
        }
        let Some(auths) = self.content.get("auths").and_then(Value::as_object) else {
            return Ok(None);
        };
        let same = |(name, _): &(&String, &Value)| host_of(name) == host_of(server);
        let Some(found) = auths.get(server).or_else(|| auths.iter().find(same).map(|(_, e)| e))
        else {
            return Ok(None);
        };
        let unusable =
            || format!("credentials for `{server}` in {}: log in again", self.path.display());
        // serde's text may quote the secret.
        let entry: Entry = serde_json::from_value(found.clone())
            .map_err(|_| anyhow::anyhow!("they are not strings"))
            .with_context(unusable)?;
        let Entry { auth, mut username, mut password, identitytoken, registrytoken } = entry;
        if !auth.is_empty() {
            let decoded = STANDARD.decode(auth.trim()).ok();
            let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
            let (name, secret) = text
                .as_deref()
                .and_then(|text| text.split_once(':'))
                .context("`auth` is not base64 of user:password")
                .with_context(unusable)?;
            username = name.to_owned();
            password = secret.trim_end_matches('\0').to_owned();
        }
        Ok(if !registrytoken.is_empty() {
            Some(Stored::Registry(registrytoken))
        } else if !identitytoken.is_empty() {
            Some(Stored::Identity { username, token: identitytoken })
        } else if !username.is_empty() {
            Some(Stored::Password { username, password })
        } else {
            None
        })
    }

    fn auths(&mut self) -> anyhow::Result<&mut Map<String, Value>> {
        let entry = self.content.entry("auths").or_insert_with(|| json!({}));
        if entry.is_null() {
            *entry = json!({});
        }
        entry
            .as_object_mut()
            .with_context(|| format!("`auths` of {} is not an object", self.path.display()))
    }

    /// Aside, readable by the owner only, then in place.
    fn write(&self) -> anyhow::Result<()> {
        let what = || format!("write {}", self.path.display());
        let directory = self.path.parent().context("neither $HOME nor $DOCKER_CONFIG is set")?;
        std::fs::create_dir_all(directory).with_context(what)?;
        // A link is written through, as Docker does.
        let target = std::fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let aside = target.with_extension(format!("json{}", std::process::id()));
        let text = serde_json::to_string_pretty(&self.content).with_context(what)?;
        // Of a process with our number that was killed here.
        let _ = std::fs::remove_file(&aside);
        // Nobody else can open it, not even while it is empty.
        let mut options = std::fs::OpenOptions::new();
        let written = options.write(true).create_new(true).mode(0o600).open(&aside);
        let written = written.and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&aside, &target)
        });
        if written.is_err() {
            // What is left of it holds secrets.
            let _ = std::fs::remove_file(&aside);
        }
        written.with_context(what)
    }
}

/// The host and port of a key: old clients wrote `https://host/v1/`.
fn host_of(key: &str) -> &str {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    match rest.split('/').next().unwrap_or(rest) {
        "docker.io" | "registry-1.docker.io" => "index.docker.io",
        host => host,
    }
}

/// A program that keeps credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Helper(String);

enum Answer {
    Done(Vec<u8>),
    /// What it said, shortened.
    Failed(String),
}

impl Helper {
    fn named(name: &Value) -> Option<Self> {
        let name = name.as_str().filter(|name| !name.is_empty())?;
        Some(Self(format!("docker-credential-{name}")))
    }

    async fn get(&self, server: &str) -> anyhow::Result<Option<Stored>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Kept {
            username: String,
            secret: String,
        }
        let text = match self.ask("get", server).await? {
            Answer::Done(text) => text,
            Answer::Failed(text) if text.contains(NOT_FOUND) => return Ok(None),
            Answer::Failed(text) => bail!("{} get failed for `{server}`: {text}", self.0),
        };
        // The answer holds a secret: nothing of it goes into the error.
        let Ok(Kept { username, secret }) = serde_json::from_slice(&text) else {
            bail!("{} get printed something else than credentials for `{server}`", self.0)
        };
        Ok(match username.as_str() {
            "" => None,
            TOKEN => Some(Stored::Identity { username: String::new(), token: secret }),
            _ => Some(Stored::Password { username, password: secret }),
        })
    }

    async fn told(&self, verb: &str, input: &str) -> anyhow::Result<()> {
        match self.ask(verb, input).await? {
            Answer::Done(_) => Ok(()),
            Answer::Failed(text) => bail!("{} {verb} failed: {text}", self.0),
        }
    }

    async fn ask(&self, verb: &str, input: &str) -> anyhow::Result<Answer> {
        let helper = &self.0;
        // It is looked for on the PATH only.
        if helper.contains('/') {
            bail!("`{helper}` is not the name of a credential helper");
        }
        let deadline = deadline()?;
        match tokio::time::timeout(deadline, self.run(verb, input)).await {
            Ok(answered) => answered.with_context(|| {
                format!("run the credential helper {helper}, which Docker's config.json names")
            }),
            Err(_) => bail!(
                "{helper} {verb} did not answer in {} s, so it was killed; {DEADLINE_VARIABLE}=SECONDS gives it longer",
                deadline.as_secs()
            ),
        }
    }

    async fn run(&self, verb: &str, input: &str) -> std::io::Result<Answer> {
        let mut child = tokio::process::Command::new(&self.0)
            .arg(verb)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A helper that does not read its input says so by its exit code.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        let mut text = Vec::new();
        if let Some(pipe) = child.stdout.take() {
            pipe.take(MAX_ANSWER).read_to_end(&mut text).await?;
        }
        let status = child.wait().await?;
        if status.success() {
            return Ok(Answer::Done(text));
        }
        let said: String = String::from_utf8_lossy(&text).trim().chars().take(300).collect();
        Ok(Answer::Failed(if said.is_empty() { status.to_string() } else { said }))
    }
}

fn deadline() -> anyhow::Result<Duration> {
    let Some(text) = std::env::var_os(DEADLINE_VARIABLE) else { return Ok(DEADLINE) };
    let seconds: Option<u32> = text.to_str().and_then(|text| text.parse().ok());
    let seconds = seconds
        .filter(|seconds| *seconds > 0)
        .with_context(|| format!("{DEADLINE_VARIABLE}={text:?} is not a number of seconds"))?;
    Ok(Duration::from_secs(seconds.into()))
}

#[cfg(test)]
mod test {
    use super::*;

    fn config(json: Value) -> Config {
        let Value::Object(content) = json else { panic!("an object") };
        Config { path: "/x/config.json".into(), content }
    }

    #[test]
    fn entries_of_the_file() {
        // dTpwOnE= is u:p:q
        let config = config(json!({ "auths": {
            DOCKER_HUB: { "auth": "dTpwOnE=" },
            "http://old.example/v1/": { "username": "a", "password": "b" },
            "localhost:5000": { "auth": "dTo=", "identitytoken": "t" },
            "cloud": { "registrytoken": "r" }, "helped": {}, "odd": { "auth": "hunter2" }, "worse": { "auth": 7 },
        }}));
        let plain = |username: &str, password: &str| {
            Some(Stored::Password { username: username.into(), password: password.into() })
        };
        assert_eq!(config.entry(DOCKER_HUB).unwrap(), plain("u", "p:q"));
        assert_eq!(config.entry("docker.io").unwrap(), plain("u", "p:q"));
        assert_eq!(config.entry("old.example").unwrap(), plain("a", "b"));
        let token = config.entry("localhost:5000").unwrap().unwrap().header("localhost:5000");
        assert_eq!(token, json!({ "identitytoken": "t", "serveraddress": "localhost:5000" }));
        let token = config.entry("cloud").unwrap().unwrap().header("cloud");
        assert_eq!(token, json!({ "registrytoken": "r", "serveraddress": "cloud" }));
        assert_eq!(config.entry("localhost:5001").unwrap(), None);
        assert_eq!(config.entry("helped").unwrap(), None);
        for name in ["odd", "worse"] {
            let error = format!("{:#}", config.entry(name).unwrap_err());
            assert!(error.contains(name) && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn helpers_by_registry() {
        let config = config(json!({
            "credsStore": "all", "credHelpers": { "https://reg:5000/v2/": "one", "none": "" }
        }));
        let named = |name: &str| Some(Helper(format!("docker-credential-{name}")));
        assert_eq!(config.helper("reg:5000"), named("one"));
        assert_eq!(config.own_helper("reg:5001"), None);
        assert_eq!(config.helper("reg:5001"), named("all"));
        assert_eq!(config.helper("none"), named("all"));
    }
}
