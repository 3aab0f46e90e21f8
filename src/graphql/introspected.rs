//! How long an answer of introspection will be, estimated; `schema_tests` holds the numbers against the schema.

/// Where in the schema's description a selection stands.
#[derive(Clone, Copy)]
pub(super) struct Introspected {
    /// About how many objects it is made of.
    pub(super) objects: usize,
    /// Whether those are all of a kind, so that each has the average of what it lists; else they are a few, each of which may
    /// have the most.
    all: bool,
}

impl Introspected {
    /// What `__schema` or `__type` is made of.
    pub(super) const ROOT: Self = Self { objects: 1, all: false };

    /// What a field of it is made of.
    pub(super) fn below(self, field: &str) -> Self {
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

/// About how many bytes a field of introspection is in an answer, beside its name: punctuation and value.
pub(super) fn bytes_of(field: &str) -> usize {
    match field {
        "description" => 120,
        "locations" => 80,
        "name" => 24,
        _ => 12,
    }
}
