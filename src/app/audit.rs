//! Reading the audit log, page by page. Who reads it is recorded too.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::audit::unpack;
use crate::model::{Caller, Entry, ErrorCode, Operation, Outcome, Refusal};
use crate::store::EntryFilter;

use super::App;
use super::record::read_refusal;

const PAGE: u32 = 50;
const MAX_PAGE: u32 = 500;

/// What to read.
#[derive(Clone, Debug, Default)]
pub struct AuditQuery {
    /// Which entries.
    pub filter: EntryFilter,
    /// How many; 50 when `None`, at most 500.
    pub first: Option<u32>,
    /// The cursor that the page before ended with.
    pub after: Option<String>,
}

/// A page, newest entries first.
#[derive(Clone, Debug)]
pub struct AuditPage {
    /// Entries, each with its own cursor.
    pub entries: Vec<(String, Entry)>,
    /// Whether more follow.
    pub has_next: bool,
}

impl App {
    /// Reads a page of the caller's tenant's log.
    ///
    /// # Errors
    /// Not permitted, a cursor that is not ours, a page size out of bounds, or the database out of reach.
    pub async fn audit(&self, caller: &Caller, query: &AuditQuery) -> Result<AuditPage, Refusal> {
        let operation = Operation::Audit;
        let (before, first) = match self.authorize(caller, operation).and_then(|()| bounds(query)) {
            Ok(bounds) => bounds,
            Err(refusal) => return Err(self.refuse(caller, operation, refusal).await),
        };
        let placed = self
            .store
            .entries(caller.tenant.uid, &query.filter, before, first + 1)
            .await
            .map_err(read_refusal)?;
        let has_next = placed.len() > first as usize;
        let entries: Option<Vec<_>> = placed
            .iter()
            .take(first as usize)
            .map(|placed| Some((cursor_of(placed.seq), unpack(&placed.row)?)))
            .collect();
        let entries = entries.ok_or_else(|| {
            tracing::error!("an entry of the audit log is not of a form that this server writes");
            Refusal::from(ErrorCode::Internal)
        })?;
        self.record(caller, operation, Outcome::Ok, Vec::new(), Vec::new()).await?;
        Ok(AuditPage { entries, has_next })
    }
}

/// Below which place to read, and how many.
fn bounds(query: &AuditQuery) -> Result<(Option<u64>, u32), Refusal> {
    let before = query.after.as_deref().map(place_of).transpose()?;
    match query.first.unwrap_or(PAGE) {
        first @ 1..=MAX_PAGE => Ok((before, first)),
        _ => Err(Refusal::because(ErrorCode::RequestMalformed, "A page holds 1 to 500 entries.")),
    }
}

fn cursor_of(place: u64) -> String {
    URL_SAFE_NO_PAD.encode(format!("a1:{place}"))
}

fn place_of(cursor: &str) -> Result<u64, Refusal> {
    let place = || {
        let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
        let place = std::str::from_utf8(&bytes).ok()?.strip_prefix("a1:")?.parse().ok()?;
        // PostgreSQL's bigint is signed.
        i64::try_from(place).ok().map(|_| place)
    };
    place().ok_or_else(|| ErrorCode::CursorInvalid.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cursor_of_ours_is_taken() {
        assert_eq!(place_of(&cursor_of(17)), Ok(17));
        for bad in ["", "17", "a1:17", "YTE6LTE", &URL_SAFE_NO_PAD.encode("a1:18446744073709551615")] {
            assert_eq!(place_of(bad).unwrap_err().code, ErrorCode::CursorInvalid, "{bad}");
        }
    }
}
