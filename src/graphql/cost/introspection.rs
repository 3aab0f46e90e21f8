//! Estimates the length of an introspection's answer; `schema_tests` compares the numbers with the
//! schema.

/// A node of the schema's description that a selection is made on.
#[derive(Clone, Copy)]
pub(in super::super) struct IntrospectionNode {
    /// About how many objects the node stands for.
    pub(in super::super) objects: usize,
    /// Whether these are all objects of a kind, so that the average length of their lists counts;
    /// otherwise they are a few, each of which may have the longest list.
    all: bool,
}

impl IntrospectionNode {
    /// `__schema` or `__type`.
    pub(in super::super) const ROOT: Self = Self { objects: 1, all: false };

    /// The node that a field of this one leads to.
    pub(in super::super) fn below(self, field: &str) -> Self {
        let (each, all) = match (field, self.all) {
            ("types", _) => (56, true),
            ("fields", true) => (6, true),
            ("fields", false) => (24, false),
            ("args" | "inputFields", true) => (2, true),
            ("args" | "inputFields", false) => (8, false),
            ("enumValues", true) => (6, true),
            ("enumValues", false) => (64, false),
            ("directives", _) => (8, false),
            (_, _) => (1, false),
        };
        Self { objects: self.objects.saturating_mul(each), all }
    }
}

/// About how many bytes the value of a field takes in an answer, with punctuation and without its
/// name.
pub(in super::super) fn bytes_of(field: &str) -> usize {
    match field {
        "description" => 120,
        "locations" => 80,
        "name" => 24,
        _ => 12,
    }
}
