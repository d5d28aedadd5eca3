//! `exec`: one more process in a running container.

use anyhow::{Context, bail};
use serde_json::json;

use super::RunFailed;
use super::session::follow_size;
use crate::arguments::ExecFlags;
use crate::client::{Body, Client, quote};
use crate::streams::{self, Wanted};
use crate::terminal::{self, Mode};

pub async fn exec(client: &Client, flags: ExecFlags) -> anyhow::Result<i32> {
    if flags.tty && flags.interactive && !flags.detach && !terminal::stdin_is_terminal() {
        bail!("the input device is not a terminal: leave out -t when piping into a container");
    }
    let mut environment = Vec::new();
    for word in &flags.env {
        environment.extend(crate::arguments::variable(word)?);
    }
    let attach = !flags.detach;
    let mut body = json!({
        "AttachStdin": attach && flags.interactive,
        "AttachStdout": attach,
        "AttachStderr": attach,
        "Tty": flags.tty,
        "Cmd": flags.command,
        "Env": environment,
        "User": flags.user.as_deref().unwrap_or(""),
        "WorkingDir": flags.workdir.as_deref().unwrap_or(""),
        "Privileged": flags.privileged,
    });
    if flags.tty
        && let Some((rows, columns)) = terminal::size()
    {
        body["ConsoleSize"] = json!([rows, columns]);
    }
    if let Some(keys) = &flags.detach_keys {
        body["DetachKeys"] = json!(keys);
    }
    let path = format!("/containers/{}/exec", quote(&flags.container));
    let refused = |error| RunFailed::new("run the command in the container", error);
    let answer = client.post(&path, Body::Json(body)).await?;
    let id = answer["Id"].as_str().context("the engine sent no exec id")?;
    let start = format!("/exec/{id}/start");
    if flags.detach {
        client.post(&start, Body::Json(json!({"Detach": true}))).await.map_err(refused)?;
        return Ok(0);
    }
    let options = json!({"Detach": false, "Tty": flags.tty});
    let hijacked = client.hijack(&start, Body::Json(options)).await.map_err(refused)?;
    let raw = if flags.tty && flags.interactive { Mode::raw() } else { None };
    let size = flags.tty.then(|| follow_size(client, format!("/exec/{id}")));
    let wanted = Wanted { stdin: flags.interactive, stdout: true, stderr: true };
    let copied = streams::copy(hijacked, wanted).await;
    drop((size, raw));
    copied?;
    let inspect = client.get(&format!("/exec/{id}/json")).await?;
    if inspect["Running"] == true {
        return Ok(0); // the user detached
    }
    let code = inspect["ExitCode"].as_i64().context("the engine sent no exit code")?;
    Ok(i32::try_from(code).unwrap_or(1))
}
