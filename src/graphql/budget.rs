//! How much one request may ask for.

/// How many selections for each item of the largest request; a row of a join has at most eight.
const SELECTIONS_BY_ITEM: usize = 16;
/// How many selections besides.
const SELECTIONS_BESIDE: usize = 4_096;
/// How many values for each item: its arguments, and a context of 64 pairs.
const VALUES_BY_ITEM: usize = 72;
/// How many values besides.
const VALUES_BESIDE: usize = 4_096;

/// What one request may ask for, all of its roots together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    /// Root fields, each element of a list of items in the place of its root.
    pub(super) items: usize,
    /// Selections, as many times as fragments repeat them.
    pub(super) selections: usize,
    /// Values in the text, in the variables, and in all copies that are made of them.
    pub(super) values: usize,
    /// Bytes of text in all copies.
    pub(super) text: usize,
    /// Bytes of an introspection's answer, estimated; Hasura's is estimated at less than three quarters of this, and is 60 KiB.
    pub(super) introspected: usize,
    /// Pages of the audit log, of which a field then stands in a place once; `None` for what is judged and never run.
    pub(super) pages: Option<usize>,
}

impl Budget {
    /// Of a known caller: the largest batch or join (`BYOK_MAX_ITEMS_PER_REQUEST`) in the largest body
    /// (`BYOK_MAX_BODY_BYTES`).
    pub(super) fn of_known(items: usize, body_bytes: usize) -> Self {
        Self {
            items,
            selections: items.saturating_mul(SELECTIONS_BY_ITEM).saturating_add(SELECTIONS_BESIDE),
            values: items.saturating_mul(VALUES_BY_ITEM).saturating_add(VALUES_BESIDE),
            text: body_bytes,
            introspected: Self::OF_UNKNOWN.introspected,
            pages: Self::OF_UNKNOWN.pages,
        }
    }

    /// Of one without identity: Hasura's introspection, of some 200 selections, and a handful of roots.
    pub(super) const OF_UNKNOWN: Self = Self {
        items: 8,
        selections: 512,
        values: 512,
        text: 16 << 10,
        introspected: 3 << 19,
        pages: Some(4),
    };
}
