//! What a caller can do.

/// An operation: what a permission grants and an entry records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// Seal a plaintext under a record's DEK.
    Encrypt,
    /// Open a token.
    Decrypt,
    /// Open a token for a remote join: a failed row is data.
    Reveal,
    /// Start, or look at, the rotation job.
    Rotate,
    /// Read the audit log.
    Audit,
    /// Prove that the key works.
    Health,
    /// The key's posture turned: the prober's, nobody calls it.
    Incident,
    /// Drop old entries, and keep their hashes: the operator's.
    Prune,
    /// Set personal values of entries to null: the operator's.
    Erase,
    /// Keep a tenant's entries whatever their age, or no longer: the operator's.
    Hold,
    /// Go on in a new log after the database was restored: the operator's.
    Restore,
    /// Say that the rows of DEKs are all sealed: the server's; or seal them anew: the operator's.
    Seal,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Self; 12] = [
        Self::Encrypt,
        Self::Decrypt,
        Self::Reveal,
        Self::Rotate,
        Self::Audit,
        Self::Health,
        Self::Incident,
        Self::Prune,
        Self::Erase,
        Self::Hold,
        Self::Restore,
        Self::Seal,
    ];

    /// The name in permissions, entries, metrics and filters.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
            Self::Reveal => "reveal",
            Self::Rotate => "rotate",
            Self::Audit => "audit",
            Self::Health => "health",
            Self::Incident => "incident",
            Self::Prune => "prune",
            Self::Erase => "erase",
            Self::Hold => "hold",
            Self::Restore => "restore",
            Self::Seal => "seal",
        }
    }

    /// Those that a caller asks for, and a role can be granted.
    pub const CALLED: [Self; 6] =
        [Self::Encrypt, Self::Decrypt, Self::Reveal, Self::Rotate, Self::Audit, Self::Health];

    /// The operation of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|operation| operation.as_str() == name)
    }
}
