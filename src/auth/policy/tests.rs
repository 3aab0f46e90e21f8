//! The policy, case by case.

use super::*;
use crate::model::Means;

const USERS: &str = "
roles:
  admin: { all: true }
  service: { encrypt: true, decrypt: true }
  writer: { encrypt: true, decrypt: false }
  auditor: { audit: true, health: true }
  reader:
    reveal: { when: { context.field: { _eq: email } } }
  user:
    encrypt: { when: { context.record_id: { _eq: X-Hasura-User-Id } } }
    decrypt:
      when:
        context.record_id: { _eq: x-hasura-user-id }
        context.field: { _in: [email, phone, X-HASURA-Extra-Field] }
";

fn identity(role: &str, variables: &[(&str, &str)]) -> Identity {
    let pairs = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Identity { role: role.into(), user: None, session: Session::from_pairs(pairs), means: Means::Jwt }
}

fn context(pairs: &[(&str, &str)]) -> Context {
    Context::from_pairs(pairs.iter().copied()).unwrap()
}

fn users() -> Policy {
    Policy::parse(USERS, Some("anonymous")).unwrap()
}

#[test]
fn by_default_admin_may_all_service_encrypt_and_decrypt_others_nothing() {
    let policy = Policy::default();
    for operation in Operation::ALL {
        let service = matches!(operation, Operation::Encrypt | Operation::Decrypt | Operation::Reveal);
        for (role, allowed) in
            [("admin", true), ("service", service), ("user", false), ("", false), ("Admin", false)]
        {
            let identity = identity(role, &[]);
            assert_eq!(
                policy.allows(&identity, operation, Some(&Context::empty())),
                allowed,
                "{role} {operation:?}"
            );
            assert_eq!(policy.may_ever(&identity, operation), allowed, "{role} {operation:?}");
        }
    }
}

#[test]
fn the_example_of_the_documentation_is_read() {
    let text = "
roles:
  admin: { all: true }
  service: { encrypt: true, decrypt: true }
  user:
    encrypt: { when: { context.record_id: { _eq: X-Hasura-User-Id } } }
    decrypt:
      when:
        context.record_id: { _eq: X-Hasura-User-Id }
        context.field: { _in: [email, phone] }
";
    assert!(Policy::parse(text, None).is_ok());
}

#[test]
fn a_condition_holds_when_the_context_has_the_value() {
    let user = [("X-Hasura-User-Id", "7"), ("X-Hasura-Extra-Field", "iban")];
    for (role, variables, operation, pairs, allowed) in [
        ("user", &user[..], Operation::Encrypt, &[("record_id", "7")][..], true),
        ("user", &user, Operation::Encrypt, &[("record_id", "8")], false),
        ("user", &user, Operation::Encrypt, &[("record_id", "7 ")], false),
        ("user", &user, Operation::Encrypt, &[("RECORD_ID", "7")], false),
        ("user", &user, Operation::Encrypt, &[], false),
        ("user", &[], Operation::Encrypt, &[("record_id", "7")], false),
        ("user", &[], Operation::Encrypt, &[("record_id", "X-Hasura-User-Id")], false),
        ("user", &[("X-Hasura-User-Id", "")], Operation::Encrypt, &[], false),
        ("user", &user, Operation::Decrypt, &[("record_id", "7"), ("field", "email")], true),
        ("user", &user, Operation::Decrypt, &[("record_id", "7"), ("field", "iban")], true),
        ("user", &user, Operation::Decrypt, &[("record_id", "7"), ("field", "ssn")], false),
        ("user", &user, Operation::Decrypt, &[("record_id", "7")], false),
        ("user", &user, Operation::Decrypt, &[("record_id", "8"), ("field", "email")], false),
        ("user", &user, Operation::Reveal, &[("record_id", "7"), ("field", "email")], true),
        ("user", &user, Operation::Reveal, &[("record_id", "7"), ("field", "ssn")], false),
        ("user", &user, Operation::Rotate, &[("record_id", "7")], false),
        ("reader", &[], Operation::Reveal, &[("field", "email")], true),
        ("reader", &[], Operation::Decrypt, &[("field", "email")], false),
        ("writer", &[], Operation::Encrypt, &[], true),
        ("writer", &[], Operation::Decrypt, &[], false),
        ("writer", &[], Operation::Reveal, &[], false),
        ("anonymous", &user, Operation::Encrypt, &[("record_id", "7")], false),
    ] {
        let allows = users().allows(&identity(role, variables), operation, Some(&context(pairs)));
        assert_eq!(allows, allowed, "{role} {variables:?} {operation:?} {pairs:?}");
    }
}

#[test]
fn a_condition_never_holds_without_a_context() {
    let user = identity("user", &[("x-hasura-user-id", "7")]);
    assert!(!users().allows(&user, Operation::Encrypt, None));
    assert!(users().allows(&identity("auditor", &[]), Operation::Audit, None));
    assert!(users().allows(&identity("admin", &[]), Operation::Rotate, None));
}

#[test]
fn a_call_is_inspected_when_the_role_has_a_grant() {
    for (role, operation, may) in [
        ("user", Operation::Decrypt, true),
        ("user", Operation::Reveal, true),
        ("user", Operation::Audit, false),
        ("writer", Operation::Decrypt, false),
        ("auditor", Operation::Audit, true),
        ("nobody", Operation::Encrypt, false),
    ] {
        assert_eq!(users().may_ever(&identity(role, &[]), operation), may, "{role} {operation:?}");
    }
}

#[test]
fn both_operators_of_one_key_must_hold() {
    let text = r#"{"roles": {"r": {"encrypt": {"when": {"context.a.b": {"_eq": "1", "_in": ["1", "2"]}}}}}}"#;
    let policy = Policy::parse(text, None).unwrap();
    let allows =
        |value| policy.allows(&identity("r", &[]), Operation::Encrypt, Some(&context(&[("a.b", value)])));
    assert!(allows("1"));
    assert!(!allows("2"));
}

#[test]
fn an_empty_list_holds_nothing() {
    let text = r#"{"roles": {"r": {"encrypt": {"when": {"context.a": {"_in": []}}}}}}"#;
    let policy = Policy::parse(text, None).unwrap();
    assert!(!policy.allows(&identity("r", &[]), Operation::Encrypt, Some(&context(&[("a", "")]))));
}

#[test]
fn the_unauthorized_role_may_have_literals_but_no_session_variables() {
    let grant = |value: &str| {
        let text = format!(
            "roles: {{ anonymous: {{ encrypt: {{ when: {{ context.field: {{ _eq: {value} }} }} }} }} }}"
        );
        (Policy::parse(&text, Some("anonymous")).err(), Policy::parse(&text, Some("guest")).err())
    };
    assert_eq!(grant("email"), (None, None));
    let (refused, _) = grant("X-Hasura-User-Id");
    assert!(
        refused.unwrap()[0]
            .starts_with("roles.anonymous.encrypt.when.context.field._eq is a session variable")
    );
    assert_eq!(grant("X-Hasura-User-Id").1, None);
}

#[test]
fn every_error_is_named_with_its_place() {
    for (text, problem) in [
        ("", "the file is not a map of `roles`"),
        ("[]", "the file is not a map of `roles`"),
        ("{}", "roles is missing"),
        ("roles: []", "roles is not a map of roles"),
        ("rolls: {}", "rolls is not known; the file takes `roles`"),
        ("roles: { u: true }", "roles.u is not a map of operations"),
        ("roles: { u: { all: false } }", "roles.u.all takes only `true`, and stands alone"),
        ("roles: { u: { all: true, audit: true } }", "roles.u.all takes only `true`, and stands alone"),
        (
            "roles: { u: { encript: true } }",
            "roles.u.encript is not known; a role takes all, encrypt, decrypt, reveal, rotate, audit, health",
        ),
        ("roles: { u: { encrypt: yes } }", "roles.u.encrypt is neither `true`, `false` nor a `when`"),
        ("roles: { u: { encrypt: } }", "roles.u.encrypt is neither `true`, `false` nor a `when`"),
        ("roles: { u: { encrypt: {} } }", "roles.u.encrypt is neither `true`, `false` nor a `when`"),
        (
            "roles: { u: { encrypt: { if: {} } } }",
            "roles.u.encrypt.if is not known; an operation takes `when`",
        ),
        ("roles: { u: { encrypt: { when: 1 } } }", "roles.u.encrypt.when is not a map of conditions"),
        (
            "roles: { u: { encrypt: { when: {} } } }",
            "roles.u.encrypt.when has no condition; write `true` to grant always",
        ),
        (
            "roles: { u: { audit: { when: { context.a: { _eq: b } } } } }",
            "roles.u.audit has no context that a `when` could look at",
        ),
        (
            "roles: { u: { encrypt: { when: { record_id: { _eq: b } } } } }",
            "roles.u.encrypt.when.record_id is not known; a condition is on `context.` and a key",
        ),
        (
            "roles: { u: { encrypt: { when: { context.: { _eq: b } } } } }",
            "roles.u.encrypt.when.context. is not known; a condition is on `context.` and a key",
        ),
        (
            "roles: { u: { encrypt: { when: { context.a: b } } } }",
            "roles.u.encrypt.when.context.a is not a map of `_eq` or `_in`",
        ),
        (
            "roles: { u: { encrypt: { when: { context.a: {} } } } }",
            "roles.u.encrypt.when.context.a has neither `_eq` nor `_in`",
        ),
        (
            "roles: { u: { encrypt: { when: { context.a: { _neq: b } } } } }",
            "roles.u.encrypt.when.context.a._neq is not known; a condition takes `_eq` or `_in`",
        ),
        (
            "roles: { u: { encrypt: { when: { context.a: { _in: b } } } } }",
            "roles.u.encrypt.when.context.a._in takes a list",
        ),
        (
            "roles: { u: { encrypt: { when: { context.a: { _eq: 5 } } } } }",
            "roles.u.encrypt.when.context.a._eq takes texts; put numbers and the like in quotes",
        ),
        (
            "roles: { u: { encrypt: { when: { context.a: { _eq: X-Hasura- } } } } }",
            "roles.u.encrypt.when.context.a._eq has `X-Hasura-` without a variable's name",
        ),
    ] {
        assert_eq!(Policy::parse(text, None).unwrap_err(), [problem], "{text}");
    }
}

#[test]
fn all_errors_come_at_once() {
    let text = "roles: { a: { encript: true, decrypt: 1 }, b: 2 }\nother: 1";
    assert_eq!(Policy::parse(text, None).unwrap_err().len(), 4);
}

#[test]
fn a_role_that_is_written_twice_is_an_error() {
    let problems = Policy::parse("roles:\n  u: { encrypt: true }\n  u: { all: true }\n", None).unwrap_err();
    assert!(problems[0].starts_with("it is not YAML without repeated keys (line 3"), "{problems:?}");
}
