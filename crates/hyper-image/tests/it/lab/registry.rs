//! Debian's docker-registry on a loopback port, and images made by umoci and skopeo from busybox-static.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hyper_image::Digest;
use tempfile::TempDir;

use super::run;

pub struct Registry {
    child: Child,
    pub port: u16,
    _directory: TempDir,
}

/// Certificate and key of a registry that speaks TLS.
pub struct Tls {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Registry {
    pub fn start() -> Self {
        Self::start_with(None)
    }

    pub fn start_with(tls: Option<&Tls>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let tls = tls.map_or_else(String::new, |tls| {
            format!(
                "  tls:\n    certificate: {}\n    key: {}\n",
                tls.certificate.display(),
                tls.key.display()
            )
        });
        let config = format!(
            "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    \
             rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: 0.0.0.0:{port}\n{tls}",
            directory.path().join("data").display()
        );
        let path = directory.path().join("config.yml");
        std::fs::write(&path, config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "docker-registry does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { child, port, _directory: directory }
    }

    /// `127.0.0.1:PORT/NAME`
    pub fn name(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }

    /// Copies an image of an OCI layout here, with skopeo.
    pub fn push(&self, layout: &Layout, tag: &str, name: &str, options: &[&str]) {
        let (from, to) = (layout.skopeo(tag), format!("docker://{}", self.name(name)));
        run(Command::new("skopeo")
            .args(["--insecure-policy", "copy", "-q", "--dest-tls-verify=false"])
            .args(options)
            .args([from, to]));
    }

    /// Puts a manifest or index; returns its digest.
    pub fn put_manifest(
        &self,
        repository: &str,
        tag: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Digest {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        run(Command::new("curl")
            .args(["-sS", "--fail", "-X", "PUT", "-H"])
            .arg(format!("Content-Type: {media_type}"))
            .arg("--data-binary")
            .arg(format!("@{}", file.path().display()))
            .arg(format!("http://127.0.0.1:{}/v2/{repository}/manifests/{tag}", self.port)));
        Digest::of(bytes)
    }

    /// A manifest as it is stored.
    pub fn manifest(&self, repository: &str, tag: &str) -> Vec<u8> {
        let accept = "Accept: application/vnd.oci.image.manifest.v1+json";
        let url = format!("http://127.0.0.1:{}/v2/{repository}/manifests/{tag}", self.port);
        run(Command::new("curl").args(["-sS", "--fail", "-H", accept, &url])).into_bytes()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An OCI layout being built by umoci.
pub struct Layout {
    directory: TempDir,
}

impl Layout {
    /// With one image of two layers, `TAG`: busybox, and a text.
    pub fn busybox(tag: &str, text: &str) -> Self {
        let layout = Self { directory: tempfile::tempdir().unwrap() };
        run(Command::new("umoci").arg("init").arg("--layout").arg(layout.path()));
        layout.add(tag, text, "amd64");
        layout
    }

    /// A further image.
    pub fn add(&self, tag: &str, text: &str, architecture: &str) {
        let image = self.image(tag);
        run(Command::new("umoci").args(["new", "--image", &image]));
        // Not `umoci insert`: version 0.4.7 leaves the end of a layer's archive out.
        let tree = self.directory.path().join("tree");
        for (path, content) in
            [("bin/busybox", std::fs::read("/bin/busybox").unwrap()), ("etc/text", text.into())]
        {
            let file = tree.join(path);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, content).unwrap();
            let layer = self.directory.path().join("layer.tar");
            run(Command::new("tar")
                .args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "-cf"])
                .arg(&layer)
                .arg("-C")
                .arg(&tree)
                .arg("."));
            run(Command::new("umoci").args(["raw", "add-layer", "--image", &image]).arg(&layer));
            std::fs::remove_dir_all(&tree).unwrap();
        }
        run(Command::new("umoci")
            .args(["config", "--image", &image, "--architecture", architecture])
            .args(["--config.cmd", "/bin/busybox", "--config.cmd", "sh"])
            .args(["--config.env", "A=b", "--config.label", "l=m"]));
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("oci")
    }

    pub fn skopeo(&self, tag: &str) -> String {
        format!("oci:{}", self.image(tag))
    }

    fn image(&self, tag: &str) -> String {
        format!("{}:{tag}", self.path().display())
    }

    /// Writes an image as an archive of some kind: `docker-archive`, `oci-archive`.
    pub fn export(&self, tag: &str, kind: &str, to: &Path, name: &str) {
        let target = format!("{kind}:{}:{name}", to.display());
        run(Command::new("skopeo")
            .args(["--insecure-policy", "copy", "-q"])
            .args([self.skopeo(tag), target]));
    }
}
