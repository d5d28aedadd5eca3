//! `POST /images/create?fromSrc=…`: a root file system's archive as an image, from the body or from an URL.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::{FutureExt as _, Stream, StreamExt as _, TryStreamExt as _};
use hyper_image::{History, ImageConfig, Platform, Progress};
use serde_json::json;
use tokio_util::io::StreamReader;

use crate::app::App;
use crate::error::{ApiError, ApiResult};
use crate::progress::{Step, respond};
use crate::request::Query;
use crate::upload::with_body;

/// Longest wait for the head of an URL's answer.
const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) async fn import(app: &App, source: &str, query: &Query, body: Body) -> ApiResult {
    let wanted = query.new_name().and_then(|name| Ok((name, config(source, query)?)));
    let (name, config) = match wanted {
        Ok(wanted) => wanted,
        Err(error) => return with_body(body, |_| async { Err(error) }).await,
    };
    let engine = app.engine.clone();
    let work = async move |reader| engine.import(reader, config, name.as_ref()).await;
    let work = if source == "-" {
        with_body(body, work).boxed()
    } else {
        // A body is not wanted here, and read all the same. Of a server's answer nothing more is read than is wanted.
        let pieces = with_body(body, |_| fetch(app, source)).await?;
        let reader = StreamReader::new(pieces.boxed());
        work(Box::new(reader)).boxed()
    };
    // No events: the stream ends with the image's id.
    let (_, events) = Progress::channel();
    respond(
        events,
        work,
        |_| true,
        |step| match step {
            Step::Event(_) => Vec::new(),
            Step::Done(image) => vec![json!({ "status": image.id.to_string() })],
        },
    )
    .await
}

fn config(source: &str, query: &Query) -> ApiResult<ImageConfig> {
    let platform = match query.text("platform") {
        Some(text) => text.parse::<Platform>().map_err(|e| ApiError::invalid(e.to_string()))?,
        None => Platform::host(),
    };
    let created = Some(hyper_stdio::rfc3339_nano(hyper_stdio::now_ns()));
    let message = query.text("message").map(str::to_owned);
    let comment = message.unwrap_or_else(|| format!("Imported from {source}"));
    let mut config = ImageConfig {
        created: created.clone(),
        architecture: platform.architecture,
        os: platform.os,
        variant: platform.variant,
        comment: comment.clone(),
        history: vec![History { created, comment, ..History::default() }],
        ..ImageConfig::default()
    };
    hyper_build::change(&mut config.config, &query.all("changes").join("\n"))
        .map_err(|error| ApiError::invalid(error.to_string()))?;
    Ok(config)
}

async fn fetch(
    app: &App,
    source: &str,
) -> ApiResult<impl Stream<Item = std::io::Result<Bytes>> + Send + 'static> {
    let bad = |why: String| ApiError::invalid(format!("cannot import `{source}`: {why}"));
    let Some((scheme @ ("http" | "https"), rest)) = source.split_once("://") else {
        return Err(bad("it is neither `-` nor a http or https URL".to_owned()));
    };
    let host = rest.split('/').next().unwrap_or(rest);
    let host = host.rsplit('@').next().unwrap_or(host);
    let store = app.engine.image_store();
    let client = store.web_client(host).await.map_err(|e| bad(e.chain()))?;
    let asked = tokio::time::timeout(DEADLINE, client.get(source).send()).await;
    let answer = match asked {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(bad(hyper_build::chain(&error.without_url()))),
        Err(_) => return Err(bad(format!("no answer in {} s", DEADLINE.as_secs()))),
    };
    if !answer.status().is_success() {
        return Err(bad(format!("{scheme} status {}", answer.status())));
    }
    Ok(answer.bytes_stream().map_err(std::io::Error::other))
}
