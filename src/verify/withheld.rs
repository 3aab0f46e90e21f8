//! Checks answers that were withheld after their entry was written. Each refusal that says so
//! (extension `voids`) must name an earlier entry of the same request whose answer was to be given,
//! and that no other refusal names.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};

use uuid::Uuid;

use super::entry::BundleEntry;
use super::finding::Finding;
use crate::model::Outcome;

/// The number of latest entries that are remembered, at about 80 bytes each. A refusal follows the
/// entry that it names within the time that a request and its answer may take. A tenant writes
/// fewer than a million entries in that time.
const REMEMBERED: usize = 1 << 20;

/// An entry that was seen.
struct Seen {
    /// The hash of the request id.
    request: Option<u64>,
    /// Whether its answer was to be given, and no refusal has named it.
    stands: bool,
}

/// The latest entries of a log that were seen.
pub(super) struct Withheld {
    recent: HashMap<Uuid, Seen>,
    in_order: VecDeque<Uuid>,
    hasher: RandomState,
    /// Whether every entry before the next one is remembered.
    complete: bool,
    /// The number of withheld answers.
    pub(super) count: u64,
}

impl Withheld {
    /// Starts at the first entry of a log.
    pub(super) fn new() -> Self {
        Self {
            recent: HashMap::new(),
            in_order: VecDeque::new(),
            hasher: RandomState::new(),
            complete: true,
            count: 0,
        }
    }

    /// Takes in the next entry, whose digest holds.
    pub(super) fn entry(&mut self, entry: &BundleEntry) -> Option<Finding> {
        let request = entry.request.value.as_ref().map(|request| self.hasher.hash_one(request));
        let is_given =
            |outcome: &str| [Outcome::Ok, Outcome::Partial].iter().any(|it| it.as_str() == outcome);
        let given = is_given(&entry.outcome);
        let voids = entry.extensions.iter().find(|(name, _)| name == "voids");
        let finding = voids.and_then(|(_, voided)| {
            self.count += 1;
            let voided = Uuid::parse_str(voided).ok();
            let holds = match voided.and_then(|voided| self.recent.get_mut(&voided)) {
                // An erasure may have removed either request id.
                Some(named) => {
                    let of_request = named.request.is_none() || request.is_none() || named.request == request;
                    std::mem::replace(&mut named.stands, false) && of_request
                }
                None => voided.is_some() && !self.complete,
            };
            (given || !holds).then_some(Finding::VoidsNothing { position: entry.position })
        });
        if self.in_order.len() == REMEMBERED
            && let Some(oldest) = self.in_order.pop_front()
        {
            self.recent.remove(&oldest);
            self.complete = false;
        }
        self.in_order.push_back(entry.id.0);
        self.recent.insert(entry.id.0, Seen { request, stands: given });
        finding
    }

    /// Notes that there are entries of which nothing is known.
    pub(super) fn gap(&mut self) {
        self.complete = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::pack;
    use crate::model::{Entry, EntryId, ErrorCode, Operation, TenantUid, Timestamp};

    fn entry(position: u64, request: &str, voids: Option<EntryId>) -> (EntryId, BundleEntry) {
        let mut entry = Entry::of_operator(Timestamp(0), Operation::Decrypt, None, None);
        entry.request_id = Some(request.to_owned());
        if let Some(voids) = voids {
            entry.outcome = Outcome::Refused(ErrorCode::KmsAccessDenied);
            entry.extensions.set_voids(voids);
        }
        let row = pack(TenantUid([7; 16]), &entry);
        (entry.id, BundleEntry::of(position, &row).unwrap())
    }

    #[test]
    fn a_refusal_names_an_earlier_entry_of_its_request() {
        let mut withheld = Withheld::new();
        let (first, given) = entry(0, "request", None);
        let (other, another) = entry(1, "another", None);
        assert!(withheld.entry(&given).is_none() && withheld.entry(&another).is_none());
        assert!(withheld.entry(&entry(2, "request", Some(first)).1).is_none());
        assert_eq!(withheld.count, 1);
        for (position, named) in [(3, other), (4, EntryId::new())] {
            let found = withheld.entry(&entry(position, "request", Some(named)).1);
            assert_eq!(found, Some(Finding::VoidsNothing { position }));
        }
        // An answer can be withheld only once, and a refusal was never to be given.
        let (refusal, again) = entry(5, "request", Some(first));
        assert!(withheld.entry(&again).is_some());
        assert!(withheld.entry(&entry(6, "request", Some(refusal)).1).is_some());
        let (next, given) = entry(7, "request", None);
        let (_, mut ok) = entry(8, "request", Some(next));
        ok.outcome = "OK".to_owned();
        assert!(withheld.entry(&given).is_none() && withheld.entry(&ok).is_some(), "only a refusal says so");
        let (id, mut itself) = entry(9, "request", None);
        itself.extensions.push(("voids".to_owned(), id.to_string()));
        assert!(withheld.entry(&itself).is_some(), "a later entry, or itself, is no earlier one");
    }

    #[test]
    fn of_entries_that_are_not_there_nothing_is_said() {
        let mut withheld = Withheld::new();
        withheld.gap();
        assert!(withheld.entry(&entry(9, "request", Some(EntryId::new())).1).is_none());
        let (id, mut erased) = entry(10, "request", None);
        erased.request.value = None;
        assert!(withheld.entry(&erased).is_none());
        assert!(withheld.entry(&entry(11, "request", Some(id)).1).is_none());
        assert_eq!(withheld.count, 2);
    }
}
