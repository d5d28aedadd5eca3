//! `network`, `port`, and the flags of `run` and `create` that are about networks.

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

/// Of `run` and `create`.
#[derive(Debug, Args)]
pub struct NetworkFlags {
    /// none, bridge, or a network's name
    #[arg(long, alias = "net")]
    pub network: Option<String>,
    /// A further name in the network
    #[arg(long, alias = "net-alias")]
    pub network_alias: Vec<String>,
    /// IPv4 address in the network
    #[arg(long)]
    pub ip: Option<String>,
    /// IPv6 address in the network
    #[arg(long)]
    pub ip6: Option<String>,
    /// e.g. 02:42:ac:11:00:02
    #[arg(long)]
    pub mac_address: Option<String>,
    /// [[ADDRESS:]HOST:]CONTAINER[/PROTOCOL]; ranges FIRST-LAST
    #[arg(short, long)]
    pub publish: Vec<String>,
    /// Publish all exposed ports, each at any free one
    #[arg(short = 'P', long)]
    pub publish_all: bool,
    /// PORT[-LAST][/PROTOCOL]
    #[arg(long)]
    pub expose: Vec<String>,
    /// NAME:ADDRESS, or NAME:host-gateway
    #[arg(long)]
    pub add_host: Vec<String>,
    /// Name for another container that only this one knows: CONTAINER[:ALIAS]
    #[arg(long, value_name = "CONTAINER[:ALIAS]")]
    pub link: Vec<String>,
    #[arg(long)]
    pub dns: Vec<String>,
    #[arg(long)]
    pub dns_search: Vec<String>,
    #[arg(long, alias = "dns-opt")]
    pub dns_option: Vec<String>,
}

impl NetworkFlags {
    /// Puts them into a create request.
    pub fn apply(&self, body: &mut Value) -> anyhow::Result<()> {
        let mode = self.network.as_deref().unwrap_or("default");
        let (mut exposed, bindings) = ports(&self.publish)?;
        for word in &self.expose {
            let word = if word.contains('/') { word.clone() } else { format!("{word}/tcp") };
            exposed.insert(word, json!({}));
        }
        if !exposed.is_empty() {
            body["ExposedPorts"] = exposed.into();
        }
        let host = &mut body["HostConfig"];
        host["NetworkMode"] = json!(mode);
        host["PortBindings"] = bindings.into();
        host["PublishAllPorts"] = json!(self.publish_all);
        host["ExtraHosts"] = json!(self.add_host);
        host["Links"] = json!(self.link);
        host["Dns"] = json!(self.dns);
        host["DnsSearch"] = json!(self.dns_search);
        host["DnsOptions"] = json!(self.dns_option);
        let mut endpoint = endpoint(self.ip.as_deref(), self.ip6.as_deref(), &self.network_alias);
        if let Some(mac) = &self.mac_address {
            endpoint["MacAddress"] = json!(mac);
        }
        body["NetworkingConfig"] = json!({ "EndpointsConfig": { mode: endpoint } });
        Ok(())
    }
}

/// What is wanted of a network.
pub fn endpoint(ip: Option<&str>, ip6: Option<&str>, aliases: &[String]) -> Value {
    let mut endpoint = json!({});
    if ip.is_some() || ip6.is_some() {
        endpoint["IPAMConfig"] = json!({ "IPv4Address": ip, "IPv6Address": ip6 });
    }
    if !aliases.is_empty() {
        endpoint["Aliases"] = json!(aliases);
    }
    endpoint
}

#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// Make a network
    Create(NetworkCreateFlags),
    /// List networks
    #[command(visible_alias = "list")]
    Ls(NetworkListFlags),
    /// Show everything about networks
    Inspect {
        #[arg(short, long)]
        format: Option<String>,
        #[arg(required = true)]
        networks: Vec<String>,
    },
    /// Remove networks
    #[command(visible_alias = "remove")]
    Rm {
        /// Those that are not there are no error
        #[arg(short, long)]
        force: bool,
        #[arg(required = true)]
        networks: Vec<String>,
    },
    /// Remove all networks that no container is in
    Prune {
        #[arg(short, long)]
        force: bool,
        #[arg(long)]
        filter: Vec<String>,
    },
    /// Bring a container into a network
    Connect {
        #[arg(long)]
        ip: Option<String>,
        #[arg(long)]
        ip6: Option<String>,
        #[arg(long)]
        alias: Vec<String>,
        network: String,
        container: String,
    },
    /// Take a container out of a network
    Disconnect {
        #[arg(short, long)]
        force: bool,
        network: String,
        container: String,
    },
}

#[derive(Debug, Args)]
pub struct NetworkCreateFlags {
    /// bridge, or macvlan or ipvlan with -o parent=INTERFACE of the host
    #[arg(short, long, default_value = "bridge")]
    pub driver: String,
    /// e.g. 172.30.0.0/16
    #[arg(long)]
    pub subnet: Vec<String>,
    /// The bridge's own address; with macvlan and ipvlan the router's
    #[arg(long)]
    pub gateway: Vec<String>,
    /// Addresses are taken from this part of the subnet
    #[arg(long)]
    pub ip_range: Vec<String>,
    /// No way in or out
    #[arg(long)]
    pub internal: bool,
    #[arg(long)]
    pub ipv6: bool,
    #[arg(long)]
    pub label: Vec<String>,
    /// KEY=VALUE: parent, macvlan_mode (bridge, private, vepa), ipvlan_mode (l2, l3), com.docker.network.driver.mtu, …
    #[arg(short, long)]
    pub opt: Vec<String>,
    /// What its containers may reach, see `run --egress`
    #[arg(long, value_name = "POLICY")]
    pub egress: Option<String>,
    pub name: String,
}

#[derive(Debug, Args)]
pub struct NetworkListFlags {
    /// Ids only
    #[arg(short, long)]
    pub quiet: bool,
    #[arg(long)]
    pub no_trunc: bool,
    #[arg(short, long)]
    pub filter: Vec<String>,
    #[arg(long)]
    pub format: Option<String>,
}

fn ports(words: &[String]) -> anyhow::Result<(Map<String, Value>, Map<String, Value>)> {
    let (mut exposed, mut bindings) = (Map::new(), Map::new());
    for word in words {
        let bad = || {
            format!("--publish `{word}` is not of the form [[ADDRESS:]HOST:]CONTAINER[/PROTOCOL]")
        };
        let (rest, protocol) = word.rsplit_once('/').unwrap_or((word, "tcp"));
        let (host, container) = rest.rsplit_once(':').unwrap_or(("", rest));
        let (address, host) = host.rsplit_once(':').unwrap_or(("", host));
        let (first, last) = range(container).with_context(bad)?;
        let from = if host.is_empty() { None } else { Some(range(host).with_context(bad)?) };
        for at in 0..=last - first {
            let host_port = match from {
                None => String::new(),
                Some((low, high)) if high - low == last - first => (low + at).to_string(),
                // One port, at the first free one of a range.
                Some((low, high)) if first == last => format!("{low}-{high}"),
                Some(_) => bail!("--publish `{word}`: the two ranges differ in length"),
            };
            let key = format!("{}/{protocol}", first + at);
            exposed.insert(key.clone(), json!({}));
            let list = bindings.entry(key).or_insert_with(|| json!([]));
            let list = list.as_array_mut().context("port bindings")?;
            list.push(json!({ "HostIp": address.trim_matches(['[', ']']), "HostPort": host_port }));
        }
    }
    Ok((exposed, bindings))
}

fn range(text: &str) -> anyhow::Result<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse()?, last.parse()?);
    if first > last {
        bail!("`{text}` is no range");
    }
    Ok((first, last))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn ports_and_ranges() {
        let words = ["8000-8001:80-81/udp", "[::1]:9000-9010:90", "127.0.0.1::70"];
        let (exposed, bindings) = ports(&words.map(str::to_owned)).unwrap();
        assert_eq!(exposed.len(), 4);
        assert_eq!(bindings["81/udp"], json!([{ "HostIp": "", "HostPort": "8001" }]));
        assert_eq!(bindings["90/tcp"], json!([{ "HostIp": "::1", "HostPort": "9000-9010" }]));
        assert_eq!(bindings["70/tcp"], json!([{ "HostIp": "127.0.0.1", "HostPort": "" }]));
        for bad in ["x", "1-2:1-3", "70000", "2-1:80", "1:2:3:x"] {
            let error = ports(&[bad.to_owned()]).unwrap_err().to_string();
            assert!(error.contains(bad), "{error}");
        }
    }
}
