//! A chunk of an answer, as the HTTP implementation reads it. HTTP/2 keeps a chunk until its
//! client's window has room for it, and cannot return it. So a chunk that may no longer be sent
//! reads as NUL bytes.

use std::cell::Cell;
use std::sync::Arc;

use axum::body::Bytes;
use hyper::body::Buf;

use crate::app::Release;

use super::buffered::Buffered;

/// The bytes read in place of those that may not be sent. NUL is not allowed anywhere in JSON, so
/// nobody takes it for data.
const BLANK: [u8; 4 << 10] = [0; 4 << 10];

/// Bytes of a response body.
pub(super) struct Chunk {
    bytes: Bytes,
    condition: Option<Condition>,
}

/// The condition, checked at each read, under which the bytes may be sent.
struct Condition {
    release: Arc<Release>,
    buffered: Buffered,
    /// Whether the last read returned NUL bytes.
    blank: Cell<bool>,
}

impl Chunk {
    /// Bytes that may be sent at any time.
    pub(super) fn of(bytes: Bytes) -> Self {
        Self { bytes, condition: None }
    }

    /// Bytes that may be sent while their answer may.
    pub(super) fn released(bytes: Bytes, release: Arc<Release>, buffered: Buffered) -> Self {
        Self { bytes, condition: Some(Condition { release, buffered, blank: Cell::new(false) }) }
    }
}

impl Condition {
    fn may_leave(&self) -> bool {
        if self.release.may_leave() {
            return true;
        }
        self.release.break_off();
        if self.release.is_handed_over() {
            // The end of the stream would follow and make the NUL bytes part of a complete answer.
            // End the connection instead.
            self.buffered.add(&self.release);
        }
        false
    }
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        let Some(condition) = &self.condition else { return &self.bytes };
        let may_leave = condition.may_leave();
        condition.blank.set(!may_leave);
        if may_leave { &self.bytes } else { &BLANK[..self.bytes.len().min(BLANK.len())] }
    }

    fn advance(&mut self, count: usize) {
        if let Some(condition) = &self.condition
            && count > 0
            && !condition.blank.get()
        {
            condition.release.begin();
            condition.buffered.add(&condition.release);
        }
        self.bytes.advance(count);
    }
}
