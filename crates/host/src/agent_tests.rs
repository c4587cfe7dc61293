//! Agents that a guest has taken over: whatever they say, the host's end stays bounded and its askers get an answer.

use std::path::Path;

use guest_protocol::{FRAME_BYTES_MAX, Stream};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;

/// A wait that ends in no test that passes.
const PATIENCE: Duration = Duration::from_secs(60);

/// The host's end, the hostile end, and where the output goes.
async fn meet() -> (Agent, TcpStream, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let log = BoundedLog::open(&dir.path().join("app.log")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (hostile, _) = listener.accept().await.unwrap();
    (Agent::over(Box::new(host), GENERATION, Arc::new(Mutex::new(log))), hostile, dir)
}

#[tokio::test]
async fn an_absent_agent_says_so_at_once() {
    let agent = Agent::absent();
    assert!(matches!(agent.status().await, Err(AgentError::Closed)));
    assert!(agent.app_exited().await.is_none());
    assert!(agent.park().await.is_none());
}

fn kept(dir: &Path) -> u64 {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

fn frame(body: &[u8]) -> Vec<u8> {
    [&u32::try_from(body.len()).unwrap().to_be_bytes()[..], body].concat()
}

#[tokio::test]
async fn nonsense_ends_the_conversation_and_its_asker_hears_of_it() {
    let too_large = u32::try_from(FRAME_BYTES_MAX).unwrap() + 1;
    for said in [
        b"\xff\xff\xff\xff".to_vec(),
        too_large.to_be_bytes().to_vec(),
        frame(b""),
        frame(b"\0\xff nonsense"),
        frame(b"{\"reply\":{\"id\":-1}}"),
        frame(b"[".repeat(100_000).as_slice()),
        frame(br#"{"event":{"output":{"stream":"stdin","data":""}}}"#),
    ] {
        let (agent, mut hostile, dir) = meet().await;
        hostile.write_all(&said).await.unwrap();
        let answer = tokio::time::timeout(PATIENCE, agent.status()).await.expect("an answer");
        assert!(matches!(answer, Err(AgentError::Closed)), "{answer:?} to {:?}", &said[..said.len().min(20)]);
        assert_eq!(kept(dir.path()), 0);
    }
}

#[tokio::test]
async fn half_a_frame_and_then_the_end_is_the_end() {
    let (agent, mut hostile, _dir) = meet().await;
    hostile.write_all(&[0, 0, 1, 0, b'{']).await.unwrap();
    drop(hostile);
    let exited = tokio::time::timeout(PATIENCE, agent.app_exited()).await.expect("an end");
    assert_eq!(exited, None);
}

#[tokio::test]
async fn a_flood_of_frames_is_bounded_on_the_disk_and_drowns_no_answer() {
    let (agent, hostile, dir) = meet().await;
    let (mut reader, mut writer) = hostile.into_split();
    let (asked, mut ask) = oneshot::channel();
    tokio::spawn(async move {
        let request: Request = read_frame(&mut reader).await.unwrap();
        asked.send(request.id).unwrap();
        // Whoever closes its half ends the conversation.
        let _ = reader.read(&mut [0]).await;
    });
    let flood = tokio::spawn(async move {
        let data = STANDARD.encode(vec![b'x'; 64 << 10]);
        let event = Message::Event(Event::Output { stream: Stream::Stdout, data });
        let no_base64 = Message::Event(Event::Output { stream: Stream::Stderr, data: "?".repeat(64 << 10) });
        for frames in 0.. {
            // Answers to what nobody asked, with ids yet to come: none may be taken for an answer, or kept.
            let failed = Reply::Failed { reason: "x".repeat(1000) };
            write_frame(&mut writer, &Message::Reply { id: 1000 + frames, reply: failed }).await.unwrap();
            write_frame(&mut writer, &event).await.unwrap();
            write_frame(&mut writer, &no_base64).await.unwrap();
            if frames < 300 {
                continue;
            }
            if let Ok(id) = ask.try_recv() {
                let reason = "x".repeat(FRAME_BYTES_MAX - 1000);
                write_frame(&mut writer, &Message::Reply { id, reply: Reply::Failed { reason } }).await.unwrap();
                return writer;
            }
        }
        writer
    });
    let answer = tokio::time::timeout(PATIENCE, agent.status()).await.expect("an answer");
    let Err(AgentError::Refused { reason }) = answer else { panic!("{answer:?}") };
    assert_eq!(reason.len(), 1000, "a reason is cut before it is kept");
    assert!((1 << 20..=(2 << 20) + (128 << 10)).contains(&kept(dir.path())), "{}", kept(dir.path()));
    drop(flood.await.unwrap());
}
