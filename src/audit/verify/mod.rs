//! Verification of a log: a walk along its tree that is fed entries, roots of what is not shown, and checkpoints, one by
//! one, and says what does not hold and where. Pure, and as large as a few thousand leaves, however long the log. Reads no
//! file and prints nothing; [`verify_log`] feeds it from a database, [`super::verify_bundle`] from a file.

mod deks;
mod finding;
mod log;
mod pages;
mod window;

use std::ops::Range;

use crate::merkle::{Frontier, Hash, NoFrontier};
use crate::model::{Operation, TenantUid};

use super::bundle::{BundleEntry, Personal};
use super::checkpoint::{CheckpointKey, SignedCheckpoint};

pub use finding::{Against, Claim, Finding, PersonalValue, Report, State};
pub use log::verify_log;
pub(super) use pages::{Pages, Row};
use window::Window;

/// How far an entry's time may be from the one in its id, in milliseconds, before it is odd.
const ODD: u64 = 10_000;
/// How many gaps wait for the entry that names them; more than anybody prunes.
const GAPS: usize = 10_000;

/// What the auditor knows from elsewhere.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// The public keys that count; one of them has to have signed.
    pub keys: Vec<CheckpointKey>,
    /// A checkpoint that was kept where nobody of ours can change it.
    pub pinned: Option<SignedCheckpoint>,
}

/// Which log is walked.
pub(super) struct Subject {
    pub(super) tenant: TenantUid,
    pub(super) origin: String,
    /// The place of its first leaf.
    pub(super) first: u64,
}

pub(super) struct Walk {
    pub(super) report: Report,
    subject: Subject,
    trust: Trust,
    frontier: Frontier,
    /// How many leaves were walked past.
    size: u64,
    /// From where on leaves are unknown, and with them every root.
    unknown_from: Option<u64>,
    since: Window,
    /// Whether the last root did not hold: those after it will not either.
    diverged: bool,
    /// Entries whose hashes, or nothing, stand in their place; and what entries say was pruned.
    gaps: Vec<Range<u64>>,
    pruned: Vec<Range<u64>>,
    entries: u64,
    erased: u64,
    /// How many checkpoints held, and the size of the last.
    checkpoints: u64,
    sealed: u64,
    pinned_met: bool,
}

impl Walk {
    /// From a frontier that is part of what is to be shown.
    pub(super) fn start(subject: Subject, trust: Trust, frontier: Frontier) -> Self {
        let mut walk = Self {
            report: Report::default(),
            size: frontier.size(),
            since: Window::after(frontier.clone()),
            frontier,
            subject,
            trust,
            unknown_from: None,
            diverged: false,
            gaps: Vec::new(),
            pruned: Vec::new(),
            entries: 0,
            erased: 0,
            checkpoints: 0,
            sealed: 0,
            pinned_met: false,
        };
        walk.trust_pinned();
        walk
    }

    /// How many leaves were walked past.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The place that comes next.
    pub(super) fn place(&self) -> u64 {
        self.subject.first.saturating_add(self.size)
    }

    /// The size that the auditor has pinned, where the walk has not passed it.
    pub(super) fn pinned_ahead(&self) -> Option<u64> {
        let size = self.trust.pinned.as_ref()?.checkpoint.size;
        (size > self.size).then_some(size)
    }

    /// An entry; whether what it says can be relied on, as far as its own digest goes.
    pub(super) fn entry(&mut self, entry: &BundleEntry) -> bool {
        let place = entry.place;
        if !self.reaches(place) {
            return false;
        }
        let sound = entry.computed(self.subject.tenant) == entry.digest.0;
        if !sound {
            self.report.find(Finding::Content { place });
        } else if let Some(range) = pruned_by(entry)
            && range.end <= place
            && self.pruned.len() < GAPS
        {
            self.pruned.push(range);
        }
        self.personal(entry);
        self.entries += 1;
        self.append(entry.leaf(), is_odd(entry));
        sound
    }

    /// A row that is there and cannot be read; its leaf can.
    pub(super) fn unreadable(&mut self, place: u64, leaf: Hash) {
        if self.reaches(place) {
            self.report.find(Finding::Unreadable { place });
            self.entries += 1;
            self.append(leaf, false);
        }
    }

    /// Whether this place comes next, once those before it are taken as gone.
    fn reaches(&mut self, place: u64) -> bool {
        let next = self.place();
        if place < next {
            self.report.find(Finding::Doubled { place });
            return false;
        }
        if place > next {
            self.gone(place);
        }
        true
    }

    /// Nothing is left of the entries up to this place.
    pub(super) fn gone(&mut self, place: u64) {
        self.leave();
        let next = self.place();
        self.gap(next..place);
        self.size += place - next;
        self.unknown_from.get_or_insert(next);
        self.since.skip();
    }

    /// So many leaves of which only roots are shown; `pruned`: since their entries are gone.
    ///
    /// # Errors
    /// [`NoFrontier`]: there are not as many roots as that.
    pub(super) fn roots(&mut self, count: u64, roots: &[Hash], pruned: bool) -> Result<(), NoFrontier> {
        self.leave();
        if self.unknown_from.is_none() {
            self.frontier.append_cover(count, roots)?;
        }
        let next = self.place();
        if pruned {
            self.gap(next..next.saturating_add(count));
        }
        self.size = self.size.checked_add(count).ok_or(NoFrontier)?;
        self.since.skip();
        Ok(())
    }

    fn gap(&mut self, places: Range<u64>) {
        match self.gaps.len() < GAPS {
            true => self.gaps.push(places),
            false => self.report.find(Finding::Missing { places }),
        }
    }

    fn append(&mut self, leaf: Hash, odd: bool) {
        self.leave();
        if self.unknown_from.is_none() {
            self.frontier.append(leaf);
            self.since.push(leaf, odd);
        }
        self.size += 1;
    }

    fn personal(&mut self, entry: &BundleEntry) {
        let place = entry.place;
        let of_entry = [(PersonalValue::User, entry.user.as_ref()), (PersonalValue::Request, Some(&entry.request))];
        let records = entry.items.iter().enumerate();
        let records = records.map(|(item, it)| (PersonalValue::Record(item), it.record.as_ref()));
        for (what, value) in of_entry.into_iter().chain(records) {
            match value.map(Personal::matches) {
                None | Some(Some(true)) => {}
                Some(Some(false)) => self.report.find(Finding::Personal { place, what }),
                Some(None) => self.erased += 1,
            }
        }
    }

    /// A note that is kept as of the size that the walk has reached.
    pub(super) fn checkpoint(&mut self, note: &str) {
        let size = self.size;
        let checkpoint = Against::Checkpoint(size);
        let Ok(signed) = SignedCheckpoint::parse(note) else {
            return self.report.find(Finding::NoCheckpoint { size });
        };
        let said = &signed.checkpoint;
        if said.origin != self.subject.origin {
            return self.report.find(Finding::OtherLog { checkpoint, origin: said.origin.clone() });
        }
        if said.size != size {
            return self.report.find(Finding::NoCheckpoint { size });
        }
        if !self.trust.keys.is_empty() && !self.is_known(&signed) {
            return self.report.find(Finding::Forged { checkpoint });
        }
        if let Some(pinned) = &self.trust.pinned
            && pinned.checkpoint.size == size
            && pinned.checkpoint.root != said.root
        {
            self.report.find(Finding::Forked { size, root: said.root });
        }
        if self.compare(said.root, checkpoint) {
            self.checkpoints += 1;
            self.sealed = size;
        }
    }

    /// The root that the log's head has.
    pub(super) fn head(&mut self, frontier: &Frontier) {
        self.compare(frontier.root(), Against::Head(frontier.size()));
    }

    fn is_known(&self, checkpoint: &SignedCheckpoint) -> bool {
        self.trust.keys.iter().any(|key| checkpoint.is_signed_by(key))
    }

    /// Whether the tree so far has this root. Where it has not, says why as well as the leaves show it.
    fn compare(&mut self, root: Hash, against: Against) -> bool {
        if self.unknown_from.is_some() {
            return false;
        }
        if self.frontier.root() != root {
            if self.diverged {
                return false;
            }
            let Some((low, high, frontier)) = self.since.swapped(root) else {
                return self.diverge(against);
            };
            let first = self.subject.first;
            self.report.find(Finding::Swapped { place: first + low, with: first + high });
            // As it would be without: what comes after is looked at for itself.
            self.frontier = frontier;
        }
        self.diverged = false;
        self.since = Window::after(self.frontier.clone());
        true
    }

    fn diverge(&mut self, against: Against) -> bool {
        self.diverged = true;
        let first = self.subject.first;
        for leaf in self.since.odd() {
            self.report.find(Finding::Time { place: first + leaf });
        }
        let places = first + self.since.base.size()..self.place();
        self.report.find(Finding::Rewritten { places, against });
        false
    }

    fn trust_pinned(&mut self) {
        let Some(pinned) = &self.trust.pinned else { return };
        let checkpoint = Against::Pinned(pinned.checkpoint.size);
        if pinned.checkpoint.origin != self.subject.origin {
            let origin = pinned.checkpoint.origin.clone();
            self.report.find(Finding::OtherLog { checkpoint, origin });
        } else if !self.trust.keys.is_empty() && !self.is_known(pinned) {
            self.report.find(Finding::Forged { checkpoint });
        }
    }

    /// Before the walk goes on from a size: is it the pinned one?
    fn leave(&mut self) {
        let Some(pinned) = &self.trust.pinned else { return };
        let (size, root) = (pinned.checkpoint.size, pinned.checkpoint.root);
        if size != self.size || self.pinned_met || self.unknown_from.is_some() {
            return;
        }
        self.pinned_met = true;
        if self.frontier.root() != root {
            let places = self.subject.first..self.place();
            self.report.find(Finding::Rewritten { places, against: Against::Pinned(size) });
        }
    }

    /// The end. `shorter` is what to say of a pinned checkpoint that lies beyond it.
    pub(super) fn finish(mut self, shorter: impl FnOnce(u64, u64) -> Finding) -> Report {
        self.leave();
        for places in without(std::mem::take(&mut self.gaps), &self.pruned) {
            self.report.find(Finding::Missing { places });
        }
        if let Some(pinned) = &self.trust.pinned
            && !self.pinned_met
            && self.unknown_from.is_none()
        {
            let size = pinned.checkpoint.size;
            self.report.find(match size > self.size {
                true => shorter(size, self.size),
                false => Finding::PinnedElsewhere { size },
            });
        }
        if self.checkpoints == 0 && !self.trust.keys.is_empty() && self.size > 0 {
            self.report.find(Finding::MissingCheckpoint { size: None });
        }
        self.tell();
        self.report
    }

    fn tell(&mut self) {
        let (entries, erased, checkpoints, sealed) = (self.entries, self.erased, self.checkpoints, self.sealed);
        let report = &mut self.report;
        report.tell(Claim::Content, format!("what each of {entries} entries says is what its leaf covers"), None);
        report.tell(
            Claim::Personal,
            format!("names and ids are those that were hashed ({erased} of them erased)"),
            None,
        );
        let pruned = match self.pruned.is_empty() {
            true => String::new(),
            false => ", but those that entries say were pruned".to_owned(),
        };
        report.tell(
            Claim::Order,
            format!("none is missing, doubled or in another's place{pruned}"),
            None,
        );
        let unknown = self.unknown_from.map(|place| {
            format!("from place {place} on, no root can be compared: nothing is left of entries that are gone")
        });
        report.tell(
            Claim::Tree,
            format!("they are those that {checkpoints} checkpoint(s) speak of, the last of {sealed} leaves"),
            unknown.clone(),
        );
        let unsigned = match (self.trust.keys.is_empty(), checkpoints) {
            (true, 0) => Some("no checkpoint is kept: nothing that was signed speaks of this log".to_owned()),
            (true, _) => Some("no key was given: nobody looked at the signatures (--key)".to_owned()),
            (false, 0) => Some("no checkpoint could be compared".to_owned()),
            (false, _) => None,
        };
        report.tell(Claim::Signed, "every checkpoint was signed with a key that was given".to_owned(), unsigned);
        let unpinned = match &self.trust.pinned {
            None => Some(
                "no checkpoint was pinned: that whoever holds the signing key has not cut off or rewritten the log, and \
                 signed it anew, shows only against one that was kept elsewhere (--checkpoint)"
                    .to_owned(),
            ),
            Some(_) if self.pinned_met => None,
            Some(_) => Some("the pinned checkpoint could not be compared".to_owned()),
        };
        report.tell(Claim::Pinned, "the log goes on from the pinned checkpoint".to_owned(), unpinned);
    }
}

/// The places that a prune's entry names: `prune <first> <end>`.
pub(super) fn pruned_by(entry: &BundleEntry) -> Option<Range<u64>> {
    if entry.operation != Operation::Prune.as_str() || entry.outcome != "OK" {
        return None;
    }
    let mut words = entry.detail.as_deref()?.split(' ');
    let (Some("prune"), Some(first), Some(end), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return None;
    };
    let range = first.parse().ok()?..end.parse().ok()?;
    (range.start < range.end).then_some(range)
}

/// What is left of these gaps without those that are named.
fn without(gaps: Vec<Range<u64>>, named: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut named = named.to_vec();
    named.sort_by_key(|range| range.start);
    let mut left = Vec::new();
    for gap in gaps {
        let mut at = gap.start;
        for range in named.iter().filter(|range| range.end > gap.start && range.start < gap.end) {
            if range.start > at {
                left.push(at..range.start);
            }
            at = at.max(range.end);
        }
        if at < gap.end {
            left.push(at..gap.end);
        }
    }
    left
}

fn is_odd(entry: &BundleEntry) -> bool {
    let millis = entry.id.0.as_u64_pair().0 >> 16;
    entry.id.0.get_version_num() == 7
        && u64::try_from(entry.at / 1_000).is_ok_and(|at| at.abs_diff(millis) > ODD)
}
