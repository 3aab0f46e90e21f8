//! GraphQL over HTTP, POST and JSON only: anything else could be sent by a page of another site, or be kept by a cache.
//!
//! What is no request at all (method, content type, size, JSON) is answered with its HTTP status; everything else with
//! 200, as Hasura does, which looks at nothing but the body. To who accepts `application/graphql-response+json` the status
//! says besides whether the request ran. Every answer, refusals too, has the shape of GraphQL.

use std::sync::Arc;

use async_graphql::Pos;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::post;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};

use crate::app::{App, Arrival, Room, no_room};
use crate::model::{Caller, ErrorCode, Operation, Refusal, RequestId};

use super::body;
use super::budget::Budget;
use super::call::Call;
use super::denied::{is_denied, without_arguments};
use super::error::{self, Written};
use super::media::{Media, status_of};
use super::parser::{ParseError, SyntaxError, parse};
use super::plain::{Plain, PlainDocuments, is_plain};
use super::schema::{ByokSchema, schema};
use super::survey::{self, TooMuch};
use super::validity::{Fault, Validity};

/// How much is read for a caller without identity, or whose role may do nothing: many times Hasura's introspection.
const MAX_UNKNOWN_BYTES: usize = 64 << 10;
/// All that a role may be permitted here.
const OPERATIONS: [Operation; 5] =
    [Operation::Encrypt, Operation::Decrypt, Operation::Reveal, Operation::Rotate, Operation::Audit];

struct Front {
    app: Arc<App>,
    runner: Runner,
}

/// What runs documents.
struct Runner {
    schema: ByokSchema,
    validity: Validity,
    plain: PlainDocuments,
}

impl Runner {
    fn new() -> Self {
        let schema = schema();
        Self { validity: Validity::of(&schema), schema, plain: PlainDocuments::new() }
    }
}

/// The router of `/graphql`.
pub fn router(app: Arc<App>) -> Router {
    let front = Arc::new(Front { app, runner: Runner::new() });
    Router::new().route("/graphql", post(take).fallback(refuse_method)).with_state(front)
}

/// What the server itself refuses on this route: Hasura reads nothing but GraphQL's shape.
pub fn refused(media: Media, refusal: &Refusal, request_id: &RequestId) -> Response {
    answer(media, error::refused(refusal, &[], request_id))
}

/// Which of these texts are documents that are valid against the schema: what a known caller's request is asked before it runs,
/// but for how much of the audit log it asks for.
pub fn are_valid<'t>(texts: impl IntoIterator<Item = &'t str>, items: usize, body_bytes: usize) -> Vec<bool> {
    let budget = Budget { pages: None, ..Budget::of_known(items, body_bytes) };
    let runner = Runner::new();
    let is_valid = |text| {
        let document = parse(text, &budget).map_err(not_parsed)?;
        survey::survey(&document, &budget).map_err(NotRun::TooMuch)?;
        runner.validity.of_document(&document).map_err(NotRun::Invalid)
    };
    texts.into_iter().map(|text| is_valid(text).is_ok()).collect()
}

async fn take(State(front): State<Arc<Front>>, request: Request) -> Response {
    let (mut head, body) = request.into_parts();
    let request_id = request_id(&head.extensions);
    let Arrival { caller, room } = Arrival::take(&mut head.extensions);
    let limits = front.app.limits();
    let media = Media::asked_for(&head.headers);
    if !is_json(&head.headers) {
        let why = "The body must be sent as application/json.";
        return refuse(media, &Refusal::because(ErrorCode::MediaTypeUnsupported, why), &request_id);
    }
    let may_do_something = caller
        .as_ref()
        .is_ok_and(|caller| OPERATIONS.into_iter().any(|operation| front.app.may_ever(caller, operation)));
    let most = if may_do_something { limits.body_bytes } else { limits.body_bytes.min(MAX_UNKNOWN_BYTES) };
    let bytes = match (read(body, most).await, &caller) {
        (Ok(bytes), _) => bytes,
        // What it asks for stands in what was not read. So long is a join.
        (Err(refusal), Ok(caller)) if refusal.code == ErrorCode::BodyTooLarge && !may_do_something => {
            let denied = ErrorCode::PermissionDenied.into();
            let denied = front.app.refuse(caller, Operation::Reveal, denied).await;
            return answer(media, error::refused(&denied, &[], &request_id));
        }
        (Err(refusal), Err(unknown)) if refusal.code == ErrorCode::BodyTooLarge => {
            return answer(media, error::refused(unknown, &[], &request_id));
        }
        (Err(refusal), _) => return refuse(media, &refusal, &request_id),
    };
    let budget = match &caller {
        Ok(_) => Budget::of_known(limits.items, limits.body_bytes),
        Err(_) => Budget::OF_UNKNOWN,
    };
    let may_ever = |caller: &Caller, operation| front.app.may_ever(caller, operation);
    let refused =
        |refusal: &Refusal, places: &[Pos]| answer(media, error::refused(refusal, places, &request_id));
    match front.runner.prepare(&bytes, &budget, &caller, may_ever) {
        Ok(ready) if !room.hold(ready.bytes.max(bytes.len())) => refused(&no_room(), &[]),
        Ok(ready) => {
            if ready.bytes > MAX_UNKNOWN_BYTES {
                // What was small until now may be none that other requests should wait behind.
                tokio::task::yield_now().await;
            }
            drop(bytes);
            let does = ready.does;
            let call = Call::new(front.app.clone(), caller, room.clone());
            let (written, call) = front.runner.run(ready, &request_id, &*room, call).await;
            let written = match written {
                Ok(written) => written,
                Err(refusal) => return refused(&call.refuse(does, refusal).await, &[]),
            };
            let mut response = answer(media, written);
            if let Some(release) = call.release() {
                response.extensions_mut().insert(release);
            }
            response
        }
        Err(NotRun::Malformed(refusal)) => refuse(media, &refusal, &request_id),
        Err(NotRun::Refused(refusal, place)) => refused(&refusal, place.as_slice()),
        Err(NotRun::Invalid(faults)) => answer(media, error::invalid(&faults, &request_id)),
        Err(NotRun::TooMuch(TooMuch { refusal, does })) => match (&caller, does) {
            (Ok(caller), Some(operation)) => {
                refused(&front.app.refuse(caller, operation, refusal).await, &[])
            }
            _ => refused(&refusal, &[]),
        },
    }
}

/// Why a request does not run.
enum NotRun {
    /// Its bytes are no request.
    Malformed(Refusal),
    /// It is refused, because of what stands at this place.
    Refused(Refusal, Option<Pos>),
    /// It is not valid.
    Invalid(Vec<Fault>),
    /// It asks for too much.
    TooMuch(TooMuch),
}

/// A request that may run.
struct Ready {
    request: async_graphql::Request,
    /// How many bytes its arguments take, with all copies, about.
    bytes: usize,
    /// What its first root does.
    does: Option<Operation>,
}

impl Runner {
    /// Reads what the bytes of a request ask for, and whether that is within its caller's budget. `may_ever` says what the
    /// caller may do at all.
    fn prepare(
        &self,
        bytes: &[u8],
        budget: &Budget,
        caller: &Result<Caller, Refusal>,
        may_ever: impl Fn(&Caller, Operation) -> bool,
    ) -> Result<Ready, NotRun> {
        let body = body::read(bytes, budget.values).map_err(NotRun::Malformed)?;
        // Those that are kept have the budget of a known caller.
        let plain = caller.as_ref().ok().and_then(|_| self.plain.get(&body.query));
        let is_kept = plain.is_some();
        let (document, survey) = match plain {
            Some(plain) => (plain.document.clone(), plain.survey.clone()),
            None => {
                let document = parse(&body.query, budget).map_err(not_parsed)?;
                let survey = survey::survey(&document, budget).map_err(NotRun::TooMuch)?;
                (document, Arc::new(survey))
            }
        };
        if let (Err(unknown), true) = (caller, survey.needs_identity) {
            return Err(NotRun::Refused(unknown.clone(), None));
        }
        let operation = body.operation_name.as_deref();
        let does = survey.does.first().copied().flatten();
        let denied = caller.as_ref().is_ok_and(|caller| is_denied(&survey, |does| may_ever(caller, does)));
        let (document, survey) = match denied {
            true => {
                let document = without_arguments(document);
                let survey = survey::survey(&document, budget).map_err(NotRun::TooMuch)?;
                (document, Arc::new(survey))
            }
            false => (document, survey),
        };
        let bytes = survey.with(&body.variables, budget).map_err(NotRun::TooMuch)?;
        if !is_kept && !denied {
            self.validity.of_document(&document).map_err(NotRun::Invalid)?;
            if caller.is_ok() && is_plain(&body.query, &document) {
                self.plain.keep(body.query, Plain { document: document.clone(), survey });
            }
        }
        if !denied {
            self.validity.of_variables(&document, operation, &body.variables).map_err(NotRun::Invalid)?;
        }
        // The text stays behind: nothing that runs can show it.
        let mut request = async_graphql::Request::new("").variables(body.variables);
        request.operation_name = body.operation_name;
        request.set_parsed_query(document);
        Ok(Ready { request, bytes, does })
    }

    /// Runs a request. `call` is what its fields share; it comes back when all of them have run.
    async fn run<C: Send + Sync + 'static>(
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

fn not_parsed(error: ParseError) -> NotRun {
    match error {
        ParseError::Syntax(SyntaxError(place)) => {
            let why = "The query is not a GraphQL document, or nests too deep.";
            NotRun::Refused(Refusal::because(ErrorCode::QueryInvalid, why), Some(place))
        }
        ParseError::TooMuch(code) => NotRun::TooMuch(TooMuch { refusal: code.into(), does: None }),
    }
}

async fn refuse_method(method: Method, request: Request) -> Response {
    let request_id = request_id(request.extensions());
    let media = Media::asked_for(request.headers());
    let mut response = refuse(media, &ErrorCode::MethodNotAllowed.into(), &request_id);
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
    if method == Method::HEAD {
        *response.body_mut() = Body::empty();
    }
    response
}

async fn read(body: Body, limit: usize) -> Result<axum::body::Bytes, Refusal> {
    match Limited::new(body, limit).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ErrorCode::BodyTooLarge.into()),
        Err(_) => Err(Refusal::because(ErrorCode::RequestMalformed, "The body ended before it was whole.")),
    }
}

fn request_id(extensions: &http::Extensions) -> RequestId {
    extensions.get().cloned().unwrap_or_else(RequestId::fresh)
}

/// A browser sends `application/json` to another site only after that site has allowed it.
fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

/// Refuses what could not be read as a request.
fn refuse(media: Media, refusal: &Refusal, request_id: &RequestId) -> Response {
    let mut response = answer(media, error::refused(refusal, &[], request_id));
    *response.status_mut() = status_of(refusal.code);
    response
}

/// The code goes along for the server's metrics.
fn answer(media: Media, Written { body, code, has_run }: Written) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = media.status(code.filter(|_| !has_run));
    if let Some(code) = code {
        response.extensions_mut().insert(code);
    }
    let is_unauthorized = response.status() == StatusCode::UNAUTHORIZED;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, media.content_type());
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if is_unauthorized {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::app::Unbounded;
    use crate::model::{Identity, Means, Session, Tenant, TenantUid};

    use super::*;

    const CANARY: &str = "C4N4RY";

    fn known() -> Result<Caller, Refusal> {
        let identity =
            Identity { role: "admin".into(), user: None, session: Session::default(), means: Means::Jwt };
        let tenant = Arc::new(Tenant { uid: TenantUid([7; 16]), name: "primary".to_owned() });
        Ok(Caller { tenant, identity, request_id: RequestId::fresh() })
    }

    /// Runs without use cases: a field that came so far as to need them would answer INTERNAL.
    async fn run_bytes(bytes: &[u8], caller: Result<Caller, Refusal>) -> String {
        run_for(bytes, caller, &[Operation::Encrypt, Operation::Reveal, Operation::Audit]).await
    }

    /// The same for a caller who may do no more than this.
    async fn run_for(bytes: &[u8], caller: Result<Caller, Refusal>, may: &[Operation]) -> String {
        let (request_id, runner) = (RequestId::fresh(), Runner::new());
        let budget = caller.as_ref().map_or(Budget::OF_UNKNOWN, |_| Budget::of_known(100, 1 << 20));
        let written = match runner.prepare(bytes, &budget, &caller, |_, does| may.contains(&does)) {
            Ok(ready) => runner.run(ready, &request_id, &Unbounded, ()).await.0.unwrap(),
            Err(NotRun::Malformed(refusal) | NotRun::TooMuch(TooMuch { refusal, .. })) => {
                error::refused(&refusal, &[], &request_id)
            }
            Err(NotRun::Refused(refusal, place)) => error::refused(&refusal, place.as_slice(), &request_id),
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
    async fn what_is_not_valid_is_named() {
        let long = format!("{{ {} }}", "x".repeat(10_000));
        let cut = format!("Unknown field \"{}\" on type \"Query\"", "x".repeat(64));
        for (document, said) in [
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
            let named = errors.iter().any(|error| error["message"].as_str().unwrap().contains(said));
            assert!(named && !answer.to_string().contains(CANARY), "{said}: {answer}");
            assert!(answer.to_string().len() < 4_096, "{said}");
        }
    }

    #[tokio::test]
    async fn the_place_of_what_is_wrong_is_told() {
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
        let unknown = || Err(ErrorCode::InvalidJwt.into());
        assert_eq!(
            code(
                "{ __schema { queryType { name } } __type(name: \"ByokError\") { kind } __typename }",
                unknown()
            )
            .await,
            Value::Null
        );
        assert_eq!(code("{ byokAudit { edges { cursor } } }", unknown()).await, "invalid-jwt");
        assert_eq!(code("mutation { byokRotate { id } }", unknown()).await, "invalid-jwt");
        assert_eq!(code("{ byokReveal(ciphertext: \"\") { value } }", unknown()).await, "invalid-jwt");
    }

    #[tokio::test]
    async fn what_asks_for_too_much_is_refused() {
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
    async fn nothing_is_copied_for_who_may_do_nothing() {
        let roots: String =
            (0..90).map(|n| format!("f{n}:byokReveal(ciphertext:$t,context:$c){{value}}")).collect();
        let query = format!("query($t:String!,$c:jsonb){{{roots}}}");
        let variables = json!({ "t": "x".repeat(500_000), "c": vec!["y"; 5_000] });
        let bytes = json!({ "query": query, "variables": variables }).to_string();
        let of = |may: &[Operation]| {
            Runner::new().prepare(bytes.as_bytes(), &Budget::of_known(100, 1 << 20), &known(), |_, does| {
                may.contains(&does)
            })
        };
        assert!(matches!(of(&[Operation::Reveal]), Err(NotRun::TooMuch(_))));
        let Ok(ready) = of(&[Operation::Audit]) else { panic!("it is for the use case to refuse") };
        assert!(ready.bytes < 10_000, "{}", ready.bytes);
        // It comes as far as the use case.
        let answer = run_for(bytes.as_bytes(), known(), &[]).await;
        assert!(answer.contains("\"f89\"") && answer.contains("INTERNAL"), "{answer}");
    }

    #[tokio::test]
    async fn what_a_known_caller_sent_before_is_not_kept_for_a_stranger() {
        let runner = Runner::new();
        let aliases: String = (0..20).map(|n| format!("a{n}:byokHealth{{status}}")).collect();
        let query = format!("{{{aliases}}}");
        let bytes = json!({ "query": query }).to_string();
        let known_budget = Budget::of_known(100, 1 << 20);
        assert!(runner.prepare(bytes.as_bytes(), &known_budget, &known(), |_, _| true).is_ok());
        assert!(runner.plain.get(&query).is_some());
        let unknown = Err(ErrorCode::InvalidHeaders.into());
        let refused = runner.prepare(bytes.as_bytes(), &Budget::OF_UNKNOWN, &unknown, |_, _| true);
        assert!(matches!(refused, Err(NotRun::TooMuch(_))));
    }

    #[test]
    fn only_json_is_json() {
        let is = |value: &'static str| {
            is_json(&HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(value))]))
        };
        assert!(is("application/json") && is("Application/JSON; charset=utf-8"));
        assert!(
            !is("text/plain")
                && !is("multipart/form-data; boundary=application/json")
                && !is("application/jsonp")
        );
        assert!(!is_json(&HeaderMap::new()));
    }
}
