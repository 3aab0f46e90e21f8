//! The schema as Hasura sees it, by Hasura's own introspection query.

use serde_json::Value;

use super::cost::{Budget, IntrospectionNode, bytes_of, cost_of, operation_of};
use super::parser::parse;
use super::schema::{schema, sdl};

/// The query that Hasura v2 sends, with its fragments inlined: seven levels of `ofType`.
fn introspection_query() -> String {
    let of_type = (0..7).fold("kind name".to_owned(), |inner, _| format!("kind name ofType {{ {inner} }}"));
    let input = format!("name description type {{ {of_type} }} defaultValue");
    format!(
        "query IntrospectionQuery {{ __schema {{
            queryType {{ name }} mutationType {{ name }} subscriptionType {{ name }}
            types {{
                kind name description
                fields(includeDeprecated: true) {{
                    name description args {{ {input} }} type {{ {of_type} }} isDeprecated deprecationReason
                }}
                inputFields {{ {input} }}
                interfaces {{ {of_type} }}
                enumValues(includeDeprecated: true) {{ name description isDeprecated deprecationReason }}
                possibleTypes {{ {of_type} }}
            }}
            directives {{ name description locations args {{ {input} }} }}
        }} }}"
    )
}

async fn introspected() -> Value {
    let query = introspection_query();
    let document = parse(&query, &Budget::ANONYMOUS).unwrap();
    assert!(!cost_of(&document, &Budget::ANONYMOUS).unwrap().needs_identity);
    let mut request = async_graphql::Request::new("").operation_name("IntrospectionQuery");
    request.set_parsed_query(document);
    let answer = serde_json::to_value(schema().execute(request).await).unwrap();
    assert!(answer.get("errors").is_none(), "{}", answer["errors"]);
    answer["data"]["__schema"].clone()
}

fn own_types(schema: &Value) -> impl Iterator<Item = &Value> {
    schema["types"].as_array().unwrap().iter().filter(|it| !it["name"].as_str().unwrap().starts_with("__"))
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default().iter()
}

/// Every field, argument, input field and enum value, with the path to it.
fn members(schema: &Value) -> Vec<(String, &Value)> {
    let mut members = Vec::new();
    for it in own_types(schema) {
        let name = it["name"].as_str().unwrap();
        for member in list(it, "fields").chain(list(it, "inputFields")).chain(list(it, "enumValues")) {
            let path = format!("{name}.{}", member["name"].as_str().unwrap());
            members.extend(
                list(member, "args").map(|argument| (format!("{path}({})", argument["name"]), argument)),
            );
            members.push((path, member));
        }
    }
    members
}

#[test]
fn schema_graphql_is_what_the_server_serves() {
    let committed = include_str!("../../schema.graphql");
    assert!(committed == sdl(), "schema.graphql is out of date: run `byok schema > schema.graphql`");
}

/// What a role may do is asked by this name, so a root without one would be open to everybody's
/// role.
#[tokio::test]
async fn every_root_but_health_has_an_operation() {
    let schema = introspected().await;
    let roots = own_types(&schema).filter(|it| it["name"] == "Query" || it["name"] == "Mutation");
    let roots: Vec<&str> =
        roots.flat_map(|it| list(it, "fields")).map(|field| field["name"].as_str().unwrap()).collect();
    let open: Vec<&str> = roots.iter().copied().filter(|root| operation_of(root).is_none()).collect();
    assert_eq!((roots.len(), open), (14, vec!["byokHealth"]));
}

#[tokio::test]
async fn everything_has_a_description() {
    let schema = introspected().await;
    for it in own_types(&schema).filter(|it| it["name"] != "ID") {
        assert!(it["description"].as_str().is_some_and(|text| !text.is_empty()), "{}", it["name"]);
    }
    for (path, member) in members(&schema) {
        assert!(member["description"].as_str().is_some_and(|text| text.ends_with('.')), "{path}");
    }
}

#[tokio::test]
async fn hasura_takes_the_schema() {
    let schema = introspected().await;
    let kind_of = |name: &str| {
        let found = schema["types"].as_array().unwrap().iter().find(|it| it["name"] == name);
        found.unwrap_or_else(|| panic!("no type {name}"))["kind"].as_str().unwrap().to_owned()
    };
    assert_eq!(kind_of(schema["queryType"]["name"].as_str().unwrap()), "OBJECT");
    assert_eq!(kind_of(schema["mutationType"]["name"].as_str().unwrap()), "OBJECT");
    assert!(schema["subscriptionType"].is_null());
    for it in own_types(&schema) {
        let filled = match it["kind"].as_str().unwrap() {
            "OBJECT" => "fields",
            "INPUT_OBJECT" => "inputFields",
            "ENUM" => "enumValues",
            "SCALAR" => continue,
            kind => panic!("{kind} is not needed here"),
        };
        assert_ne!(list(it, filled).count(), 0, "{}", it["name"]);
    }
    for (path, member) in members(&schema) {
        let Some(mut it) = member.get("type") else { continue };
        while !it["ofType"].is_null() {
            it = &it["ofType"];
        }
        let kind = kind_of(it["name"].as_str().unwrap());
        let is_input = member.get("defaultValue").is_some();
        assert!(!matches!((is_input, kind.as_str()), (true, "OBJECT") | (false, "INPUT_OBJECT")), "{path}");
    }
}

#[tokio::test]
async fn roots_are_nullable_and_arguments_have_no_defaults() {
    let schema = introspected().await;
    for (path, member) in members(&schema) {
        assert!(member.get("defaultValue").is_none_or(Value::is_null), "{path}");
        if path.starts_with("Query.") || path.starts_with("Mutation.") {
            let root = path.split(['.', '(']).nth(1).unwrap();
            assert!(root.starts_with("byok"), "{path}");
            assert!(path.contains('(') || member["type"]["kind"] != "NON_NULL", "{path}");
        }
    }
}

#[tokio::test]
async fn no_type_can_clash_with_one_of_hasuras() {
    let known = ["Query", "Mutation", "String", "Int", "Float", "Boolean", "ID"];
    // Hasura merges scalars of the same name.
    let merged = ["jsonb", "timestamptz", "bigint"];
    for it in own_types(&introspected().await) {
        let name = it["name"].as_str().unwrap();
        let is_merged = merged.contains(&name) && it["kind"] == "SCALAR";
        assert!(known.contains(&name) || is_merged || name.starts_with("Byok"), "{name}");
    }
}

/// Hasura has to introspect without identity.
#[tokio::test]
async fn hasuras_introspection_is_well_within_the_anonymous_budget() {
    let bytes = serde_json::to_vec(&introspected().await).unwrap().len();
    assert!(bytes < (1 << 20) / 4, "{bytes} bytes");
    let budget =
        Budget { introspection_bytes: Budget::ANONYMOUS.introspection_bytes * 3 / 4, ..Budget::ANONYMOUS };
    assert!(
        cost_of(&parse(&introspection_query(), &budget).unwrap(), &budget).is_ok(),
        "there is no room to grow"
    );
}

/// The numbers that the estimate of an introspection's answer uses.
#[tokio::test]
async fn no_estimate_of_introspection_is_below_the_schemas_own_numbers() {
    let schema = introspected().await;
    let all: Vec<&Value> = list(&schema, "types").collect();
    let types = IntrospectionNode::ROOT.below("types");
    assert!(types.objects >= all.len(), "{} types", all.len());
    assert!(IntrospectionNode::ROOT.below("directives").objects >= list(&schema, "directives").count());
    let fields: Vec<&Value> = all.iter().flat_map(|one| list(one, "fields")).collect();
    for (of, at, name) in [
        (&all, types, "fields"),
        (&all, types, "inputFields"),
        (&all, types, "enumValues"),
        (&fields, types.below("fields"), "args"),
    ] {
        let sum: usize = of.iter().map(|one| list(one, name).count()).sum();
        assert!(at.below(name).objects >= sum, "{sum} {name} in all");
        let most = of.iter().map(|one| list(one, name).count()).max().unwrap();
        assert!(IntrospectionNode::ROOT.below(name).objects >= most, "{most} {name} of one type");
    }
    for key in ["description", "name"] {
        let texts = || all.iter().chain(&fields).filter_map(|one| one[key].as_str());
        let average = texts().map(str::len).sum::<usize>() / texts().count();
        assert!(bytes_of(key) >= average, "{average} bytes of {key}");
    }
}
