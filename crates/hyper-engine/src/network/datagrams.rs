//! Datagrams that reach a published port's own socket are passed on to the pod: a flow for each client, through which
//! the answers come back, until it has been silent for a while.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::task::JoinSet;

/// What the kernel's connection tracking gives a flow that was answered (`nf_conntrack-sysctl`).
const SILENCE: Duration = Duration::from_secs(120);
/// Clients of one port at once; those of further ones are lost, as with a full table of the kernel.
const FLOWS: usize = 512;
/// Largest datagram (RFC 768).
const LARGEST: usize = 65_535;
/// After an error that nothing is known to be done about.
const REST: Duration = Duration::from_millis(100);

/// The way of one client.
#[derive(Debug)]
struct Flow {
    pod: UdpSocket,
    /// The client has sent something since it was looked at last.
    heard: AtomicBool,
}

/// Passes datagrams on until it is aborted.
pub(super) async fn serve(host: UdpSocket, to: SocketAddr) {
    pass(host, to, SILENCE).await;
}

async fn pass(host: UdpSocket, to: SocketAddr, silence: Duration) {
    let host = Arc::new(host);
    let mut flows: HashMap<SocketAddr, Arc<Flow>> = HashMap::new();
    let mut answers = JoinSet::new();
    let mut datagram = vec![0; LARGEST];
    loop {
        let (length, client) = tokio::select! {
            received = host.recv_from(&mut datagram) => match received {
                Ok(received) => received,
                Err(_) => {
                    tokio::time::sleep(REST).await;
                    continue;
                }
            },
            Some(ended) = answers.join_next() => {
                if let Ok(client) = ended {
                    flows.remove(&client);
                }
                continue;
            }
        };
        if !flows.contains_key(&client) {
            if flows.len() >= FLOWS {
                continue;
            }
            let Ok(pod) = connect(to).await else { continue };
            let flow = Arc::new(Flow { pod, heard: AtomicBool::new(true) });
            let back = answer(Arc::clone(&flow), Arc::clone(&host), client, silence);
            answers.spawn(async move {
                back.await;
                client
            });
            flows.insert(client, flow);
        }
        if let Some(flow) = flows.get(&client) {
            flow.heard.store(true, Ordering::Relaxed);
            // Datagrams may be lost; that nobody listens there is told by the next call.
            let _ = flow.pod.send(&datagram[..length]).await;
        }
    }
}

/// Carries what the pod says to its client, until both have been silent.
async fn answer(flow: Arc<Flow>, host: Arc<UdpSocket>, client: SocketAddr, silence: Duration) {
    let mut datagram = vec![0; LARGEST];
    loop {
        match tokio::time::timeout(silence, flow.pod.recv(&mut datagram)).await {
            Ok(Ok(length)) => {
                let _ = host.send_to(&datagram[..length], client).await;
            }
            // Nobody listens there now; somebody may later.
            Ok(Err(_)) => tokio::time::sleep(REST).await,
            Err(_) if flow.heard.swap(false, Ordering::Relaxed) => {}
            Err(_) => return,
        }
    }
}

async fn connect(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr =
        if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(to).await?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

    async fn ask(client: &UdpSocket, text: &[u8]) -> Vec<u8> {
        client.send(text).await.unwrap();
        let mut answer = [0; 64];
        let wait = tokio::time::timeout(Duration::from_secs(5), client.recv(&mut answer));
        let length = wait.await.unwrap().unwrap();
        answer[..length].to_vec()
    }

    /// Tells each client which one it is, and echoes.
    async fn pod() -> (SocketAddr, tokio::task::JoinHandle<()>) {
        let socket = UdpSocket::bind(LOCAL).await.unwrap();
        let address = socket.local_addr().unwrap();
        let serve = tokio::spawn(async move {
            let mut seen: Vec<SocketAddr> = Vec::new();
            let mut datagram = [0; 64];
            while let Ok((length, from)) = socket.recv_from(&mut datagram).await {
                if !seen.contains(&from) {
                    seen.push(from);
                }
                let number = seen.iter().position(|one| *one == from).unwrap();
                let text = [number.to_string().as_bytes(), &datagram[..length]].concat();
                socket.send_to(&text, from).await.unwrap();
            }
        });
        (address, serve)
    }

    #[tokio::test]
    async fn each_client_has_a_flow_and_its_own_answers() {
        let (to, served) = pod().await;
        let host = UdpSocket::bind(LOCAL).await.unwrap();
        let at = host.local_addr().unwrap();
        let passing = tokio::spawn(pass(host, to, Duration::from_millis(200)));
        let clients = [connect(at).await.unwrap(), connect(at).await.unwrap()];
        assert_eq!(ask(&clients[0], b"a").await, b"0a");
        assert_eq!(ask(&clients[1], b"b").await, b"1b");
        assert_eq!(ask(&clients[0], b"c").await, b"0c", "the same flow");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(ask(&clients[0], b"d").await, b"2d", "a silent flow ends");
        passing.abort();
        served.abort();
    }

    /// A pod that does not listen yet is told of by the kernel as an error of the flow's socket.
    #[tokio::test]
    async fn a_pod_that_listens_late_is_reached() {
        let late = UdpSocket::bind(LOCAL).await.unwrap().local_addr().unwrap();
        let host = UdpSocket::bind(LOCAL).await.unwrap();
        let client = connect(host.local_addr().unwrap()).await.unwrap();
        let passing = tokio::spawn(pass(host, late, SILENCE));
        for _ in 0..5 {
            client.send(b"nobody").await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let pod = UdpSocket::bind(late).await.unwrap();
        client.send(b"there").await.unwrap();
        let mut datagram = [0; 64];
        let wait = tokio::time::timeout(Duration::from_secs(5), pod.recv_from(&mut datagram));
        let (length, _) = wait.await.unwrap().unwrap();
        assert_eq!(&datagram[..length], b"there");
        passing.abort();
    }
}
