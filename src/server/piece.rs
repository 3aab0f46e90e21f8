//! A piece of an answer, as the protocol implementation reads it. HTTP/2 keeps a piece until its client's window has room
//! for it, and has no way to give it back: so a piece that may not leave any more is read as blank.

use std::cell::Cell;
use std::sync::Arc;

use axum::body::Bytes;
use hyper::body::Buf;

use crate::app::Release;

use super::unsent::Unsent;

/// What is read in place of bytes that may not leave. NUL is not allowed anywhere in JSON, so that nobody takes it for data.
const BLANK: [u8; 4 << 10] = [0; 4 << 10];

/// Bytes of a response body.
pub(super) struct Piece {
    bytes: Bytes,
    condition: Option<Condition>,
}

/// What decides, whenever the bytes are read, whether they may leave.
struct Condition {
    release: Arc<Release>,
    unsent: Unsent,
    /// Whether what was read last was blank.
    blank: Cell<bool>,
}

impl Piece {
    /// Bytes that may leave at any time.
    pub(super) fn of(bytes: Bytes) -> Self {
        Self { bytes, condition: None }
    }

    /// Bytes that may leave while their answer may.
    pub(super) fn released(bytes: Bytes, release: Arc<Release>, unsent: Unsent) -> Self {
        Self { bytes, condition: Some(Condition { release, unsent, blank: Cell::new(false) }) }
    }
}

impl Condition {
    fn may_leave(&self) -> bool {
        if self.release.may_leave() {
            return true;
        }
        self.release.break_off();
        if self.release.is_handed_over() {
            // Its end would follow, and make the blanks part of a whole answer: the connection ends instead.
            self.unsent.add(&self.release);
        }
        false
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        let Some(condition) = &self.condition else { return &self.bytes };
        let may_leave = condition.may_leave();
        condition.blank.set(!may_leave);
        match may_leave {
            true => &self.bytes,
            false => &BLANK[..self.bytes.len().min(BLANK.len())],
        }
    }

    fn advance(&mut self, count: usize) {
        if let Some(condition) = &self.condition
            && count > 0
            && !condition.blank.get()
        {
            condition.release.begin();
            condition.unsent.add(&condition.release);
        }
        self.bytes.advance(count);
    }
}
