//! The pod on the in-memory hypervisor, with an agent on the other end of the real link.

mod support;

use std::time::Duration;

use hyper_hypervisor::{DiskModel, VmError, VmExit};
use hyper_pod::{Kind, PodError, Status, Uris, chain, read_exit};
use hyper_stdio::Wanted;
use hyper_stdio::attach;
use hyper_task::pod::{Answer, Call};
use support::{Host, exec, exec_request, init, logged, start_agent};

const ALL: Wanted = Wanted { stdin: true, stdout: true, stderr: true };

#[tokio::test(flavor = "multi_thread")]
async fn a_container_lives_and_leaves_nothing() {
    let mut host = Host::new(DiskModel::Stitched);
    let uris = host.hub("c");
    host.create("c", &["echo", "hello", "world"], uris).await;
    // Attached before the start, as docker run does: nothing is missed.
    let (mut output, _input) = attach::attach(&host.socket("c"), None, ALL).await.unwrap();
    let exit = host.run("c").await;
    assert_eq!((exit.code, exit.reason.as_deref()), (0, None));
    let mut seen = [vec![], vec![], vec![]];
    while let Some(frame) = output.next().await.unwrap() {
        seen[usize::from(frame.stream)].extend_from_slice(&frame.data);
    }
    assert_eq!((&seen[1][..], &seen[2][..]), (&b"hello world\n"[..], &b"done\n"[..]));
    let text = logged(&host.log("c")).await;
    assert!(text.contains("hello world\n") && text.contains("done\n"), "{text}");

    let Answer::Phases(phases) = attach::call(&host.socket("c"), &Call::Phases).await.unwrap()
    else {
        panic!("no phases")
    };
    let times = [
        phases.supervisor_started,
        phases.create_received,
        phases.hypervisor_started,
        phases.agent_ready,
        phases.container_created,
        phases.start_received,
        phases.process_started,
        phases.process_exited,
    ];
    assert!(times.is_sorted() && times.iter().all(Option::is_some), "{times:?}");
    let Answer::Pod(report) = attach::call(&host.socket("c"), &Call::Pod).await.unwrap() else {
        panic!("no report")
    };
    assert_eq!((report.hypervisor.as_str(), report.guest_kernel.as_str()), ("fake", "7.3-fake"));
    assert_eq!(report.guest_memory_used_bytes, 40);
    assert!(report.supervisor_private_bytes > 0 && report.hypervisor_resident_bytes > 0);

    let bundle = host.dir.path().join("bundles/c");
    assert_eq!(read_exit(&bundle).unwrap().unwrap().code, 0);
    host.pod.delete(init("c")).await.unwrap();
    assert!(!host.socket("c").exists());
    assert!(host.pod.shutdown(false).await.unwrap());
    assert!(!host.dir.path().join("run").exists() && !host.dir.path().join("disks").exists());
    let error = host.pod.start(init("c")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn stdin_and_execs() {
    let mut host = Host::new(DiskModel::DevicePerExtent);
    let uris = host.hub("c");
    host.create("c", &["cat"], uris).await;
    host.pod.start(init("c")).await.unwrap();
    let hub = Uris {
        stdin: "hub:".into(),
        stdout: "hub:".into(),
        stderr: "hub:".into(),
        terminal: false,
    };
    host.pod.exec(exec_request("c", "e", &["cat"], hub)).await.unwrap();
    let again = host.pod.exec(exec_request("c", "e", &["cat"], Uris::default())).await.unwrap_err();
    assert_eq!(again.kind(), Kind::AlreadyExists);
    let (mut output, mut input) =
        attach::attach(&host.socket("c"), Some("e".into()), ALL).await.unwrap();
    host.pod.start(exec("c", "e")).await.unwrap();
    input.stdin(b"to the exec").await.unwrap();
    input.end_stdin().await.unwrap();
    let mut seen = Vec::new();
    while let Some(frame) = output.next().await.unwrap() {
        seen.extend_from_slice(&frame.data);
    }
    assert_eq!(seen, b"to the exec");
    assert_eq!(host.pod.wait(exec("c", "e")).await.unwrap().code, 0);
    host.pod.delete(exec("c", "e")).await.unwrap();
    assert_eq!(host.pod.process(exec("c", "e")).await.unwrap_err().kind(), Kind::NotFound);

    // An exec that still runs ends with its container.
    host.pod.exec(exec_request("c", "f", &["sleep"], Uris::default())).await.unwrap();
    host.pod.start(exec("c", "f")).await.unwrap();
    assert_eq!(host.pod.process(init("c")).await.unwrap().status, Status::Running);
    host.pod.close_stdin(init("c")).await.unwrap();
    assert_eq!(host.pod.wait(init("c")).await.unwrap().code, 0);
    assert_eq!(host.pod.wait(exec("c", "f")).await.unwrap().code, 137);
    assert_eq!(host.pod.signal(init("c"), 9, false).await.unwrap_err().kind(), Kind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_megabytes_each_way() {
    const BYTES: usize = 200 << 20;
    let mut host = Host::new(DiskModel::Stitched);
    let hub = Uris {
        stdin: "hub:".into(),
        stdout: "hub:".into(),
        stderr: String::new(),
        terminal: false,
    };
    host.create("c", &["cat"], hub).await;
    let (mut output, mut input) = attach::attach(&host.socket("c"), None, ALL).await.unwrap();
    host.pod.start(init("c")).await.unwrap();
    let begun = std::time::Instant::now();
    let writer = tokio::spawn(async move {
        let chunk = vec![b'y'; 65536];
        for _ in 0..BYTES / chunk.len() {
            input.stdin(&chunk).await.unwrap();
        }
        input.end_stdin().await.unwrap();
        input
    });
    let mut seen = 0;
    while let Some(frame) = output.next().await.unwrap() {
        assert!(frame.data.iter().all(|byte| *byte == b'y'));
        seen += frame.data.len();
    }
    assert_eq!(seen, BYTES);
    writer.await.unwrap();
    eprintln!("200 MiB in and out in {:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_guest_is_an_exit_with_a_reason() {
    for (how, code, words, oom) in [
        (
            VmExit::Panicked { message: "VFS: no root".into() },
            255,
            "guest panicked: VFS: no root",
            false,
        ),
        (VmExit::Signaled { signal: 9, oom: false }, 137, "killed by signal 9", false),
        (VmExit::Signaled { signal: 9, oom: true }, 137, "OOM", true),
    ] {
        let mut host = Host::new(DiskModel::Stitched);
        let uris = host.hub("c");
        let power = host.create("c", &["sleep"], uris).await;
        host.pod.start(init("c")).await.unwrap();
        power.end(how);
        let (process, exit) = host.exited().await;
        assert_eq!(process, init("c"));
        assert_eq!((exit.code, exit.oom_killed), (code, oom));
        assert!(exit.reason.as_ref().unwrap().contains(words), "{exit:?}");
        assert_eq!(read_exit(&host.dir.path().join("bundles/c")).unwrap(), Some(exit));
        let request = host.request("d", &["sleep"], Uris::default());
        let error = host.pod.create(request).await.unwrap_err();
        assert!(error.kind() == Kind::Unavailable && error.to_string().contains(words), "{error}");
        host.pod.delete(init("c")).await.unwrap();
        assert!(host.pod.shutdown(false).await.unwrap());
    }
}

#[tokio::test]
async fn a_silent_agent_ends_the_pod_unless_it_is_paused() {
    let mut host = Host::new(DiskModel::Stitched);
    host.create("c", &["sleep"], Uris::default()).await;
    host.pod.start(init("c")).await.unwrap();
    // The agent has no freezer: the guest is stopped as a whole, and says nothing for long.
    host.pod.set_paused("c", true).await.unwrap();
    assert_eq!(host.pod.process(init("c")).await.unwrap().status, Status::Paused);
    assert_eq!(
        host.pod.signal(init("c"), 15, false).await.unwrap_err().kind(),
        Kind::FailedPrecondition
    );
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(60)).await;
    tokio::time::resume();
    host.pod.set_paused("c", false).await.unwrap();
    assert_eq!(host.pod.process(init("c")).await.unwrap().status, Status::Running);
    assert_eq!(host.pod.stats("c").await.unwrap().memory_bytes, 77);
    host.pod.exec(exec_request("c", "e", &["deaf"], Uris::default())).await.unwrap();
    host.pod.start(exec("c", "e")).await.unwrap();
    tokio::time::pause();
    let (_, exit) = host.exited().await;
    assert_eq!(exit.code, 137);
    assert!(exit.reason.unwrap().contains("silent for 7 s"));
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_leave_the_pod_as_it_was() {
    let mut host = Host::new(DiskModel::Stitched);
    let request = host.request("c", &["uncreatable"], Uris::default());
    let (created, _) =
        tokio::join!(host.pod.create(request.clone()), start_agent(&mut host.guests));
    assert!(created.unwrap_err().to_string().contains("no user `nobody`"));
    assert!(!host.socket("c").exists());

    host.fake.refuse(VmError::Launch { hypervisor: "fake", detail: "no luck".into() });
    let error = host.pod.create(request.clone()).await.unwrap_err();
    assert!(chain(&error).contains("no luck"), "{}", chain(&error));

    // A guest that dies while it boots: its console is in the error.
    let dying = async {
        let guest = host.guests.next().await.unwrap();
        guest.power.say("cannot find init");
        guest.power.end(VmExit::Panicked { message: "no init".into() });
        guest
    };
    let (created, _guest) = tokio::join!(host.pod.create(request), dying);
    let text = chain(&created.unwrap_err());
    assert!(
        text.contains("guest panicked: no init") && text.contains("cannot find init"),
        "{text}"
    );

    let mut bad = host.request("c", &["echo"], Uris::default());
    bad.rootfs[0].options = vec!["lowerdir=/x".into()];
    assert!(chain(&host.pod.create(bad).await.unwrap_err()).contains("lowerdir=/x"));
    let syslog = Uris { stdout: "hub:?driver=syslog&path=/x".into(), ..Uris::default() };
    let request = host.request("c", &["echo"], syslog);
    assert!(chain(&host.pod.create(request).await.unwrap_err()).contains("`syslog`"));

    host.create("c", &["missing"], Uris::default()).await;
    let error = host.pod.start(init("c")).await.unwrap_err();
    assert_eq!(error.exit_code(), Some(127));
    assert!(error.to_string().contains("executable file not found in $PATH"), "{error}");
    assert_eq!(host.pod.wait(init("c")).await.unwrap().code, 127);
    host.pod.delete(init("c")).await.unwrap();
    assert!(host.pod.shutdown(false).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_guests_end_is_not_the_next_ones() {
    let mut host = Host::new(DiskModel::Stitched);
    for _ in 0..40 {
        host.create("c", &["exit", "0"], Uris::default()).await;
        assert_eq!(host.run("c").await.code, 0);
        host.pod.delete(init("c")).await.unwrap();
    }
    assert!(host.pod.shutdown(false).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_two() {
    let mut host = Host::new(DiskModel::DevicePerExtent);
    let uris = host.hub("a");
    host.create("a", &["sleep"], uris).await;
    let request = host.request("b", &["exit", "3"], Uris::default());
    host.pod.create(request).await.unwrap();
    assert_eq!(host.pod.report().await.unwrap().containers, ["a", "b"]);
    assert_eq!(host.run("b").await.code, 3);
    assert!(!host.pod.shutdown(false).await.unwrap(), "containers are left");
    let error = host.pod.delete(init("a")).await.map(|_| ());
    // Created and never started: it is killed first.
    error.unwrap();
    host.pod.delete(init("b")).await.unwrap();
    assert!(host.pod.shutdown(false).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_become_disks_and_go_with_the_container() {
    let mut host = Host::new(DiskModel::Stitched);
    let lower = host.dir.path().join("lower");
    std::fs::create_dir_all(lower.join("etc")).unwrap();
    std::fs::write(lower.join("etc/issue"), "hello").unwrap();
    let mut request = host.request("c", &["exit", "0"], Uris::default());
    request.rootfs[0].kind = "overlay".into();
    request.rootfs[0].options = vec![format!("lowerdir={}", lower.display())];
    let (created, power) = tokio::join!(host.pod.create(request), start_agent(&mut host.guests));
    created.unwrap();
    let image = power.device("/dev/fake0").unwrap();
    assert!(image.read_only && image.extents.len() == 2);
    let upper = power.device("/dev/fake1").unwrap();
    assert!(!upper.read_only && upper.ephemeral && upper.extents[0].bytes == 64 << 20);
    host.run("c").await;
    host.pod.delete(init("c")).await.unwrap();
    assert!(!upper.extents[0].path.exists() && image.extents[0].path.exists());
    let error = host.pod.start(init("c")).await.unwrap_err();
    assert!(matches!(error, PodError::NotFound { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_holds_the_guest_and_has_no_process() {
    let mut host = Host::new(DiskModel::Stitched);
    let sandbox = host.sandbox_request("s");
    let (created, power) = tokio::join!(host.pod.create(sandbox), start_agent(&mut host.guests));
    created.unwrap();
    host.pod.start(init("s")).await.unwrap();
    assert_eq!(host.pod.process(init("s")).await.unwrap().status, Status::Running);
    let error = host.pod.exec(exec_request("s", "e", &["cat"], Uris::default())).await.unwrap_err();
    assert!(error.to_string().contains("name one of its containers"), "{error}");

    // Containers come and go, two with the same disks: the guest has them once, for as long.
    let disk = |at: usize| power.device(&format!("/dev/fake{at}"));
    for _ in 0..2 {
        for id in ["c", "d"] {
            host.pod.create(host.request(id, &["echo", "hello"], host.hub(id))).await.unwrap();
        }
        for id in ["c", "d"] {
            assert_eq!(host.run(id).await.code, 0);
            assert!(disk(0).is_some() && disk(1).is_none());
            host.pod.delete(init(id)).await.unwrap();
            assert_eq!(host.pod.process(init("s")).await.unwrap().status, Status::Running);
        }
        assert!(disk(0).is_none());
    }

    // 28 is SIGWINCH: not one that ends it.
    host.pod.signal(init("s"), 28, false).await.unwrap();
    assert_eq!(host.pod.process(init("s")).await.unwrap().status, Status::Running);
    host.pod.signal(init("s"), 15, false).await.unwrap();
    assert_eq!(host.pod.wait(init("s")).await.unwrap().code, 143);
    host.pod.delete(init("s")).await.unwrap();
    assert!(host.pod.shutdown(false).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_containers_come_and_go_never_runs_out_of_disks() {
    for model in [DiskModel::Stitched, DiskModel::DevicePerExtent] {
        let mut host = Host::new(model);
        let sandbox = host.sandbox_request("s");
        let (created, power) =
            tokio::join!(host.pod.create(sandbox), start_agent(&mut host.guests));
        created.unwrap();
        host.pod.start(init("s")).await.unwrap();
        let lower = host.dir.path().join("lower");
        std::fs::create_dir_all(&lower).unwrap();
        std::fs::write(lower.join("issue"), "hello").unwrap();
        let request = |host: &Host, id: &str, args: &[&str]| {
            let mut request = host.request(id, args, Uris::default());
            request.rootfs[0].kind = "overlay".into();
            request.rootfs[0].options = vec![format!("lowerdir={}", lower.display())];
            request
        };
        let disks = || (0..6).filter_map(|at| power.device(&format!("/dev/fake{at}"))).count();
        // The fake has places for six, this takes three of them; one more stays to the end.
        let mut most = 0;
        host.pod.create(request(&host, "stays", &["cat"])).await.unwrap();
        for round in 0..18 {
            // One that cannot be created gives back what it had been given.
            let failed = host.pod.create(request(&host, "f", &["uncreatable"])).await;
            assert_eq!(failed.unwrap_err().kind(), Kind::InvalidArgument);
            let id = format!("c{round}");
            host.pod.create(request(&host, &id, &["exit", "0"])).await.unwrap();
            most = most.max(disks());
            host.run(&id).await;
            host.pod.delete(init(&id)).await.unwrap();
        }
        let one = if model == DiskModel::Stitched { 2 } else { 3 };
        assert_eq!((disks(), most), (one, one + 1), "the image is theirs together");

        // What the agent does not let go of stays, and is taken back with the next one's.
        for (args, left) in [("clings", one + 1), ("exit", one)] {
            host.pod.create(request(&host, "c", &[args, "0"])).await.unwrap();
            host.pod.start(init("c")).await.unwrap();
            // `clings` runs until it is killed.
            let _ = host.pod.signal(init("c"), 9, false).await;
            host.pod.wait(init("c")).await.unwrap();
            host.pod.delete(init("c")).await.unwrap();
            assert_eq!(disks(), left, "{args}");
        }
        assert!(host.pod.shutdown(true).await.unwrap());
    }
}
