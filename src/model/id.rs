//! Identifiers. Each is a type of its own, so that one can never stand where another is meant.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// The 16 random bytes that name a tenant for ever: never changed, never reused. Its name may change.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantUid(pub [u8; 16]);

impl fmt::Debug for TenantUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for TenantUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The customer whose key protects the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// What rows, cache keys and ciphertexts are bound to.
    pub uid: TenantUid,
    /// What people call it: `primary` in the single-tenant form.
    pub name: String,
}

/// An identifier that was not in its canonical form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidId;

macro_rules! uuid_v7 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new UUIDv7 (RFC 9562, section 5.7): sorts by the time it was made.
            #[expect(clippy::new_without_default, reason = "a new id is an act, not a default")]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            /// The 16 bytes, in network order.
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Uuid::parse_str(text).map(Self).map_err(|_| InvalidId)
            }
        }
    };
}

uuid_v7!(
    /// Names a data encryption key. Part of every token.
    DekId
);
uuid_v7!(
    /// Names an entry of the audit log.
    EntryId
);
uuid_v7!(
    /// Names a rotation job.
    JobId
);

/// The id of one request: taken from `X-Request-Id` when it is 1 to 128 visible ASCII characters, else made anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(String);

impl RequestId {
    /// A new one.
    pub fn fresh() -> Self {
        Self(Uuid::now_v7().to_string())
    }

    /// The caller's own, if its form is acceptable: what stands in a log must not be able to forge a second line.
    pub fn accept(text: &str) -> Option<Self> {
        let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
        (visible && (1..=128).contains(&text.len())).then(|| Self(text.to_owned()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_that_could_forge_a_log_line_is_not_accepted() {
        assert!(RequestId::accept("abc-123").is_some());
        for bad in ["", "a b", "a\nb", "ä", &"x".repeat(129)] {
            assert!(RequestId::accept(bad).is_none(), "{bad:?}");
        }
    }
}
