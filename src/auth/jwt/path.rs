//! JSON paths in the small language of Hasura's JWT configuration.
//!
//! Not RFC 9535: Hasura's paths name one node, without filters or wildcards, and may be written in
//! forms that the RFC does not have (no leading `$`, a dot before a bracket).

use serde_json::Value;

/// A path such as `$`, `$.hasura.claims`, `$.roles[0]` or `$.["https://example.com/claims"].user`.
#[derive(Debug)]
pub(super) struct Path {
    text: String,
    steps: Vec<Step>,
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

impl Path {
    /// Parses `$` and steps of the forms `.name`, `[0]`, `["name"]` and `['name']`. The `$` may be
    /// omitted before a name, and a dot may stand before a bracket. A name without quotes holds
    /// letters, digits, `_`, `-` and `$`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut steps = Vec::new();
        let mut rest = match text.strip_prefix('$') {
            Some(rest) if rest.is_empty() || rest.starts_with(['.', '[']) => rest,
            _ => {
                let (name, rest) = bare_name(text)?;
                steps.push(Step::Key(name));
                rest
            }
        };
        while !rest.is_empty() {
            let after_dot = rest.strip_prefix('.');
            let (step, next) = match after_dot.unwrap_or(rest).strip_prefix('[') {
                Some(inside) => bracket(inside)?,
                None => {
                    let (name, next) = bare_name(after_dot?)?;
                    (Step::Key(name), next)
                }
            };
            steps.push(step);
            rest = next;
        }
        Some(Self { text: text.to_owned(), steps })
    }

    /// The path as written.
    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// The value at the path.
    pub(super) fn find<'v>(&self, root: &'v Value) -> Option<&'v Value> {
        self.steps.iter().try_fold(root, |value, step| match step {
            Step::Key(key) => value.as_object()?.get(key),
            Step::Index(index) => value.as_array()?.get(*index),
        })
    }

    /// Sets the value at the path to `leaf`, creating the objects that lead to it. If the value
    /// there and `leaf` are both objects, they are merged. `None` if the path leads through a list
    /// or another value that is not an object.
    pub(super) fn put(&self, root: &mut Value, leaf: Value) -> Option<()> {
        let mut node = root;
        for step in &self.steps {
            let Step::Key(key) = step else { return None };
            node = node.as_object_mut()?.entry(key).or_insert_with(|| Value::Object(serde_json::Map::new()));
        }
        match (node, leaf) {
            (Value::Object(object), Value::Object(more)) => object.extend(more),
            (node, leaf) => *node = leaf,
        }
        Some(())
    }
}

fn bare_name(text: &str) -> Option<(String, &str)> {
    let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '$');
    let (name, rest) = text.split_at(text.find(|c| !is_part(c)).unwrap_or(text.len()));
    let starts_well = name.starts_with(|c: char| c.is_alphabetic() || matches!(c, '_' | '$'));
    starts_well.then(|| (name.to_owned(), rest))
}

/// Parses what follows a `[`, up to and including its `]`.
fn bracket(inside: &str) -> Option<(Step, &str)> {
    if let Some(quote @ ('"' | '\'')) = inside.chars().next() {
        let (name, rest) = inside[1..].split_once(quote)?;
        return Some((Step::Key(name.to_owned()), rest.strip_prefix(']')?));
    }
    let (digits, rest) = inside.split_once(']')?;
    let all_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    Some((Step::Index(all_digits.then(|| digits.parse().ok())??), rest))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_path_finds_the_one_node_that_it_names() {
        let root = json!({"hasura": {"claims": 1, "a-b_c$": 2}, "https://x.y/z": {"user": {"id": 3}}, "l": [4, [5]]});
        for (path, found) in [
            ("$", Some(root.clone())),
            ("$.hasura.claims", Some(json!(1))),
            ("hasura.claims", Some(json!(1))),
            ("$.hasura.a-b_c$", Some(json!(2))),
            ("$.hasura['claims']", Some(json!(1))),
            (r#"$.["https://x.y/z"].user.id"#, Some(json!(3))),
            (r#"$["https://x.y/z"]['user'].id"#, Some(json!(3))),
            ("$.l[0]", Some(json!(4))),
            ("$.l[1][0]", Some(json!(5))),
            ("$.l[2]", None),
            ("$.l.x", None),
            ("$.hasura[0]", None),
            ("$.nowhere", None),
        ] {
            assert_eq!(Path::parse(path).unwrap().find(&root), found.as_ref(), "{path}");
        }
    }

    #[test]
    fn invalid_paths_are_refused() {
        for text in [
            "", "$.", "$..a", ".a", "$a.", "a b", "$.a[", "$.a[]", "$.a[-1]", "$.a[*]", "$.a['b]", "$.9",
            "$[?x]",
        ] {
            assert!(Path::parse(text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn putting_creates_the_objects_on_the_path() {
        let mut root = json!({"sub": "1"});
        Path::parse("$.a.b").unwrap().put(&mut root, json!("x")).unwrap();
        Path::parse("$").unwrap().put(&mut root, json!({"c": 1})).unwrap();
        assert_eq!(root, json!({"sub": "1", "a": {"b": "x"}, "c": 1}));
        assert!(Path::parse("$.l[0]").unwrap().put(&mut root, json!(1)).is_none());
    }
}
