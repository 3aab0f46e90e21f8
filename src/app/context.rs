//! Builds a context, for both front ends, from what a caller sent: flat arguments, and a map that
//! must not contradict them. Also checks whether the caller may encrypt or decrypt with that
//! context.

use crate::crypto::{Context, ContextError};
use crate::model::{ErrorCode, Operation, Refusal};
use crate::tenancy::Caller;

use super::App;

/// Builds the context of a call: the map `pairs`, plus `record_id` and `field` as the keys of those
/// names. `pairs` is the JSON value of the argument; if it is absent or null, the map is empty.
///
/// # Errors
/// `CONTEXT_INVALID` if `pairs` is not a flat object of strings, `CONTEXT_TOO_LARGE`, and
/// `CONTEXT_CONFLICT` if a flat argument and the map have different values for one key. A refusal
/// that concerns a flat argument names its key.
pub fn context_of(
    record_id: Option<&str>,
    field: Option<&str>,
    pairs: Option<&serde_json::Value>,
) -> Result<Context, Refusal> {
    let mut context = match pairs {
        None | Some(serde_json::Value::Null) => Context::empty(),
        Some(serde_json::Value::Object(map)) => {
            let pair = |(key, value): (&String, &serde_json::Value)| match value {
                serde_json::Value::String(text) if !has_nul(text) && !has_nul(key) => {
                    Ok((key.clone(), text.clone()))
                }
                _ => Err(Refusal::from(ErrorCode::ContextInvalid)),
            };
            let pairs = map.iter().map(pair).collect::<Result<Vec<_>, _>>()?;
            Context::from_pairs(pairs).map_err(refusal)?
        }
        Some(_) => return Err(ErrorCode::ContextInvalid.into()),
    };
    for (key, flat) in [("record_id", record_id), ("field", field)] {
        let Some(flat) = flat else { continue };
        match context.get(key) {
            Some(same) if same == flat => {}
            Some(_) => return Err(Refusal::from(ErrorCode::ContextConflict).at(key)),
            None if has_nul(flat) => return Err(Refusal::from(ErrorCode::ContextInvalid).at(key)),
            None => {
                context.insert(key.to_owned(), flat.to_owned()).map_err(|error| refusal(error).at(key))?
            }
        }
    }
    Ok(context)
}

impl App {
    /// Checks that the caller may perform this operation with this context, and that the context
    /// names its record if that is required.
    pub(super) fn check_context(
        &self,
        caller: &Caller,
        operation: Operation,
        context: &Context,
    ) -> Result<(), Refusal> {
        if self.limits.require_record_id && context.get("record_id").is_none_or(str::is_empty) {
            return Err(ErrorCode::RecordIdRequired.into());
        }
        if !caller.runtime.settings.policy.allows(&caller.identity, operation, Some(context)) {
            return Err(ErrorCode::PermissionDenied.into());
        }
        Ok(())
    }
}

/// Returns whether the text has a NUL, which PostgreSQL's text type cannot hold. Record ids are
/// stored in the database.
fn has_nul(text: &str) -> bool {
    text.contains('\0')
}

fn refusal(error: ContextError) -> Refusal {
    match error {
        ContextError::DuplicateKey | ContextError::EmptyKey => ErrorCode::ContextInvalid.into(),
        ContextError::TooManyPairs | ContextError::TooLarge => ErrorCode::ContextTooLarge.into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn flat_arguments_are_context_keys() {
        let context = context_of(Some("r"), Some("email"), Some(&json!({"org": "o"}))).unwrap();
        assert_eq!(context.get("record_id"), Some("r"));
        assert_eq!(context.get("field"), Some("email"));
        assert_eq!(context.get("org"), Some("o"));
    }

    #[test]
    fn a_flat_argument_that_says_the_same_is_no_conflict() {
        assert!(context_of(Some("r"), None, Some(&json!({"record_id": "r"}))).is_ok());
        let refused = context_of(Some("r"), None, Some(&json!({"record_id": "s"}))).err().unwrap();
        assert_eq!((refused.code, refused.field()), (ErrorCode::ContextConflict, Some("record_id")));
    }

    #[test]
    fn only_a_flat_object_of_strings_is_a_context() {
        for bad in [
            json!([]),
            json!("x"),
            json!(1),
            json!({"a": 1}),
            json!({"a": {}}),
            json!({"a": null}),
            json!({"": "x"}),
            json!({"a": "\0"}),
        ] {
            assert_eq!(
                context_of(None, None, Some(&bad)).err().unwrap().code,
                ErrorCode::ContextInvalid,
                "{bad}"
            );
        }
        assert!(context_of(None, None, Some(&json!(null))).unwrap().is_empty());
    }

    #[test]
    fn a_context_that_is_too_long_is_refused() {
        let long = json!({"a": "x".repeat(20_000)});
        assert_eq!(context_of(None, None, Some(&long)).err().unwrap().code, ErrorCode::ContextTooLarge);
    }
}
