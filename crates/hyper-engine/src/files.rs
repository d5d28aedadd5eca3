//! A container's files: copied out and in, listed as changes, exported whole, made a layer.
//!
//! Always through the agent of a guest: the host never mounts what a guest has written. A container
//! that does not run gets a pod for as long as it takes ([`crate::container::lending`]).

use bytes::Bytes;
use hyper_task::pod::ReadFiles;
pub use hyper_task::pod::{PathStat, ProcessInfo};
use tokio::io::AsyncRead;
use tokio::sync::oneshot;

use crate::container::actor::Command;
use crate::container::lending::Loan;
use crate::engine::Engine;
use crate::supervisor::files::Download;
use crate::{Error, Result};

/// Most bytes of a list of changes: some hundred thousand paths.
const MAX_CHANGES: usize = 64 << 20;

/// A tar archive on its way out of a container. Dropped, the transfer ends.
#[derive(Debug)]
pub struct Archive {
    download: Download,
    /// Keeps the pod.
    _loan: Loan,
}

impl Archive {
    /// The next bytes; `None` when that was all.
    ///
    /// # Errors
    /// Why it is not all.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        self.download.next().await
    }

    /// What of the files is not in it, in words for people; told when it is at its end, and in the log anyway.
    #[must_use]
    pub fn note(&self) -> Option<&str> {
        self.download.note()
    }
}

/// How files are copied into a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CopyOptions {
    /// A directory is not replaced by something else, nor something else by a directory.
    pub keep_directories: bool,
    /// Everything is to belong to the container's user, not to the archive's.
    pub as_user: bool,
}

/// One path that differs from the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub kind: ChangeKind,
    /// Absolute, in the container.
    pub path: String,
}

/// How a path differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    Modified,
    Added,
    Deleted,
}

impl Engine {
    /// What is at a path of a container; a link at its end is not followed.
    ///
    /// # Errors
    /// [`Error::NoSuchPath`], [`Error::Supervisor`].
    pub async fn stat_path(&self, reference: &str, path: &str) -> Result<PathStat> {
        let loan = self.borrow(reference).await?;
        loan.pod().stat_path(path).await.map_err(|error| missing(error, reference, path))
    }

    /// A file or directory as a tar archive, and what it is.
    ///
    /// # Errors
    /// [`Error::NoSuchPath`], [`Error::Invalid`], [`Error::Supervisor`].
    pub async fn copy_from(&self, reference: &str, path: &str) -> Result<(PathStat, Archive)> {
        let loan = self.borrow(reference).await?;
        let named = |error| missing(error, reference, path);
        let stat = loan.pod().stat_path(path).await.map_err(named)?;
        let what = ReadFiles::Tree { path: path.to_owned() };
        let download = loan.pod().read_files(what).await.map_err(named)?;
        Ok((stat, Archive { download, _loan: loan }))
    }

    /// Unpacks a tar archive in a directory of the container.
    ///
    /// # Errors
    /// [`Error::NoSuchPath`], [`Error::Invalid`], [`Error::ReadOnly`], [`Error::ContainerFull`]; what
    /// was unpacked by then stays.
    pub async fn copy_to(
        &self,
        reference: &str,
        path: &str,
        options: CopyOptions,
        archive: impl AsyncRead + Unpin,
    ) -> Result<()> {
        let user = self.container(reference)?.spec.user.clone();
        let owner = Some(user).filter(|user| options.as_user && !user.is_empty());
        let loan = self.borrow(reference).await?;
        loan.pod()
            .write_files(path.to_owned(), options.keep_directories, owner, archive)
            .await
            .map_err(|error| missing(error, reference, path))
    }

    /// The whole root file system as a tar archive, without what is mounted on it.
    ///
    /// # Errors
    /// [`Error::Supervisor`].
    pub async fn export(&self, reference: &str) -> Result<Archive> {
        self.archive(reference, ReadFiles::Root).await
    }

    /// What the container changed since its image, as an OCI layer.
    ///
    /// # Errors
    /// [`Error::Supervisor`].
    pub async fn changes_archive(&self, reference: &str) -> Result<Archive> {
        self.archive(reference, ReadFiles::Changes).await
    }

    /// What the container changed since its image, by path.
    ///
    /// # Errors
    /// [`Error::Supervisor`].
    pub async fn changes(&self, reference: &str) -> Result<Vec<Change>> {
        let mut archive = self.archive(reference, ReadFiles::ChangeList).await?;
        let mut bytes = Vec::new();
        while let Some(more) = archive.next().await? {
            if bytes.len() + more.len() > MAX_CHANGES {
                return Err(Error::Invalid(format!(
                    "container {reference} has more changes than a list can hold: export it"
                )));
            }
            bytes.extend_from_slice(&more);
        }
        let mut changes: Vec<Change> = bytes.split(|byte| *byte == 0).filter_map(change).collect();
        changes.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(changes)
    }

    async fn archive(&self, reference: &str, what: ReadFiles) -> Result<Archive> {
        let loan = self.borrow(reference).await?;
        let download = loan.pod().read_files(what).await?;
        Ok(Archive { download, _loan: loan })
    }

    /// The container's pod: the one it runs in, or one for its files only.
    async fn borrow(&self, reference: &str) -> Result<Loan> {
        let handle = self.core.find(reference)?;
        let gone = || Error::NoSuchContainer(reference.to_owned());
        let (reply, answer) = oneshot::channel();
        handle.commands.send(Command::Borrow(reply)).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}

fn change(line: &[u8]) -> Option<Change> {
    let (kind, path) = line.split_first()?;
    let kind = match kind {
        b'A' => ChangeKind::Added,
        b'D' => ChangeKind::Deleted,
        _ => ChangeKind::Modified,
    };
    Some(Change { kind, path: String::from_utf8_lossy(path).into_owned() })
}

/// Docker's words for a path that is not there.
fn missing(error: Error, reference: &str, path: &str) -> Error {
    match error {
        Error::NoSuchPath(_) => {
            Error::NoSuchPath(format!("Could not find the file {path} in container {reference}"))
        }
        other => other,
    }
}
