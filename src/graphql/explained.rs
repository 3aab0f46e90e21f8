//! What async-graphql's validation finds, as far as it may be passed on. Its sentences quote names and values alike; here
//! each that is passed on is known, and with it that what it quotes are names: of the schema, or as the document has them.

/// The sentences, where `{}` stands for a name. What comes after the end of one is dropped: values, and keys of variables.
const SENTENCES: [&str; 35] = [
    r#"Unknown field "{}" on type "{}""#,
    r#"Unknown argument "{}" on field "{}" of type "{}""#,
    r#"Unknown argument "{}" on directive "{}""#,
    r#"Unknown directive "{}""#,
    r#"Unknown fragment: "{}""#,
    r#"Unknown type "{}""#,
    "Unknown operation named",
    "Operation name required in request",
    TYPE_OF_PARENT,
    r#"Directive "@{}" argument "{}" of type "{}" is required but not provided"#,
    r#"Field "{}" must not have a selection since type "{}" has no subfields"#,
    r#"Field "{}" of type "{}" must have a selection of subfields"#,
    r#"Fields "{}" conflict because "{}" and "{}" are different fields"#,
    r#"Fields "{}" conflict because they have differing arguments"#,
    r#"Invalid value for argument "{}", expected type "{}""#,
    r#"Invalid value for argument "{}", field "{}" of type "{}" is required but not provided"#,
    r#"Invalid value for argument "{}", enumeration type "{}" does not contain the value"#,
    r#"Invalid value for argument "{}", unknown field"#,
    r#"Invalid default value for argument: "{}", expected type "{}""#,
    r#"Invalid default value for argument: "{}", field "{}" of type "{}" is required but not provided"#,
    r#"Invalid default value for argument: "{}", enumeration type "{}" does not contain the value"#,
    r#"Invalid default value for argument: "{}", unknown field"#,
    r#"Variable "${}" is not defined"#,
    r#"Variable "${}" is not used"#,
    r#"Variable "{}" cannot be of non-input type "{}""#,
    TYPES_SWAPPED,
    r#"There can only be one argument named "{}""#,
    r#"There can only be one variable named "${}""#,
    r#"Fragment "{}" is never used"#,
    r#"Fragment "{}" cannot condition non composite type "{}""#,
    r#"Fragment "{}" cannot be spread here as objects of type "{}" can never be of type "{}""#,
    r#"Fragment cannot be spread here as objects of type "{}" can never be of type "{}""#,
    r#"Cannot spread fragment "{}""#,
    r#"Directive "{}" may not be used on "{}""#,
    r#"Duplicate directive "{}""#,
];
/// The one in which async-graphql has the type that the field is of for that of the argument, and what is said instead.
const TYPE_OF_PARENT: &str = r#"Field "{}" argument "{}" of type "{}" is required but not provided"#;
const WITHOUT_TYPE: &str = r#"Field "{}" argument "{}" is required but not provided"#;
/// The one in which async-graphql has the two types the wrong way round.
const TYPES_SWAPPED: &str = r#"Variable "{}" of type "{}" used in position expecting type "{}""#;
/// How much is shown of one name.
const MAX_NAME: usize = 64;

/// What this message of async-graphql's says, its names cut to a bound; `None` where it is none of the sentences.
pub(super) fn explained(message: &str) -> Option<String> {
    SENTENCES.iter().find_map(|sentence| {
        let mut names = names_in(sentence, message)?;
        if let (true, [_, variable, place]) = (*sentence == TYPES_SWAPPED, names.as_mut_slice()) {
            std::mem::swap(variable, place);
        }
        let sentence = if *sentence == TYPE_OF_PARENT { WITHOUT_TYPE } else { sentence };
        Some(names.into_iter().fold(sentence.to_owned(), |said, name| said.replacen("{}", name, 1)))
    })
}

/// A name as far as it is shown.
pub(super) fn cut(name: &str) -> &str {
    name.get(..MAX_NAME).unwrap_or(name)
}

/// The names that a message has where the sentence has places for them.
fn names_in<'a>(sentence: &str, message: &'a str) -> Option<Vec<&'a str>> {
    let mut parts = sentence.split("{}");
    let mut rest = message.strip_prefix(parts.next()?)?;
    let mut names = Vec::new();
    for part in parts {
        let end = rest.find(|character: char| !is_of_name(character)).filter(|end| *end > 0)?;
        names.push(cut(&rest[..end]));
        rest = rest[end..].strip_prefix(part)?;
    }
    Some(names)
}

/// A name, a type made of one, or the path to an input field: all of it is ASCII.
fn is_of_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '_' | '[' | ']' | '!' | '.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_is_passed_on_up_to_where_values_stand() {
        for (message, said) in [
            (
                r#"Unknown field "a" on type "Query". Did you mean "b"?"#,
                Some(r#"Unknown field "a" on type "Query""#),
            ),
            (
                r#"Invalid value for argument "items.0.plaintext", expected type "String""#,
                Some(r#"Invalid value for argument "items.0.plaintext", expected type "String""#),
            ),
            (
                r#"Invalid value for argument "i", unknown field "C4N4RY" of type "T""#,
                Some(r#"Invalid value for argument "i", unknown field"#),
            ),
            (
                r#"Variable "a" of type "String!" used in position expecting type "Int""#,
                Some(r#"Variable "a" of type "Int" used in position expecting type "String!""#),
            ),
            (r#"Unknown operation named "C4N4RY""#, Some("Unknown operation named")),
            (r#"Unknown field "C4N 4RY" on type "Query"."#, None),
            (r#"Unknown field "" on type "Query"."#, None),
            ("C4N4RY", None),
        ] {
            assert_eq!(explained(message).as_deref(), said);
        }
    }

    #[test]
    fn a_long_name_is_cut() {
        let message = format!(r#"Unknown directive "{}""#, "d".repeat(1_000));
        assert_eq!(explained(&message), Some(format!(r#"Unknown directive "{}""#, "d".repeat(MAX_NAME))));
    }
}
