//! `save load import`: images to and from tar archives.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Method;
use serde_json::Value;
use tokio::sync::mpsc::Sender;

use crate::arguments::{ImportFlags, LoadFlags, SaveFlags};
use crate::client::{Body, Client, quote};
use crate::terminal;

pub async fn save(client: &Client, flags: SaveFlags) -> anyhow::Result<i32> {
    if flags.output.is_none() && terminal::stdout_is_terminal() {
        bail!("save writes an archive: give a file with -o FILE, or redirect the output");
    }
    let names: Vec<String> =
        flags.images.iter().map(|name| format!("names={}", quote(name))).collect();
    let path = format!("/images/get?{}", names.join("&"));
    let mut body = client.send(Method::GET, &path, Body::None).await?.into_body();
    let mut out = Output::open(flags.output.as_deref())?;
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.context("the archive broke off")?.into_data() {
            out.write(&data)?;
        }
    }
    out.finish()?;
    Ok(0)
}

/// A file that appears when it is whole, or standard output.
enum Output<'a> {
    File { file: File, aside: std::path::PathBuf, path: &'a Path },
    Stdout(std::io::Stdout),
}

impl<'a> Output<'a> {
    fn open(path: Option<&'a Path>) -> anyhow::Result<Self> {
        let Some(path) = path else { return Ok(Self::Stdout(std::io::stdout())) };
        let what = || format!("write `{}`", path.display());
        // Devices and pipes are written as they are.
        let plain = path.metadata().map_or(true, |found| found.is_file());
        let mut aside = path.as_os_str().to_owned();
        if plain {
            aside.push(format!(".{}.part", std::process::id()));
        }
        let aside = std::path::PathBuf::from(aside);
        let file =
            if plain { File::create(&aside) } else { File::options().write(true).open(path) };
        Ok(Self::File { file: file.with_context(what)?, aside, path })
    }

    fn write(&mut self, data: &[u8]) -> anyhow::Result<()> {
        match self {
            Self::File { file, path, .. } => {
                file.write_all(data).with_context(|| format!("write `{}`", path.display()))
            }
            Self::Stdout(out) => out.write_all(data).context("write to standard output"),
        }
    }

    fn finish(mut self) -> anyhow::Result<()> {
        match &mut self {
            Self::File { aside, path, .. } if aside != path => {
                let aside = std::mem::take(aside);
                std::fs::rename(&aside, *path)
                    .with_context(|| format!("write `{}`", path.display()))
            }
            Self::File { .. } => Ok(()),
            Self::Stdout(out) => out.flush().context("write to standard output"),
        }
    }
}

impl Drop for Output<'_> {
    fn drop(&mut self) {
        if let Self::File { aside, path, .. } = self
            && !aside.as_os_str().is_empty()
            && aside != path
        {
            // Half an archive is of no use.
            let _ = std::fs::remove_file(aside);
        }
    }
}

pub async fn load(client: &Client, flags: LoadFlags) -> anyhow::Result<i32> {
    let source: Source = match &flags.input {
        Some(path) => open(path)?,
        None if terminal::stdin_is_terminal() => {
            bail!("load reads an archive from standard input: pipe one in, or give it with -i FILE")
        }
        None => Box::new(std::io::stdin()),
    };
    let path = format!("/images/load?quiet={}", u8::from(flags.quiet));
    send(client, &path, Some(source), |line| {
        if let Some(text) = line["stream"].as_str() {
            print!("{text}");
        }
    })
    .await
    .context("load")?;
    Ok(0)
}

pub async fn import(client: &Client, flags: ImportFlags) -> anyhow::Result<i32> {
    let url = flags.source.starts_with("http://") || flags.source.starts_with("https://");
    let mut path =
        format!("/images/create?fromSrc={}", if url { quote(&flags.source) } else { "-".into() });
    if let Some(name) = &flags.repository {
        path.push_str(&format!("&repo={}", quote(name)));
    }
    for (key, value) in [("message", &flags.message), ("platform", &flags.platform)] {
        if let Some(value) = value {
            path.push_str(&format!("&{key}={}", quote(value)));
        }
    }
    for change in &flags.change {
        path.push_str(&format!("&changes={}", quote(change)));
    }
    let source: Option<Source> = match flags.source.as_str() {
        _ if url => None,
        "-" => Some(Box::new(std::io::stdin())),
        file => Some(open(Path::new(file))?),
    };
    send(client, &path, source, |line| {
        // The last line is the image's id.
        if let Some(id) = line["status"].as_str().filter(|text| text.starts_with("sha256:")) {
            println!("{id}");
        }
    })
    .await
    .context("import")?;
    Ok(0)
}

/// Where an archive is read from.
type Source = Box<dyn Read + Send>;

fn open(path: &Path) -> anyhow::Result<Source> {
    let file = File::open(path).with_context(|| format!("open `{}`", path.display()))?;
    Ok(Box::new(file))
}

/// Sends an archive, if there is one to send, and shows the lines of the answer.
async fn send(
    client: &Client,
    path: &str,
    source: Option<Source>,
    mut show: impl FnMut(&Value),
) -> anyhow::Result<()> {
    let (body, reading) = match source {
        None => (Body::None, None),
        Some(source) => {
            let (sender, chunks) = tokio::sync::mpsc::channel(4);
            (Body::Tar(chunks), Some(std::thread::spawn(move || read(source, &sender))))
        }
    };
    let mut body = client.send(Method::POST, path, body).await?.into_body();
    let mut text = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.context("read the answer")?.into_data() {
            text.extend_from_slice(&data);
        }
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            shown(&line, &mut show)?;
        }
    }
    shown(&text, &mut show)?;
    match reading.map(std::thread::JoinHandle::join) {
        None => Ok(()),
        Some(Ok(outcome)) => outcome.context("read the archive"),
        Some(Err(_)) => bail!("reading the archive failed"),
    }
}

/// Reads to the end, or until nobody wants more.
fn read(mut source: Source, sender: &Sender<Bytes>) -> std::io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        let length = source.read(&mut buffer)?;
        let piece = Bytes::copy_from_slice(&buffer[..length]);
        if length == 0 || sender.blocking_send(piece).is_err() {
            return Ok(());
        }
    }
}

fn shown(line: &[u8], show: &mut impl FnMut(&Value)) -> anyhow::Result<()> {
    if line.trim_ascii().is_empty() {
        return Ok(());
    }
    let line: Value = serde_json::from_slice(line).context("an answer that is not JSON")?;
    if let Some(error) = line["errorDetail"]["message"].as_str().or_else(|| line["error"].as_str())
    {
        bail!("{error}");
    }
    show(&line);
    Ok(())
}
