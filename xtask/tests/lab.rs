//! The laboratory itself: real machines, each some ten seconds.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use std::{env, fs};

const XTASK: &str = env!("CARGO_BIN_EXE_xtask");

/// Runs `xtask lab` with these words; `None`, with a printed reason, where there can be no
/// laboratory.
fn lab(words: &[&str]) -> Option<Output> {
    for program in ["/usr/bin/qemu-system-x86_64", "/usr/bin/apt-get"] {
        if !Path::new(program).exists() {
            assert_ne!(env::var("HYPER_REQUIRE_GUESTS").as_deref(), Ok("1"), "no {program}");
            println!("SKIPPED: no {program}");
            return None;
        }
    }
    Some(Command::new(XTASK).arg("lab").args(words).output().expect("run xtask"))
}

#[test]
fn output_code_files_and_a_kvm_that_works_come_out_of_it() {
    let work = Path::new(env!("CARGO_TARGET_TMPDIR")).join("lab-copies");
    // A leftover of a test that failed.
    drop(fs::remove_dir_all(&work));
    fs::create_dir(&work).expect("a directory");
    let out = work.display();
    fs::write(work.join("known"), "old").expect("write");
    // Inside, KVM runs kernels, or the inner laboratory would have to be emulated, in no time.
    let script = format!(
        "head -c 3000000 /dev/zero | tr '\\0' x; echo to stderr >/dev/stderr; \
         test -c /dev/kvm && {XTASK} lab --if-needed --timeout 5 -- echo inner || exit 1; \
         echo new >{out}/known; mkdir {out}/sub; ln -s ../known {out}/sub/link; \
         grep -q '^0::/system.slice/lab.service$' /proc/self/cgroup || exit 2; \
         touch /etc/of-the-laboratory || exit 3; (sleep 1000 &); echo \"$LAB_WORD\"; exit 7"
    );
    let copy = out.to_string();
    let words = ["--copy-out", &copy, "--env", "LAB_WORD=it's", "--", "sh", "-c", &script];
    let Some(output) = lab(&words) else { return };
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(7), "{stderr}");
    assert_eq!(output.stdout.len(), 3_000_000 + "inner\nit's\n".len(), "{stderr}");
    assert!(output.stdout[..3_000_000].iter().all(|byte| *byte == b'x'));
    assert!(output.stdout.ends_with(b"inner\nit's\n"));
    assert!(stderr.contains("to stderr"), "{stderr}");
    assert!(stderr.contains("this host's KVM works"), "{stderr}");
    assert_eq!(fs::read_to_string(work.join("sub/link")).expect("a link"), "new\n");
    assert!(!Path::new("/etc/of-the-laboratory").exists());
    fs::remove_dir_all(&work).expect("remove");
}

#[test]
fn no_program_is_127_and_cgroup_v1_and_a_disk_can_be_had() {
    let script = "test -d /sys/fs/cgroup/memory && grep -q '^/dev/vda /run/lab/scratch ext4 ' /proc/mounts && no-such-program";
    let Some(output) = lab(&["--cgroup", "v1", "--disk", "4", "--", "sh", "-c", script]) else {
        return;
    };
    assert_eq!(output.status.code(), Some(127), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn it_ends_when_the_time_is_over_or_xtask_is_killed() {
    let started = Instant::now();
    let Some(output) = lab(&["--timeout", "4", "--", "sleep", "1000"]) else { return };
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(124), "{stderr}");
    assert!(stderr.contains("after 4 s; the last lines of the console:"), "{stderr}");
    assert!(started.elapsed() < Duration::from_secs(20));

    let mut child =
        Command::new(XTASK).args(["lab", "--", "sleep", "1000"]).spawn().expect("xtask");
    let qemus = || {
        let all = Command::new("pgrep")
            .args(["--parent", &child.id().to_string()])
            .output()
            .expect("pgrep");
        String::from_utf8_lossy(&all.stdout).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    let qemu = loop {
        if let Some(qemu) = qemus().pop().filter(|pid| name(pid).starts_with("qemu-system")) {
            break qemu;
        }
        assert!(Instant::now() < deadline, "no QEMU");
        std::thread::sleep(Duration::from_millis(50));
    };
    child.kill().expect("kill");
    child.wait().expect("wait");
    while name(&qemu).starts_with("qemu-system") {
        assert!(Instant::now() < deadline, "QEMU {qemu} is still there");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn name(pid: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default()
}
