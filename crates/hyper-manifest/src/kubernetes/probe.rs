//! Probes as Docker's health check. A container has one: the liveness probe, else the readiness
//! probe; a startup probe gives it the time to come up.

use serde_json::{Value, json};

use super::{Container, PortName, Probe};
use crate::{FieldResult, wrong};

/// The `Healthcheck` of a create request, and whether its failure restarts the container.
pub(super) fn health(container: &Container) -> FieldResult<Option<(Value, bool)>> {
    if container.liveness_probe.is_some() && container.readiness_probe.is_some() {
        return wrong(
            "readinessProbe",
            "a container has one health check, and livenessProbe is it: leave one out",
        );
    }
    let (probe, field, restarts) = match (&container.liveness_probe, &container.readiness_probe) {
        (Some(probe), _) => (probe, "livenessProbe", true),
        (None, Some(probe)) => (probe, "readinessProbe", false),
        (None, None) => {
            return match &container.startup_probe {
                None => Ok(None),
                Some(_) => {
                    wrong("startupProbe", "it has no liveness or readiness probe to wait with")
                }
            };
        }
    };
    if probe.success_threshold.is_some_and(|wanted| wanted != 1) {
        return wrong(format!("{field}.successThreshold"), "only 1 can be had");
    }
    let nanoseconds = |seconds: u32| i64::from(seconds) * 1_000_000_000;
    let mut start = probe.initial_delay_seconds;
    if let Some(startup) = &container.startup_probe {
        let patience = startup
            .period_seconds
            .unwrap_or(10)
            .saturating_mul(startup.failure_threshold.unwrap_or(3));
        start = start.max(startup.initial_delay_seconds.saturating_add(patience));
    }
    let check = json!({
        "Test": test(container, probe, field)?,
        "Interval": nanoseconds(probe.period_seconds.unwrap_or(10)),
        "Timeout": nanoseconds(probe.timeout_seconds.unwrap_or(1)),
        "Retries": probe.failure_threshold.unwrap_or(3),
        "StartPeriod": nanoseconds(start),
    });
    Ok(Some((check, restarts)))
}

fn test(container: &Container, probe: &Probe, field: &str) -> FieldResult<Value> {
    match (&probe.exec, &probe.http_get, &probe.tcp_socket) {
        (Some(exec), None, None) if !exec.command.is_empty() => {
            let mut words = vec!["CMD".to_owned()];
            words.extend(exec.command.iter().cloned());
            Ok(json!(words))
        }
        (None, Some(get), None) => {
            let scheme = match get.scheme.as_deref() {
                None | Some("HTTP") => "http",
                Some("HTTPS") => "https",
                Some(other) => {
                    return wrong(
                        format!("{field}.httpGet.scheme"),
                        format!("`{other}` is neither HTTP nor HTTPS"),
                    );
                }
            };
            let port = number(container, &get.port, field)?;
            let path = get.path.as_deref().unwrap_or("/");
            if !path.starts_with('/') || path.contains(|c: char| c == '\'' || c.is_control()) {
                return wrong(
                    format!("{field}.httpGet.path"),
                    format!("`{path}` is no path of a URL"),
                );
            }
            let url = format!("'{scheme}://127.0.0.1:{port}{path}'");
            let text = format!("wget -q -O /dev/null {url} || curl -fsk -o /dev/null {url}");
            Ok(json!(["CMD-SHELL", text]))
        }
        (None, None, Some(socket)) => {
            let port = number(container, &socket.port, field)?;
            let at = format!("127.0.0.1 {port}");
            // Not every nc knows -z; one that does not connects, says nothing, and leaves.
            let text = format!("nc -z {at} 2>/dev/null || nc -w 1 {at} </dev/null >/dev/null");
            Ok(json!(["CMD-SHELL", text]))
        }
        _ => wrong(field, "exactly one of exec, httpGet, tcpSocket is wanted"),
    }
}

fn number(container: &Container, port: &PortName, field: &str) -> FieldResult<u16> {
    match port {
        PortName::Number(number) => Ok(*number),
        PortName::Name(name) => {
            let mut ports = container.ports.iter();
            match ports.find(|port| port.name.as_deref() == Some(name)) {
                Some(port) => Ok(port.container_port),
                None => wrong(format!("{field}.port"), format!("no port is called `{name}`")),
            }
        }
    }
}
