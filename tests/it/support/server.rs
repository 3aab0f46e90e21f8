//! The real binary, serving, with a new database and a new Transit key.

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::{jwt, needed, shared_vault::VaultKey};

/// The secret that signs the tests' JWTs.
pub(crate) const JWT_SECRET: &str = "a secret of the tests that is long enough for HS256";

/// A running `byok serve`, which stops when it is dropped.
pub(crate) struct TestServer {
    child: Child,
    /// The environment of the process; changes take effect at the next start.
    pub(crate) environment: Vec<(String, String)>,
    /// `http://127.0.0.1:<port>`
    pub(crate) base: String,
    /// Everything that the server wrote to standard error.
    pub(crate) logs: Arc<Mutex<String>>,
    /// The server's key in the shared Vault.
    pub(crate) key: VaultKey,
    /// The URL of the server's database.
    pub(crate) database_url: String,
    /// A client for the server.
    pub(crate) client: reqwest::Client,
    /// A shell script that starts the server as `$0`, if the test does not start it directly.
    shell: Option<String>,
}

/// An answer: status, headers and JSON body.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: Value,
}

impl TestServer {
    /// Starts a server with the tests' default settings.
    pub(crate) async fn start() -> Self {
        Self::with(&[]).await
    }

    /// Starts a server with more environment variables, which override the defaults.
    pub(crate) async fn with(more: &[(&str, &str)]) -> Self {
        Self::on(VaultKey::create().await, create_database(&needed("DATABASE_URL")).await, more).await
    }

    /// Starts a server that may open at most this many files.
    pub(crate) async fn with_files(files: u32) -> Self {
        let mut server = Self::start().await;
        server.stop().await;
        server.shell = Some(format!("ulimit -n {files} && exec \"$0\" serve"));
        server.start_again().await;
        server
    }

    /// Starts a server through a shell script, which has the binary's path as `$0` and must `exec`
    /// it.
    pub(crate) async fn by_shell(
        shell: &str,
        key: VaultKey,
        database_url: String,
        more: &[(&str, &str)],
    ) -> Self {
        let environment = environment(&key, &database_url, more);
        Self::spawn(environment, key, database_url, Some(shell.to_owned()), "ready").await
    }

    /// Starts a server and waits only until it listens, not until it has reached its database.
    pub(crate) async fn starting(key: VaultKey, database_url: String, more: &[(&str, &str)]) -> Self {
        let environment = environment(&key, &database_url, more);
        Self::spawn(environment, key, database_url, None, "listening").await
    }

    /// Starts a server with this key and database.
    pub(crate) async fn on(key: VaultKey, database_url: String, more: &[(&str, &str)]) -> Self {
        let environment = environment(&key, &database_url, more);
        Self::spawn(environment, key, database_url, None, "ready").await
    }

    async fn spawn(
        environment: Vec<(String, String)>,
        key: VaultKey,
        database_url: String,
        shell: Option<String>,
        until: &'static str,
    ) -> Self {
        let logs = Arc::new(Mutex::new(String::new()));
        let (child, base) = serve(&environment, &logs, shell.as_deref(), until).await;
        let client = super::http();
        Self { child, environment, base, logs, key, database_url, client, shell }
    }

    /// Starts another process on the same database and key.
    pub(crate) async fn replica(&self) -> Self {
        let (environment, key, url) = (self.environment.clone(), self.key.clone(), self.database_url.clone());
        Self::spawn(environment, key, url, None, "ready").await
    }

    /// Ends the process like a power cut, and waits until it is gone.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.expect("the server can be killed");
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Starts the server again, on another port.
    pub(crate) async fn start_again(&mut self) {
        let (child, base) = serve(&self.environment, &self.logs, self.shell.as_deref(), "ready").await;
        self.child = child;
        self.base = base;
    }

    /// Asks the server to stop, and returns its exit code.
    pub(crate) async fn stop(&mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_raw(self.child.id().expect("it runs") as i32).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it can be signalled");
        self.child.wait().await.expect("it ends").code()
    }

    /// A JWT for this role and user.
    pub(crate) fn jwt(&self, role: &str, user: &str) -> String {
        jwt(
            JWT_SECRET,
            &json!({
                "exp": 4_000_000_000_u64,
                "https://hasura.io/jwt/claims": {
                    "x-hasura-default-role": role, "x-hasura-allowed-roles": [role], "x-hasura-user-id": user,
                },
            }),
        )
    }

    /// Sends a request with a JWT, and with a JSON body if there is one.
    pub(crate) async fn call(&self, method: Method, path: &str, token: &str, body: Option<Value>) -> Answer {
        let mut request = self.client.request(method, format!("{}{path}", self.base)).bearer_auth(token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        answer(request).await
    }

    /// Sends a `POST` as the role `admin`.
    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.call(Method::POST, path, &self.jwt("admin", "the-admin"), Some(body)).await
    }

    /// Sends a `GET` as the role `admin`.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, &self.jwt("admin", "the-admin"), None).await
    }

    /// Sends a GraphQL request and returns the whole answer.
    pub(crate) async fn graphql(&self, token: &str, query: &str, variables: Value) -> Value {
        self.call(Method::POST, "/graphql", token, Some(json!({ "query": query, "variables": variables })))
            .await
            .body
    }

    /// Encrypts over REST as `admin` and returns the token.
    pub(crate) async fn encrypt(&self, plaintext: &str, record_id: &str) -> String {
        let body = json!({ "plaintext": plaintext, "context": { "record_id": record_id } });
        let answer = self.post("/byok/encrypt", body).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body["ciphertext"].as_str().expect("a token").to_owned()
    }

    /// Decrypts over REST as `admin`.
    pub(crate) async fn decrypt(&self, ciphertext: &str, record_id: &str) -> Answer {
        self.post("/byok/decrypt", json!({ "ciphertext": ciphertext, "context": { "record_id": record_id } }))
            .await
    }

    /// A connection pool to the server's database, as the superuser.
    pub(crate) async fn database(&self) -> sqlx::PgPool {
        sqlx::PgPool::connect(&self.database_url).await.expect("the test database answers")
    }

    /// The output of `byok doctor` in the server's environment: standard output and error.
    pub(crate) async fn doctor(&self) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_byok"));
        command.arg("doctor").env_clear().envs(self.environment.iter().map(|(name, value)| (name, value)));
        let output = command.output().await.expect("byok runs");
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    /// The text logged so far.
    pub(crate) fn logged(&self) -> String {
        self.logs.lock().expect("no test panics with the lock").clone()
    }
}

/// Sends a request and reads the answer; a body that is not JSON becomes a string.
pub(crate) async fn answer(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.expect("the server answers");
    let (status, headers) = (response.status(), response.headers().clone());
    let text = response.text().await.expect("the answer is text");
    let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
    Answer { status, headers, body }
}

/// The environment of a test server; `more` overrides the defaults.
fn environment(key: &VaultKey, database_url: &str, more: &[(&str, &str)]) -> Vec<(String, String)> {
    let mut environment: Vec<(String, String)> = [
        ("DATABASE_URL", database_url),
        ("BYOK_PROVIDER", "vault-transit"),
        ("BYOK_VAULT_ADDR", &key.address),
        ("BYOK_VAULT_TOKEN", &key.token),
        ("BYOK_VAULT_TRANSIT_KEY", &key.name),
        ("BYOK_LISTEN", "127.0.0.1:0"),
        ("BYOK_LOG_FORMAT", "json"),
        ("BYOK_LOG", "debug"),
        ("BYOK_ENCRYPT_RATE_RPM", "100000000"),
        ("BYOK_DECRYPT_RATE_RPM", "100000000"),
        ("BYOK_CONSOLE", "true"),
        ("HASURA_GRAPHQL_JWT_SECRET", &json!({ "type": "HS256", "key": JWT_SECRET }).to_string()),
    ]
    .iter()
    .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
    .collect();
    for (name, value) in more {
        environment.retain(|(known, _)| known != name);
        environment.push(((*name).to_owned(), (*value).to_owned()));
    }
    environment
}

/// Starts the process, and returns it with its base URL once it has logged the message `until`.
async fn serve(
    environment: &[(String, String)],
    logs: &Arc<Mutex<String>>,
    shell: Option<&str>,
    until: &'static str,
) -> (Child, String) {
    let byok = env!("CARGO_BIN_EXE_byok");
    let mut command = Command::new(if shell.is_some() { "/bin/sh" } else { byok });
    match shell {
        None => command.arg("serve"),
        Some(script) => command.args(["-c", script, byok]),
    };
    let mut child = command
        .env_clear()
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the binary starts");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let (found, address) = tokio::sync::oneshot::channel();
    let logs = logs.clone();
    tokio::spawn(async move {
        let (mut found, mut address) = (Some(found), String::new());
        while let Ok(Some(line)) = lines.next_line().await {
            if let Ok(event) = serde_json::from_str::<Value>(&line)
                && found.is_some()
            {
                if event["message"] == "listening" {
                    event["address"].as_str().unwrap_or_default().clone_into(&mut address);
                }
                if event["message"] == until {
                    drop(found.take().map(|found| found.send(address.clone())));
                }
            }
            let mut logs = logs.lock().expect("no test panics with the lock");
            logs.push_str(&line);
            logs.push('\n');
        }
    });
    match tokio::time::timeout(Duration::from_secs(30), address).await {
        Ok(Ok(address)) => (child, format!("http://{address}")),
        _ => panic!("the server did not start"),
    }
}

/// Creates a database on the server of this URL.
pub(crate) async fn create_database(url: &str) -> String {
    let name = format!("byok_{}", uuid::Uuid::now_v7().simple());
    let server = sqlx::PgPool::connect(url).await.expect("the test server answers");
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}")))
        .execute(&server)
        .await
        .expect("a database can be made");
    server.close().await;
    let (address, _) = url.rsplit_once('/').expect("a URL with a database");
    format!("{address}/{name}")
}
