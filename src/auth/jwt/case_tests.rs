//! Hasura's own JWT tests as tests of ours, row by row (`test_jwt.py`, `test_jwt_claims_map.py`,
//! `AuthSpec.hs`), and then what attackers send.

use std::time::Duration;

use http::HeaderMap;
use ring::signature;
use serde_json::{Value, json};

use super::Jwt;
use super::keys::{Algorithm, KeySet};
use super::testkit::*;
use crate::model::{ErrorCode, Identity, Refusal};

/// The refusal of a token with these claims under this configuration (an HS256 one with `more`).
fn refused(more: &Value, claims: &Value) -> (ErrorCode, String) {
    refusal_of(authenticate(&hs256(more), &bearer_of(&hs256_token(claims))))
}

fn accepted(more: &Value, claims: &Value) -> Identity {
    authenticate(&hs256(more), &bearer_of(&hs256_token(claims))).unwrap()
}

fn refusal_of(result: Result<Identity, Refusal>) -> (ErrorCode, String) {
    let refusal = result.expect_err("refused");
    (refusal.code, refusal.message.into_owned())
}

fn invalid_jwt(problem: &str) -> (ErrorCode, String) {
    (ErrorCode::InvalidJwt, format!("Could not verify JWT: {problem}"))
}

fn invalid_claims(problem: &str) -> (ErrorCode, String) {
    (ErrorCode::JwtInvalidClaims, problem.to_owned())
}

fn invalid_headers(problem: &str) -> (ErrorCode, String) {
    (ErrorCode::InvalidHeaders, problem.to_owned())
}

fn namespace(claims: Value) -> Value {
    with(&json!({"https://hasura.io/jwt/claims": claims}))
}

// test_jwt.py

#[test]
fn valid_claims_success() {
    let identity = accepted(&json!({}), &claims());
    assert_eq!((&*identity.role, identity.user.as_deref()), ("user", Some("7")));
    assert_eq!(identity.session.get("X-Hasura-User-Id"), Some("7"));
    assert_eq!(identity.session.get("X-Hasura-Role"), Some("user"));
    assert_eq!(identity.session.get("X-Hasura-Allowed-Roles"), None);
    assert_eq!(identity.session.get("X-Hasura-Default-Role"), None);
}

#[test]
fn no_audience_in_conf() {
    let claims = with(&json!({"aud": "anything", "https://hasura.io/jwt/claims": hasura_claims()}));
    accepted(&json!({}), &claims);
}

#[test]
fn no_issuer_in_conf() {
    let claims = with(&json!({"iss": "rubbish-issuer", "https://hasura.io/jwt/claims": hasura_claims()}));
    accepted(&json!({}), &claims);
}

#[test]
fn valid_audience() {
    for (ours, theirs) in [
        (json!("us"), json!("us")),
        (json!("us"), json!(["them", "us"])),
        (json!(["us", "you"]), json!("you")),
        (json!(["us", "you"]), json!(["them", "you"])),
    ] {
        let claims = with(&json!({"aud": theirs, "https://hasura.io/jwt/claims": hasura_claims()}));
        accepted(&json!({"audience": ours}), &claims);
    }
}

#[test]
fn invalid_audience() {
    for theirs in [json!("them"), json!(["them"]), json!([]), json!(5), json!(["US"])] {
        let claims = with(&json!({"aud": theirs, "https://hasura.io/jwt/claims": hasura_claims()}));
        assert_eq!(refused(&json!({"audience": "us"}), &claims), invalid_jwt("JWTNotInAudience"));
    }
}

#[test]
fn a_token_without_audience_is_refused_where_one_is_configured() {
    assert_eq!(refused(&json!({"audience": "us"}), &claims()), invalid_jwt("JWTNotInAudience"));
}

#[test]
fn valid_issuer() {
    let claims = with(&json!({"iss": "us", "https://hasura.io/jwt/claims": hasura_claims()}));
    accepted(&json!({"issuer": "us"}), &claims);
}

#[test]
fn invalid_issuer() {
    for theirs in [json!("them"), json!(5), Value::Null] {
        let claims = with(&json!({"iss": theirs, "https://hasura.io/jwt/claims": hasura_claims()}));
        assert_eq!(refused(&json!({"issuer": "us"}), &claims), invalid_jwt("JWTNotInIssuer"));
    }
}

#[test]
fn expiry_leeway() {
    let claims = with(&json!({"exp": NOW - 30, "https://hasura.io/jwt/claims": hasura_claims()}));
    accepted(&json!({"allowed_skew": 60}), &claims);
    assert_eq!(refused(&json!({"allowed_skew": 30}), &claims), invalid_jwt("JWTExpired"));
}

#[test]
fn invalid_role_in_request_header() {
    let mut headers = bearer_of(&hs256_token(&claims()));
    headers.insert("x-hasura-role", "contractor".parse().unwrap());
    let expected = (ErrorCode::AccessDenied, "Your requested role is not in allowed roles".to_owned());
    assert_eq!(refusal_of(authenticate(&hs256(&json!({})), &headers)), expected);
}

#[test]
fn no_allowed_roles_in_claim() {
    let claims = namespace(json!({"x-hasura-user-id": "1", "x-hasura-default-role": "user"}));
    let expected =
        (ErrorCode::JwtMissingRoleClaims, "JWT claim does not contain x-hasura-allowed-roles".to_owned());
    assert_eq!(refused(&json!({}), &claims), expected);
}

#[test]
fn no_default_role() {
    let claims = namespace(json!({"x-hasura-user-id": "1", "x-hasura-allowed-roles": ["user"]}));
    let expected =
        (ErrorCode::JwtMissingRoleClaims, "JWT claim does not contain x-hasura-default-role".to_owned());
    assert_eq!(refused(&json!({}), &claims), expected);
}

#[test]
fn invalid_allowed_roles_in_claim() {
    let claims = namespace(json!({"x-hasura-allowed-roles": "user", "x-hasura-default-role": "user"}));
    let expected = "invalid x-hasura-allowed-roles; should be a list of roles: \
                    parsing [] failed, expected Array, but encountered String";
    assert_eq!(refused(&json!({}), &claims), invalid_claims(expected));
}

#[test]
fn expired() {
    let claims = with(&json!({"exp": NOW - 60, "https://hasura.io/jwt/claims": hasura_claims()}));
    assert_eq!(refused(&json!({}), &claims), invalid_jwt("JWTExpired"));
}

#[test]
fn invalid_signature() {
    let token = Signer::hmac("HS256", "another secret of 32 bytes or more, for tests").token(&claims());
    let result = authenticate(&hs256(&json!({})), &bearer_of(&token));
    assert_eq!(refusal_of(result), invalid_jwt("JWSError JWSInvalidSignature"));
}

// test_jwt_claims_map.py

fn claims_map(with_defaults: bool) -> Value {
    let entry = |path: &str, default: Value| {
        let mut entry = json!({"path": format!("$.[\"https://myapp.com/jwt/claims\"].{path}")});
        if with_defaults {
            entry["default"] = default;
        }
        entry
    };
    json!({"claims_map": {
        "x-hasura-user-id": entry("user.id", json!("1")),
        "x-hasura-allowed-roles": entry("role.allowed", json!(["user", "editor"])),
        "x-hasura-default-role": entry("role.default", json!("user")),
    }})
}

fn app_claims(claims: Value) -> Value {
    with(&json!({"https://myapp.com/jwt/claims": claims}))
}

#[test]
fn claims_map_valid_claims_success() {
    let claims = app_claims(json!({"user": {"id": "1"}, "role": {"allowed": ["user"], "default": "user"}}));
    let identity = accepted(&claims_map(false), &claims);
    assert_eq!((&*identity.role, identity.user.as_deref()), ("user", Some("1")));
}

#[test]
fn claims_map_invalid_role_in_request_header() {
    let token = hs256_token(&app_claims(
        json!({"user": {"id": "1"}, "role": {"allowed": ["contractor"], "default": "contractor"}}),
    ));
    let mut headers = bearer_of(&token);
    headers.insert("x-hasura-role", "user".parse().unwrap());
    let expected = (ErrorCode::AccessDenied, "Your requested role is not in allowed roles".to_owned());
    assert_eq!(refusal_of(authenticate(&hs256(&claims_map(false)), &headers)), expected);
}

#[test]
fn claims_map_no_allowed_roles_in_claim() {
    let claims = app_claims(json!({"user": {"id": "1"}, "role": {"default": "user"}}));
    let expected =
        (ErrorCode::JwtMissingRoleClaims, "JWT claim does not contain x-hasura-allowed-roles".to_owned());
    assert_eq!(refused(&claims_map(false), &claims), expected);
    accepted(&claims_map(true), &claims);
}

#[test]
fn claims_map_invalid_allowed_roles_in_claim() {
    let claims = app_claims(json!({"user": {"id": "1"}, "role": {"allowed": "user", "default": "user"}}));
    let expected = "invalid x-hasura-allowed-roles; should be a list of roles: \
                    parsing [] failed, expected Array, but encountered String";
    assert_eq!(refused(&claims_map(false), &claims), invalid_claims(expected));
    assert_eq!(refused(&claims_map(true), &claims), invalid_claims(expected));
}

#[test]
fn claims_map_no_default_role() {
    let claims = app_claims(json!({"user": {"id": "1"}, "role": {"allowed": ["user"]}}));
    let expected =
        (ErrorCode::JwtMissingRoleClaims, "JWT claim does not contain x-hasura-default-role".to_owned());
    assert_eq!(refused(&claims_map(false), &claims), expected);
    accepted(&claims_map(true), &claims);
}

#[test]
fn claims_map_claim_not_found() {
    let claims = app_claims(json!({"role": {"allowed": ["user", "editor"], "default": "user"}}));
    let expected = invalid_claims("JWT claim from claims_map, x-hasura-user-id not found");
    assert_eq!(refused(&claims_map(false), &claims), expected);
    assert_eq!(accepted(&claims_map(true), &claims).user.as_deref(), Some("1"));
}

#[test]
fn claims_map_with_literals() {
    let map = json!({"claims_map": {
        "x-hasura-user-id": {"path": "$.sub"},
        "x-hasura-allowed-roles": ["user", "editor"],
        "x-hasura-default-role": "user",
        "X-Hasura-Org": "acme",
    }});
    let identity = accepted(&map, &with(&json!({})));
    assert_eq!(identity.user.as_deref(), Some("7"));
    assert_eq!(identity.session.get("x-hasura-org"), Some("acme"));
}

#[test]
fn claims_map_beats_the_namespace_and_its_format() {
    let mut map = claims_map(false);
    map["claims_namespace"] = json!("elsewhere");
    map["claims_format"] = json!("stringified_json");
    let claims = app_claims(json!({"user": {"id": "1"}, "role": {"allowed": ["user"], "default": "user"}}));
    accepted(&map, &claims);
}

// AuthSpec.hs

#[test]
fn a_role_of_the_header_among_the_allowed_is_taken() {
    let mut headers = bearer_of(&hs256_token(&claims()));
    headers.insert("x-hasura-role", "editor".parse().unwrap());
    let identity = authenticate(&hs256(&json!({})), &headers).unwrap();
    assert_eq!(&*identity.role, "editor");
    assert_eq!(identity.session.get("x-hasura-role"), Some("editor"));
}

#[test]
fn an_empty_role_header_is_none() {
    let mut headers = bearer_of(&hs256_token(&claims()));
    headers.insert("x-hasura-role", "".parse().unwrap());
    assert_eq!(&*authenticate(&hs256(&json!({})), &headers).unwrap().role, "user");
}

#[test]
fn the_default_role_must_be_allowed_too() {
    let expected = (ErrorCode::AccessDenied, "Your requested role is not in allowed roles".to_owned());
    for allowed in [json!([]), json!(["editor"]), json!(["User"])] {
        let claims = namespace(json!({"x-hasura-allowed-roles": allowed, "x-hasura-default-role": "user"}));
        assert_eq!(refused(&json!({}), &claims), expected);
    }
}

#[test]
fn no_header_is_refused() {
    assert_eq!(
        refusal_of(authenticate(&hs256(&json!({})), &HeaderMap::new())),
        invalid_headers("Missing 'Authorization' or 'Cookie' header in JWT authentication mode")
    );
}

#[test]
fn a_wrong_namespace_is_an_error() {
    assert_eq!(
        refused(&json!({"claims_namespace": "ns"}), &claims()),
        invalid_claims("claims key: 'ns' not found")
    );
}

#[test]
fn a_wrong_namespace_path_is_an_error() {
    assert_eq!(
        refused(&json!({"claims_namespace_path": "$.hasura.claims"}), &claims()),
        invalid_claims("claims not found at claims_namespace_path: '$.hasura.claims'")
    );
}

#[test]
fn namespaces_are_found_by_name_and_by_path() {
    let hasura = hasura_claims();
    for (configuration, claims) in [
        (json!({"claims_namespace": "a.b"}), json!({"a.b": hasura})),
        (json!({"claims_namespace_path": "$"}), hasura.clone()),
        (json!({"claims_namespace_path": "$.hasura.claims"}), json!({"hasura": {"claims": hasura}})),
        (json!({"claims_namespace_path": "$.hasura['claims']"}), json!({"hasura": {"claims": hasura}})),
        (json!({"claims_namespace_path": "$.l[1]"}), json!({"l": [0, hasura]})),
    ] {
        assert_eq!(accepted(&configuration, &with(&claims)).user.as_deref(), Some("7"), "{configuration}");
    }
}

#[test]
fn names_of_claims_are_read_in_any_case_and_others_ignored() {
    let identity = accepted(
        &json!({}),
        &namespace(json!({
            "X-Hasura-User-Id": "7", "X-HASURA-ALLOWED-ROLES": ["user"], "x-hasura-Default-Role": "user",
            "other": {"not": "a string"},
        })),
    );
    assert_eq!(identity.user.as_deref(), Some("7"));
    assert_eq!(identity.session.get("other"), None);
}

#[test]
fn claims_of_the_wrong_format_are_an_error() {
    for (format, claims, problem) in [
        ("json", json!("{}"), "expecting a json object when claims_format is json"),
        ("json", json!([]), "expecting a json object when claims_format is json"),
        ("stringified_json", json!({}), "expecting a string when claims_format is stringified_json"),
        (
            "stringified_json",
            json!("s3cret"),
            "expecting stringified json at: 'claims_namespace https://hasura.io/jwt/claims'",
        ),
        (
            "stringified_json",
            json!("[]"),
            "expecting stringified json at: 'claims_namespace https://hasura.io/jwt/claims'",
        ),
    ] {
        assert_eq!(refused(&json!({"claims_format": format}), &namespace(claims)), invalid_claims(problem));
    }
}

#[test]
fn stringified_claims_are_read() {
    let claims = namespace(json!(hasura_claims().to_string()));
    assert_eq!(accepted(&json!({"claims_format": "stringified_json"}), &claims).user.as_deref(), Some("7"));
}

#[test]
fn claims_that_are_not_strings_are_an_error() {
    for (value, kind) in [
        (json!(7), "Number"),
        (json!(true), "Boolean"),
        (Value::Null, "Null"),
        (json!(["7"]), "Array"),
        (json!({"nested": "7"}), "Object"),
    ] {
        let mut claims = hasura_claims();
        claims["x-hasura-user-id"] = value;
        let expected =
            format!("x-hasura-* claims: parsing Text failed, expected String, but encountered {kind}");
        assert_eq!(refused(&json!({}), &namespace(claims)), invalid_claims(&expected));
    }
}

#[test]
fn roles_that_are_not_strings_are_an_error() {
    let claims = namespace(json!({"x-hasura-allowed-roles": ["user", 5], "x-hasura-default-role": "user"}));
    let expected = "invalid x-hasura-allowed-roles; should be a list of roles: \
                    parsing Text failed, expected String, but encountered Number";
    assert_eq!(refused(&json!({}), &claims), invalid_claims(expected));
    let claims = namespace(json!({"x-hasura-allowed-roles": ["user"], "x-hasura-default-role": ["user"]}));
    let expected = "invalid x-hasura-default-role; should be a single role name: \
                    parsing Text failed, expected String, but encountered Array";
    assert_eq!(refused(&json!({}), &claims), invalid_claims(expected));
}

// Times

#[test]
fn exp_is_needed_unless_waived() {
    let claims = json!({"https://hasura.io/jwt/claims": hasura_claims()});
    assert_eq!(refused(&json!({}), &claims), invalid_jwt("JWTExpired: the token has no exp"));
    let jwt = Jwt::of_one(&hs256(&json!({})).to_string(), false).unwrap();
    assert!(jwt.claims(&bearer_of(&hs256_token(&claims)), now()).is_ok());
}

#[test]
fn times_are_held_to_the_second_and_shifted_by_the_skew() {
    for (name, value, skew, expected) in [
        ("exp", json!(NOW), 0, Some("JWTExpired")),
        ("exp", json!(NOW + 1), 0, None),
        ("exp", json!(NOW as f64 + 0.5), 0, None),
        ("exp", json!(1e300), 0, None),
        ("exp", json!(-1), 0, Some("JWTExpired")),
        ("exp", json!(0), 0, Some("JWTExpired")),
        ("exp", json!("tomorrow"), 0, Some("JWTClaimsSetDecodeError")),
        ("nbf", json!(NOW), 0, None),
        ("nbf", json!(NOW + 1), 0, Some("JWTNotYetValid")),
        ("nbf", json!(NOW + 1), 1, None),
        ("nbf", json!([]), 0, Some("JWTClaimsSetDecodeError")),
        ("iat", json!(NOW + 1), 0, Some("JWTIssuedAtFuture")),
        ("iat", json!(NOW + 1), 1, None),
    ] {
        let mut claims = claims();
        claims[name] = value.clone();
        let result = authenticate(&hs256(&json!({"allowed_skew": skew})), &bearer_of(&hs256_token(&claims)));
        let problem = result.err().map(|refusal| refusal.message.into_owned());
        assert_eq!(
            problem,
            expected.map(|problem| format!("Could not verify JWT: {problem}")),
            "{name} {value} {skew}"
        );
    }
}

#[test]
fn a_remembered_token_expires_all_the_same() {
    let (authenticator, clock) =
        authenticator(&[("HASURA_GRAPHQL_JWT_SECRET", &hs256(&json!({})).to_string())]).unwrap();
    let headers = bearer_of(&hs256_token(&claims()));
    assert!(authenticator.authenticate(&headers).is_ok());
    clock.advance(Duration::from_secs(3599));
    assert!(authenticator.authenticate(&headers).is_ok());
    clock.advance(Duration::from_secs(1));
    assert_eq!(refusal_of(authenticator.authenticate(&headers)), invalid_jwt("JWTExpired"));
}

// Headers

#[test]
fn an_authorization_header_that_is_not_bearer_and_token_is_malformed() {
    let token = hs256_token(&claims());
    for value in ["", "Bearer", "Bearer ", &token, "Basic dXNlcjpwYXNz", "bearer x", "Bearer a b"] {
        let result = authenticate(&hs256(&json!({})), &headers(&[("authorization", value)]));
        assert_eq!(refusal_of(result), invalid_headers("Malformed Authorization header"), "{value}");
    }
}

#[test]
fn two_authorization_headers_are_malformed() {
    let value = format!("Bearer {}", hs256_token(&claims()));
    let result =
        authenticate(&hs256(&json!({})), &headers(&[("authorization", &value), ("authorization", &value)]));
    assert_eq!(refusal_of(result), invalid_headers("Malformed Authorization header"));
}

#[test]
fn the_token_is_taken_from_the_configured_place_only() {
    let token = hs256_token(&claims());
    let bearer = format!("Bearer {token}");
    let cookie = format!("theme=dark; jwt={token}; other=1");
    for (header, name, value, found) in [
        (json!({"type": "Authorization"}), "authorization", &bearer, true),
        (json!({"type": "authorization"}), "cookie", &cookie, false),
        (json!({"type": "Cookie", "name": "jwt"}), "cookie", &cookie, true),
        (json!({"type": "cookie", "name": "jwt"}), "authorization", &bearer, false),
        (json!({"type": "Cookie", "name": "JWT"}), "cookie", &cookie, false),
        (json!({"type": "CustomHeader", "name": "X-Token"}), "x-token", &token, true),
        (json!({"type": "customheader", "name": "X-Token"}), "authorization", &bearer, false),
    ] {
        let result = authenticate(&hs256(&json!({"header": header})), &headers(&[(name, value)]));
        if found {
            assert!(result.is_ok(), "{header}")
        } else {
            assert_eq!(
                refusal_of(result),
                invalid_headers("Missing 'Authorization' or 'Cookie' header in JWT authentication mode")
            )
        }
    }
}

#[test]
fn a_custom_header_holds_the_token_alone() {
    let bearer = format!("Bearer {}", hs256_token(&claims()));
    let configuration = hs256(&json!({"header": {"type": "CustomHeader", "name": "X-Token"}}));
    assert_eq!(
        refusal_of(authenticate(&configuration, &headers(&[("x-token", &bearer)]))).0,
        ErrorCode::InvalidJwt
    );
}

#[test]
fn a_cookie_that_comes_twice_is_refused() {
    let configuration = hs256(&json!({"header": {"type": "Cookie", "name": "jwt"}}));
    let result = authenticate(&configuration, &headers(&[("cookie", "jwt=a"), ("cookie", "jwt=b")]));
    assert_eq!(refusal_of(result).0, ErrorCode::InvalidHeaders);
}

// Several configurations

/// Two configurations at one location, distinguished by issuer, and one at another location.
fn several(headers: &HeaderMap) -> Result<Identity, Refusal> {
    let second = "the second shared secret of 32 bytes or more";
    let configurations = json!([
        hs256(&json!({"issuer": "one"})),
        {"type": "HS256", "key": second, "issuer": "two"},
        {"type": "HS256", "key": second, "header": {"type": "Cookie", "name": "jwt"}},
    ]);
    let (authenticator, _) = authenticator(&[
        ("HASURA_GRAPHQL_JWT_SECRETS", &configurations.to_string()),
        ("HASURA_GRAPHQL_JWT_SECRET", "not even read"),
    ])
    .unwrap();
    authenticator.authenticate(headers)
}

fn claims_from(issuer: &str) -> Value {
    with(&json!({"iss": issuer, "https://hasura.io/jwt/claims": hasura_claims()}))
}

#[test]
fn the_issuer_chooses_among_several_configurations() {
    let second = Signer::hmac("HS256", "the second shared secret of 32 bytes or more");
    assert!(several(&bearer_of(&hs256_token(&claims_from("one")))).is_ok());
    assert!(several(&bearer_of(&second.token(&claims_from("two")))).is_ok());
    let result = several(&bearer_of(&second.token(&claims_from("one"))));
    assert_eq!(refusal_of(result), invalid_jwt("JWSError JWSInvalidSignature"));
}

#[test]
fn the_place_chooses_among_several_configurations() {
    let second = Signer::hmac("HS256", "the second shared secret of 32 bytes or more");
    let cookie = format!("jwt={}", second.token(&claims_from("anybody")));
    assert!(several(&headers(&[("cookie", &cookie)])).is_ok());
}

#[test]
fn more_than_one_match_is_refused() {
    let multiple = invalid_headers("Could not verify JWT: Multiple JWTs found");
    // Without an issuer the token fits both.
    assert_eq!(refusal_of(several(&bearer_of(&hs256_token(&claims())))), multiple);
    let mut two_locations = bearer_of(&hs256_token(&claims_from("one")));
    two_locations.insert("cookie", format!("jwt={}", hs256_token(&claims())).parse().unwrap());
    assert_eq!(refusal_of(several(&two_locations)), multiple);
}

#[test]
fn no_match_is_refused() {
    let missing = invalid_headers("Missing 'Authorization' or 'Cookie' header in JWT authentication mode");
    assert_eq!(refusal_of(several(&bearer_of(&hs256_token(&claims_from("three"))))), missing);
    assert_eq!(refusal_of(several(&HeaderMap::new())), missing);
}

// Kinds of keys

/// A configuration with the public key of that name.
fn public(kind: &str, name: &str) -> Value {
    json!({"type": kind, "key": pem(name)})
}

#[test]
fn every_kind_of_key_verifies_its_tokens_from_pem_and_certificate() {
    let hmac_key = SECRET.repeat(2);
    for kind in ["HS256", "HS384", "HS512"] {
        let token = Signer::hmac(kind, &hmac_key).token(&claims());
        let configuration = json!({"type": kind, "key": hmac_key});
        assert!(authenticate(&configuration, &bearer_of(&token)).is_ok(), "{kind}");
    }
    for (kind, name, signer) in [
        ("RS256", "rsa2048", Signer::rsa("RS256", &signature::RSA_PKCS1_SHA256)),
        ("RS384", "rsa2048", Signer::rsa("RS384", &signature::RSA_PKCS1_SHA384)),
        ("RS512", "rsa2048", Signer::rsa("RS512", &signature::RSA_PKCS1_SHA512)),
        ("ES256", "p256", Signer::new("p256")),
        ("ES384", "p384", Signer::new("p384")),
        ("Ed25519", "ed25519", Signer::new("ed25519")),
    ] {
        let token = signer.token(&claims());
        for form in ["public", "certificate"] {
            let configuration = public(kind, &format!("{name}.{form}"));
            assert!(authenticate(&configuration, &bearer_of(&token)).is_ok(), "{kind} {form}");
        }
    }
}

#[test]
fn a_freshly_made_key_verifies_its_tokens() {
    for (kind, name, algorithm) in [
        ("ES256", "ES256", &rcgen::PKCS_ECDSA_P256_SHA256),
        ("ES384", "ES384", &rcgen::PKCS_ECDSA_P384_SHA384),
        ("Ed25519", "EdDSA", &rcgen::PKCS_ED25519),
    ] {
        let pair = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let token = Signer::from_pkcs8(name, &pair.serialize_der()).token(&claims());
        let configuration = json!({"type": kind, "key": pair.public_key_pem()});
        assert!(authenticate(&configuration, &bearer_of(&token)).is_ok(), "{kind}");
    }
}

#[test]
fn published_examples_of_the_rfcs_verify() {
    let set = |key: Value| KeySet::parse(json!({ "keys": [key] }).to_string().as_bytes()).unwrap();
    let decode =
        |text| base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, text).unwrap();
    // RFC 7515, appendix A.3.
    let es256 = set(json!({
        "kty": "EC", "crv": "P-256",
        "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
    }));
    let message = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNv\
                   bS9pc19yb290Ijp0cnVlfQ";
    let signature =
        decode("DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q");
    assert!(es256.verify(Algorithm::Es256, None, message.as_bytes(), &signature));
    // RFC 8037, appendix A.4.
    let ed25519 =
        set(json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}));
    let message = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc";
    let signature =
        decode("hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg");
    assert!(ed25519.verify(Algorithm::Ed25519, None, message.as_bytes(), &signature));
}

// Attacks

#[test]
fn a_public_key_is_no_shared_secret() {
    let configuration = public("RS256", "rsa2048.public");
    let key = pem("rsa2048.public");
    for secret in [key.as_str(), key.trim()] {
        let token = Signer::hmac("HS256", secret).token(&claims());
        let result = authenticate(&configuration, &bearer_of(&token));
        assert_eq!(refusal_of(result), invalid_jwt("JWSError JWSInvalidSignature"));
    }
}

#[test]
fn the_algorithm_is_the_configured_one_whatever_the_token_says() {
    let rs256 = Signer::new("rsa2048");
    let claims = claims();
    for header in [
        json!({"alg": "none"}),
        json!({"alg": "None"}),
        json!({"alg": "NONE"}),
        json!({"alg": ""}),
        json!({"alg": "HS256"}),
        json!({"alg": "RS384"}),
        json!({"alg": "PS256"}),
        json!({"alg": "ES256"}),
        json!({"alg": "ES512"}),
        json!({"alg": "rs256"}),
    ] {
        let token = rs256.token_with(&header, &claims);
        let result = authenticate(&public("RS256", "rsa2048.public"), &bearer_of(&token));
        assert_eq!(refusal_of(result), invalid_jwt("JWSError JWSInvalidSignature"), "{header}");
        // Without its signature.
        let unsigned = &token[..=token.rfind('.').unwrap()];
        let result = authenticate(&public("RS256", "rsa2048.public"), &bearer_of(unsigned));
        assert_eq!(refusal_of(result), invalid_jwt("JWSError JWSInvalidSignature"), "{header}");
    }
    // Rightly signed by the same key with another hash: still not the configured algorithm.
    let rs512 = Signer::rsa("RS512", &signature::RSA_PKCS1_SHA512).token(&claims);
    let result = authenticate(&public("RS256", "rsa2048.public"), &bearer_of(&rs512));
    assert_eq!(refusal_of(result), invalid_jwt("JWSError JWSInvalidSignature"));
}

#[test]
fn keys_that_a_token_brings_along_are_not_looked_at() {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let stranger = Signer::from_pkcs8("ES256", &pair.serialize_der());
    let point = pair.public_key_raw();
    let encode =
        |bytes: &[u8]| base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, bytes);
    let jwk = json!({"kty": "EC", "crv": "P-256", "x": encode(&point[1..33]), "y": encode(&point[33..])});
    for header in [
        json!({"alg": "ES256", "jwk": jwk}),
        json!({"alg": "ES256", "jku": "https://evil.example/jwks"}),
        json!({"alg": "ES256", "x5u": "https://evil.example/cert"}),
        json!({"alg": "ES256", "x5c": ["AAAA"]}),
        json!({"alg": "ES256", "kid": "../../../../dev/null"}),
        json!({"alg": "ES256", "kid": "' OR 1=1 --"}),
    ] {
        let token = stranger.token_with(&header, &claims());
        let result = authenticate(&public("ES256", "p256.public"), &bearer_of(&token));
        assert_eq!(refusal_of(result), invalid_jwt("JWSError JWSInvalidSignature"), "{header}");
    }
}

#[test]
fn a_header_that_is_not_one_we_know_is_refused() {
    let signer = Signer::hmac("HS256", SECRET);
    for header in [
        "",
        "[]",
        "null",
        "{}",
        r#"{"alg": 5}"#,
        r#"{"alg": null}"#,
        r#"{"alg": "none", "alg": "HS256"}"#,
        r#"{"alg": "HS256", "crit": ["b64"], "b64": false}"#,
        r#"{"alg": "HS256", "crit": []}"#,
        r#"{"alg": "HS256", "crit": null}"#,
        r#"{"alg": "HS256", "kid": 5}"#,
    ] {
        let token = signer.token_of(header, &claims().to_string());
        let result = authenticate(&hs256(&json!({})), &bearer_of(&token));
        assert_eq!(
            refusal_of(result),
            invalid_jwt("JWSError (JSONDecodeError the header is not one that we know)"),
            "{header}"
        );
    }
}

#[test]
fn what_is_not_three_parts_is_refused_with_their_number() {
    let parts = |number| {
        let text = "JWSError (CompactDecodeError Invalid number of parts: Expected 3 parts; got";
        invalid_jwt(&format!("{text} {number})"))
    };
    for (token, number) in [("abc", 1), ("a.b", 2), ("a.b.c.d", 4), ("a.b.c.d.e", 5)] {
        assert_eq!(refusal_of(authenticate(&hs256(&json!({})), &bearer_of(token))), parts(number));
    }
}

#[test]
fn no_cut_and_no_flipped_character_of_a_token_is_accepted() {
    let token = hs256_token(&claims());
    let (authenticator, _) =
        authenticator(&[("HASURA_GRAPHQL_JWT_SECRET", &hs256(&json!({})).to_string())]).unwrap();
    for at in 1..token.len() {
        assert!(authenticator.authenticate(&bearer_of(&token[..at])).is_err(), "cut at {at}");
    }
    for at in 0..token.len() {
        let mut bytes = token.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let flipped = String::from_utf8(bytes).unwrap();
        assert!(authenticator.authenticate(&bearer_of(&flipped)).is_err(), "flipped at {at}");
    }
    for padded in [format!("{token}="), format!("{token}A"), format!("{token}\u{7f}")] {
        if let Ok(value) = format!("Bearer {padded}").parse() {
            let mut headers = HeaderMap::new();
            headers.insert("authorization", value);
            assert!(authenticator.authenticate(&headers).is_err());
        }
    }
}

#[test]
fn claims_that_are_not_an_object_are_refused() {
    for payload in ["", "null", "[]", "5", "\"text\"", "{", &"[".repeat(10_000), "{\"exp\":1e999}"] {
        let token = Signer::hmac("HS256", SECRET).token_of(r#"{"alg":"HS256"}"#, payload);
        let result = authenticate(&hs256(&json!({})), &bearer_of(&token));
        assert_eq!(refusal_of(result), invalid_jwt("JWTClaimsSetDecodeError"), "{payload}");
    }
}

#[test]
fn a_token_of_a_megabyte_is_refused_without_reading_it() {
    let mut claims = hasura_claims();
    claims["x-hasura-user-id"] = json!("x".repeat(1024 * 1024));
    assert_eq!(
        refused(&json!({}), &namespace(claims)),
        invalid_jwt("JWSError (CompactDecodeError the token is too long)")
    );
}

#[test]
fn no_refusal_shows_the_token_or_a_claim() {
    const CANARY: &str = "canary-4711";
    let user = |name: &str, value: Value| {
        let mut claims = hasura_claims();
        claims[name] = value;
        claims
    };
    for (more, claims) in [
        (json!({}), namespace(json!(CANARY))),
        (json!({"claims_format": "stringified_json"}), namespace(json!(CANARY))),
        (json!({}), namespace(user("x-hasura-allowed-roles", json!(CANARY)))),
        (json!({}), namespace(user("x-hasura-allowed-roles", json!([{CANARY: CANARY}])))),
        (json!({}), namespace(user("x-hasura-default-role", json!(CANARY)))),
        (json!({}), namespace(user("x-hasura-default-role", json!([CANARY])))),
        (json!({}), namespace(user("x-hasura-user-id", json!([CANARY])))),
        (json!({"issuer": "us"}), with(&json!({"iss": CANARY}))),
        (json!({"audience": "us"}), with(&json!({"aud": CANARY}))),
        (json!({}), with(&json!({"exp": CANARY}))),
    ] {
        let token = hs256_token(&claims);
        let (_, message) = refusal_of(authenticate(&hs256(&more), &bearer_of(&token)));
        assert!(!message.contains(CANARY) && !message.contains(&token[..20]), "{message}");
    }
    let mut headers = bearer_of(&hs256_token(&self::claims()));
    headers.insert("x-hasura-role", CANARY.parse().unwrap());
    assert!(!refusal_of(authenticate(&hs256(&json!({})), &headers)).1.contains(CANARY));
    let (_, message) = refusal_of(authenticate(&hs256(&json!({})), &bearer_of(CANARY)));
    assert!(!message.contains(CANARY), "{message}");
}

// Configuration

#[test]
fn fields_that_nobody_knows_are_passed_over_and_null_is_absent() {
    let configuration = hs256(&json!({"future": 1, "issuer": null, "jwk_url": null, "header": null}));
    assert!(Jwt::of_one(&configuration.to_string(), true).is_ok());
}

#[test]
fn a_malformed_configuration_says_what_is_wrong() {
    let errors = |value: Value| Jwt::of_one(&value.to_string(), true).err().unwrap_or_default();
    let with = |more: Value| errors(hs256(&more));
    let types = "`type` is not one of HS256, HS384, HS512, RS256, RS384, RS512, ES256, ES384, Ed25519";
    let no_map_path = "`claims_map` x-hasura-default-role has no `path` such as `$.user.id`";
    for (found, expected) in [
        (errors(json!([])), "is not a JSON object"),
        (errors(json!({})), "key and jwk_url both cannot be empty"),
        (with(json!({"jwk_url": "https://a.b"})), "key, jwk_url both cannot be present"),
        (
            errors(json!({"jwk_url": "ftp://a.b"})),
            "`jwk_url` is not an address that begins with https:// or http://",
        ),
        (errors(json!({"jwk_url": 5})), "`jwk_url` is not a text"),
        (with(json!({"key": 5})), "`key` is not a text"),
        (with(json!({"key": "short"})), "`key`: Key size too small; should be atleast 32 characters"),
        (with(json!({"type": "HS384"})), "`key`: Key size too small; should be atleast 48 characters"),
        (with(json!({"type": "HS512"})), "`key`: Key size too small; should be atleast 64 characters"),
        (with(json!({"type": "none"})), types),
        (with(json!({"type": "PS256"})), types),
        (with(json!({"type": "hs256"})), types),
        (
            errors(public("ES512", "p521.public")),
            "`type` ES512 is not supported: the cryptographic library (ring) does not have it",
        ),
        (errors(public("RS256", "p256.public")), "`key` is not a key for the `type` RS256"),
        (errors(public("ES256", "p384.public")), "`key` is not a key for the `type` ES256"),
        (
            errors(public("RS256", "rsa1024.public")),
            "`key` is an RSA key of less than 2048 or more than 8192 bits",
        ),
        (
            errors(public("RS256", "rsa2048.private")),
            "`key` is a private key; only the public key or its certificate belongs here",
        ),
        (
            with(json!({"claims_namespace": "a", "claims_namespace_path": "$"})),
            "claims_namespace and claims_namespace_path both cannot be set",
        ),
        (
            with(json!({"claims_namespace_path": "$.."})),
            "`claims_namespace_path` is not a JSON path such as `$.hasura.claims`",
        ),
        (with(json!({"claims_format": "xml"})), "`claims_format` is neither `json` nor `stringified_json`"),
        (with(json!({"audience": 5})), "`audience` is neither a text nor a list of texts"),
        (with(json!({"audience": []})), "`audience` is neither a text nor a list of texts"),
        (with(json!({"issuer": []})), "`issuer` is not a text"),
        (with(json!({"allowed_skew": -1})), "`allowed_skew` is not a number of seconds"),
        (with(json!({"allowed_skew": "1"})), "`allowed_skew` is not a number of seconds"),
        (with(json!({"header": "Cookie"})), "`header` is not a JSON object"),
        (with(json!({"header": {}})), "`header` has no `type` of Authorization, Cookie or CustomHeader"),
        (with(json!({"header": {"type": "Cookie"}})), "`header` of type Cookie has no `name`"),
        (
            with(json!({"header": {"type": "CustomHeader", "name": "a b"}})),
            "`header` of type CustomHeader has no `name` that a header can have",
        ),
        (
            with(json!({"claims_map": {"x-hasura-default-role": "a"}})),
            "`claims_map` x-hasura-allowed-roles is expected but not found",
        ),
        (
            with(
                json!({"claims_map": {"x-hasura-allowed-roles": ["a"], "x-hasura-default-role": {"path": "$."}}}),
            ),
            no_map_path,
        ),
        (
            with(json!({"claims_map": {"x-hasura-allowed-roles": "a", "x-hasura-default-role": "a"}})),
            "`claims_map` x-hasura-allowed-roles is neither a list of roles nor an object with a `path`",
        ),
        (
            with(json!({"claims_map": {
                "x-hasura-allowed-roles": {"path": "$.a", "default": "user"}, "x-hasura-default-role": "a",
            }})),
            "`claims_map` x-hasura-allowed-roles has a `default` that is not a list of roles",
        ),
    ] {
        assert_eq!(found, [expected]);
    }
}

#[test]
fn all_errors_name_their_variable_and_hide_the_key() {
    let configurations = json!([
        hs256(&json!({"issuer": 5, "allowed_skew": "x"})),
        {"type": "HS256", "key": "s3cret"},
    ]);
    let text = configurations.to_string();
    let errors = authenticator(&[("HASURA_GRAPHQL_JWT_SECRETS", &text)]).err().unwrap();
    let shown: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "HASURA_GRAPHQL_JWT_SECRETS: [0]: `issuer` is not a text",
            "HASURA_GRAPHQL_JWT_SECRETS: [0]: `allowed_skew` is not a number of seconds",
            "HASURA_GRAPHQL_JWT_SECRETS: [1]: `key`: Key size too small; should be atleast 32 characters",
        ]
    );
}

#[test]
fn a_configuration_that_is_not_json_is_not_quoted() {
    for text in ["s3cret", "\"s3cret\"", "{\"key\": s3cret}", "{\"s3cret\"}"] {
        let problems = Jwt::of_one(text, true).err().unwrap();
        assert!(problems.iter().all(|problem| !problem.contains("s3cret")), "{problems:?}");
    }
}
