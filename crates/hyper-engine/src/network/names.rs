//! The files that pods' resolvers read, see [`hyper_task::names`].

use std::collections::BTreeMap;
use std::path::Path;

use hyper_task::names::{NetworkNames, Pinning, PodNames};
use serde::Serialize;

use super::spec::{DEFAULT, Endpoint, Link, Mode, Network, Policy};
use crate::container::spec::Spec;
use crate::{Error, Result, id, layout, oci};

/// All that a container is found by, in its networks.
pub(super) fn of(spec: &Spec, name: &str, aliases: &[String]) -> Vec<String> {
    let short = id::short(&spec.id);
    let mut names = vec![name.to_owned()];
    names.extend(aliases.iter().cloned());
    names.extend([short.to_owned(), oci::hostname(spec).to_owned()]);
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| !name.is_empty() && seen.insert(name.to_ascii_lowercase()));
    names
}

/// A network's names. In the default network containers do not find each other, as in Docker's.
pub(super) fn network<'e>(
    name: &str,
    endpoints: impl Iterator<Item = &'e Endpoint>,
) -> NetworkNames {
    let mut all = NetworkNames::default();
    if name == DEFAULT {
        return all;
    }
    for endpoint in endpoints {
        let ips = endpoint.addresses.iter().map(ipnet::IpNet::addr);
        for name in &endpoint.names {
            all.names.entry(name.to_ascii_lowercase()).or_default().extend(ips.clone());
        }
        if let Some(first) = endpoint.names.first() {
            let shown = format!("{first}.{}", endpoint.network_name);
            all.addresses.extend(ips.map(|ip| (ip, shown.clone())));
        }
    }
    all
}

/// What a pod knows that is in these networks, each with the policies that hold there by chain.
pub(super) fn pod(
    layout: &layout::Layout,
    table: String,
    spec: &Spec,
    networks: &[(Network, BTreeMap<String, Policy>)],
) -> PodNames {
    // Who may reach nothing asks nobody outside for names either, nor who is in internal networks only.
    let shut = |policy: &Policy| policy.mode == Mode::None && policy.names.is_empty();
    let ways: Vec<_> = networks
        .iter()
        .filter(|(network, policies)| !network.internal && !policies.values().any(shut))
        .map(|(_, policies)| policies)
        .collect();
    let named = ways.iter().any(|policies| policies.values().any(|one| !one.names.is_empty()));
    let text = |policies: &&BTreeMap<String, Policy>| {
        policies.iter().map(|(chain, policy)| (chain.clone(), policy.to_string())).collect()
    };
    let links = spec.host.endpoints.values().flat_map(|wish| &wish.links);
    let alias =
        |link: &Link| (link.alias.to_ascii_lowercase(), id::short(&link.container).to_owned());
    PodNames {
        aliases: links.map(alias).collect(),
        networks: networks.iter().map(|(network, _)| layout.network_names(&network.id)).collect(),
        servers: spec.host.dns.iter().filter_map(|server| server.parse().ok()).collect(),
        forward: !ways.is_empty(),
        pinning: named.then(|| Pinning {
            table,
            file: layout.pod_pins(&spec.id),
            lock: layout.rules_lock(),
            ways: ways.iter().map(text).collect(),
        }),
    }
}

/// Replaces a file so that readers see the old or the new one, never a part. Blocking.
pub(super) fn replace<T: Serialize>(path: &Path, document: &T) -> Result<()> {
    let fail = || Error::file("write", path);
    let new = path.with_extension("new");
    let text = serde_json::to_vec(document).map_err(|error| fail()(error.into()))?;
    std::fs::write(&new, text).map_err(fail())?;
    std::fs::rename(&new, path).map_err(fail())
}
