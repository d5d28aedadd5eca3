//! The jail on this host, for real: needs root and a static busybox.
#![expect(clippy::unwrap_used, reason = "a test's helper fails as its test does")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use hyper_jail::{
    Bind, JailError, JailSpec, Jailed, Limits, Outcome, Program, Resource, Seccomp, SeccompDefault,
    spawn,
};
use tempfile::TempDir;

fn busybox() -> Program {
    let file = File::open("/usr/bin/busybox").expect("busybox-static is installed");
    Program::Fd(file.into())
}

fn spec(name: &str, args: &[&str]) -> JailSpec {
    let name = format!("test-{name}-{}", std::process::id());
    JailSpec::new(name, busybox())
        .args(args.iter().copied())
        .launcher(env!("CARGO_BIN_EXE_hyper-jail"))
}

fn pipe() -> (OwnedFd, OwnedFd) {
    let (read, write) = std::io::pipe().unwrap();
    (read.into(), write.into())
}

/// Runs a program to its end and returns its output and its end.
async fn output(spec: JailSpec) -> (String, Outcome) {
    let (read, write) = pipe();
    let jailed = spawn(spec.fd(write, 1)).await.unwrap();
    let reader = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        File::from(read).read_to_string(&mut text).unwrap();
        text
    });
    let exit = jailed.wait().await;
    (reader.await.unwrap(), exit.outcome)
}

fn cgroup_dirs(part: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut stack = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name().to_string_lossy().contains(part) {
                    found.push(entry.path());
                }
                stack.push(entry.path());
            }
        }
    }
    found
}

fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(10), "not within 10 s: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn assert_nothing_left(jailed: &Jailed, name: &str) {
    let pids = [jailed.pid(), jailed.init_pid(), jailed.keeper_pid()];
    until("processes end", || pids.iter().all(|pid| !is_alive(*pid))).await;
    until("cgroups are removed", || cgroup_dirs(name).is_empty()).await;
}

#[tokio::test]
async fn the_program_has_an_own_uid_no_capability_and_no_way_to_any() {
    let (text, outcome) =
        output(spec("uid", &["busybox", "cat", "/proc/self/status"]).proc()).await;
    assert_eq!(outcome, Outcome::Exited(0));
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).trim().to_owned()
    };
    let uids: Vec<u32> = field("Uid:").split_whitespace().map(|uid| uid.parse().unwrap()).collect();
    assert!(uids.iter().all(|uid| *uid == uids[0] && *uid > 0x7000_0000), "{uids:?}");
    assert_eq!(field("Gid:"), field("Uid:"));
    assert_eq!(field("Groups:"), "");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    assert_eq!(field("Pid:"), "2");
    assert_eq!(field("PPid:"), "1");
    for set in ["SigBlk:", "SigIgn:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
}

#[tokio::test]
async fn the_root_is_empty_and_cannot_be_written() {
    let (text, _) = output(spec("root", &["busybox", "ls", "-A", "/"])).await;
    assert_eq!(text, "");
    let outcome = output(spec("write", &["busybox", "touch", "/file"])).await.1;
    assert_eq!(outcome, Outcome::Exited(1));
    let (mounts, _) = output(spec("mounts", &["busybox", "cat", "/proc/mounts"]).proc()).await;
    let places: Vec<_> =
        mounts.lines().map(|line| line.split(' ').nth(1).unwrap_or_default()).collect();
    assert_eq!(places, ["/", "/proc"]);
    assert!(mounts.lines().all(|line| line.contains(" ro,nosuid,nodev,noexec")), "{mounts}");
}

#[tokio::test]
async fn every_namespace_is_its_own() {
    let links = ["mnt", "pid", "net", "ipc", "uts", "cgroup"];
    let (text, _) = output(spec("ns", &["busybox", "ls", "-l", "/proc/self/ns"]).proc()).await;
    for link in links {
        let host = fs::read_link(format!("/proc/self/ns/{link}")).unwrap();
        assert!(text.contains(&format!(" {link} -> {link}:[")), "no {link} in {text}");
        assert!(!text.contains(host.to_str().unwrap()), "{link} is the host's: {text}");
    }
    let (links, _) = output(spec("links", &["busybox", "cat", "/proc/net/dev"]).proc()).await;
    assert!(links.contains("lo:") && links.lines().count() == 3, "{links}");
}

#[tokio::test]
async fn only_the_given_descriptors_are_open() {
    // A descriptor that exec would keep, as a careless supervisor might have.
    let (read, _write) = pipe();
    rustix_keep(&read);
    let (extra, _other) = pipe();
    let made = spec("fds", &["busybox", "ls", "-l", "/proc/self/fd"]).proc().fd(extra, 7);
    let (text, _) = output(made).await;
    let numbers: Vec<_> = text
        .lines()
        .filter_map(|line| line.split_once(" -> "))
        .map(|(left, right)| (left.rsplit(' ').next().unwrap(), right))
        .collect();
    let names: Vec<_> = numbers.iter().map(|(number, _)| *number).collect();
    // 3 is ls looking at the directory; it has closed it when it asks where it leads.
    assert_eq!(names, ["0", "1", "2", "7"], "{text}");
    assert_eq!(numbers[0].1, "/null");
    assert!(numbers[3].1.starts_with("pipe:"), "{text}");
}

#[tokio::test]
async fn a_descriptor_at_any_number_is_there_after_exec() {
    let mut made = spec("many", &["busybox", "ls", "-l", "/proc/self/fd"]).proc();
    for number in 4..40 {
        let (end, _other) = rustix::pipe::pipe().unwrap();
        made = made.fd(end, number);
    }
    let (text, _) = output(made).await;
    for number in 4..40 {
        assert!(text.contains(&format!(" {number} -> pipe:")), "{number}: {text}");
    }
}

fn rustix_keep(fd: &OwnedFd) {
    rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).unwrap();
}

#[tokio::test]
async fn binds_are_read_only_unless_said_and_devices_only_as_listed() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("seen"), "content").unwrap();
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let shared = dir.path().join("shared");
    fs::create_dir(&shared).unwrap();
    let script = "busybox cat /a/b/seen; busybox touch /a/b/new; echo $?; \
                  busybox touch /w/mine; echo $?; busybox ls /dev; \
                  echo x > /dev/null; echo $?; busybox readlink /link";
    let made = spec("bind", &["sh", "-c", script])
        .bind(Bind::new(dir.path(), "/a/b"))
        .bind(Bind::new(&shared, "/w").writable().owned())
        .bind(Bind::new("/nonexistent", "/none").optional())
        .bind(Bind::new("/usr/bin/busybox", "/bin/busybox").executable())
        .env("PATH", "/bin")
        .device("/dev/null")
        .symlink("/link", "a/b");
    let (text, outcome) = output(made).await;
    assert_eq!(text, "content1\n0\nnull\n0\na/b\n");
    assert_eq!(outcome, Outcome::Exited(0));
    assert!(fs::metadata(shared.join("mine")).unwrap().uid() > 0x7000_0000);
    assert!(fs::metadata(&shared).unwrap().uid() > 0x7000_0000);
}

#[tokio::test]
async fn a_link_does_not_lead_a_mount_out_of_the_jail() {
    let dir = TempDir::new().unwrap();
    std::os::unix::fs::symlink("/tmp", dir.path().join("out")).unwrap();
    let made = spec("link", &["true"]).bind(Bind::new(dir.path(), "/in").writable()).tmpfs(
        "/in/out/made-by-jail-test",
        4096,
        false,
    );
    let error = spawn(made).await.unwrap_err();
    assert!(error.to_string().contains("`/in/out/made-by-jail-test`"), "{error}");
    assert!(!Path::new("/tmp/made-by-jail-test").exists());
}

#[tokio::test]
async fn seccomp_kills_what_is_not_listed_and_refuses_what_is_refused() {
    // What a static busybox needs to start and to say a word.
    let list = || {
        Seccomp::new(SeccompDefault::Kill).allow(&[
            libc::SYS_execveat,
            libc::SYS_brk,
            libc::SYS_arch_prctl,
            libc::SYS_set_tid_address,
            libc::SYS_set_robust_list,
            libc::SYS_rseq,
            libc::SYS_prlimit64,
            libc::SYS_readlinkat,
            libc::SYS_readlink,
            libc::SYS_getrandom,
            libc::SYS_mprotect,
            libc::SYS_prctl,
            libc::SYS_getuid,
            libc::SYS_getgid,
            libc::SYS_setuid,
            libc::SYS_setgid,
            libc::SYS_newfstatat,
            libc::SYS_ioctl,
            libc::SYS_write,
            libc::SYS_exit_group,
        ])
    };
    let (text, outcome) =
        output(spec("allowed", &["busybox", "echo", "word"]).seccomp(list())).await;
    assert_eq!((text.as_str(), outcome), ("word\n", Outcome::Exited(0)));
    let killed = spec("killed", &["busybox", "chroot", "/", "true"]).seccomp(list());
    assert_eq!(output(killed).await.1, Outcome::Signaled(libc::SIGSYS));
    let refused = list().refuse(libc::SYS_chroot, libc::EPERM);
    let outcome =
        output(spec("refused", &["busybox", "chroot", "/", "true"]).seccomp(refused)).await.1;
    assert_eq!(outcome, Outcome::Exited(1));
    // Without a list the worst is refused all the same.
    let outcome = output(spec("fallback", &["busybox", "unshare", "-U", "true"])).await.1;
    assert_eq!(outcome, Outcome::Exited(1));
}

#[tokio::test]
async fn memory_beyond_the_limit_is_an_oom_kill() {
    let limits = Limits { memory_bytes: Some(16 << 20), ..Limits::default() };
    let made = spec("oom", &["busybox", "dd", "if=/dev/zero", "of=/t/file", "bs=1M"])
        .limits(limits)
        .device("/dev/zero")
        .tmpfs("/t", 64 << 20, false);
    let jailed = spawn(made).await.unwrap();
    assert!(jailed.missing().is_empty(), "{:?}", jailed.missing());
    let exit = jailed.wait().await;
    assert_eq!((exit.outcome, exit.oom), (Outcome::Signaled(libc::SIGKILL), true));
}

#[tokio::test]
async fn processes_and_files_are_limited() {
    let limits = Limits { pids: Some(3), ..Limits::default() };
    let script = "sleep 5 & sleep 5 & sleep 5 & sleep 5 & wait";
    let (read, write) = pipe();
    let made = spec("pids", &["sh", "-c", script])
        .bind(Bind::new("/usr/bin/busybox", "/bin/sleep").executable())
        .env("PATH", "/bin")
        .device("/dev/null")
        .limits(limits)
        .fd(write, 2);
    let jailed = spawn(made).await.unwrap();
    let text = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        BufReader::new(File::from(read)).read_line(&mut line).unwrap();
        line
    });
    let text = text.await.unwrap();
    assert!(text.contains("fork"), "{text}");
    // The shell gives up by itself.
    assert_eq!(jailed.wait().await.outcome, Outcome::Exited(2));
    let script = "ulimit -c; ulimit -n; ulimit -f";
    let made = spec("rlimit", &["sh", "-c", script])
        .rlimit(Resource::OpenFiles, 64)
        .rlimit(Resource::FileSize, 1 << 20);
    assert_eq!(output(made).await.0, "0\n64\n2048\n");
}

#[tokio::test]
async fn cpu_limits_are_set_and_a_missing_controller_would_be_told() {
    let limits =
        Limits { cpu_weight: Some(50), cpu_quota: Some((20_000, 100_000)), ..Limits::default() };
    let made = spec("cpu", &["sh", "-c", "while :; do :; done"]).limits(limits);
    let jailed = spawn(made).await.unwrap();
    if jailed.missing().is_empty() {
        // A host with much to do gives it less.
        let began = Instant::now();
        let mut cpu = Duration::ZERO;
        while cpu < Duration::from_millis(50) || began.elapsed() < Duration::from_secs(1) {
            assert!(began.elapsed() < Duration::from_secs(30), "it does not run: {cpu:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
            cpu = jailed.usage().await.unwrap().cpu;
        }
        let share = cpu.as_secs_f64() / began.elapsed().as_secs_f64();
        assert!(share < 0.45, "20 % of a CPU, used {cpu:?}");
    } else {
        assert!(jailed.missing().iter().all(|text| text.contains("CPU")));
    }
}

#[tokio::test]
async fn frozen_means_no_progress_and_a_frozen_jail_can_be_killed() {
    let made = spec("freeze", &["sh", "-c", "while :; do :; done"]);
    let jailed = spawn(made).await.unwrap();
    if !jailed.can_freeze() {
        assert!(matches!(jailed.freeze().await, Err(JailError::Unsupported { .. })));
        return;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    jailed.freeze().await.unwrap();
    let before = jailed.usage().await.unwrap().cpu;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(jailed.usage().await.unwrap().cpu, before);
    jailed.thaw().await.unwrap();
    let thawed = Instant::now();
    while jailed.usage().await.unwrap().cpu <= before {
        assert!(thawed.elapsed() < Duration::from_secs(10), "it does not go on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    jailed.freeze().await.unwrap();
    jailed.kill().await;
    assert_nothing_left(&jailed, "test-freeze").await;
}

#[tokio::test]
async fn a_file_can_be_shown_later_and_taken_out_again() {
    let dir = TempDir::new().unwrap();
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = dir.path().join("late");
    fs::write(&path, "late content\n").unwrap();
    let script = "until read line < /more/late; do :; done; echo $line; exec >&-; read go";
    let ((read, write), (wait, go)) = (pipe(), pipe());
    let late = spec("late", &["sh", "-c", script]).fd(wait, 0).fd(write, 1);
    let jailed = spawn(late).await.unwrap();
    jailed.bind(Bind::new(&path, "/more/late").owned()).await.unwrap();
    let mut text = String::new();
    File::from(read).read_to_string(&mut text).unwrap();
    assert_eq!(text, "late content\n");
    assert_eq!(fs::metadata(&path).unwrap().uid(), jailed.uid());
    // Out, and in again with another file: what the jail looked at stays nobody's.
    jailed.unbind(vec!["/more/late".into()]).await.unwrap();
    let mounts = format!("/proc/{}/mountinfo", jailed.pid());
    assert!(!fs::read_to_string(&mounts).unwrap().contains("late"));
    let error = jailed.unbind(vec!["/more/late".into()]).await.unwrap_err();
    assert!(error.to_string().contains("`/more/late`"), "{error}");
    let other = dir.path().join("other");
    fs::write(&other, "").unwrap();
    jailed.bind(Bind::new(&other, "/more/late")).await.unwrap();
    assert!(fs::read_to_string(&mounts).unwrap().contains("/other"));
    jailed.unbind(vec!["/more/late".into()]).await.unwrap();
    File::from(go).write_all(b"go\n").unwrap();
    let missing = jailed.bind(Bind::new("/nonexistent", "/more/x")).await.unwrap_err();
    assert!(missing.to_string().contains("`/nonexistent`"), "{missing}");
    assert_eq!(jailed.wait().await.outcome, Outcome::Exited(0));
}

#[tokio::test]
async fn killing_any_of_the_three_processes_ends_all() {
    for victim in 0..3 {
        let name = format!("kill{victim}");
        let jailed = spawn(spec(&name, &["busybox", "sleep", "1000"])).await.unwrap();
        let pids = [jailed.pid(), jailed.init_pid(), jailed.keeper_pid()];
        assert!(pids.iter().all(|pid| is_alive(*pid)));
        let pid = rustix::process::Pid::from_raw(pids[victim] as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        let exit = jailed.wait().await;
        let want = if victim == 0 { Outcome::Signaled(9) } else { Outcome::LauncherDied };
        assert_eq!(exit.outcome, want);
        assert_nothing_left(&jailed, &format!("test-{name}-")).await;
        assert_eq!(jailed.wait().await, exit, "asked again");
    }
}

#[tokio::test]
async fn errors_name_the_object_and_leave_nothing() {
    let bad = |made: JailSpec, words: &'static [&'static str]| async move {
        let error = spawn(made).await.unwrap_err();
        let mut text = error.to_string();
        if let Some(source) = std::error::Error::source(&error) {
            text = format!("{text}: {source}");
        }
        for word in words {
            assert!(text.contains(word), "`{word}` not in: {text}");
        }
    };
    let sleep = &["busybox", "sleep", "9"];
    bad(spec("e1", sleep).bind(Bind::new("/no/such", "/x")), &["bind `/no/such`", "No such"]).await;
    bad(spec("e2", sleep).device("/etc/passwd"), &["`/etc/passwd`", "device"]).await;
    bad(spec("e3", sleep).cwd("/nowhere"), &["`/nowhere`"]).await;
    bad(spec("e4", sleep).give("/no/such"), &["give", "`/no/such`"]).await;
    bad(spec("e5", sleep).bind(Bind::new("/etc", "relative")), &["`relative`", "absolute"]).await;
    bad(spec("e6", sleep).fd(pipe().0, 256), &["256", "0..=255"]).await;
    bad(spec("e7", sleep).fd(pipe().0, 3).fd(pipe().0, 3), &["3", "twice"]).await;
    bad(spec("e8", &[]), &["argv[0]"]).await;
    bad(spec("e9", sleep).cgroup("a/../b"), &["`a/../b`"]).await;
    bad(JailSpec::new("a/b", busybox()).arg("x"), &["`a/b`"]).await;
    let script = TempDir::new().unwrap();
    let file = script.path().join("text");
    fs::write(&file, "not a program").unwrap();
    let text = Program::Fd(File::open(&file).unwrap().into());
    let launcher = env!("CARGO_BIN_EXE_hyper-jail");
    let not = JailSpec::new("test-e10", text).arg("x").launcher(launcher);
    bad(not, &["execute"]).await;
    let absent = JailSpec::new("test-e11", Program::Path("/bin/none".into())).arg("x");
    bad(absent.launcher(launcher), &["execute", "No such"]).await;
    let made = spec("e12", sleep).launcher("/no/launcher");
    bad(made, &["/no/launcher"]).await;
    let memory = Limits { cpu_quota: Some((1, 1)), ..Limits::default() };
    bad(spec("e13", sleep).limits(memory), &["cgroup limit", "= 1"]).await;
    let first = spawn(spec("e14", sleep)).await.unwrap();
    bad(spec("e14", sleep), &["take over", "living jail"]).await;
    drop(first);
    assert!(cgroup_dirs("test-e").is_empty(), "{:?}", cgroup_dirs("test-e"));
}

#[tokio::test]
async fn a_cgroup_that_goes_away_or_was_left_behind_does_no_harm() {
    let name = format!("test-gone-{}", std::process::id());
    let jailed = spawn(spec("gone", &["busybox", "sleep", "1000"])).await.unwrap();
    let dirs = cgroup_dirs(&name);
    assert!(!dirs.is_empty());
    for dir in &dirs {
        let root = dir.parent().and_then(Path::parent).unwrap();
        fs::write(root.join("cgroup.procs"), jailed.pid().to_string()).unwrap();
        fs::remove_dir(dir).unwrap();
    }
    assert!(jailed.usage().await.unwrap().private_bytes > 0);
    assert!(jailed.freeze().await.is_err());
    jailed.kill().await;
    assert_eq!(jailed.wait().await.outcome, Outcome::Killed);
    assert_nothing_left(&jailed, &name).await;
    // As if keeper and supervisor had been killed together, with a limit that must not stay.
    for dir in &dirs {
        fs::create_dir_all(dir).unwrap();
        if dir.join("pids.max").exists() {
            fs::write(dir.join("pids.max"), "0").unwrap();
        }
    }
    let script = "busybox true & wait; echo forked";
    let made = spec("gone", &["sh", "-c", script])
        .bind(Bind::new("/usr/bin/busybox", "/bin/busybox").executable())
        .device("/dev/null")
        .env("PATH", "/bin");
    assert_eq!(output(made).await, ("forked\n".to_owned(), Outcome::Exited(0)));
    until("the cgroup goes", || cgroup_dirs(&name).is_empty()).await;
}

#[tokio::test]
async fn a_dead_supervisor_takes_its_jail_along() {
    // The supervisor is this test program itself, run again for the test below.
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "supervisor_to_be_killed", "--ignored", "--nocapture"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut text = String::new();
    let mut byte = [0];
    while !text.contains("READY\n") {
        assert_eq!(stdout.read(&mut byte).unwrap(), 1, "supervisor ended: {text}");
        text.push(char::from(byte[0]));
    }
    let line = text.lines().find_map(|line| line.split_once("pids ")).unwrap().1;
    let pids: Vec<u32> = line.split(' ').map(|pid| pid.parse().unwrap()).collect();
    assert!(pids.iter().all(|pid| is_alive(*pid)));
    child.kill().unwrap();
    child.wait().unwrap();
    until("the jail ends", || pids.iter().all(|pid| !is_alive(*pid))).await;
    until("the cgroup goes", || cgroup_dirs("test-orphan").is_empty()).await;
}

#[tokio::test]
#[ignore = "run by a_dead_supervisor_takes_its_jail_along"]
async fn supervisor_to_be_killed() {
    let jailed = spawn(spec("orphan", &["busybox", "sleep", "1000"])).await.unwrap();
    println!("pids {} {} {}", jailed.pid(), jailed.init_pid(), jailed.keeper_pid());
    println!("READY");
    std::thread::sleep(Duration::from_secs(60));
}

#[tokio::test]
async fn an_unprivileged_supervisor_has_jails_or_a_reason() {
    let nobody = 65534;
    let mut command = Command::new(std::env::current_exe().unwrap());
    std::os::unix::process::CommandExt::uid(&mut command, nobody);
    std::os::unix::process::CommandExt::gid(&mut command, nobody);
    let told = command
        .args(["--exact", "unprivileged_supervisor", "--ignored", "--nocapture"])
        .current_dir("/")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&told.stdout);
    let errors = String::from_utf8_lossy(&told.stderr);
    assert!(told.status.success(), "{text}{errors}");
    assert!(text.contains("JAILED") || text.contains("REFUSED"), "{text}");
    println!("{text}");
}

#[tokio::test]
#[ignore = "run by an_unprivileged_supervisor_has_jails_or_a_reason"]
async fn unprivileged_supervisor() {
    let script = "busybox cat /proc/self/status; busybox ls -A /; echo x > /dev/null && echo wrote";
    let (read, write) = pipe();
    let made = spec("unprivileged", &["sh", "-c", script])
        .bind(Bind::new("/usr/bin/busybox", "/bin/busybox").executable())
        .env("PATH", "/bin")
        .device("/dev/null")
        .tmpfs("/tmp", 1 << 20, false)
        .limits(Limits { memory_bytes: Some(64 << 20), ..Limits::default() })
        .proc()
        .fd(write, 1);
    let jailed = match spawn(made).await {
        Ok(jailed) => jailed,
        Err(error) => {
            assert!(error.to_string().contains("user namespaces"), "{error}");
            println!("REFUSED");
            return;
        }
    };
    let mut text = String::new();
    File::from(read).read_to_string(&mut text).unwrap();
    assert_eq!(jailed.wait().await.outcome, Outcome::Exited(0), "{text}");
    assert!(text.contains("CapEff:\t0000000000000000"), "{text}");
    assert!(text.contains("CapBnd:\t0000000000000000"), "{text}");
    assert!(text.contains("Seccomp:\t2") && text.contains("Pid:\t2"), "{text}");
    assert!(text.ends_with("bin\ndev\nproc\ntmp\nwrote\n"), "{text}");
    assert!(jailed.missing().iter().any(|what| what.contains("own uid")), "{:?}", jailed.missing());
    assert!(jailed.missing().iter().any(|what| what.contains("memory")), "{:?}", jailed.missing());
    println!("JAILED");
}

#[tokio::test]
async fn fifty_jails_leave_nothing() {
    let mounts = || fs::read_to_string("/proc/self/mounts").unwrap().lines().count();
    let fds = || fs::read_dir("/proc/self/fd").unwrap().count();
    let (mounts_before, fds_before) = (mounts(), fds());
    let mut times = Vec::new();
    let mut private = 0;
    for run in 0..50 {
        let made = spec("fifty", &["busybox", "sleep", "1000"])
            .limits(Limits { memory_bytes: Some(64 << 20), pids: Some(10), ..Limits::default() })
            .tmpfs("/tmp", 1 << 20, true)
            .proc();
        let start = Instant::now();
        let jailed = spawn(made).await.unwrap();
        times.push(start.elapsed());
        private = jailed.usage().await.unwrap().private_bytes;
        if run % 2 == 0 {
            jailed.kill().await;
        }
    }
    times.sort_unstable();
    println!("spawn: median {:?}, best {:?}, private {private} bytes", times[25], times[0]);
    assert!(cgroup_dirs("test-fifty").is_empty());
    assert_eq!(mounts(), mounts_before);
    // Other tests of this program run at the same time and open some.
    assert!(fds() < fds_before + 50, "{} → {}", fds_before, fds());
}

#[tokio::test]
async fn a_dropped_attempt_leaves_nothing() {
    for ms in [0, 1, 2, 4, 8] {
        let made = spec("dropped", &["busybox", "sleep", "1000"]);
        let _ = tokio::time::timeout(Duration::from_millis(ms), spawn(made)).await;
    }
    until("cgroups are removed", || cgroup_dirs("test-dropped").is_empty()).await;
}

#[test]
fn the_probe_finds_what_this_suite_relies_on() {
    for found in hyper_jail::probe() {
        println!("{} {} {}", found.what, found.ok, found.detail);
        assert!(found.ok || !found.required, "{found:?}");
        assert!(!found.detail.is_empty());
    }
}

/// CPUs that a task may run on, as `proc(5)` writes them.
fn cpus_of(pid: u32) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    line.unwrap_or_default().trim().to_owned()
}

/// Seconds that the other CPUs were idle since the start of the host.
fn idle_beside(cpu: &str) -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap();
    let lines = stat.lines().filter_map(|line| line.strip_prefix("cpu")?.split_once(' '));
    let others = lines.filter(|(other, _)| !other.is_empty() && *other != cpu);
    let ticks =
        others.filter_map(|(_, times)| times.split_whitespace().nth(3)?.parse::<f64>().ok());
    ticks.sum::<f64>() / 100.0
}

fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

#[tokio::test]
async fn a_jail_of_one_cpu_moves_as_a_whole_when_it_has_to_wait() {
    let busy = "while :; do :; done & while :; do :; done";
    // A shell's background job reads from it.
    let spec = spec("one-cpu", &["sh", "-c", busy]).device("/dev/null").one_cpu();
    let jailed = spawn(spec).await.unwrap();
    until("there is a child", || !children(jailed.pid()).is_empty()).await;
    let first = cpus_of(jailed.pid());
    assert!(first.parse::<usize>().is_ok(), "one CPU, not `{first}`");
    assert_eq!(cpus_of(children(jailed.pid())[0]), first);
    if std::thread::available_parallelism().unwrap().get() > 1 {
        // Others who stay on that CPU, while another one has room.
        let mut others: Vec<_> = (0..4)
            .map(|_| {
                let mut other = Command::new("taskset");
                other.args(["-c", &first, "busybox", "sh", "-c", "while :; do :; done"]);
                other.spawn().unwrap()
            })
            .collect();
        let (start, before) = (Instant::now(), idle_beside(&first));
        while cpus_of(jailed.pid()) == first && start.elapsed() < Duration::from_secs(60) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for other in &mut others {
            other.kill().unwrap();
            other.wait().unwrap();
        }
        let moved = cpus_of(jailed.pid());
        let idle = (idle_beside(&first) - before) / start.elapsed().as_secs_f64();
        if moved == first && idle < 0.7 {
            println!("no CPU was idle here ({idle:.2}): nowhere to move to");
            return;
        }
        assert!(moved != first && moved.parse::<usize>().is_ok(), "`{first}` to `{moved}`");
        until("the child is with it", || cpus_of(children(jailed.pid())[0]) == moved).await;
    }
    jailed.kill().await;
}
