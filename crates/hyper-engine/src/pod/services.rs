//! Services of a pod as they are asked for: one by one, or all at once.

use super::spec::PodSpec;
use crate::network::spec::{Protocol, Service};
use crate::{Error, Result};

/// Services of one pod.
const MOST: usize = 256;
/// Backends of one service.
const MOST_BACKENDS: usize = 64;

/// What of a pod's services is to change.
#[derive(Debug, Clone)]
pub enum ServiceChange {
    Add(Service),
    /// Other backends for one that it has.
    Replace(Service),
    Remove {
        ip: std::net::IpAddr,
        port: u16,
        protocol: Protocol,
    },
    /// These in place of all that it has.
    All(Vec<Service>),
}

impl ServiceChange {
    /// What the pod has then.
    ///
    /// # Errors
    /// [`Error::Invalid`]; [`Error::Conflict`] for one that is there already;
    /// [`Error::NoSuchService`].
    pub(crate) fn over(self, spec: &PodSpec) -> Result<Vec<Service>> {
        let mut all = spec.services.clone();
        let missing = |what: &dyn std::fmt::Display| Error::NoSuchService(what.to_string());
        match self {
            Self::Add(service) => all.push(service),
            Self::Replace(service) => {
                let known = all.iter_mut().find(|known| known.key() == service.key());
                match known {
                    Some(known) => *known = service,
                    None => return Err(missing(&service)),
                }
            }
            Self::Remove { ip, port, protocol } => {
                let gone = Service { ip, port, protocol, backends: Vec::new() };
                let at = all.iter().position(|known| known.key() == gone.key());
                all.remove(at.ok_or_else(|| missing(&gone))?);
            }
            Self::All(services) => all = services,
        }
        check(&all)?;
        Ok(all)
    }
}

/// # Errors
/// [`Error::Invalid`], [`Error::Conflict`], naming the service.
pub(crate) fn check(services: &[Service]) -> Result<()> {
    if services.len() > MOST {
        return Err(Error::Invalid(format!("a pod has {MOST} services at most")));
    }
    for (at, service) in services.iter().enumerate() {
        if let Some(fault) = service.fault() {
            return Err(Error::Invalid(fault));
        }
        if service.backends.len() > MOST_BACKENDS {
            let why = format!("service {service}: it has more than {MOST_BACKENDS} backends");
            return Err(Error::Invalid(why));
        }
        if services[..at].iter().any(|other| other.key() == service.key()) {
            return Err(Error::Conflict(format!("service {service} is there already")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use super::*;

    fn service(port: u16, backend: &str) -> Service {
        Service {
            ip: [10, 254, 0, 24].into(),
            port,
            protocol: Protocol::Tcp,
            backends: vec![backend.parse().unwrap()],
        }
    }

    #[test]
    fn services_come_change_and_go() {
        let mut spec = PodSpec::default();
        let mut change = |change: ServiceChange| {
            let all = change.over(&spec)?;
            spec.services.clone_from(&all);
            Ok::<_, Error>(all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        };
        let (one, two) = (service(80, "10.1.1.2:8080"), service(81, "10.1.1.2:8080"));
        assert_eq!(change(ServiceChange::Add(one.clone())).unwrap(), "10.254.0.24:80/tcp");
        assert!(matches!(change(ServiceChange::Add(one.clone())), Err(Error::Conflict(_))));
        let both = change(ServiceChange::Add(two.clone())).unwrap();
        assert_eq!(both, "10.254.0.24:80/tcp 10.254.0.24:81/tcp");
        change(ServiceChange::Replace(service(80, "10.1.1.3:1"))).unwrap();
        let unknown = change(ServiceChange::Replace(service(82, "10.1.1.3:1")));
        assert!(matches!(unknown, Err(Error::NoSuchService(_))));
        let (ip, protocol) = (one.ip, Protocol::Udp);
        let other = change(ServiceChange::Remove { ip, port: 80, protocol });
        assert!(matches!(other, Err(Error::NoSuchService(_))), "of another protocol");
        let protocol = Protocol::Tcp;
        let left = change(ServiceChange::Remove { ip, port: 80, protocol }).unwrap();
        assert_eq!(left, "10.254.0.24:81/tcp");
        assert!(matches!(
            change(ServiceChange::All(vec![two.clone(), two])),
            Err(Error::Conflict(_))
        ));
        assert_eq!(change(ServiceChange::All(Vec::new())).unwrap(), "");
    }
}
