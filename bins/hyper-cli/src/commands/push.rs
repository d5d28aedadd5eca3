//! `push`: an image to a registry, with a bar for each layer.

use anyhow::{Context, bail};
use hyper::Method;

use super::pull::{credentials, show, split};
use crate::arguments::PushFlags;
use crate::client::{Body, Client, quote};

pub async fn push(client: &Client, flags: PushFlags) -> anyhow::Result<i32> {
    let image = &flags.image;
    let (name, tag) = split(image);
    if image.contains('@') {
        bail!("push `{image}`: a digest cannot be pushed: give it a tag first");
    }
    let tag = match (flags.all_tags, image.len() > name.len()) {
        (true, true) => bail!("push `{image}`: --all-tags goes without a tag: use `{name}`"),
        (true, false) => "",
        (false, _) => tag,
    };
    let path = format!("/images/{}/push?tag={}", quote(name).replace("%2F", "/"), quote(tag));
    // The engine wants the header even when there is nothing in it.
    let auth = credentials(name).await?.unwrap_or_else(|| "e30=".to_owned());
    let response = client.send(Method::POST, &path, Body::Auth(auth)).await?;
    show(response, flags.quiet, false).await.with_context(|| format!("push `{image}`"))?;
    if flags.quiet {
        println!("{name}{}{tag}", if tag.is_empty() { "" } else { ":" });
    }
    Ok(0)
}
