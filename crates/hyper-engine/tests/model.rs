//! Random sequences of operations against a model: the engine ends every one of them as the model
//! does, over restarts of hyperd and under every restart policy.
#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[expect(dead_code, reason = "its supervisors are not killed here")]
mod support;

use std::time::Duration;

use hyper_engine::spec::{Restart, RestartPolicy};
use hyper_engine::{ContainerChange, Engine, Kind, Status};
use proptest::prelude::*;
use support::{World, request};

const NAMES: [&str; 2] = ["one", "two"];
const SOON: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy)]
enum Operation {
    Create(RestartPolicy),
    Start,
    Stop,
    /// Its process ends by itself, with a code.
    Die,
    Remove(bool),
    Update(RestartPolicy),
    Restart,
    /// hyperd goes and comes back.
    Reopen,
    /// The same after `kill -9` of all supervisors' clients: nothing is closed in order.
    Drop,
}

fn policy() -> impl Strategy<Value = RestartPolicy> {
    use RestartPolicy::{Always, No, OnFailure, UnlessStopped};
    prop_oneof![Just(No), Just(OnFailure), Just(Always), Just(UnlessStopped)]
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        4 => policy().prop_map(Operation::Create),
        4 => Just(Operation::Start),
        3 => Just(Operation::Stop),
        4 => Just(Operation::Die),
        2 => any::<bool>().prop_map(Operation::Remove),
        1 => policy().prop_map(Operation::Update),
        1 => Just(Operation::Restart),
        1 => Just(Operation::Reopen),
        1 => Just(Operation::Drop),
    ]
}

/// What the model knows of a container.
#[derive(Debug, Clone, Copy)]
struct Model {
    policy: RestartPolicy,
    status: Status,
    ran: bool,
    stopped: bool,
    code: i32,
    restarts: u32,
}

impl Model {
    fn wanted(&self) -> bool {
        match self.policy {
            RestartPolicy::No => false,
            RestartPolicy::OnFailure => !self.stopped && self.code != 0,
            RestartPolicy::Always | RestartPolicy::UnlessStopped => !self.stopped,
        }
    }

    fn run(&mut self) {
        (self.status, self.ran, self.code) = (Status::Running, true, 0);
    }

    fn by_hand(&mut self) {
        (self.stopped, self.restarts) = (false, 0);
        self.run();
    }

    fn end(&mut self, code: i32) {
        (self.status, self.code) = (Status::Exited, code);
        if self.wanted() {
            self.restarts += 1;
            self.run();
        }
    }
}

/// The same in the model; the error that the engine is to answer with.
fn expect(model: &mut Option<Model>, operation: Operation) -> Option<Kind> {
    let Some(one) = model else {
        return match operation {
            Operation::Create(policy) => {
                let status = Status::Created;
                let (ran, stopped) = (false, false);
                *model = Some(Model { policy, status, ran, stopped, code: 0, restarts: 0 });
                None
            }
            Operation::Reopen | Operation::Drop => None,
            _ => Some(Kind::NotFound),
        };
    };
    let running = one.status == Status::Running;
    match operation {
        Operation::Create(_) => return Some(Kind::Conflict),
        Operation::Start if running => return Some(Kind::NotModified),
        Operation::Start | Operation::Restart => one.by_hand(),
        Operation::Stop if !running => return Some(Kind::NotModified),
        Operation::Stop => {
            one.stopped = true;
            one.end(128 + 15);
        }
        Operation::Die if !running => return Some(Kind::Conflict),
        Operation::Die => one.end(128 + 10),
        Operation::Remove(false) if running => return Some(Kind::Conflict),
        Operation::Remove(_) => *model = None,
        Operation::Update(policy) => one.policy = policy,
        Operation::Reopen | Operation::Drop => at_boot(one),
    }
    None
}

fn at_boot(one: &mut Model) {
    let up = one.status == Status::Running;
    if !up && one.ran && (one.policy == RestartPolicy::Always || one.wanted()) {
        one.run();
    }
}

async fn carry_out(engine: &Engine, name: &str, operation: Operation) -> Result<(), Kind> {
    let kind = |result: hyper_engine::Result<()>| result.map_err(|error| error.kind());
    match operation {
        Operation::Create(policy) => {
            let mut request = request(name, &["sleep"]);
            request.host.restart = Restart { policy, max_retries: 0 };
            engine.create(request).await.map(drop).map_err(|error| error.kind())
        }
        Operation::Start => kind(engine.start(name).await),
        Operation::Stop => kind(engine.stop(name, None, Some(5)).await),
        Operation::Restart => kind(engine.restart(name, None, Some(5)).await),
        Operation::Die => kind(engine.kill(name, Some("USR1")).await),
        Operation::Remove(force) => kind(engine.remove(name, force).await),
        Operation::Update(policy) => {
            let restart = Some(Restart { policy, max_retries: 0 });
            let change = ContainerChange { restart, ..ContainerChange::default() };
            kind(engine.update(name, change).await)
        }
        Operation::Reopen | Operation::Drop => Ok(()),
    }
}

/// Whether the engine is where the model is; back-off and cleaning take their time.
fn same(engine: &Engine, world: &World, models: &[Option<Model>]) -> Result<(), String> {
    for (name, model) in NAMES.iter().zip(models) {
        match (engine.container(name), model) {
            (Err(_), None) => {}
            (Ok(view), Some(model)) => {
                let state = &view.state;
                let seen = (state.status, state.restarts, state.stopped, state.exit_code);
                let wanted = (model.status, model.restarts, model.stopped, model.code);
                if seen != wanted {
                    return Err(format!("{name}: {seen:?}, not {wanted:?}"));
                }
            }
            (Ok(view), None) => return Err(format!("{name} is there: {:?}", view.state)),
            (Err(error), Some(model)) => return Err(format!("{name}: {error}, not {model:?}")),
        }
    }
    let up = |model: &&Option<Model>| model.is_some_and(|model| model.status == Status::Running);
    let (pods, wanted) = (world.bundles(), models.iter().filter(up).count());
    if pods == wanted { Ok(()) } else { Err(format!("{pods} pods, not {wanted}")) }
}

async fn play(operations: Vec<(usize, Operation)>) {
    let world = World::new().await;
    let mut engine = world.engine().await;
    let mut models: [Option<Model>; 2] = [None, None];
    for (step, (which, operation)) in operations.iter().enumerate() {
        let (which, operation) = (which % NAMES.len(), *operation);
        let wanted = match operation {
            Operation::Reopen | Operation::Drop => {
                models.iter_mut().flatten().for_each(at_boot);
                match operation {
                    Operation::Reopen => engine.close(Duration::from_secs(5)).await,
                    _ => engine.close(Duration::ZERO).await,
                }
                // The locks go with the last task.
                tokio::time::sleep(Duration::from_millis(100)).await;
                engine = world.open().await;
                None
            }
            _ => expect(&mut models[which], operation),
        };
        let done = carry_out(&engine, NAMES[which], operation).await;
        assert_eq!(done.err(), wanted, "step {step}: {operation:?} of {}", NAMES[which]);
        let settled = async {
            while same(&engine, &world, &models).is_err() {
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        };
        if tokio::time::timeout(SOON, settled).await.is_err() {
            let why = same(&engine, &world, &models);
            panic!("step {step}: {operation:?} of {}: {why:?}", NAMES[which]);
        }
    }
}

/// Twelve, unless `PROPTEST_CASES` says more.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(12)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(), max_shrink_iters: 40, failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_sequence_ends_as_in_the_model(
        operations in prop::collection::vec((0_usize..2, operation()), 1..16),
    ) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.unwrap().block_on(play(operations));
    }
}
