//! Execution of a request's document: parsed, its cost checked, validated, and run.

use std::sync::Arc;

use async_graphql::Pos;

use crate::app::Room;
use crate::model::{ErrorCode, Operation, Refusal, RequestId};
use crate::tenancy::Caller;

use super::body;
use super::cost::{Budget, OverBudget, cost_of};
use super::denied::{is_denied, without_arguments};
use super::error::{self, Written};
use super::parser::{ParseError, SyntaxError, parse};
use super::schema::{ByokSchema, schema};
use super::validated_cache::{ValidatedCache, ValidatedDocument, holds_no_value};
use super::validity::{Fault, Validity};

/// The executor of documents.
pub(super) struct Runner {
    schema: ByokSchema,
    validity: Validity,
    validated: ValidatedCache,
}

/// Why a request does not run.
pub(super) enum NotRun {
    /// Its bytes are not a GraphQL request.
    Malformed(Refusal),
    /// It is refused, possibly because of what is at this position of the document.
    Refused(Refusal, Option<Pos>),
    /// It is not valid.
    Invalid(Vec<Fault>),
    /// It exceeds its budget.
    OverBudget(OverBudget),
}

/// A request that may run.
pub(super) struct Ready {
    request: async_graphql::Request,
    /// About how many bytes its arguments take, with all copies.
    pub(super) bytes: usize,
    /// What its first root does.
    pub(super) operation: Option<Operation>,
}

impl Runner {
    pub(super) fn new() -> Self {
        let schema = schema();
        Self { validity: Validity::of(&schema), schema, validated: ValidatedCache::new() }
    }

    /// Parses and checks a request within its caller's budget. `may_ever` tells whether the caller
    /// may do an operation in any context.
    pub(super) fn prepare(
        &self,
        bytes: &[u8],
        budget: &Budget,
        caller: &Result<Caller, Refusal>,
        may_ever: impl Fn(&Caller, Operation) -> bool,
    ) -> Result<Ready, NotRun> {
        let body = body::read(bytes, budget.values).map_err(NotRun::Malformed)?;
        // Cached documents were checked with the budget of a caller with an identity.
        let cached = caller.as_ref().ok().and_then(|_| self.validated.get(&body.query));
        let is_cached = cached.is_some();
        let (document, cost) = match cached {
            Some(cached) => (cached.document.clone(), cached.cost.clone()),
            None => {
                let document = parse(&body.query, budget).map_err(not_parsed)?;
                let cost = cost_of(&document, budget).map_err(NotRun::OverBudget)?;
                (document, Arc::new(cost))
            }
        };
        if let (Err(refusal), true) = (caller, cost.needs_identity) {
            return Err(NotRun::Refused(refusal.clone(), None));
        }
        let operation_name = body.operation_name.as_deref();
        let operation = cost.first_operation();
        let denied =
            caller.as_ref().is_ok_and(|caller| is_denied(&cost, |operation| may_ever(caller, operation)));
        let (document, cost) = if denied {
            let document = without_arguments(document);
            let cost = cost_of(&document, budget).map_err(NotRun::OverBudget)?;
            (document, Arc::new(cost))
        } else {
            (document, cost)
        };
        let bytes = cost.check_with(&body.variables, budget).map_err(NotRun::OverBudget)?;
        if !is_cached && !denied {
            self.validity.of_document(&document).map_err(NotRun::Invalid)?;
            if caller.is_ok() && holds_no_value(&body.query, &document) {
                self.validated.insert(body.query, ValidatedDocument { document: document.clone(), cost });
            }
        }
        if !denied {
            self.validity
                .of_variables(&document, operation_name, &body.variables)
                .map_err(NotRun::Invalid)?;
        }
        // The text is not passed on, so that nothing that runs can show it.
        let mut request = async_graphql::Request::new("").variables(body.variables);
        request.operation_name = body.operation_name;
        request.set_parsed_query(document);
        Ok(Ready { request, bytes, operation })
    }

    /// Runs a request. Its fields share `call`, which is returned when all of them have run.
    pub(super) async fn run<C: Send + Sync + 'static>(
        &self,
        ready: Ready,
        request_id: &RequestId,
        room: &dyn Room,
        call: C,
    ) -> (Result<Written, Refusal>, Arc<C>) {
        let call = Arc::new(call);
        let response = self.schema.execute(ready.request.data(call.clone())).await;
        (error::answer(response, request_id, room), call)
    }
}

/// Whether each of these texts is a valid document for a caller with an identity, apart from the
/// limit on pages of the audit log.
pub fn are_valid<'t>(texts: impl IntoIterator<Item = &'t str>, items: usize, body_bytes: usize) -> Vec<bool> {
    let budget = Budget { pages: None, ..Budget::authenticated(items, body_bytes) };
    let runner = Runner::new();
    let is_valid = |text| {
        let document = parse(text, &budget).map_err(not_parsed)?;
        cost_of(&document, &budget).map_err(NotRun::OverBudget)?;
        runner.validity.of_document(&document).map_err(NotRun::Invalid)
    };
    texts.into_iter().map(|text| is_valid(text).is_ok()).collect()
}

fn not_parsed(error: ParseError) -> NotRun {
    match error {
        ParseError::Syntax(SyntaxError(pos)) => {
            let why = "The query is not a GraphQL document, or it nests too deep.";
            NotRun::Refused(Refusal::because(ErrorCode::QueryInvalid, why), Some(pos))
        }
        ParseError::OverBudget(code) => {
            NotRun::OverBudget(OverBudget { refusal: code.into(), operation: None })
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::app::Unbounded;
    use crate::model::{Identity, Means, Session, Tenant, TenantUid};
    use crate::tenancy::TenantRuntime;

    use super::*;

    const CANARY: &str = "C4N4RY";

    fn known() -> Result<Caller, Refusal> {
        let identity =
            Identity { role: "admin".into(), user: None, session: Session::default(), means: Means::Jwt };
        let tenant = Arc::new(Tenant { uid: TenantUid([7; 16]), name: "primary".to_owned() });
        let runtime = TenantRuntime::without_keys(tenant);
        Ok(Caller { runtime, identity, request_id: RequestId::fresh() })
    }

    /// Runs without use cases: a field that needs them is answered INTERNAL.
    async fn run_bytes(bytes: &[u8], caller: Result<Caller, Refusal>) -> String {
        run_for(bytes, caller, &[Operation::Encrypt, Operation::Reveal, Operation::Audit]).await
    }

    /// Runs a request of a caller who may do only these operations.
    async fn run_for(bytes: &[u8], caller: Result<Caller, Refusal>, may: &[Operation]) -> String {
        let (request_id, runner) = (RequestId::fresh(), Runner::new());
        let budget = caller.as_ref().map_or(Budget::ANONYMOUS, |_| Budget::authenticated(100, 1 << 20));
        let written = match runner.prepare(bytes, &budget, &caller, |_, operation| may.contains(&operation)) {
            Ok(ready) => runner.run(ready, &request_id, &Unbounded, ()).await.0.unwrap(),
            Err(NotRun::Malformed(refusal) | NotRun::OverBudget(OverBudget { refusal, .. })) => {
                error::refused(&refusal, &[], &request_id)
            }
            Err(NotRun::Refused(refusal, location)) => {
                error::refused(&refusal, location.as_slice(), &request_id)
            }
            Err(NotRun::Invalid(faults)) => error::invalid(&faults, &request_id),
        };
        String::from_utf8(written.body).unwrap()
    }

    async fn code(query: &str, caller: Result<Caller, Refusal>) -> Value {
        let answer = run_bytes(json!({"query": query}).to_string().as_bytes(), caller).await;
        serde_json::from_str::<Value>(&answer).unwrap()["errors"][0]["extensions"]["code"].clone()
    }

    #[tokio::test]
    async fn no_answer_to_a_bad_request_holds_a_value_of_it() {
        let documents = [
            "C4N4RY",
            "{ byokHealth { status } C4N4RY",
            "{ byokReveal(ciphertext: \"C4N4RY\" ?) { value } }",
            "{ byokReveal(ciphertext: \"C4N4RY) { value } }",
            "{ byokReveal(ciphertext: \"C4N4RY\\q\") { value } }",
            "{ byokHealth @skip(if: \"C4N4RY\") { status } }",
            "{ byokAudit(first: \"C4N4RY\") { edges { cursor } } }",
            "{ byokAudit(filter: { operation: C4N4RY }) { edges { cursor } } }",
            "{ byokAudit(filter: { C4N4RY: 1 }) { edges { cursor } } }",
            "{ byokAudit(filter: { from: \"C4N4RY\" }) { edges { cursor } } }",
            "{ byokAudit(filter: { user: C4N4RY }) { edges { cursor } } }",
            "{ byokReveal(ciphertext: C4N4RY) { value } }",
            "{ byokReveal(ciphertext: [\"C4N4RY\"]) { value } }",
            "{ byokReveal(ciphertext: {C4N4RY: \"C4N4RY\"}) { value } }",
            "{ byokReveal(ciphertext: \"a\", context: C4N4RY) { value } }",
            "{ byokReveal(ciphertext: \"a\", context: {a: [C4N4RY]}) { value } }",
            "{ byokReveal(ciphertext: \"a\", context: {C4N4RY: 1, C4N4RY: 1}) { value } }",
            "{ byokReveal(ciphertext: \"C4N4RY\") }",
            "{ a: byokReveal(ciphertext: \"C4N4RY\") { value } a: byokReveal(ciphertext: \"C4N4RY2\") { value } }",
            "{ byokRevealMany(items: [{ciphertext: \"a\", C4N4RY: 1}]) { value } }",
            "{ byokRevealMany(items: [{ciphertext: C4N4RY}]) { value } }",
            "mutation { byokEncrypt(plaintext: 17, encoding: C4N4RY) { ciphertext } }",
            "mutation { byokEncrypt(plaintext: \"C4N4RY\", encoding: HEX) { ciphertext } }",
            "mutation { byokEncrypt(plaintext: \"C4N4RY\", plaintext: \"C4N4RY\") { ciphertext } }",
            "mutation { byokEncrypt(plain: \"C4N4RY\") { ciphertext } }",
            "mutation { byokEncryptMany(items: {plaintext: C4N4RY}) { ciphertext } }",
            "subscription C4N4RY { C4N4RY }",
            "query C4N4RY { byokHealth { status } } query C4N4RY { byokHealth { status } }",
        ];
        for document in documents {
            for caller in [known(), Err(ErrorCode::InvalidHeaders.into())] {
                let answer = run_bytes(json!({"query": document}).to_string().as_bytes(), caller).await;
                assert!(!answer.contains(CANARY), "{document}: {answer}");
                assert!(answer.contains("errors"), "{document}: {answer}");
            }
        }
    }

    #[tokio::test]
    async fn a_fault_names_what_is_not_valid() {
        let long = format!("{{ {} }}", "x".repeat(10_000));
        let cut = format!("Unknown field \"{}\" on type \"Query\"", "x".repeat(64));
        for (document, expected) in [
            ("{ nothing }", "Unknown field \"nothing\" on type \"Query\""),
            ("{ byokHealth { nothing } }", "Unknown field \"nothing\" on type \"ByokHealth\""),
            ("{ byokHealth { status { x } } }", "Field \"status\" must not have a selection"),
            ("{ byokHealth }", "Field \"byokHealth\" of type \"ByokHealth\" must have a selection"),
            (
                "{ byokHealth(a: 1) { status } }",
                "Unknown argument \"a\" on field \"byokHealth\" of type \"Query\"",
            ),
            ("{ byokHealth @d { status } }", "Unknown directive \"d\""),
            (
                "{ byokHealth @include(a: true) { status } }",
                "argument \"if\" of type \"Boolean!\" is required",
            ),
            ("{ ...F }", "Unknown fragment: \"F\""),
            ("{ ... on T { byokHealth { status } } }", "Unknown type \"T\""),
            ("{ byokHealth { status } } fragment F on Query { __typename }", "Fragment \"F\" is never used"),
            ("query($a: Int) { byokHealth { status } }", "Variable \"$a\" is not used"),
            ("query($a: T) { byokAudit(first: $a) { edges { cursor } } }", "Unknown type \"T\""),
            ("{ byokAudit(first: $a) { edges { cursor } } }", "Variable \"$a\" is not defined"),
            ("{ byokReveal { value } }", "Field \"byokReveal\" argument \"ciphertext\" is required"),
            (
                "{ byokAudit(first: \"C4N4RY\") { edges { cursor } } }",
                "argument \"first\", expected type \"Int\"",
            ),
            (
                "{ byokRevealMany(items: [{ciphertext: \"\", encoding: C4N4RY}]) { value } }",
                "argument \"items[0].encoding\", expected type \"ByokEncoding\"",
            ),
            ("{ __typename { x } }", "Field \"__typename\" has neither arguments nor a selection"),
            ("query($a: String!) { byokReveal(ciphertext: $a) { value } }", "Variable \"$a\" is required"),
            (
                "{ byokAudit(filter: {from: \"C4N4RY\"}) { edges { cursor } } }",
                "argument \"filter.from\", expected type \"timestamptz\"",
            ),
            (&long, &cut),
        ] {
            let answer = run_bytes(json!({"query": document}).to_string().as_bytes(), known()).await;
            let answer: Value = serde_json::from_str(&answer).unwrap();
            let errors = answer["errors"].as_array().unwrap();
            let named = errors.iter().any(|error| error["message"].as_str().unwrap().contains(expected));
            assert!(named && !answer.to_string().contains(CANARY), "{expected}: {answer}");
            assert!(answer.to_string().len() < 4_096, "{expected}");
        }
    }

    #[tokio::test]
    async fn a_fault_names_its_field_and_location() {
        let many = "query($i: [ByokDecryptItem!]!) { byokRevealMany(items: $i) { value } }";
        for (request, field) in [
            (
                json!({"query": "{ byokAudit(filter: {from: \"C4N4RY\"}) { edges { cursor } } }"}),
                "byokAudit.filter.from",
            ),
            (json!({"query": "{ byokReveal { value } }"}), "byokReveal.ciphertext"),
            (
                json!({"query": many, "variables": {"i": [{"ciphertext": ""}, {"ciphertext": 7}]}}),
                "$i[1].ciphertext",
            ),
        ] {
            let answer = run_bytes(request.to_string().as_bytes(), known()).await;
            let answer: Value = serde_json::from_str(&answer).unwrap();
            assert_eq!(answer["errors"][0]["extensions"]["field"], field, "{answer}");
            assert!(answer["errors"][0]["locations"][0]["line"].is_u64(), "{answer}");
        }
    }

    #[tokio::test]
    async fn no_answer_to_bad_variables_holds_a_piece_of_them() {
        let encrypt = "mutation M($p: String!, $c: jsonb, $e: ByokEncoding, $r: ID) {
            byokEncrypt(plaintext: $p, context: $c, encoding: $e, recordId: $r) { ciphertext } }";
        let many = "mutation M($i: [ByokEncryptItem!]!) { byokEncryptMany(items: $i) { ciphertext } }";
        for request in [
            json!({"query": encrypt, "variables": {"p": ["C4N4RY"]}}),
            json!({"query": encrypt, "variables": {"p": {"C4N4RY": 1}}}),
            json!({"query": encrypt, "variables": {"C4N4RY": "C4N4RY"}}),
            json!({"query": encrypt, "variables": {"p": null, "c": "C4N4RY"}}),
            json!({"query": encrypt, "variables": {"p": "C4N4RY", "e": "C4N4RY"}}),
            json!({"query": encrypt, "variables": {"p": "C4N4RY", "r": ["C4N4RY"]}}),
            json!({"query": many, "variables": {"i": [{"plaintext": "C4N4RY", "C4N4RY": 1}]}}),
            json!({"query": many, "variables": {"i": [{"plaintext": ["C4N4RY"]}]}}),
            json!({"query": many, "variables": {"i": "C4N4RY"}}),
            json!({"query": many, "variables": {"i": [{"C4N4RY": "C4N4RY"}]}}),
            json!({"query": encrypt, "operationName": "C4N4RY", "variables": {"p": "C4N4RY"}}),
            json!({"query": encrypt, "variables": "C4N4RY"}),
            json!({"query": {"C4N4RY": 1}}),
            json!({"C4N4RY": encrypt}),
        ] {
            let answer = run_bytes(request.to_string().as_bytes(), known()).await;
            assert!(!answer.contains(CANARY), "{request}: {answer}");
            assert!(answer.contains("errors"), "{request}: {answer}");
        }
        let answer = run_bytes(b"{\"query\":\"{a}\" C4N4RY", known()).await;
        assert!(!answer.contains(CANARY) && answer.contains("REQUEST_MALFORMED"), "{answer}");
    }

    #[tokio::test]
    async fn without_identity_there_is_introspection_and_nothing_else() {
        let anonymous = || Err(ErrorCode::InvalidJwt.into());
        assert_eq!(
            code(
                "{ __schema { queryType { name } } __type(name: \"ByokError\") { kind } __typename }",
                anonymous()
            )
            .await,
            Value::Null
        );
        assert_eq!(code("{ byokAudit { edges { cursor } } }", anonymous()).await, "invalid-jwt");
        assert_eq!(code("mutation { byokRotate { id } }", anonymous()).await, "invalid-jwt");
        assert_eq!(code("{ byokReveal(ciphertext: \"\") { value } }", anonymous()).await, "invalid-jwt");
    }

    #[tokio::test]
    async fn a_request_over_its_budget_is_refused() {
        let aliases = |count: usize| {
            (0..count).map(|n| format!("f{n}:byokReveal(ciphertext:\"\"){{value}}")).collect::<String>()
        };
        assert_eq!(code(&format!("{{{}}}", aliases(101)), known()).await, "TOO_MANY_ITEMS");
        let deep = format!("{{__schema{{types{}{{name}}{}}}}}", "{ofType".repeat(20), "}".repeat(20));
        assert_eq!(code(&deep, known()).await, "QUERY_INVALID");
        assert_eq!(
            code(&format!("{{byokHealth {} {{status}}}}", "@skip(if:false)".repeat(9)), known()).await,
            "QUERY_INVALID"
        );
    }

    #[tokio::test]
    async fn nothing_is_copied_for_a_caller_who_may_do_nothing() {
        let roots: String =
            (0..90).map(|n| format!("f{n}:byokReveal(ciphertext:$t,context:$c){{value}}")).collect();
        let query = format!("query($t:String!,$c:jsonb){{{roots}}}");
        let variables = json!({ "t": "x".repeat(500_000), "c": vec!["y"; 5_000] });
        let bytes = json!({ "query": query, "variables": variables }).to_string();
        let of = |may: &[Operation]| {
            Runner::new().prepare(
                bytes.as_bytes(),
                &Budget::authenticated(100, 1 << 20),
                &known(),
                |_, operation| may.contains(&operation),
            )
        };
        assert!(matches!(of(&[Operation::Reveal]), Err(NotRun::OverBudget(_))));
        let Ok(ready) = of(&[Operation::Audit]) else { panic!("the use case refuses it, not the budget") };
        assert!(ready.bytes < 10_000, "{}", ready.bytes);
        // It reaches the use case.
        let answer = run_for(bytes.as_bytes(), known(), &[]).await;
        assert!(answer.contains("\"f89\"") && answer.contains("INTERNAL"), "{answer}");
    }

    #[tokio::test]
    async fn a_document_cached_for_callers_is_not_used_for_strangers() {
        let runner = Runner::new();
        let aliases: String = (0..20).map(|n| format!("a{n}:byokHealth{{status}}")).collect();
        let query = format!("{{{aliases}}}");
        let bytes = json!({ "query": query }).to_string();
        let budget = Budget::authenticated(100, 1 << 20);
        assert!(runner.prepare(bytes.as_bytes(), &budget, &known(), |_, _| true).is_ok());
        assert!(runner.validated.get(&query).is_some());
        let anonymous = Err(ErrorCode::InvalidHeaders.into());
        let refused = runner.prepare(bytes.as_bytes(), &Budget::ANONYMOUS, &anonymous, |_, _| true);
        assert!(matches!(refused, Err(NotRun::OverBudget(_))));
    }
}
