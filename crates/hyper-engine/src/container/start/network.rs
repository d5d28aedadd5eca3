//! The network's part of a start, and the three files in /etc that go with it.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use hyper_task::names::ADDRESS;
use hyper_task::pod::HOSTS;

use crate::container::spec::Spec;
use crate::core::Core;
use crate::network::spec::{DEFAULT, Endpoint, NONE};
use crate::supervisor::Pod;
use crate::{Error, Result, View, id, oci};

/// File of the bundle with the container's own lines in its `/etc/hosts`, as it was given them last.
const GIVEN: &str = "hosts.given";

/// Whether the container has more than its loopback.
pub(super) fn is_wanted(spec: &Spec) -> bool {
    !matches!(spec.host.network.as_str(), "" | NONE)
}

/// Whether that is its own, and not that of the pod it has joined.
pub(super) fn has_own(spec: &Spec) -> bool {
    spec.host.pod.is_empty() && is_wanted(spec)
}

/// Whether its guest asks our resolver. As in Docker's, `--dns` on the default network goes
/// straight to the servers it names, unless its policy has hosts by `named`.
pub(super) fn has_resolver(spec: &Spec, named: bool) -> bool {
    is_wanted(spec) && (named || spec.host.dns.is_empty() || !is_default(spec))
}

fn is_default(spec: &Spec) -> bool {
    matches!(spec.host.network.as_str(), "default" | DEFAULT)
}

/// Gives the pod its networks and writes its addresses into its `hosts`.
pub(super) async fn attach(core: &Arc<Core>, spec: &Arc<Spec>, bundle: &Path) -> Result<()> {
    if !is_wanted(spec) {
        return Ok(());
    }
    if !has_own(spec) {
        return write_hosts(core, spec, &spec.host.pod, bundle).await;
    }
    let name = core.find(&spec.id)?.view.borrow().name.clone();
    // A start that is given up is followed by a release, which waits for this turn to be over:
    // once begun, it is carried out.
    let turn = core.networks.turn(&spec.id).await;
    let (engine, own) = (core.clone(), spec.clone());
    let attaching = async move {
        let _turn = turn;
        engine.networks.attach(&own, &name).await
    };
    core.tasks.spawn(attaching).await.map_err(|_| Error::ShuttingDown)??;
    write_hosts(core, spec, &spec.id, bundle).await
}

/// With the addresses of `owner`'s pod.
async fn write_hosts(core: &Core, spec: &Spec, owner: &str, bundle: &Path) -> Result<()> {
    let endpoints = core.networks.endpoints(owner);
    let mut text = hosts(spec, &endpoints);
    text.push_str(&linked(core, spec)?);
    let path = bundle.join(HOSTS);
    tokio::fs::write(&path, text).await.map_err(Error::file("write", path))?;
    write_given(bundle, &own(spec, &endpoints)).await
}

/// Brings the container's own lines in `/etc/hosts` to the addresses that a pod has by now, for all its
/// containers that run. What cannot be done is logged, as dockerd does, and tried again with the next
/// change: the resolver has these names, too.
pub(crate) async fn renew_hosts(core: &Core, owner: &str) {
    let mut views = core.views();
    views.retain(|view| view.spec.id == owner || view.spec.host.pod == owner);
    for view in views {
        let Some(pod) = &view.pod else { continue };
        if let Err(error) = renew(core, &view.spec, owner, pod).await {
            tracing::warn!(container = view.name, error = error.chain(), "/etc/hosts");
        }
    }
}

async fn renew(core: &Core, spec: &Spec, owner: &str, pod: &Pod) -> Result<()> {
    let bundle = core.layout.bundle(&spec.id);
    let new = own(spec, &core.networks.endpoints(owner));
    let path = bundle.join(GIVEN);
    let given = match tokio::fs::read_to_string(&path).await {
        Ok(text) => text,
        // Started by a hyperd that did not note it.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::file("read", path)(error)),
    };
    let given: Vec<String> = given.lines().map(str::to_owned).collect();
    if given == new || !is_mounted(&bundle).await? {
        return Ok(());
    }
    let only = |these: &[String], others: &[String]| {
        these.iter().filter(|one| !others.contains(one)).cloned().collect()
    };
    pod.change_hosts(only(&given, &new), only(&new, &given)).await?;
    write_given(&bundle, &new).await
}

/// Whether the container's `/etc/hosts` is ours, and not one that its user gave it.
async fn is_mounted(bundle: &Path) -> Result<bool> {
    let path = bundle.join("config.json");
    let text = tokio::fs::read(&path).await.map_err(Error::file("read", &path))?;
    let config: serde_json::Value =
        serde_json::from_slice(&text).map_err(|error| Error::file("read", &path)(error.into()))?;
    let (own, mounts) = (bundle.join(HOSTS), config["mounts"].as_array());
    let mut mounts = mounts.into_iter().flatten();
    Ok(mounts.any(|mount| mount["source"].as_str().is_some_and(|source| own == Path::new(source))))
}

/// Notes which lines the container has from here.
async fn write_given(bundle: &Path, lines: &[String]) -> Result<()> {
    let (path, new) = (bundle.join(GIVEN), bundle.join("hosts.new"));
    tokio::fs::write(&new, lines.join("\n")).await.map_err(Error::file("write", &new))?;
    tokio::fs::rename(&new, &path).await.map_err(Error::file("write", path))
}

/// Lines for containers that are linked in the default network, where no names are known.
fn linked(core: &Core, spec: &Spec) -> Result<String> {
    let mut text = String::new();
    let links = ["default", DEFAULT].into_iter().filter_map(|name| spec.host.endpoints.get(name));
    for link in links.flat_map(|wish| &wish.links) {
        let View { name, state, .. } = core.find(&link.container)?.view.borrow().clone();
        // It has its place in the network for a while after its end.
        let endpoints = core.networks.endpoints(&link.container).into_iter();
        let mut endpoints = endpoints.filter(|_| state.status.is_up());
        let endpoint = endpoints.find(|endpoint| endpoint.network_name == DEFAULT);
        let Some(endpoint) = endpoint else {
            return Err(Error::Conflict(format!(
                "cannot link to a non running container: {name} as {}: start it first",
                link.alias
            )));
        };
        for ip in endpoint.addresses.iter().map(ipnet::IpNet::addr) {
            text.push_str(&format!("{ip}\t{} {} {name}\n", link.alias, id::short(&link.container)));
        }
    }
    Ok(text)
}

/// `/etc/hosts`.
pub(super) fn hosts(spec: &Spec, endpoints: &[Endpoint]) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
         ff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    // A LAN's gateway is not the host, which is not reached from there.
    let mut bridged = endpoints.iter().filter(|endpoint| !endpoint.is_direct());
    let gateway = bridged.find_map(|endpoint| endpoint.gateway(false));
    for entry in &spec.host.extra_hosts {
        if let Some((name, address)) = entry.split_once([':', '=']) {
            let address = address.trim_start_matches('[').trim_end_matches(']');
            let address = match (address, gateway) {
                ("host-gateway", Some(ip)) => ip.to_string(),
                // The host cannot be reached.
                ("host-gateway", None) => continue,
                (address, _) => address.to_owned(),
            };
            text.push_str(&format!("{address}\t{name}\n"));
        }
    }
    for line in own(spec, endpoints) {
        text.push_str(&line);
        text.push('\n');
    }
    text
}

/// Its lines for the container's own name.
fn own(spec: &Spec, endpoints: &[Endpoint]) -> Vec<String> {
    let hostname = oci::hostname(spec);
    let full = match spec.host.domainname.as_str() {
        "" => String::new(),
        domain => format!("{hostname}.{domain} "),
    };
    let own: Vec<IpAddr> =
        endpoints.iter().flat_map(|endpoint| &endpoint.addresses).map(ipnet::IpNet::addr).collect();
    // No network but loopback: the container's own name is there.
    let own = if own.is_empty() { vec![IpAddr::from([127, 0, 1, 1])] } else { own };
    own.into_iter().map(|ip| format!("{ip}\t{full}{hostname}")).collect()
}

/// `/etc/resolv.conf`; with `resolver` ours is asked.
pub(super) fn resolv_conf(spec: &Spec, resolver: bool) -> String {
    let mut text = String::new();
    if resolver {
        text.push_str(&format!("nameserver {ADDRESS}\n"));
    } else {
        let own = spec.host.dns.is_empty() && is_wanted(spec);
        let servers = if own { host_servers() } else { spec.host.dns.clone() };
        for server in &servers {
            text.push_str(&format!("nameserver {server}\n"));
        }
    }
    let mut search = spec.host.dns_search.clone();
    if search.is_empty() && is_wanted(spec) {
        search = host_search();
    }
    // A single dot: none, not even the host's.
    search.retain(|domain| domain != ".");
    let mut options = spec.host.dns_options.clone();
    if resolver && !is_default(spec) && !options.iter().any(|o| o.starts_with("ndots")) {
        options.push("ndots:0".to_owned());
    }
    for (word, values) in [("search", &search), ("options", &options)] {
        if !values.is_empty() {
            text.push_str(&format!("{word} {}\n", values.join(" ")));
        }
    }
    text
}

/// The host's servers that are not on its loopback, for who cannot ask our resolver. Blocking.
fn host_servers() -> Vec<String> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let all = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver "));
    let servers = all.map(|server| server.trim().to_owned());
    servers.filter(|server| server.parse().is_ok_and(|ip: IpAddr| !ip.is_loopback())).collect()
}

/// The host's search domains. Blocking.
fn host_search() -> Vec<String> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let line = text.lines().rev().find_map(|line| line.trim().strip_prefix("search "));
    line.map(|line| line.split_whitespace().map(str::to_owned).collect()).unwrap_or_default()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn etc_files() {
        let mut spec = Spec { id: "ab".repeat(32), ..Spec::default() };
        spec.host.extra_hosts =
            vec!["db:10.0.0.1".into(), "six:[fe80::1]".into(), "host:host-gateway".into()];
        spec.host.dns = vec!["9.9.9.9".into()];
        spec.host.dns_search = vec!["a".into(), "b".into()];
        let text = hosts(&spec, &[]);
        assert!(text.contains("10.0.0.1\tdb\n") && text.contains("fe80::1\tsix\n"), "{text}");
        assert!(text.ends_with("127.0.1.1\tabababababab\n"), "{text}");
        assert_eq!(
            resolv_conf(&spec, has_resolver(&spec, false)),
            "nameserver 9.9.9.9\nsearch a b\n"
        );
        spec.host.network = "mine".into();
        assert_eq!(
            resolv_conf(&spec, has_resolver(&spec, false)),
            "nameserver 127.0.0.11\nsearch a b\noptions ndots:0\n"
        );
        let endpoint = serde_json::json!({
            "id": "e", "network": "n", "network_name": "mine", "container": "c", "mac": "",
            "interface": "eth0", "link": "l", "addresses": ["10.1.0.2/16", "fd00::2/64"],
            "gateways": ["10.1.0.1"], "aliases": [], "names": [],
        });
        let text = hosts(&spec, &[serde_json::from_value(endpoint.clone()).unwrap()]);
        assert!(text.ends_with("10.1.0.2\tabababababab\nfd00::2\tabababababab\n"), "{text}");
        assert!(text.contains("10.1.0.1\thost\n"), "{text}");
        let mut on_lan: Endpoint = serde_json::from_value(endpoint).unwrap();
        on_lan.link.clear();
        let text = hosts(&spec, &[on_lan]);
        assert!(!text.contains("\thost\n"), "a router is taken for the host: {text}");
    }
}
