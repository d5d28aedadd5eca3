//! UserPod's `services` as the pod request has them.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::UserService;
use crate::{FieldResult, wrong};

pub(super) fn all(services: &[UserService]) -> FieldResult<Vec<Value>> {
    let mut seen = Vec::new();
    let mut all = Vec::new();
    for (at, service) in services.iter().enumerate() {
        let field = |name: &str| format!("services[{at}].{name}");
        let ip = address(&field("serviceIP"), &service.service_ip)?;
        let protocol = match service.protocol.to_ascii_lowercase().as_str() {
            "" | "tcp" => "tcp",
            "udp" => "udp",
            other => {
                return wrong(field("protocol"), format!("`{other}` is neither TCP nor UDP"));
            }
        };
        if service.service_port == 0 {
            return wrong(field("servicePort"), "a port is wanted");
        }
        let key = (ip, service.service_port, protocol);
        if seen.contains(&key) {
            let why = format!("{ip}:{}/{protocol} is given twice", service.service_port);
            return wrong(format!("services[{at}]"), why);
        }
        seen.push(key);
        if service.hosts.is_empty() {
            return wrong(field("hosts"), "a service without backends reaches nobody");
        }
        let mut backends = Vec::new();
        for (number, host) in service.hosts.iter().enumerate() {
            let place = field(&format!("hosts[{number}]"));
            let ip = address(&format!("{place}.hostIP"), &host.host_ip)?;
            if host.host_port == 0 {
                return wrong(format!("{place}.hostPort"), "a port is wanted");
            }
            backends.push(json!({ "ip": ip, "port": host.host_port }));
        }
        all.push(json!({
            "ip": ip, "port": service.service_port, "protocol": protocol, "backends": backends,
        }));
    }
    Ok(all)
}

fn address(field: &str, text: &str) -> FieldResult<IpAddr> {
    text.parse().or_else(|_| wrong(field, format!("`{text}` is no IP address")))
}
