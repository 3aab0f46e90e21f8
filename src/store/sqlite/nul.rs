//! Finds NULs in a batch. PostgreSQL accepts no NUL in a text, and SQLite's functions stop at one.

use super::super::{Batch, Change, EntryRow, PersonalValue};

/// Returns whether a text of the batch that a caller chose has a NUL.
pub(super) fn contains_nul(batch: &Batch) -> bool {
    let in_text = |text: &str| text.contains('\0');
    let in_entry = |entry: &EntryRow| {
        let values = [entry.user.as_ref(), Some(&entry.request)].into_iter().flatten();
        values.filter_map(|salted| salted.value.as_deref()).chain([&*entry.role]).any(in_text)
            || in_text(&entry.records)
            || escapes_nul(&entry.records)
    };
    let in_change = |change: &Change| match change {
        Change::CreateTenant(tenant) => in_text(&tenant.name),
        Change::InsertDek(row) => row.record_id.as_deref().is_some_and(in_text),
        Change::Erase { personal: PersonalValue::User(text) | PersonalValue::Record(text), .. } => {
            in_text(text)
        }
        Change::EraseFromDeks { record_id, .. } => in_text(record_id),
        // Names that come from the KMS or from byok.
        Change::Rewrap { .. }
        | Change::SealDeks(_)
        | Change::RecordIncident(_)
        | Change::StartJob(_)
        | Change::LeaseJob { .. }
        | Change::AdvanceJob { .. }
        | Change::CommandJob { .. }
        | Change::Watch { .. }
        | Change::ExtendWatch { .. }
        | Change::Retire { .. }
        | Change::UpdateProof { .. }
        | Change::AddCheckpoint { .. }
        | Change::Publish { .. }
        | Change::OpenLog { .. }
        | Change::Hold { .. }
        | Change::RecordExport { .. }
        | Change::AddTiles { .. }
        | Change::OpenGroup { .. }
        | Change::AddFilters { .. }
        | Change::Announce { .. }
        | Change::Stream { .. } => false,
    };
    batch.entries.iter().any(in_entry) || batch.changes.iter().any(in_change)
}

/// Returns whether a JSON text contains `\u0000`, and not only an escaped backslash before `u0000`.
fn escapes_nul(json: &str) -> bool {
    json.match_indices("\\u0000")
        .any(|(at, _)| json[..at].bytes().rev().take_while(|byte| *byte == b'\\').count().is_multiple_of(2))
}

#[cfg(test)]
mod tests {
    use super::escapes_nul;

    #[test]
    fn an_escaped_nul_is_told_from_an_escaped_backslash() {
        assert!(escapes_nul(r#"["a\u0000"]"#));
        assert!(escapes_nul(r#"["a\\\u0000"]"#));
        assert!(!escapes_nul(r#"["a\\u0000"]"#));
    }
}
