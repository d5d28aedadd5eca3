//! Containers that are started again: by their restart policy, over a restart of hyperd and of the
//! host.
#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod support;

use std::time::Duration;

use hyper_engine::spec::{Restart, RestartPolicy};
use hyper_engine::{ContainerChange, Engine, State, Status};
use support::{World, request};

const SOON: Duration = Duration::from_secs(20);

async fn until(engine: &Engine, name: &str, what: impl Fn(&State) -> bool) -> State {
    let waiting = async {
        loop {
            let state = engine.container(name).unwrap().state;
            if what(&state) {
                return state;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let state = engine.container(name).unwrap().state;
    tokio::time::timeout(SOON, waiting).await.unwrap_or_else(|_| panic!("{name}: {state:?}"))
}

async fn create(engine: &Engine, name: &str, policy: RestartPolicy, retries: u32, args: &[&str]) {
    let mut request = request(name, args);
    request.host.restart = Restart { policy, max_retries: retries };
    engine.create(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_tried_again_as_often_as_asked() {
    let world = World::new().await;
    let engine = world.engine().await;
    create(&engine, "fails", RestartPolicy::OnFailure, 2, &["exit", "3"]).await;
    create(&engine, "works", RestartPolicy::OnFailure, 2, &["exit", "0"]).await;
    for name in ["fails", "works"] {
        engine.start(name).await.unwrap();
    }
    let state = until(&engine, "fails", |state| state.exits == 3).await;
    assert_eq!((state.restarts, state.exit_code), (2, 3));
    until(&engine, "fails", |state| state.status == Status::Exited).await;
    let state = until(&engine, "works", |state| state.status == Status::Exited).await;
    assert_eq!((state.restarts, state.exits), (0, 1));
    // By hand: counted anew.
    engine.start("fails").await.unwrap();
    until(&engine, "fails", |state| state.exits == 6 && state.restarts == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_stopped_by_hand_stays_stopped() {
    let world = World::new().await;
    let engine = world.engine().await;
    create(&engine, "up", RestartPolicy::Always, 0, &["sleep"]).await;
    create(&engine, "loops", RestartPolicy::UnlessStopped, 0, &["exit", "1"]).await;
    engine.start("up").await.unwrap();
    engine.start("loops").await.unwrap();
    engine.stop("up", None, Some(1)).await.unwrap();
    let state = engine.container("up").unwrap().state;
    assert_eq!((state.status, state.restarts), (Status::Exited, 0));
    // While it waits to be started again.
    until(&engine, "loops", |state| state.status == Status::Restarting && state.restarts > 3).await;
    let error = engine.remove("loops", false).await.unwrap_err().to_string();
    assert!(error.contains("is restarting"), "{error}");
    engine.stop("loops", None, None).await.unwrap();
    let exits = engine.container("loops").unwrap().state.exits;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let state = engine.container("loops").unwrap().state;
    assert_eq!((state.status, state.exits), (Status::Exited, exits));
    // A process that dies by itself is not stopped by hand; a signal that does not end is none.
    engine.start("up").await.unwrap();
    engine.kill("up", Some("USR1")).await.unwrap();
    until(&engine, "up", |state| state.restarts == 1 && state.status == Status::Running).await;
    engine.kill("up", None).await.unwrap();
    let state = until(&engine, "up", |state| state.status == Status::Exited).await;
    assert_eq!(state.exit_code, 137);
    let no = ContainerChange {
        restart: Some(Restart { policy: RestartPolicy::No, max_retries: 0 }),
        ..ContainerChange::default()
    };
    engine.update("up", no).await.unwrap();
    engine.start("up").await.unwrap();
    engine.kill("up", Some("USR1")).await.unwrap();
    until(&engine, "up", |state| state.status == Status::Exited && state.restarts == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarting_container_goes_when_it_is_forced() {
    let world = World::new().await;
    let engine = world.engine().await;
    create(&engine, "loops", RestartPolicy::Always, 0, &["exit", "1"]).await;
    engine.start("loops").await.unwrap();
    until(&engine, "loops", |state| state.restarts > 2).await;
    engine.remove("loops", true).await.unwrap();
    assert_eq!(world.bundles(), 0);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((engine.containers().len(), world.bundles()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_reboot_of_the_host_policies_decide() {
    let world = World::new().await;
    let engine = world.engine().await;
    use RestartPolicy::{Always, No, OnFailure, UnlessStopped};
    for (name, policy) in [("aa", Always), ("us", UnlessStopped), ("of", OnFailure), ("no", No)] {
        create(&engine, name, policy, 0, &["sleep"]).await;
        engine.start(name).await.unwrap();
    }
    for (name, policy) in [("aa-stopped", Always), ("us-stopped", UnlessStopped)] {
        create(&engine, name, policy, 0, &["sleep"]).await;
        engine.start(name).await.unwrap();
        engine.stop(name, None, Some(1)).await.unwrap();
    }
    create(&engine, "never", Always, 0, &["sleep"]).await;
    let started = engine.container("aa").unwrap().state.started_ns;
    engine.close(Duration::from_secs(5)).await;
    tokio::time::sleep(Duration::from_millis(200)).await;

    // The supervisors answer still: it is the boot's name that tells that they are others'.
    let database = rusqlite::Connection::open(world.config().layout.database()).unwrap();
    let sql = "UPDATE meta SET value = 'another' WHERE key = 'boot'";
    assert_eq!(database.execute(sql, []).unwrap(), 1);
    drop(database);
    let engine = world.open().await;
    for name in ["aa", "us", "of", "aa-stopped"] {
        until(&engine, name, |state| state.status == Status::Running).await;
    }
    let state = engine.container("aa").unwrap().state;
    assert!(state.started_ns > started && state.restarts == 0, "{state:?}");
    let state = engine.container("no").unwrap().state;
    assert_eq!((state.status, state.exit_code), (Status::Exited, 255));
    assert!(state.error.contains("the host was restarted"), "{}", state.error);
    assert_eq!(engine.container("us-stopped").unwrap().state.status, Status::Exited);
    assert_eq!(engine.container("never").unwrap().state.status, Status::Created);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_that_fails_is_tried_again() {
    let world = World::new().await;
    let engine = world.engine().await;
    create(&engine, "up", RestartPolicy::Always, 0, &["sleep"]).await;
    engine.start("up").await.unwrap();
    // With them goes what starts new ones.
    world.kill_supervisors();
    let state = until(&engine, "up", |state| state.restarts >= 3).await;
    assert_eq!((state.status, state.exit_code), (Status::Restarting, 128));
    assert!(!state.error.is_empty());
    engine.stop("up", None, None).await.unwrap();
    assert_eq!(engine.container("up").unwrap().state.status, Status::Exited);
    assert_eq!(world.bundles(), 0);
}
