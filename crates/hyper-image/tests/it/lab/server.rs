//! A registry of a few lines that can be told to misbehave.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_image::Digest;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::handmade::{Image, MANIFEST};

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub target: String,
    headers: HashMap<String, String>,
    pub body: String,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Closes the connection after so many bytes of the body.
    pub cut: Option<usize>,
    /// Waits before each 64 KiB.
    pub slow: Option<Duration>,
}

impl Reply {
    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, headers: Vec::new(), body: body.into(), cut: None, slow: None }
    }

    pub fn status(status: u16) -> Self {
        Self { status, ..Self::ok("") }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

type Handler = dyn Fn(&Request, Reply) -> Reply + Send + Sync;
type Content = HashMap<String, (Vec<u8>, String)>;

/// Serves images until it is dropped. The handler sees each request and the answer a good registry would give.
pub struct Server {
    pub port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
    task: JoinHandle<()>,
}

impl Server {
    pub async fn start(
        images: Vec<(&str, Image)>,
        handler: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::<Mutex<Vec<Request>>>::default();
        let content = Arc::new(content(images));
        let handler: Arc<Handler> = Arc::new(handler);
        let log = requests.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (content, handler, log) = (content.clone(), handler.clone(), log.clone());
                tokio::spawn(async move { drop(serve(stream, &content, &*handler, &log).await) });
            }
        });
        Self { port, requests, task }
    }

    pub fn name(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }

    /// Requests whose target has this part.
    pub fn requests(&self, part: &str) -> Vec<Request> {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter(|request| request.target.contains(part)).cloned().collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Path → body and type.
fn content(images: Vec<(&str, Image)>) -> Content {
    let mut content = Content::new();
    let blob = "application/octet-stream".to_owned();
    for (name, image) in images {
        let (repository, tag) = name.split_once(':').unwrap();
        let digest = Digest::of(&image.manifest);
        for key in [tag.to_owned(), digest.to_string()] {
            let path = format!("/v2/{repository}/manifests/{key}");
            content.insert(path, (image.manifest.clone(), MANIFEST.to_owned()));
        }
        let blobs = image.layers.iter().map(|layer| &layer.blob).chain([&image.config]);
        for bytes in blobs {
            let path = format!("/v2/{repository}/blobs/{}", Digest::of(bytes));
            content.insert(path, (bytes.clone(), blob.clone()));
        }
    }
    content
}

async fn serve(
    mut stream: TcpStream,
    content: &Content,
    handler: &Handler,
    log: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        let Some(request) = read_request(&mut stream, &mut buffer).await? else { return Ok(()) };
        log.lock().unwrap().push(request.clone());
        let good = match content.get(&request.target) {
            None => Reply::status(404),
            Some((body, media_type)) => ranged(&request, body).header("Content-Type", media_type),
        };
        let reply = handler(&request, good);
        let mut head =
            format!("HTTP/1.1 {} x\r\nContent-Length: {}\r\n", reply.status, reply.body.len());
        for (name, value) in &reply.headers {
            head += &format!("{name}: {value}\r\n");
        }
        stream.write_all((head + "\r\n").as_bytes()).await?;
        let shown = &reply.body[..reply.cut.unwrap_or(reply.body.len()).min(reply.body.len())];
        for part in shown.chunks(64 << 10) {
            if let Some(pause) = reply.slow {
                tokio::time::sleep(pause).await;
            }
            stream.write_all(part).await?;
        }
        stream.flush().await?;
        if reply.cut.is_some() {
            return stream.shutdown().await;
        }
    }
}

fn ranged(request: &Request, body: &[u8]) -> Reply {
    let range = request.header("range");
    let from =
        range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    match from {
        None => Reply::ok(body),
        Some(from) if from < body.len() => {
            let range = format!("bytes {from}-{}/{}", body.len() - 1, body.len());
            Reply { status: 206, ..Reply::ok(&body[from..]) }.header("Content-Range", &range)
        }
        Some(_) => Reply::status(416),
    }
}

/// `None` at the end of the connection, and for a TLS hello: this server speaks plain HTTP.
async fn read_request(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
) -> std::io::Result<Option<Request>> {
    let end = loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
        if buffer.first() == Some(&0x16) {
            stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\nthis is not https\n").await?;
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    let mut lines = head.lines();
    let mut first = lines.next().unwrap_or_default().split(' ');
    let (method, target) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length: usize =
        headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    while buffer.len() < end + 4 + length {
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
    let body = String::from_utf8_lossy(&buffer[end + 4..end + 4 + length]).into_owned();
    let request = Request { method: method.to_owned(), target: target.to_owned(), headers, body };
    buffer.drain(..end + 4 + length);
    Ok(Some(request))
}
