//! GraphQL enums generated from the enums of the model, so that the two cannot drift apart.

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

/// An enum of the model that is an enum of the schema.
pub(super) trait ModelEnum: Copy + PartialEq + Send + Sync + 'static {
    /// The enum's name.
    const NAME: &'static str;
    /// The enum's description.
    const DESCRIPTION: &'static str;
    /// Every value.
    fn all() -> Vec<Self>;
    /// The value's name and description.
    fn describe(self) -> (&'static str, &'static str);
}

/// A value of such an enum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct EnumValue<T>(pub(super) T);

impl<T: ModelEnum> EnumValue<T> {
    fn register(registry: &mut Registry) -> String {
        registry.create_output_type::<Self, _>(MetaTypeId::Enum, |_| MetaType::Enum {
            name: T::NAME.to_owned(),
            description: Some(T::DESCRIPTION.to_owned()),
            enum_values: T::all()
                .into_iter()
                .map(T::describe)
                .map(|(name, description)| (name.to_owned(), meta_value(name, description)))
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

fn meta_value(name: &str, description: &str) -> MetaEnumValue {
    MetaEnumValue {
        name: name.to_owned(),
        description: Some(description.to_owned()),
        deprecation: Deprecation::NoDeprecated,
        visible: None,
        inaccessible: false,
        tags: Vec::new(),
        directive_invocations: Vec::new(),
    }
}

impl<T: ModelEnum> InputType for EnumValue<T> {
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
        let found = T::all().into_iter().find(|value| value.describe().0 == name);
        found.map(EnumValue).ok_or_else(|| InputValueError::custom("no such name"))
    }

    fn to_value(&self) -> Value {
        Value::Enum(Name::new(self.0.describe().0))
    }

    fn as_raw_value(&self) -> Option<&Self> {
        Some(self)
    }
}

impl<T: ModelEnum> OutputType for EnumValue<T> {
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

impl ModelEnum for ErrorCode {
    const NAME: &'static str = "ByokErrorCode";
    const DESCRIPTION: &'static str =
        "Why a call, or one item of it, was refused. The meaning of a code never changes.";

    fn all() -> Vec<Self> {
        Self::ALL.iter().copied().filter(|code| !code.is_hasuras_own()).collect()
    }

    fn describe(self) -> (&'static str, &'static str) {
        (self.as_str(), self.message())
    }
}

impl ModelEnum for Outcome {
    const NAME: &'static str = "ByokOutcome";
    const DESCRIPTION: &'static str =
        "The result of a call: done, done in part, or the code it was refused with.";

    fn all() -> Vec<Self> {
        Self::every()
    }

    fn describe(self) -> (&'static str, &'static str) {
        let description = match self {
            Self::Ok => "All items were done.",
            Self::Partial => "Some items were refused, others done.",
            Self::Refused(code) => code.message(),
        };
        (self.as_str(), description)
    }
}

impl ModelEnum for Operation {
    const NAME: &'static str = "ByokOperation";
    const DESCRIPTION: &'static str = "The operation of a call, or the event, that an entry records.";

    fn all() -> Vec<Self> {
        Self::ALL.to_vec()
    }

    fn describe(self) -> (&'static str, &'static str) {
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
                ("INCIDENT", "The key was turned off, was out of reach, or came back. No call asked for it.")
            }
            Self::Prune => ("PRUNE", "Old entries were deleted, and their hashes kept."),
            Self::Erase => ("ERASE", "Personal values of entries were erased."),
            Self::Hold => ("HOLD", "The log was put on legal hold, or the hold was lifted."),
            Self::Restore => ("RESTORE", "A new log was begun after the database was restored."),
            Self::Seal => ("SEAL", "All rows of data encryption keys were authenticated with a secret."),
        }
    }
}

impl ModelEnum for Means {
    const NAME: &'static str = "ByokMeans";
    const DESCRIPTION: &'static str = "How a caller was recognised.";

    fn all() -> Vec<Self> {
        vec![Self::Jwt, Self::HasuraSecret, Self::AdminToken, Self::Operator]
    }

    fn describe(self) -> (&'static str, &'static str) {
        match self {
            Self::Jwt => ("JWT", "By a JSON Web Token that this server verified."),
            Self::HasuraSecret => {
                ("HASURA_SECRET", "By session variables sent with the remote schema's shared secret.")
            }
            Self::AdminToken => ("ADMIN_TOKEN", "By a named admin token."),
            Self::Operator => ("OPERATOR", "At the command line of a machine that holds the configuration."),
        }
    }
}

impl ModelEnum for Source {
    const NAME: &'static str = "ByokKeySource";
    const DESCRIPTION: &'static str = "Where the data encryption key of an item came from.";

    fn all() -> Vec<Self> {
        vec![Self::Cache, Self::Kms]
    }

    fn describe(self) -> (&'static str, &'static str) {
        match self {
            Self::Cache => ("CACHE", "From memory, without a call to the KMS."),
            Self::Kms => ("KMS", "From the KMS, during this call."),
        }
    }
}

impl ModelEnum for JobState {
    const NAME: &'static str = "ByokRotationState";
    const DESCRIPTION: &'static str = "The state of a rotation.";

    fn all() -> Vec<Self> {
        Self::ALL.to_vec()
    }

    fn describe(self) -> (&'static str, &'static str) {
        let description = match self {
            Self::Running => "It has work left.",
            Self::Paused => "It has work left and waits to be resumed.",
            Self::Done => "It went through all data keys.",
            Self::Cancelled => {
                "It was ended before it went through all data keys; those it re-wrapped stay re-wrapped."
            }
        };
        (self.as_str(), description)
    }
}

impl ModelEnum for HealthStatus {
    const NAME: &'static str = "ByokHealthStatus";
    const DESCRIPTION: &'static str = "Whether the customer's key can be used now.";

    fn all() -> Vec<Self> {
        vec![Self::Ok, Self::Degraded, Self::Revoked]
    }

    fn describe(self) -> (&'static str, &'static str) {
        let description = match self {
            Self::Ok => "A data key was wrapped and unwrapped just now.",
            Self::Degraded => "The KMS, or the database, is out of reach.",
            Self::Revoked => "The KMS refuses the use of the key.",
        };
        (self.as_str(), description)
    }
}

impl ModelEnum for Posture {
    const NAME: &'static str = "ByokPosture";
    const DESCRIPTION: &'static str = "Whether a key version can be used, according to the last probes.";

    fn all() -> Vec<Self> {
        Self::ALL.to_vec()
    }

    fn describe(self) -> (&'static str, &'static str) {
        match self {
            Self::Active => ("ACTIVE", "The key was shown to work."),
            Self::Degraded => ("DEGRADED", "The KMS is out of reach."),
            Self::Revoked => ("REVOKED", "The KMS refuses the use of the key."),
        }
    }
}
