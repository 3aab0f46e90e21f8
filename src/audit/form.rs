//! The forms of an entry: which of its fields a digest covers. `digest` draws both.

use serde::{Deserialize, Serialize};

/// A form of entries. A log may hold both; the first is read and verified for ever, and written no more.
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
    /// Whether it is the first, which a bundle does not name.
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

    /// The form that a bundle names. The first has no number there: an entry has one spelling.
    fn try_from(number: u8) -> Result<Self, Self::Error> {
        match number {
            2 => Ok(Self::Two),
            _ => Err("no form of entries that has a number"),
        }
    }
}
