//! `exec`: one more process in a running container, or beside it in its guest.

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::RunFailed;
use super::session::follow_size;
use crate::arguments::ExecFlags;
use crate::client::{Body, Client, quote};
use crate::streams::{self, Wanted};
use crate::terminal::{self, Mode};

pub async fn exec(client: &Client, flags: ExecFlags) -> anyhow::Result<i32> {
    let attach = !flags.detach;
    let mut body = json!({
        "AttachStdin": attach && flags.interactive,
        "AttachStdout": attach,
        "AttachStderr": attach,
        "Tty": flags.tty,
        "Cmd": flags.command,
        "Env": environment(&flags)?,
        "User": flags.user.as_deref().unwrap_or(""),
        "WorkingDir": flags.workdir.as_deref().unwrap_or(""),
        "Privileged": flags.privileged,
    });
    if let Some((rows, columns)) = size(&flags) {
        body["ConsoleSize"] = json!([rows, columns]);
    }
    if let Some(keys) = &flags.detach_keys {
        body["DetachKeys"] = json!(keys);
    }
    let path = format!("/containers/{}/exec", quote(&flags.container));
    carry_out(client, &flags, &path, body).await
}

/// In the guest of the pod `flags.container`, with the programs of its container `member`.
pub async fn exec_in_guest(
    client: &Client,
    member: Option<&str>,
    flags: ExecFlags,
) -> anyhow::Result<i32> {
    if flags.privileged {
        bail!("--privileged: with --guest it is anyway, leave it out");
    }
    let attach = !flags.detach;
    let body = json!({
        "container": member,
        "command": flags.command,
        "environment": environment(&flags)?,
        "user": flags.user,
        "working_directory": flags.workdir,
        "terminal": flags.tty,
        "terminal_size": size(&flags),
        "stdin": attach && flags.interactive,
        "output": attach,
    });
    let path = format!("/hyper/v1/pods/{}/exec", quote(&flags.container));
    carry_out(client, &flags, &path, body).await
}

fn environment(flags: &ExecFlags) -> anyhow::Result<Vec<String>> {
    let mut environment = Vec::new();
    for word in &flags.env {
        environment.extend(crate::arguments::variable(word)?);
    }
    Ok(environment)
}

/// Rows and columns, of an exec with a terminal.
fn size(flags: &ExecFlags) -> Option<(u16, u16)> {
    if flags.tty { terminal::size() } else { None }
}

/// Makes the exec by a POST of `body` to `path`, and runs it.
async fn carry_out(
    client: &Client,
    flags: &ExecFlags,
    path: &str,
    body: Value,
) -> anyhow::Result<i32> {
    if flags.tty && flags.interactive && !flags.detach && !terminal::stdin_is_terminal() {
        bail!("the input device is not a terminal: leave out -t when piping into a container");
    }
    let refused = |error| RunFailed::new("run the command in the container", error);
    let answer = client.post(path, Body::Json(body)).await?;
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
