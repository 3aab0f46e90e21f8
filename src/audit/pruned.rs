//! The contents of an entry of operation `prune`: which leaves of which of the tenant's logs are
//! gone. The entry gives indexes of leaves, not positions, because positions depend on where the
//! log begins, which is not signed.

use std::ops::Range;

use crate::model::{Operation, Outcome, TenantUid};
use crate::store::EntryRow;

use super::digest_of;

/// Returns the detail of the entry: `prune <log> <first leaf> <end leaf>`.
pub fn prune_detail(log: u32, leaves: &Range<u64>) -> String {
    format!("prune {log} {} {}", leaves.start, leaves.end)
}

/// Returns the leaves that an entry says were pruned, if it is such an entry and its digest matches
/// its contents.
pub fn pruned_leaves(tenant: TenantUid, row: &EntryRow) -> Option<(u32, Range<u64>)> {
    if row.operation != Operation::Prune || row.outcome != Outcome::Ok {
        return None;
    }
    let sound = digest_of(tenant, row) == Some(row.digest);
    leaves_in(row.detail.as_deref()?).filter(|_| sound)
}

/// Returns the log and its leaves that a detail names.
pub(crate) fn leaves_in(detail: &str) -> Option<(u32, Range<u64>)> {
    let mut words = detail.split(' ');
    let (Some("prune"), Some(log), Some(first), Some(end), None) =
        (words.next(), words.next(), words.next(), words.next(), words.next())
    else {
        return None;
    };
    // `parse` would accept a sign, which byok does not write.
    let digits = |word: &str| word.bytes().all(|byte| byte.is_ascii_digit());
    let range = first.parse().ok()?..end.parse().ok()?;
    let reads = [log, first, end].into_iter().all(digits) && range.start < range.end;
    reads.then_some((log.parse().ok()?, range))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_is_read_as_it_was_written() {
        assert_eq!(leaves_in(&prune_detail(2, &(3..512))), Some((2, 3..512)));
        for detail in [
            "",
            "prune",
            "prune 1 0",
            "prune 1 5 5",
            "prune 1 5 4",
            "prune 1 0 5 6",
            "prune x 0 5",
            "prune 1 +0 5",
        ] {
            assert_eq!(leaves_in(detail), None, "{detail:?}");
        }
    }
}
