//! `login logout`: credentials for registries, where Docker's client keeps them too.
//!
//! `~/.docker/config.json` (or `$DOCKER_CONFIG`), or the credential helper that it names. What the file has beside
//! credentials stays as it is. Secrets never go onto a command line: helpers get them on standard input.

use std::io::{BufRead, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use serde_json::{Map, Value, json};

use crate::arguments::LoginFlags;
use crate::client::{Body, Client};
use crate::terminal;

/// How Docker's tools call `docker.io`.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

pub async fn login(client: &Client, flags: LoginFlags) -> anyhow::Result<i32> {
    let server = server(flags.server.as_deref());
    let username = match flags.username {
        Some(name) => name,
        None => ask("Username: ", true)?,
    };
    let password = if flags.password_stdin {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("read the password")?;
        text.trim_end_matches(['\n', '\r']).to_owned()
    } else if let Some(password) = flags.password {
        eprintln!("WARNING! Using --password via the CLI is insecure. Use --password-stdin.");
        password
    } else {
        ask("Password: ", false)?
    };
    if username.is_empty() || password.is_empty() {
        bail!("login: user name and password must not be empty");
    }
    let body = json!({ "username": username, "password": password, "serveraddress": server });
    let answer = client.post("/auth", Body::Json(body)).await.context("login")?;
    let token = answer["IdentityToken"].as_str().filter(|token| !token.is_empty());
    let credentials = Stored { username, password, token: token.map(str::to_owned) };
    Config::read()?.store(&server, &credentials)?;
    println!("{}", answer["Status"].as_str().unwrap_or("Login Succeeded"));
    Ok(0)
}

pub fn logout(name: Option<&str>) -> anyhow::Result<i32> {
    let server = server(name);
    let shown = if server == DOCKER_HUB { "docker.io" } else { &server };
    if Config::read()?.erase(&server)? {
        println!("Removing login credentials for {shown}");
    } else {
        println!("Not logged in to {shown}");
    }
    Ok(0)
}

/// The key of a registry in Docker's file.
fn server(name: Option<&str>) -> String {
    let Some(name) = name else { return DOCKER_HUB.to_owned() };
    let bare = name.trim_start_matches("https://").trim_start_matches("http://");
    let host = bare.split('/').next().unwrap_or(bare);
    match host {
        "docker.io" | "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB.to_owned(),
        host => host.to_owned(),
    }
}

/// A line from the terminal.
fn ask(prompt: &str, echo: bool) -> anyhow::Result<String> {
    if !terminal::stdin_is_terminal() {
        bail!("login: there is no terminal to ask on: use --username and --password-stdin");
    }
    eprint!("{prompt}");
    std::io::stderr().flush().context("ask")?;
    let stdin = std::io::stdin();
    let saved = tcgetattr(&stdin).context("the terminal's modes")?;
    if !echo {
        let mut hidden = saved.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&stdin, OptionalActions::Now, &hidden).context("hide what is typed")?;
    }
    let mut line = String::new();
    let read = stdin.lock().read_line(&mut line);
    if !echo {
        tcsetattr(&stdin, OptionalActions::Now, &saved).context("show what is typed")?;
        eprintln!();
    }
    read.context("read the answer")?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

struct Stored {
    username: String,
    password: String,
    token: Option<String>,
}

/// Docker's file, with everything that is in it.
struct Config {
    path: PathBuf,
    content: Map<String, Value>,
}

impl Config {
    fn read() -> anyhow::Result<Self> {
        let directory = match std::env::var_os("DOCKER_CONFIG").filter(|value| !value.is_empty()) {
            Some(directory) => PathBuf::from(directory),
            None => {
                Path::new(&std::env::var_os("HOME").context("$HOME is not set")?).join(".docker")
            }
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

    /// The helper that keeps the credentials of a registry.
    fn helper(&self, server: &str) -> Option<String> {
        let of_registry = self.content.get("credHelpers").and_then(|all| all.get(server));
        let name = of_registry.or_else(|| self.content.get("credsStore"))?.as_str()?;
        (!name.is_empty()).then(|| format!("docker-credential-{name}"))
    }

    fn store(mut self, server: &str, stored: &Stored) -> anyhow::Result<()> {
        let Stored { username, password, token } = stored;
        if let Some(helper) = self.helper(server) {
            let (name, secret) = match token {
                Some(token) => ("<token>", token),
                None => (username.as_str(), password),
            };
            let input = json!({ "ServerURL": server, "Username": name, "Secret": secret });
            run(&helper, "store", &input.to_string())?;
            // Docker's client lists what helpers have by empty entries.
            self.auths()?.insert(server.to_owned(), json!({}));
            return self.write();
        }
        eprintln!(
            "WARNING! Your credentials are stored unencrypted in '{}'.\nConfigure a credential \
             helper to remove this warning.",
            self.path.display()
        );
        let entry = match token {
            Some(token) => {
                json!({ "auth": STANDARD.encode(format!("{username}:")), "identitytoken": token })
            }
            None => json!({ "auth": STANDARD.encode(format!("{username}:{password}")) }),
        };
        self.auths()?.insert(server.to_owned(), entry);
        self.write()
    }

    /// Whether there was anything.
    fn erase(mut self, server: &str) -> anyhow::Result<bool> {
        let helper = self.helper(server);
        let known = self.auths()?.remove(server).is_some();
        if let Some(helper) = helper {
            run(&helper, "erase", server)?;
        }
        if known {
            self.write()?;
        }
        Ok(known)
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
        let directory = self.path.parent().with_context(what)?;
        std::fs::create_dir_all(directory).with_context(what)?;
        // A link is written through, as Docker does.
        let target = std::fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let aside = target.with_extension(format!("json{}", std::process::id()));
        let text = serde_json::to_string_pretty(&self.content).with_context(what)?;
        let written = std::fs::File::create(&aside).and_then(|mut file| {
            file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
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

fn run(helper: &str, verb: &str, input: &str) -> anyhow::Result<()> {
    let mut child = Command::new(helper)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .with_context(|| format!("run the credential helper {helper}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).with_context(|| format!("write to {helper}"))?;
    }
    let output = child.wait_with_output().with_context(|| format!("wait for {helper}"))?;
    if !output.status.success() {
        let text: String = String::from_utf8_lossy(&output.stdout).chars().take(300).collect();
        bail!("{helper} {verb} failed: {}", text.trim());
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use super::{DOCKER_HUB, server};

    #[test]
    fn servers_are_called_as_docker_calls_them() {
        for (name, key) in [
            (None, DOCKER_HUB),
            (Some("docker.io"), DOCKER_HUB),
            (Some("https://index.docker.io/v1/"), DOCKER_HUB),
            (Some("ghcr.io"), "ghcr.io"),
            (Some("http://localhost:5000/v2/"), "localhost:5000"),
        ] {
            assert_eq!(server(name), key);
        }
    }
}
