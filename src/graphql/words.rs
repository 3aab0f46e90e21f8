//! GraphQL enums that are made from the model's own lists, so that the two cannot drift apart.

use std::any::type_name;
use std::borrow::Cow;

use async_graphql::parser::types::Field;
use async_graphql::registry::{Deprecation, MetaEnumValue, MetaType, MetaTypeId, Registry};
use async_graphql::{
    ContextSelectionSet, InputType, InputValueError, InputValueResult, Name, OutputType, Positioned,
    ServerResult, Value,
};

use crate::app::HealthStatus;
use crate::model::{ErrorCode, JobState, Means, Operation, Outcome, Posture, Source};

/// A closed list of the model that is an enum of the schema.
pub(super) trait Vocabulary: Copy + PartialEq + Send + Sync + 'static {
    /// The enum's name.
    const NAME: &'static str;
    /// The enum's description.
    const ABOUT: &'static str;
    /// Every value.
    fn all() -> Vec<Self>;
    /// The value's name, and its description.
    fn word(self) -> (&'static str, &'static str);
}

/// A value of such a list.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Word<T>(pub(super) T);

impl<T: Vocabulary> Word<T> {
    fn register(registry: &mut Registry) -> String {
        registry.create_output_type::<Self, _>(MetaTypeId::Enum, |_| MetaType::Enum {
            name: T::NAME.to_owned(),
            description: Some(T::ABOUT.to_owned()),
            enum_values: T::all()
                .into_iter()
                .map(T::word)
                .map(|(name, about)| (name.to_owned(), value_of(name, about)))
                .collect(),
            visible: None,
            inaccessible: false,
            tags: Vec::new(),
            rust_typename: Some(type_name::<Self>()),
            directive_invocations: Vec::new(),
            requires_scopes: Vec::new(),
        })
    }
}

fn value_of(name: &str, about: &str) -> MetaEnumValue {
    MetaEnumValue {
        name: name.to_owned(),
        description: Some(about.to_owned()),
        deprecation: Deprecation::NoDeprecated,
        visible: None,
        inaccessible: false,
        tags: Vec::new(),
        directive_invocations: Vec::new(),
    }
}

impl<T: Vocabulary> InputType for Word<T> {
    type RawValueType = Self;

    fn type_name() -> Cow<'static, str> {
        T::NAME.into()
    }

    fn create_type_info(registry: &mut Registry) -> String {
        Self::register(registry)
    }

    fn parse(value: Option<Value>) -> InputValueResult<Self> {
        let name = match &value {
            Some(Value::Enum(name)) => name.as_str(),
            Some(Value::String(name)) => name,
            _ => return Err(InputValueError::custom("not a name")),
        };
        let found = T::all().into_iter().find(|value| value.word().0 == name);
        found.map(Word).ok_or_else(|| InputValueError::custom("no such name"))
    }

    fn to_value(&self) -> Value {
        Value::Enum(Name::new(self.0.word().0))
    }

    fn as_raw_value(&self) -> Option<&Self> {
        Some(self)
    }
}

impl<T: Vocabulary> OutputType for Word<T> {
    fn type_name() -> Cow<'static, str> {
        T::NAME.into()
    }

    fn create_type_info(registry: &mut Registry) -> String {
        Self::register(registry)
    }

    async fn resolve(&self, _: &ContextSelectionSet<'_>, _: &Positioned<Field>) -> ServerResult<Value> {
        Ok(self.to_value())
    }
}

impl Vocabulary for ErrorCode {
    const NAME: &'static str = "ByokErrorCode";
    const ABOUT: &'static str =
        "Why a call, or one item of it, was refused. A code is never given a second meaning.";

    fn all() -> Vec<Self> {
        Self::ALL.iter().copied().filter(|code| !code.is_hasuras_own()).collect()
    }

    fn word(self) -> (&'static str, &'static str) {
        (self.as_str(), self.message())
    }
}

impl Vocabulary for Outcome {
    const NAME: &'static str = "ByokOutcome";
    const ABOUT: &'static str = "How a call ended: done, done in part, or the code that it was refused with.";

    fn all() -> Vec<Self> {
        Self::every()
    }

    fn word(self) -> (&'static str, &'static str) {
        let about = match self {
            Self::Ok => "All of it was done.",
            Self::Partial => "Some items were refused, others done.",
            Self::Refused(code) => code.message(),
        };
        (self.as_str(), about)
    }
}

impl Vocabulary for Operation {
    const NAME: &'static str = "ByokOperation";
    const ABOUT: &'static str = "What was asked for, or happened.";

    fn all() -> Vec<Self> {
        Self::ALL.to_vec()
    }

    fn word(self) -> (&'static str, &'static str) {
        match self {
            Self::Encrypt => ("ENCRYPT", "Values were encrypted."),
            Self::Decrypt => ("DECRYPT", "Ciphertexts were decrypted."),
            Self::Reveal => ("REVEAL", "Ciphertexts were decrypted by a query, as for a remote join."),
            Self::Rotate => {
                ("ROTATE", "A rotation was planned, started, joined, paused, resumed or cancelled.")
            }
            Self::Audit => ("AUDIT", "The audit log was read."),
            Self::Health => ("HEALTH", "The key was checked."),
            Self::Incident => {
                ("INCIDENT", "The key was turned off or out of reach, or came back: nobody asked for it.")
            }
            Self::Prune => ("PRUNE", "Old entries were dropped, and their hashes kept."),
            Self::Erase => ("ERASE", "Personal values of entries were erased."),
            Self::Hold => ("HOLD", "The log was put on legal hold, or the hold was lifted."),
            Self::Restore => ("RESTORE", "A new log was begun after the database was restored."),
            Self::Seal => ("SEAL", "The rows of data encryption keys were all bound to a secret."),
        }
    }
}

impl Vocabulary for Means {
    const NAME: &'static str = "ByokMeans";
    const ABOUT: &'static str = "How a caller was recognised.";

    fn all() -> Vec<Self> {
        vec![Self::Jwt, Self::HasuraSecret, Self::AdminToken, Self::Operator]
    }

    fn word(self) -> (&'static str, &'static str) {
        match self {
            Self::Jwt => ("JWT", "By a JSON Web Token that this server verified."),
            Self::HasuraSecret => {
                ("HASURA_SECRET", "By session variables beside the remote schema's shared secret.")
            }
            Self::AdminToken => ("ADMIN_TOKEN", "By a named admin token."),
            Self::Operator => {
                ("OPERATOR", "At the command line, on the machine that holds the configuration.")
            }
        }
    }
}

impl Vocabulary for Source {
    const NAME: &'static str = "ByokKeySource";
    const ABOUT: &'static str = "Where the data encryption key of an item came from.";

    fn all() -> Vec<Self> {
        vec![Self::Cache, Self::Kms]
    }

    fn word(self) -> (&'static str, &'static str) {
        match self {
            Self::Cache => ("CACHE", "From memory: no call of the KMS was made for it."),
            Self::Kms => ("KMS", "From the KMS, in this call."),
        }
    }
}

impl Vocabulary for JobState {
    const NAME: &'static str = "ByokRotationState";
    const ABOUT: &'static str = "Where a rotation stands.";

    fn all() -> Vec<Self> {
        Self::ALL.to_vec()
    }

    fn word(self) -> (&'static str, &'static str) {
        let about = match self {
            Self::Running => "It has work left.",
            Self::Paused => "It has work left, and waits until it is resumed.",
            Self::Done => "It went through all keys.",
            Self::Cancelled => "It was ended before it went through all keys; what it re-wrapped stays so.",
        };
        (self.as_str(), about)
    }
}

impl Vocabulary for HealthStatus {
    const NAME: &'static str = "ByokHealthStatus";
    const ABOUT: &'static str = "Whether the customer's key can be used now.";

    fn all() -> Vec<Self> {
        vec![Self::Ok, Self::Degraded, Self::Revoked]
    }

    fn word(self) -> (&'static str, &'static str) {
        let about = match self {
            Self::Ok => "A key was wrapped and unwrapped just now.",
            Self::Degraded => "The KMS, or the database, is out of reach.",
            Self::Revoked => "The KMS refuses the use of the key.",
        };
        (self.as_str(), about)
    }
}

impl Vocabulary for Posture {
    const NAME: &'static str = "ByokPosture";
    const ABOUT: &'static str = "Whether a key version can be used, as the watch over it knows.";

    fn all() -> Vec<Self> {
        Self::ALL.to_vec()
    }

    fn word(self) -> (&'static str, &'static str) {
        match self {
            Self::Active => ("ACTIVE", "It was shown to work."),
            Self::Degraded => ("DEGRADED", "The KMS is out of reach."),
            Self::Revoked => ("REVOKED", "The KMS refuses the use of the key."),
        }
    }
}
