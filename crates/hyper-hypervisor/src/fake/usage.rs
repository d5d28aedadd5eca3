//! What a process uses, from /proc.

use std::io;
use std::time::Duration;

use crate::VmUsage;

/// Reads the use of one process: proc(5), `stat` fields 14 and 15 and `smaps_rollup`.
pub async fn process_usage(pid: u32) -> io::Result<VmUsage> {
    // /proc answers from memory, but smaps_rollup walks page tables: not on the async threads.
    tokio::task::spawn_blocking(move || read(pid)).await.map_err(io::Error::other)?
}

fn read(pid: u32) -> io::Result<VmUsage> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let ticks = ticks(&stat).ok_or_else(|| odd("stat", pid))?;
    let field = |name: &str| kibibytes(&smaps, name).ok_or_else(|| odd("smaps_rollup", pid));
    Ok(VmUsage {
        // USER_HZ is 100 on every architecture that Linux has kept: proc(5), clock ticks.
        cpu: Duration::from_millis(ticks.saturating_mul(10)),
        resident_bytes: field("Rss:")?,
        private_bytes: field("Private_Clean:")? + field("Private_Dirty:")?,
    })
}

fn odd(file: &str, pid: u32) -> io::Error {
    io::Error::other(format!("/proc/{pid}/{file} cannot be understood"))
}

/// User and system ticks. The command's name may hold spaces and parentheses: count from the last.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let user: u64 = fields.nth(11)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

fn kibibytes(smaps: &str, name: &str) -> Option<u64> {
    let line = smaps.lines().find(|line| line.starts_with(name))?;
    let kib: u64 = line[name.len()..].trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod test {
    use super::*;

    #[tokio::test]
    async fn own_use_is_plausible() {
        let usage = process_usage(std::process::id()).await.unwrap();
        assert!(usage.resident_bytes > 1 << 20 && usage.private_bytes <= usage.resident_bytes);
    }

    #[test]
    fn names_with_parentheses_do_not_shift_fields() {
        let stat = "7 (a) b (c) R 1 1 1 0 -1 4 1 2 3 4 30 12 0 0 20 0 1 0 5";
        assert_eq!(ticks(stat), Some(42));
    }

    #[tokio::test]
    async fn no_process_is_an_error() {
        assert!(process_usage(u32::MAX).await.is_err());
    }
}
