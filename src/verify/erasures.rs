//! Checks personal values that are missing against the entries that say they were erased: `erase
//! user 0 <end>`, `erase record 0 <end>`. It cannot distinguish what the erasure of another value
//! or record removed, because no entry says which value was erased.

use std::collections::VecDeque;

use super::entry::BundleEntry;
use super::finding::{Finding, PersonalValue};
use crate::model::{Operation, Outcome};

/// The number of positions per kind that wait for an entry of an erasure. The highest are kept: an
/// erasure starts at the first entry, so if it reaches none of these, all of them stay unexplained.
const AWAITING: usize = 1_000;

#[derive(Default)]
struct Kind {
    /// The end, exclusive, of the positions that the entries so far say were erased.
    end: u64,
    /// The positions with a missing value that no entry so far explains, and which value it is.
    awaiting: VecDeque<(u64, PersonalValue)>,
}

impl Kind {
    fn erased(&mut self, position: u64, what: PersonalValue) {
        if self.awaiting.back().is_some_and(|(last, _)| *last >= position) {
            return;
        }
        if self.awaiting.len() == AWAITING {
            self.awaiting.pop_front();
        }
        self.awaiting.push_back((position, what));
    }

    fn reach(&mut self, end: u64) {
        self.end = self.end.max(end);
        while self.awaiting.pop_front_if(|(position, _)| *position < end).is_some() {}
    }
}

/// What a walk has seen of erasures.
#[derive(Default)]
pub(super) struct Erasures {
    /// The number of missing values.
    pub(super) count: u64,
    /// Erasures of users, which include request ids; then those of records.
    users: Kind,
    records: Kind,
    /// Positions before this one may be explained by an entry that the walk does not see.
    hidden: u64,
}

impl Erasures {
    /// Notes that a value is missing.
    pub(super) fn erased(&mut self, position: u64, what: PersonalValue) {
        self.count += 1;
        match what {
            PersonalValue::User | PersonalValue::Request => self.users.erased(position, what),
            PersonalValue::Record(_) => self.records.erased(position, what),
        }
    }

    /// Takes in an entry whose digest holds. Whatever it says was erased is before it.
    pub(super) fn entry(&mut self, entry: &BundleEntry) {
        if entry.operation != Operation::Erase.as_str() || entry.outcome != Outcome::Ok.as_str() {
            return;
        }
        let mut words = entry.detail.as_deref().unwrap_or_default().split(' ');
        let (Some("erase"), Some(what), Some("0"), Some(end), None) =
            (words.next(), words.next(), words.next(), words.next(), words.next())
        else {
            return;
        };
        let Some(end) = end.parse().ok().filter(|end| *end <= entry.position) else { return };
        match what {
            "user" => self.users.reach(end),
            "record" => self.records.reach(end),
            _ => {}
        }
    }

    /// Notes that the walk does not see some entries from this position on.
    pub(super) fn hide(&mut self, from: u64) {
        self.hidden = self.hidden.max(from);
    }

    /// Returns whether a missing value is still unexplained.
    pub(super) fn is_awaiting(&self) -> bool {
        [&self.users, &self.records].into_iter().any(|kind| !kind.awaiting.is_empty())
    }

    /// Returns the missing values that no entry says were erased, by position, and the number of
    /// positions that an unseen entry may explain.
    pub(super) fn take_unexplained(&mut self) -> (Vec<Finding>, usize) {
        let kinds = [&mut self.users, &mut self.records];
        let mut awaiting: Vec<_> = kinds.into_iter().flat_map(|kind| kind.awaiting.drain(..)).collect();
        awaiting.sort_by_key(|(position, _)| *position);
        let found = awaiting.split_off(awaiting.partition_point(|(position, _)| *position < self.hidden));
        let found = found.into_iter().map(|(position, what)| Finding::Unmarked { position, what });
        awaiting.dedup_by_key(|(position, _)| *position);
        (found.collect(), awaiting.len())
    }
}
