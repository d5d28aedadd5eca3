//! The jobs of each axis.

use super::{Axis, Better, Job, Kind, Measure, Mounts, Step};
use crate::tools::Tool;

use Better::{Higher, Lower};

pub(super) fn of(axis: Axis, quick: bool, cpus: u32) -> Vec<Job> {
    match axis {
        Axis::Startup => startup(quick),
        Axis::Cpu => vec![cpu(quick, cpus)],
        Axis::Memory => memory(quick),
        Axis::Disk => disk(quick),
        Axis::Network => network(quick),
        Axis::Syscalls => vec![syscalls(quick)],
        Axis::Nginx => vec![nginx(quick)],
        Axis::Mysql => vec![mysql(quick)],
    }
}

/// A figure of a step: its name, title, unit, good way, whether it stands for the axis.
type Take<'a> = (&'static str, &'a str, &'static str, Better, bool);

fn step(axis: Axis, name: &str, command: String, tool: Option<Tool>, takes: &[Take]) -> Step {
    let measure = |(figure, title, unit, better, main): &Take| Measure {
        id: format!("{name}.{figure}"),
        axis,
        title: (*title).to_owned(),
        unit: (*unit).to_owned(),
        better: *better,
        main: *main,
    };
    let takes = takes.iter().map(|take| (take.0, measure(take))).collect();
    Step { name: name.to_owned(), command, tool, host_cpu: false, takes }
}

fn job(id: &str, kind: Kind, repeat: u32, seconds: f64, steps: Vec<Step>) -> Job {
    Job { id: id.to_owned(), kind, repeat, seconds, steps }
}

fn inside(id: &str, setup: &str, seconds: f64, steps: Vec<Step>) -> Job {
    job(id, Kind::Inside { setup: setup.to_owned(), mounts: Mounts::None }, 1, seconds, steps)
}

/// Seconds of a container whose steps take as long each.
fn taken(time: u32, steps: &[Step]) -> f64 {
    0.5 + f64::from(time) * f64::from(u32::try_from(steps.len()).unwrap_or(u32::MAX))
}

fn startup(quick: bool) -> Vec<Job> {
    let start = |id: &str, title, network: bool, cloned: bool, repeat| {
        let main = !network && !cloned;
        let takes = [("wall", title, "ms", Lower, main)];
        let step = step(Axis::Startup, id, String::new(), None, &takes);
        job(id, Kind::Start { network, cloned }, repeat, 0.3, vec![step])
    };
    let (serial, others) = if quick { (3, 1) } else { (10, 4) };
    let mut jobs = vec![
        start("start", "run --rm IMAGE true, without a network", false, false, serial),
        start("start-net", "the same with a network", true, false, others),
        start(
            "start-clone",
            "the same, without a network, a clone of a template",
            false,
            true,
            others,
        ),
    ];
    let sizes: &[u32] = if quick { &[10] } else { &[10, 50, 100] };
    jobs.extend(sizes.iter().map(|count| crowd(*count)));
    jobs
}

/// Belongs to two axes: how long a crowd takes to start, and what it needs.
fn crowd(count: u32) -> Job {
    let id = format!("crowd{count}");
    let (all, failed, pss, available) = match count {
        1 => (
            "one that stays, until it runs".to_owned(),
            "one that stays: failed".to_owned(),
            "memory of one's processes on the host (PSS)".to_owned(),
            "memory less available on the host, for one".to_owned(),
        ),
        _ => (
            format!("{count} at once, until all run"),
            format!("{count} at once: failed"),
            format!("memory of each one's processes on the host (PSS), {count} running"),
            format!("memory less available on the host, each of {count}"),
        ),
    };
    let of = |axis, takes: &[Take]| step(axis, &id, String::new(), None, takes);
    let steps = vec![
        of(
            Axis::Startup,
            &[("all", &all, "ms", Lower, false), ("failed", &failed, "%", Lower, false)],
        ),
        of(
            Axis::Memory,
            &[
                ("pss", &pss, "MiB", Lower, count == 10),
                ("available", &available, "MiB", Lower, false),
            ],
        ),
    ];
    job(&id, Kind::Crowd { count }, 1, 0.6 + f64::from(count) * 0.14, steps)
}

fn cpu(quick: bool, cpus: u32) -> Job {
    let of = |name: &str, prime: u32, threads: u32, takes: &[Take]| {
        let time = match quick {
            true => 3 - threads.min(2),
            false => 8,
        };
        let command = format!(
            "sysbench cpu --cpu-max-prime={prime} --threads={threads} --events=0 --time={time} run"
        );
        step(Axis::Cpu, name, command, Some(Tool::SysbenchCpu), takes)
    };
    // The first seed's table is of these two.
    let mut steps = vec![
        of(
            "cpu-t1",
            10_000,
            1,
            &[
                ("rate", "sysbench, primes to 10000, 1 thread", "events/s", Higher, true),
                ("per10000", "10000 events, primes to 10000, 1 thread", "s", Lower, false),
                ("min", "response min., primes to 10000, 1 thread", "ms", Lower, false),
                ("avg", "response avg., primes to 10000, 1 thread", "ms", Lower, false),
                ("max", "response max., primes to 10000, 1 thread", "ms", Lower, false),
            ],
        ),
        of(
            "cpu-t2",
            50_000,
            2,
            &[
                ("rate", "sysbench, primes to 50000, 2 threads", "events/s", Higher, true),
                ("per10000", "10000 events, primes to 50000, 2 threads", "s", Lower, false),
                ("min", "response min., primes to 50000, 2 threads", "ms", Lower, false),
                ("avg", "response avg., primes to 50000, 2 threads", "ms", Lower, false),
                ("max", "response max., primes to 50000, 2 threads", "ms", Lower, false),
            ],
        ),
    ];
    if !quick && cpus > 1 {
        let takes =
            [("rate", "sysbench, primes to 10000, a thread per CPU", "events/s", Higher, false)];
        steps.push(of("cpu-tn", 10_000, cpus, &takes));
    }
    let seconds = if quick { 3.5 } else { taken(8, &steps) };
    inside("cpu", "", seconds, steps)
}

fn memory(quick: bool) -> Vec<Job> {
    let time = if quick { 1 } else { 4 };
    let of = |name: &str, size: &str, way: &str, title, main| {
        let command = format!(
            "sysbench memory --memory-block-size={size} --memory-oper={way} --memory-total-size=1000T --threads=1 --time={time} run"
        );
        let takes = [("rate", title, "MiB/s", Higher, main)];
        step(Axis::Memory, name, command, Some(Tool::SysbenchMemory), &takes)
    };
    let mut steps = vec![of("mem-r1m", "1M", "read", "sysbench, reads of 1 MiB", true)];
    if !quick {
        steps.extend([
            of("mem-w1k", "1K", "write", "sysbench, writes of 1 KiB", false),
            of("mem-r1k", "1K", "read", "sysbench, reads of 1 KiB", false),
            of("mem-w64k", "64K", "write", "sysbench, writes of 64 KiB", false),
            of("mem-w1m", "1M", "write", "sysbench, writes of 1 MiB", true),
        ]);
        let takes = [("rate", "stress-ng stream (as STREAM)", "bogo-ops/s", Higher, true)];
        let command = stress("--stream 1 --stream-l3-size 8M", time);
        steps.push(step(Axis::Memory, "mem-stream", command, Some(Tool::StressNg), &takes));
    }
    let takes = [("fault", "a page fault (stress-ng fault)", "ns", Lower, true)];
    let fault = stress("--fault 1", time);
    steps.push(step(Axis::Memory, "mem-fault", fault, Some(Tool::StressNg), &takes));
    let takes = [
        ("used", "used in the guest, its kernel with it", "MiB", Lower, false),
        ("total", "the guest's memory at its start", "MiB", Lower, false),
    ];
    let guest = step(Axis::Memory, "guest", String::new(), Some(Tool::Meminfo), &takes);
    let seconds = taken(time, &steps);
    let mut jobs = vec![
        inside("memory", "", seconds, steps),
        job("guest", Kind::Guest, 1, 0.2, vec![guest]),
        crowd(1),
        crowd(10),
    ];
    if !quick {
        jobs.extend([50, 100].map(crowd));
    }
    jobs
}

/// One stressor; its YAML is the output.
fn stress(stressor: &str, time: u32) -> String {
    format!(
        "cd \"$BENCH\" && rm -f out.yaml && stress-ng --temp-path \"$BENCH\" {stressor} --timeout {time} --metrics --yaml out.yaml >&2 && cat out.yaml"
    )
}

fn disk(quick: bool) -> Vec<Job> {
    let time = if quick { 1 } else { 5 };
    let size = if quick { 96 } else { 384 };
    let of = |name: &str, place: &str, options: &str, takes: &[Take]| {
        let command = format!(
            "fio --output-format=json --name=f --filename={place}/fio --size={size}M --time_based --runtime={time} {options}"
        );
        step(Axis::Disk, name, command, Some(Tool::Fio), takes)
    };
    let root = "\"$BENCH\"";
    // The first lays the file that the others use.
    let mut steps = vec![
        of(
            "disk-sw1m",
            root,
            "--ioengine=psync --direct=1 --rw=write --bs=1M --end_fsync=1",
            &[("rate", "sequential writes of 1 MiB, direct", "MiB/s", Higher, true)],
        ),
        of(
            "disk-sr1m",
            root,
            "--ioengine=psync --direct=1 --rw=read --bs=1M",
            &[("rate", "sequential reads of 1 MiB, direct", "MiB/s", Higher, true)],
        ),
        of(
            "disk-rr4k",
            root,
            "--ioengine=psync --direct=1 --rw=randread --bs=4k",
            &[
                ("iops", "random reads of 4 KiB, direct, depth 1", "1/s", Higher, true),
                ("p99", "random reads of 4 KiB, direct, depth 1: 99 %", "µs", Lower, false),
            ],
        ),
        of(
            "disk-rw4k",
            root,
            "--ioengine=psync --direct=1 --rw=randwrite --bs=4k",
            &[
                ("iops", "random writes of 4 KiB, direct, depth 1", "1/s", Higher, true),
                ("p99", "random writes of 4 KiB, direct, depth 1: 99 %", "µs", Lower, false),
            ],
        ),
    ];
    if !quick {
        let deep = "--ioengine=libaio --iodepth=32 --direct=1";
        steps.extend([
            of(
                "disk-rr4k32",
                root,
                &format!("{deep} --rw=randread --bs=4k"),
                &[("iops", "random reads of 4 KiB, direct, depth 32", "1/s", Higher, false)],
            ),
            of(
                "disk-rw4k32",
                root,
                &format!("{deep} --rw=randwrite --bs=4k"),
                &[("iops", "random writes of 4 KiB, direct, depth 32", "1/s", Higher, false)],
            ),
            of(
                "disk-sr128k",
                root,
                "--ioengine=psync --direct=1 --rw=read --bs=128k",
                &[("rate", "sequential reads of 128 KiB, direct", "MiB/s", Higher, false)],
            ),
            of(
                "disk-sw128k",
                root,
                "--ioengine=psync --direct=1 --rw=write --bs=128k",
                &[("rate", "sequential writes of 128 KiB, direct", "MiB/s", Higher, false)],
            ),
            of(
                "disk-rr128k",
                root,
                "--ioengine=psync --direct=1 --rw=randread --bs=128k",
                &[("rate", "random reads of 128 KiB, direct", "MiB/s", Higher, false)],
            ),
            of(
                "disk-sw1mb",
                root,
                "--ioengine=psync --rw=write --bs=1M --end_fsync=1",
                &[("rate", "sequential writes of 1 MiB, buffered, synced", "MiB/s", Higher, false)],
            ),
            of(
                "disk-sr1mb",
                root,
                "--ioengine=psync --rw=read --bs=1M",
                &[("rate", "sequential reads of 1 MiB, buffered", "MiB/s", Higher, false)],
            ),
        ]);
    }
    let seconds = taken(time, &steps) + 1.2;
    let mut jobs = vec![inside("disk", "", seconds, steps)];
    if !quick {
        let write = "--ioengine=psync --rw=write --bs=1M --end_fsync=1";
        let read = "--ioengine=psync --rw=randread --bs=4k";
        let rate = |title| [("rate", title, "MiB/s", Higher, false)];
        let iops = |title| [("iops", title, "1/s", Higher, false)];
        let place = "/bench-volume";
        let steps = vec![
            of("vol-sw1m", place, write, &rate("on a volume: sequential writes of 1 MiB, synced")),
            of("vol-rr4k", place, read, &iops("on a volume: random reads of 4 KiB")),
            of(
                "tmpfs-rw4k",
                "/bench-tmpfs",
                "--ioengine=psync --rw=randwrite --bs=4k",
                &iops("on a tmpfs: random writes of 4 KiB"),
            ),
        ];
        let kind = Kind::Inside { setup: String::new(), mounts: Mounts::Volumes };
        jobs.push(job("mounts", kind, 1, taken(time, &steps) + 3.0, steps));
        let place = "/bench-disk";
        let title = "on a disk volume: sequential writes of 1 MiB, synced";
        let steps = vec![
            of("dvol-sw1m", place, write, &rate(title)),
            of("dvol-rr4k", place, read, &iops("on a disk volume: random reads of 4 KiB")),
        ];
        let kind = Kind::Inside { setup: String::new(), mounts: Mounts::Disk };
        jobs.push(job("disk-volume", kind, 1, taken(time, &steps) + 3.0, steps));
    }
    jobs
}

fn network(quick: bool) -> Vec<Job> {
    let time = if quick { 1 } else { 5 };
    let port = 15_201;
    let iperf = |name: &str, options: &str, takes: &[Take], cpu: bool| {
        let command = format!("iperf3 --json -c @IP@ -p {port} -t {time} {options}");
        let mut step = step(Axis::Network, name, command, Some(Tool::Iperf3), takes);
        step.host_cpu = cpu;
        step
    };
    let mut steps = vec![
        iperf(
            "net-in",
            "",
            &[
                ("rate", "TCP into the container", "Gbit/s", Higher, true),
                ("cpu", "TCP into the container: CPU time of the host", "s/Gbit", Lower, false),
            ],
            true,
        ),
        iperf(
            "net-out",
            "-R",
            &[
                ("rate", "TCP out of the container", "Gbit/s", Higher, true),
                ("cpu", "TCP out of the container: CPU time of the host", "s/Gbit", Lower, false),
            ],
            true,
        ),
    ];
    if !quick {
        steps.extend([
            iperf(
                "net-in8",
                "-P 8",
                &[("rate", "TCP into the container, 8 streams", "Gbit/s", Higher, false)],
                false,
            ),
            iperf(
                "net-out8",
                "-P 8 -R",
                &[("rate", "TCP out of the container, 8 streams", "Gbit/s", Higher, false)],
                false,
            ),
            iperf(
                "net-udp-in",
                "-u -b 500M -l 1400",
                &[
                    ("rate", "UDP into the container, 0.5 Gbit/s sent", "Gbit/s", Higher, false),
                    ("lost", "UDP into the container, 0.5 Gbit/s sent: lost", "%", Lower, false),
                ],
                false,
            ),
            iperf(
                "net-udp-out",
                "-u -b 500M -l 1400 -R",
                &[("rate", "UDP out of the container, 0.5 Gbit/s sent", "Gbit/s", Higher, false)],
                false,
            ),
        ]);
    }
    let round_trip = |name: &str, titles: [&'static str; 2], main| {
        let command = format!("sockperf ping-pong --tcp -i @IP@ -p {} -t {time}", port + 1);
        let takes = [("p50", titles[0], "µs", Lower, main), ("p99", titles[1], "µs", Lower, false)];
        step(Axis::Network, name, command, Some(Tool::Sockperf), &takes)
    };
    steps.push(round_trip("net-rr", ["TCP round trip", "TCP round trip: 99 %"], true));
    // iperf3 takes the probe of its readiness for a client, and sockperf in gVisor ends of one: a third is asked, and is
    // ready later than both.
    let ready = port + 2;
    let quietly = ">/dev/null 2>&1 </dev/null &";
    let server = format!(
        "iperf3 -s -p {port} {quietly} sockperf server --tcp -p {} {quietly} sleep 0.7; exec python3 -c 'import socket\n\
         asked = socket.create_server((\"\", {ready}))\n\
         while True: asked.accept()[0].close()'",
        port + 1
    );
    let seconds = taken(time, &steps) + 2.3;
    let kind = Kind::Served { server: server.clone(), port: ready };
    let mut jobs = vec![job("network", kind, 1, seconds, steps)];
    if !quick {
        let title = "TCP between two containers";
        let steps = vec![
            iperf("pair-net", "", &[("rate", title, "Gbit/s", Higher, false)], false),
            round_trip(
                "pair-rr",
                ["round trip between two containers", "round trip between two containers: 99 %"],
                false,
            ),
        ];
        let seconds = taken(time, &steps) + 5.0;
        jobs.push(job("network-pair", Kind::Between { server, port: ready }, 1, seconds, steps));
    }
    jobs
}

fn syscalls(quick: bool) -> Job {
    let time = if quick { 1 } else { 3 };
    const CALLS: [(&str, &str, &str, bool); 10] = [
        ("dup", "--dup 1", "dup and close (stress-ng dup)", true),
        ("null", "--null 1", "write (stress-ng null)", true),
        ("open", "--open 1", "open and close (stress-ng open)", true),
        ("fork", "--fork 1", "fork, exit, wait (stress-ng fork)", true),
        ("pipe", "--pipe 1", "pipe (stress-ng pipe)", true),
        ("mmap", "--mmap 1 --mmap-bytes 1M", "mmap, mprotect, munmap (stress-ng mmap)", true),
        ("futex", "--futex 1", "futex (stress-ng futex)", false),
        ("fstat", "--fstat 1", "stat (stress-ng fstat)", false),
        ("epoll", "--epoll 1", "epoll (stress-ng epoll)", false),
        ("exec", "--exec 1", "fork and exec (stress-ng exec)", false),
    ];
    // stress-ng has none of single calls alone.
    let setup = "cat >\"$BENCH/calls.lua\" <<'END'\n\
         ffi.cdef('int getppid(void); int open(const char *, int); long read(int, void *, unsigned long);')\n\
         sysbench.cmdline.options = { call = { 'the system call', 'getppid' } }\n\
         function thread_init() file = ffi.C.open('/dev/zero', 0); byte = ffi.new('char[1]') end\n\
         function event()\n\
         if sysbench.opt.call == 'read' then for i = 1, 1000 do ffi.C.read(file, byte, 1) end\n\
         else for i = 1, 1000 do ffi.C.getppid() end end\n\
         end\n\
         END\n";
    let mut steps = Vec::new();
    for (call, title) in [("getppid", "getppid"), ("read", "read of a byte of /dev/zero")] {
        let command = format!(
            "sysbench \"$BENCH/calls.lua\" --call={call} --threads=1 --events=0 --time={time} run"
        );
        let takes = [("call", title, "µs", Lower, true)];
        let name = format!("sys-{call}");
        steps.push(step(Axis::Syscalls, &name, command, Some(Tool::SysbenchCalls), &takes));
    }
    if quick {
        steps.truncate(1);
    }
    let wanted = if quick { 6 } else { CALLS.len() };
    for (name, stressor, title, main) in CALLS.into_iter().take(wanted) {
        let mut command = stress(stressor, time);
        if name == "exec" {
            // stress-ng refuses it to root.
            command = command.replace(
                "stress-ng ",
                "setpriv --reuid 65534 --regid 65534 --clear-groups stress-ng ",
            );
        }
        let takes = [("rate", title, "bogo-ops/s", Higher, main)];
        let name = format!("sys-{name}");
        steps.push(step(Axis::Syscalls, &name, command, Some(Tool::StressNg), &takes));
    }
    let seconds = taken(time, &steps);
    inside("syscalls", setup, seconds, steps)
}

fn nginx(quick: bool) -> Job {
    let time = if quick { 1 } else { 5 };
    let port = 15_280;
    let server = format!(
        "mkdir -p \"$BENCH/www\" && cd \"$BENCH\" && chmod 755 . www && \
         head -c 1024 /dev/zero >www/1k && head -c 102400 /dev/zero >www/100k && head -c 1048576 /dev/zero >www/1m && \
         printf 'worker_processes 1; pid %s/n.pid; error_log stderr; events {{ worker_connections 512; }} \
         http {{ access_log off; sendfile on; keepalive_requests 1000000; server {{ listen {port}; root %s/www; }} }}' \
         \"$BENCH\" \"$BENCH\" >n.conf && exec nginx -c \"$BENCH/n.conf\" -g 'daemon off;'"
    );
    let of = |size: &str, titles: [&'static str; 3], main| {
        let command = format!("wrk -t1 -c16 -d{time}s --latency http://@IP@:{port}/{size}");
        let takes = [
            ("rate", titles[0], "requests/s", Higher, main),
            ("p99", titles[1], "ms", Lower, false),
            ("failed", titles[2], "%", Lower, false),
        ];
        step(Axis::Nginx, &format!("nginx-{size}"), command, Some(Tool::Wrk), &takes)
    };
    let mut steps = vec![
        of("1k", ["pages of 1 KiB", "pages of 1 KiB: 99 %", "pages of 1 KiB: failed"], true),
        of(
            "100k",
            ["pages of 100 KiB", "pages of 100 KiB: 99 %", "pages of 100 KiB: failed"],
            true,
        ),
    ];
    if !quick {
        let titles = ["pages of 1 MiB", "pages of 1 MiB: 99 %", "pages of 1 MiB: failed"];
        steps.push(of("1m", titles, true));
    }
    let seconds = taken(time, &steps) + 0.2;
    job("nginx", Kind::Served { server, port }, 1, seconds, steps)
}

/// Without native AIO and without accounts, for all: MariaDB aborts where `io_uring` is half there, and knows nobody where
/// a socket does not tell its peer (both gVisor).
fn mysql(quick: bool) -> Job {
    let (time, rows) = if quick { (1, 2_000) } else { (8, 20_000) };
    let client = "--mysql-socket=\"$BENCH/m.sock\"";
    let table = format!("--tables=1 --table-size={rows} --threads=2");
    let setup = format!(
        "D=\"$BENCH/mysql\"; mkdir -p /run/mysqld && cp -a /var/lib/mysql \"$D\" && chmod 711 \"$BENCH\" && \
         chown mysql \"$BENCH\" && \
         {{ mariadbd --no-defaults --user=mysql --datadir=\"$D\" --socket=\"$BENCH/m.sock\" --skip-networking --skip-grant-tables \
         --innodb-buffer-pool-size=128M --innodb-use-native-aio=0 --pid-file=\"$D/m.pid\" >\"$BENCH/m.log\" 2>&1 </dev/null & }} && P=$! && \
         n=0; M=\"mariadb --no-defaults -S $BENCH/m.sock\"; \
         until $M -e 'select 1' >/dev/null 2>&1; do n=$((n+1)); kill -0 $P && [ $n -lt 200 ] || {{ tail -n 5 \"$BENCH/m.log\" >&2; exit 1; }}; sleep 0.2; done; \
         $M -e 'create database sbtest' && \
         sysbench oltp_read_only {client} {table} prepare >/dev/null"
    );
    let of = |name: &str, test: &str, titles: [&'static str; 2]| {
        let command = format!("sysbench {test} {client} {table} --time={time} run");
        let takes = [
            ("rate", titles[0], "transactions/s", Higher, true),
            ("p95", titles[1], "ms", Lower, false),
        ];
        step(Axis::Mysql, name, command, Some(Tool::SysbenchOltp), &takes)
    };
    let steps = vec![
        of("mysql-ro", "oltp_read_only", ["OLTP, reads only", "OLTP, reads only: 95 %"]),
        of(
            "mysql-rw",
            "oltp_read_write",
            ["OLTP, reads and writes", "OLTP, reads and writes: 95 %"],
        ),
    ];
    let seconds = taken(time, &steps) + 2.1;
    inside("mysql", &setup, seconds, steps)
}
