//! `local` volumes of `type=nfs`: a directory of an NFS server, which the guest mounts itself.
//!
//! Version 4 only: older ones need daemons beside the mount. Names of servers are refused: what a
//! name means now says nothing about the next start. Never `hard`: what waits for a server that is
//! gone for good could not be ended.

use std::net::IpAddr;

/// Read by the guest's kernel as they are, with a value.
const VALUES: [&str; 15] = [
    "port",
    "rsize",
    "wsize",
    "bsize",
    "timeo",
    "retrans",
    "acregmin",
    "acregmax",
    "acdirmin",
    "acdirmax",
    "actimeo",
    "lookupcache",
    "nconnect",
    "namlen",
    "minorversion",
];
/// The same without one.
const WORDS: [&str; 27] = [
    "ro",
    "rw",
    "sync",
    "async",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "soft",
    "softerr",
    "softreval",
    "nosoftreval",
    "ac",
    "noac",
    "cto",
    "nocto",
    "resvport",
    "noresvport",
    "nosharecache",
];

/// What the guest mounts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nfs {
    /// `ADDRESS:/PATH`, IPv6 in brackets.
    pub source: String,
    /// `addr=`, then as given.
    pub options: Vec<String>,
}

impl Nfs {
    /// Of a volume's `device` and `o`.
    ///
    /// # Errors
    /// What cannot be, by name.
    pub fn parse(device: &str, o: &str) -> Result<Self, String> {
        let (host, path) =
            device
                .split_once(":/")
                .map(|(host, path)| (host, format!("/{path}")))
                .ok_or_else(|| format!("device \"{device}\" is no `:/PATH` or `ADDRESS:/PATH`"))?;
        if path.contains(['\0', ',']) {
            return Err(format!("device \"{device}\": a path with a comma cannot be mounted"));
        }
        let mut server = (!host.is_empty()).then(|| host.trim_matches(['[', ']']).to_owned());
        let mut options = Vec::new();
        for option in o.split(',').map(str::trim).filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("addr", address)) => server = Some(address.to_owned()),
                Some(("vers" | "nfsvers", version)) => {
                    if !matches!(version, "4" | "4.0" | "4.1" | "4.2") {
                        return Err(format!("{option}: only version 4 (4.0, 4.1, 4.2) is mounted"));
                    }
                    if version != "4" {
                        options.push(format!("vers={version}"));
                    }
                }
                Some(("sec", "sys") | ("proto", "tcp" | "tcp6")) => options.push(option.to_owned()),
                Some(("sec", _)) => return Err(format!("{option}: only sec=sys is had")),
                Some(("proto", _)) => return Err(format!("{option}: version 4 is over tcp")),
                Some((key, value)) if VALUES.contains(&key) && !value.is_empty() => {
                    options.push(option.to_owned());
                }
                None if option == "hard" => {
                    return Err(
                        "hard: a container that waits for a server that is gone could not \
                                be ended: use soft or softerr (the default), and timeo"
                            .to_owned(),
                    );
                }
                // Versions below 4 had locks beside them.
                None if matches!(option, "lock" | "nolock" | "defaults") => {}
                None if WORDS.contains(&option) => options.push(option.to_owned()),
                _ => return Err(format!("{option}: not an option of this engine's nfs")),
            }
        }
        let server = server.ok_or_else(|| "it has no addr=ADDRESS of its server".to_owned())?;
        let address: IpAddr = server
            .parse()
            .map_err(|_| format!("addr={server}: an IP address is wanted, names are refused"))?;
        if address.is_loopback() || address.is_unspecified() {
            return Err(format!("addr={server}: in a guest that is the guest itself"));
        }
        options.insert(0, format!("addr={address}"));
        let source = match address {
            IpAddr::V4(ip) => format!("{ip}:{path}"),
            IpAddr::V6(ip) => format!("[{ip}]:{path}"),
        };
        Ok(Self { source, options })
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn dockers_words_become_the_kernels() {
        for (device, o, source, options) in [
            (":/srv/a", "addr=10.1.1.2,vers=4,ro", "10.1.1.2:/srv/a", "addr=10.1.1.2 ro"),
            ("10.1.1.2:/", "nfsvers=4.1,nolock", "10.1.1.2:/", "addr=10.1.1.2 vers=4.1"),
            (":/a", "addr=fd00::2,timeo=10", "[fd00::2]:/a", "addr=fd00::2 timeo=10"),
            ("[fd00::2]:/a", "soft", "[fd00::2]:/a", "addr=fd00::2 soft"),
        ] {
            let nfs = Nfs::parse(device, o).unwrap();
            assert_eq!((nfs.source.as_str(), nfs.options.join(" ").as_str()), (source, options));
        }
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (device, o, named) in [
            ("/srv", "addr=10.1.1.2", "\"/srv\""),
            (":/srv", "", "addr="),
            (":/srv", "addr=files.example.org", "names are refused"),
            (":/srv", "addr=127.0.0.1", "the guest itself"),
            (":/srv", "addr=10.1.1.2,vers=3", "vers=3"),
            (":/srv", "addr=10.1.1.2,hard", "hard"),
            (":/srv", "addr=10.1.1.2,sec=krb5", "sec=krb5"),
            (":/srv", "addr=10.1.1.2,proto=udp", "proto=udp"),
            (":/srv", "addr=10.1.1.2,fsc", "fsc"),
            (":/srv", "addr=10.1.1.2,rsize=", "rsize="),
            (":/a,b", "addr=10.1.1.2", "comma"),
        ] {
            let error = Nfs::parse(device, o).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }
}
