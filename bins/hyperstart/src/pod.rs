//! Identity of the pod: hostname, clock, entropy, network, sysctls.

use std::time::{Duration, SystemTime};

use hyper_link::message::{Interface, PodConfig, Route, SHARED};
use rustix::{
    fs::{Mode, mkdir},
    io::Errno,
    mount::{MountFlags, mount},
    system::sethostname,
    time::{ClockId, Timespec, clock_settime},
};

use crate::{
    failure::{Doing as _, Outcome, invalid},
    kernel_file,
    network::{self, Rtnetlink},
};

/// How long an interface may take to appear.
const INTERFACE_DEADLINE: Duration = Duration::from_secs(5);
/// How often it is looked for.
const INTERFACE_POLL: Duration = Duration::from_millis(5);

/// Carries out `config`; the same again changes nothing.
pub(crate) async fn configure(config: &PodConfig) -> Outcome<()> {
    if config.unix_ns > 0 {
        set_time(config.unix_ns)?;
    }
    if !config.entropy.is_empty() {
        let bytes = hex(&config.entropy).ok_or_else(|| invalid("entropy is not hexadecimal"))?;
        crate::sys::add_entropy(&bytes).doing(|| "add entropy".to_owned())?;
    }
    if !config.hostname.is_empty() {
        sethostname(config.hostname.as_bytes())
            .doing(|| format!("set hostname {:?}", config.hostname))?;
    }
    if !config.share.is_empty() {
        mount_share(&config.share)?;
    }
    for (name, value) in &config.sysctls {
        set_sysctl(name, value)?;
    }
    set_up(&config.interfaces, &config.routes).await
}

/// Carries out [`hyper_link::message::Request::ChangeNetwork`].
pub(crate) async fn change_network(
    gone: &[Interface],
    interfaces: &[Interface],
    routes: &[Route],
) -> Outcome<()> {
    let mut netlink = Rtnetlink::open().doing(|| "open rtnetlink".to_owned())?;
    for interface in gone {
        if let Some((index, name)) = network::find(&interface.mac) {
            netlink.take_down(index, &name, interface)?;
        }
    }
    for interface in interfaces {
        let Some(carrier) = &interface.carrier else { continue };
        let missing = || invalid(format!("no card has the address {carrier}"));
        let (card, card_name) = network::find(carrier).ok_or_else(missing)?;
        if network::find(&interface.mac).is_none() {
            netlink.add_rider(card, interface)?;
        }
        // Both see what is asked of everyone in the networks of both: each answers for itself only.
        for name in [&card_name, &interface.name] {
            set_sysctl(&format!("net/ipv4/conf/{name}/arp_ignore"), "1")?;
            set_sysctl(&format!("net/ipv4/conf/{name}/arp_announce"), "2")?;
        }
    }
    set_up(interfaces, routes).await
}

async fn set_up(interfaces: &[Interface], routes: &[Route]) -> Outcome<()> {
    if interfaces.is_empty() && routes.is_empty() {
        return Ok(());
    }
    let mut netlink = Rtnetlink::open().doing(|| "open rtnetlink".to_owned())?;
    for interface in interfaces {
        let found = tokio::time::timeout(INTERFACE_DEADLINE, async {
            loop {
                // Its own first: it may have been given it before.
                let known = [Some(&interface.mac), interface.found_by.as_ref()];
                if let Some(found) = known.into_iter().flatten().find_map(|mac| network::find(mac))
                {
                    return found;
                }
                tokio::time::sleep(INTERFACE_POLL).await;
            }
        });
        let (index, name) = found.await.doing(|| {
            format!("find interface {} by its address {}", interface.name, interface.mac)
        })?;
        netlink.set_up(index, &name, interface)?;
    }
    routes.iter().try_for_each(|route| netlink.add_route(route))
}

/// Mounts the directories of the host. Who may look into them is the containers' matter: outside of
/// them there is only the agent.
fn mount_share(tag: &str) -> Outcome<()> {
    match mkdir(SHARED, Mode::RWXU) {
        // Configured before.
        Err(Errno::EXIST) => return Ok(()),
        made => made.doing(|| format!("make {SHARED}"))?,
    }
    mount(tag, SHARED, "virtiofs", MountFlags::empty(), None)
        .doing(|| format!("mount the shared directories (virtio-fs {tag:?})"))
}

/// Smaller differences are the link's delay.
const EXACT_NS: u64 = 10_000_000;
/// Smaller ones are made up by and by, so that no program sees time jump.
const SLEW_NS: u64 = 500_000_000;

/// Brings the clock to the host's; nanoseconds since the Unix epoch.
pub(crate) fn set_time(unix_ns: i64) -> Outcome<()> {
    // Not rustix's clock: it insists on a vDSO, which user-mode Linux has not.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(now.as_nanos()).unwrap_or(i64::MAX);
    let behind = unix_ns.saturating_sub(now);
    if behind.unsigned_abs() < EXACT_NS {
        return Ok(());
    }
    if behind.unsigned_abs() < SLEW_NS {
        return crate::sys::slew_clock(behind / 1000)
            .doing(|| format!("slew the clock by {behind} ns"));
    }
    let time = Timespec {
        tv_sec: unix_ns.div_euclid(1_000_000_000),
        tv_nsec: unix_ns.rem_euclid(1_000_000_000),
    };
    clock_settime(ClockId::Realtime, time).doing(|| format!("set the clock to {unix_ns} ns"))
}

/// Sets a sysctl of the namespaces this process is in. Dots or slashes separate.
pub(crate) fn set_sysctl(name: &str, value: &str) -> Outcome<()> {
    let path = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    if path.starts_with('/') || path.split('/').any(|part| part.is_empty() || part == "..") {
        return Err(invalid(format!("sysctl {name:?} is no name")));
    }
    kernel_file::put(format!("/proc/sys/{path}"), value)
        .doing(|| format!("set sysctl {name}={value}"))
}

fn hex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    let digits =
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok());
    digits.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_is_read_and_nothing_else() {
        assert_eq!(hex("00ff7A"), Some(vec![0, 255, 0x7a]));
        assert_eq!(hex("0"), None);
        assert_eq!(hex("0é"), None);
        assert_eq!(hex("xx"), None);
    }

    #[test]
    fn sysctls_stay_in_their_tree() {
        for name in ["../x", "/etc/passwd", "net//x", "a/../../b", ""] {
            assert!(set_sysctl(name, "1").unwrap_err().message.contains("no name"), "{name}");
        }
    }
}
