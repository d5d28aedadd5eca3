//! The Task API in front of the other shim's: what it has is passed on, what it lacks is ours.

use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse,
    DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest,
    PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest,
    StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse, Status,
    UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{EnumOrUnknown, MessageField};
use containerd_shim_protos::shim_async::Task;
use containerd_shim_protos::ttrpc::r#async::TtrpcContext;
use containerd_shim_protos::ttrpc::{self, Code, Result};
use hyper_task::pod::ExitRecord;
use tokio::sync::Notify;

use crate::ForeignError;
use crate::container::Container;
use crate::serve::chain;

/// One container behind the Task API.
#[derive(Debug, Clone)]
pub struct Service {
    pub container: Arc<Container>,
    /// Told when there is nothing left to serve.
    pub done: Arc<Notify>,
}

type Context = TtrpcContext;

fn told(error: &ForeignError) -> ttrpc::Error {
    let message = chain(error);
    tracing::info!(error = message, "request refused");
    let code = match error {
        ForeignError::NotFound { .. } => Code::NOT_FOUND,
        ForeignError::Invalid(_) => Code::INVALID_ARGUMENT,
        ForeignError::Shim { .. } => Code::UNAVAILABLE,
        _ => Code::INTERNAL,
    };
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, message))
}

fn stamp(unix_ns: i64) -> MessageField<Timestamp> {
    MessageField::some(Timestamp {
        seconds: unix_ns.div_euclid(1_000_000_000),
        // Below 10^9.
        nanos: i32::try_from(unix_ns.rem_euclid(1_000_000_000)).unwrap_or_default(),
        ..Timestamp::default()
    })
}

impl Service {
    /// Ends whatever runs: for a supervisor that is told to go.
    pub async fn end(&self) {
        if let Err(error) = self.container.delete("").await {
            tracing::error!(error = chain(&error), "container not ended");
        }
    }
}

#[async_trait]
impl Task for Service {
    async fn create(&self, _: &Context, request: CreateTaskRequest) -> Result<CreateTaskResponse> {
        let pid = self.container.create(&request).await.map_err(|error| told(&error))?;
        Ok(CreateTaskResponse { pid, ..CreateTaskResponse::default() })
    }

    async fn start(&self, _: &Context, request: StartRequest) -> Result<StartResponse> {
        let pid = self.container.start(&request.exec_id).await.map_err(|error| told(&error))?;
        Ok(StartResponse { pid, ..StartResponse::default() })
    }

    async fn exec(&self, _: &Context, request: ExecProcessRequest) -> Result<Empty> {
        self.container.exec(request).await.map_err(|error| told(&error))?;
        Ok(Empty::default())
    }

    async fn state(&self, _: &Context, request: StateRequest) -> Result<StateResponse> {
        let process = self.container.find(&request.exec_id).map_err(|error| told(&error))?;
        let mut state = StateResponse {
            id: request.id.clone(),
            bundle: self.container.settings.bundle.display().to_string(),
            pid: process.pid.get().copied().unwrap_or_default(),
            exec_id: request.exec_id.clone(),
            ..StateResponse::default()
        };
        let ended = process.exit.borrow().clone();
        if let Some(ExitRecord { code, unix_ns, .. }) = ended {
            state.status = EnumOrUnknown::new(Status::STOPPED);
            state.exit_status = code.cast_unsigned();
            state.exited_at = stamp(unix_ns);
            return Ok(state);
        }
        let seen: StateResponse =
            self.container.pass("State", &request).await.map_err(|error| told(&error))?;
        // What is not announced has not happened yet.
        state.status = match seen.status.enum_value_or_default() {
            Status::STOPPED => EnumOrUnknown::new(Status::RUNNING),
            _ => seen.status,
        };
        Ok(state)
    }

    async fn wait(&self, _: &Context, request: WaitRequest) -> Result<WaitResponse> {
        let process = self.container.find(&request.exec_id).map_err(|error| told(&error))?;
        let mut exit = process.exit.subscribe();
        drop(process);
        let ended = exit.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone());
        let gone = ForeignError::NotFound { what: "process", id: request.id };
        let ended = ended.ok_or_else(|| told(&gone))?;
        Ok(WaitResponse {
            exit_status: ended.code.cast_unsigned(),
            exited_at: stamp(ended.unix_ns),
            ..WaitResponse::default()
        })
    }

    async fn kill(&self, _: &Context, request: KillRequest) -> Result<Empty> {
        self.container.pass("Kill", &request).await.map_err(|error| told(&error))
    }

    async fn resize_pty(&self, _: &Context, request: ResizePtyRequest) -> Result<Empty> {
        self.container.pass("ResizePty", &request).await.map_err(|error| told(&error))
    }

    async fn close_io(&self, _: &Context, request: CloseIORequest) -> Result<Empty> {
        let process = self.container.find(&request.exec_id).map_err(|error| told(&error))?;
        process.streams.hub.stdin().close().await;
        Ok(Empty::default())
    }

    async fn delete(&self, _: &Context, request: DeleteRequest) -> Result<DeleteResponse> {
        let deleted = self.container.delete(&request.exec_id).await;
        let (pid, exit) = deleted.map_err(|error| told(&error))?;
        Ok(DeleteResponse {
            pid,
            exit_status: exit.code.cast_unsigned(),
            exited_at: stamp(exit.unix_ns),
            ..DeleteResponse::default()
        })
    }

    async fn pids(&self, _: &Context, request: PidsRequest) -> Result<PidsResponse> {
        self.container.pass("Pids", &request).await.map_err(|error| told(&error))
    }

    async fn pause(&self, _: &Context, request: PauseRequest) -> Result<Empty> {
        self.container.pass("Pause", &request).await.map_err(|error| told(&error))
    }

    async fn resume(&self, _: &Context, request: ResumeRequest) -> Result<Empty> {
        self.container.pass("Resume", &request).await.map_err(|error| told(&error))
    }

    async fn update(&self, _: &Context, request: UpdateTaskRequest) -> Result<Empty> {
        if !self.container.foreign.runtime.shares_kernel() {
            let error = ForeignError::Invalid(format!(
                "runtime `{}` does not change the limits of a container that runs: stop it first",
                self.container.foreign.runtime.name
            ));
            return Err(told(&error));
        }
        self.container.pass("Update", &request).await.map_err(|error| told(&error))
    }

    async fn stats(&self, _: &Context, request: StatsRequest) -> Result<StatsResponse> {
        self.container.pass("Stats", &request).await.map_err(|error| told(&error))
    }

    async fn connect(&self, _: &Context, _: ConnectRequest) -> Result<ConnectResponse> {
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: self.container.running().unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..ConnectResponse::default()
        })
    }

    async fn shutdown(&self, _: &Context, request: ShutdownRequest) -> Result<Empty> {
        if request.now || self.container.is_empty().await {
            if request.now {
                self.end().await;
            }
            self.done.notify_one();
        }
        Ok(Empty::default())
    }
}
