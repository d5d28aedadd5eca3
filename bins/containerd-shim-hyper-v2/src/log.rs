//! The supervisor's own log: containerd's FIFO `BUNDLE/log`, or `BUNDLE/supervisor.log`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use rustix::fs::OFlags;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Starts logging. `HYPER_LOG` goes before the config's filter.
pub fn start(bundle: &Path, filter: &str, debug: bool) -> anyhow::Result<()> {
    let variable = std::env::var("HYPER_LOG").ok();
    let filter = variable.as_deref().unwrap_or(if debug { "debug" } else { filter });
    let filter = EnvFilter::try_new(filter).with_context(|| format!("log filter `{filter}`"))?;
    let sink = Sink(Arc::new(open(bundle).context("open the supervisor's log")?));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(sink).init();
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "supervisor panicked")));
    Ok(())
}

fn open(bundle: &Path) -> io::Result<File> {
    let fifo = bundle.join("log");
    let mut options = OpenOptions::new();
    if std::fs::metadata(&fifo).is_ok_and(|found| found.file_type().is_fifo()) {
        // Both ends, so that neither a missing reader nor one that leaves matters to us.
        options.read(true).write(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed());
        return options.open(fifo);
    }
    options.append(true).create(true).mode(0o640).open(bundle.join("supervisor.log"))
}

/// Drops what does not fit: a log that nobody reads must not stop the pod.
#[derive(Debug, Clone)]
struct Sink(Arc<File>);

impl io::Write for Sink {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match (&*self.0).write(line) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(line.len()),
            other => other,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
