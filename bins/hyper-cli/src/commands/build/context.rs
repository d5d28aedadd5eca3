//! The build context as a tar stream.
//!
//! A file that cannot be read, or changes while it is, must not look like the stream's end: then the channel stays
//! open and the failure is told beside it, so that the connection breaks instead of a smaller image being built.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use hyper_dockerfile::Ignore;
use tar::{Builder, EntryType, Header};
use tokio::sync::{mpsc, oneshot};

/// Bytes of one piece of the stream.
const PIECE: usize = 256 << 10;
/// Longest Dockerfile on standard input.
const MAX_DOCKERFILE: u64 = 4 << 20;
/// Name of a Dockerfile that is not in the context.
const OUTSIDE: &str = ".dockerfile.hyper";

/// What is sent.
pub struct Source {
    what: What,
    pub dockerfile_name: String,
    /// If it is known here.
    pub dockerfile_text: Option<String>,
}

enum What {
    /// An archive, and what was read of it already.
    Archive(Vec<u8>, Box<dyn Read + Send>),
    Directory {
        root: Option<PathBuf>,
        ignore: Ignore,
        /// Files that are sent though they are ignored.
        wanted: Vec<String>,
        /// A Dockerfile from elsewhere.
        extra: Option<Vec<u8>>,
    },
}

impl Source {
    /// Looks at the arguments. `path` is a directory or `-`, `file` a path, `-` or nothing.
    pub fn open(path: &str, file: Option<&str>) -> anyhow::Result<Self> {
        if path == "-" {
            if file == Some("-") {
                bail!("standard input cannot be both context and Dockerfile");
            }
            return Self::standard_input(file);
        }
        let root = PathBuf::from(path);
        if !root.is_dir() {
            bail!("build context `{path}` is not a directory");
        }
        let given = match file {
            Some("-") => None,
            Some(file) => Some(PathBuf::from(file)),
            None => Some(root.join("Dockerfile")),
        };
        let text = match &given {
            None => read_dockerfile(io::stdin(), "standard input")?,
            Some(path) => {
                let shown = path.display().to_string();
                let file =
                    File::open(path).with_context(|| format!("open Dockerfile `{shown}`"))?;
                read_dockerfile(file, &shown)?
            }
        };
        // One of its own for this Dockerfile goes before the common one.
        let own = given.as_ref().map(|path| {
            let mut name = path.clone().into_os_string();
            name.push(".dockerignore");
            PathBuf::from(name)
        });
        let files = own.into_iter().chain([root.join(".dockerignore")]);
        let mut ignore = Ignore::default();
        if let Some(path) = files.into_iter().find(|path| path.is_file()) {
            let shown = path.display();
            let text = fs::read_to_string(&path).with_context(|| format!("read `{shown}`"))?;
            ignore = Ignore::parse(&text).map_err(|why| anyhow::anyhow!("`{shown}`: {why}"))?;
        }
        let real_root = root.canonicalize().with_context(|| format!("find `{path}`"))?;
        let inside = given.as_ref().and_then(|path| {
            let real = path.canonicalize().ok()?;
            Some(real.strip_prefix(&real_root).ok()?.to_str()?.to_owned())
        });
        let (name, extra) = match inside {
            Some(name) => (name, None),
            None => (OUTSIDE.to_owned(), Some(text.clone().into_bytes())),
        };
        let wanted = vec![name.clone()];
        let what = What::Directory { root: Some(real_root), ignore, wanted, extra };
        Ok(Self { what, dockerfile_name: name, dockerfile_text: Some(text) })
    }

    /// An archive, or a Dockerfile without a context.
    fn standard_input(file: Option<&str>) -> anyhow::Result<Self> {
        let mut start = Vec::new();
        io::stdin().take(512).read_to_end(&mut start).context("read standard input")?;
        let is_tar = start.get(257..262) == Some(b"ustar");
        let compressed = [&b"\x1f\x8b"[..], b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"];
        if is_tar || compressed.iter().any(|magic| start.starts_with(magic)) {
            return Ok(Self {
                what: What::Archive(start, Box::new(io::stdin())),
                dockerfile_name: file.unwrap_or("Dockerfile").to_owned(),
                dockerfile_text: None,
            });
        }
        let text = read_dockerfile(io::Cursor::new(start).chain(io::stdin()), "standard input")?;
        let extra = Some(text.clone().into_bytes());
        let what =
            What::Directory { root: None, ignore: Ignore::default(), wanted: Vec::new(), extra };
        Ok(Self { what, dockerfile_name: OUTSIDE.to_owned(), dockerfile_text: Some(text) })
    }

    /// Begins to read; the stream ends with the last piece.
    pub fn send(self) -> (Sending, mpsc::Receiver<Bytes>) {
        let (sender, chunks) = mpsc::channel(8);
        let (tell, failure) = oneshot::channel();
        std::thread::spawn(move || {
            let mut out = Pieces { sender, buffer: Vec::with_capacity(PIECE) };
            let written = self.what.write(&mut out).and_then(|()| Ok(out.flush()?));
            if let Err(error) = written
                && !out.sender.is_closed()
            {
                // The channel goes with it: its end is not the stream's end.
                let _ = tell.send((error, out));
            }
        });
        (Sending(failure), chunks)
    }
}

/// The reading of the context.
pub struct Sending(oneshot::Receiver<(anyhow::Error, Pieces)>);

impl Sending {
    /// Why it cannot be read; never ends if it can.
    pub async fn failed(self) -> anyhow::Error {
        match self.0.await {
            Ok((error, pieces)) => {
                // Until this process ends its connection.
                std::mem::forget(pieces);
                error
            }
            Err(_) => std::future::pending().await,
        }
    }
}

fn read_dockerfile(source: impl Read, shown: &str) -> anyhow::Result<String> {
    let mut text = Vec::new();
    source.take(MAX_DOCKERFILE).read_to_end(&mut text).with_context(|| format!("read {shown}"))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

impl What {
    fn write(self, out: &mut Pieces) -> anyhow::Result<()> {
        match self {
            Self::Archive(start, mut rest) => {
                out.write_all(&start)?;
                io::copy(&mut rest, out).context("read standard input")?;
                Ok(())
            }
            Self::Directory { root, ignore, wanted, extra } => {
                let mut archive = Builder::new(&mut *out);
                if let Some(text) = extra {
                    let mut header = Header::new_gnu();
                    header.set_size(text.len() as u64);
                    header.set_mode(0o644);
                    archive.append_data(&mut header, OUTSIDE, text.as_slice())?;
                }
                if let Some(root) = root {
                    directory(&mut archive, &root, &ignore, &wanted)?;
                }
                archive.finish()?;
                Ok(())
            }
        }
    }
}

/// All of a directory, sorted, without recursion.
fn directory(
    archive: &mut Builder<impl Write>,
    root: &Path,
    ignore: &Ignore,
    wanted: &[String],
) -> anyhow::Result<()> {
    let mut queue = vec![PathBuf::new()];
    while let Some(relative) = queue.pop() {
        let path = root.join(&relative);
        let shown = path.display().to_string();
        let metadata = fs::symlink_metadata(&path).with_context(|| format!("look at `{shown}`"))?;
        let bytes = relative.as_os_str().as_bytes();
        let is_wanted = wanted.iter().any(|name| Path::new(name).starts_with(&relative))
            || bytes == b".dockerignore";
        let excluded = !bytes.is_empty() && ignore.excludes(bytes) && !is_wanted;
        if metadata.is_dir() {
            if excluded && !ignore.has_exceptions() {
                continue;
            }
            let entries = fs::read_dir(&path).with_context(|| format!("read `{shown}`"))?;
            let mut names = entries
                .map(|entry| entry.map(|entry| relative.join(entry.file_name())))
                .collect::<io::Result<Vec<_>>>()
                .with_context(|| format!("read `{shown}`"))?;
            // The last is taken first.
            names.sort_by(|a, b| b.cmp(a));
            queue.extend(names);
        }
        if excluded || bytes.is_empty() {
            continue;
        }
        entry(archive, &path, &relative, &metadata)
            .with_context(|| format!("send `{shown}` of the build context"))?;
    }
    Ok(())
}

fn entry(
    archive: &mut Builder<impl Write>,
    path: &Path,
    relative: &Path,
    metadata: &fs::Metadata,
) -> anyhow::Result<()> {
    let mut header = Header::new_gnu();
    // Whose they are here means nothing in an image.
    header.set_uid(0);
    header.set_gid(0);
    header.set_mode(metadata.mode() & 0o7777);
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
    header.set_size(0);
    let kind = metadata.file_type();
    if kind.is_dir() {
        header.set_entry_type(EntryType::Directory);
        archive.append_data(&mut header, relative, io::empty())?;
    } else if kind.is_symlink() {
        header.set_entry_type(EntryType::Symlink);
        archive.append_link(&mut header, relative, fs::read_link(path)?)?;
    } else if kind.is_file() {
        header.set_size(metadata.len());
        let mut whole = Whole { file: File::open(path)?, left: metadata.len() };
        archive.append_data(&mut header, relative, &mut whole)?;
    } else if kind.is_socket() || kind.is_fifo() {
        // Nothing that an image could hold: as the docker CLI, but not without a word.
        let what = if kind.is_socket() { "socket" } else { "FIFO" };
        eprintln!("WARNING: left out of the build context: `{}` is a {what}", relative.display());
    } else {
        bail!("it is a device: add it to .dockerignore");
    }
    Ok(())
}

/// Exactly the bytes that were announced.
struct Whole {
    file: File,
    left: u64,
}

impl Read for Whole {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if count == 0 {
            return Ok(0);
        }
        let read = self.file.read(&mut buffer[..count])?;
        if read == 0 {
            return Err(io::Error::other("it became shorter while it was read"));
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// A writer that sends pieces.
pub struct Pieces {
    sender: mpsc::Sender<Bytes>,
    buffer: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE));
        if piece.is_empty() {
            return Ok(());
        }
        let sent = self.sender.blocking_send(Bytes::from(piece));
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn names(source: Source) -> Vec<String> {
        let (_sending, mut chunks) = source.send();
        let mut bytes = Vec::new();
        while let Some(chunk) = chunks.blocking_recv() {
            bytes.extend_from_slice(&chunk);
        }
        let mut archive = tar::Archive::new(bytes.as_slice());
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            entry.path().unwrap().display().to_string()
        });
        entries.collect()
    }

    #[test]
    fn what_is_sent_of_a_directory() {
        let directory = std::env::temp_dir().join(format!("hyper-cli-{}", std::process::id()));
        fs::create_dir_all(directory.join("a/b")).unwrap();
        for name in ["Dockerfile", "x.log", "a/keep.log", "a/b/y", "a/z.log"] {
            fs::write(directory.join(name), "FROM scratch").unwrap();
        }
        fs::write(
            directory.join(".dockerignore"),
            "*.log\n**/*.log\n!a/keep.log\na/b\nDockerfile\n",
        )
        .unwrap();
        std::os::unix::fs::symlink("nowhere", directory.join("link")).unwrap();
        let path = directory.display().to_string();
        let source = Source::open(&path, None).unwrap();
        assert_eq!(source.dockerfile_name, "Dockerfile");
        let sent = names(source);
        assert_eq!(sent, [".dockerignore", "Dockerfile", "a", "a/keep.log", "link"]);
        let outside = directory.join("../hyper-cli-outside");
        fs::write(&outside, "FROM scratch\n").unwrap();
        let source = Source::open(&path, Some(&outside.display().to_string())).unwrap();
        assert_eq!(source.dockerfile_name, OUTSIDE);
        assert_eq!(names(source)[0], OUTSIDE);
        assert!(Source::open(&format!("{path}/nope"), None).is_err());
        fs::remove_file(outside).unwrap();
        fs::remove_dir_all(directory).unwrap();
    }
}
