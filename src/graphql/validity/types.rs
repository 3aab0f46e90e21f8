//! What there is in the schema, as its own introspection tells it.

use std::collections::{BTreeMap, HashMap, HashSet};

use async_graphql::Name;
use async_graphql::parser::types::{BaseType, OperationType, Type};
use futures_util::FutureExt as _;
use serde::Deserialize;

use super::super::schema::ByokSchema;

/// Six levels of lists and nulls: more than any type of ours has.
const ASKED: &str = "{ __schema {
    queryType { name } mutationType { name }
    types { kind name fields { name args { ...I } type { ...T } } inputFields { ...I } enumValues { name } }
    directives { name locations args { ...I } }
} __type(name: \"Query\") { name } }
fragment I on __InputValue { name type { ...T } defaultValue }
fragment T on __Type { kind name ofType { kind name ofType { kind name ofType { kind name ofType { kind name ofType { kind name } } } } } }";

/// The types of a schema. It has neither interfaces nor unions.
pub(super) struct Types {
    types: HashMap<String, Definition>,
    directives: HashMap<String, DirectiveOf>,
    query: String,
    mutation: Option<String>,
}

/// What a type is.
pub(super) enum Definition {
    /// A value that is read by its own rule.
    Scalar,
    /// One of these names.
    Enum(HashSet<String>),
    /// An object of a document, or of variables.
    Input(Inputs),
    /// An object of an answer.
    Object(HashMap<String, FieldOf>),
}

/// Arguments, or the fields of an input object.
pub(super) type Inputs = BTreeMap<String, InputOf>;

/// An argument, or a field of an input object.
pub(super) struct InputOf {
    pub(super) kind: Type,
    pub(super) has_default: bool,
}

impl InputOf {
    /// Whether it must be given.
    pub(super) fn is_required(&self) -> bool {
        !self.kind.nullable && !self.has_default
    }
}

/// A field of an answer.
pub(super) struct FieldOf {
    /// The name of its type, without lists.
    pub(super) type_name: String,
    pub(super) arguments: Inputs,
}

/// A directive.
pub(super) struct DirectiveOf {
    pub(super) places: Vec<String>,
    pub(super) arguments: Inputs,
}

impl Types {
    /// Those of this schema.
    pub(super) fn of(schema: &ByokSchema) -> Self {
        let answer = schema.execute(ASKED).now_or_never().expect("introspection waits for nothing");
        assert!(answer.errors.is_empty(), "our own question about our own schema is valid");
        let Answer { schema } = async_graphql::from_value(answer.data).expect("it is of the shape asked for");
        let mut types: HashMap<_, _> =
            schema.types.into_iter().map(|told| (told.name.clone(), told.into())).collect();
        let query = schema.query_type.name;
        if let Some(Definition::Object(fields)) = types.get_mut(&query) {
            let root = |type_name: &str, arguments| FieldOf { type_name: type_name.to_owned(), arguments };
            let text = Type { base: BaseType::Named(Name::new("String")), nullable: false };
            let name = InputOf { kind: text, has_default: false };
            fields.insert("__schema".to_owned(), root("__Schema", Inputs::new()));
            fields.insert("__type".to_owned(), root("__Type", Inputs::from([("name".to_owned(), name)])));
        }
        let directive = |told: ToldDirective| {
            (told.name, DirectiveOf { places: told.locations, arguments: inputs(told.args) })
        };
        let directives = schema.directives.into_iter().map(directive).collect();
        Self { types, directives, query, mutation: schema.mutation_type.map(|root| root.name) }
    }

    /// The type of this name.
    pub(super) fn get(&self, name: &str) -> Option<&Definition> {
        self.types.get(name)
    }

    /// The directive of this name.
    pub(super) fn directive(&self, name: &str) -> Option<&DirectiveOf> {
        self.directives.get(name)
    }

    /// The type that an operation's roots are of, where there are such operations.
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
    schema: Told,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    query_type: Named,
    mutation_type: Option<Named>,
    types: Vec<ToldType>,
    directives: Vec<ToldDirective>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ToldType {
    name: String,
    fields: Option<Vec<ToldField>>,
    input_fields: Option<Vec<ToldInput>>,
    enum_values: Option<Vec<Named>>,
}

#[derive(Deserialize)]
struct ToldField {
    name: String,
    args: Vec<ToldInput>,
    #[serde(rename = "type")]
    kind: Reference,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ToldInput {
    name: String,
    #[serde(rename = "type")]
    kind: Reference,
    default_value: Option<String>,
}

#[derive(Deserialize)]
struct ToldDirective {
    name: String,
    locations: Vec<String>,
    args: Vec<ToldInput>,
}

/// A type where it is used.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reference {
    kind: String,
    name: Option<String>,
    of_type: Option<Box<Reference>>,
}

impl From<ToldType> for Definition {
    fn from(told: ToldType) -> Self {
        let ToldType { fields, input_fields, enum_values, .. } = told;
        match (fields, input_fields, enum_values) {
            (Some(fields), ..) => {
                let field = |told: ToldField| {
                    let type_name = name_of(&Type::from(told.kind)).to_owned();
                    (told.name, FieldOf { type_name, arguments: inputs(told.args) })
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
    fn from(told: Reference) -> Self {
        let inner = told.of_type.map(|inner| Self::from(*inner));
        match (told.kind.as_str(), inner) {
            ("NON_NULL", Some(inner)) => Self { nullable: false, ..inner },
            ("LIST", Some(inner)) => Self { base: BaseType::List(Box::new(inner)), nullable: true },
            _ => Self { base: BaseType::Named(Name::new(told.name.unwrap_or_default())), nullable: true },
        }
    }
}

fn inputs(told: Vec<ToldInput>) -> Inputs {
    let input = |told: ToldInput| {
        (told.name, InputOf { kind: told.kind.into(), has_default: told.default_value.is_some() })
    };
    told.into_iter().map(input).collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::schema::schema;
    use super::*;

    #[test]
    fn types_are_told_as_the_schema_has_them() {
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
