//! Other firewalls of the host, which drop what they do not know.
//!
//! A packet passes if every base chain of its hook lets it: what our own table ([`crate::rules`])
//! accepts is dropped all the same where Docker or ufw have set the policy of iptables' `FORWARD`
//! to `DROP`, or where firewalld rejects what goes from zone to zone. So networks are made known to
//! them, and taken back:
//!
//! | firewall | found by | told |
//! | --- | --- | --- |
//! | iptables, ip6tables | `FORWARD` ends in a drop | a chain of ours, called first: from `DOCKER-USER`, which Docker has for that, else from `FORWARD` |
//! | firewalld | its nft table | the bridges are in its zone `trusted`, for as long as it runs |
//!
//! Nothing else of theirs is changed. What our own table drops stays dropped, and what goes to an
//! interface that another closes (the bridges of Docker and libvirt) is left to their rules.
//! [`strangers`] names chains that drop, too, and that nobody but the user can tell.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::Write as _;
use std::process::{Command, Stdio};

use nftables::helper;
use serde_json::Value;

use crate::error::{NetworkError, Result};

const TRUSTED: &str = "trusted";
/// Docker's chain for rules of others, asked before its own (docs.docker.com, "Packet filtering").
const DOCKER_USER: &str = "DOCKER-USER";
const FORWARD: &str = "FORWARD";
/// Seconds to wait for another program that changes the tables.
const WAIT: &str = "5";

/// Lets the host's other firewalls forward what comes from `bridges` and goes to them; without any,
/// takes back what was done. `chain` is ours in iptables. Blocking, some milliseconds where there is
/// nothing to do.
///
/// # Errors
/// [`NetworkError::Firewall`] naming the first that refused; the others were told.
pub fn admit(chain: &str, bridges: &[String]) -> Result<()> {
    let v4 = tables("iptables", chain, bridges);
    let v6 = tables("ip6tables", chain, bridges);
    v4.and(v6).and(zone("--add-interface", bridges))
}

/// Lets a bridge be forgotten that is there no more. Blocking.
///
/// # Errors
/// [`NetworkError::Firewall`].
pub fn forget(bridge: &str) -> Result<()> {
    // What is in iptables goes with the next `admit`.
    zone("--remove-interface", &[bridge.to_owned()])
}

/// Chains of nft tables that drop what is forwarded unless they know it, and that [`admit`] leaves
/// alone: `family table chain`. Blocking.
///
/// # Errors
/// [`NetworkError::Rules`].
pub fn strangers() -> Result<Vec<String>> {
    let listed = helper::get_current_ruleset_raw(None::<&str>, ["list", "chains"])
        .map_err(|error| NetworkError::Rules(error.to_string()))?;
    let listing: Value = serde_json::from_str(&listed)
        .map_err(|error| NetworkError::Rules(format!("nft's listing: {error}")))?;
    Ok(dropping(&listing))
}

fn dropping(listing: &Value) -> Vec<String> {
    let chains = listing["nftables"].as_array().into_iter().flatten();
    let chains = chains.map(|object| &object["chain"]);
    let drops = chains.filter(|chain| chain["hook"] == "forward" && chain["policy"] == "drop");
    let name = |chain: &Value| {
        let part = |key: &str| chain[key].as_str().unwrap_or_default().to_owned();
        (part("family"), part("table"), part("name"))
    };
    drops
        .map(name)
        .filter(|(family, table, chain)| {
            // That of iptables-nft.
            !(family.starts_with("ip") && table == "filter" && chain == FORWARD)
        })
        .map(|(family, table, chain)| format!("{family} {table} {chain}"))
        .collect()
}

/// One of the iptables programs, where it is there and its kernel part, too.
fn tables(program: &'static str, chain: &str, bridges: &[String]) -> Result<()> {
    let Some(now) = output(program, ["-w", WAIT, "-S"]) else { return Ok(()) };
    let Some(change) = change(&now, chain, bridges) else { return Ok(()) };
    let restore = format!("{program}-restore");
    feed(&restore, &["-w", WAIT, "--noflush"], &change)
        .map_err(|why| NetworkError::Firewall { firewall: program, why })
}

/// What `iptables-restore --noflush` is to be told, if something is.
fn change(now: &str, chain: &str, bridges: &[String]) -> Option<String> {
    let has = |line: &str| now.lines().any(|known| known == line);
    let jumps: Vec<&str> =
        now.lines().filter(|line| line.ends_with(&format!(" -j {chain}"))).collect();
    let known = has(&format!("-N {chain}"));
    if bridges.is_empty() || !drops(now) {
        if !known {
            return None;
        }
        let jumps = jumps.iter().map(|jump| format!("{}\n", jump.replacen("-A ", "-D ", 1)));
        let jumps: String = jumps.collect();
        return Some(format!("*filter\n:{chain} - [0:0]\n{jumps}-X {chain}\nCOMMIT\n"));
    }
    let caller = if has(&format!("-N {DOCKER_USER}")) { DOCKER_USER } else { FORWARD };
    let theirs = guarded(now);
    let rule = |words: String, target: &str| format!("-A {chain} {words} -j {target}");
    let mut rules = Vec::new();
    for bridge in bridges {
        for other in theirs.iter().filter(|other| !bridges.iter().any(|own| own == *other)) {
            rules.push(rule(format!("-i {bridge} -o {other}"), "RETURN"));
        }
        rules.push(rule(format!("-i {bridge}"), "ACCEPT"));
        rules.push(rule(format!("-o {bridge}"), "ACCEPT"));
    }
    let own: Vec<&str> =
        now.lines().filter(|line| line.starts_with(&format!("-A {chain} "))).collect();
    let called = jumps.iter().any(|jump| jump.starts_with(&format!("-A {caller} ")));
    if known && called && own == rules {
        return None;
    }
    let rules: String = rules.iter().map(|rule| format!("{rule}\n")).collect();
    let call = if called { String::new() } else { format!("-I {caller} -j {chain}\n") };
    Some(format!("*filter\n:{chain} - [0:0]\n{rules}{call}COMMIT\n"))
}

/// Interfaces that a rule closes, or Docker's rules are for, whatever is sent there.
fn guarded(now: &str) -> BTreeSet<&str> {
    let rules = now.lines().filter_map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["-A", _, "-o", name, "-j", "DOCKER" | "DROP" | "REJECT", ..] => Some(name),
            _ => None,
        }
    });
    rules.collect()
}

/// Whether `FORWARD` drops what nobody accepts: by its policy, or by a last rule for everything.
fn drops(now: &str) -> bool {
    let last = now.lines().rfind(|line| line.starts_with("-A FORWARD "));
    let closed = |line: &str| {
        ["-j DROP", "-j REJECT"].iter().any(|end| line.starts_with(&format!("-A FORWARD {end}")))
    };
    now.lines().any(|line| line == "-P FORWARD DROP") || last.is_some_and(closed)
}

fn firewalld_runs() -> bool {
    let listed = helper::get_current_ruleset_raw(None::<&str>, ["list", "tables"]);
    let listing: Value =
        listed.ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let mut objects = listing["nftables"].as_array().into_iter().flatten();
    objects.any(|object| object["table"]["name"] == "firewalld")
}

/// Adds bridges to firewalld's zone of interfaces whose packets it lets through, or removes them.
fn zone(action: &str, bridges: &[String]) -> Result<()> {
    if !firewalld_runs() {
        return Ok(());
    }
    let wrong = |why: String| NetworkError::Firewall { firewall: "firewalld", why };
    let zone = format!("--zone={TRUSTED}");
    let known = output("firewall-cmd", [&zone, "--list-interfaces"]).unwrap_or_default();
    let known: Vec<&str> = known.split_whitespace().collect();
    let adding = action.starts_with("--add");
    for bridge in bridges.iter().filter(|bridge| known.contains(&bridge.as_str()) != adding) {
        let flag = format!("{action}={bridge}");
        feed("firewall-cmd", &[&zone, &flag], "").map_err(wrong)?;
    }
    Ok(())
}

fn output<const N: usize>(program: &str, words: [impl AsRef<OsStr>; N]) -> Option<String> {
    let output = Command::new(program).args(words).stdin(Stdio::null()).output().ok()?;
    // Without rights, or without that table in the kernel, there is nothing of it in the way.
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn feed(program: &str, words: &[&str], input: &str) -> std::result::Result<(), String> {
    let work = || -> std::io::Result<std::process::Output> {
        let mut child = Command::new(program)
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        child.wait_with_output()
    };
    let output = work().map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use serde_json::json;

    const DOCKERS: &str = "-P INPUT ACCEPT\n-P FORWARD DROP\n-P OUTPUT ACCEPT\n-N DOCKER-USER\n\
                           -A FORWARD -j DOCKER-USER\n-A DOCKER-USER -j RETURN\n";

    #[test]
    fn only_a_firewall_that_drops_is_told() {
        let bridges = ["hy-1".to_owned()];
        let open = "-P INPUT ACCEPT\n-P FORWARD ACCEPT\n-P OUTPUT ACCEPT\n";
        assert_eq!(change(open, "HYPER-x", &bridges), None);
        let told = change(DOCKERS, "HYPER-x", &bridges).unwrap();
        assert_eq!(
            told,
            "*filter\n:HYPER-x - [0:0]\n-A HYPER-x -i hy-1 -j ACCEPT\n-A HYPER-x -o hy-1 -j ACCEPT\n\
             -I DOCKER-USER -j HYPER-x\nCOMMIT\n"
        );
        let more = "-A FORWARD -o docker0 -j DOCKER\n-A FORWARD -o eth0 -p tcp -j DROP\n\
                    -A LIBVIRT_FWI -o virbr0 -j REJECT --reject-with icmp-port-unreachable\n";
        let told = change(&format!("{DOCKERS}{more}"), "HYPER-x", &bridges).unwrap();
        let rules: Vec<&str> = told.lines().skip(2).take(4).collect();
        assert_eq!(
            rules,
            [
                "-A HYPER-x -i hy-1 -o docker0 -j RETURN",
                "-A HYPER-x -i hy-1 -o virbr0 -j RETURN",
                "-A HYPER-x -i hy-1 -j ACCEPT",
                "-A HYPER-x -o hy-1 -j ACCEPT"
            ]
        );
        let ufws = "-P FORWARD DROP\n-A FORWARD -j ufw-before-forward\n";
        assert!(change(ufws, "HYPER-x", &bridges).unwrap().contains("-I FORWARD -j HYPER-x\n"));
        let closed = "-P FORWARD ACCEPT\n-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n";
        assert!(change(closed, "HYPER-x", &bridges).is_some());
        assert_eq!(change(DOCKERS, "HYPER-x", &[]), None);
    }

    #[test]
    fn what_it_was_told_is_changed_and_taken_back() {
        let known = "-N HYPER-x\n-A DOCKER-USER -j HYPER-x\n-A HYPER-x -i hy-1 -j ACCEPT\n\
                     -A HYPER-x -o hy-1 -j ACCEPT\n";
        let now = format!("{DOCKERS}{known}");
        assert_eq!(change(&now, "HYPER-x", &["hy-1".to_owned()]), None);
        let other = change(&now, "HYPER-x", &["hy-2".to_owned()]).unwrap();
        assert!(other.contains("-o hy-2") && !other.contains("hy-1") && !other.contains("-I "));
        let none = "*filter\n:HYPER-x - [0:0]\n-D DOCKER-USER -j HYPER-x\n-X HYPER-x\nCOMMIT\n";
        assert_eq!(change(&now, "HYPER-x", &[]).unwrap(), none);
        let opened = now.replace("FORWARD DROP", "FORWARD ACCEPT");
        assert_eq!(change(&opened, "HYPER-x", &["hy-1".to_owned()]).unwrap(), none);
    }

    #[test]
    fn chains_that_drop_and_are_not_iptables_are_named() {
        let chain = |family: &str, table: &str, name: &str, policy: &str| {
            json!({ "chain": { "family": family, "table": table, "name": name,
                "hook": "forward", "policy": policy } })
        };
        let listing = json!({ "nftables": [
            chain("inet", "filter", "forward", "drop"),
            chain("ip", "filter", "FORWARD", "drop"),
            chain("inet", "hyper_1", "forward", "accept"),
        ] });
        assert_eq!(dropping(&listing), ["inet filter forward"]);
    }
}
