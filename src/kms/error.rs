//! The closed set of errors of a KMS. Each provider maps its own errors to it: by code, and by text
//! only where the provider has no code.

use std::sync::Arc;
use std::time::Duration;

use crate::model::{ErrorCode, Refusal};

use super::Distrust;

/// The class of an error, in our words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KmsErrorClass {
    /// The key's policy does not permit the call.
    AccessDenied,
    /// Our own budget of KMS calls is spent: nothing was sent.
    BudgetSpent,
    /// The credential is expired, revoked or wrong.
    CredentialInvalid,
    /// The answer was not one that the provider's documentation describes, or the provider failed
    /// inside.
    Internal,
    /// This wrapped DEK is not one that the key made, or was altered.
    InvalidWrappedDek,
    /// The key is disabled.
    KeyDisabled,
    /// There is no such key.
    KeyNotFound,
    /// The key waits for its deletion.
    KeyPendingDeletion,
    /// The version that is needed is disabled, destroyed or below the key's minimum.
    KeyVersionUnavailable,
    /// The KMS has refused our credential, and it is not presented again yet: nothing was sent.
    LoginPaused,
    /// The provider does not accept what we are configured to send.
    Misconfigured,
    /// Vault is sealed.
    Sealed,
    /// The provider throttles: too many calls.
    Throttled,
    /// There was no answer within the deadline.
    Timeout,
    /// There was no connection.
    Unreachable,
    /// Another key than the one that we are configured with wrapped this DEK: nothing was sent.
    WrappedByAnotherKey,
}

/// The meaning of an error for the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The KMS refuses: the customer has turned off the key, or our access to it.
    Revoked,
    /// The KMS is out of reach; nothing is known about the key.
    Outage,
    /// This one wrapped DEK is bad; the key works.
    Item,
    /// We are configured wrongly.
    Misconfigured,
    /// The KMS was not asked because our own budget of calls is spent; nothing is known about the
    /// key.
    Unasked,
}

impl KmsErrorClass {
    /// The name in logs and incidents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AccessDenied => "AccessDenied",
            Self::BudgetSpent => "BudgetSpent",
            Self::CredentialInvalid => "CredentialInvalid",
            Self::Internal => "Internal",
            Self::InvalidWrappedDek => "InvalidWrappedDek",
            Self::KeyDisabled => "KeyDisabled",
            Self::KeyNotFound => "KeyNotFound",
            Self::KeyPendingDeletion => "KeyPendingDeletion",
            Self::KeyVersionUnavailable => "KeyVersionUnavailable",
            Self::LoginPaused => "LoginPaused",
            Self::Misconfigured => "Misconfigured",
            Self::Sealed => "Sealed",
            Self::Throttled => "Throttled",
            Self::Timeout => "Timeout",
            Self::Unreachable => "Unreachable",
            Self::WrappedByAnotherKey => "WrappedByAnotherKey",
        }
    }

    /// The meaning of this class for the key.
    pub fn verdict(self) -> Verdict {
        match self {
            Self::AccessDenied
            | Self::CredentialInvalid
            | Self::KeyDisabled
            | Self::KeyNotFound
            | Self::KeyPendingDeletion
            | Self::KeyVersionUnavailable => Verdict::Revoked,
            Self::Internal
            | Self::LoginPaused
            | Self::Sealed
            | Self::Throttled
            | Self::Timeout
            | Self::Unreachable => Verdict::Outage,
            Self::InvalidWrappedDek => Verdict::Item,
            Self::Misconfigured | Self::WrappedByAnotherKey => Verdict::Misconfigured,
            Self::BudgetSpent => Verdict::Unasked,
        }
    }

    /// Whether the same call, made again within its deadline, may succeed.
    pub fn retryable(self) -> bool {
        match self {
            Self::Internal | Self::Throttled | Self::Unreachable => true,
            Self::AccessDenied
            | Self::BudgetSpent
            | Self::CredentialInvalid
            | Self::InvalidWrappedDek
            | Self::KeyDisabled
            | Self::KeyNotFound
            | Self::KeyPendingDeletion
            | Self::KeyVersionUnavailable
            | Self::LoginPaused
            | Self::Misconfigured
            | Self::Sealed
            | Self::Timeout
            | Self::WrappedByAnotherKey => false,
        }
    }

    /// The code that a caller sees. A bad wrapped DEK looks like any other token that does not
    /// open.
    pub fn code(self) -> ErrorCode {
        match self.verdict() {
            Verdict::Revoked => ErrorCode::KmsAccessDenied,
            Verdict::Outage => ErrorCode::KmsUnavailable,
            Verdict::Item => ErrorCode::DecryptFailed,
            Verdict::Misconfigured => ErrorCode::KmsMisconfigured,
            Verdict::Unasked => ErrorCode::RateLimited,
        }
    }
}

/// The stage of a call at which an error occurred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The KMS, in a call of the key.
    Key,
    /// The source of our credential, before the KMS was called.
    Credential,
}

/// A provider's refusal or failure, without any of the provider's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KmsError {
    /// The class, in our words.
    pub class: KmsErrorClass,
    /// The provider's HTTP status, where there was an answer.
    pub http_status: Option<u16>,
    /// The request id by which the provider's log has the call, where it answered.
    pub request_id: Option<Arc<str>>,
    /// The stage at which it occurred.
    pub stage: Stage,
    /// The reason why no TLS connection was made, where that failed.
    pub distrust: Option<Distrust>,
    /// The time until our budget has room for a call again, or until a refused credential is
    /// presented again.
    pub retry_after: Option<Duration>,
}

impl KmsError {
    /// An error without an answer from the provider.
    pub fn local(class: KmsErrorClass) -> Self {
        Self {
            class,
            http_status: None,
            request_id: None,
            stage: Stage::Key,
            distrust: None,
            retry_after: None,
        }
    }

    /// An error of class [`KmsErrorClass::BudgetSpent`]; there is room for a call again after
    /// `wait`.
    pub fn budget_spent(wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..Self::local(KmsErrorClass::BudgetSpent) }
    }

    /// An error of class [`KmsErrorClass::LoginPaused`]; the credential is presented again after
    /// `wait`.
    pub fn login_paused(wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..Self::local(KmsErrorClass::LoginPaused).of_credential() }
    }

    /// An error that came with an answer.
    pub fn answered(class: KmsErrorClass, http_status: u16, request_id: Option<Arc<str>>) -> Self {
        Self { http_status: Some(http_status), request_id, ..Self::local(class) }
    }

    /// The same error, as one that occurred while obtaining a credential.
    pub fn of_credential(self) -> Self {
        Self { stage: Stage::Credential, ..self }
    }

    /// The refusal that the caller sees.
    pub fn refusal(&self) -> Refusal {
        let code = self.class.code();
        if self.class == KmsErrorClass::WrappedByAnotherKey {
            let another = "Another key than the one that is configured wraps the record's DEK.";
            return Refusal::because(code, another);
        }
        match (self.class.verdict(), self.retry_after) {
            (Verdict::Unasked, wait) => {
                let spent = "The KMS calls of this minute are used up for this tenant.";
                Refusal { retry_after: wait, ..Refusal::because(code, spent) }
            }
            (Verdict::Outage, wait) => Refusal { retry_after: wait, ..code.into() },
            (Verdict::Revoked | Verdict::Item | Verdict::Misconfigured, _) => code.into(),
        }
    }
}
