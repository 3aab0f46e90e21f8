//! States what a finished walk claims about the log: the text of each claim if it holds, and what
//! is needed if it can be neither confirmed nor refuted.

use super::report::Claim;
use super::walk::Walk;

impl Walk {
    /// States the claim about personal values, after reporting those that are missing and that no
    /// entry says were erased.
    fn claim_personal(&mut self) {
        let (found, unseen) = self.erasures.take_unexplained();
        found.into_iter().for_each(|finding| self.report.find(finding));
        let erased = format!("names and ids match their hashes ({} of them erased", self.erasures.count);
        let open = (unseen > 0).then(|| {
            format!("{erased}; at {unseen} place(s) no entry seen here says so, but a later one may)")
        });
        self.report.claim(Claim::Personal, format!("{erased})"), open);
    }

    /// States every claim that the walk can make.
    pub(super) fn claim_all(&mut self) {
        let (entries, checkpoints, last) = (self.entries, self.checkpoints, self.last_checkpoint);
        let (after, matches_head) = (self.size() - last, self.matches_head);
        let report = &mut self.report;
        report.claim(
            Claim::Content,
            format!("the content of each of {entries} entries matches its leaf"),
            None,
        );
        self.claim_personal();
        let report = &mut self.report;
        let pruned = if self.pruned.is_empty() { "" } else { ", except those that entries say were pruned" };
        let withheld = match self.withheld {
            0 => String::new(),
            answers => format!("; {answers} answer(s) were withheld after their entry was written"),
        };
        report.claim(
            Claim::Order,
            format!("no entry is missing, doubled or swapped with another{pruned}{withheld}"),
            None,
        );
        let unproven = match (self.unknown_from, checkpoints) {
            (Some(position), _) => Some(format!(
                "from place {position} on, no root can be compared: entries are missing, and so are their hashes"
            )),
            (None, 0) => Some("no checkpoint covers these entries".to_owned()),
            (None, _) => None,
        };
        let after = match (after, matches_head) {
            (0, _) => String::new(),
            (_, true) => format!("; the {after} after it match only the log's head"),
            (_, false) => format!("; the {after} after it were not compared with anything"),
        };
        let seen = format!(
            "the entries match {checkpoints} checkpoint(s), the last of which covers {last} leaves{after}"
        );
        report.claim(Claim::Tree, seen, unproven);
        let unsigned = match (self.trust.keys.is_empty(), checkpoints) {
            (true, 0) => Some("no checkpoint is kept, so no signature covers this log".to_owned()),
            (true, _) => Some("no key was given, so the signatures were not checked (--key)".to_owned()),
            (false, 0) => Some("no checkpoint could be compared".to_owned()),
            (false, _) => None,
        };
        report.claim(
            Claim::Signed,
            "every checkpoint was signed with a key that was given".to_owned(),
            unsigned,
        );
        let unpinned = match &self.trust.pinned {
            None => Some(
                "no checkpoint was pinned: to detect that the log was cut off or rewritten and then re-signed, you need a \
                 checkpoint saved earlier (--checkpoint)"
                    .to_owned(),
            ),
            Some(_) if self.pinned_reached => None,
            Some(_) => Some("the pinned checkpoint could not be compared".to_owned()),
        };
        report.claim(Claim::Pinned, "the log extends the pinned checkpoint".to_owned(), unpinned);
    }
}
