//! What the first Hyper did, as checks: `docs/original-hyper.md` says which check is where.

use hyper_e2e::{Engine, Terminal, runtimes};

#[test]
fn exec_in_the_guest_is_outside_of_all_containers() {
    let engine = Engine::with_busybox();
    for runtime in runtimes() {
        let (pod, one, two) =
            (format!("g-{runtime}"), format!("one-{runtime}"), format!("two-{runtime}"));
        engine.hyper(&["pod", "create", "--runtime", runtime, &pod]).succeeded();
        engine.hyper(&["pod", "start", &pod]).succeeded();
        let early = engine.hyper(&["pod", "exec", "--guest", &pod, "true"]);
        assert!(early.code == 1 && early.stderr.contains("no programs"), "{}", early.stderr);
        for (name, seconds) in [(&one, "6001"), (&two, "6002")] {
            let args = ["run", "-d", "--pod", &pod, "--name", name, "--memory", "24m", "--user"];
            let args = [&args[..], &["nobody", "busybox", "sleep", seconds]].concat();
            engine.hyper(&args).succeeded();
        }
        engine.hyper(&["exec", "-u", "0", &two, "sh", "-c", "echo two >/which"]).succeeded();
        let guest = |words: &[&str]| {
            let all = [&["pod", "exec", "--guest", &pod][..], words].concat();
            engine.hyper(&all)
        };
        // All processes, by the guest's numbers: the agent is the first.
        let seen = guest(&["ps", "-o", "pid,args"]).succeeded().text();
        for wanted in ["sleep 6001", "sleep 6002"] {
            assert!(seen.contains(wanted), "{runtime}: {seen}");
        }
        let agent = guest(&["readlink", "/proc/1/exe"]).succeeded().text();
        let own = engine.hyper(&["exec", &one, "readlink", "/proc/1/exe"]).text();
        assert_ne!(agent, own, "{runtime}: process 1 is the agent, not a container's");
        // Kernel, mounts, network, and root's rights.
        assert!(guest(&["dmesg"]).succeeded().text().contains("Linux version"));
        let mounts = guest(&["cat", "/proc/1/mounts"]).succeeded().text();
        assert!(mounts.contains(" /run/hyper "), "{runtime}: {mounts}");
        assert!(guest(&["mount"]).succeeded().text().contains("on /sys/fs/cgroup type cgroup2"));
        let addresses = guest(&["ip", "-o", "addr"]).succeeded().text();
        assert!(addresses.contains("eth0"), "{runtime}: {addresses}");
        assert_eq!(guest(&["id", "-u"]).succeeded().text(), "0");
        assert_eq!(guest(&["-u", "nobody", "id", "-un"]).succeeded().text(), "nobody");
        assert_eq!(guest(&["hostname"]).succeeded().text(), pod);
        let place = guest(&["cat", "/proc/self/cgroup"]).succeeded().text();
        assert!(place.starts_with("0::/guest,"), "{runtime}: {place}");
        let limit = "cat /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/memory.max";
        assert_eq!(guest(&["sh", "-c", limit]).succeeded().text(), "max", "no container's limit");
        // Streams and codes as those of any exec.
        let args = ["pod", "exec", "-i", "--guest", &pod, "wc", "-c"];
        let counted = engine.hyper_with_input(&args, vec![b'x'; 300_000]).succeeded();
        assert_eq!(counted.text().trim(), "300000");
        assert_eq!(guest(&["sh", "-c", "exit 37"]).code, 37);
        assert_eq!(guest(&["no-such-program"]).code, 127);
        assert_eq!(guest(&["/etc"]).code, 126);
        let words =
            ["pod", "exec", "-it", "--guest", &pod, "sh", "-c", "tty; read x; echo=$x; exit 5"];
        let mut terminal = Terminal::start(engine.hyper_command(&words));
        terminal.answer("/dev/pts/", "yes\n");
        assert_eq!(terminal.ended(), Some(5));
        // The programs of another container; and one that is not of this pod.
        let chosen = guest(&["--container", &two, "cat", "/which"]).succeeded().text();
        assert_eq!(chosen, "two");
        let none = guest(&["--container", "nobody-here", "true"]);
        assert!(none.code == 1 && none.stderr.contains("no such container"), "{}", none.stderr);
        // It ends with the container whose root it is in, and leaves nothing.
        guest(&["-d", "--container", &one, "sleep", "6003"]).succeeded();
        engine.hyper(&["rm", "-f", &one]).succeeded();
        let left = guest(&["sh", "-c", "ps -o args; ls /sys/fs/cgroup"]).succeeded().text();
        assert!(!left.contains("sleep 6003") && !left.contains("sleep 6001"), "{left}");
        assert_eq!(left.matches("guest,").count(), 1, "{runtime}: {left}");
        engine.hyper(&["pod", "rm", "-f", &pod]).succeeded();
    }
    // A container that has a pod to itself.
    engine.hyper(&["run", "-d", "--name", "alone", "busybox", "sleep", "600"]).succeeded();
    let seen = engine.hyper(&["pod", "exec", "--guest", "alone", "ps", "-o", "args"]).succeeded();
    assert!(seen.text().contains("sleep 600"), "{}", seen.text());
    let missing = engine.hyper(&["pod", "exec", "--guest", "nowhere", "true"]);
    assert!(missing.code == 1 && missing.stderr.contains("nowhere"), "{}", missing.stderr);
}
