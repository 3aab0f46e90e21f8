//! What is claimed about a log, and whether it holds.

use std::collections::BTreeMap;

use super::finding::Finding;

/// The number of findings that are kept; the rest are only counted.
const KEPT: usize = 1_000;

/// The claims about a log, in the order in which they are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Claim {
    /// The file is a complete bundle.
    Form,
    /// The content of each entry matches its leaf.
    Content,
    /// Names and ids match their hashes.
    Personal,
    /// Each position has exactly one entry.
    Order,
    /// The entries match the roots.
    Tree,
    /// The checkpoints were signed with a given key.
    Signed,
    /// The log extends the checkpoint that the auditor has pinned.
    Pinned,
    /// The rows of DEKs match the log.
    Deks,
    /// The rows of DEKs have the MACs of a secret that the database does not hold.
    Macs,
}

impl Claim {
    /// Returns the name of the claim.
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

/// The result for a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The claim holds.
    Holds,
    /// The claim does not hold; the findings say why.
    Fails,
    /// The claim can be neither confirmed nor refuted; the text says what is needed.
    Open,
}

impl State {
    /// Returns the name of the state.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::Fails => "fails",
            Self::Open => "open",
        }
    }
}

/// The result of a verification.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The log, and the part of it that was verified.
    pub subject: String,
    /// Each claim with its state and text.
    pub claims: Vec<(Claim, State, String)>,
    /// The violations, up to a thousand.
    pub findings: Vec<Finding>,
    /// The number of further violations.
    pub more: u64,
    /// Whether an entry says that all rows of DEKs are sealed.
    pub(super) all_were_sealed: bool,
    broken: BTreeMap<Claim, u64>,
}

impl Report {
    /// Returns whether nothing was found.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    /// Creates a report that has no claims or findings yet.
    pub(super) fn of(subject: String) -> Self {
        Self { subject, ..Self::default() }
    }

    /// Returns whether a finding breaks this claim.
    pub(super) fn breaks(&self, claim: Claim) -> bool {
        self.broken.contains_key(&claim)
    }

    pub(super) fn find(&mut self, finding: Finding) {
        *self.broken.entry(finding.breaks()).or_default() += 1;
        if self.findings.len() < KEPT {
            self.findings.push(finding);
        } else {
            self.more += 1;
        }
    }

    /// Adds a claim to the report. It fails if a finding breaks it, and is open if `open` gives a
    /// reason.
    pub(super) fn claim(&mut self, claim: Claim, holds: String, open: Option<String>) {
        let result = match (self.broken.get(&claim), open) {
            (None, None) => (claim, State::Holds, holds),
            (None, Some(open)) => (claim, State::Open, open),
            (Some(broken), _) => (claim, State::Fails, format!("{broken} finding(s)")),
        };
        self.claims.push(result);
    }
}
