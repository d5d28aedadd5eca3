//! A token server for registries: distribution's `GET` with Basic, and OAuth2's `POST`.
//!
//! Source: distribution `docs/content/spec/auth/token.md`, `oauth.md`, `jwt.md`. Tokens are signed by `openssl`.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::json;
use tempfile::TempDir;

use crate::command::{run, run_command};

/// The service that tokens are for.
pub(crate) const SERVICE: &str = "registry.test";
/// Whom tokens are from.
pub(crate) const ISSUER: &str = "tokens.test";

/// A running token server that knows one user; its thread ends with the process.
#[derive(Debug)]
pub struct TokenServer {
    dir: TempDir,
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

/// What is known there.
#[derive(Debug)]
struct Known {
    dir: PathBuf,
    user: String,
    password: String,
    identity: String,
    /// It knows no `GET`.
    only_oauth: bool,
    asked: Arc<Mutex<Vec<String>>>,
}

impl TokenServer {
    /// Starts one for `user`, whose identity token is `identity`.
    pub fn start(user: &str, password: &str, identity: &str, only_oauth: bool) -> Self {
        let dir = tempfile::Builder::new().prefix("hyper-tokens-").tempdir().expect("directory");
        let words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=tokens -keyout key.pem -out cert.pem";
        let mut openssl = Command::new("openssl");
        openssl.args(words.split_whitespace()).current_dir(dir.path());
        run_command(openssl, Vec::new(), Duration::from_secs(60)).succeeded();
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let port = listener.local_addr().expect("address").port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let known = Known {
            dir: dir.path().to_owned(),
            user: user.to_owned(),
            password: password.to_owned(),
            identity: identity.to_owned(),
            only_oauth,
            asked: Arc::clone(&asked),
        };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that breaks off gets no answer.
                let _ = known.serve(&stream);
            }
        });
        Self { dir, port, asked }
    }

    /// Where tokens are had.
    pub fn realm(&self) -> String {
        format!("http://127.0.0.1:{}/token", self.port)
    }

    /// The certificate that tokens are signed with.
    pub fn certificate(&self) -> PathBuf {
        self.dir.path().join("cert.pem")
    }

    /// What was asked since the last look: `GET basic`, `GET anonymous`, `POST refresh_token`, ….
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().expect("the list"))
    }
}

impl Known {
    fn serve(&self, mut stream: &TcpStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut reader = BufReader::new(stream);
        let mut first = String::new();
        reader.read_line(&mut first)?;
        let (mut length, mut authorization) = (0, None);
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim().split_once(':') else { break };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse().unwrap_or(0),
                "authorization" => authorization = Some(value.trim().to_owned()),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let path = first.split(' ').nth(1).unwrap_or_default();
        let post = first.starts_with("POST");
        let fields = match post {
            true => fields(&String::from_utf8_lossy(&body)),
            false => fields(path.split_once('?').map_or("", |(_, query)| query)),
        };
        let (status, answer) = self.answer(post, authorization.as_deref(), &fields);
        let text = answer.to_string();
        let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\n");
        let end = format!("Content-Length: {}\r\nConnection: close\r\n\r\n{text}", text.len());
        stream.write_all(format!("{head}{end}").as_bytes())
    }

    fn answer(
        &self,
        post: bool,
        authorization: Option<&str>,
        fields: &[(String, String)],
    ) -> (&'static str, serde_json::Value) {
        let field = |wanted: &str| {
            fields.iter().find(|(name, _)| name == wanted).map_or("", |(_, value)| value)
        };
        let grant = field("grant_type");
        let what = match (post, authorization) {
            (true, _) => format!("POST {grant}"),
            (false, Some(_)) => "GET basic".to_owned(),
            (false, None) => "GET anonymous".to_owned(),
        };
        self.asked.lock().expect("the list").push(what);
        if !post && self.only_oauth {
            return ("405 Method Not Allowed", json!({}));
        }
        let basic = STANDARD.encode(format!("{}:{}", self.user, self.password));
        let anonymous = !post && authorization.is_none();
        let good = match (post, grant) {
            (true, "password") => {
                field("username") == self.user && field("password") == self.password
            }
            (true, "refresh_token") => field("refresh_token") == self.identity,
            (true, _) => return ("400 Bad Request", json!({ "error": "unsupported_grant_type" })),
            (false, _) => anonymous || authorization == Some(&format!("Basic {basic}")),
        };
        if !good || field("service") != SERVICE {
            return ("401 Unauthorized", json!({ "details": "who are you?" }));
        }
        let scopes = fields.iter().filter(|(name, _)| name == "scope" && !anonymous);
        let scopes = scopes.flat_map(|(_, value)| value.split(' ')).filter(|one| !one.is_empty());
        let access: Vec<_> = scopes
            .filter_map(|scope| {
                let (kind, rest) = scope.split_once(':')?;
                let (name, actions) = rest.rsplit_once(':')?;
                let actions: Vec<&str> = actions.split(',').collect();
                Some(json!({ "type": kind, "name": name, "actions": actions }))
            })
            .collect();
        let token = sign(&self.dir, &access);
        let mut answer = match post {
            true => json!({ "access_token": token }),
            false => json!({ "token": token }),
        };
        if field("access_type") == "offline" || field("offline_token") == "true" {
            answer["refresh_token"] = json!(self.identity);
        }
        ("200 OK", answer)
    }
}

/// A JWT that a registry with our certificate takes.
fn sign(dir: &Path, access: &[serde_json::Value]) -> String {
    let pem = std::fs::read_to_string(dir.join("cert.pem")).expect("certificate");
    let der: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let head = json!({ "typ": "JWT", "alg": "RS256", "x5c": [der] });
    let claims = json!({
        "iss": ISSUER, "sub": "somebody", "aud": SERVICE, "exp": now + 300, "nbf": now - 60,
        "iat": now, "jti": "1", "access": access,
    });
    let encoded = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encoded(&head), encoded(&claims));
    let path = dir.join(format!("{:?}", std::thread::current().id()));
    std::fs::write(&path, &signed).expect("write");
    let (key, path) = (dir.join("key.pem").display().to_string(), path.display().to_string());
    let arguments = ["dgst", "-sha256", "-sign", key.as_str(), path.as_str()];
    let signature = run("openssl", &arguments, Duration::from_secs(20)).succeeded().stdout;
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// `application/x-www-form-urlencoded`
fn fields(text: &str) -> Vec<(String, String)> {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (decoded(name), decoded(value))).collect()
}

fn decoded(text: &str) -> String {
    let (mut bytes, mut out) = (text.bytes(), Vec::new());
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [bytes.next().unwrap_or(b'0'), bytes.next().unwrap_or(b'0')];
                let digits = String::from_utf8_lossy(&digits).into_owned();
                u8::from_str_radix(&digits, 16).unwrap_or(b'?')
            }
            byte => byte,
        });
    }
    String::from_utf8_lossy(&out).into_owned()
}
