//! The control connection: requests one after the other, and between their replies the app's output and its end.

use crate::agent::Agent;
use crate::connections::ConnectionId;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use guest_protocol::{AppStatus, Event, FrameError, Message, Request, read_frame, write_frame};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

/// Replies that wait for the writer.
const REPLIES_MAX: usize = 16;

/// Serves until the host closes the connection or a newer one replaces it.
pub(crate) async fn serve(agent: &Arc<Agent>, id: ConnectionId, connection: TcpStream) -> Result<(), FrameError> {
    let (reader, writer) = connection.into_split();
    let (replies, waiting) = mpsc::channel(REPLIES_MAX);
    tokio::select! {
        ended = read(agent, id, reader, replies) => ended,
        ended = write(agent, writer, waiting) => ended,
    }
}

async fn read(
    agent: &Arc<Agent>,
    id: ConnectionId,
    mut reader: OwnedReadHalf,
    replies: mpsc::Sender<Message>,
) -> Result<(), FrameError> {
    loop {
        let request: Request = read_frame(&mut reader).await?;
        let reply = agent.answer(id, request.body).await;
        if replies.send(Message::Reply { id: request.id, reply }).await.is_err() {
            return Ok(());
        }
    }
}

async fn write(
    agent: &Agent,
    mut writer: OwnedWriteHalf,
    mut replies: mpsc::Receiver<Message>,
) -> Result<(), FrameError> {
    // Every connection hears of the app's end, so that none of them can miss it.
    let mut told_exit = false;
    loop {
        if let Ok(reply) = replies.try_recv() {
            write_frame(&mut writer, &reply).await?;
            continue;
        }
        let chunk = agent.app().output.peek();
        if let Some(chunk) = chunk {
            let event = Event::Output { stream: chunk.stream, data: STANDARD.encode(&chunk.data) };
            write_frame(&mut writer, &Message::Event(event)).await?;
            agent.app().output.taken(chunk.mark);
            continue;
        }
        let status = agent.app().finished();
        if let Some(AppStatus::Exited(end)) = status
            && !told_exit
        {
            told_exit = true;
            write_frame(&mut writer, &Message::Event(Event::AppExited(end))).await?;
            continue;
        }
        tokio::select! {
            reply = replies.recv() => match reply {
                Some(reply) => write_frame(&mut writer, &reply).await?,
                None => return Ok(()),
            },
            () = agent.news.notified() => {}
        }
    }
}
