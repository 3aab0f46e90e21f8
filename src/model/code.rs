//! The one table of error codes: both fronts and the docs are made from it.

use std::borrow::Cow;
use std::time::Duration;

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident $text:literal $status:literal $retry:literal $message:literal $remedy:literal;)+) => {
        /// Why a call was refused. The names are stable; a code is never given a second meaning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum ErrorCode { $($(#[$doc])* #[doc = $message] $variant,)+ }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name that callers see.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// The HTTP status of the REST front.
            pub fn http_status(self) -> u16 {
                match self { $(Self::$variant => $status,)+ }
            }

            /// Whether the same call may succeed later with nothing changed by the caller.
            pub fn retryable(self) -> bool {
                match self { $(Self::$variant => $retry,)+ }
            }

            /// One sentence for the caller; it holds nothing of the request.
            pub fn message(self) -> &'static str {
                match self { $(Self::$variant => $message,)+ }
            }

            /// What to do about it, for the docs.
            pub fn remedy(self) -> &'static str {
                match self { $(Self::$variant => $remedy,)+ }
            }
        }
    };
}

codes! {
    // Hasura's own, spelled as Hasura spells them.
    InvalidHeaders "invalid-headers" 401 false "The request carries no usable credential." "Send `Authorization: Bearer <JWT>`, or configure the shared secret header in Hasura.";
    InvalidJwt "invalid-jwt" 401 false "The JWT could not be verified." "Get a new token; check `HASURA_GRAPHQL_JWT_SECRET` on both servers.";
    JwtInvalidClaims "jwt-invalid-claims" 401 false "The JWT's Hasura claims are malformed." "Correct the claims that your identity provider puts into the token.";
    JwtMissingRoleClaims "jwt-missing-role-claims" 401 false "The JWT lacks the role claims." "Add `x-hasura-allowed-roles` and `x-hasura-default-role` to the token.";
    AccessDenied "access-denied" 401 false "The requested role is not allowed to the caller." "Ask for a role that the token allows.";
    // Permission and limits.
    PermissionDenied "PERMISSION_DENIED" 403 false "The caller's role may not do this." "Grant the operation to the role in the permissions file.";
    RateLimited "RATE_LIMITED" 429 true "Too many calls in this minute." "Wait as long as `Retry-After` or `retryAfterSeconds` says, or raise the limit ([which](limits.md)).";
    // The request.
    RequestMalformed "REQUEST_MALFORMED" 400 false "The request is not what this operation takes." "Compare the body with the API's description.";
    MethodNotAllowed "METHOD_NOT_ALLOWED" 405 false "This address does not take that method." "Use the method in the API's description.";
    NotFound "NOT_FOUND" 404 false "There is nothing at this address." "Check the path.";
    BodyTooLarge "BODY_TOO_LARGE" 413 false "The body is larger than the server takes." "Send less at once, or raise `BYOK_MAX_BODY_BYTES`.";
    MediaTypeUnsupported "MEDIA_TYPE_UNSUPPORTED" 415 false "The body is not in a form that the server takes." "Send JSON without `Content-Encoding`; to GraphQL as `application/json`.";
    TooManyItems "TOO_MANY_ITEMS" 413 false "The request holds more items than the server takes." "Split the request, or raise `BYOK_MAX_ITEMS_PER_REQUEST` or the items of a minute ([which](limits.md)).";
    QueryInvalid "QUERY_INVALID" 400 false "The GraphQL document is not valid against the schema." "Compare the document with `schema.graphql`.";
    CursorInvalid "CURSOR_INVALID" 400 false "The cursor is not one that this server gave." "Pass back `endCursor` as it came.";
    RotationNotFound "ROTATION_NOT_FOUND" 404 false "There is no rotation with that id." "Check the id.";
    RotationStateConflict "ROTATION_STATE_CONFLICT" 409 false "The rotation is in a state in which that is not possible." "See what may follow on each state ([rotation](rotation.md)); a paused rotation is resumed or cancelled before another is started.";
    // Context and plaintext.
    ContextInvalid "CONTEXT_INVALID" 400 false "The context must be an object whose values are strings." "Send a flat object of strings with non-empty keys.";
    ContextTooLarge "CONTEXT_TOO_LARGE" 400 false "The context has too many pairs or is too long." "Keep it to 64 pairs and 16 KiB; to encrypt, its record_id to 512 bytes.";
    ContextConflict "CONTEXT_CONFLICT" 400 false "A flat argument contradicts the context." "Give `recordId` and `field` in one place only.";
    RecordIdRequired "RECORD_ID_REQUIRED" 400 false "The context has no record_id." "Name the record, or set `BYOK_REQUIRE_RECORD_ID=false`.";
    PlaintextTooLarge "PLAINTEXT_TOO_LARGE" 413 false "The plaintext is larger than the server takes." "Encrypt less, or raise `BYOK_MAX_PLAINTEXT_BYTES`.";
    EncodingInvalid "ENCODING_INVALID" 400 false "The plaintext is not in the encoding that was named." "Send padded standard base64 with `BASE64`.";
    NotText "NOT_TEXT" 422 false "The plaintext is not UTF-8 text." "Decrypt with the encoding `BASE64`.";
    // Tokens.
    TokenMalformed "TOKEN_MALFORMED" 400 false "The ciphertext is not a byok token in its one canonical form." "Pass back the ciphertext as encrypt gave it.";
    TokenVersionUnsupported "TOKEN_VERSION_UNSUPPORTED" 400 false "The ciphertext is of a version that this server does not know." "Upgrade the server.";
    DecryptFailed "DECRYPT_FAILED" 422 false "The ciphertext does not open: wrong context, tenant or key, or it was altered." "Give the same context as at encryption.";
    // The key.
    KmsAccessDenied "KMS_ACCESS_DENIED" 403 false "The KMS refuses the use of the key." "Restore the key, its policy or our credential in your KMS; nothing needs to be re-encrypted.";
    KmsUnavailable "KMS_UNAVAILABLE" 503 true "The KMS is out of reach." "Wait, or mend the path to the KMS; there is no fallback.";
    KmsMisconfigured "KMS_MISCONFIGURED" 503 false "The KMS does not accept our configuration." "Run `byok doctor` on the server. Where the sentence says that another key wraps the record's DEK, set the variables back to that key.";
    KeyVersionUnknown "KEY_VERSION_UNKNOWN" 503 false "The KMS does not say which version of the key wraps, so a rotation cannot tell what to re-wrap: nothing was re-wrapped." "Use an endpoint of the KMS that tells them ([which](rotation.md#a-kms-that-tells-no-versions)); encrypt and decrypt work without.";
    RowMacKeyRequired "ROW_MAC_KEY_REQUIRED" 503 false "The server lacks the secret that binds the rows of DEKs, without which it makes none here." "Set `BYOK_ROW_MAC_KEY` on every replica: under an RSA key of Azure anybody can wrap a DEK; elsewhere once all rows are sealed.";
    // The server.
    StoreUnavailable "STORE_UNAVAILABLE" 503 true "The database is out of reach; nothing was done." "Retry; if it stays, look at the database.";
    AuditLogBehind "AUDIT_LOG_BEHIND" 503 false "The audit log is behind what was published of it: the database was restored or rewritten." "Find out which; after a restore run `byok audit restored`.";
    Unavailable "UNAVAILABLE" 503 true "The server is stopping or overloaded." "Retry.";
    Internal "INTERNAL" 500 true "The server failed." "Give the request id to the operator.";
}

impl ErrorCode {
    /// The code of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.as_str() == name)
    }

    /// The field or argument that it is about, of those that every operation with this code has.
    fn field(self) -> Option<&'static str> {
        match self {
            Self::CursorInvalid => Some("after"),
            Self::RotationNotFound => Some("id"),
            Self::ContextInvalid | Self::ContextTooLarge | Self::ContextConflict | Self::RecordIdRequired => {
                Some("context")
            }
            Self::PlaintextTooLarge | Self::EncodingInvalid => Some("plaintext"),
            Self::NotText => Some("encoding"),
            Self::TokenMalformed | Self::TokenVersionUnsupported => Some("ciphertext"),
            _ => None,
        }
    }

    /// Whether it is spelled as Hasura spells its own: it is about identity, and no entry is made of it.
    pub fn is_hasuras_own(self) -> bool {
        self.as_str().bytes().any(|byte| byte.is_ascii_lowercase())
    }
}

/// A refusal as a caller may see it. It has no `Display`: a front turns it into its own form, and what caused it stays
/// in the server's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The stable code.
    pub code: ErrorCode,
    /// The sentence that callers see: the code's own, or one that says more. Never a value of the request.
    pub message: Cow<'static, str>,
    /// When a retry makes sense.
    pub retry_after: Option<Duration>,
    /// What in the request is wrong, where that is more than the code says: a path of the interface's own names and of places in lists (`items[3].context`), and of
    /// nothing else that a caller chose but the names of GraphQL's variables.
    pub field: Option<String>,
}

impl Refusal {
    /// With a sentence that says more than the code's own, and names no value of the request.
    pub fn because(code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into(), retry_after: None, field: None }
    }

    /// The same, to be retried after that long.
    pub fn after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// What in the request is wrong, as far as it can be named: see the field `field`.
    pub fn field(&self) -> Option<&str> {
        self.field.as_deref().or(self.code.field())
    }

    /// The same, because of what is at this place of the request.
    pub fn at(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// When a retry makes sense, in whole seconds as the fronts say it: never too early, and never 0, which some clients
    /// take for no wait at all (RFC 9110, section 10.2.3).
    pub fn retry_after_seconds(&self) -> Option<u64> {
        self.retry_after.map(|delay| (delay.as_secs() + u64::from(delay.subsec_nanos() > 0)).max(1))
    }
}

impl From<ErrorCode> for Refusal {
    fn from(code: ErrorCode) -> Self {
        Self { code, message: Cow::Borrowed(code.message()), retry_after: None, field: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_reads_back_and_no_two_share_a_name() {
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::parse(code.as_str()), Some(*code));
        }
    }

    #[test]
    fn a_wait_is_rounded_up_and_never_nothing() {
        let seconds = |wait| Refusal::from(ErrorCode::RateLimited).after(wait).retry_after_seconds();
        for (nanos, said) in [(0, 1), (1, 1), (999_999_999, 1), (1_000_000_000, 1), (1_000_000_001, 2)] {
            assert_eq!(seconds(Duration::from_nanos(nanos)), Some(said));
        }
        assert_eq!(Refusal::from(ErrorCode::RateLimited).retry_after_seconds(), None);
    }

    #[test]
    fn what_may_be_retried_is_never_the_callers_mistake() {
        for code in ErrorCode::ALL {
            assert!(!code.retryable() || code.http_status() >= 429, "{code:?}");
        }
    }
}
