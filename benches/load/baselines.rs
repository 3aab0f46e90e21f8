//! The baselines that byok is compared with. Each runs in a process of its own: this binary,
//! started with one of these words.

use std::io::Read as _;
use std::process::ExitCode;

use async_graphql::{BatchRequest, EmptySubscription, ID, Object, Schema, SimpleObject};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;

/// Baseline (a): answers with the body of the request.
pub(crate) const ECHO: &str = "serve-echo";
/// Baseline (b): parses, validates and runs a mutation that does nothing.
pub(crate) const NO_OP: &str = "serve-no-op";

/// The answer of the no-op to every request, as long as the plaintexts that byok decrypts.
pub(crate) const NO_OP_PLAINTEXT: &str = "nobody-00000@example.com";

/// Serves on a free port until standard input ends. The first line of standard output is the
/// address.
pub(crate) fn run(word: &str) -> ExitCode {
    let router = if word == ECHO { Router::new().fallback(post(echo)) } else { no_op_router() };
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    // The same runtime as that of `#[tokio::main]`, which byok runs on.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        println!("{}", listener.local_addr().expect("it is bound"));
        axum::serve(listener, router).await.expect("it serves");
    });
    ExitCode::SUCCESS
}

async fn echo(body: Bytes) -> Bytes {
    body
}

type NoOpSchema = Schema<Query, Mutation, EmptySubscription>;

fn no_op_router() -> Router {
    let schema = Schema::new(Query, Mutation, EmptySubscription);
    Router::new().route("/graphql", post(execute)).with_state(schema)
}

/// The same as the handler of async-graphql-axum does with a POST of JSON, and no more.
async fn execute(State(schema): State<NoOpSchema>, body: Bytes) -> Response {
    let Ok(request) = serde_json::from_slice::<BatchRequest>(&body) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let answer = schema.execute_batch(request).await;
    match serde_json::to_vec(&answer) {
        Ok(json) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

struct Query;

/// The query type, which every schema must have.
#[Object]
impl Query {
    /// Nothing.
    async fn nothing(&self) -> bool {
        false
    }
}

struct Mutation;

#[derive(SimpleObject)]
struct Decrypted {
    /// The value.
    plaintext: &'static str,
}

/// A mutation of the same shape as byok's.
#[Object]
impl Mutation {
    /// Decrypts nothing.
    async fn byok_decrypt(&self, ciphertext: String, record_id: Option<ID>) -> Option<Decrypted> {
        let _ = (ciphertext, record_id);
        Some(Decrypted { plaintext: NO_OP_PLAINTEXT })
    }
}
