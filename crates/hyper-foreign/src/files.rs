//! The container's files for `cp`, `export`, `diff` and `commit`, by the code that agents use.
//!
//! ```text
//!  read:   thread: walks the tree, writes tar ──pipe──► frames ──► client
//!  write:  client ──frames──► pipe ──► thread: reads tar, makes files
//! ```
//! Paths are looked up below the root of the first process while it runs (with what is mounted
//! there), else below the merged tree; descriptors only, so that no link leads out of it. A client
//! that is gone closes the pipe, which ends the thread.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use hyper_files::failure::Outcome;
use hyper_files::{Omitted, changes, path, tree, unpack};
use hyper_link::message::{Failure, WriteFiles};
use hyper_stdio::attach::{FrameWriter, write_answer};
use hyper_stdio::transfer::{FOREVER, finish, pump_in, pump_out};
use hyper_task::pod::{Answer, FaultKind, FileFault, PathStat, ReadFiles};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

use crate::container::Container;
use crate::root::Root;

/// Where things are: what is seen from inside, the merged root, image and upper.
#[derive(Debug, Clone)]
struct Places {
    inside: PathBuf,
    merged: PathBuf,
    image: PathBuf,
    upper: PathBuf,
}

async fn places(container: &Container) -> Result<Places, FileFault> {
    let fault = |error: &crate::ForeignError| FileFault {
        kind: FaultKind::Conflict,
        message: crate::serve::chain(error),
    };
    let describe = |root: &Root| (root.at.clone(), root.image().to_owned(), root.upper.clone());
    let (merged, image, upper) = container.with_root(describe).await.map_err(|e| fault(&e))?;
    let inside = match container.running() {
        Some(pid) if container.foreign.runtime.shares_kernel() => {
            PathBuf::from(format!("/proc/{pid}/root"))
        }
        _ => merged.clone(),
    };
    Ok(Places { inside, merged, image, upper })
}

/// Answers [`hyper_task::pod::Call::Stat`].
pub(crate) async fn stat(container: &Container, path: String) -> Answer {
    let places = match places(container).await {
        Ok(places) => places,
        Err(fault) => return Answer::Fault(fault),
    };
    let looked = work(move || path::stat(&path::root(&places.inside)?, &path)).await;
    match looked {
        Ok(found) => Answer::Path(PathStat {
            mode: found.mode,
            size: found.size,
            mtime_ns: found.mtime_ns,
            target: found.target,
        }),
        Err(fault) => Answer::Fault(fault),
    }
}

/// Carries out [`hyper_task::pod::Call::Read`].
pub(crate) async fn read(
    container: &Container,
    what: ReadFiles,
    mut stream: UnixStream,
) -> io::Result<()> {
    let places = match places(container).await {
        Ok(places) => places,
        Err(fault) => return write_answer(&mut stream, &Answer::Fault(fault)).await,
    };
    write_answer(&mut stream, &Answer::Transferring).await?;
    let (client, to_client) = stream.into_split();
    let mut writer = FrameWriter::new(to_client);
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    let source = pipe::Receiver::from_owned_fd(ours)?;
    let walking = work(move || walk(&places, &what, theirs.into()));
    let walking = tokio::spawn(walking);
    // Dropped on the way out, the pipe ends the walk.
    let sent = pump_out(source, &mut writer, client, FOREVER).await;
    sent?;
    let outcome = walking.await.map_err(io::Error::other)?;
    finish(&mut writer, outcome).await
}

/// A line about what the archive could not hold, if there is something.
fn walk(places: &Places, what: &ReadFiles, out: File) -> Outcome<Option<String>> {
    let layers = || {
        Ok(changes::Layers { upper: path::root(&places.upper)?, image: path::root(&places.image)? })
    };
    let omitted = match what {
        ReadFiles::Tree { path } => tree::write(&path::root(&places.inside)?, path, out),
        ReadFiles::Root => tree::write_root(&path::root(&places.merged)?, out),
        ReadFiles::Changes => changes::write_layer(&layers()?, out),
        ReadFiles::ChangeList => changes::write_list(&layers()?, out).map(|()| Omitted::default()),
    }?;
    Ok(omitted.note())
}

/// Carries out [`hyper_task::pod::Call::Write`].
pub(crate) async fn write(
    container: &Container,
    path: String,
    keep_directories: bool,
    owner: Option<String>,
    mut stream: UnixStream,
) -> io::Result<()> {
    let places = match places(container).await {
        Ok(places) => places,
        Err(fault) => return write_answer(&mut stream, &Answer::Fault(fault)).await,
    };
    write_answer(&mut stream, &Answer::Transferring).await?;
    let (client, to_client) = stream.into_split();
    let mut writer = FrameWriter::new(to_client);
    let (theirs, ours): (OwnedFd, OwnedFd) = pipe_with(PipeFlags::CLOEXEC)?;
    let mut sink = pipe::Sender::from_owned_fd(ours)?;
    let request =
        WriteFiles { container: container.id(), path, keep_directories, owner, stream: 0 };
    let unpacking =
        work(move || unpack::unpack(path::root(&places.inside)?, &request, File::from(theirs)));
    let mut unpacking = tokio::spawn(unpacking);
    let taken = tokio::select! {
        biased;
        // It has read all there is, or will read no more.
        early = &mut unpacking => {
            let early = early.map_err(io::Error::other)?;
            return finish(&mut writer, early.map(|()| None)).await;
        }
        taken = pump_in(client, &mut sink, FOREVER) => taken,
    };
    // Its end is the archive's.
    drop(sink);
    let outcome = unpacking.await.map_err(io::Error::other)?;
    taken?;
    finish(&mut writer, outcome.map(|()| None)).await
}

/// Blocking work with files.
pub(crate) async fn work<T: Send + 'static>(
    work: impl FnOnce() -> Outcome<T> + Send + 'static,
) -> Result<T, FileFault> {
    let gone = |error: tokio::task::JoinError| FileFault {
        kind: FaultKind::Other,
        message: error.to_string(),
    };
    tokio::task::spawn_blocking(work).await.map_err(gone)?.map_err(fault)
}

fn fault(failure: Failure) -> FileFault {
    FileFault { kind: hyper_pod::fault_kind(failure.kind), message: failure.message }
}
