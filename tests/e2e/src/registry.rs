//! Debian's `docker-registry` on loopback, filled by `skopeo`.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::tokens::{ISSUER, SERVICE};
use crate::{TokenServer, eventually, run};

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

    /// Starts one that only takes tokens of this server.
    pub fn start_behind(tokens: &TokenServer) -> Self {
        Self::start_with(|_| {
            format!(
                "auth:\n  token:\n    realm: {}\n    service: {SERVICE}\n    issuer: {ISSUER}\n    \
                 rootcertbundle: {}\n",
                tokens.realm(),
                tokens.certificate().display()
            )
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

    /// Puts a blob; returns its digest. `dir` is for temporary files.
    #[track_caller]
    pub fn put_blob(&self, repository: &str, bytes: &[u8], dir: &Path) -> String {
        let (file, digest) = write(dir, bytes);
        let url = format!("http://127.0.0.1:{}/v2/{repository}/blobs/uploads/", self.port);
        let begun = curl(&["-o", "/dev/null", "-D", "-", "-X", "POST", &url]);
        let location = begun.lines().find_map(|line| line.strip_prefix("Location: "));
        let url = format!("{}&digest={digest}", location.expect("a location").trim());
        let kind = "Content-Type: application/octet-stream";
        curl(&["-X", "PUT", "-H", kind, "--data-binary", &file, &url]);
        digest
    }

    /// Puts a manifest or index by tag, or by its digest; returns its digest.
    #[track_caller]
    pub fn put_manifest(
        &self,
        repository: &str,
        tag: Option<&str>,
        media_type: &str,
        bytes: &[u8],
        dir: &Path,
    ) -> String {
        let (file, digest) = write(dir, bytes);
        let key = tag.unwrap_or(&digest);
        let url = format!("http://127.0.0.1:{}/v2/{repository}/manifests/{key}", self.port);
        let kind = format!("Content-Type: {media_type}");
        curl(&["-X", "PUT", "-H", &kind, "--data-binary", &file, &url]);
        digest
    }

    /// A manifest's or index's bytes.
    #[track_caller]
    pub fn manifest(&self, repository: &str, key: &str) -> String {
        let url = format!("http://127.0.0.1:{}/v2/{repository}/manifests/{key}", self.port);
        let kinds = "Accept: application/vnd.oci.image.manifest.v1+json, \
                     application/vnd.oci.image.index.v1+json, \
                     application/vnd.docker.distribution.manifest.v2+json";
        curl(&["-H", kinds, &url])
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

#[track_caller]
fn curl(arguments: &[&str]) -> String {
    let arguments = [&["-sS", "-f"], arguments].concat();
    let outcome = run("curl", &arguments, Duration::from_secs(60)).succeeded();
    String::from_utf8_lossy(&outcome.stdout).into_owned()
}

/// A file with these bytes as curl takes it, and their digest.
fn write(dir: &Path, bytes: &[u8]) -> (String, String) {
    use sha2::Digest as _;
    let hash = sha2::Sha256::digest(bytes);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    let path = dir.join(&hex);
    std::fs::write(&path, bytes).expect("write");
    (format!("@{}", path.display()), format!("sha256:{hex}"))
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Already gone is fine.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
