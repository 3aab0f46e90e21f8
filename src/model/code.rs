//! The table of error codes, from which both fronts and the documentation are generated.

use std::borrow::Cow;
use std::time::Duration;

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident $text:literal $status:literal $retry:literal $message:literal $remedy:literal;)+) => {
        /// Why a call was refused. Names and meanings of codes never change.
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

            /// Whether the same call may succeed later without a change by the caller.
            pub fn retryable(self) -> bool {
                match self { $(Self::$variant => $retry,)+ }
            }

            /// One sentence for the caller, which contains nothing of the request.
            pub fn message(self) -> &'static str {
                match self { $(Self::$variant => $message,)+ }
            }

            /// What to do about it, for the documentation.
            pub fn remedy(self) -> &'static str {
                match self { $(Self::$variant => $remedy,)+ }
            }
        }
    };
}

codes! {
    // Hasura's own codes, in Hasura's spelling.
    InvalidHeaders "invalid-headers" 401 false "The request has no usable credential." "Send `Authorization: Bearer <JWT>`, or configure the shared secret header in Hasura.";
    InvalidJwt "invalid-jwt" 401 false "The JWT could not be verified." "Get a new token; check `HASURA_GRAPHQL_JWT_SECRET` on both servers.";
    JwtInvalidClaims "jwt-invalid-claims" 401 false "The JWT's Hasura claims are malformed." "Correct the claims that your identity provider puts into the token.";
    JwtMissingRoleClaims "jwt-missing-role-claims" 401 false "The JWT lacks the role claims." "Add `x-hasura-allowed-roles` and `x-hasura-default-role` to the token.";
    AccessDenied "access-denied" 401 false "The requested role is not allowed to the caller." "Ask for a role that the token allows.";
    // Permission and limits.
    PermissionDenied "PERMISSION_DENIED" 403 false "The caller's role may not do this." "Grant the operation to the role in the permissions file.";
    RateLimited "RATE_LIMITED" 429 true "Too many calls in this minute." "Wait as long as `Retry-After` or `retryAfterSeconds` says, or raise the limit ([which](limits.md)).";
    // The request.
    RequestMalformed "REQUEST_MALFORMED" 400 false "The request is not valid for this operation." "Compare the body with the API's description.";
    MethodNotAllowed "METHOD_NOT_ALLOWED" 405 false "This address does not accept that method." "Use the method in the API's description.";
    NotFound "NOT_FOUND" 404 false "There is nothing at this address." "Check the path.";
    BodyTooLarge "BODY_TOO_LARGE" 413 false "The body is larger than the server accepts." "Send less at once, or raise `BYOK_MAX_BODY_BYTES`.";
    MediaTypeUnsupported "MEDIA_TYPE_UNSUPPORTED" 415 false "The body has a media type or encoding that the server does not accept." "Send JSON without `Content-Encoding`; to GraphQL as `application/json`.";
    TooManyItems "TOO_MANY_ITEMS" 413 false "The request has more items than the server accepts." "Split the request, or raise `BYOK_MAX_ITEMS_PER_REQUEST` or the items of a minute ([which](limits.md)).";
    QueryInvalid "QUERY_INVALID" 400 false "The GraphQL document is not valid against the schema." "Compare the document with `schema.graphql`.";
    CursorInvalid "CURSOR_INVALID" 400 false "The cursor is not one that this server returned." "Pass `endCursor` back unchanged.";
    RotationNotFound "ROTATION_NOT_FOUND" 404 false "There is no rotation with that id." "Check the id.";
    RotationStateConflict "ROTATION_STATE_CONFLICT" 409 false "The rotation is in a state that does not allow this." "See the possible changes of state ([rotation](rotation.md)); resume or cancel a paused rotation before you start another.";
    // Context and plaintext.
    ContextInvalid "CONTEXT_INVALID" 400 false "The context must be an object of strings, without empty keys and without NUL characters." "Send a flat object of strings. Neither its keys nor its values, nor `recordId` and `field`, may contain NUL (U+0000).";
    ContextTooLarge "CONTEXT_TOO_LARGE" 400 false "The context has too many pairs or is too long." "Keep it to 64 pairs and 16 KiB; to encrypt, its record_id to 512 bytes.";
    ContextConflict "CONTEXT_CONFLICT" 400 false "A flat argument contradicts the context." "Send `recordId` and `field` either as arguments or in the context.";
    RecordIdRequired "RECORD_ID_REQUIRED" 400 false "The context has no record_id." "Name the record, or set `BYOK_REQUIRE_RECORD_ID=false`.";
    PlaintextTooLarge "PLAINTEXT_TOO_LARGE" 413 false "The plaintext is larger than the server accepts." "Encrypt less, or raise `BYOK_MAX_PLAINTEXT_BYTES`.";
    EncodingInvalid "ENCODING_INVALID" 400 false "The plaintext is not in the encoding that the request names." "Send padded standard base64 with `BASE64`.";
    NotText "NOT_TEXT" 422 false "The plaintext is not UTF-8 text." "Decrypt with the encoding `BASE64`.";
    // Tokens.
    TokenMalformed "TOKEN_MALFORMED" 400 false "The ciphertext is not a byok token in canonical form." "Pass the ciphertext back as encrypt returned it.";
    TokenVersionUnsupported "TOKEN_VERSION_UNSUPPORTED" 400 false "The ciphertext has a version that this server does not support." "Upgrade the server.";
    DecryptFailed "DECRYPT_FAILED" 422 false "The ciphertext does not open: wrong context, tenant or key, or it was altered." "Send the same context as for encryption.";
    // The key.
    KmsAccessDenied "KMS_ACCESS_DENIED" 403 false "The KMS refuses the use of the key." "Restore the key, its policy or the server's credential in your KMS; nothing needs to be re-encrypted.";
    KmsUnavailable "KMS_UNAVAILABLE" 503 true "The KMS is out of reach." "Wait, or repair the connection to the KMS; there is no fallback.";
    KmsMisconfigured "KMS_MISCONFIGURED" 503 false "The KMS does not accept the server's configuration." "Run `byok doctor` on the server. If the message says that another key wraps the record's DEK, set the variables back to that key.";
    KeyVersionUnknown "KEY_VERSION_UNKNOWN" 503 false "The KMS does not report which version of the key it wraps under, so a rotation cannot know what to re-wrap: nothing was re-wrapped." "Use an endpoint of the KMS that reports versions ([which](rotation.md#a-kms-that-tells-no-versions)); encrypt and decrypt work without them.";
    RowMacKeyRequired "ROW_MAC_KEY_REQUIRED" 503 false "The server lacks the secret that authenticates the rows of DEKs, so it makes no new DEK." "Set `BYOK_ROW_MAC_KEY` on every replica. It is required with an RSA key of Azure, under which anybody can wrap a DEK, and elsewhere once all rows are sealed.";
    // The server.
    StoreUnavailable "STORE_UNAVAILABLE" 503 true "The database is out of reach; nothing was done." "Retry; if it persists, check the database.";
    AuditLogBehind "AUDIT_LOG_BEHIND" 503 false "The audit log is older than its published checkpoint: the database was restored or rewritten." "Find out which; after a restore run `byok audit restored`.";
    Unavailable "UNAVAILABLE" 503 true "The server is stopping or overloaded." "Retry.";
    Internal "INTERNAL" 500 true "The server failed." "Give the request id to the operator.";
}

impl ErrorCode {
    /// The code of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.as_str() == name)
    }

    /// The field or argument that the code is about, if it is the same for every operation.
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

    /// Whether the code is one of Hasura's own: these are about identity, and such refusals leave
    /// no entry.
    pub fn is_hasuras_own(self) -> bool {
        self.as_str().bytes().any(|byte| byte.is_ascii_lowercase())
    }
}

/// A refusal as a caller may see it. It has no `Display`: each front converts it into its own form,
/// and its cause stays in the server's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The code.
    pub code: ErrorCode,
    /// The sentence for the caller: the code's own, or a more specific one. Never contains a value
    /// of the request.
    pub message: Cow<'static, str>,
    /// How long to wait before a retry.
    pub retry_after: Option<Duration>,
    /// The wrong part of the request, if it is more specific than the code: a path of the API's own
    /// names and of indexes in lists (`items[3].context`). Of names that a caller chose, it
    /// contains only those of GraphQL variables.
    pub field: Option<String>,
}

impl Refusal {
    /// A refusal with a sentence more specific than the code's own, without a value of the request.
    pub fn because(code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into(), retry_after: None, field: None }
    }

    /// Sets how long to wait before a retry.
    pub fn after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// The wrong part of the request, if it can be named: see the field `field`.
    pub fn field(&self) -> Option<&str> {
        self.field.as_deref().or(self.code.field())
    }

    /// Sets the wrong part of the request.
    pub fn at(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// How long to wait before a retry, in whole seconds: rounded up, and never 0, which some
    /// clients take for no wait at all (RFC 9110, section 10.2.3).
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
    fn every_code_has_a_name_of_its_own() {
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::parse(code.as_str()), Some(*code));
        }
    }

    #[test]
    fn a_wait_is_rounded_up_and_never_zero() {
        let seconds = |wait| Refusal::from(ErrorCode::RateLimited).after(wait).retry_after_seconds();
        for (nanos, expected) in [(0, 1), (1, 1), (999_999_999, 1), (1_000_000_000, 1), (1_000_000_001, 2)] {
            assert_eq!(seconds(Duration::from_nanos(nanos)), Some(expected));
        }
        assert_eq!(Refusal::from(ErrorCode::RateLimited).retry_after_seconds(), None);
    }

    #[test]
    fn no_retryable_code_is_a_fault_of_the_caller() {
        for code in ErrorCode::ALL {
            assert!(!code.retryable() || code.http_status() >= 429, "{code:?}");
        }
    }
}
