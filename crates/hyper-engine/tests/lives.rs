//! Lives of containers, over a supervisor in this process.
#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod support;

use std::time::Duration;

use hyper_engine::{Error, LogQuery, Status, WaitCondition};
use hyper_stdio::Wanted;
use support::{World, request};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn create_start_wait_remove() {
    let world = World::new().await;
    let engine = world.engine().await;
    let created = engine.create(request("one", &["exit", "17"])).await.unwrap();
    let view = engine.container(&created.id[..12]).unwrap();
    assert_eq!((view.name.as_str(), view.state.status), ("one", Status::Created));
    assert_eq!(view.spec.env, ["FROM=image"]);
    let waiting = engine.wait("one", WaitCondition::NextExit).unwrap();
    engine.start("one").await.unwrap();
    let outcome = tokio::time::timeout(SOON, waiting).await.unwrap();
    assert_eq!((outcome.exit_code, outcome.error.as_str()), (17, ""));
    assert_eq!(engine.container("one").unwrap().state.status, Status::Exited);
    engine.remove("one", false).await.unwrap();
    assert!(matches!(engine.container("one"), Err(Error::NoSuchContainer(_))));
    assert_eq!(world.bundles(), 0);
    let record = engine.phases(&created.id).unwrap();
    assert!(record.create_accepted <= record.start_done && record.start_done <= record.cleaned);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_unique_and_failures_change_nothing() {
    let world = World::new().await;
    let engine = world.engine().await;
    engine.create(request("same", &["sleep"])).await.unwrap();
    let error = engine.create(request("same", &["sleep"])).await.unwrap_err();
    assert!(matches!(&error, Error::NameInUse { name, .. } if name == "same"), "{error}");
    let mut unknown = request("other", &["sleep"]);
    unknown.image = "nosuch:1".to_owned();
    let error = engine.create(unknown).await.unwrap_err();
    assert_eq!(error.to_string(), "No such image: nosuch:1");
    let mut runtime = request("other", &["sleep"]);
    runtime.host.runtime = "runq".to_owned();
    assert!(engine.create(runtime).await.unwrap_err().to_string().contains("runq"));
    assert_eq!(engine.containers().len(), 1);
    // The name of a failed request is free.
    engine.create(request("other", &["sleep"])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_not_there() {
    let world = World::new().await;
    let engine = world.engine().await;
    engine.create(request("no", &["missing"])).await.unwrap();
    let error = engine.start("no").await.unwrap_err();
    assert!(error.to_string().contains("executable file not found in $PATH"), "{error}");
    let state = engine.container("no").unwrap().state;
    assert_eq!((state.status, state.exit_code), (Status::Created, 127));
    assert_eq!(world.bundles(), 0);
    // `--rm`: gone after the failure, and whoever waits for that is told the code.
    let mut request = request("rm", &["missing"]);
    request.host.auto_remove = true;
    engine.create(request).await.unwrap();
    let removed = engine.wait("rm", WaitCondition::Removed).unwrap();
    engine.start("rm").await.unwrap_err();
    assert_eq!(tokio::time::timeout(SOON, removed).await.unwrap().exit_code, 127);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_attached_before_the_start_sees_everything() {
    let world = World::new().await;
    let engine = world.engine().await;
    let mut request = request("echo", &["echo", "hello"]);
    request.host.auto_remove = true;
    engine.create(request).await.unwrap();
    let wanted = Wanted { stdin: false, stdout: true, stderr: true };
    let attaching = engine.attach("echo", wanted).await.unwrap();
    let removed = engine.wait("echo", WaitCondition::Removed).unwrap();
    engine.start("echo").await.unwrap();
    let mut attached = attaching.streams().await.unwrap();
    // The pod is kept until this client has read.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.bundles(), 1);
    let frame = attached.streams.0.next().await.unwrap().unwrap();
    assert_eq!((frame.stream, &frame.data[..]), (1, &b"hello"[..]));
    assert_eq!(attached.streams.0.next().await.unwrap(), None);
    drop(attached);
    assert_eq!(tokio::time::timeout(SOON, removed).await.unwrap().exit_code, 0);
    assert_eq!(world.bundles(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_kill_and_forced_removal() {
    let world = World::new().await;
    let engine = world.engine().await;
    engine.create(request("cc", &["sleep"])).await.unwrap();
    engine.start("cc").await.unwrap();
    assert!(matches!(engine.start("cc").await, Err(Error::NotModified(_))));
    assert!(matches!(engine.remove("cc", false).await, Err(Error::Conflict(_))));
    engine.stop("cc", None, Some(5)).await.unwrap();
    assert_eq!(engine.container("cc").unwrap().state.exit_code, 128 + 15);
    assert!(matches!(engine.stop("cc", None, None).await, Err(Error::NotModified(_))));
    assert!(matches!(engine.kill("cc", None).await, Err(Error::Conflict(_))));
    engine.restart("cc", None, Some(5)).await.unwrap();
    assert_eq!(engine.container("cc").unwrap().state.status, Status::Running);
    engine.remove("cc", true).await.unwrap();
    assert!(engine.containers().is_empty());
    assert_eq!(world.bundles(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_hangs_can_be_killed() {
    let world = World::new().await;
    let engine = world.engine().await;
    engine.create(request("hh", &["hang"])).await.unwrap();
    let starting = tokio::spawn({
        let engine = engine.clone();
        async move { engine.start("hh").await }
    });
    while engine.container("hh").unwrap().state.status != Status::Starting {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    engine.remove("hh", true).await.unwrap();
    assert!(matches!(starting.await.unwrap(), Err(Error::Conflict(_))));
    assert!(engine.containers().is_empty());
    assert_eq!(world.bundles(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_engine_finds_its_pods_and_the_exits_it_missed() {
    let world = World::new().await;
    let engine = world.engine().await;
    for (name, args) in [("on", &["sleep"][..]), ("off", &["sleep"]), ("never", &["exit", "1"])] {
        engine.create(request(name, args)).await.unwrap();
    }
    engine.start("on").await.unwrap();
    engine.start("off").await.unwrap();
    let off = engine.container("off").unwrap().spec.id.clone();
    let error = hyper_engine::Engine::open(world.config()).await.unwrap_err().to_string();
    assert!(error.contains("in use by another hyperd"), "{error}");
    engine.close(SOON).await;

    // Ends while nobody looks.
    let bundle = world.dir.path().join("run/pods").join(&off);
    let record = r#"{"code":6,"unix_ns":1700000000000000000,"oom_killed":true}"#;
    std::fs::write(bundle.join("exit.json"), record).unwrap();
    std::fs::write(bundle.join("hyperd-address.json"), r#"{"address":"unix:///no","version":3}"#)
        .unwrap();
    let engine = world.open().await;
    let state = |name: &str| engine.container(name).unwrap().state;
    assert_eq!(state("on").status, Status::Running);
    assert_eq!(state("never").status, Status::Created);
    let ended = state("off");
    assert_eq!((ended.status, ended.exit_code, ended.oom_killed), (Status::Exited, 6, true));
    assert_eq!(ended.finished_ns, Some(1_700_000_000_000_000_000));
    engine.kill("on", Some("SIGUSR1")).await.unwrap();
    let waiting = engine.wait("on", WaitCondition::NotRunning).unwrap();
    assert_eq!(tokio::time::timeout(SOON, waiting).await.unwrap().exit_code, 138);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_supervisor_that_dies_is_reported_as_what_it_is() {
    let world = World::new().await;
    let engine = world.engine().await;
    engine.create(request("dd", &["sleep"])).await.unwrap();
    engine.start("dd").await.unwrap();
    let waiting = engine.wait("dd", WaitCondition::NextExit).unwrap();
    world.kill_supervisors();
    let outcome = tokio::time::timeout(SOON, waiting).await.unwrap();
    assert_eq!(outcome.exit_code, 255);
    assert!(outcome.error.contains("supervisor is gone"), "{}", outcome.error);
    // It is cleaned too.
    engine.remove("dd", false).await.unwrap();
    assert_eq!(world.bundles(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn orphans_are_discarded() {
    let world = World::new().await;
    world.engine().await.close(SOON).await;
    std::fs::create_dir(world.dir.path().join("run/pods/stray")).unwrap();
    std::fs::create_dir(world.dir.path().join("data/containers/stray")).unwrap();
    let engine = world.open().await;
    assert_eq!(world.bundles(), 0);
    assert!(!world.dir.path().join("data/containers/stray").exists());
    let query = LogQuery { stdout: true, ..LogQuery::default() };
    assert!(matches!(engine.logs("stray", query).await, Err(Error::NoSuchContainer(_))));
}
