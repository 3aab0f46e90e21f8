//! The table of [`Authenticator`](super::Authenticator), row by row, and the admin tokens.

use std::time::Duration;

use serde_json::json;

use super::Authenticator;
use super::jwt::testkit::{TestClock, authenticator, claims, headers, hs256, hs256_token, with};
use crate::model::{ErrorCode, Identity, Means, Refusal};

const SECRET: &str = "shared-with-hasura";
const PREVIOUS: &str = "shared-before-that";
const ADMIN: &str = "an-admin-token-of-the-seed";

/// With everything configured, and these variables on top.
fn made(more: &[(&str, &str)]) -> (Authenticator, TestClock) {
    let jwt = hs256(&json!({})).to_string();
    let mut pairs = vec![
        ("HASURA_GRAPHQL_JWT_SECRET", jwt.as_str()),
        ("BYOK_HASURA_SECRET", SECRET),
        ("BYOK_HASURA_SECRET_PREVIOUS", PREVIOUS),
        ("BYOK_HASURA_UNAUTHORIZED_ROLE", "anonymous"),
        ("BYOK_ADMIN_TOKEN", ADMIN),
    ];
    pairs.extend(more);
    authenticator(&pairs).unwrap()
}

fn who(pairs: &[(&str, &str)]) -> Result<Identity, Refusal> {
    made(&[]).0.authenticate(&headers(pairs))
}

fn refused(pairs: &[(&str, &str)]) -> (ErrorCode, String) {
    let refusal = who(pairs).expect_err("refused");
    (refusal.code, refusal.message.into_owned())
}

fn bearer() -> String {
    format!("Bearer {}", hs256_token(&claims()))
}

#[test]
fn a_wrong_secret_is_refused_whatever_comes_beside_it() {
    let wrong =
        (ErrorCode::InvalidHeaders, "The shared secret header does not hold the shared secret".to_owned());
    for secret in ["", "wrong", "shared-with-hasurA", "shared-with-hasura-", "shared-with-hasur"] {
        assert_eq!(
            refused(&[("x-byok-secret", secret), ("authorization", &bearer()), ("x-hasura-role", "user")]),
            wrong
        );
    }
    let (unconfigured, _) =
        authenticator(&[("HASURA_GRAPHQL_JWT_SECRET", &hs256(&json!({})).to_string())]).unwrap();
    let refusal = unconfigured
        .authenticate(&headers(&[("x-byok-secret", ""), ("authorization", &bearer())]))
        .unwrap_err();
    assert_eq!((refusal.code, refusal.message.into_owned()), wrong);
}

#[test]
fn beside_the_secret_the_session_variables_count() {
    let identity = who(&[
        ("X-Byok-Secret", SECRET),
        ("X-Hasura-Role", "service"),
        ("X-Hasura-User-Id", "7"),
        ("X-Hasura-Org", "acme"),
        ("X-Hasura-Admin-Secret", "leaked"),
        ("X-Request-Id", "1"),
    ])
    .unwrap();
    assert_eq!((&*identity.role, identity.user.as_deref()), ("service", Some("7")));
    assert_eq!(identity.means, Means::HasuraSecret);
    assert_eq!(identity.session.get("x-hasura-org"), Some("acme"));
    assert_eq!(identity.session.get("x-hasura-role"), Some("service"));
    assert_eq!(identity.session.get("x-hasura-admin-secret"), None);
    assert_eq!(identity.session.get("x-request-id"), None);
}

#[test]
fn both_secrets_count_while_they_change() {
    for secret in [SECRET, PREVIOUS] {
        assert!(who(&[("x-byok-secret", secret), ("x-hasura-role", "user")]).is_ok());
    }
    let (afterwards, _) = authenticator(&[("BYOK_HASURA_SECRET", SECRET)]).unwrap();
    let with =
        |secret| afterwards.authenticate(&headers(&[("x-byok-secret", secret), ("x-hasura-role", "user")]));
    assert!(with(SECRET).is_ok());
    assert!(with(PREVIOUS).is_err());
}

#[test]
fn under_the_unauthorized_role_user_and_session_variables_are_dropped() {
    let identity = who(&[
        ("x-byok-secret", SECRET),
        ("x-hasura-role", "anonymous"),
        ("x-hasura-user-id", "7"),
        ("x-hasura-org", "acme"),
    ])
    .unwrap();
    assert_eq!((&*identity.role, identity.user), ("anonymous", None));
    assert_eq!(identity.session, Default::default());
}

#[test]
fn the_secret_without_a_role_is_nobody() {
    let expected = (
        ErrorCode::InvalidHeaders,
        "Missing x-hasura-role header in addition to the shared secret".to_owned(),
    );
    assert_eq!(refused(&[("x-byok-secret", SECRET)]), expected);
    assert_eq!(refused(&[("x-byok-secret", SECRET), ("x-hasura-role", "")]), expected);
    assert_eq!(refused(&[("x-byok-secret", SECRET), ("x-hasura-user-id", "7")]), expected);
}

#[test]
fn a_jwt_beside_the_secret_is_who_calls() {
    let bearer = bearer();
    for more in
        [&[][..], &[("x-hasura-role", "editor")], &[("x-hasura-role", "editor"), ("x-hasura-user-id", "7")]]
    {
        let mut pairs = vec![("x-byok-secret", SECRET), ("authorization", bearer.as_str())];
        pairs.extend(more);
        let identity = who(&pairs).unwrap();
        assert_eq!((identity.user.as_deref(), identity.means), (Some("7"), Means::Jwt));
        assert_eq!(&*identity.role, if more.is_empty() { "user" } else { "editor" });
    }
}

#[test]
fn a_jwt_beside_the_secret_that_says_otherwise_is_refused() {
    for (name, value, message) in [
        ("x-hasura-role", "admin", "Your requested role is not in allowed roles"),
        ("x-hasura-user-id", "8", "The session variables do not agree with the JWT's claims"),
        ("x-hasura-tenant", "other", "The session variables do not agree with the JWT's claims"),
    ] {
        assert_eq!(
            refused(&[("x-byok-secret", SECRET), ("authorization", &bearer()), (name, value)]),
            (ErrorCode::AccessDenied, message.to_owned())
        );
    }
}

#[test]
fn a_bad_jwt_beside_the_secret_is_refused() {
    let expired = format!("Bearer {}", hs256_token(&with(&json!({"exp": 1}))));
    let (code, message) =
        refused(&[("x-byok-secret", SECRET), ("authorization", &expired), ("x-hasura-role", "user")]);
    assert_eq!((code, message.as_str()), (ErrorCode::InvalidJwt, "Could not verify JWT: JWTExpired"));
}

#[test]
fn a_jwt_beside_the_secret_without_configuration_is_refused() {
    let configurations = json!([hs256(&json!({"issuer": "a"})), hs256(&json!({"issuer": "b"}))]).to_string();
    let (authenticator, _) =
        authenticator(&[("HASURA_GRAPHQL_JWT_SECRETS", &configurations), ("BYOK_HASURA_SECRET", SECRET)])
            .unwrap();
    let token = format!("Bearer {}", hs256_token(&with(&json!({"iss": "c"}))));
    let refusal = authenticator
        .authenticate(&headers(&[
            ("x-byok-secret", SECRET),
            ("authorization", &token),
            ("x-hasura-role", "user"),
        ]))
        .unwrap_err();
    assert_eq!(refusal.code, ErrorCode::InvalidJwt);
}

#[test]
fn an_opaque_bearer_token_beside_the_secret_is_passed_over() {
    let identity =
        who(&[("x-byok-secret", SECRET), ("authorization", "Bearer opaque"), ("x-hasura-role", "user")])
            .unwrap();
    assert_eq!(identity.means, Means::HasuraSecret);
}

#[test]
fn where_a_jwt_is_required_the_secret_alone_is_not_enough() {
    let (authenticator, _) = made(&[("BYOK_REQUIRE_JWT", "true")]);
    let bearer = bearer();
    let with = |authorization: &str| {
        let pairs = [("x-byok-secret", SECRET), ("x-hasura-role", "user"), ("authorization", authorization)];
        authenticator.authenticate(&headers(&pairs)).map_err(|refusal| refusal.message.into_owned())
    };
    assert!(with(&bearer).is_ok());
    assert_eq!(with("Bearer opaque").unwrap_err(), "A JWT is required in addition to the shared secret");
}

#[test]
fn forged_session_variables_without_the_secret_are_not_looked_at() {
    let forged = [("x-hasura-user-id", "1"), ("x-hasura-org", "acme"), ("x-hasura-user-id", "2")];
    let bearer = bearer();
    let mut pairs = vec![("authorization", bearer.as_str())];
    pairs.extend(forged);
    let identity = who(&pairs).unwrap();
    assert_eq!(identity.user.as_deref(), Some("7"));
    assert_eq!(identity.session.get("x-hasura-org"), None);

    assert_eq!(
        refused(&[("x-hasura-role", "admin"), ("x-hasura-user-id", "1")]).0,
        ErrorCode::InvalidHeaders
    );
    assert_eq!(
        refused(&[("x-hasura-role", "admin"), ("x-hasura-admin-secret", SECRET)]).0,
        ErrorCode::InvalidHeaders
    );
}

#[test]
fn nobody_gets_the_unauthorized_role_without_the_secret() {
    assert_eq!(
        refused(&[("x-hasura-role", "anonymous")]),
        (
            ErrorCode::InvalidHeaders,
            "Missing 'Authorization' or 'Cookie' header in JWT authentication mode".to_owned()
        )
    );
}

#[test]
fn a_header_that_comes_twice_is_refused_where_it_counts() {
    let bearer = bearer();
    for pairs in [
        &[("x-byok-secret", SECRET), ("x-byok-secret", SECRET), ("x-hasura-role", "user")][..],
        &[("x-byok-secret", SECRET), ("x-hasura-role", "user"), ("x-hasura-role", "admin")],
        &[
            ("x-byok-secret", SECRET),
            ("x-hasura-role", "user"),
            ("x-hasura-user-id", "1"),
            ("x-hasura-user-id", "2"),
        ],
        &[("authorization", bearer.as_str()), ("x-hasura-role", "user"), ("x-hasura-role", "editor")],
    ] {
        assert_eq!(refused(pairs).0, ErrorCode::InvalidHeaders, "{pairs:?}");
    }
}

#[test]
fn session_variables_may_be_any_utf_8_and_nothing_else() {
    let with = |value: &[u8]| {
        let mut headers = headers(&[("x-byok-secret", SECRET), ("x-hasura-role", "user")]);
        headers.insert("x-hasura-user-id", http::HeaderValue::from_bytes(value).unwrap());
        made(&[]).0.authenticate(&headers)
    };
    assert_eq!(with("Zoë".as_bytes()).unwrap().user.as_deref(), Some("Zoë"));
    assert_eq!(with(b"Zo\xeb").unwrap_err().code, ErrorCode::InvalidHeaders);
}

#[test]
fn nothing_configured_is_an_error() {
    let errors = authenticator(&[]).err().unwrap();
    assert_eq!(errors[0].variable, "HASURA_GRAPHQL_JWT_SECRET");
}

#[tokio::test]
async fn keeping_keys_fresh_ends_when_told_or_without_a_jwk_url() {
    let never = tokio_util::sync::CancellationToken::new();
    made(&[]).0.keep_keys_fresh(&never).await;

    // Nothing listens there: without an end it would try for ever.
    let jwt = json!({"jwk_url": "http://127.0.0.1:9/"}).to_string();
    let (authenticator, _) = authenticator(&[("HASURA_GRAPHQL_JWT_SECRET", &jwt)]).unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let ended = async {
        tokio::join!(authenticator.keep_keys_fresh(&stop), async { stop.cancel() });
    };
    tokio::time::timeout(Duration::from_secs(10), ended).await.unwrap();
}

// Admin tokens

#[test]
fn the_admin_token_of_the_variable_is_admin() {
    let identity = who(&[("authorization", &format!("Bearer {ADMIN}")), ("x-hasura-role", "user")]).unwrap();
    assert_eq!((&*identity.role, identity.user.as_deref()), ("admin", Some("admin")));
    assert_eq!((identity.means, identity.session), (Means::AdminToken, Default::default()));
}

#[test]
fn an_unknown_admin_token_is_refused() {
    assert_eq!(
        refused(&[("authorization", "Bearer an-admin-token-of-the-seeD")]),
        (ErrorCode::InvalidHeaders, "The bearer token is neither a JWT nor a known admin token".to_owned())
    );
}

#[test]
fn a_jwt_and_an_admin_token_can_share_a_header() {
    assert_eq!(who(&[("authorization", &bearer())]).unwrap().means, Means::Jwt);
}

/// The hash of an unknown token.
const HASH: &str = "f4df7cd65b8b3e3b7ec66e13d4ff2bbb0bb8e93d5f9d2d9e6a6d2d5dbd8a3a5c";

fn tokens_file(text: &str) -> Result<(Authenticator, TestClock), Vec<String>> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    authenticator(&[("BYOK_ADMIN_TOKENS_FILE", file.path().to_str().unwrap())])
        .map_err(|errors| errors.into_iter().map(|error| error.problem).collect())
}

#[test]
fn a_named_token_has_its_role_until_it_expires() {
    let hash: String =
        crate::crypto::sha256(b"a-token-of-a-script").iter().map(|byte| format!("{byte:02X}")).collect();
    let (authenticator, clock) = tokens_file(&format!(
        "- name: deploy\n  sha256: {hash}\n  role: service\n  expires: 2026-11-23T10:01:00Z\n"
    ))
    .unwrap();
    let request = headers(&[("authorization", "Bearer a-token-of-a-script")]);
    let identity = authenticator.authenticate(&request).unwrap();
    assert_eq!((&*identity.role, identity.user.as_deref()), ("service", Some("deploy")));
    clock.advance(Duration::from_secs(60));
    let refusal = authenticator.authenticate(&request).unwrap_err();
    assert_eq!((refusal.code, &*refusal.message), (ErrorCode::InvalidHeaders, "The admin token has expired"));
}

#[test]
fn a_tokens_file_may_be_json() {
    let text = json!([{"name": "a", "sha256": HASH, "role": "admin", "expires": "2027-01-01T00:00:00Z"}]);
    assert!(tokens_file(&text.to_string()).is_ok());
}

#[test]
fn a_malformed_tokens_file_says_what_is_wrong() {
    let line = |name: &str, hash: &str, role: &str, expires: &str| json!({"name": name, "sha256": hash, "role": role, "expires": expires});
    let good = line("a", HASH, "admin", "2027-01-01T00:00:00Z");
    for (text, problem) in [
        (
            json!([line("a", "f4df", "admin", "2027-01-01T00:00:00Z")]),
            "a: `sha256` is not 64 hexadecimal digits",
        ),
        (
            json!([line("a", &"ü".repeat(64), "admin", "2027-01-01T00:00:00Z")]),
            "a: `sha256` is not 64 hexadecimal digits",
        ),
        (json!([line("a", HASH, "", "2027-01-01T00:00:00Z")]), "a: `name` and `role` cannot be empty"),
        (json!([line("a", HASH, "admin", "tomorrow")]), "a: `expires` is not like 2027-03-31T00:00:00Z"),
        (json!([good, good]), "the name a is used twice"),
        (json!([{"name": "a"}]), "it is not a list of tokens, each with"),
        (json!({"tokens": []}), "it is not a list of tokens, each with"),
        (json!([{"name": "a", "token": "s3cret"}]), "it is not a list of tokens, each with"),
    ] {
        let problems = tokens_file(&text.to_string()).err().unwrap();
        assert!(problems[0].contains(problem), "{problems:?}");
        assert!(!problems[0].contains("s3cret"));
    }
}

#[test]
fn an_admin_token_that_looks_like_a_jwt_is_an_error() {
    let errors = authenticator(&[("BYOK_ADMIN_TOKEN", "looks.like.a-jwt-but-is-none")]).err().unwrap();
    assert_eq!(errors[0].variable, "BYOK_ADMIN_TOKEN");
}
