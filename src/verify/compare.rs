//! Compares the walk's tree with the expected roots: those of the checkpoints, of the pinned
//! checkpoint and of the log's head.

use super::finding::{Against, Finding};
use super::walk::Walk;
use super::window::Window;
use crate::audit::SignedCheckpoint;
use crate::merkle::{Frontier, Hash};

impl Walk {
    /// Checks a note that is kept as the checkpoint of the size that the walk has reached.
    pub(super) fn checkpoint(&mut self, note: &str) {
        let size = self.size;
        let checkpoint = Against::Checkpoint(size);
        let Ok(signed) = SignedCheckpoint::parse(note) else {
            return self.report.find(Finding::NoCheckpoint { size });
        };
        let body = &signed.checkpoint;
        if body.origin != self.subject.origin {
            return self.report.find(Finding::OtherLog { checkpoint, origin: body.origin.clone() });
        }
        if body.size != size {
            return self.report.find(Finding::NoCheckpoint { size });
        }
        if let Some(unsigned) = self.unsigned(&signed, checkpoint) {
            return self.report.find(unsigned);
        }
        if let Some(pinned) = &self.trust.pinned
            && pinned.checkpoint.size == size
            && pinned.checkpoint.root != body.root
        {
            self.report.find(Finding::Forked { size, root: body.root });
        }
        if self.compare(body.root, checkpoint) {
            self.checkpoints += 1;
            self.last_checkpoint = size;
        }
    }

    /// Compares the tree with the root in the log's head.
    pub(super) fn head(&mut self, frontier: &Frontier) {
        self.matches_head = self.compare(frontier.root(), Against::Head(frontier.size()));
    }

    /// Returns the finding for a checkpoint that none of the given keys has signed. Returns `None`
    /// if no keys were given.
    fn unsigned(&self, signed: &SignedCheckpoint, checkpoint: Against) -> Option<Finding> {
        let keys = &self.trust.keys;
        if keys.is_empty() || keys.iter().any(|key| signed.is_signed_by(key)) {
            return None;
        }
        Some(if keys.iter().any(|key| signed.names(key)) {
            Finding::Forged { checkpoint }
        } else {
            Finding::WrongKey { checkpoint, signers: signed.signers() }
        })
    }

    /// Returns whether the tree so far has this root. If not, it reports why, as precisely as the
    /// leaves allow.
    fn compare(&mut self, root: Hash, against: Against) -> bool {
        if self.unknown_from.is_some() {
            return false;
        }
        if self.frontier.root() != root {
            if self.diverged {
                return false;
            }
            let Some((low, high, frontier)) = self.since.swapped(root) else {
                return self.diverge(root, against);
            };
            let first = self.subject.first;
            self.report.find(Finding::Swapped { position: first + low, with: first + high });
            // Continue as if the two were not swapped, so that what follows is judged by itself.
            self.frontier = frontier;
        }
        self.diverged = false;
        self.since = Window::after(self.frontier.clone());
        true
    }

    fn diverge(&mut self, expected: Hash, against: Against) -> bool {
        self.diverged = true;
        let first = self.subject.first;
        for leaf in self.since.odd() {
            self.report.find(Finding::Time { position: first + leaf });
        }
        let range = first + self.since.base.size()..self.position();
        let found = self.frontier.root();
        self.report.find(Finding::Rewritten { range, against, expected, found });
        false
    }

    pub(super) fn trust_pinned(&mut self) {
        let Some(pinned) = &self.trust.pinned else { return };
        let checkpoint = Against::Pinned(pinned.checkpoint.size);
        if pinned.checkpoint.origin != self.subject.origin {
            let origin = pinned.checkpoint.origin.clone();
            self.report.find(Finding::OtherLog { checkpoint, origin });
        } else if let Some(unsigned) = self.unsigned(pinned, checkpoint) {
            self.report.find(unsigned);
        }
    }

    /// Compares the tree with the pinned checkpoint, if the walk has reached its size. Called
    /// before the walk moves on.
    pub(super) fn compare_pinned(&mut self) {
        let Some(pinned) = &self.trust.pinned else { return };
        let (size, root) = (pinned.checkpoint.size, pinned.checkpoint.root);
        if size != self.size || self.pinned_reached || self.unknown_from.is_some() {
            return;
        }
        self.pinned_reached = true;
        let found = self.frontier.root();
        if found != root {
            let (range, against) = (self.subject.first..self.position(), Against::Pinned(size));
            self.report.find(Finding::Rewritten { range, against, expected: root, found });
        }
    }
}
