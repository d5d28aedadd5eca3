//! Images as an archive: a docker-archive that also is an OCI layout, as `docker save` has written them since 25.
//!
//! ```text
//!  blobs/sha256/HEX …   manifests, configs, layers as they were distributed
//!  index.json           one entry per name (containerd's and OCI's annotations)
//!  manifest.json        Docker's list: config, tags, layers of each image
//!  oci-layout
//! ```
//! Streamed, and the same bytes for the same images and names: sorted, without times or owners. Layers keep their
//! compression, so what is loaded again has the digests it had.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use hyper_erofs::Timestamp;
use hyper_erofs::tar::write::{END, encode, padding_of};
use hyper_erofs::tar::{Header, HeaderKind};
use serde_json::json;
use tokio::sync::mpsc;

use super::oci::IMAGE_NAME;
use crate::digest::Digest;
use crate::error::Error;
use crate::reference::Reference;
use crate::spec::{Descriptor, Index, OCI_INDEX, REF_NAME};
use crate::store::layout::{Layout, OCI_LAYOUT};
use crate::store::{Catalog, Document, Held, Inner, Lease, blocking};

/// Bytes sent at once, and pieces between the writer and whoever sends them.
const PIECE: usize = 256 << 10;
const PIECES: usize = 4;

/// One image of the archive and the names it gets there.
struct Item {
    held: Held,
    names: BTreeSet<Reference>,
}

/// All that an archive has; kept from removal until it is written.
struct Plan {
    layout: Layout,
    items: Vec<Item>,
    documents: BTreeMap<Digest, Document>,
    blobs: BTreeMap<Digest, u64>,
    _lease: Lease,
}

/// Plans an archive of `names` and starts to write it.
pub(crate) async fn save(
    inner: Arc<Inner>,
    names: Vec<String>,
) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static, Error> {
    let plan = blocking(move || plan(&inner, &names)).await?;
    let (sender, receiver) = mpsc::channel(PIECES);
    // Ends with the archive, or at the next piece after the receiver went away.
    tokio::task::spawn_blocking(move || {
        let mut out = Pieces { sender, current: BytesMut::new() };
        if let Err(error) = plan.write(&mut out).and_then(|()| out.flush())
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            tracing::warn!(%error, "an archive could not be written");
            // Whoever reads it must not take what came for all of it.
            let _ = out.sender.blocking_send(Err(error));
        }
    });
    Ok(futures_util::stream::unfold(receiver, async |mut receiver| {
        let piece = receiver.recv().await?;
        Some((piece, receiver))
    }))
}

fn plan(inner: &Inner, names: &[String]) -> Result<Plan, Error> {
    let (catalog, lease) = (inner.catalog(), inner.leases.lease());
    let mut items: Vec<Item> = Vec::new();
    for name in names {
        for (entry, tag) in meant(&catalog, name)? {
            let held = Held::of(&inner.layout, &catalog, entry, &lease)?;
            match items.iter_mut().find(|item| item.held.top.digest == held.top.digest) {
                Some(item) => item.names.extend(tag),
                None => items.push(Item { held, names: tag.into_iter().collect() }),
            }
        }
    }
    items.sort_by_key(|item| item.held.top.digest);
    let mut documents = BTreeMap::new();
    let mut blobs = BTreeMap::new();
    for Item { held, .. } in &items {
        blobs.extend(held.blobs.iter().map(|(digest, size)| (*digest, *size)));
        for (attached, document) in &held.referrers {
            blobs.extend(attached.parts().iter().map(|part| (part.digest, part.size)));
            documents.insert(document.digest, document.clone());
        }
        for document in held.children.iter().chain([&held.top]) {
            documents.insert(document.digest, document.clone());
        }
    }
    Ok(Plan { layout: inner.layout.clone(), items, documents, blobs, _lease: lease })
}

/// What a name means to `docker save`: a tag; all tags of a repository; an image without its names, if it is an id.
fn meant<'c>(
    catalog: &'c Catalog,
    name: &str,
) -> Result<Vec<(&'c crate::store::Entry, Option<Reference>)>, Error> {
    if let Ok(reference) = name.parse::<Reference>()
        && reference.digest().is_none()
    {
        let wanted = |entry: &&crate::store::Entry| {
            entry.name.as_ref().is_some_and(|name| match reference.tag() {
                Some(_) => *name == reference,
                None => name.tag().is_some() && name.name() == reference.name(),
            })
        };
        let found: Vec<_> = catalog.entries.iter().filter(wanted).collect();
        if !found.is_empty() {
            return Ok(found.into_iter().map(|entry| (entry, entry.name.clone())).collect());
        }
    }
    let id = catalog.resolve(name)?;
    let missing = || Error::NoSuchImage { name: name.to_owned() };
    Ok(vec![(catalog.entries_of(&id).last().ok_or_else(missing)?, None)])
}

impl Plan {
    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        directory(out, "blobs/")?;
        directory(out, "blobs/sha256/")?;
        let digests: BTreeSet<&Digest> = self.documents.keys().chain(self.blobs.keys()).collect();
        for digest in digests {
            let name = blob_name(digest);
            match self.documents.get(digest) {
                Some(document) => file(out, &name, &document.bytes)?,
                None => self.blob(out, digest, &name)?,
            }
        }
        file(out, "index.json", &serde_json::to_vec(&self.index())?)?;
        file(out, "manifest.json", &serde_json::to_vec(&self.manifest())?)?;
        file(out, "oci-layout", OCI_LAYOUT.as_bytes())?;
        out.write_all(&END)
    }

    fn blob(&self, out: &mut impl Write, digest: &Digest, name: &str) -> io::Result<()> {
        let path = self.layout.blob(digest);
        let size = self.blobs.get(digest).copied().unwrap_or(0);
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("read {}: {error}", path.display()))
        };
        let mut blob = File::open(&path).map_err(named)?.take(size);
        head(out, name, HeaderKind::File { size }, 0o644)?;
        let mut piece = vec![0; PIECE];
        let mut left = size;
        while left > 0 {
            let read = blob.read(&mut piece).map_err(named)?;
            if read == 0 {
                return Err(named(io::ErrorKind::UnexpectedEof.into()));
            }
            out.write_all(&piece[..read])?;
            left -= read as u64;
        }
        out.write_all(padding_of(size))
    }

    fn index(&self) -> Index {
        let mut manifests = Vec::new();
        for item in &self.items {
            let top = &item.held.top;
            let names: Vec<Option<&Reference>> = match item.names.len() {
                0 => vec![None],
                _ => item.names.iter().map(Some).collect(),
            };
            for name in names {
                let annotations = name.map_or_else(BTreeMap::new, |name| {
                    let tag = name.tag().unwrap_or_default().to_owned();
                    [(IMAGE_NAME.to_owned(), name.to_string()), (REF_NAME.to_owned(), tag)].into()
                });
                manifests.push(Descriptor {
                    media_type: top.media_type.clone(),
                    digest: top.digest,
                    size: top.bytes.len() as u64,
                    platform: None,
                    artifact_type: None,
                    annotations,
                });
            }
        }
        // As OCI layouts have them: without a name, found by their subject.
        let mut seen = BTreeSet::new();
        let referrers = self.items.iter().flat_map(|item| &item.held.referrers);
        let new = referrers.filter(|(attached, _)| seen.insert(attached.descriptor.digest));
        manifests.extend(new.map(|(attached, _)| attached.descriptor.clone()));
        Index { schema_version: 2, media_type: Some(OCI_INDEX.to_owned()), manifests }
    }

    fn manifest(&self) -> serde_json::Value {
        let item = |item: &Item| {
            let manifest = &item.held.manifest;
            let layers = manifest.layers.iter().map(|layer| blob_name(&layer.digest));
            let tags: Vec<String> = item.names.iter().map(Reference::familiar).collect();
            json!({
                "Config": blob_name(&manifest.config.digest),
                "RepoTags": if tags.is_empty() { json!(null) } else { json!(tags) },
                "Layers": layers.collect::<Vec<_>>(),
            })
        };
        self.items.iter().map(item).collect()
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn directory(out: &mut impl Write, name: &str) -> io::Result<()> {
    head(out, name, HeaderKind::Directory, 0o755)
}

fn file(out: &mut impl Write, name: &str, bytes: &[u8]) -> io::Result<()> {
    let size = bytes.len() as u64;
    head(out, name, HeaderKind::File { size }, 0o644)?;
    out.write_all(bytes)?;
    out.write_all(padding_of(size))
}

fn head(out: &mut impl Write, name: &str, kind: HeaderKind, mode: u16) -> io::Result<()> {
    let header = Header {
        path: name.as_bytes().to_vec(),
        kind,
        mode,
        uid: 0,
        gid: 0,
        mtime: Timestamp { seconds: 0, nanoseconds: 0 },
        xattrs: Vec::new(),
    };
    out.write_all(&encode(&header))
}

/// A writer whose bytes are somebody else's stream.
struct Pieces {
    sender: mpsc::Sender<io::Result<Bytes>>,
    current: BytesMut,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.current.extend_from_slice(bytes);
        if self.current.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.current.is_empty() {
            return Ok(());
        }
        let piece = self.current.split().freeze();
        self.sender.blocking_send(Ok(piece)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
