//! What the end-to-end tests share: a hyperd of their own, a real registry, real clients.
//!
//! Every test binary starts its own hyperd below a temporary directory, so nothing of the
//! system's is touched and programs, also of several checkouts, can run at once ([`Alone`]). Programs and guest files
//! are those of `make build`. Images are made from Debian packages by `images/build`.
#![forbid(unsafe_code)]

mod building;
mod command;
mod engine;
mod host;
mod lan;
mod outside;
mod registry;
mod serving;
mod terminal;
mod tokens;
mod turn;
mod user;

pub use building::{build, context};
pub use command::{Outcome, run, run_command as run_with};
pub use engine::Engine;
pub use host::{Host, disk_of, processes};
pub use lan::{field, nothing_left, runtimes_and_runc, shell};
pub use outside::Outside;
pub use registry::Registry;
pub use serving::{reaches, serve};
pub use terminal::Terminal;
pub use tokens::TokenServer;
pub use turn::{Alone, Turn};
pub use user::User;

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// The runtimes that most tests run on: those that every host of the tests has, or those of the
/// variable `HYPER_E2E_RUNTIMES` (`kvm,qemu`).
pub fn runtimes() -> Vec<&'static str> {
    static CHOSEN: LazyLock<String> = LazyLock::new(|| {
        std::env::var("HYPER_E2E_RUNTIMES").unwrap_or_else(|_| "uml,qemu".to_owned())
    });
    CHOSEN.split(',').collect()
}

/// The checkout.
pub fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("tests/e2e lies in the checkout").to_owned()
}

/// A path as an argument.
pub fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Runs a program that must succeed within three minutes; what it printed.
#[track_caller]
pub fn tool(program: &str, arguments: &[&str]) -> String {
    run(program, arguments, Duration::from_secs(180)).succeeded().text()
}

/// A program of `make build`.
pub fn program(name: &str) -> PathBuf {
    let path = root().join("target/release").join(name);
    assert!(path.exists(), "`{}` is missing: run `make build`", path.display());
    path
}

/// The OCI archive of an image recipe (`busybox`, `python`), made from Debian packages.
pub fn image(name: &str) -> PathBuf {
    let path = root().join("target/images").join(format!("{name}.tar"));
    let out = path.display().to_string();
    run(
        &root().join("images/build").display().to_string(),
        &[name, &out],
        Duration::from_secs(600),
    )
    .succeeded();
    path
}

/// Waits until `ready` says so; panics with `what` after `deadline`.
pub fn eventually(what: &str, deadline: Duration, mut ready: impl FnMut() -> bool) {
    let started = Instant::now();
    while !ready() {
        assert!(started.elapsed() < deadline, "not within {deadline:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
