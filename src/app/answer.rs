//! Serializes an answer, and counts its bytes while it grows, so that it never grows beyond the
//! memory that is available for it. An answer can be many times as long as its request, if only
//! because JSON escapes control characters.

use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;

use crate::model::{ErrorCode, Refusal};

use super::Room;

/// The size of the steps in which memory is reserved while an answer grows.
const STEP: usize = 64 << 10;
/// The retry delay for a request that was refused because there is no memory for its answer.
const COME_BACK: Duration = Duration::from_secs(1);

/// Writes an answer as JSON.
///
/// # Errors
/// `BODY_TOO_LARGE` if the answer would exceed the largest size allowed, `UNAVAILABLE` if there is
/// no memory for it now.
pub fn write_json(value: &impl Serialize, room: &dyn Room) -> Result<Vec<u8>, Refusal> {
    let mut written = Growing { bytes: Vec::new(), room, held: 0, refused: None };
    match serde_json::to_writer(&mut written, value) {
        Ok(()) => Ok(written.bytes),
        Err(_) => Err(written.refused.unwrap_or(ErrorCode::Internal.into())),
    }
}

/// Returns the refusal of an answer that would exceed the largest size allowed.
pub fn answer_too_large() -> Refusal {
    let why = "The answer would be larger than the server gives: ask for less at once.";
    Refusal::because(ErrorCode::BodyTooLarge, why)
}

/// Returns the refusal of an answer for which there is no memory now.
pub fn no_room() -> Refusal {
    Refusal::from(ErrorCode::Unavailable).after(COME_BACK)
}

struct Growing<'a> {
    bytes: Vec<u8>,
    room: &'a dyn Room,
    held: usize,
    refused: Option<Refusal>,
}

impl Growing<'_> {
    #[cold]
    fn grow(&mut self, length: usize) -> io::Result<()> {
        let most = self.room.largest_answer().max(STEP);
        let refused = if length > most {
            answer_too_large()
        } else {
            let more = length.checked_next_multiple_of(STEP).unwrap_or(most).min(most);
            if self.room.hold_at_least(more) {
                self.held = more;
                return Ok(());
            }
            no_room()
        };
        self.refused = Some(refused);
        Err(io::ErrorKind::FileTooLarge.into())
    }
}

impl Write for Growing<'_> {
    fn write(&mut self, more: &[u8]) -> io::Result<usize> {
        let length = self.bytes.len() + more.len();
        if length > self.held {
            self.grow(length)?;
        }
        self.bytes.extend_from_slice(more);
        Ok(more.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A room of the first number of bytes, for answers of at most the second number.
    struct Small(usize, usize, AtomicUsize);

    impl Room for Small {
        fn hold(&self, bytes: usize) -> bool {
            self.2.store(bytes, Ordering::Relaxed);
            bytes <= self.0
        }

        fn hold_at_least(&self, bytes: usize) -> bool {
            self.hold(bytes)
        }

        fn largest_answer(&self) -> usize {
            self.1
        }
    }

    #[test]
    fn what_is_written_is_held_and_ends_at_the_largest_answer() {
        let room = Small(1 << 20, 200_000, AtomicUsize::new(0));
        let written = write_json(&"x".repeat(150_000), &room).unwrap();
        assert_eq!((written.len(), room.2.load(Ordering::Relaxed)), (150_002, 3 * STEP));
        // JSON escapes each of these characters in six bytes.
        let escaped = write_json(&"\u{1}".repeat(40_000), &room);
        assert_eq!(escaped.unwrap_err().code, ErrorCode::BodyTooLarge);
        let full = Small(100_000, 200_000, AtomicUsize::new(0));
        let refused = write_json(&"x".repeat(150_000), &full).unwrap_err();
        assert_eq!((refused.code, refused.retry_after_seconds()), (ErrorCode::Unavailable, Some(1)));
    }
}
