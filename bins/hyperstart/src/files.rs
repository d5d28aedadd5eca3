//! A container's files for `cp`, `export`, `diff` and `commit`, read and written in its guest.
//!
//! ```text
//!  stream ◄── pump ◄── pipe ◄── child: walks the root, writes tar      (tree, changes, pack)
//!  stream ──► pump ──► pipe ──► child: reads tar, makes files          (unpack)
//! ```
//! The work is done in a child: disks may be slow, directories huge. For paths the child enters the
//! mount namespace of the container's first process, whose root is the container's root: no link
//! in it leads out of it, and what is mounted there is seen. What was changed is read from the
//! upper directory of the overlay, through descriptors, never following a link.
//!
//! Bytes flow with the stream's credit: a supervisor that does not read stops the child. A pipe
//! that is closed ends the child at its next read or write.

use std::{fs::File, io::Write as _, os::fd::OwnedFd};

use hyper_files::{MAX_DEPTH, Omitted, changes, path, tree, unpack};
use hyper_link::{
    AgentLink, StreamReader, StreamWriter,
    message::{Failure, FailureKind, PathStat, ReadFiles, WriteFiles},
};
use rustix::{
    fs::Mode,
    pipe::{PipeFlags, pipe_with},
    process::{Pid, PidfdFlags, Resource, Rlimit, pidfd_open, prlimit, umask},
    thread::{ThreadNameSpaceType, move_into_thread_name_spaces},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};

use crate::{
    carrier::Descriptor,
    container::{Directories, Helper, no_streams},
    failure::{Doing as _, Outcome, failure, invalid},
};

/// Bytes taken at a time.
const BLOCK: usize = 64 << 10;
/// Longest answer of a child that looks at one path.
const MAX_STAT: u64 = 64 << 10;
/// Descriptors of a child: two for each level of a walk.
const MAX_FDS: u64 = 4 * MAX_DEPTH as u64;

/// What is behind `path` in the container whose first process is `first`.
pub(crate) async fn stat(first: Pid, path: &str) -> Outcome<PathStat> {
    let (ours, theirs) = pipe()?;
    let helper = Helper::start([null()?, theirs, null()?], || {
        enter(first)?;
        let PathStat { mode, size, mtime_ns, target } = path::stat(&path::root("/")?, path)?;
        let text = format!("{mode} {size} {mtime_ns} {target}");
        stdout()?.write_all(text.as_bytes()).doing(|| format!("describe {path}"))
    })?;
    let mut text = Vec::new();
    let answer = Descriptor::watching(ours, Interest::READABLE).doing(|| "watch".to_owned())?;
    answer.take(MAX_STAT).read_to_end(&mut text).await.doing(|| format!("look at {path}"))?;
    helper.finished().await?;
    let text = String::from_utf8_lossy(&text);
    let mut fields = text.splitn(4, ' ');
    let mut described = || {
        Some(PathStat {
            mode: fields.next()?.parse().ok()?,
            size: fields.next()?.parse().ok()?,
            mtime_ns: fields.next()?.parse().ok()?,
            target: fields.next()?.to_owned(),
        })
    };
    described()
        .ok_or_else(|| failure(FailureKind::Internal, format!("look at {path}: no description")))
}

/// Writes what is asked for to `stream`, which is ended whatever happens; a line about what it could not hold.
pub(crate) async fn read(
    link: &AgentLink,
    directories: &Directories,
    first: Pid,
    what: &ReadFiles,
    stream: u32,
) -> Outcome<Option<String>> {
    let (_, mut writer) = link.open(stream).map_err(|error| invalid(error.to_string()))?;
    let outcome = async {
        let (ours, theirs) = pipe()?;
        let (notes, to_notes) = pipe()?;
        let helper = Helper::start([null()?, theirs, to_notes], || {
            raise_limit()?;
            let out = stdout()?;
            let omitted = match what {
                ReadFiles::Tree { path } => {
                    enter(first)?;
                    tree::write(&path::root("/")?, path, out)
                }
                ReadFiles::Root => tree::write_root(&path::root(directories.root())?, out),
                ReadFiles::Changes => changes::write_layer(&layers(directories)?, out),
                ReadFiles::ChangeList => {
                    changes::write_list(&layers(directories)?, out).map(|()| Omitted::default())
                }
            }?;
            // Less than a pipe holds: it need not be read meanwhile.
            let note = omitted.note().unwrap_or_default();
            stderr()?.write_all(note.as_bytes()).doing(|| "tell what was left out".to_owned())
        })?;
        let source = Descriptor::watching(ours, Interest::READABLE);
        pump_out(source.doing(|| "watch a pipe".to_owned())?, &mut writer).await?;
        helper.finished().await?;
        let mut note = String::new();
        let notes = Descriptor::watching(notes, Interest::READABLE);
        let notes = notes.doing(|| "watch a pipe".to_owned())?.take(MAX_STAT);
        { notes }.read_to_string(&mut note).await.doing(|| "read what was left out".to_owned())?;
        Ok(Some(note).filter(|note| !note.is_empty()))
    };
    match outcome.await {
        Ok(note) => {
            // On a link that has ended nobody waits for it.
            let _ended = writer.shutdown().await;
            Ok(note)
        }
        Err(failure) => {
            writer.reset();
            Err(failure)
        }
    }
}

/// Unpacks what comes from a stream.
pub(crate) async fn write(link: &AgentLink, first: Pid, request: &WriteFiles) -> Outcome<()> {
    let (reader, _) = link.open(request.stream).map_err(|error| invalid(error.to_string()))?;
    let (theirs, ours) = pipe()?;
    let helper = Helper::start([theirs, null()?, null()?], || {
        raise_limit()?;
        // What is made has the archive's modes at once.
        umask(Mode::empty());
        enter(first)?;
        unpack::unpack(path::root("/")?, request, stdin()?)
    })?;
    let sink = Descriptor::watching(ours, Interest::WRITABLE);
    let sink = sink.doing(|| "watch a pipe".to_owned())?;
    let mut finished = std::pin::pin!(helper.finished());
    let pumped = tokio::select! {
        biased;
        // It has read all there is, or will read no more.
        early = &mut finished => return early,
        pumped = pump_in(reader, sink) => pumped,
    };
    finished.await.and(pumped)
}

fn layers(directories: &Directories) -> Outcome<changes::Layers> {
    Ok(changes::Layers {
        upper: path::root(directories.changes())?,
        image: path::root(directories.image())?,
    })
}

async fn pump_out(mut pipe: Descriptor, stream: &mut StreamWriter) -> Outcome<()> {
    let mut buffer = vec![0; BLOCK];
    loop {
        let read = tokio::select! {
            read = pipe.read(&mut buffer) => read.doing(|| "read from the child".to_owned())?,
            () = stream.stopped() => return Err(given_up()),
        };
        if read == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..read]).await.map_err(|_stopped| given_up())?;
    }
}

async fn pump_in(mut stream: StreamReader, mut pipe: Descriptor) -> Outcome<()> {
    let mut buffer = vec![0; BLOCK];
    loop {
        let read = stream.read(&mut buffer).await.map_err(|_reset| given_up())?;
        if read == 0 {
            return Ok(());
        }
        if pipe.write_all(&buffer[..read]).await.is_err() {
            // The child reads no more: it says why.
            return Ok(());
        }
    }
}

fn given_up() -> Failure {
    failure(FailureKind::Conflict, "the transfer was given up by the other side")
}

fn pipe() -> Outcome<(OwnedFd, OwnedFd)> {
    pipe_with(PipeFlags::CLOEXEC).doing(|| "make a pipe".to_owned())
}

fn null() -> Outcome<OwnedFd> {
    let [null, ..] = no_streams()?;
    Ok(null)
}

/// The child's end of the pipe.
fn stdout() -> Outcome<File> {
    Ok(rustix::io::dup(rustix::stdio::stdout()).doing(|| "use the pipe".to_owned())?.into())
}

/// The child's end of the pipe for words.
fn stderr() -> Outcome<File> {
    Ok(rustix::io::dup(rustix::stdio::stderr()).doing(|| "use the pipe".to_owned())?.into())
}

fn stdin() -> Outcome<File> {
    Ok(rustix::io::dup(rustix::stdio::stdin()).doing(|| "use the pipe".to_owned())?.into())
}

fn raise_limit() -> Outcome<()> {
    let limit = Rlimit { current: Some(MAX_FDS), maximum: Some(MAX_FDS) };
    prlimit(None, Resource::Nofile, limit).doing(|| "allow more open files".to_owned()).map(drop)
}

/// Goes where the container's processes are: `/` is their root then.
fn enter(first: Pid) -> Outcome<()> {
    let process = pidfd_open(first, PidfdFlags::empty());
    let process = process.doing(|| format!("find the first process, {first}"))?;
    move_into_thread_name_spaces(std::os::fd::AsFd::as_fd(&process), ThreadNameSpaceType::MOUNT)
        .doing(|| "join the container's mount namespace".to_owned())
}
