//! What was claimed of a log, and whether it holds.

use std::collections::BTreeMap;
use std::ops::Range;

use super::finding::Finding;

/// How many findings are kept; the rest are counted.
const KEPT: usize = 1_000;

/// What is claimed of a log. In the order that they are told in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Claim {
    /// The file is a bundle, and whole.
    Form,
    /// What each entry says is what its leaf covers.
    Content,
    /// Names and ids are those that were hashed.
    Personal,
    /// Each place has its one entry.
    Order,
    /// The entries are those of the roots.
    Tree,
    /// The checkpoints were signed with a key that is known.
    Signed,
    /// The log goes on from the one that the auditor has pinned.
    Pinned,
    /// The rows of DEKs are as the log says.
    Deks,
    /// The rows of DEKs have the MACs of a secret that the database does not hold.
    Macs,
}

impl Claim {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Form => "form",
            Self::Content => "content",
            Self::Personal => "personal",
            Self::Order => "order",
            Self::Tree => "tree",
            Self::Signed => "signed",
            Self::Pinned => "pinned",
            Self::Deks => "deks",
            Self::Macs => "macs",
        }
    }
}

/// What became of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It holds.
    Holds,
    /// It does not; the findings say why.
    Fails,
    /// Nothing can be said of it, and the text says what it would take.
    Open,
}

impl State {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::Fails => "fails",
            Self::Open => "open",
        }
    }
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Which log, and how much of it.
    pub subject: String,
    /// Each claim, and what became of it.
    pub claims: Vec<(Claim, State, String)>,
    /// What does not hold, up to a thousand.
    pub findings: Vec<Finding>,
    /// How many more there are.
    pub more: u64,
    /// Whether an entry says that all rows of DEKs are sealed.
    pub(super) all_were_sealed: bool,
    broken: BTreeMap<Claim, u64>,
}

impl Report {
    /// Whether nothing was found.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    /// Of nothing yet.
    pub(super) fn of(subject: String) -> Self {
        Self { subject, ..Self::default() }
    }

    /// Whether something was found that breaks this claim.
    pub(super) fn breaks(&self, claim: Claim) -> bool {
        self.broken.contains_key(&claim)
    }

    /// The places whose entries were found to be others than those that a root was made of.
    pub(super) fn rewritten(&self) -> Vec<Range<u64>> {
        let places = |finding: &Finding| match finding {
            Finding::Rewritten { places, .. } => Some(places.clone()),
            _ => None,
        };
        self.findings.iter().filter_map(places).collect()
    }

    pub(super) fn find(&mut self, finding: Finding) {
        *self.broken.entry(finding.breaks()).or_default() += 1;
        match self.findings.len() < KEPT {
            true => self.findings.push(finding),
            false => self.more += 1,
        }
    }

    /// Tells a claim: it fails where a finding breaks it, and is open where `open` says why.
    pub(super) fn tell(&mut self, claim: Claim, holds: String, open: Option<String>) {
        let told = match (self.broken.get(&claim), open) {
            (None, None) => (claim, State::Holds, holds),
            (None, Some(open)) => (claim, State::Open, open),
            (Some(broken), _) => (claim, State::Fails, format!("{broken} finding(s)")),
        };
        self.claims.push(told);
    }
}
