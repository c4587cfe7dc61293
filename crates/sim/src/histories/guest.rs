//! The guest's end of connections: the agent, and the app behind it.

use std::{convert::Infallible, future::pending, sync::Arc, time::Duration};

use api::hooks::HOOK_PATH_PREFIX;
use bytes::Bytes;
use guest_protocol::{
    AppEnd, AppStatus, Event, FrameError, GENERATION, Message, Open, Opened, Purpose, Reply, Request, RequestBody,
    read_frame, write_frame,
};
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;

use super::{
    vm::{App, Doing, PretendVm},
    world::World,
};

/// The one port the app listens on.
const PORT: u16 = 8080;

/// What an app is to be told of in the log, and to insist on.
pub struct Guest {
    pub world: Arc<World>,
    pub vm: Arc<PretendVm>,
}

impl Guest {
    /// Serves a connection that the host has opened, for as long as the VM lives.
    pub async fn serve(self, io: DuplexStream) {
        // However it ends is the host's business; a VM that is gone says nothing at all.
        if self.converse(io).await.is_err() && !self.vm.lives() {
            pending::<()>().await;
        }
    }

    async fn converse(&self, mut io: DuplexStream) -> Result<(), FrameError> {
        self.vm.runs().await;
        let open: Open = read_frame(&mut io).await?;
        self.vm.runs().await;
        let opened = |error| Opened { generation: GENERATION, error };
        match open.purpose {
            Purpose::Control => {
                write_frame(&mut io, &opened(None)).await?;
                self.agent(io).await
            }
            Purpose::Connect { port: PORT } if *self.vm.app.borrow() == App::Runs => {
                write_frame(&mut io, &opened(None)).await?;
                self.app(io).await;
                Ok(())
            }
            Purpose::Connect { port } => {
                write_frame(&mut io, &opened(Some(format!("nothing listens on port {port}")))).await
            }
            Purpose::Shell { .. } => write_frame(&mut io, &opened(Some("there is no shell".to_owned()))).await,
        }
    }

    async fn agent(&self, io: DuplexStream) -> Result<(), FrameError> {
        let (mut reader, mut writer) = tokio::io::split(io);
        let mut app = self.vm.app.subscribe();
        let mut told_exit = false;
        loop {
            let exited = async {
                if told_exit {
                    return pending().await;
                }
                match app.wait_for(|app| matches!(app, App::Exited(_))).await.map(|app| *app) {
                    Ok(App::Exited(code)) => code,
                    _ => pending().await,
                }
            };
            tokio::select! {
                biased;
                request = read_frame::<Request>(&mut reader) => {
                    let Request { id, body } = request?;
                    self.vm.runs().await;
                    let time = self.world.chance(&self.vm.who, "answer").between(200, 9000);
                    self.world.pause(Duration::from_micros(time)).await;
                    self.vm.runs().await;
                    if self.world.guest_fails(&self.vm.who, "silent agent") {
                        continue;
                    }
                    match body {
                        RequestBody::Restored { .. } => _ = self.vm.greeted.send_replace(true),
                        RequestBody::Start(_) => _ = self.vm.app.send_replace(App::Runs),
                        RequestBody::Quiesce | RequestBody::Park { .. } | RequestBody::Status => {}
                    }
                    let status = match *self.vm.app.borrow() {
                        App::None => AppStatus::NotStarted,
                        App::Runs => AppStatus::Running,
                        App::Exited(code) => AppStatus::Exited(ended_with(code)),
                    };
                    write_frame(&mut writer, &Message::Reply { id, reply: Reply::App(status) }).await?;
                }
                code = exited => {
                    self.vm.runs().await;
                    write_frame(&mut writer, &Message::Event(Event::AppExited(ended_with(code)))).await?;
                    // Said once; it answers for as long as the host asks.
                    told_exit = true;
                }
            }
        }
    }

    async fn app(&self, io: DuplexStream) {
        let service = service_fn(|request: http::Request<hyper::body::Incoming>| async move {
            let (status, said) = self.answer(request.uri().path()).await;
            let mut response = Response::new(Full::new(Bytes::from(said)));
            *response.status_mut() = status;
            Ok::<_, Infallible>(response)
        });
        let serving = http1::Builder::new().serve_connection(TokioIo::new(io), service);
        let mut app = self.vm.app.subscribe();
        tokio::select! {
            biased;
            _ = serving => {}
            _ = app.wait_for(|app| *app != App::Runs) => {}
        }
        if !self.vm.lives() {
            pending::<()>().await;
        }
    }

    async fn answer(&self, path: &str) -> (StatusCode, String) {
        let (world, vm) = (&self.world, &self.vm);
        vm.runs().await;
        world.pause(Duration::from_micros(world.chance(&vm.who, "work").between(100, 60_000))).await;
        vm.runs().await;
        if let Some(hook) = path.strip_prefix(HOOK_PATH_PREFIX) {
            return self.hook(hook).await;
        }
        if !*vm.greeted.borrow() {
            world.violated(format_args!("{} has a request before its agent knows of the restore", world.name(&vm.who)));
        }
        if path.starts_with("/hooked") && !vm.run_hook_was_called().unwrap_or(false) {
            world.violated(format_args!("{} has a request before its /run hook was called", world.name(&vm.who)));
        }
        let number = if path.ends_with("/count") { self.count().await } else { vm.check() };
        match number {
            Ok(number) => {
                world.log(format_args!("{} answers {path} with {number}", world.name(&vm.who)));
                (StatusCode::OK, number.to_string())
            }
            Err(wrong) => {
                world.violated(format_args!("{}: {wrong}", world.name(&vm.who)));
                (StatusCode::INTERNAL_SERVER_ERROR, wrong)
            }
        }
    }

    /// Counts, waiting for the host where the disk is full: a guest notices nothing of that but the time.
    async fn count(&self) -> Result<u64, String> {
        loop {
            match self.vm.count() {
                Ok(number) => return Ok(number),
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                    self.world.log(format_args!("{} is stuck: the disk is full", self.world.name(&self.vm.who)));
                    self.vm.set_doing(Doing::Stuck);
                    self.vm.runs().await;
                }
                Err(error) => return Err(format!("its disk cannot be written: {error}")),
            }
        }
    }

    async fn hook(&self, hook: &str) -> (StatusCode, String) {
        if self.world.guest_fails(&self.vm.who, "hook") {
            if self.world.chance(&self.vm.who, "hook fails how").one_in(2) {
                pending::<()>().await;
            }
            return (StatusCode::IM_A_TEAPOT, "no".to_owned());
        }
        self.world.log(format_args!("{} answers its hook {hook}", self.world.name(&self.vm.who)));
        if hook == "run" && self.vm.note_run_hook().is_err() {
            return (StatusCode::INTERNAL_SERVER_ERROR, "its memory cannot be written".to_owned());
        }
        (StatusCode::OK, String::new())
    }
}

fn ended_with(code: i32) -> AppEnd {
    AppEnd { code, out_of_memory: None }
}
