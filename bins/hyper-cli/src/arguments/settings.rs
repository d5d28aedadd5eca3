//! Less usual flags of `run` and `create`: limits, namespaces, health checks.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::{Value, json};

use super::create::{bytes, loose_pairs};

#[derive(Debug, Args)]
pub struct SettingFlags {
    /// File of KEY or KEY=VALUE lines
    #[arg(long)]
    pub label_file: Vec<PathBuf>,
    /// Memory and swap together; -1: no limit
    #[arg(long, allow_hyphen_values = true)]
    pub memory_swap: Option<String>,
    #[arg(long)]
    pub memory_reservation: Option<String>,
    /// Microseconds
    #[arg(long)]
    pub cpu_period: Option<i64>,
    /// Microseconds
    #[arg(long, allow_hyphen_values = true)]
    pub cpu_quota: Option<i64>,
    /// CPUs of the host that it may run on, e.g. 0-2,7
    #[arg(long)]
    pub cpuset_cpus: Option<String>,
    /// 10 to 1000
    #[arg(long)]
    pub blkio_weight: Option<u16>,
    /// Bytes per second read from the disk that holds the containers, e.g. /dev/sda:10mb
    #[arg(long, value_name = "DEVICE:RATE")]
    pub device_read_bps: Vec<String>,
    /// Bytes per second written to it
    #[arg(long, value_name = "DEVICE:RATE")]
    pub device_write_bps: Vec<String>,
    /// Reads per second from it
    #[arg(long, value_name = "DEVICE:RATE")]
    pub device_read_iops: Vec<String>,
    /// Writes per second to it
    #[arg(long, value_name = "DEVICE:RATE")]
    pub device_write_iops: Vec<String>,
    #[arg(long, allow_hyphen_values = true)]
    pub oom_score_adj: Option<i32>,
    #[arg(long)]
    pub oom_kill_disable: bool,
    /// Device of the host
    #[arg(long)]
    pub device: Vec<String>,
    #[arg(long)]
    pub domainname: Option<String>,
    #[arg(long)]
    pub ipc: Option<String>,
    #[arg(long)]
    pub pid: Option<String>,
    #[arg(long)]
    pub uts: Option<String>,
    #[arg(long)]
    pub userns: Option<String>,
    #[arg(long)]
    pub cgroupns: Option<String>,
    #[arg(long)]
    pub cgroup_parent: Option<String>,
    /// Command that tells by its exit code whether the container is healthy
    #[arg(long, value_name = "COMMAND")]
    pub health_cmd: Option<String>,
    /// Between two checks, e.g. 30s
    #[arg(long, value_name = "DURATION")]
    pub health_interval: Option<String>,
    /// Of one check
    #[arg(long, value_name = "DURATION")]
    pub health_timeout: Option<String>,
    /// Grace after the start
    #[arg(long, value_name = "DURATION")]
    pub health_start_period: Option<String>,
    /// Between two checks in the grace
    #[arg(long, value_name = "DURATION")]
    pub health_start_interval: Option<String>,
    /// Failures in a row that make it unhealthy
    #[arg(long)]
    pub health_retries: Option<u32>,
    /// Run no health check, whatever the image says
    #[arg(long, conflicts_with = "health_cmd")]
    pub no_healthcheck: bool,
    /// Size of the writable layer: size=BYTES
    #[arg(long)]
    pub storage_opt: Vec<String>,
}

impl SettingFlags {
    /// Labels of the files, and over them those given one by one.
    pub fn labels(&self, own: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
        let mut all = BTreeMap::new();
        for file in &self.label_file {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("label file `{}`", file.display()))?;
            let lines: Vec<String> = text
                .lines()
                .map(|line| line.trim_start().to_owned())
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .collect();
            all.extend(loose_pairs(&lines));
        }
        all.extend(loose_pairs(own));
        Ok(all)
    }

    /// Puts what was given into the body of a create request.
    pub fn apply(&self, body: &mut Value) -> anyhow::Result<()> {
        if let Some(check) = self.health()? {
            body["Healthcheck"] = check;
        }
        if let Some(name) = &self.domainname {
            body["Domainname"] = json!(name);
        }
        let host = &mut body["HostConfig"];
        for (key, flag, value) in [
            ("MemorySwap", "memory-swap", &self.memory_swap),
            ("MemoryReservation", "memory-reservation", &self.memory_reservation),
        ] {
            match value.as_deref() {
                None => {}
                Some("-1") => host[key] = json!(-1),
                Some(size) => {
                    let number = bytes(size).with_context(|| format!("--{flag} `{size}`"))?;
                    host[key] = json!(number);
                }
            }
        }
        for (key, value) in [
            ("CpuPeriod", self.cpu_period),
            ("CpuQuota", self.cpu_quota),
            ("BlkioWeight", self.blkio_weight.map(i64::from)),
            ("OomScoreAdj", self.oom_score_adj.map(i64::from)),
        ] {
            if let Some(value) = value {
                host[key] = json!(value);
            }
        }
        for (key, value) in [
            ("CpusetCpus", &self.cpuset_cpus),
            ("IpcMode", &self.ipc),
            ("PidMode", &self.pid),
            ("UTSMode", &self.uts),
            ("UsernsMode", &self.userns),
            ("CgroupnsMode", &self.cgroupns),
            ("CgroupParent", &self.cgroup_parent),
        ] {
            if let Some(value) = value {
                host[key] = json!(value);
            }
        }
        for (key, flag, list) in [
            ("BlkioDeviceReadBps", "device-read-bps", &self.device_read_bps),
            ("BlkioDeviceWriteBps", "device-write-bps", &self.device_write_bps),
            ("BlkioDeviceReadIOps", "device-read-iops", &self.device_read_iops),
            ("BlkioDeviceWriteIOps", "device-write-iops", &self.device_write_iops),
        ] {
            if !list.is_empty() {
                let all: anyhow::Result<Vec<Value>> =
                    list.iter().map(|one| throttle(flag, one)).collect();
                host[key] = json!(all?);
            }
        }
        if self.oom_kill_disable {
            host["OomKillDisable"] = json!(true);
        }
        if !self.device.is_empty() {
            let devices = self.device.iter().map(|device| {
                let mut parts = device.splitn(3, ':');
                let path = parts.next().unwrap_or_default();
                let inside = parts.next().unwrap_or(path);
                let access = parts.next().unwrap_or("rwm");
                json!({
                    "PathOnHost": path, "PathInContainer": inside, "CgroupPermissions": access,
                })
            });
            host["Devices"] = devices.collect::<Vec<_>>().into();
        }
        if !self.storage_opt.is_empty() {
            host["StorageOpt"] = json!(loose_pairs(&self.storage_opt));
        }
        Ok(())
    }

    fn health(&self) -> anyhow::Result<Option<Value>> {
        if self.no_healthcheck {
            return Ok(Some(json!({ "Test": ["NONE"] })));
        }
        let mut check = json!({});
        if let Some(command) = &self.health_cmd {
            check["Test"] = json!(["CMD-SHELL", command]);
        }
        for (key, flag, value) in [
            ("Interval", "health-interval", &self.health_interval),
            ("Timeout", "health-timeout", &self.health_timeout),
            ("StartPeriod", "health-start-period", &self.health_start_period),
            ("StartInterval", "health-start-interval", &self.health_start_interval),
        ] {
            if let Some(text) = value {
                check[key] = json!(nanos(text).with_context(|| format!("--{flag} `{text}`"))?);
            }
        }
        if let Some(retries) = self.health_retries {
            check["Retries"] = json!(retries);
        }
        Ok(check.as_object().is_some_and(|fields| !fields.is_empty()).then_some(check))
    }
}

/// `1m30s`, `500ms`, `1.5h`: nanoseconds.
/// `DEVICE:RATE` as Docker's `ThrottleDevice`; bytes have units, operations none.
fn throttle(flag: &str, text: &str) -> anyhow::Result<Value> {
    let wrong = || format!("--{flag} `{text}`: DEVICE:RATE is wanted, e.g. /dev/sda:10mb");
    let (path, rate) = text.rsplit_once(':').with_context(wrong)?;
    let rate = match flag.ends_with("bps") {
        true => bytes(rate).with_context(wrong)?,
        false => rate.parse().with_context(wrong)?,
    };
    Ok(json!({ "Path": path, "Rate": rate }))
}

fn nanos(text: &str) -> anyhow::Result<i64> {
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(rest.len());
        let (number, after) = rest.split_at(end);
        let unit = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let factor = match unit {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => bail!("not a duration: use numbers with ns, us, ms, s, m or h, e.g. 1m30s"),
        };
        total += number.parse::<f64>().context("not a number")? * factor;
        rest = after;
    }
    if !(0.0..9e18).contains(&total) || text.is_empty() {
        bail!("out of range");
    }
    #[expect(clippy::cast_possible_truncation, reason = "bounded above")]
    let whole = total as i64;
    Ok(whole)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(nanos("1m30s").unwrap(), 90_000_000_000);
        assert_eq!(nanos("500ms").unwrap(), 500_000_000);
        assert_eq!(nanos("1.5h").unwrap(), 5_400_000_000_000);
        for bad in ["", "5", "x", "3q"] {
            assert!(nanos(bad).is_err(), "{bad}");
        }
    }
}
