//! The forms of an entry, which determine the fields that a digest covers. `digest` describes both.

use serde::{Deserialize, Serialize};

/// A form of entries. A log may contain both. The first is read and verified for ever, but no
/// longer written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub(crate) enum EntryForm {
    /// `byok-audit-entry/1`
    #[default]
    One,
    /// `byok-audit-entry/2`
    Two,
}

impl EntryForm {
    /// Returns whether it is the first form, which a bundle does not name.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if passes a reference")]
    pub(crate) fn is_one(&self) -> bool {
        *self == Self::One
    }
}

impl From<EntryForm> for u8 {
    fn from(form: EntryForm) -> Self {
        match form {
            EntryForm::One => 1,
            EntryForm::Two => 2,
        }
    }
}

impl TryFrom<u8> for EntryForm {
    type Error = &'static str;

    /// Returns the form that a bundle names. The first form has no number there, so that an entry
    /// has one spelling.
    fn try_from(number: u8) -> Result<Self, Self::Error> {
        match number {
            2 => Ok(Self::Two),
            _ => Err("no form of entries that has a number"),
        }
    }
}
