//! The bookkeeping of a mux: streams, windows, and what is due to be written.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    task::Waker,
};

use bytes::{Buf as _, BytesMut};
use tokio::sync::OwnedSemaphorePermit;

use super::{MAX_STREAMS, Side, WINDOW};
use crate::{
    error::{LinkError, OpenError},
    frame::{Frame, HEADER, Kind, MAX_PAYLOAD, put_header},
    message::MAX_MESSAGE,
};

/// Bytes put together for one write to the carrier.
const BATCH: usize = 64 << 10;
/// Data bytes of one stream before the next one has its turn.
const TURN: usize = 32 << 10;
/// Credit is returned in pieces of at least this size.
const GRANT: u32 = WINDOW / 4;

/// How a direction of a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Eof,
    Reset,
}

/// One stream.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// Bytes for the carrier.
    pub(super) out: BytesMut,
    /// Bytes the peer lets us send.
    credit: u32,
    /// How our direction ends; set once, sent after `out`.
    pub(super) end: Option<End>,
    end_sent: bool,
    /// The peer reads no more.
    pub(super) stopped: bool,
    /// In [`State::ready`].
    scheduled: bool,
    pub(super) writer_gone: bool,
    pub(super) write_waker: Option<Waker>,

    /// Bytes for the reader.
    pub(super) inbox: BytesMut,
    /// Bytes the peer may still send.
    window: u32,
    /// Bytes the reader took and the peer was not told of.
    owed: u32,
    /// How the peer's direction ended.
    pub(super) ended: Option<End>,
    pub(super) reader_gone: bool,
    pub(super) read_waker: Option<Waker>,

    claimed: bool,
    owes_open: bool,
    owes_stop: bool,
    /// In [`State::signals`].
    signalled: bool,
}

impl Stream {
    fn new() -> Self {
        Self { credit: WINDOW, window: WINDOW, ..Self::default() }
    }

    fn has_due(&self) -> bool {
        !self.end_sent && if self.out.is_empty() { self.end.is_some() } else { self.credit > 0 }
    }

    fn is_over(&self) -> bool {
        self.end_sent && self.ended.is_some() && self.reader_gone && self.writer_gone
    }
}

/// A piece of control to be written: a message, and how much of it has been.
#[derive(Debug)]
struct Outgoing {
    text: Vec<u8>,
    sent: usize,
    _permit: Option<OwnedSemaphorePermit>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct State {
    side: Side,
    pub(super) error: Option<LinkError>,
    pub(super) streams: HashMap<u32, Stream>,
    /// The highest id announced so far.
    highest: u32,
    messages: VecDeque<Outgoing>,
    /// Streams with small frames due: open, stop, credit.
    signals: VecDeque<u32>,
    /// Streams with data or an end due, in turn.
    ready: VecDeque<u32>,
    /// The writing task has a batch in its hands.
    pub(super) writing: bool,
    /// The control message being put together.
    partial: Vec<u8>,
}

impl State {
    pub(super) fn new(side: Side) -> Self {
        Self {
            side,
            error: None,
            streams: HashMap::new(),
            highest: 0,
            messages: VecDeque::new(),
            signals: VecDeque::new(),
            ready: VecDeque::new(),
            writing: false,
            partial: Vec::new(),
        }
    }

    /// Records why the link ended (the first reason stays); returns whom to wake.
    pub(super) fn fail(&mut self, error: LinkError) -> Vec<Waker> {
        self.error.get_or_insert(error);
        self.messages.clear();
        self.partial = Vec::new();
        self.streams
            .values_mut()
            .flat_map(|stream| [stream.read_waker.take(), stream.write_waker.take()])
            .flatten()
            .collect()
    }

    pub(super) fn is_idle(&self) -> bool {
        !self.writing
            && self.messages.is_empty()
            && self.signals.is_empty()
            && self.ready.is_empty()
    }

    pub(super) fn queue_message(&mut self, text: Vec<u8>, permit: Option<OwnedSemaphorePermit>) {
        if self.error.is_none() {
            self.messages.push_back(Outgoing { text, sent: 0, _permit: permit });
        }
    }

    pub(super) fn announce(&mut self) -> u32 {
        if self.highest == u32::MAX || self.streams.len() >= MAX_STREAMS {
            self.error.get_or_insert(LinkError::Violation {
                frame: Kind::Open.name(),
                stream: self.highest,
                len: 0,
                rule: "stream ids or places are used up",
            });
        }
        self.highest = self.highest.saturating_add(1);
        let id = self.highest;
        let stream = Stream { claimed: true, owes_open: true, ..Stream::new() };
        self.streams.insert(id, stream);
        self.signal(id);
        id
    }

    pub(super) fn claim(&mut self, id: u32) -> Result<(), OpenError> {
        let stream = self.streams.get_mut(&id).ok_or(OpenError::Unknown(id))?;
        if mem::replace(&mut stream.claimed, true) {
            return Err(OpenError::Claimed(id));
        }
        Ok(())
    }

    /// The reader took `len` bytes from the inbox. True when the writing task has to know.
    pub(super) fn took(&mut self, id: u32, len: usize) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else { return false };
        stream.owed = stream.owed.saturating_add(u32::try_from(len).unwrap_or(u32::MAX));
        if stream.ended.is_some() || stream.owed < GRANT {
            return false;
        }
        self.signal(id);
        true
    }

    /// Puts the stream in turn if it has anything to send.
    pub(super) fn schedule(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.has_due()
            && !mem::replace(&mut stream.scheduled, true)
        {
            self.ready.push_back(id);
        }
    }

    pub(super) fn forget_if_over(&mut self, id: u32) {
        if self.streams.get(&id).is_some_and(Stream::is_over) {
            self.streams.remove(&id);
        }
    }

    /// The reader handle is gone: what still comes is thrown away, and the peer told.
    pub(super) fn drop_reader(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.reader_gone = true;
            stream.inbox = BytesMut::new();
            if stream.ended.is_none() {
                stream.owes_stop = true;
                self.signal(id);
            }
        }
        self.forget_if_over(id);
    }

    /// Ends our direction; after a reset nothing that is still queued is sent.
    pub(super) fn end(&mut self, id: u32, end: End) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.end.is_none() || (end == End::Reset && !stream.end_sent) {
            stream.end = Some(end);
        }
        if end == End::Reset {
            stream.out = BytesMut::new();
        }
        self.schedule(id);
    }

    /// Files a frame from the peer. Returns whom to wake and, if the frame completed a control
    /// message, that message.
    pub(super) fn receive(
        &mut self,
        frame: Frame<'_>,
    ) -> Result<(Option<Waker>, Option<Vec<u8>>), LinkError> {
        let Frame { stream: id, kind, payload } = frame;
        let broken = |rule| {
            let (frame, len) = (kind.name(), payload.len());
            Err(LinkError::Violation { frame, stream: id, len, rule })
        };
        if matches!(kind, Kind::Message | Kind::Part) {
            if self.partial.len() + payload.len() > MAX_MESSAGE {
                return broken("control messages have a greatest length");
            }
            self.partial.extend_from_slice(payload);
            let whole = (kind == Kind::Message).then(|| mem::take(&mut self.partial));
            return Ok((None, whole));
        }
        if kind == Kind::Open {
            if self.side == Side::Supervisor {
                return broken("only the supervisor announces streams");
            }
            if id <= self.highest {
                return broken("stream ids only rise");
            }
            if self.streams.len() >= MAX_STREAMS {
                return broken("too many streams");
            }
            self.highest = id;
            self.streams.insert(id, Stream::new());
            return Ok((None, None));
        }
        if id > self.highest {
            return broken("the stream was never announced");
        }
        let Some(stream) = self.streams.get_mut(&id) else {
            // What the peer said of our direction before it learned of our end.
            return match kind {
                Kind::Credit | Kind::Stop => Ok((None, None)),
                _ => broken("the stream has ended"),
            };
        };
        let mut waker = None;
        match kind {
            Kind::Data | Kind::Eof | Kind::Reset if stream.ended.is_some() => {
                return broken("the stream has ended");
            }
            Kind::Data => {
                let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
                let Some(window) = stream.window.checked_sub(len) else {
                    return broken("the window is exceeded");
                };
                stream.window = window;
                if !stream.reader_gone {
                    stream.inbox.extend_from_slice(payload);
                    waker = stream.read_waker.take();
                }
            }
            Kind::Eof | Kind::Reset => {
                stream.ended = Some(if kind == Kind::Eof { End::Eof } else { End::Reset });
                waker = stream.read_waker.take();
                self.forget_if_over(id);
            }
            Kind::Stop => {
                stream.stopped = true;
                waker = stream.write_waker.take();
                if !stream.end_sent {
                    self.end(id, End::Reset);
                }
            }
            Kind::Credit => {
                let Ok(more) = <[u8; 4]>::try_from(payload) else {
                    return broken("credit is four bytes");
                };
                let credit = stream.credit.checked_add(u32::from_le_bytes(more));
                let Some(credit) = credit.filter(|credit| *credit <= WINDOW) else {
                    return broken("credit beyond the window");
                };
                stream.credit = credit;
                self.schedule(id);
            }
            Kind::Message | Kind::Part | Kind::Open => {}
        }
        Ok((waker, None))
    }

    /// Fills `batch` with what is due: small frames first, then, in turns, one piece of a control
    /// message and one piece of each stream. Appends writers that can go on to `wake`.
    pub(super) fn fill(&mut self, batch: &mut Vec<u8>, wake: &mut Vec<Waker>) {
        while let Some(id) = self.signals.pop_front() {
            self.put_signals(batch, id);
            if batch.len() >= BATCH {
                break;
            }
        }
        while batch.len() < BATCH && !(self.messages.is_empty() && self.ready.is_empty()) {
            self.put_message_piece(batch);
            for _ in 0..self.ready.len() {
                if batch.len() >= BATCH {
                    break;
                }
                if let Some(id) = self.ready.pop_front() {
                    self.put_data(batch, id, wake);
                }
            }
        }
        self.writing = !batch.is_empty();
    }

    fn signal(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !mem::replace(&mut stream.signalled, true)
        {
            self.signals.push_back(id);
        }
    }

    fn put_signals(&mut self, batch: &mut Vec<u8>, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.signalled = false;
        if mem::take(&mut stream.owes_open) {
            put_header(batch, id, Kind::Open, 0);
        }
        if stream.ended.is_some() {
            return;
        }
        if mem::take(&mut stream.owes_stop) {
            put_header(batch, id, Kind::Stop, 0);
        } else if !stream.reader_gone && stream.owed > 0 {
            let grant = mem::take(&mut stream.owed);
            stream.window += grant;
            put_header(batch, id, Kind::Credit, 4);
            batch.extend_from_slice(&grant.to_le_bytes());
        }
    }

    fn put_message_piece(&mut self, batch: &mut Vec<u8>) {
        let Some(message) = self.messages.front_mut() else { return };
        let rest = &message.text[message.sent..];
        let piece = &rest[..rest.len().min(TURN)];
        let last = piece.len() == rest.len();
        put_header(batch, 0, if last { Kind::Message } else { Kind::Part }, piece.len());
        batch.extend_from_slice(piece);
        message.sent += piece.len();
        if last {
            self.messages.pop_front();
        }
    }

    fn put_data(&mut self, batch: &mut Vec<u8>, id: u32, wake: &mut Vec<Waker>) {
        const { assert!(TURN <= MAX_PAYLOAD && HEADER < TURN) };
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.scheduled = false;
        let len = stream.out.len().min(TURN).min(stream.credit as usize);
        if len > 0 {
            put_header(batch, id, Kind::Data, len);
            batch.extend_from_slice(&stream.out[..len]);
            stream.out.advance(len);
            stream.credit -= u32::try_from(len).unwrap_or(u32::MAX);
            wake.extend(stream.write_waker.take());
        }
        if stream.out.is_empty()
            && let Some(end) = stream.end
            && !mem::replace(&mut stream.end_sent, true)
        {
            put_header(batch, id, if end == End::Eof { Kind::Eof } else { Kind::Reset }, 0);
            wake.extend(stream.write_waker.take());
        }
        self.schedule(id);
        self.forget_if_over(id);
    }
}
