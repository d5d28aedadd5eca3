//! The Task API on a pod: translation, nothing else.

use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest,
    ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest,
    StatsResponse, Status as TaskStatus, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::{EnumOrUnknown, MessageField};
use containerd_shim_protos::shim_async::Task;
use containerd_shim_protos::ttrpc::r#async::TtrpcContext;
use containerd_shim_protos::ttrpc::{self, Code, Result};
use hyper_pod::{CreateRequest, ExecRequest, Pod, PodError, RootfsMount, Status, Uris};
use tokio::sync::Notify;

use crate::wire::{any, metrics, process, status, timestamp};

/// One pod behind the Task API.
#[derive(Debug, Clone)]
pub struct Service {
    pub pod: Pod,
    /// Told when the pod has been shut down.
    pub done: Arc<Notify>,
}

type Context = TtrpcContext;

fn told(error: &PodError) -> ttrpc::Error {
    tracing::info!(error = hyper_pod::chain(error), "request refused");
    status(error)
}

fn invalid(what: String) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(Code::INVALID_ARGUMENT, what))
}

#[async_trait]
impl Task for Service {
    async fn create(&self, _: &Context, request: CreateTaskRequest) -> Result<CreateTaskResponse> {
        if !request.checkpoint.is_empty() {
            return Err(invalid(format!("checkpoint `{}`: not supported", request.checkpoint)));
        }
        let rootfs = request.rootfs.into_iter().map(|mount| RootfsMount {
            kind: mount.type_,
            source: mount.source,
            options: mount.options,
        });
        let request = CreateRequest {
            id: request.id,
            bundle: request.bundle.into(),
            rootfs: rootfs.collect(),
            stdio: Uris {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
        };
        let pid = self.pod.create(request).await.map_err(|error| told(&error))?;
        Ok(CreateTaskResponse { pid, ..CreateTaskResponse::default() })
    }

    async fn start(&self, _: &Context, request: StartRequest) -> Result<StartResponse> {
        let pid = self
            .pod
            .start(process(&request.id, &request.exec_id))
            .await
            .map_err(|error| told(&error))?;
        Ok(StartResponse { pid, ..StartResponse::default() })
    }

    async fn exec(&self, _: &Context, request: ExecProcessRequest) -> Result<Empty> {
        let spec = serde_json::from_slice(&request.spec.value).map_err(|error| {
            invalid(format!("process spec of exec `{}`: {error}", request.exec_id))
        })?;
        let stdio = Uris {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let exec = ExecRequest { container: request.id, id: request.exec_id, spec, stdio };
        self.pod.exec(exec).await.map_err(|error| told(&error))?;
        Ok(Empty::default())
    }

    async fn state(&self, _: &Context, request: StateRequest) -> Result<StateResponse> {
        let report = self.pod.process(process(&request.id, &request.exec_id)).await;
        let report = report.map_err(|error| status(&error))?;
        let mut state = StateResponse {
            id: request.id,
            bundle: report.bundle.display().to_string(),
            pid: report.pid,
            status: EnumOrUnknown::new(match report.status {
                Status::Created => TaskStatus::CREATED,
                Status::Running => TaskStatus::RUNNING,
                Status::Paused => TaskStatus::PAUSED,
                Status::Stopped => TaskStatus::STOPPED,
            }),
            stdin: report.stdio.stdin,
            stdout: report.stdio.stdout,
            stderr: report.stdio.stderr,
            terminal: report.stdio.terminal,
            exec_id: request.exec_id,
            ..StateResponse::default()
        };
        if let Some(exit) = report.exit {
            state.exit_status = exit.code.cast_unsigned();
            state.exited_at = MessageField::some(timestamp(exit.unix_ns));
        }
        Ok(state)
    }

    async fn wait(&self, _: &Context, request: WaitRequest) -> Result<WaitResponse> {
        let exit = self.pod.wait(process(&request.id, &request.exec_id)).await;
        let exit = exit.map_err(|error| status(&error))?;
        Ok(WaitResponse {
            exit_status: exit.code.cast_unsigned(),
            exited_at: MessageField::some(timestamp(exit.unix_ns)),
            ..WaitResponse::default()
        })
    }

    async fn kill(&self, _: &Context, request: KillRequest) -> Result<Empty> {
        let signal = i32::try_from(request.signal)
            .ok()
            .filter(|signal| (0..=64).contains(signal))
            .ok_or_else(|| invalid(format!("signal {} does not exist", request.signal)))?;
        let process = process(&request.id, &request.exec_id);
        self.pod.signal(process, signal, request.all).await.map_err(|error| told(&error))?;
        Ok(Empty::default())
    }

    async fn resize_pty(&self, _: &Context, request: ResizePtyRequest) -> Result<Empty> {
        let narrow = |size: u32| u16::try_from(size).unwrap_or(u16::MAX);
        let process = process(&request.id, &request.exec_id);
        let (rows, columns) = (narrow(request.height), narrow(request.width));
        self.pod.resize(process, rows, columns).await.map_err(|error| status(&error))?;
        Ok(Empty::default())
    }

    async fn close_io(&self, _: &Context, request: CloseIORequest) -> Result<Empty> {
        if request.stdin {
            let process = process(&request.id, &request.exec_id);
            self.pod.close_stdin(process).await.map_err(|error| status(&error))?;
        }
        Ok(Empty::default())
    }

    async fn delete(&self, _: &Context, request: DeleteRequest) -> Result<DeleteResponse> {
        let deleted = self.pod.delete(process(&request.id, &request.exec_id)).await;
        let (pid, exit) = deleted.map_err(|error| told(&error))?;
        Ok(DeleteResponse {
            pid,
            exit_status: exit.code.cast_unsigned(),
            exited_at: MessageField::some(timestamp(exit.unix_ns)),
            ..DeleteResponse::default()
        })
    }

    async fn pids(&self, _: &Context, request: PidsRequest) -> Result<PidsResponse> {
        let pids = self.pod.processes(&request.id).await.map_err(|error| status(&error))?;
        let processes = pids
            .into_iter()
            .map(|process| ProcessInfo { pid: process.pid, ..ProcessInfo::default() });
        Ok(PidsResponse { processes: processes.collect(), ..PidsResponse::default() })
    }

    async fn pause(&self, _: &Context, request: PauseRequest) -> Result<Empty> {
        self.pod.set_paused(&request.id, true).await.map_err(|error| told(&error))?;
        Ok(Empty::default())
    }

    async fn resume(&self, _: &Context, request: ResumeRequest) -> Result<Empty> {
        self.pod.set_paused(&request.id, false).await.map_err(|error| told(&error))?;
        Ok(Empty::default())
    }

    async fn checkpoint(&self, _: &Context, request: CheckpointTaskRequest) -> Result<Empty> {
        let what = format!("checkpoint of container `{}`: not supported", request.id);
        Err(ttrpc::Error::RpcStatus(ttrpc::get_status(Code::UNIMPLEMENTED, what)))
    }

    async fn update(&self, _: &Context, request: UpdateTaskRequest) -> Result<Empty> {
        let resources = serde_json::from_slice(&request.resources.value).map_err(|error| {
            invalid(format!("resources of container `{}`: {error}", request.id))
        })?;
        self.pod.update(&request.id, resources).await.map_err(|error| told(&error))?;
        Ok(Empty::default())
    }

    async fn stats(&self, _: &Context, request: StatsRequest) -> Result<StatsResponse> {
        let stats = self.pod.stats(&request.id).await.map_err(|error| status(&error))?;
        let stats = any(&metrics(&stats)).map_err(|error| invalid(error.to_string()))?;
        Ok(StatsResponse { stats: MessageField::some(stats), ..StatsResponse::default() })
    }

    async fn connect(&self, _: &Context, request: ConnectRequest) -> Result<ConnectResponse> {
        let task = self.pod.process(process(&request.id, "")).await;
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: task.map(|task| task.pid).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..ConnectResponse::default()
        })
    }

    async fn shutdown(&self, _: &Context, request: ShutdownRequest) -> Result<Empty> {
        if self.pod.shutdown(request.now).await.map_err(|error| told(&error))? {
            self.done.notify_one();
        }
        Ok(Empty::default())
    }
}
