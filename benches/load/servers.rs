//! The servers: PostgreSQL and Vault from `scripts/servers`, byok's release binary, and the
//! baselines. All are stopped when the bench ends.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::baselines;
use crate::generator::Connection;
use crate::processes::{Cores, command_on};
use crate::scenarios::Target;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/servers");
const JWT_SECRET: &str = "a secret of the benches that is long enough for HS256";
/// The transit key that `scripts/servers` makes.
const KEY: &str = "byok";

/// All running servers.
pub(crate) struct Servers {
    pub(crate) cores: Cores,
    /// The id of Vault's process.
    pub(crate) vault: u32,
    /// A token that may use the key, and nothing else.
    pub(crate) vault_token: String,
    vault_address: SocketAddr,
    postgres: u32,
    byok: Server,
    against: Option<Server>,
    echo: Server,
    no_op: Server,
    /// The last field, so that it is dropped after the servers that call Vault and PostgreSQL.
    _folder: Folder,
}

/// The processes behind a scenario.
pub(crate) struct Pids {
    pub(crate) under_test: u32,
    pub(crate) postgres: u32,
}

impl Servers {
    /// Starts all servers.
    ///
    /// # Errors
    /// Something is missing; the message says how to get it.
    pub(crate) async fn start(cores: Cores, against: Option<&str>) -> Result<Self, String> {
        let folder = Folder(std::env::temp_dir().join(format!("byok-load-{}", std::process::id())));
        // Started on its cores, because Vault counts them at its start to choose its number of
        // threads.
        script(&cores.under_test, &["start-vault", &folder.path()])?;
        script(&cores.rest, &["start-postgres", &folder.path()])?;
        refuse_memory(&folder)?;
        let vault_url = folder.variable("BYOK_TEST_VAULT_ADDR")?;
        let vault_address =
            vault_url.trim_start_matches("http://").parse().map_err(|_| "Vault's address".to_owned())?;
        let vault_token = token(vault_address, &folder.variable("BYOK_TEST_VAULT_TOKEN")?).await?;
        let environment = [
            ("DATABASE_URL", folder.variable("DATABASE_URL")?),
            ("BYOK_PROVIDER", "vault-transit".to_owned()),
            ("BYOK_VAULT_ADDR", vault_url),
            ("BYOK_VAULT_TOKEN", vault_token.clone()),
            ("BYOK_VAULT_TRANSIT_KEY", KEY.to_owned()),
            ("BYOK_LISTEN", "127.0.0.1:0".to_owned()),
            ("BYOK_ENCRYPT_RATE_RPM", "100000000".to_owned()),
            ("BYOK_DECRYPT_RATE_RPM", "100000000".to_owned()),
            // Hot records stay hot for the whole bench.
            ("BYOK_DEK_CACHE_SECONDS", "3600".to_owned()),
            ("HASURA_GRAPHQL_JWT_SECRET", json!({ "type": "HS256", "key": JWT_SECRET }).to_string()),
        ];
        let this = std::env::current_exe().map_err(|error| error.to_string())?;
        let this = this.to_string_lossy();
        let baseline =
            |word| Server::start(command_on(&cores.under_test, &this).arg(word).stderr(Stdio::inherit()));
        let byok = |binary: &str| {
            let mut byok = command_on(&cores.under_test, binary);
            byok.arg("serve")
                .env_clear()
                .env("PATH", "/usr/local/bin:/usr/bin:/bin")
                .envs(environment.clone())
                .stderr(Stdio::piped());
            Server::start(&mut byok)
        };
        Ok(Self {
            byok: byok(env!("CARGO_BIN_EXE_byok"))?,
            against: against.map(byok).transpose()?,
            echo: baseline(baselines::ECHO)?,
            no_op: baseline(baselines::NO_OP)?,
            vault: folder.pid("vault")?,
            postgres: folder.pid("postgres")?,
            vault_address,
            vault_token,
            cores,
            _folder: folder,
        })
    }

    /// The address of a server.
    pub(crate) fn address(&self, target: Target) -> SocketAddr {
        self.server(target).map_or(self.vault_address, |server| server.address)
    }

    /// The server that this bench has started itself: any but Vault.
    fn server(&self, target: Target) -> Option<&Server> {
        match target {
            Target::Byok => Some(&self.byok),
            Target::Against => self.against.as_ref(),
            Target::Echo => Some(&self.echo),
            Target::NoOp => Some(&self.no_op),
            Target::Vault => None,
        }
    }

    /// The processes whose processor time is counted.
    pub(crate) fn pids(&self, target: Target) -> Pids {
        let under_test = self.server(target).map_or(self.vault, |server| server.child.id());
        Pids { under_test, postgres: self.postgres }
    }

    /// Sends a request and gives the JSON of its answer.
    pub(crate) async fn ask(&self, target: Target, request: &[u8]) -> Result<Value, String> {
        ask(self.address(target), request).await
    }
}

/// A server's process, which is killed when dropped.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    /// Starts a server and waits for its address, which comes in the log or alone on a line of
    /// standard output.
    fn start(command: &mut Command) -> Result<Self, String> {
        // A baseline ends when its standard input does, even if this process is killed.
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.map_err(|error| format!("taskset (of util-linux) cannot be run: {error}"))?;
        let output: Box<dyn std::io::Read + Send> = match (child.stderr.take(), child.stdout.take()) {
            (Some(log), _) => Box::new(log),
            (None, Some(output)) => Box::new(output),
            (None, None) => return Err("a server without output".to_owned()),
        };
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        let mut output = String::new();
        for line in lines.by_ref() {
            let event: Value = serde_json::from_str(&line).unwrap_or_default();
            let is_byok = event["message"] == "listening";
            let text = if is_byok { event["address"].as_str() } else { Some(line.as_str()) };
            if let Some(address) = text.and_then(|text| text.parse().ok()) {
                // All later lines are warnings.
                std::thread::spawn(move || lines.for_each(|line| eprintln!("{line}")));
                if is_byok {
                    until_ready(address)?;
                }
                return Ok(Self { child, address });
            }
            output.push_str(&line);
            output.push('\n');
        }
        let _ = child.wait();
        Err(format!("a server ended instead of serving:\n{output}"))
    }
}

/// Waits until `/ready` is 200: byok listens before it has reached its database.
fn until_ready(address: SocketAddr) -> Result<(), String> {
    let ready = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(b"GET /ready HTTP/1.1\r\nhost: byok\r\nconnection: close\r\n\r\n")?;
        let mut status = String::new();
        BufReader::new(stream).read_line(&mut status)?;
        Ok(status.starts_with("HTTP/1.1 200"))
    };
    for _ in 0..300 {
        if ready().map_err(|error| format!("a server that does not answer /ready: {error}"))? {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Err("a server that is not ready after 30 s".to_owned())
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The folder of PostgreSQL and Vault, which are stopped when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn path(&self) -> String {
        self.0.to_string_lossy().into_owned()
    }

    fn variable(&self, name: &str) -> Result<String, String> {
        let text = std::fs::read_to_string(self.0.join("env")).unwrap_or_default();
        let prefix = format!("export {name}=");
        let value = text.lines().find_map(|line| line.strip_prefix(&prefix));
        value.map(str::to_owned).ok_or_else(|| format!("scripts/servers has not set {name}"))
    }

    fn pid(&self, name: &str) -> Result<u32, String> {
        let text = std::fs::read_to_string(self.0.join("pids")).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        let pid = line.split_whitespace().next().and_then(|pid| pid.parse().ok());
        pid.ok_or_else(|| format!("scripts/servers has not recorded the process of {name}"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.0.exists() {
            let _ = Command::new(SCRIPT).args(["stop", &self.path()]).status();
        }
    }
}

fn script(cores: &str, arguments: &[&str]) -> Result<(), String> {
    let mut command = command_on(cores, SCRIPT);
    match command.args(arguments).stdout(Stdio::null()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err("the servers do not start; `scripts/servers install` installs them, once".to_owned()),
        Err(error) => Err(format!("taskset (of util-linux) cannot be run: {error}")),
    }
}

/// Refuses a database in memory: the bench measures commits to a disk.
fn refuse_memory(folder: &Folder) -> Result<(), String> {
    let kind = Command::new("stat").args(["--file-system", "--format=%T", &folder.path()]).output();
    match kind.map(|output| output.stdout) {
        Ok(kind) if kind.starts_with(b"tmpfs") => Err(format!(
            "{} is in memory, where nothing is durable: set TMPDIR to a folder on a disk",
            folder.path()
        )),
        _ => Ok(()),
    }
}

/// A token with the rights that byok's documentation asks for.
async fn token(vault: SocketAddr, root: &str) -> Result<String, String> {
    let path = |path: &str, right: &str| {
        format!("path \"transit/{path}/{KEY}\" {{ capabilities = [\"{right}\"] }}\n")
    };
    let updates = ["encrypt", "decrypt", "rewrap", "datakey/plaintext"];
    let policy: String =
        updates.iter().map(|each| path(each, "update")).chain([path("keys", "read")]).collect();
    let headers = format!("X-Vault-Token: {root}\r\n");
    let make_policy =
        request("/v1/sys/policies/acl/load", &headers, &json!({ "policy": policy }).to_string());
    ask(vault, &make_policy).await?;
    let wanted = json!({ "policies": ["load"], "period": "1h" }).to_string();
    let made = ask(vault, &request("/v1/auth/token/create", &headers, &wanted)).await?;
    made["auth"]["client_token"].as_str().map(str::to_owned).ok_or_else(|| "Vault makes no token".to_owned())
}

/// A POST, ready to be sent. Each header ends with a line break.
pub(crate) fn request(path: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// The header of a service's JWT, signed with HS256.
pub(crate) fn authorization() -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let claims = json!({
        "exp": 4_000_000_000_u64,
        "https://hasura.io/jwt/claims": {
            "x-hasura-default-role": "service", "x-hasura-allowed-roles": ["service"], "x-hasura-user-id": "load",
        },
    });
    let signed = format!("{}.{}", part(&json!({ "alg": "HS256", "typ": "JWT" })), part(&claims));
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, JWT_SECRET.as_bytes());
    let signature = URL_SAFE_NO_PAD.encode(ring::hmac::sign(&key, signed.as_bytes()));
    format!("Authorization: Bearer {signed}.{signature}\r\n")
}

async fn ask(address: SocketAddr, request: &[u8]) -> Result<Value, String> {
    let mut connection = Connection::open(address).await.map_err(|error| error.to_string())?;
    let (status, body) = connection.exchange(request).await.map_err(|error| error.to_string())?;
    match status {
        200..=299 => Ok(serde_json::from_slice(body).unwrap_or_default()),
        _ => Err(format!("status {status}: {}", String::from_utf8_lossy(body))),
    }
}
