//! Identifiers, each with a type of its own, so that they cannot be confused.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use uuid::{Builder, NoContext, Uuid};

/// The 16 random bytes that identify a tenant; they never change and are never reused. The tenant's
/// name may change.
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
    /// The identifier that rows, cache keys and ciphertexts are bound to.
    pub uid: TenantUid,
    /// The display name; `primary` in the single-tenant form.
    pub name: String,
}

/// The text is not an identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidId;

macro_rules! uuid_v7 {
    ($(#[$doc:meta])* $name:ident, $make:path) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new UUIDv7 (RFC 9562, section 5.7): sorts by the time it was made.
            #[expect(clippy::new_without_default, reason = "a new id is an act, not a default")]
            pub fn new() -> Self {
                Self($make())
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
    /// The id of a data encryption key; part of every token.
    DekId,
    Uuid::now_v7
);
uuid_v7!(
    /// The id of an entry of the audit log.
    EntryId,
    counted_v7
);
uuid_v7!(
    /// The id of a rotation job.
    JobId,
    Uuid::now_v7
);
uuid_v7!(
    /// The id of an incident.
    IncidentId,
    Uuid::now_v7
);

/// A UUIDv7 for ids that every call makes: unique, but easy to guess. Its random bits are drawn
/// once per process and count up from there (RFC 9562, section 6.2), so that no call waits for the
/// operating system's random source.
fn counted_v7() -> Uuid {
    static START: LazyLock<([u8; 2], AtomicU64)> = LazyLock::new(|| {
        let drawn = Uuid::now_v7();
        ([drawn.as_bytes()[6], drawn.as_bytes()[7]], AtomicU64::new(drawn.as_u64_pair().1))
    });
    let (fixed, next) = &*START;
    let mut random = [0; 10];
    random[..2].copy_from_slice(fixed);
    // Relaxed, since it only matters that each call gets a number of its own.
    random[2..].copy_from_slice(&next.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    let (seconds, nanoseconds) = uuid::Timestamp::now(NoContext).to_unix();
    Builder::from_unix_timestamp_millis(seconds * 1_000 + u64::from(nanoseconds) / 1_000_000, &random)
        .into_uuid()
}

/// The id of a request: that of `X-Request-Id` if it has 1 to 128 visible ASCII characters,
/// otherwise a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(String);

impl RequestId {
    /// A new id.
    pub fn fresh() -> Self {
        Self(counted_v7().to_string())
    }

    /// The caller's own id, if it is acceptable: it must not be able to forge a line of a log.
    pub fn accept(text: &str) -> Option<Self> {
        let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
        (visible && (1..=128).contains(&text.len())).then(|| Self(text.to_owned()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_uuids_of_version_7_and_never_the_same() {
        let ids: std::collections::BTreeSet<Uuid> = (0..1_000).map(|_| EntryId::new().0).collect();
        assert_eq!(ids.len(), 1_000);
        assert!(ids.iter().all(|id| id.get_version_num() == 7 && id.get_variant() == uuid::Variant::RFC4122));
    }

    #[test]
    fn a_request_id_that_could_forge_log_lines_is_refused() {
        assert!(RequestId::accept("abc-123").is_some());
        for bad in ["", "a b", "a\nb", "ä", &"x".repeat(129)] {
            assert!(RequestId::accept(bad).is_none(), "{bad:?}");
        }
    }
}
