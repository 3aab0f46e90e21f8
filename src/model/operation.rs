//! Operations of callers, of operators and of the server itself.

/// An operation: what a permission grants and an entry records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// Encrypt a plaintext under a record's DEK.
    Encrypt,
    /// Decrypt a token.
    Decrypt,
    /// Decrypt a token for a remote join, where a failed row is data.
    Reveal,
    /// Start, control or watch a rotation.
    Rotate,
    /// Read the audit log.
    Audit,
    /// Check that the key works.
    Health,
    /// A change of the key's posture, recorded by the prober.
    Incident,
    /// Delete old entries and keep their hashes, by an operator.
    Prune,
    /// Set personal values of entries to null, by an operator.
    Erase,
    /// Put a tenant's log on legal hold or lift the hold, by an operator.
    Hold,
    /// Begin a new log after the database was restored, by an operator.
    Restore,
    /// Record that all rows of DEKs are sealed, by the server; or give the rows new MACs, by an
    /// operator.
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

    /// The operations that callers ask for and roles can be granted.
    pub const CALLED: [Self; 6] =
        [Self::Encrypt, Self::Decrypt, Self::Reveal, Self::Rotate, Self::Audit, Self::Health];

    /// The operation of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|operation| operation.as_str() == name)
    }
}
