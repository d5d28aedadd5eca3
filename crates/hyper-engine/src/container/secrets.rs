//! Where the contents of given files are on the host.
//!
//! ```text
//!   EXEC_ROOT/secrets/ID/N   0600   the secrets of a container, until it is removed
//!   BUNDLE/files/N[/PATH]           all its files, as it is to see them, while its pod lives
//! ```
//! Invariants
//! - Both directories are 0700. Secrets are written only where `statfs` says tmpfs or ramfs.
//! - hyperd's death changes nothing; a reboot empties them, and then the container cannot start.
//! - A directory without container goes at hyperd's start; the container's goes with it.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::given::{self, Contents, Given};
use super::spec::Spec;
use crate::core::Core;
use crate::layout::Layout;
use crate::{Error, Result, oci};

/// `statfs`' numbers of file systems in memory (linux/magic.h).
const TMPFS: u32 = 0x0102_1994;
const RAMFS: u32 = 0x8584_58f6;

/// Given files as they lie in a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placed {
    pub source: PathBuf,
    pub target: String,
    pub writable: bool,
    /// `USER[:GROUP]` of a file, when that is for the image to say.
    pub owner: Option<String>,
}

/// Keeps the secrets of a container that is being made. On failure nothing is left.
pub(crate) async fn keep(core: &Core, id: &str, secrets: Vec<Contents>) -> Result<()> {
    if secrets.is_empty() {
        return Ok(());
    }
    let (layout, id) = (core.layout.clone(), id.to_owned());
    crate::core::blocking(move || {
        private(&layout.secrets())?;
        in_memory(&layout, &layout.secrets())?;
        let directory = layout.secrets_of(&id);
        let written = private(&directory).and_then(|()| {
            secrets.iter().enumerate().try_for_each(|(number, secret)| {
                write(&directory.join(number.to_string()), &secret.0, 0o600)
            })
        });
        if written.is_err() {
            let _ = std::fs::remove_dir_all(&directory);
        }
        written
    })
    .await
}

/// The container is gone, or did not come to be.
pub(crate) async fn forget(core: &Core, id: &str) {
    let directory = core.layout.secrets_of(id);
    if let Err(error) = tokio::fs::remove_dir_all(&directory).await
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(directory = %directory.display(), %error, "remove secrets");
    }
}

/// Removes what belongs to no container that is `known`.
pub(crate) async fn sweep(core: &Core, known: impl Fn(&str) -> bool) {
    let Ok(mut entries) = tokio::fs::read_dir(core.layout.secrets()).await else { return };
    while let Ok(Some(entry)) = entries.next_entry().await {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !known(&name) {
            forget(core, &name).await;
        }
    }
}

/// The spec with the values of its secret variables, for what is about to be run and for nothing
/// that is kept.
pub(crate) async fn with_environment(core: &Core, spec: &Arc<Spec>) -> Result<Arc<Spec>> {
    if spec.host.secret_env.is_empty() {
        return Ok(Arc::clone(spec));
    }
    let (layout, spec) = (core.layout.clone(), Arc::clone(spec));
    crate::core::blocking(move || {
        let secrets = read(&layout, &spec)?;
        Ok(Arc::new(filled(&spec, &secrets)?))
    })
    .await
}

/// Lays the container's files out in its bundle. Returns them, and the spec with its secret
/// variables. Blocking.
pub(crate) fn lay_out(
    layout: &Layout,
    spec: &Arc<Spec>,
    bundle: &Path,
) -> Result<(Vec<Placed>, Arc<Spec>)> {
    let host = &spec.host;
    if host.files.is_empty() && host.secret_env.is_empty() {
        return Ok((Vec::new(), Arc::clone(spec)));
    }
    let secrets = read(layout, spec)?;
    if !secrets.is_empty() {
        in_memory(layout, bundle)?;
    }
    let all = bundle.join("files");
    private(&all)?;
    let mut next = secrets.iter();
    let mut placed = Vec::with_capacity(host.files.len());
    for (number, given) in host.files.iter().enumerate() {
        let source = all.join(number.to_string());
        lay(given, &source, &mut next)?;
        let owner = given.files.first().and_then(|file| file.owner.clone());
        let (target, writable) = (given.target.clone(), given.writable);
        placed.push(Placed { source, target, writable, owner });
    }
    let spec = if host.secret_env.is_empty() {
        Arc::clone(spec)
    } else {
        Arc::new(filled(spec, &secrets)?)
    };
    Ok((placed, spec))
}

fn lay<'a>(
    given: &Given,
    source: &Path,
    secrets: &mut impl Iterator<Item = &'a Contents>,
) -> Result<()> {
    if given.directory {
        std::fs::create_dir(source).map_err(Error::file("make directory", source))?;
    }
    for file in &given.files {
        let content = match file.secret {
            Some(_) => secrets.next().unwrap_or(&file.content),
            None => &file.content,
        };
        let at = if given.directory { source.join(&file.path) } else { source.to_owned() };
        if let Some(parent) = at.parent() {
            std::fs::create_dir_all(parent).map_err(Error::file("make directory", parent))?;
        }
        write(&at, &content.0, 0o600)?;
        own(&at, file.mode, (file.uid, file.gid))?;
    }
    if given.directory { own(source, given.mode, (0, 0)) } else { Ok(()) }
}

/// In the order of [`given::secrets`].
fn read(layout: &Layout, spec: &Spec) -> Result<Vec<Contents>> {
    let names = given::secrets(&spec.host);
    let directory = layout.secrets_of(&spec.id);
    let (mut found, mut gone) = (Vec::new(), Vec::new());
    for (number, name) in names.into_iter().enumerate() {
        let path = directory.join(number.to_string());
        match std::fs::read(&path) {
            Ok(bytes) => found.push(Contents(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => gone.push(name),
            Err(error) => return Err(Error::file("read", path)(error)),
        }
    }
    if gone.is_empty() {
        return Ok(found);
    }
    gone.dedup();
    Err(Error::Conflict(format!(
        "secret {} of the container is gone: secrets are kept in memory only, in {}, which a \
         restart of the host empties: remove the container and make it again with its secrets (a \
         manifest's pod: `hyper delete -f` and `hyper apply -f`)",
        gone.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
        layout.secrets().display()
    )))
}

fn filled(spec: &Spec, secrets: &[Contents]) -> Result<Spec> {
    let variables = &spec.host.secret_env;
    let values = &secrets[secrets.len().saturating_sub(variables.len())..];
    let mut entries = Vec::with_capacity(variables.len());
    for (variable, value) in variables.iter().zip(values) {
        // Checked when the container was made.
        let value = std::str::from_utf8(&value.0)
            .map_err(|_| Error::Invalid(format!("secret `{}` is no text", variable.secret)))?;
        entries.push(format!("{}={value}", variable.name));
    }
    let mut spec = spec.clone();
    spec.env = oci::merge_environment(&spec.env, &entries);
    Ok(spec)
}

/// # Errors
/// The directory is on a disk.
fn in_memory(layout: &Layout, directory: &Path) -> Result<()> {
    let found = rustix::fs::statfs(directory)
        .map_err(|error| Error::file("look at", directory)(error.into()))?;
    // Its width differs between architectures; the numbers are of 32 bits.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "see above")]
    let kind = found.f_type as u32;
    if matches!(kind, TMPFS | RAMFS) {
        return Ok(());
    }
    Err(Error::Unsupported(format!(
        "secrets are kept in memory only, and the exec-root {} is on a disk (file system {kind:#x}, \
         neither tmpfs nor ramfs): start hyperd with an --exec-root on a tmpfs, such as /run/hyper",
        layout.exec_root.display()
    )))
}

fn private(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(Error::file("make directory", path))
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(mode);
    let written = options.open(path).and_then(|mut file| file.write_all(bytes));
    written.map_err(Error::file("write", path))
}

fn own(path: &Path, mode: u32, (uid, gid): (u32, u32)) -> Result<()> {
    let done = std::os::unix::fs::chown(path, Some(uid), Some(gid))
        // Last: a change of owner takes the set-user-id bit away.
        .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)));
    done.map_err(Error::file("set the owner of", path))
}

#[cfg(test)]
mod test {
    use super::super::given::{GivenFile, SecretVariable};
    use super::super::spec::HostSpec;
    use super::*;

    fn spec() -> Arc<Spec> {
        let file = |path: &str, secret: Option<&str>| GivenFile {
            path: path.to_owned(),
            mode: 0o440,
            secret: secret.map(str::to_owned),
            content: Contents(secret.map_or(b"open".to_vec(), |_| Vec::new())),
            ..GivenFile::default()
        };
        let given = Given {
            target: "/etc/app".to_owned(),
            directory: true,
            mode: 0o755,
            files: vec![file("a", None), file("sub/b", Some("db/b"))],
            ..Given::default()
        };
        let variable = SecretVariable {
            name: "TOKEN".to_owned(),
            secret: "token".to_owned(),
            value: Contents::default(),
        };
        let env = vec!["TOKEN=of the image".to_owned(), "A=1".to_owned()];
        let host =
            HostSpec { files: vec![given], secret_env: vec![variable], ..HostSpec::default() };
        Arc::new(Spec { id: "c1".to_owned(), env, host, ..Spec::default() })
    }

    fn layout(root: &Path) -> Layout {
        Layout { data_root: root.join("data"), exec_root: root.join("exec") }
    }

    #[test]
    fn files_are_laid_out_with_their_secrets() {
        // Where no tmpfs is to be had the bundle cannot be tried; the refusal is, below.
        let Ok(root) = tempfile::tempdir_in("/dev/shm") else { return };
        let (layout, spec) = (layout(root.path()), spec());
        let kept = layout.secrets_of(&spec.id);
        private(&kept).unwrap();
        write(&kept.join("0"), b"hidden", 0o600).unwrap();
        write(&kept.join("1"), b"sesame", 0o600).unwrap();
        let bundle = layout.bundle(&spec.id);
        std::fs::create_dir_all(&bundle).unwrap();
        if in_memory(&layout, &bundle).is_err() {
            return;
        }
        let (placed, full) = lay_out(&layout, &spec, &bundle).unwrap();
        assert_eq!(full.env, ["TOKEN=sesame", "A=1"]);
        assert_eq!(placed[0].target, "/etc/app");
        let read = |path: &str| std::fs::read_to_string(placed[0].source.join(path)).unwrap();
        assert_eq!((read("a"), read("sub/b")), ("open".to_owned(), "hidden".to_owned()));
        let mode = std::fs::metadata(placed[0].source.join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o440);

        std::fs::remove_file(kept.join("0")).unwrap();
        let error = self::read(&layout, &spec).unwrap_err().to_string();
        assert!(error.contains("`db/b` of the container is gone"), "{error}");
    }

    #[test]
    fn a_disk_is_no_place_for_secrets() {
        let layout = layout(Path::new("/proc/self"));
        let error = in_memory(&layout, Path::new("/proc/self")).unwrap_err().to_string();
        assert!(error.contains("/proc/self/exec") && error.contains("--exec-root"), "{error}");
    }
}
