//! Checks of what a guest is made of and how it ends.

use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::session::{Session, Shape, chain};
use super::{Fixture, Verdict, hold};
use crate::{Hypervisor, VmExit};

/// Memory, vCPUs, command line; and what the process uses is plausible.
pub async fn shape(hypervisor: &dyn Hypervisor, fixture: &Fixture) -> Verdict {
    let vcpus = hypervisor.capabilities().max_vcpus.min(2);
    let extra_cmdline = vec!["hyper.contract=here".to_owned()];
    let shape = Shape { vcpus: Some(vcpus), extra_cmdline, ..Shape::default() };
    let mut session = Session::boot(hypervisor, fixture, shape).await?;
    let cmdline = text(&mut session, "/proc/cmdline").await?;
    hold!(cmdline.contains("hyper.contract=here"), "the command line is {cmdline:?}");
    let cpus = text(&mut session, "/proc/cpuinfo").await?;
    let cpus = cpus.lines().filter(|line| line.starts_with("processor")).count();
    hold!(cpus == vcpus as usize, "{cpus} CPUs for {vcpus}");
    let meminfo = text(&mut session, "/proc/meminfo").await?;
    let total: u64 = meminfo
        .strip_prefix("MemTotal:")
        .and_then(|rest| rest.trim_start().split(' ').next()?.parse().ok())
        .ok_or("no MemTotal")?;
    let range = fixture.memory_bytes * 6 / 10..=fixture.memory_bytes;
    hold!(range.contains(&(total << 10)), "MemTotal {total} kB of {}", fixture.memory_bytes);
    let usage = session.vm.usage().await.map_err(|error| format!("usage: {error}"))?;
    let most = fixture.memory_bytes + (512 << 20);
    let plausible = usage.private_bytes > 0
        && usage.private_bytes <= usage.resident_bytes
        && usage.resident_bytes < most
        && usage.cpu < Duration::from_secs(120);
    hold!(plausible, "the process uses {usage:?}");
    session.power_off().await
}

/// A datagram from the guest reaches the host, and the answer the guest.
pub async fn network(hypervisor: &dyn Hypervisor, fixture: &Fixture) -> Verdict {
    let Some(net) = fixture.net.clone() else {
        println!("contract: skipped: no network given");
        return Ok(());
    };
    let shape = Shape { nics: vec![net.nic.clone()], ..Shape::default() };
    let mut session = Session::boot(hypervisor, fixture, shape).await?;
    let mac = text(&mut session, "/sys/class/net/eth0/address").await?;
    hold!(mac.trim() == net.nic.mac, "the guest's MAC is {mac:?}");
    let socket = UdpSocket::bind((net.host, 0)).await.map_err(|error| error.to_string())?;
    let port = socket.local_addr().map_err(|error| error.to_string())?.port();
    let answer = async {
        let mut bytes = [0; 64];
        while let Ok((count, from)) = socket.recv_from(&mut bytes).await {
            if &bytes[..count] == b"ping" && from.ip() == net.guest {
                let _ = socket.send_to(b"pong", from).await;
            }
        }
    };
    let command = format!("udp eth0 {} {} {port}", net.guest, net.host);
    let asked = async {
        let said = session.ask(&command).await?;
        hold!(said == "pong", "the host's answer arrived as {said:?}");
        let can = hypervisor.capabilities();
        if !can.pause {
            return Ok(());
        }
        // Whatever the device is by then, it goes on where it was.
        session.vm.pause().await.map_err(|error| format!("pause: {}", chain(&error)))?;
        if can.save {
            let directory = fixture.work.join("saved-card");
            std::fs::create_dir(&directory).map_err(|error| error.to_string())?;
            let saved = session.vm.save(&directory).await;
            saved.map_err(|error| format!("save: {}", chain(&error)))?;
        }
        session.vm.resume().await.map_err(|error| format!("resume: {}", chain(&error)))?;
        let said = session.ask(&command).await?;
        hold!(said == "pong", "after a pause the host's answer arrived as {said:?}");
        Ok(())
    };
    tokio::select! {
        done = asked => done?,
        () = answer => return Err("the host's socket failed".to_owned()),
    }
    session.power_off().await
}

/// The end is told to everyone who asks, before and after.
pub async fn power_off(hypervisor: &dyn Hypervisor, fixture: &Fixture) -> Verdict {
    let mut session = Session::boot(hypervisor, fixture, Shape::default()).await?;
    let early = timeout(Duration::from_millis(50), session.vm.wait()).await;
    hold!(early.is_err(), "a running guest has ended: {early:?}");
    session.send("poweroff", b"").await?;
    let both = timeout(Duration::from_secs(20), async {
        tokio::join!(session.vm.wait(), session.vm.wait())
    });
    let both = both.await.map_err(|_| session.blame("no end in time"))?;
    let wanted = VmExit::PoweredOff;
    hold!(both == (wanted.clone(), wanted.clone()), "{}", session.blame(&format!("{both:?}")));
    hold!(session.ended().await? == wanted, "the end changed");
    session.vm.kill().await;
    hold!(session.ended().await? == wanted, "kill after the end changed the end");
    let end = session.line_within(Duration::from_secs(5)).await;
    hold!(end.is_err(), "the link of a guest that ended gives {end:?}");
    hold!(session.vm.pause().await.is_err(), "a guest that ended can be paused");
    Ok(())
}

/// PID 1 dies, the kernel panics.
pub async fn panic(hypervisor: &dyn Hypervisor, fixture: &Fixture) -> Verdict {
    let mut session = Session::boot(hypervisor, fixture, Shape::default()).await?;
    session.send("panic", b"").await?;
    let exit = session.ended().await?;
    let VmExit::Panicked { message } = &exit else {
        return Err(session.blame(&format!("a panic gave {exit:?}")));
    };
    let named = message.contains("Attempted to kill init");
    hold!(named, "{}", session.blame(&format!("the panic's message is {message:?}")));
    hold!(session.vm.console().contains("Kernel panic"), "the console does not tell the panic");
    Ok(())
}

/// Kill, while the guest works and while it is paused; the process is gone when it returns.
pub async fn kill(hypervisor: &dyn Hypervisor, fixture: &Fixture) -> Verdict {
    for paused in [false, true] {
        let mut session = Session::boot(hypervisor, fixture, Shape::default()).await?;
        session.send("beat 1000 1", b"").await?;
        if paused && hypervisor.capabilities().pause {
            session.vm.pause().await.map_err(|error| format!("pause: {error}"))?;
        }
        let pid = session.vm.pid();
        hold!(alive(pid), "process {pid} of a running guest does not exist");
        let killed = timeout(Duration::from_secs(10), session.vm.kill()).await;
        hold!(killed.is_ok(), "kill did not return (paused: {paused})");
        hold!(!alive(pid), "kill returned, process {pid} is there (paused: {paused})");
        session.vm.kill().await;
        let exit = session.ended().await?;
        hold!(exit == VmExit::Killed, "kill gave {exit:?} (paused: {paused})");
    }
    Ok(())
}

/// Somebody else kills the process.
pub async fn signal(hypervisor: &dyn Hypervisor, fixture: &Fixture) -> Verdict {
    let mut session = Session::boot(hypervisor, fixture, Shape::default()).await?;
    let pid = session.vm.pid().to_string();
    let kill = tokio::process::Command::new("kill").args(["-9", &pid]).status().await;
    hold!(kill.is_ok_and(|status| status.success()), "kill -9 {pid}");
    let exit = session.ended().await?;
    let wanted = VmExit::Signaled { signal: 9, oom: false };
    hold!(exit == wanted, "kill -9 gave {exit:?}");
    Ok(())
}

async fn text(session: &mut Session, path: &str) -> Result<String, String> {
    let bytes = session.fetch(&format!("cat {path}")).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn alive(pid: u32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}
