//! States what a finished walk claims about the log: the text of each claim if it holds, and what
//! it would take if nothing can be said.

use super::report::Claim;
use super::walk::Walk;

impl Walk {
    /// States the claim about personal values, after reporting those that are missing and that no
    /// entry says were erased.
    fn tell_personal(&mut self) {
        let (found, unseen) = self.erasures.settle();
        found.into_iter().for_each(|finding| self.report.find(finding));
        let erased =
            format!("names and ids are those that were hashed ({} of them erased", self.erasures.count);
        let open = (unseen > 0).then(|| {
            format!("{erased}; of {unseen} place(s) no entry that is shown says so: a later one may)")
        });
        self.report.tell(Claim::Personal, format!("{erased})"), open);
    }

    pub(super) fn tell(&mut self) {
        let (entries, checkpoints, sealed) = (self.entries, self.checkpoints, self.sealed);
        let (after, headed) = (self.size() - sealed, self.headed);
        let report = &mut self.report;
        report.tell(
            Claim::Content,
            format!("what each of {entries} entries says is what its leaf covers"),
            None,
        );
        self.tell_personal();
        let report = &mut self.report;
        let pruned = match self.pruned.is_empty() {
            true => String::new(),
            false => ", but those that entries say were pruned".to_owned(),
        };
        let withheld = match self.withheld {
            0 => String::new(),
            answers => format!("; {answers} say(s) that the answer of an earlier one was withheld"),
        };
        report.tell(
            Claim::Order,
            format!("none is missing, doubled or in another's place{pruned}{withheld}"),
            None,
        );
        let unproven = match (self.unknown_from, checkpoints) {
            (Some(place), _) => Some(format!(
                "from place {place} on, no root can be compared: nothing is left of entries that are gone"
            )),
            (None, 0) => Some("no checkpoint speaks of them".to_owned()),
            (None, _) => None,
        };
        let after = match (after, headed) {
            (0, _) => String::new(),
            (_, true) => format!("; the {after} after it fit the log's head alone"),
            (_, false) => format!("; the {after} after it were compared with nothing"),
        };
        let seen = format!(
            "they are those that {checkpoints} checkpoint(s) speak of, the last of {sealed} leaves{after}"
        );
        report.tell(Claim::Tree, seen, unproven);
        let unsigned = match (self.trust.keys.is_empty(), checkpoints) {
            (true, 0) => Some("no checkpoint is kept: nothing that was signed speaks of this log".to_owned()),
            (true, _) => Some("no key was given: nobody looked at the signatures (--key)".to_owned()),
            (false, 0) => Some("no checkpoint could be compared".to_owned()),
            (false, _) => None,
        };
        report.tell(
            Claim::Signed,
            "every checkpoint was signed with a key that was given".to_owned(),
            unsigned,
        );
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
