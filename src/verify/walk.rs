//! The walk along a log's tree. It appends what comes next to a frontier, and compares the
//! frontier's root with what is signed, wherever there is a signature.

use std::ops::Range;

use super::entry::{BundleEntry, Personal};
use super::erasures::Erasures;
use super::finding::{Finding, PersonalValue};
use super::report::{Claim, Report};
use super::window::Window;
use super::{Subject, Trust, pruned_by};
use crate::merkle::{Frontier, Hash, NoFrontier};
use crate::model::TenantUid;

/// How far the time of an entry may be from the time in its id, in milliseconds, before it is
/// considered odd.
const ODD: u64 = 10_000;
/// The number of gaps that wait for the entry that names them. More than anybody prunes.
const GAPS: usize = 10_000;

pub(super) struct Walk {
    pub(super) report: Report,
    pub(super) subject: Subject,
    pub(super) trust: Trust,
    pub(super) frontier: Frontier,
    /// The number of leaves that the walk has passed.
    pub(super) size: u64,
    /// The position from which leaves, and therefore all roots, are unknown.
    pub(super) unknown_from: Option<u64>,
    pub(super) since: Window,
    /// Whether the last root did not hold. Then the following roots will not hold either.
    pub(super) diverged: bool,
    /// The ranges without entries, of which only hashes are kept, or nothing; and the ranges that
    /// entries say were pruned.
    pub(super) gaps: Vec<Range<u64>>,
    pub(super) pruned: Vec<Range<u64>>,
    pub(super) entries: u64,
    pub(super) erasures: Erasures,
    /// The number of answers that were withheld after their entry was written, if that was checked.
    pub(super) withheld: u64,
    /// The number of checkpoints that held, and the size of the last one.
    pub(super) checkpoints: u64,
    pub(super) last_checkpoint: u64,
    /// Whether the log's head matched.
    pub(super) matches_head: bool,
    pub(super) pinned_reached: bool,
}

impl Walk {
    /// Starts a walk from a frontier, which itself remains to be verified.
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
            erasures: Erasures::default(),
            withheld: 0,
            checkpoints: 0,
            last_checkpoint: 0,
            matches_head: false,
            pinned_reached: false,
        };
        walk.trust_pinned();
        walk
    }

    /// Returns the tenant that owns the log.
    pub(super) fn tenant(&self) -> TenantUid {
        self.subject.tenant
    }

    /// Returns the origin of the log's checkpoints.
    pub(super) fn origin(&self) -> &str {
        &self.subject.origin
    }

    /// Returns the number of leaves that the walk has passed.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Returns the next position.
    pub(super) fn position(&self) -> u64 {
        self.subject.first.saturating_add(self.size)
    }

    /// Returns the size that the auditor has pinned, if the walk has not passed it.
    pub(super) fn pinned_ahead(&self) -> Option<u64> {
        let size = self.trust.pinned.as_ref()?.checkpoint.size;
        (size > self.size).then_some(size)
    }

    /// Takes in an entry. Returns whether its content can be relied on, as far as its own digest
    /// goes.
    pub(super) fn entry(&mut self, entry: &BundleEntry) -> bool {
        let position = entry.position;
        if !self.reaches(position) {
            return false;
        }
        let digest = entry.computed(self.subject.tenant);
        let sound = digest == entry.digest.0;
        if !sound {
            self.report.find(match entry.others() {
                Some(tenant) => Finding::OtherTenant { position, tenant },
                None => Finding::Content { position, leaf: entry.leaf(), computed: entry.leaf_with(&digest) },
            });
        } else {
            self.note_statements(entry);
        }
        self.personal(entry);
        self.entries += 1;
        self.append(entry.leaf(), is_odd(entry));
        sound
    }

    /// Takes in what an entry whose digest holds says about earlier ones. The entry may lie after
    /// the end of the walk.
    pub(super) fn note_statements(&mut self, entry: &BundleEntry) {
        let first = self.subject.first;
        if let Some(leaves) = pruned_by(entry, self.subject.log)
            && leaves.end <= entry.position.saturating_sub(first)
            && self.pruned.len() < GAPS
        {
            self.pruned.push(first.saturating_add(leaves.start)..first.saturating_add(leaves.end));
        }
        self.erasures.entry(entry);
    }

    /// Returns whether something is missing that an entry after the end of the walk may explain.
    pub(super) fn is_awaiting(&self) -> bool {
        !self.gaps.is_empty() || self.erasures.is_awaiting()
    }

    /// Takes in a row that cannot be read, but whose leaf can.
    pub(super) fn unreadable(&mut self, position: u64, leaf: Hash) {
        if self.reaches(position) {
            self.report.find(Finding::Unreadable { position });
            self.entries += 1;
            self.append(leaf, false);
        }
    }

    /// Returns whether this position comes next, after noting any positions before it as missing.
    fn reaches(&mut self, position: u64) -> bool {
        let next = self.position();
        if position < next {
            self.report.find(Finding::Doubled { position });
            return false;
        }
        if position > next {
            self.missing_until(position);
        }
        true
    }

    /// Notes that nothing is left of the entries up to this position.
    pub(super) fn missing_until(&mut self, position: u64) {
        self.compare_pinned();
        let next = self.position();
        let oldest = next == self.subject.first;
        self.report.find(Finding::Missing { range: next..position, oldest, kept: false });
        self.size += position - next;
        self.unknown_from.get_or_insert(next);
        self.erasures.hide(next);
        self.since.skip();
    }

    /// Takes in this many leaves of which only roots are given. `pruned` says that this is because
    /// their entries no longer exist.
    ///
    /// # Errors
    /// [`NoFrontier`] if the number of roots does not match.
    pub(super) fn roots(&mut self, count: u64, roots: &[Hash], pruned: bool) -> Result<(), NoFrontier> {
        self.compare_pinned();
        if self.unknown_from.is_none() {
            self.frontier.append_cover(count, roots)?;
        }
        let next = self.position();
        if pruned {
            self.gap(next..next.saturating_add(count));
        }
        self.size = self.size.checked_add(count).ok_or(NoFrontier)?;
        self.since.skip();
        Ok(())
    }

    fn gap(&mut self, range: Range<u64>) {
        self.erasures.hide(range.start);
        if self.gaps.len() < GAPS {
            self.gaps.push(range);
        } else {
            self.report.find(Finding::Missing { range, oldest: false, kept: true });
        }
    }

    fn append(&mut self, leaf: Hash, odd: bool) {
        self.compare_pinned();
        if self.unknown_from.is_none() {
            self.frontier.append(leaf);
            self.since.push(leaf, odd);
        }
        self.size += 1;
    }

    fn personal(&mut self, entry: &BundleEntry) {
        let position = entry.position;
        let of_entry =
            [(PersonalValue::User, entry.user.as_ref()), (PersonalValue::Request, Some(&entry.request))];
        let records = entry.items.iter().enumerate();
        let records = records.map(|(item, it)| (PersonalValue::Record(item), it.record.as_ref()));
        for (what, value) in of_entry.into_iter().chain(records) {
            match value.map(Personal::matches) {
                None | Some(Some(true)) => {}
                Some(Some(false)) => self.report.find(Finding::Personal { position, what }),
                Some(None) => self.erasures.erased(position, what),
            }
        }
    }

    /// Notes that an entry after the end of the walk may explain missing values.
    pub(super) fn continues_unseen(&mut self) {
        self.erasures.hide(u64::MAX);
    }

    /// Ends the walk. `shorter` builds the finding for a pinned checkpoint that lies beyond the
    /// end.
    pub(super) fn finish(mut self, shorter: impl FnOnce(u64, u64) -> Finding) -> Report {
        self.compare_pinned();
        for range in without(std::mem::take(&mut self.gaps), &self.pruned) {
            let oldest = range.start == self.subject.first
                || self.pruned.iter().any(|pruned| pruned.end == range.start);
            self.report.find(Finding::Missing { range, oldest, kept: true });
        }
        if let Some(pinned) = &self.trust.pinned
            && !self.pinned_reached
            && self.unknown_from.is_none()
        {
            let size = pinned.checkpoint.size;
            self.report.find(if size > self.size {
                shorter(size, self.size)
            } else {
                Finding::PinnedElsewhere { size }
            });
        }
        if self.checkpoints == 0
            && !self.trust.keys.is_empty()
            && self.size > 0
            && self.unknown_from.is_none()
            && !self.diverged
            && !self.report.breaks(Claim::Signed)
        {
            self.report.find(Finding::MissingCheckpoint { size: None });
        }
        self.claim_all();
        self.report
    }
}

/// Returns what remains of these gaps without the named ranges.
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
