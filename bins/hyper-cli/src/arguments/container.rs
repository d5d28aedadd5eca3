//! Flags of commands on containers that are there already.

use clap::Args;

#[derive(Debug, Args)]
pub struct RestartFlags {
    /// Seconds to wait before the kill
    #[arg(short, long = "time", visible_alias = "timeout")]
    pub time: Option<i64>,
    #[arg(short, long)]
    pub signal: Option<String>,
    #[arg(required = true)]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct UpdateFlags {
    /// Memory limit, e.g. 512m
    #[arg(short, long)]
    pub memory: Option<String>,
    /// Memory and swap together; -1: no limit
    #[arg(long, allow_hyphen_values = true)]
    pub memory_swap: Option<String>,
    #[arg(long)]
    pub memory_reservation: Option<String>,
    /// CPUs, e.g. 1.5
    #[arg(long)]
    pub cpus: Option<f64>,
    #[arg(short = 'c', long)]
    pub cpu_shares: Option<i64>,
    /// Microseconds
    #[arg(long)]
    pub cpu_period: Option<i64>,
    /// Microseconds
    #[arg(long, allow_hyphen_values = true)]
    pub cpu_quota: Option<i64>,
    /// CPUs of the host that it may run on, e.g. 0-2,7
    #[arg(long)]
    pub cpuset_cpus: Option<String>,
    /// -1: no limit
    #[arg(long, allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,
    /// 10 to 1000
    #[arg(long)]
    pub blkio_weight: Option<u16>,
    /// no, on-failure[:N], always or unless-stopped
    #[arg(long)]
    pub restart: Option<String>,
    #[arg(required = true)]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct TopFlags {
    pub container: String,
    /// Of ps, e.g. -ef or aux
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub ps: Vec<String>,
}

#[derive(Debug, Args)]
pub struct StatsFlags {
    /// Stopped containers too
    #[arg(short, long)]
    pub all: bool,
    /// One look instead of a stream
    #[arg(long)]
    pub no_stream: bool,
    #[arg(long)]
    pub no_trunc: bool,
    /// `table`, `json`, or a Go template
    #[arg(long)]
    pub format: Option<String>,
    /// [default: all that run]
    pub containers: Vec<String>,
}
