//! The types of the schema, read by its own introspection.

use std::collections::{BTreeMap, HashMap, HashSet};

use async_graphql::Name;
use async_graphql::parser::types::{BaseType, OperationType, Type};
use futures_util::FutureExt as _;
use serde::Deserialize;

use super::super::schema::ByokSchema;

/// The introspection query, with six levels of list and non-null: more than any type of the schema
/// has.
const INTROSPECTION: &str = "{ __schema {
    queryType { name } mutationType { name }
    types { kind name fields { name args { ...I } type { ...T } } inputFields { ...I } enumValues { name } }
    directives { name locations args { ...I } }
} __type(name: \"Query\") { name } }
fragment I on __InputValue { name type { ...T } defaultValue }
fragment T on __Type { kind name ofType { kind name ofType { kind name ofType { kind name ofType { kind name ofType { kind name } } } } } }";

/// The types of a schema without interfaces and unions.
pub(super) struct Types {
    types: HashMap<String, Definition>,
    directives: HashMap<String, DirectiveDefinition>,
    query: String,
    mutation: Option<String>,
}

/// The definition of a type.
pub(super) enum Definition {
    /// A scalar.
    Scalar,
    /// An enum with these names.
    Enum(HashSet<String>),
    /// An input object.
    Input(Inputs),
    /// An object of the answer.
    Object(HashMap<String, FieldDefinition>),
}

/// Arguments, or the fields of an input object.
pub(super) type Inputs = BTreeMap<String, InputDefinition>;

/// An argument, or a field of an input object.
pub(super) struct InputDefinition {
    pub(super) kind: Type,
    pub(super) has_default: bool,
}

impl InputDefinition {
    /// Whether a value is required.
    pub(super) fn is_required(&self) -> bool {
        !self.kind.nullable && !self.has_default
    }
}

/// A field of the answer.
pub(super) struct FieldDefinition {
    /// The name of the field's type, without lists.
    pub(super) type_name: String,
    pub(super) arguments: Inputs,
}

/// A directive.
pub(super) struct DirectiveDefinition {
    pub(super) locations: Vec<String>,
    pub(super) arguments: Inputs,
}

impl Types {
    /// The types of this schema.
    pub(super) fn of(schema: &ByokSchema) -> Self {
        let answer = schema.execute(INTROSPECTION).now_or_never().expect("introspection never waits");
        assert!(answer.errors.is_empty(), "the introspection query is valid");
        let Answer { schema } =
            async_graphql::from_value(answer.data).expect("the answer has the shape of the query");
        let mut types: HashMap<_, _> =
            schema.types.into_iter().map(|json| (json.name.clone(), json.into())).collect();
        let query = schema.query_type.name;
        if let Some(Definition::Object(fields)) = types.get_mut(&query) {
            let root =
                |type_name: &str, arguments| FieldDefinition { type_name: type_name.to_owned(), arguments };
            let text = Type { base: BaseType::Named(Name::new("String")), nullable: false };
            let name = InputDefinition { kind: text, has_default: false };
            fields.insert("__schema".to_owned(), root("__Schema", Inputs::new()));
            fields.insert("__type".to_owned(), root("__Type", Inputs::from([("name".to_owned(), name)])));
        }
        let directive = |json: DirectiveJson| {
            (json.name, DirectiveDefinition { locations: json.locations, arguments: inputs(json.args) })
        };
        let directives = schema.directives.into_iter().map(directive).collect();
        Self { types, directives, query, mutation: schema.mutation_type.map(|root| root.name) }
    }

    /// The type of this name.
    pub(super) fn get(&self, name: &str) -> Option<&Definition> {
        self.types.get(name)
    }

    /// The directive of this name.
    pub(super) fn directive(&self, name: &str) -> Option<&DirectiveDefinition> {
        self.directives.get(name)
    }

    /// The root type of an operation; `None` if the schema has no such operations.
    pub(super) fn root(&self, operation: OperationType) -> Option<&str> {
        match operation {
            OperationType::Query => Some(&self.query),
            OperationType::Mutation => self.mutation.as_deref(),
            OperationType::Subscription => None,
        }
    }
}

/// The name of a type without its lists.
pub(super) fn name_of(kind: &Type) -> &str {
    match &kind.base {
        BaseType::Named(name) => name,
        BaseType::List(inner) => name_of(inner),
    }
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "__schema")]
    schema: SchemaJson,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SchemaJson {
    query_type: Named,
    mutation_type: Option<Named>,
    types: Vec<TypeJson>,
    directives: Vec<DirectiveJson>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TypeJson {
    name: String,
    fields: Option<Vec<FieldJson>>,
    input_fields: Option<Vec<InputJson>>,
    enum_values: Option<Vec<Named>>,
}

#[derive(Deserialize)]
struct FieldJson {
    name: String,
    args: Vec<InputJson>,
    #[serde(rename = "type")]
    kind: Reference,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct InputJson {
    name: String,
    #[serde(rename = "type")]
    kind: Reference,
    default_value: Option<String>,
}

#[derive(Deserialize)]
struct DirectiveJson {
    name: String,
    locations: Vec<String>,
    args: Vec<InputJson>,
}

/// A type where it is used.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reference {
    kind: String,
    name: Option<String>,
    of_type: Option<Box<Reference>>,
}

impl From<TypeJson> for Definition {
    fn from(json: TypeJson) -> Self {
        let TypeJson { fields, input_fields, enum_values, .. } = json;
        match (fields, input_fields, enum_values) {
            (Some(fields), ..) => {
                let field = |json: FieldJson| {
                    let type_name = name_of(&Type::from(json.kind)).to_owned();
                    (json.name, FieldDefinition { type_name, arguments: inputs(json.args) })
                };
                Self::Object(fields.into_iter().map(field).collect())
            }
            (None, Some(fields), _) => Self::Input(inputs(fields)),
            (None, None, Some(values)) => Self::Enum(values.into_iter().map(|value| value.name).collect()),
            (None, None, None) => Self::Scalar,
        }
    }
}

impl From<Reference> for Type {
    fn from(json: Reference) -> Self {
        let inner = json.of_type.map(|inner| Self::from(*inner));
        match (json.kind.as_str(), inner) {
            ("NON_NULL", Some(inner)) => Self { nullable: false, ..inner },
            ("LIST", Some(inner)) => Self { base: BaseType::List(Box::new(inner)), nullable: true },
            _ => Self { base: BaseType::Named(Name::new(json.name.unwrap_or_default())), nullable: true },
        }
    }
}

fn inputs(json: Vec<InputJson>) -> Inputs {
    let input = |json: InputJson| {
        (json.name, InputDefinition { kind: json.kind.into(), has_default: json.default_value.is_some() })
    };
    json.into_iter().map(input).collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::schema::schema;
    use super::*;

    #[test]
    fn the_types_are_those_of_the_schema() {
        let types = Types::of(&schema());
        let Some(Definition::Object(roots)) = types.get("Mutation") else { panic!("it is an object") };
        let many = &roots["byokEncryptMany"];
        assert_eq!(many.type_name, "ByokEncryptResult");
        assert_eq!(many.arguments["items"].kind.to_string(), "[ByokEncryptItem!]!");
        assert!(many.arguments["items"].is_required());
        let Some(Definition::Object(roots)) = types.get("Query") else { panic!("it is an object") };
        assert!(roots.contains_key("__schema") && roots["__type"].arguments["name"].is_required());
        let Some(Definition::Object(fields)) = types.get("__Type") else { panic!("it is an object") };
        assert!(!fields["fields"].arguments["includeDeprecated"].is_required());
        assert!(matches!(types.get("jsonb"), Some(Definition::Scalar)));
        assert!(
            matches!(types.get("ByokEncoding"), Some(Definition::Enum(names)) if names.contains("BASE64"))
        );
        assert!(types.directive("skip").is_some_and(|skip| skip.arguments["if"].is_required()));
        assert_eq!(types.root(OperationType::Subscription), None);
    }
}
