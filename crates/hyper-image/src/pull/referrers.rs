//! The referrers of what was pulled: asked for once the image is there, and never a reason for a pull to fail.

use std::sync::Arc;

use super::Context;
use crate::digest::Digest;
use crate::error::Error;
use crate::progress::Event;
use crate::spec::Descriptor;
use crate::store::blocking;
use crate::store::referrers::{Attached, MAX_BYTES, MAX_PARTS, MAX_REFERRERS};

/// Fetches the referrers of some subjects and attaches them.
pub(super) async fn fetch(context: &Context, subjects: &[Digest]) {
    for subject in subjects {
        if let Err(error) = fetch_of(context, subject).await {
            warn(context, format!("the referrers of {subject} are not kept: {}", error.chain()));
        }
    }
}

async fn fetch_of(context: &Context, subject: &Digest) -> Result<(), Error> {
    let listed = context.repository.referrers(subject).await?;
    let mut left = MAX_BYTES;
    let mut found = Vec::new();
    if listed.len() > MAX_REFERRERS {
        let text = format!("{subject} has {} referrers, {MAX_REFERRERS} are kept", listed.len());
        warn(context, text);
    }
    for entry in listed.iter().take(MAX_REFERRERS) {
        match fetch_one(context, subject, entry, &mut left).await {
            Ok(attached) => found.push(attached),
            Err(error) => {
                let digest = entry.digest;
                warn(context, format!("referrer {digest} is not kept: {}", error.chain()));
            }
        }
    }
    let (inner, lease) = (Arc::clone(&context.inner), Arc::clone(&context.lease));
    blocking(move || {
        let _lease = lease;
        inner.attach(found)
    })
    .await
}

async fn fetch_one(
    context: &Context,
    subject: &Digest,
    entry: &Descriptor,
    left: &mut u64,
) -> Result<Attached, Error> {
    context.lease.keep(entry.digest);
    let bytes = match super::stored_document(context, entry.digest).await? {
        Some(bytes) => bytes,
        None => context.repository.manifest(&entry.digest.to_string()).await?.bytes,
    };
    let refused = |reason: String| Error::NotAnImage { what: entry.digest.to_string(), reason };
    let attached = Attached::parse(&bytes, &entry.media_type)
        .filter(|attached| attached.subject == *subject)
        .ok_or_else(|| refused(format!("it is listed as a referrer and is none of {subject}")))?;
    let parts = attached.parts();
    let size = parts.iter().map(|part| part.size).fold(0, u64::saturating_add);
    if parts.len() > MAX_PARTS || size > *left {
        return Err(refused(format!(
            "it has {} parts of {size} bytes; {MAX_PARTS} parts, and {MAX_BYTES} bytes for all of \
             an image's, are the most",
            parts.len()
        )));
    }
    *left -= size;
    for part in parts {
        context.lease.keep(part.digest);
        let (inner, digest, wanted) = (Arc::clone(&context.inner), part.digest, part.size);
        let there = blocking(move || {
            let path = inner.layout.blob(&digest);
            Ok(std::fs::metadata(path).is_ok_and(|found| found.len() == wanted))
        })
        .await?;
        if there {
            continue;
        }
        let bytes = context.repository.whole_blob(part.digest, part.size, MAX_BYTES).await?;
        write(context, bytes).await?;
    }
    write(context, bytes).await?;
    Ok(attached)
}

async fn write(context: &Context, bytes: Vec<u8>) -> Result<(), Error> {
    let inner = Arc::clone(&context.inner);
    blocking(move || inner.layout.write_blob(&bytes).map(drop)).await
}

fn warn(context: &Context, text: String) {
    tracing::warn!(text, "referrers");
    context.progress.send(Event::Warning { text });
}
