//! NFS volumes: mounted by the guest's kernel from the pod's network, with no program's help.
//!
//! ```text
//!   connect to the server (its silence ends here) ─► our own address ─► mount, newest version first
//! ```

use std::{
    ffi::CString,
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use hyper_link::message::Failure;
use rustix::{io::Errno, mount::mount};

use super::inside::{Inside, name_of};
use crate::{
    failure::{Doing as _, Outcome, invalid, unsupported},
    oci::{mounts, spec::Mount},
};

/// Kind of the mount.
pub(super) const KIND: &str = "nfs4";
const PORT: u16 = 2049;
/// How long the server may take to take a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// Minor versions where none is asked for.
const VERSIONS: [&str; 3] = ["vers=4.2", "vers=4.1", "vers=4.0"];
/// What waits for a server that is gone gets an error after some 20 s, unless it is said otherwise:
/// a container can always be ended.
const PATIENCE: &str = "softerr,timeo=50,retrans=2";

/// Mounts one.
pub(super) fn mount_nfs(inside: &Inside, wanted: &Mount) -> Outcome<()> {
    let at = &wanted.destination;
    let mut data = String::new();
    let options = mounts::parse(&wanted.options, &mut data);
    let value = |key: &str| {
        options.data.split(',').find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    };
    let server: IpAddr = value("addr")
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| invalid(format!("mount {at}: nfs without addr=ADDRESS")))?;
    let port = match value("port") {
        None => PORT,
        Some(text) => text.parse().doing(|| format!("mount {at}: port={text}"))?,
    };
    let what = || format!("mount {at} from NFS server {server} port {port} ({})", wanted.source);
    let connection =
        TcpStream::connect_timeout(&SocketAddr::new(server, port), CONNECT).doing(what)?;
    let own = connection.local_addr().doing(what)?.ip();
    drop(connection);
    let target = inside.directory(at)?;
    let asked = value("vers").is_some() || value("minorversion").is_some();
    let versions = if asked { &[""][..] } else { &VERSIONS[..] };
    let mut refusal = Errno::PROTONOSUPPORT;
    for version in versions {
        let words = [*version, PATIENCE, options.data, &format!("clientaddr={own}")];
        let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
        let data = CString::new(words.join(",")).doing(what)?;
        let (source, target) = (wanted.source.as_str(), name_of(&target));
        match mount(source, target, KIND, options.flags, data.as_c_str()) {
            Ok(()) => return Ok(()),
            // The next older one.
            Err(error @ Errno::PROTONOSUPPORT) => refusal = error,
            Err(error) => return Err(told(error, &what())),
        }
    }
    Err(told(refusal, &what()))
}

fn told(error: Errno, what: &str) -> Failure {
    let why = match error {
        Errno::NODEV => "this guest kernel has no NFS",
        Errno::NOENT => "the server has no such directory, or does not show it to this pod",
        Errno::PROTONOSUPPORT => "the server does not speak this version of NFS",
        // What a soft mount says of silence.
        Errno::TIMEDOUT | Errno::IO => "the server does not answer as one of NFS does",
        Errno::ACCESS | Errno::PERM => "the server does not let this pod mount it",
        Errno::INVAL => "the kernel does not take these options",
        _ => {
            return crate::failure::failure(
                hyper_link::message::FailureKind::Internal,
                format!("{what}: {error}"),
            );
        }
    };
    unsupported(format!("{what}: {why}: {error}"))
}
