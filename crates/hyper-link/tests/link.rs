//! Both ends of a link over an in-memory carrier, and one hostile end.
#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::time::Duration;

use hyper_link::{
    AgentLink, CallError, EventReceiver, Link, LinkError, RequestReceiver, WINDOW, accept, connect,
    message::{AgentHello, Event, Failure, FailureKind, ProcessId, Reply, Request},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    time::timeout,
};

const SOON: Duration = Duration::from_secs(20);

fn hello() -> AgentHello {
    AgentHello {
        min_version: 1,
        max_version: 1,
        agent: "test".to_owned(),
        kernel: "none".to_owned(),
        capabilities: vec!["exec".to_owned()],
        ready_us: 1,
    }
}

async fn pair() -> (Link, EventReceiver, AgentLink, RequestReceiver) {
    let (ours, theirs) = tokio::io::duplex(32 << 10);
    let agent = tokio::spawn(accept(theirs, hello()));
    let (link, events) = connect(ours, SOON).await.unwrap();
    let (agent, requests) = agent.await.unwrap().unwrap();
    (link, events, agent, requests)
}

fn ping(id: &str) -> Request {
    Request::StartContainer { container: id.to_owned() }
}

#[tokio::test]
async fn noise_before_the_preface_is_skipped_and_too_much_is_refused() {
    for (noise, fine) in [(0, true), (1, true), (64 << 10, true), (80 << 10, false)] {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        theirs.write_all(&vec![b'\xff'; noise]).await.unwrap();
        let agent = tokio::spawn(accept(theirs, hello()));
        let outcome = connect(ours, SOON).await;
        assert_eq!(outcome.is_ok(), fine, "{noise}: {outcome:?}");
        if fine {
            assert_eq!(outcome.unwrap().0.hello(), &hello());
            agent.await.unwrap().unwrap();
        } else {
            assert!(matches!(outcome, Err(LinkError::NoPreface(_))));
            agent.abort();
        }
    }
}

#[tokio::test]
async fn nothing_is_said_before_the_agent_and_the_deadline_holds() {
    let (ours, mut theirs) = tokio::io::duplex(1 << 10);
    let outcome = connect(ours, Duration::from_millis(50)).await;
    assert!(matches!(outcome, Err(LinkError::NoAgent(_))));
    let mut heard = Vec::new();
    theirs.read_to_end(&mut heard).await.unwrap();
    assert!(heard.is_empty());
}

#[tokio::test]
async fn an_agent_of_another_age_is_refused() {
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let hello = AgentHello { min_version: 7, max_version: 9, ..hello() };
    let _agent = tokio::spawn(accept(theirs, hello));
    let error = connect(ours, SOON).await.unwrap_err();
    assert!(matches!(error, LinkError::Version { min: 7, max: 9, ours: 1 }), "{error}");
}

#[tokio::test]
async fn calls_run_side_by_side_and_failures_come_back() {
    let (link, _events, _agent, mut requests) = pair().await;
    let first = tokio::spawn({
        let link = link.clone();
        async move { link.call(ping("first"), SOON).await }
    });
    let (_, first_replier) = requests.recv().await.unwrap();
    let second = tokio::spawn({
        let link = link.clone();
        async move { link.call(ping("second"), SOON).await }
    });
    let (request, replier) = requests.recv().await.unwrap();
    assert_eq!(request, ping("second"));
    let failure = Failure { kind: FailureKind::NotFound, message: "no second".to_owned() };
    replier.send(Reply::Error(failure.clone()));
    assert_eq!(second.await.unwrap().unwrap_err().failure(), Some(&failure));
    first_replier.send(Reply::Started { pid: 7 });
    assert_eq!(first.await.unwrap().unwrap(), Reply::Started { pid: 7 });

    let slow = link.call(ping("slow"), Duration::from_millis(30)).await;
    assert!(matches!(slow, Err(CallError::TimedOut { request: "start_container", .. })));
    // The late answer to a call that was given up disturbs nobody.
    requests.recv().await.unwrap().1.send(Reply::Done);
    let dropped = link.call(ping("dropped"), SOON);
    let (dropped, ()) = tokio::join!(dropped, async { drop(requests.recv().await) });
    assert_eq!(dropped.unwrap_err().failure().unwrap().kind, FailureKind::Internal);
}

#[tokio::test]
async fn a_long_message_passes_whole_and_a_longer_one_is_refused() {
    let (link, _events, _agent, mut requests) = pair().await;
    let long = "x".repeat(3 << 20);
    let call = link.call(ping(&long), SOON);
    let (reply, ()) = tokio::join!(call, async {
        let (request, replier) = requests.recv().await.unwrap();
        assert_eq!(request, ping(&long));
        replier.send(Reply::Done);
    });
    assert_eq!(reply.unwrap(), Reply::Done);
    let longer = link.call(ping(&"x".repeat(4 << 20)), SOON).await;
    assert!(matches!(longer, Err(CallError::TooLong { .. })));
}

#[tokio::test]
async fn events_keep_their_order() {
    let (_link, mut events, agent, _requests) = pair().await;
    for code in 0..1000 {
        let process = ProcessId { container: "c".to_owned(), exec: None };
        agent.event(Event::Exited { process, code, unix_ns: 0, oom_killed: false });
    }
    for expected in 0..1000 {
        let Some(Event::Exited { code, .. }) = events.recv().await else { panic!("no event") };
        assert_eq!(code, expected);
    }
}

#[tokio::test]
async fn two_hundred_megabytes_arrive_as_they_were_sent() {
    const BLOCK: usize = 1 << 16;
    const BLOCKS: usize = 3200;
    let (link, _events, agent, _requests) = pair().await;
    let (id, mut down, mut up) = link.open();
    link_barrier(&link, _requests).await;
    let (mut agent_down, mut agent_up) = agent.open(id).unwrap();
    let echo = tokio::spawn(async move {
        let copied = tokio::io::copy(&mut agent_down, &mut agent_up).await.unwrap();
        agent_up.shutdown().await.unwrap();
        copied
    });
    let sending = tokio::spawn(async move {
        for number in 0..BLOCKS {
            up.write_all(&block(number)).await.unwrap();
        }
        up.shutdown().await.unwrap();
    });
    let mut received = vec![0; BLOCK];
    for number in 0..BLOCKS {
        down.read_exact(&mut received).await.unwrap();
        assert!(received == block(number), "block {number} differs");
    }
    assert_eq!(down.read(&mut received).await.unwrap(), 0);
    sending.await.unwrap();
    assert_eq!(echo.await.unwrap(), (BLOCK * BLOCKS) as u64);

    fn block(number: usize) -> Vec<u8> {
        let mut state = number as u64 + 1;
        let mut out = Vec::with_capacity(BLOCK);
        while out.len() < BLOCK {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            out.extend_from_slice(&state.to_le_bytes());
        }
        out
    }
}

/// One round trip, so that all streams announced before are known to the agent.
async fn link_barrier(link: &Link, mut requests: RequestReceiver) {
    let call = link.call(Request::Ping, SOON);
    let (reply, ()) =
        tokio::join!(call, async { requests.recv().await.unwrap().1.send(Reply::Done) });
    reply.unwrap();
}

#[tokio::test]
async fn a_slow_reader_stalls_nobody_else_and_loses_nothing() {
    let (link, _events, agent, mut requests) = pair().await;
    let (slow_id, mut slow, _unused) = link.open();
    let (fast_id, mut fast, _unused2) = link.open();
    let barrier = async { requests.recv().await.unwrap().1.send(Reply::Done) };
    let (reply, ()) = tokio::join!(link.call(Request::Ping, SOON), barrier);
    reply.unwrap();
    let total = 4 * WINDOW as usize;
    for id in [slow_id, fast_id] {
        let (_, mut writer) = agent.open(id).unwrap();
        tokio::spawn(async move {
            writer.write_all(&vec![u8::try_from(id).unwrap(); total]).await.unwrap();
            writer.shutdown().await.unwrap();
        });
    }
    let mut bytes = Vec::new();
    timeout(SOON, fast.read_to_end(&mut bytes)).await.unwrap().unwrap();
    assert_eq!(bytes.len(), total);
    // Control passes as well while the slow stream's window is full.
    let answering = async { requests.recv().await.unwrap().1.send(Reply::Done) };
    let (reply, ()) = tokio::join!(link.call(Request::Ping, SOON), answering);
    reply.unwrap();
    let mut bytes = Vec::new();
    timeout(SOON, slow.read_to_end(&mut bytes)).await.unwrap().unwrap();
    assert!(bytes.len() == total && bytes.iter().all(|byte| u32::from(*byte) == slow_id));
}

#[tokio::test]
async fn ends_of_a_stream_reach_the_other_side_as_what_they_are() {
    let (link, _events, agent, requests) = pair().await;
    let (id, mut reader, mut writer) = link.open();
    link_barrier(&link, requests).await;
    let (mut agent_reader, agent_writer) = agent.open(id).unwrap();
    assert!(agent.open(id).is_err() && agent.open(id + 1).is_err());

    writer.write_all(b"last words").await.unwrap();
    drop(writer);
    let mut heard = Vec::new();
    agent_reader.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"last words");
    agent_writer.reset();
    let error = reader.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);

    // A reader that goes away stops the writer, even one that waits for room.
    let (id, reader, _writer) = link.open();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let (_agent_reader, mut agent_writer) = agent.open(id).unwrap();
    let writing = tokio::spawn(async move {
        let error = loop {
            if let Err(error) = agent_writer.write_all(&[0; 4096]).await {
                break error;
            }
        };
        agent_writer.stopped().await;
        error.kind()
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    drop(reader);
    assert_eq!(timeout(SOON, writing).await.unwrap().unwrap(), std::io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn the_end_of_the_link_reaches_everyone_who_waits() {
    let (link, mut events, agent, requests) = pair().await;
    let (_id, mut reader, mut writer) = link.open();
    let calling = tokio::spawn({
        let link = link.clone();
        async move { link.call(Request::Ping, SOON).await }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    drop((agent, requests));
    assert!(matches!(timeout(SOON, link.closed()).await.unwrap(), LinkError::Closed));
    assert!(matches!(calling.await.unwrap(), Err(CallError::Link { .. })));
    assert_eq!(events.recv().await, None);
    let error = reader.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted);
    assert!(writer.write_all(b"x").await.is_err());
    assert!(matches!(link.call(Request::Ping, SOON).await, Err(CallError::Link { .. })));
    let (_, mut late, _) = link.open();
    assert!(late.read_u8().await.is_err());
}

/// Meets the supervisor as an agent would, then says whatever it likes.
async fn hostile(frames: &[u8]) -> LinkError {
    let (ours, mut theirs) = tokio::io::duplex(1 << 20);
    let greeting = tokio::spawn(async move {
        greet(&mut theirs).await;
        theirs
    });
    let (link, _events) = connect(ours, SOON).await.unwrap();
    let (_id, _reader, _writer) = link.open();
    let mut theirs = greeting.await.unwrap();
    // The link may end while this is still being written.
    let _ended = theirs.write_all(frames).await;
    drop(theirs);
    timeout(SOON, link.closed()).await.unwrap()
}

async fn greet(io: &mut DuplexStream) {
    let text = serde_json::to_vec(&hello()).unwrap();
    io.write_all(b"\x00\xffHyLk\xfe\x01").await.unwrap();
    io.write_all(&frame(0, 1, &text)).await.unwrap();
}

fn frame(stream: u32, kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = stream.to_le_bytes().to_vec();
    out.push(kind);
    out.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes()[..3]);
    out.extend_from_slice(payload);
    out
}

#[tokio::test]
async fn an_agent_that_breaks_the_rules_ends_its_link() {
    let too_much = frame(1, 4, &[0; 65536]).repeat(WINDOW as usize / 65536 + 1);
    let long_message = frame(0, 2, &[b'['; 65536]).repeat(70);
    let future_reply = br#"{"reply":{"id":3,"reply":{"is":"done"}}}"#;
    for (frames, expected) in [
        (too_much, "the window is exceeded"),
        (frame(9, 4, b"x"), "never announced"),
        (frame(1, 3, b""), "only the supervisor announces"),
        (frame(1, 8, &1u32.to_le_bytes()), "credit beyond the window"),
        ([frame(1, 5, b""), frame(1, 4, b"x")].concat(), "the stream has ended"),
        (long_message, "greatest length"),
        (frame(0, 1, b"{]"), "control message of 2 bytes"),
        (frame(0, 1, future_reply), "answers call 3"),
    ] {
        let error = hostile(&frames).await;
        assert!(error.to_string().contains(expected), "{error} is not {expected}");
    }
    let unknown_kind = hostile(&frame(1, 77, b"")).await;
    assert!(matches!(unknown_kind, LinkError::Frame(_)), "{unknown_kind:?}");
    // Late words about a direction that ended are no offence; the end of the carrier ends it.
    let late = [frame(1, 7, b""), frame(1, 5, b""), frame(1, 7, b"")].concat();
    assert!(matches!(hostile(&late).await, LinkError::Closed));
}

mod any_bytes {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn end_the_link_without_harm(
            frames in proptest::collection::vec(
                (0u32..3, 1u8..9, proptest::collection::vec(any::<u8>(), 0..40)), 0..40),
        ) {
            let bytes: Vec<u8> =
                frames.iter().flat_map(|(stream, kind, payload)| frame(*stream, *kind, payload)).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let error = runtime.block_on(hostile(&bytes));
            prop_assert!(!error.to_string().is_empty());
        }
    }
}
