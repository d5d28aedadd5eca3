//! `POST /images/{name}/push`: one tag, or all tags of a repository.

use axum::http::HeaderMap;
use hyper_engine::Error;
use hyper_image::{Event, LayerState, Platform, Progress, Pushed, Reference};
use serde_json::{Value, json};

use crate::app::App;
use crate::error::{ApiError, ApiResult};
use crate::progress::{Step, respond};
use crate::pull::{auth, status};
use crate::request::Query;

pub(crate) async fn push(app: &App, name: &str, query: &Query, headers: &HeaderMap) -> ApiResult {
    let references = references(app, name, query)?;
    if let Some(platform) = query.text("platform") {
        check_platform(app, &references, platform)?;
    }
    let auth = auth(headers)?;
    let (progress, events) = Progress::channel();
    let engine = app.engine.clone();
    let work = async move {
        let mut pushed = Vec::new();
        for reference in references {
            pushed.push(engine.push(&reference, &auth, progress.clone()).await?);
        }
        Ok::<Vec<Pushed>, Error>(pushed)
    };
    respond(events, work, |_| true, shown).await
}

/// `--platform`: what is here for a name is for one platform, which must be the one asked for.
fn check_platform(app: &App, references: &[Reference], wanted: &str) -> ApiResult<()> {
    let wanted: Platform = serde_json::from_str(wanted)
        .map_err(|e| ApiError::invalid(format!("invalid platform `{wanted}`: {e}")))?;
    for reference in references {
        let name = reference.familiar();
        let here = app.engine.image(&name)?.platform().normalised();
        if here != wanted.normalised() {
            return Err(ApiError::not_found(format!(
                "{name} is here for {here}, not for {}: pull it with --platform first",
                wanted.normalised()
            )));
        }
    }
    Ok(())
}

fn references(app: &App, name: &str, query: &Query) -> ApiResult<Vec<Reference>> {
    let parse = |text: String| -> ApiResult<Reference> {
        text.parse()
            .map_err(|e| ApiError::invalid(format!("invalid reference format `{text}`: {e}")))
    };
    let reference = parse(match query.text("tag") {
        Some(tag) => format!("{name}:{tag}"),
        None => name.to_owned(),
    })?;
    if reference.digest().is_some() {
        return Err(ApiError::invalid("cannot push a digest reference"));
    }
    let tags: Vec<Reference> = app
        .engine
        .images()
        .iter()
        .flat_map(|image| image.repo_tags.iter().filter_map(|tag| tag.parse().ok()))
        .filter(|tag: &Reference| match reference.tag() {
            Some(_) => *tag == reference,
            None => tag.name() == reference.name(),
        })
        .collect();
    if tags.is_empty() {
        let name = reference.familiar();
        let what = if reference.tag().is_some() { "with the tag" } else { "of the repository" };
        return Err(ApiError::not_found(format!("an image does not exist locally {what}: {name}")));
    }
    Ok(tags)
}

fn shown(step: Step<'_, Vec<Pushed>>) -> Vec<Value> {
    let Step::Event(event) = step else { return Vec::new() };
    match event {
        Event::Pushing { reference, layers } => {
            let text = format!("The push refers to repository [{}]", reference.name());
            let mut all = vec![json!({ "status": text })];
            all.extend(layers.iter().map(|layer| status(layer, "Preparing")));
            all
        }
        Event::Layer { digest, state } => {
            let word = match state {
                LayerState::Pending => "Waiting".to_owned(),
                LayerState::Exists => "Layer already exists".to_owned(),
                LayerState::Pushed => "Pushed".to_owned(),
                LayerState::Mounted { from } => format!("Mounted from {from}"),
                LayerState::Pushing { current, total } => {
                    let mut line = status(&digest, "Pushing");
                    line["progressDetail"] = json!({ "current": current, "total": total });
                    return vec![line];
                }
                LayerState::Retrying { after, reason } => {
                    format!("Retrying in {} seconds: {reason}", after.as_secs().max(1))
                }
                _ => return Vec::new(),
            };
            vec![status(&digest, &word)]
        }
        Event::Pushed { reference, digest, size } => {
            let tag = reference.tag().unwrap_or_default();
            vec![
                json!({ "status": format!("{tag}: digest: {digest} size: {size}") }),
                json!({
                    "progressDetail": {},
                    "aux": { "Tag": tag, "Digest": digest.to_string(), "Size": size },
                }),
            ]
        }
        _ => Vec::new(),
    }
}
