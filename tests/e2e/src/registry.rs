//! Debian's `docker-registry` on loopback, filled by `skopeo`.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::{eventually, run};

/// A running registry. Dropped: stopped, and its files go.
#[derive(Debug)]
pub struct Registry {
    dir: TempDir,
    process: Child,
    port: u16,
}

impl Registry {
    /// Starts an empty registry on a free port.
    pub fn start() -> Self {
        Self::start_with(|_| String::new())
    }

    /// Starts one that only knows `user` with `password`.
    pub fn start_for(user: &str, password: &str) -> Self {
        Self::start_with(|dir| {
            // Debian's libcrypt knows bcrypt, which is all that the registry takes.
            let code = "print crypt($ARGV[0], q($2y$05$abcdefghijklmnopqrstuu))";
            let hash =
                run("perl", &["-e", code, password], Duration::from_secs(20)).succeeded().text();
            let path = dir.join("users");
            std::fs::write(&path, format!("{user}:{hash}\n")).expect("write the users");
            format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", path.display())
        })
    }

    /// Starts one that speaks TLS with this certificate and key.
    pub fn start_tls(certificate: &Path, key: &Path) -> Self {
        Self::start_with(|_| {
            let (certificate, key) = (certificate.display(), key.display());
            // Continues `http:`, which comes last.
            format!("  tls:\n    certificate: {certificate}\n    key: {key}\n")
        })
    }

    /// Starts one with more configuration.
    fn start_with(more: impl Fn(&Path) -> String) -> Self {
        let dir = tempfile::Builder::new().prefix("hyper-registry-").tempdir().expect("directory");
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("find a free port")
            .port();
        let storage = dir.path().join("storage");
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n  \
             delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:{port}\n{}",
            storage.display(),
            more(dir.path())
        );
        let path = dir.path().join("config.yml");
        std::fs::File::create(&path)
            .and_then(|mut file| file.write_all(config.as_bytes()))
            .expect("write the registry's configuration");
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start docker-registry");
        let registry = Self { dir, process, port };
        eventually("the registry listens", Duration::from_secs(20), || {
            TcpStream::connect(("127.0.0.1", registry.port)).is_ok()
        });
        registry
    }

    /// `127.0.0.1:PORT/name`.
    pub fn reference(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }

    /// `PORT`
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What skopeo sees there.
    #[track_caller]
    pub fn inspect(&self, name: &str) -> serde_json::Value {
        let source = format!("docker://{}", self.reference(name));
        let outcome =
            run("skopeo", &["inspect", "--tls-verify=false", &source], Duration::from_secs(60));
        serde_json::from_str(&outcome.succeeded().text()).expect("skopeo prints JSON")
    }

    /// Pushes an OCI archive as `name`.
    #[track_caller]
    pub fn push(&self, archive: &Path, name: &str) {
        let source = format!("oci-archive:{}", archive.display());
        let target = format!("docker://{}", self.reference(name));
        run(
            "skopeo",
            &["--insecure-policy", "copy", "-q", "--dest-tls-verify=false", &source, &target],
            Duration::from_secs(180),
        )
        .succeeded();
    }

    /// The largest blob's file: a layer.
    pub fn largest_blob(&self) -> PathBuf {
        let mut largest = (0, PathBuf::new());
        let mut queue = vec![self.dir.path().join("storage")];
        while let Some(directory) = queue.pop() {
            for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                let length = entry.metadata().map(|meta| meta.len()).unwrap_or_default();
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    queue.push(entry.path());
                } else if entry.file_name() == "data" && length > largest.0 {
                    largest = (length, entry.path());
                }
            }
        }
        largest.1
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Already gone is fine.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
