//! `byok dev`: runs everything on this machine, with nothing to configure. It creates an SQLite
//! file, a local key, a JWT secret, a key that signs checkpoints, one that binds the rows of DEKs,
//! and a permissions file under `./.byok/`, unless they exist. It mints and prints tokens, so it
//! refuses an environment that names a database, a provider or a JWT secret. All other settings of
//! the environment take precedence.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Args;
use serde_json::json;

use super::Failure;
use super::serve::{self, OnHangup};
use crate::app::{App, Committed, EncryptItem, context_of};
use crate::auth::{MintClaims, mint};
use crate::config::{Auth, Config, ConfigError, Defaults, Env, Jwt, LogFormat, Reader, Server};
use crate::crypto::{self, Ed25519SigningKey, Plaintext, RowMacKey};
use crate::kms::LocalKey;
use crate::model::{Clock as _, Identity, Means, RequestId, Session, SystemClock};

const FOLDER: &str = ".byok";
/// The key that is created if the environment names none.
pub(super) const LOCAL_KEY: &str = ".byok/local-key.json";
const USER: &str = "user-123";
/// The variables of a server's environment. With any of them set, no token may be minted and
/// printed.
const OF_A_SERVER: [&str; 5] = [
    "DATABASE_URL",
    "BYOK_MIGRATION_DATABASE_URL",
    "BYOK_PROVIDER",
    "HASURA_GRAPHQL_JWT_SECRET",
    "HASURA_GRAPHQL_JWT_SECRETS",
];
/// The permissions in development: the role `user` may use its own records.
const PERMISSIONS: &str = "\
# Who may do what under `byok dev`; edits take effect within seconds.
roles:
  admin: { all: true }
  service: { encrypt: true, decrypt: true }
  user:
    encrypt: { when: { context.record_id: { _eq: X-Hasura-User-Id } } }
    decrypt: { when: { context.record_id: { _eq: X-Hasura-User-Id } } }
";

/// The options of `byok dev`.
#[derive(Args)]
pub(super) struct Arguments {
    /// The address to listen on; 0.0.0.0:3741 for a Hasura in a container, port 0 for any free port
    #[arg(long, value_name = "ADDRESS:PORT", default_value_t = Server::DEFAULT_LISTEN)]
    listen: SocketAddr,
}

pub(super) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let mut env = Env::of_process().with("BYOK_LISTEN", &arguments.listen.to_string());
    refuse_server_environment(&env)?;
    let folder = Path::new(FOLDER);
    let failed = |error: std::io::Error| Failure::Running(format!("./{FOLDER}: {error}"));
    if !folder.exists() {
        fs::DirBuilder::new().mode(0o700).create(folder).map_err(failed)?;
    }
    env = env.with("BYOK_PROVIDER", "local");
    if env.get("BYOK_LOCAL_KEY_FILE").is_none() {
        let path = PathBuf::from(LOCAL_KEY);
        if !path.exists() {
            LocalKey::create(&path).map_err(|error| Failure::Configuration(vec![error]))?;
        }
        env = env.with("BYOK_LOCAL_KEY_FILE", &path.display().to_string());
    }
    if env.get("BYOK_PERMISSIONS_FILE").is_none() {
        let path = folder.join("permissions.yaml");
        read_or_create(&path, || PERMISSIONS.to_owned()).map_err(failed)?;
        env = env.with("BYOK_PERMISSIONS_FILE", &path.display().to_string());
    }
    let new_secret =
        || json!({ "type": "HS256", "key": URL_SAFE_NO_PAD.encode(crypto::random::<32>()) }).to_string();
    let text = read_or_create(&folder.join("jwt-secret.json"), new_secret).map_err(failed)?;
    env = env.with("HASURA_GRAPHQL_JWT_SECRET", &text);
    if !env.is_set("BYOK_AUDIT_SIGNING_KEY") {
        let path = folder.join("audit-signing-key.pem");
        read_or_create(&path, || Ed25519SigningKey::generate_pem().expose().to_owned()).map_err(failed)?;
        env = env.with("BYOK_AUDIT_SIGNING_KEY_FILE", &path.display().to_string());
    }
    if !env.is_set("BYOK_ROW_MAC_KEY") {
        let path = folder.join("row-mac-key");
        read_or_create(&path, || RowMacKey::generate().expose().to_owned()).map_err(failed)?;
        env = env.with("BYOK_ROW_MAC_KEY_FILE", &path.display().to_string());
    }
    let defaults = Defaults {
        sqlite: Some(folder.join("byok.db")),
        local_key: true,
        console: true,
        log_format: LogFormat::Text,
    };
    let config = Config::read(&env, &defaults).map_err(Failure::Configuration)?;
    let scheme = if config.server.tls.is_some() { "https" } else { "http" };
    let jwt = Auth::read(&mut Reader::new(&env)).jwt;
    let ready =
        async |app, bound| welcome(&app, &format!("{scheme}://{}", reachable(bound)), jwt.as_ref()).await;
    serve::serve(config, env, OnHangup::Stop, ready).await
}

/// Refuses the environment of a server, where a printed token would be valid.
fn refuse_server_environment(env: &Env) -> Result<(), Failure> {
    let is_of_a_server =
        |name: &&&str| env.is_set(name) && !(**name == "BYOK_PROVIDER" && env.get(name) == Some("local"));
    let problem = "is set: `byok dev` makes and prints tokens, with a database, a key and a JWT secret of its own; unset it, or \
                   run `byok serve`";
    let errors = OF_A_SERVER.iter().filter(is_of_a_server);
    let errors: Vec<ConfigError> = errors
        .map(|name| ConfigError { variable: (*name).to_owned(), problem: problem.to_owned() })
        .collect();
    if errors.is_empty() { Ok(()) } else { Err(Failure::Configuration(errors)) }
}

/// Returns the text of a file that only its owner may read, and creates the file if it does not
/// exist.
fn read_or_create(path: &Path, make: impl FnOnce() -> String) -> std::io::Result<String> {
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(mut file) => {
            let text = make();
            file.write_all(text.as_bytes())?;
            Ok(text)
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            fs::read_to_string(PathBuf::from(path))
        }
        Err(error) => Err(error),
    }
}

/// Returns the address that a browser on this machine can open for the bound address.
fn reachable(listen: SocketAddr) -> SocketAddr {
    if listen.ip().is_unspecified() {
        SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), listen.port())
    } else {
        listen
    }
}

async fn welcome(app: &Arc<App>, base: &str, jwt: Option<&Jwt>) -> Result<(), Failure> {
    println!("byok is ready: GraphiQL at {base}/graphiql, GraphQL at {base}/graphql, REST at {base}/byok");
    let token = |role: &str, user: &str| {
        let claims = MintClaims {
            role: role.to_owned(),
            allowed_roles: vec![role.to_owned()],
            user: Some(user.to_owned()),
            variables: Vec::new(),
            lasts: Duration::from_secs(30 * 24 * 3_600),
        };
        mint(jwt?, &claims, SystemClock.now()).ok()
    };
    let (Some(admin), Some(user)) = (token("admin", "admin"), token("user", USER)) else {
        println!(
            "JWTs come from your own identity provider: the configuration holds no secret to sign with."
        );
        return Ok(());
    };
    println!("ADMIN_TOKEN: {admin}");
    println!("USER_TOKEN: {user}");
    let call = |path: &str, body: String| {
        println!("curl -X POST {base}/byok/{path} -H 'Authorization: Bearer {user}' -d '{body}'");
    };
    let context = json!({ "record_id": USER });
    call("encrypt", json!({ "plaintext": "sensitive-data", "context": context }).to_string());
    match sample(app).await {
        Some(ciphertext) => {
            call("decrypt", json!({ "ciphertext": ciphertext, "context": context }).to_string())
        }
        None => println!("The key cannot be used now; `byok doctor` says why."),
    }
    let _ = std::io::stdout().flush();
    Ok(())
}

/// Returns a ciphertext of the sample user, so that the printed decrypt command works when it is
/// pasted.
async fn sample(app: &Arc<App>) -> Option<String> {
    let identity = Identity {
        role: Arc::from("admin"),
        user: None,
        session: Session::default(),
        means: Means::Operator,
    };
    let caller = app.caller(identity, RequestId::fresh()).ok()?;
    let context = context_of(Some(USER), None, None).ok()?;
    let item = EncryptItem { plaintext: Ok(Plaintext::new(b"sensitive-data".to_vec())), context };
    let mut answered = app.encrypt(&caller, vec![Ok(item)]).await.ok()?;
    answered.committed.into_iter().for_each(Committed::given);
    answered.answers.pop()?.ok().map(|encrypted| encrypted.ciphertext)
}
