//! `POST /commit`: an image of what a container changed.

use std::collections::BTreeMap;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use hyper_engine::CommitOptions;
use hyper_image::ContainerConfig;
use serde_json::{Value, json};

use crate::app::App;
use crate::error::{ApiError, ApiResult};
use crate::request::{self, Query};

/// Most instructions of one request.
const MAX_CHANGES: usize = 1000;

pub(crate) async fn commit(State(app): State<App>, query: Query, body: Body) -> ApiResult {
    let container =
        query.text("container").ok_or_else(|| ApiError::invalid("container is missing"))?;
    let name = query.new_name()?;
    let own = app.engine.commit_config(container)?;
    let mut config = match request::json_or_none::<Value>(body).await? {
        None | Some(Value::Null) => own,
        Some(asked) => {
            let asked = serde_json::from_value(asked)
                .map_err(|e| ApiError::invalid(format!("invalid config: {e}")))?;
            merged(asked, own)
        }
    };
    let changes = query.all("changes");
    if changes.len() > MAX_CHANGES {
        return Err(ApiError::invalid(format!("more than {MAX_CHANGES} changes")));
    }
    hyper_build::change(&mut config, &changes.join("\n"))
        .map_err(|error| ApiError::invalid(error.to_string()))?;
    let options = CommitOptions {
        name,
        author: query.text("author").unwrap_or_default().to_owned(),
        comment: query.text("comment").unwrap_or_default().to_owned(),
        config: Some(config),
        pause: query.flag_or("pause", true),
    };
    let made = app.engine.commit(container, options).await?;
    let mut answer = json!({ "Id": made.id.to_string() });
    // Docker has no place for it; its client takes no notice.
    if let Some(note) = made.note {
        answer["Warnings"] = json!([note]);
    }
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

/// What the client asks for, with the container's own where it asks for nothing.
fn merged(mut asked: ContainerConfig, own: ContainerConfig) -> ContainerConfig {
    if asked.entrypoint.is_empty() {
        if asked.cmd.is_empty() {
            asked.cmd = own.cmd;
        }
        asked.entrypoint = own.entrypoint;
    }
    for (asked, own) in [(&mut asked.user, own.user), (&mut asked.working_dir, own.working_dir)] {
        if asked.is_empty() {
            *asked = own;
        }
    }
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    for entry in own.env {
        if !asked.env.iter().any(|known| name(known) == name(&entry)) {
            asked.env.push(entry);
        }
    }
    asked.stop_signal = asked.stop_signal.or(own.stop_signal);
    asked.healthcheck = asked.healthcheck.or(own.healthcheck);
    asked.exposed_ports.extend(own.exposed_ports);
    asked.volumes.extend(own.volumes);
    let labels: BTreeMap<String, String> = std::mem::take(&mut asked.labels);
    asked.labels = own.labels;
    asked.labels.extend(labels);
    asked
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn what_is_not_asked_for_is_the_containers() {
        let config = |value| serde_json::from_value::<ContainerConfig>(value).unwrap();
        let own = json!({ "Cmd": ["a"], "Entrypoint": ["e"], "Env": ["A=1", "B=2"], "User": "u",
            "Labels": { "x": "1", "y": "2" }, "ExposedPorts": { "80/tcp": {} } });
        let both = merged(
            config(json!({ "Env": ["B=3"], "Labels": { "x": "9" }, "WorkingDir": "/w" })),
            config(own.clone()),
        );
        assert_eq!((both.cmd, both.entrypoint), (vec!["a".to_owned()], vec!["e".to_owned()]));
        assert_eq!(both.env, ["B=3", "A=1"]);
        assert_eq!((both.user.as_str(), both.working_dir.as_str()), ("u", "/w"));
        assert_eq!((both.labels["x"].as_str(), both.labels["y"].as_str()), ("9", "2"));
        assert!(both.exposed_ports.contains_key("80/tcp"));
        // A new entry point is not given the old command.
        let new = merged(config(json!({ "Entrypoint": ["n"] })), config(own));
        assert!(new.cmd.is_empty());
    }
}
