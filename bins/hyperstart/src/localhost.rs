//! Who connects to the guest's localhost from the host: `kubectl port-forward`.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use hyper_link::message::FailureKind;
use tokio::net::TcpStream;

use crate::failure::{Outcome, failure};

/// How long a server may keep its queue full.
const CONNECT: Duration = Duration::from_secs(10);

/// A connection to `port`, by IPv4 if that is served, as containerd tries them.
pub(crate) async fn connect(port: u16) -> Outcome<TcpStream> {
    let trying = async {
        let first = TcpStream::connect((IpAddr::V4(Ipv4Addr::LOCALHOST), port)).await;
        match first {
            Ok(stream) => Ok(stream),
            Err(error) => {
                let second = TcpStream::connect((IpAddr::V6(Ipv6Addr::LOCALHOST), port)).await;
                second.map_err(|_| error.to_string())
            }
        }
    };
    let timeout = || Err(format!("no answer in {} s", CONNECT.as_secs()));
    let connected = tokio::time::timeout(CONNECT, trying).await.unwrap_or_else(|_| timeout());
    connected.map_err(|why| {
        failure(
            FailureKind::NotFound,
            format!("connect to port {port} of the pod's localhost: {why}"),
        )
    })
}
