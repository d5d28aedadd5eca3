//! `login logout`: credentials for registries, shown to them by hyperd and kept where Docker's client keeps them.

use std::io::{BufRead as _, Read as _, Write as _};

use anyhow::{Context as _, bail};
use serde_json::json;

use super::credentials::{Config, DOCKER_HUB, Stored};
use crate::arguments::LoginFlags;
use crate::client::{Body, Client};
use crate::terminal::{self, Mode};

/// What a shell makes of an end by SIGINT.
const INTERRUPTED: i32 = 130;

pub async fn login(client: &Client, flags: LoginFlags) -> anyhow::Result<i32> {
    let server = server(flags.server.as_deref());
    let username = match flags.username {
        Some(name) => name,
        None => ask("Username: ", true).await?,
    };
    let password = if flags.password_stdin {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("read the password")?;
        text.trim_end_matches(['\n', '\r']).to_owned()
    } else if let Some(password) = flags.password {
        eprintln!("WARNING! Using --password via the CLI is insecure. Use --password-stdin.");
        password
    } else {
        ask("Password: ", false).await?
    };
    if username.is_empty() || password.is_empty() {
        bail!("login: user name and password must not be empty");
    }
    let config = Config::read()?;
    let body = json!({ "username": username, "password": password, "serveraddress": server });
    let answer = client.post("/auth", Body::Json(body)).await.context("login")?;
    let token = answer["IdentityToken"].as_str().filter(|token| !token.is_empty());
    let credentials = match token {
        Some(token) => Stored::Identity { username, token: token.to_owned() },
        None => Stored::Password { username, password },
    };
    config.store(&server, &credentials).await?;
    println!("{}", answer["Status"].as_str().unwrap_or("Login Succeeded"));
    Ok(0)
}

pub async fn logout(name: Option<&str>) -> anyhow::Result<i32> {
    let server = server(name);
    let shown = if server == DOCKER_HUB { "docker.io" } else { &server };
    if Config::read()?.erase(&server).await? {
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

/// A line from the terminal. Ctrl-C ends the process, with the terminal as it was.
async fn ask(prompt: &'static str, echo: bool) -> anyhow::Result<String> {
    if !terminal::stdin_is_terminal() {
        bail!("login: there is no terminal to ask on: use --username and --password-stdin");
    }
    let hidden = if echo { None } else { Some(Mode::hidden().context("hide what is typed")?) };
    // Said when nothing that is typed shows any more.
    eprint!("{prompt}");
    std::io::stderr().flush().context("ask")?;
    let shown = move || {
        if let Some(hidden) = hidden {
            drop(hidden);
            // The newline that was not shown.
            eprintln!();
        }
    };
    let reading = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line).map(|count| (count, line))
    });
    tokio::select! {
        read = reading => {
            shown();
            let (count, line) = read.context("read the answer")?.context("read the answer")?;
            if count == 0 {
                bail!("login: the input ended before an answer");
            }
            Ok(line.trim_end_matches(['\n', '\r']).to_owned())
        }
        _ = tokio::signal::ctrl_c() => {
            shown();
            // The thread that reads cannot be ended.
            std::process::exit(INTERRUPTED)
        }
    }
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
