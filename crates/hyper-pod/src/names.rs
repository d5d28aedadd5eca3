//! Resolves the names that a guest asks for: those of its networks from files that hyperd keeps
//! ([`hyper_task::names`]), all else by asking on, on the host.
//!
//! ```text
//! agent ─question─▶ known name? ─yes─▶ answer
//!                     └ no ─▶ may it be asked on? ─no─▶ no such name
//!                               └ yes ─▶ servers of the pod, or the host's, one after the other
//!                                          └ a policy allows the name ─▶ its addresses are pinned
//! ```
//! What a guest asks is hostile: bounded, parsed by hickory-proto, and never more than [`AT_ONCE`]
//! at a time. Files are read at each question, so an hyperd that is away changes nothing.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hyper_link::Link;
use hyper_link::names::{OVER_TCP, read, write};
use hyper_network::egress::Policy;
use hyper_network::pins::{Pin, Place};
use hyper_task::names::{NetworkNames, Pinning, PodNames};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::create::blocking;
use crate::{PodError, chain};

/// Questions of one pod that are resolved at the same time.
const AT_ONCE: usize = 32;
/// How long one server may think.
const SERVER: Duration = Duration::from_secs(4);
/// Servers that are asked, at most.
const SERVERS: usize = 3;
/// Seconds that a guest may remember a name of its networks.
const TTL: u32 = 5;
/// Of an answer over UDP, unless the question allows more.
const DATAGRAM: usize = 512;
/// From one answer that is pinned to the next.
const PACE: Duration = Duration::from_millis(50);
/// Addresses of one answer that are pinned.
const ADDRESSES: usize = 64;
/// Longest file of names that is read.
const MAX_FILE: u64 = 8 << 20;

/// Serves a guest's questions until its link ends. Returns the stream's id for the agent.
pub(crate) fn serve(link: &Link, file: PathBuf) -> u32 {
    let (id, mut questions, answers) = link.open();
    // Ends with the link, whose end every read tells.
    tokio::spawn(async move {
        let (answers, room) = (Arc::new(Mutex::new(answers)), Arc::new(Semaphore::new(AT_ONCE)));
        let file: Arc<Path> = file.into();
        let mut tasks = JoinSet::new();
        while let Ok(Some((number, question))) = read(&mut questions).await {
            while tasks.try_join_next().is_some() {}
            // Not reading on is what stops a guest that asks too much.
            let Ok(permit) = room.clone().acquire_owned().await else { return };
            let (answers, file) = (answers.clone(), file.clone());
            tasks.spawn(async move {
                let _permit = permit;
                if let Some(answer) = resolve(&file, &question, number & OVER_TCP != 0).await {
                    // The link's end ends this, too.
                    let _ = write(&mut *answers.lock().await, number, &answer).await;
                }
            });
        }
    });
    id
}

/// The answer to a DNS message, by the names in `file`; `None` for what is no question.
pub async fn resolve(file: &Path, bytes: &[u8], tcp: bool) -> Option<Vec<u8>> {
    let question = Message::from_vec(bytes).ok()?;
    if question.metadata.message_type != MessageType::Query {
        return None;
    }
    let [query] = &question.queries[..] else {
        return reply(&question, ResponseCode::FormErr, Vec::new()).to_vec().ok();
    };
    let path = file.to_owned();
    let (name, kind) = (query.name().clone(), query.query_type());
    let asked = name.clone();
    let known = tokio::task::spawn_blocking(move || known(&path, &asked, kind)).await.ok()?;
    let (pod, records) = known;
    if let Some(records) = records {
        let mut answer = reply(&question, ResponseCode::NoError, records);
        answer.metadata.authoritative = true;
        let bytes = answer.to_vec().ok()?;
        let most = usize::from(question.max_payload()).max(DATAGRAM);
        return if tcp || bytes.len() <= most {
            Some(bytes)
        } else {
            answer.truncate().to_vec().ok()
        };
    }
    if !pod.forward {
        return reply(&question, ResponseCode::NXDomain, Vec::new()).to_vec().ok();
    }
    let ways = ways(&pod);
    let text = text(&name);
    let asks = |way: &BTreeMap<String, Policy>| way.values().all(|policy| policy.asks(&text));
    if !(ways.is_empty() || ways.iter().any(asks)) {
        return reply(&question, ResponseCode::NXDomain, Vec::new()).to_vec().ok();
    }
    let servers = if pod.servers.is_empty() { host_servers().await } else { pod.servers };
    for server in servers.into_iter().take(SERVERS) {
        let asked = tokio::time::timeout(SERVER, ask(server, bytes, tcp)).await;
        let Ok(Ok(answer)) = asked else { continue };
        match pinned(pod.pinning.as_ref(), &ways, &text, &answer).await {
            Ok(()) => return Some(answer),
            Err(error) => {
                // Who got the answer could not reach what it says.
                tracing::warn!(error = chain(&error), "an answer is not passed on");
                break;
            }
        }
    }
    reply(&question, ResponseCode::ServFail, Vec::new()).to_vec().ok()
}

/// Lower case, without a dot at the end.
fn text(name: &Name) -> String {
    name.to_ascii().trim_end_matches('.').to_ascii_lowercase()
}

/// The policies of each way out, by chain; none where no policy has names.
fn ways(pod: &PodNames) -> Vec<BTreeMap<String, Policy>> {
    // They were read when they were made: what is none now opens nothing.
    let read = |(chain, text): (&String, &String)| Some((chain.clone(), text.parse().ok()?));
    let ways = pod.pinning.iter().flat_map(|pinning| &pinning.ways);
    ways.map(|way| way.iter().filter_map(read).collect()).collect()
}

/// Opens the addresses of an answer to the pod, if its policies say so of the name.
async fn pinned(
    pinning: Option<&Pinning>,
    ways: &[BTreeMap<String, Policy>],
    name: &str,
    answer: &[u8],
) -> Result<(), PodError> {
    let all = ways.iter().flatten();
    let policies: BTreeMap<String, Policy> =
        all.map(|(chain, policy)| (chain.clone(), policy.clone())).collect();
    let covered = policies.values().any(|policy| policy.covers(name));
    let (Some(pinning), true) = (pinning.cloned(), covered) else { return Ok(()) };
    let pins = pins(name, answer);
    if pins.is_empty() {
        return Ok(());
    }
    let known = pinning.file.clone();
    let known = blocking(move || Ok(hyper_network::pins::read(&known))).await?;
    if pins.iter().all(|pin| pin.is_among(&known)) {
        return Ok(());
    }
    // A guest that asks for ever new names must not keep others from the lock: one at a time, paced.
    let mut last = LAST.lock().await;
    if let Some(at) = *last {
        tokio::time::sleep_until(at + PACE).await;
    }
    let pinning = blocking(move || {
        let Pinning { table, file, lock, .. } = &pinning;
        let place = Place { table, file, lock, policies: &policies };
        place.pin(&pins).map_err(PodError::Network)
    });
    let done = pinning.await;
    *last = Some(Instant::now());
    done
}

/// When this supervisor, which has one pod, pinned last.
static LAST: Mutex<Option<Instant>> = Mutex::const_new(None);

/// The addresses that an answer to `name` has; aliases are followed by who answered.
fn pins(name: &str, answer: &[u8]) -> Vec<Pin> {
    let Ok(answer) = Message::from_vec(answer) else { return Vec::new() };
    if !answer.queries.iter().any(|query| text(query.name()) == name) {
        return Vec::new();
    }
    let address = |record: &Record| {
        let ip = match &record.data {
            RData::A(ip) => IpAddr::V4(ip.0),
            RData::AAAA(ip) => IpAddr::V6(ip.0),
            _ => return None,
        };
        Some(Pin::new(name, ip, record.ttl))
    };
    answer.answers.iter().filter_map(address).take(ADDRESSES).collect()
}

fn reply(question: &Message, code: ResponseCode, records: Vec<Record>) -> Message {
    let asked = &question.metadata;
    let mut answer = Message::response(asked.id, asked.op_code);
    answer.metadata.recursion_desired = asked.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.metadata.response_code = code;
    answer.add_queries(question.queries.iter().cloned());
    answer.add_answers(records);
    answer
}

/// What the pod may ask, and its own networks' records of a name: `None` when it is not theirs.
/// Blocking.
fn known(file: &Path, name: &Name, kind: RecordType) -> (PodNames, Option<Vec<Record>>) {
    let pod: PodNames = document(file);
    let text = text(name);
    let text = pod.aliases.get(&text).unwrap_or(&text);
    let mut found = false;
    let mut records = Vec::new();
    for path in &pod.networks {
        let network: NetworkNames = document(path);
        for ip in network.names.get(text).into_iter().flatten() {
            found = true;
            let data = match (ip, kind) {
                (IpAddr::V4(ip), RecordType::A | RecordType::ANY) => RData::A(A(*ip)),
                (IpAddr::V6(ip), RecordType::AAAA | RecordType::ANY) => RData::AAAA(AAAA(*ip)),
                _ => continue,
            };
            records.push(Record::from_rdata(name.clone(), TTL, data));
        }
        if kind == RecordType::PTR
            && let Ok(net) = name.parse_arpa_name()
            && let Some(shown) = network.addresses.get(&net.addr())
            && let Ok(shown) = Name::from_ascii(format!("{shown}."))
        {
            found = true;
            records.push(Record::from_rdata(name.clone(), TTL, RData::PTR(PTR(shown))));
        }
    }
    (pod, found.then_some(records))
}

/// An absent or broken file knows nothing.
fn document<T: Default + serde::de::DeserializeOwned>(path: &Path) -> T {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|f| f.take(MAX_FILE).read_to_end(&mut bytes));
    match read {
        Ok(_) => serde_json::from_slice(&bytes).unwrap_or_default(),
        Err(_) => T::default(),
    }
}

/// The host's resolvers, as they are now.
async fn host_servers() -> Vec<IpAddr> {
    let text = tokio::fs::read_to_string("/etc/resolv.conf").await.unwrap_or_default();
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse().ok())
        .collect()
}

async fn ask(server: IpAddr, question: &[u8], tcp: bool) -> std::io::Result<Vec<u8>> {
    let server = SocketAddr::new(server, 53);
    if tcp {
        let mut stream = TcpStream::connect(server).await?;
        let length = u16::try_from(question.len()).map_err(std::io::Error::other)?;
        stream.write_u16(length).await?;
        stream.write_all(question).await?;
        let mut answer = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut answer).await?;
        return Ok(answer);
    }
    let any: IpAddr = if server.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    // Only this server's answers reach the socket.
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut answer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut answer).await?;
        if length >= 12 && answer[..2] == question[..2] {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use hickory_proto::op::Query;

    fn question(name: &str, kind: RecordType) -> Vec<u8> {
        let mut message = Message::query();
        message.metadata.id = 77;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message.to_vec().unwrap()
    }

    #[tokio::test]
    async fn names_of_the_networks_are_answered_and_others_only_where_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let (pod, network) = (dir.path().join("pod"), dir.path().join("net"));
        let ip: IpAddr = "10.1.0.2".parse().unwrap();
        let mut names = NetworkNames::default();
        names.names.insert("web".into(), vec![ip, "fd00::2".parse().unwrap()]);
        names.addresses.insert(ip, "web.mine".into());
        std::fs::write(&network, serde_json::to_vec(&names).unwrap()).unwrap();
        let known = PodNames { networks: vec![network], ..PodNames::default() };
        std::fs::write(&pod, serde_json::to_vec(&known).unwrap()).unwrap();
        let ask = async |name: &str, kind| {
            let bytes = resolve(&pod, &question(name, kind), false).await.unwrap();
            let answer = Message::from_vec(&bytes).unwrap();
            assert_eq!(answer.metadata.id, 77);
            let data: Vec<String> =
                answer.answers.iter().map(|record| record.data.to_string()).collect();
            (answer.metadata.response_code, data)
        };
        let ok = ResponseCode::NoError;
        assert_eq!(ask("WEB.", RecordType::A).await, (ok, vec!["10.1.0.2".to_owned()]));
        assert_eq!(ask("web.", RecordType::AAAA).await, (ok, vec!["fd00::2".to_owned()]));
        assert_eq!(ask("web.", RecordType::MX).await, (ok, vec![]));
        let arpa = ask("2.0.1.10.in-addr.arpa.", RecordType::PTR).await;
        assert_eq!(arpa, (ok, vec!["web.mine.".to_owned()]));
        assert_eq!(ask("other.example.", RecordType::A).await.0, ResponseCode::NXDomain);
        assert!(resolve(&pod, b"no question", false).await.is_none());
    }
}
