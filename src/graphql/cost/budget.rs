//! The budget of one request.

/// Selections for each item of the largest request; a row of a join has at most eight.
const SELECTIONS_PER_ITEM: usize = 16;
/// Selections in addition.
const EXTRA_SELECTIONS: usize = 4_096;
/// Values for each item: its arguments, and a context of 64 pairs.
const VALUES_PER_ITEM: usize = 72;
/// Values in addition.
const EXTRA_VALUES: usize = 4_096;

/// The most that one request may ask for, all of its root fields together.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Budget {
    /// Root fields. For a root with a list of items, each element counts instead of the root.
    pub(in super::super) items: usize,
    /// Selections, those of a fragment once for each use.
    pub(in super::super) selections: usize,
    /// Values in the text, in the variables, and in all copies of them.
    pub(in super::super) values: usize,
    /// Bytes of text in all copies.
    pub(in super::super) text: usize,
    /// Bytes of an introspection's answer, estimated. For Hasura's introspection the estimate is
    /// below three quarters of this; the answer is 60 KiB.
    pub(in super::super) introspection_bytes: usize,
    /// Pages of the audit log; with a limit, each field of a page may also be selected only once in
    /// its object. `None` for documents that are validated and never run.
    pub(in super::super) pages: Option<usize>,
}

impl Budget {
    /// The budget of a caller with an identity: the largest batch or join
    /// (`BYOK_MAX_ITEMS_PER_REQUEST`) in the largest body (`BYOK_MAX_BODY_BYTES`).
    pub(in super::super) fn authenticated(items: usize, body_bytes: usize) -> Self {
        Self {
            items,
            selections: items.saturating_mul(SELECTIONS_PER_ITEM).saturating_add(EXTRA_SELECTIONS),
            values: items.saturating_mul(VALUES_PER_ITEM).saturating_add(EXTRA_VALUES),
            text: body_bytes,
            introspection_bytes: Self::ANONYMOUS.introspection_bytes,
            pages: Self::ANONYMOUS.pages,
        }
    }

    /// The budget of a caller without identity: Hasura's introspection, of some 200 selections, and
    /// a few root fields.
    pub(in super::super) const ANONYMOUS: Self = Self {
        items: 8,
        selections: 512,
        values: 512,
        text: 16 << 10,
        introspection_bytes: 3 << 19,
        pages: Some(4),
    };
}
