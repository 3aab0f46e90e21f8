//! The names of byok's variables. A variable with byok's prefix and another name was misspelt, and
//! would otherwise be ignored silently.

use super::{ConfigError, Env};

/// The prefix of byok's variables.
const OURS: &str = "BYOK_";
/// All of byok's variables, except the `_FILE` variants of secrets.
const VARIABLES: &[&str] = &[
    "BYOK_ADMIN_TOKEN",
    "BYOK_ADMIN_TOKENS_FILE",
    "BYOK_AUDIT_CHECKPOINT_DIR",
    "BYOK_AUDIT_CHECKPOINT_S3_BUCKET",
    "BYOK_AUDIT_CHECKPOINT_S3_ENDPOINT",
    "BYOK_AUDIT_CHECKPOINT_S3_PREFIX",
    "BYOK_AUDIT_CHECKPOINT_S3_REGION",
    "BYOK_AUDIT_CHECKPOINT_S3_RETAIN_DAYS",
    "BYOK_AUDIT_CHECKPOINT_SECONDS",
    "BYOK_AUDIT_CHECKPOINT_WEBHOOK_SECRET",
    "BYOK_AUDIT_CHECKPOINT_WEBHOOK_URL",
    "BYOK_AUDIT_ORIGIN",
    "BYOK_AUDIT_PREVIOUS_SIGNING_KEY",
    "BYOK_AUDIT_PRUNE_AFTER_EXPORT",
    "BYOK_AUDIT_RETENTION_DAYS",
    "BYOK_AUDIT_SIGNING_KEY",
    "BYOK_AUDIT_STREAM_FILE",
    "BYOK_AUDIT_STREAM_WEBHOOK_SECRET",
    "BYOK_AUDIT_STREAM_WEBHOOK_URL",
    "BYOK_AWS_ENDPOINT",
    "BYOK_AWS_EXTERNAL_ID",
    "BYOK_AWS_FIPS",
    "BYOK_AWS_KEY_ARN",
    "BYOK_AWS_REGION",
    "BYOK_AWS_ROLE_ARN",
    "BYOK_AWS_STS_ENDPOINT",
    "BYOK_AZURE_ALGORITHM",
    "BYOK_AZURE_AUTHORITY_HOST",
    "BYOK_AZURE_CA_FILE",
    "BYOK_AZURE_CLIENT_ID",
    "BYOK_AZURE_CLIENT_SECRET",
    "BYOK_AZURE_CREDENTIAL",
    "BYOK_AZURE_FEDERATED_TOKEN_FILE",
    "BYOK_AZURE_IMDS_HOST",
    "BYOK_AZURE_KEY_ID",
    "BYOK_AZURE_TENANT_ID",
    "BYOK_CONSOLE",
    "BYOK_CORS_ORIGINS",
    "BYOK_DATABASE_MAX_CONNECTIONS",
    "BYOK_DATABASE_PGBOUNCER",
    "BYOK_DATABASE_URL",
    "BYOK_DECRYPT_ITEMS_PER_MINUTE",
    "BYOK_DECRYPT_RATE_RPM",
    "BYOK_DEK_CACHE_ENTRIES",
    "BYOK_DEK_CACHE_SECONDS",
    "BYOK_DEK_POOL",
    "BYOK_DRAIN_SECONDS",
    "BYOK_ENCRYPT_ITEMS_PER_MINUTE",
    "BYOK_ENCRYPT_RATE_RPM",
    "BYOK_GCP_CA_FILE",
    "BYOK_GCP_CREDENTIALS_JSON",
    "BYOK_GCP_ENDPOINT",
    "BYOK_GCP_IAM_ENDPOINT",
    "BYOK_GCP_IMPERSONATE_SERVICE_ACCOUNT",
    "BYOK_GCP_KEY_NAME",
    "BYOK_HASURA_SECRET",
    "BYOK_HASURA_SECRET_PREVIOUS",
    "BYOK_HASURA_UNAUTHORIZED_ROLE",
    "BYOK_IDLE_SECONDS",
    "BYOK_INCIDENT_WEBHOOK_SECRET",
    "BYOK_INCIDENT_WEBHOOK_URL",
    "BYOK_JWT_REQUIRE_EXP",
    "BYOK_KEY_PROBE_SECONDS",
    "BYOK_KEY_PROBE_TIMEOUT_MS",
    "BYOK_KEY_RESUME_SECONDS",
    "BYOK_KEY_VERSION_STRATEGY",
    "BYOK_KMS_CALLS_PER_MINUTE",
    "BYOK_KMS_TIMEOUT_MS",
    "BYOK_LISTEN",
    "BYOK_LOCAL_KEY_FILE",
    "BYOK_LOG",
    "BYOK_LOG_FORMAT",
    "BYOK_MAX_BODY_BYTES",
    "BYOK_MAX_BYTES_IN_FLIGHT",
    "BYOK_MAX_IN_FLIGHT",
    "BYOK_MAX_ITEMS_PER_REQUEST",
    "BYOK_MAX_PLAINTEXT_BYTES",
    "BYOK_METRICS_LISTEN",
    "BYOK_MIGRATION_DATABASE_URL",
    "BYOK_PERMISSIONS_FILE",
    "BYOK_PROVIDER",
    "BYOK_REQUEST_TIMEOUT_SECONDS",
    "BYOK_REQUIRE_JWT",
    "BYOK_REQUIRE_RECORD_ID",
    "BYOK_ROW_MACS_REQUIRED",
    "BYOK_ROW_MAC_KEY",
    "BYOK_ROW_MAC_KEY_PREVIOUS",
    "BYOK_ROW_MAC_SETTLE_SECONDS",
    "BYOK_TLS_CERT_FILE",
    "BYOK_TLS_KEY_FILE",
    "BYOK_TRUSTED_PROXIES",
    "BYOK_VAULT_ADDR",
    "BYOK_VAULT_ALLOW_HTTP",
    "BYOK_VAULT_APPROLE_MOUNT",
    "BYOK_VAULT_APPROLE_ROLE_ID",
    "BYOK_VAULT_APPROLE_SECRET_ID",
    "BYOK_VAULT_CACERT",
    "BYOK_VAULT_CLIENT_CERT",
    "BYOK_VAULT_CLIENT_KEY",
    "BYOK_VAULT_KUBERNETES_JWT_FILE",
    "BYOK_VAULT_KUBERNETES_MOUNT",
    "BYOK_VAULT_KUBERNETES_ROLE",
    "BYOK_VAULT_MOUNT",
    "BYOK_VAULT_NAMESPACE",
    "BYOK_VAULT_TOKEN",
    "BYOK_VAULT_TRANSIT_KEY",
];

/// Returns an error for each variable with byok's prefix that does not exist, with the nearest one
/// that does.
pub(super) fn unknown(env: &Env) -> Vec<ConfigError> {
    let unknown = |name: &&str| name.starts_with(OURS) && !is_known(name) && !is_of_kubernetes(name);
    let error = |name: &str| {
        let nearest = VARIABLES.iter().max_by(|one, other| {
            strsim::jaro_winkler(name, one).total_cmp(&strsim::jaro_winkler(name, other))
        });
        let problem =
            format!("does not exist; the most similar variable is {}", nearest.copied().unwrap_or_default());
        ConfigError { variable: name.to_owned(), problem }
    };
    env.names().filter(unknown).map(error).collect()
}

fn is_known(name: &str) -> bool {
    let without_file = name.strip_suffix("_FILE").unwrap_or(name);
    VARIABLES.contains(&name) || VARIABLES.contains(&without_file)
}

/// Returns whether this is a variable that Kubernetes sets in every pod next to a Service that is
/// called `byok`, or `byok-…`
/// (<https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>).
fn is_of_kubernetes(name: &str) -> bool {
    let Some((_, rest)) = name.rsplit_once("_SERVICE_").or_else(|| name.split_once("_PORT")) else {
        return false;
    };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let parts: Vec<&str> = rest.split('_').collect();
    match parts[..] {
        ["HOST"] | ["PORT"] | [""] => true,
        ["PORT", ..] => name.contains("_SERVICE_PORT_"),
        ["", port, "TCP" | "UDP" | "SCTP"] => is_number(port),
        ["", port, "TCP" | "UDP" | "SCTP", "PROTO" | "PORT" | "ADDR"] => is_number(port),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str) -> Option<String> {
        unknown(&Env::from_pairs([(name, "s3cret")])).pop().map(|error| error.to_string())
    }

    #[test]
    fn a_misspelt_variable_is_named_with_the_nearest_that_exists() {
        for (misspelt, nearest) in [
            ("BYOK_DATABSE_URL", "BYOK_DATABASE_URL"),
            ("BYOK_REQUIRE_JTW", "BYOK_REQUIRE_JWT"),
            ("BYOK_VAULT_ADDRESS", "BYOK_VAULT_ADDR"),
            ("BYOK_HASURA_SECRETS_FILE", "BYOK_HASURA_SECRET"),
        ] {
            let problem = found(misspelt).unwrap();
            assert_eq!(
                problem,
                format!("{misspelt}: does not exist; the most similar variable is {nearest}")
            );
        }
    }

    #[test]
    fn what_exists_and_what_others_set_is_none() {
        for name in [
            "BYOK_DATABASE_URL",
            "BYOK_DATABASE_URL_FILE",
            "BYOK_PERMISSIONS_FILE",
            "DATABASE_URL",
            "PATH",
            "BYOK_SERVICE_HOST",
            "BYOK_SERVICE_PORT",
            "BYOK_SERVICE_PORT_HTTP",
            "BYOK_PORT",
            "BYOK_PORT_3741_TCP",
            "BYOK_PORT_3741_TCP_ADDR",
            "BYOK_DB_SERVICE_HOST",
        ] {
            assert_eq!(found(name), None, "{name}");
        }
        for name in ["BYOK_PORTS", "BYOK_PORT_X_TCP", "BYOK_SERVICE_NAME"] {
            assert!(found(name).is_some(), "{name}");
        }
    }

    #[test]
    fn the_list_is_what_the_sections_read() {
        let mut folders = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src/config"))];
        let mut read = std::collections::BTreeSet::new();
        while let Some(folder) = folders.pop() {
            for file in std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()) {
                if file.is_dir() {
                    folders.push(file);
                } else if !file.ends_with("variables.rs") {
                    let text = std::fs::read_to_string(file).unwrap();
                    let quoted = text.split('"').filter(|word| word.starts_with(OURS)).map(str::to_owned);
                    read.extend(quoted.filter(|word| {
                        word.bytes()
                            .all(|byte| byte == b'_' || byte.is_ascii_uppercase() || byte.is_ascii_digit())
                    }));
                }
            }
        }
        read.retain(|name| {
            !name.ends_with('_') && !VARIABLES.contains(&name.strip_suffix("_FILE").unwrap_or(""))
        });
        let listed: std::collections::BTreeSet<String> =
            VARIABLES.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(read, listed);
    }
}
