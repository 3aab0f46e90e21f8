//! Personal values that are not there, against the entries that say they were erased: `erase user 0 <end>`, `erase record 0
//! <end>`. What an erasure of another value or record took is not told apart: no entry says which value goes.

use std::collections::VecDeque;

use super::entry::BundleEntry;
use super::finding::{Finding, PersonalValue};
use crate::model::{Operation, Outcome};

/// How many entries of a kind wait for the one that says so. The highest places are kept: an erasure begins with the first,
/// so that one that reaches none of these has left them all.
const AWAITING: usize = 1_000;

#[derive(Default)]
struct Kind {
    /// How far the entries so far say that it was erased: to before this place.
    end: u64,
    /// Where it is not there, and what of it; nothing so far says so.
    awaiting: VecDeque<(u64, PersonalValue)>,
}

impl Kind {
    fn erased(&mut self, place: u64, what: PersonalValue) {
        if self.awaiting.back().is_some_and(|(last, _)| *last >= place) {
            return;
        }
        if self.awaiting.len() == AWAITING {
            self.awaiting.pop_front();
        }
        self.awaiting.push_back((place, what));
    }

    fn reach(&mut self, end: u64) {
        self.end = self.end.max(end);
        while self.awaiting.pop_front_if(|(place, _)| *place < end).is_some() {}
    }
}

/// What a walk has seen of erasures.
#[derive(Default)]
pub(super) struct Erasures {
    /// How many values were not there.
    pub(super) count: u64,
    /// Of users, and with them of request ids; of records.
    users: Kind,
    records: Kind,
    /// Up to before this place, the entry that says so may be one that is not shown.
    hidden: u64,
}

impl Erasures {
    /// A value is not there.
    pub(super) fn erased(&mut self, place: u64, what: PersonalValue) {
        self.count += 1;
        match what {
            PersonalValue::User | PersonalValue::Request => self.users.erased(place, what),
            PersonalValue::Record(_) => self.records.erased(place, what),
        }
    }

    /// An entry that holds: whatever it says was erased stands before it.
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
        let Some(end) = end.parse().ok().filter(|end| *end <= entry.place) else { return };
        match what {
            "user" => self.users.reach(end),
            "record" => self.records.reach(end),
            _ => {}
        }
    }

    /// From this place on some entries are not shown.
    pub(super) fn hide(&mut self, from: u64) {
        self.hidden = self.hidden.max(from);
    }

    /// Whether an entry is still waited for.
    pub(super) fn is_awaiting(&self) -> bool {
        [&self.users, &self.records].into_iter().any(|kind| !kind.awaiting.is_empty())
    }

    /// What no entry says was erased, by place; and at how many places one that is not shown may say so.
    pub(super) fn settle(&mut self) -> (Vec<Finding>, usize) {
        let kinds = [&mut self.users, &mut self.records];
        let mut awaiting: Vec<_> = kinds.into_iter().flat_map(|kind| kind.awaiting.drain(..)).collect();
        awaiting.sort_by_key(|(place, _)| *place);
        let found = awaiting.split_off(awaiting.partition_point(|(place, _)| *place < self.hidden));
        let found = found.into_iter().map(|(place, what)| Finding::Unmarked { place, what });
        awaiting.dedup_by_key(|(place, _)| *place);
        (found.collect(), awaiting.len())
    }
}
