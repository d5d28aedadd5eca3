//! `cp`: files between a container and here, by Docker's rules for what a name means.
//!
//! | destination | source file | source directory `d` | `d/.` |
//! | --- | --- | --- | --- |
//! | a directory | into it | into it as `d` | its content into it |
//! | a file | replaces it | refused | refused |
//! | not there | is made | is made as a copy of `d` | the same |
//! | not there, with `/` at its end | refused | is made | is made |

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Method;
use serde::Deserialize;
use tokio::sync::mpsc;

use crate::arguments::CopyFlags;
use crate::client::{Body, Client, ClientError, quote};
use crate::{output, terminal};

/// Go's `os.FileMode` bits.
const DIRECTORY: u32 = 1 << 31;
const SYMLINK: u32 = 1 << 27;
/// Pieces between a thread that blocks and the connection.
const PIECES: usize = 8;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stat {
    mode: u32,
    link_target: String,
}

impl Stat {
    fn is(&self, bit: u32) -> bool {
        self.mode & bit != 0
    }
}

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum End<'a> {
    Container { name: &'a str, path: &'a str },
    Local(&'a str),
    Stream,
}

impl<'a> End<'a> {
    fn parse(text: &'a str) -> Self {
        match text.split_once(':') {
            _ if text == "-" => Self::Stream,
            // `./a:b` and `/a:b` are local.
            Some((name, path))
                if !name.is_empty() && !name.contains('/') && !name.starts_with('.') =>
            {
                Self::Container { name, path }
            }
            _ => Self::Local(text),
        }
    }
}

pub async fn copy(client: &Client, flags: CopyFlags) -> anyhow::Result<i32> {
    let (from, to) = (End::parse(&flags.source), End::parse(&flags.destination));
    let bytes = match (&from, &to) {
        (End::Container { name, path }, End::Stream) => {
            if terminal::stdout_is_terminal() {
                bail!("refusing to write an archive to a terminal: redirect it");
            }
            let path = followed(client, name, path, flags.follow_link).await?;
            download(client, name, &path, |mut tar| {
                std::io::copy(&mut tar, &mut std::io::stdout().lock()).context("write the archive")
            })
            .await?;
            return Ok(0);
        }
        (End::Container { name, path }, End::Local(to)) => {
            let path = followed(client, name, path, flags.follow_link).await?;
            let stat = stat(client, name, &path).await?.with_context(|| missing(name, &path))?;
            let (is_directory, to, archive) = (stat.is(DIRECTORY), (*to).to_owned(), flags.archive);
            let inner = path.clone();
            download(client, name, &path, move |tar| {
                unpack(tar, &inner, is_directory, &to, archive)
            })
            .await?
        }
        (End::Stream, End::Container { name, path }) => {
            let path = resolved(client, name, path).await?;
            upload(client, name, &path, flags.archive, |out| {
                std::io::copy(&mut std::io::stdin().lock(), out).context("read the archive")
            })
            .await?;
            return Ok(0);
        }
        (End::Local(from), End::Container { name, path }) => {
            let plan = plan(client, name, path, from, flags.follow_link).await?;
            let (source, entry) = (plan.source.clone(), plan.entry.clone());
            upload(client, name, &plan.directory, flags.archive, move |out| {
                pack(&source, &entry, out)
            })
            .await?
        }
        (End::Container { .. }, End::Container { .. }) => {
            bail!("copying between containers is not supported")
        }
        _ => bail!("one of source and destination must be CONTAINER:PATH"),
    };
    if !flags.quiet {
        let size = output::size(i64::try_from(bytes).unwrap_or(i64::MAX));
        eprintln!("Successfully copied {size} to {}", flags.destination);
    }
    Ok(0)
}

/// What is at a path; `None` if nothing is.
async fn stat(client: &Client, container: &str, path: &str) -> anyhow::Result<Option<Stat>> {
    let request = format!("/containers/{}/archive?path={}", quote(container), quote(path));
    let answer = match client.send(Method::HEAD, &request, Body::None).await {
        Ok(answer) => answer,
        // The answer to HEAD has no text: what is asked again tells why.
        Err(ClientError::Refused { status, .. }) if status == hyper::StatusCode::NOT_FOUND => {
            client.get(&format!("/containers/{}/json", quote(container))).await?;
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    let header = answer.headers().get("x-docker-container-path-stat");
    let text = STANDARD.decode(header.context("the engine did not say what is there")?)?;
    Ok(Some(serde_json::from_slice(&text).context("the engine's description of the path")?))
}

fn missing(container: &str, path: &str) -> String {
    format!("Could not find the file {path} in container {container}")
}

/// With `follow`, where a link at the end of a source leads.
async fn followed(
    client: &Client,
    container: &str,
    path: &str,
    follow: bool,
) -> anyhow::Result<String> {
    if follow
        && let Some(found) = stat(client, container, path).await?
        && found.is(SYMLINK)
    {
        return Ok(found.link_target);
    }
    Ok(path.to_owned())
}

/// A destination, with a link at its end followed.
async fn resolved(client: &Client, container: &str, path: &str) -> anyhow::Result<String> {
    followed(client, container, path, true).await
}

/// Where something local goes in a container.
struct Plan {
    source: PathBuf,
    /// Existing directory in the container.
    directory: String,
    /// First part of the names of all entries; `.`: none.
    entry: String,
}

async fn plan(
    client: &Client,
    container: &str,
    to: &str,
    from: &str,
    follow: bool,
) -> anyhow::Result<Plan> {
    let mut source = PathBuf::from(from);
    if follow {
        source = source.canonicalize().with_context(|| format!("find `{from}`"))?;
    }
    let metadata = source.symlink_metadata().with_context(|| format!("look at `{from}`"))?;
    let whole = content_only(from);
    let name = match source.canonicalize().unwrap_or_else(|_| source.clone()).file_name() {
        Some(name) if !whole => {
            // The name as it was given, not that of a link's target.
            source.file_name().unwrap_or(name).to_string_lossy().into_owned()
        }
        _ => ".".to_owned(),
    };
    let to = resolved(client, container, to).await?;
    match stat(client, container, &to).await? {
        Some(found) if found.is(DIRECTORY) => {
            Ok(Plan { source, directory: to, entry: if whole { ".".to_owned() } else { name } })
        }
        Some(_) if metadata.is_dir() || to.ends_with('/') => {
            bail!("cannot copy a directory over the file {container}:{to}")
        }
        None if to.ends_with('/') && !metadata.is_dir() => {
            bail!("no such directory: {container}:{to}")
        }
        _ => {
            let clean = to.trim_end_matches("/.").trim_end_matches('/');
            let (directory, entry) = clean.rsplit_once('/').unwrap_or(("", clean));
            let directory = format!("{directory}/");
            Ok(Plan { source, directory, entry: entry.to_owned() })
        }
    }
}

fn content_only(path: &str) -> bool {
    path == "." || path.ends_with("/.")
}

/// Writes a local file or directory as an archive; returns its bytes.
fn pack(source: &Path, entry: &str, out: &mut Sender) -> anyhow::Result<u64> {
    let mut builder = tar::Builder::new(out);
    builder.follow_symlinks(false);
    let named = || format!("read `{}`", source.display());
    if source.symlink_metadata().with_context(named)?.is_dir() {
        builder.append_dir_all(entry, source).with_context(named)?;
    } else {
        builder.append_path_with_name(source, entry).with_context(named)?;
    }
    Ok(builder.into_inner().context("send the archive")?.sent)
}

/// Puts an archive of `path` where `to` says.
fn unpack(
    tar: Receiver,
    path: &str,
    is_directory: bool,
    to: &str,
    archive: bool,
) -> anyhow::Result<u64> {
    let target = Path::new(to);
    let mut tar = tar::Archive::new(tar);
    tar.set_preserve_permissions(true);
    tar.set_preserve_mtime(true);
    tar.set_preserve_ownerships(archive);
    tar.set_overwrite(true);
    let exists = target.metadata();
    let is_there = exists.as_ref().is_ok_and(std::fs::Metadata::is_dir);
    if is_there {
        tar.unpack(target).with_context(|| format!("write to `{to}`"))?;
        return Ok(tar.into_inner().received);
    }
    if is_directory && exists.is_ok() {
        bail!("cannot copy a directory over the file `{to}`");
    }
    if !is_directory && to.ends_with('/') {
        bail!("no such directory: `{to}`");
    }
    let name = target.file_name().with_context(|| format!("`{to}` has no name"))?;
    let parent = match target.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let target = parent.join(name);
    // Beside it, under another name first: the archive's names are the container's.
    let aside = tempfile::Builder::new().prefix(".hyper-cp-").tempdir_in(parent);
    let aside = aside.with_context(|| format!("write to `{}`", parent.display()))?;
    tar.unpack(aside.path()).with_context(|| format!("write to `{to}`"))?;
    let whole = content_only(path) || path.trim_end_matches('/').is_empty();
    let made = if whole {
        std::fs::create_dir(&target).and_then(|()| {
            for entry in std::fs::read_dir(aside.path())? {
                let entry = entry?;
                std::fs::rename(entry.path(), target.join(entry.file_name()))?;
            }
            Ok(())
        })
    } else {
        match std::fs::read_dir(aside.path()).map(|mut entries| entries.next()) {
            Ok(Some(Ok(entry))) => std::fs::rename(entry.path(), &target),
            Ok(Some(Err(error))) | Err(error) => Err(error),
            Ok(None) => bail!("the engine sent an empty archive"),
        }
    };
    made.with_context(|| format!("write to `{to}`"))?;
    Ok(tar.into_inner().received)
}

/// Sends an archive that `write` makes on a thread of its own.
async fn upload(
    client: &Client,
    container: &str,
    directory: &str,
    as_user: bool,
    write: impl FnOnce(&mut Sender) -> anyhow::Result<u64> + Send + 'static,
) -> anyhow::Result<u64> {
    let (sender, chunks) = mpsc::channel(PIECES);
    let writing = std::thread::spawn(move || write(&mut Sender { sender, sent: 0 }));
    let request = format!(
        "/containers/{}/archive?path={}&noOverwriteDirNonDir=true&copyUIDGID={as_user}",
        quote(container),
        quote(directory)
    );
    let sent = client.send(Method::PUT, &request, Body::Tar(chunks)).await;
    let written = writing.join().map_err(|_| anyhow::anyhow!("making the archive failed"))?;
    // The engine's reason says more than a broken pipe.
    sent?;
    written
}

/// Gives an archive to `read` on a thread of its own.
pub async fn download<T: Send + 'static>(
    client: &Client,
    container: &str,
    path: &str,
    read: impl FnOnce(Receiver) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let request = format!("/containers/{}/archive?path={}", quote(container), quote(path));
    stream(client, &request, read).await
}

/// The same for the answer to any request.
pub async fn stream<T: Send + 'static>(
    client: &Client,
    request: &str,
    read: impl FnOnce(Receiver) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let mut body = client.send(Method::GET, request, Body::None).await?.into_body();
    let (sender, receiver) = mpsc::channel(PIECES);
    let reading =
        std::thread::spawn(move || read(Receiver { receiver, current: Bytes::new(), received: 0 }));
    let mut broken = None;
    while let Some(frame) = body.frame().await {
        let piece = match frame {
            Ok(frame) => frame.into_data().unwrap_or_default(),
            Err(error) => {
                broken = Some(error);
                break;
            }
        };
        if sender.send(piece).await.is_err() {
            break;
        }
    }
    drop(sender);
    let done = reading.join().map_err(|_| anyhow::anyhow!("reading the archive failed"))?;
    match broken {
        Some(error) => Err(error).context("the engine broke the archive off; its log says why"),
        None => done,
    }
}

/// The writing end, for a thread that blocks.
#[derive(Debug)]
struct Sender {
    sender: mpsc::Sender<Bytes>,
    sent: u64,
}

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let gone = |_| std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        self.sender.blocking_send(Bytes::copy_from_slice(bytes)).map_err(gone)?;
        self.sent += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The reading end.
#[derive(Debug)]
pub struct Receiver {
    receiver: mpsc::Receiver<Bytes>,
    current: Bytes,
    received: u64,
}

impl Read for Receiver {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.current = piece,
                None => return Ok(0),
            }
        }
        let amount = self.current.len().min(buffer.len());
        buffer[..amount].copy_from_slice(&self.current.split_to(amount));
        self.received += amount as u64;
        Ok(amount)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn ends() {
        let container = |name, path| End::Container { name, path };
        assert_eq!(End::parse("web:/a:b"), container("web", "/a:b"));
        assert_eq!(End::parse("-"), End::Stream);
        for local in ["/a:b", "./a:b", "a", "../x:y"] {
            assert_eq!(End::parse(local), End::Local(local));
        }
    }
}
