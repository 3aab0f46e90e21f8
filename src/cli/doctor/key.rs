//! Checks the key. Each operation that byok needs is tried by itself, so that a missing right can
//! be named. The DEK that is used is not kept anywhere.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;

use super::{Findings, PATIENCE};
use crate::cli::{Failure, assemble};
use crate::config;
use crate::config::VaultKey;
use crate::crypto::{self, Dek};
use crate::kms::{
    DekBinding, ItemResult, Kms, KmsDiagnosis, KmsError, KmsErrorClass, Purpose, Stage, Verdict,
};
use crate::model::{DekId, TenantUid, Wrapped};

/// An operation that byok needs of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Generate,
    Wrap,
    Unwrap,
    Rewrap,
}

/// The provider, which determines the wording of the remedies.
pub(super) enum Provider {
    Aws,
    Gcp,
    Vault(VaultKey),
    Azure,
    Local,
}

/// Checks the key. Returns the KMS if the key unwraps what it wraps.
pub(super) async fn check(
    findings: &mut Findings,
    settings: config::Kms,
) -> Option<(Arc<dyn Kms>, Provider)> {
    let provider = match &settings {
        config::Kms::Aws(_) => Provider::Aws,
        config::Kms::Gcp(_) => Provider::Gcp,
        config::Kms::Vault(settings) => {
            Provider::Vault(VaultKey { mount: settings.mount.clone(), key: settings.key.clone() })
        }
        config::Kms::Azure(_) => Provider::Azure,
        config::Kms::Local(_) => Provider::Local,
    };
    let assemble::Provider { kms, diagnosis, .. } = match assemble::provider(settings) {
        Ok(built) => built,
        Err(Failure::Configuration(errors)) => {
            errors.iter().for_each(|error| findings.fail(&error.to_string(), "correct it"));
            return None;
        }
        Err(Failure::Running(problem)) => {
            findings.fail(&problem, "correct it");
            return None;
        }
        Err(Failure::Refused(_) | Failure::Schema(_) | Failure::FaultFound) => return None,
    };
    let unwraps = match tokio::time::timeout(PATIENCE, each(findings, &provider, &*kms, &*diagnosis)).await {
        Ok(unwraps) => unwraps,
        Err(_) => {
            let remedy = remedy(&provider, Asked::Wrap, KmsErrorClass::Timeout, Stage::Key);
            findings.fail("key: no answer", &remedy);
            false
        }
    };
    for warning in diagnosis.exposure().await {
        findings.warn(warning.what, warning.remedy);
    }
    unwraps.then_some((kms, provider))
}

/// Tries each operation by itself. Returns whether a DEK that was made just now was unwrapped.
async fn each(
    findings: &mut Findings,
    provider: &Provider,
    kms: &dyn Kms,
    diagnosis: &dyn KmsDiagnosis,
) -> bool {
    let (tenant, dek_id) = (TenantUid(crypto::random()), DekId::new());
    let binding = DekBinding { tenant, dek_id, purpose: Purpose::Probe };
    let fault = async |findings: &mut Findings, asked: Asked, error: &KmsError| {
        let remedy = remedy(provider, asked, error.class, error.stage);
        match (error.class, error.stage, provider) {
            (KmsErrorClass::AccessDenied, Stage::Key, Provider::Vault(_)) => {
                findings.fail(
                    &failure_text(asked, error),
                    &denied_by_vault(diagnosis.knows_credential().await, &remedy),
                );
            }
            _ => findings.fail(&failure_text(asked, error), &remedy),
        }
    };
    let made = one(kms.generate(&[binding]).await);
    let wrapped: Result<Wrapped, KmsError> = match made {
        Ok(made) => Ok(made.wrapped),
        Err(error) => {
            fault(findings, Asked::Generate, &error).await;
            // Only a missing right is specific to one operation; every other error would repeat for
            // all of them.
            if error.class != KmsErrorClass::AccessDenied || error.stage == Stage::Credential {
                return false;
            }
            one(kms.wrap(&[(binding, &Dek::generate())]).await)
        }
    };
    let wrapped = match wrapped {
        Ok(wrapped) => wrapped,
        Err(error) => {
            fault(findings, Asked::Wrap, &error).await;
            return false;
        }
    };
    let version = wrapped.key_version.clone();
    let unwrapped = one(kms.unwrap(&[(binding, wrapped.clone())]).await);
    let unwraps = unwrapped.is_ok();
    match unwrapped {
        Ok(_) => findings.ok(&format!("key: a DEK was wrapped and unwrapped under {version}")),
        Err(error) => fault(findings, Asked::Unwrap, &error).await,
    }
    match one(kms.rewrap(&[(binding, wrapped)], &version).await) {
        Ok(_) => findings.ok("key: a DEK was re-wrapped, as rotation does"),
        Err(error) if error.class.verdict() == Verdict::Revoked => findings.warn(
            &format!("{}; everything except rotation works", failure_text(Asked::Rewrap, &error)),
            &right(provider, Asked::Rewrap),
        ),
        Err(error) => fault(findings, Asked::Rewrap, &error).await,
    }
    unwraps
}

/// Returns the remedy for `permission denied`. OpenBao does not say whether the token is the cause
/// or its policy.
fn denied_by_vault(knows_token: Option<bool>, right: &str) -> String {
    match knows_token {
        Some(true) => format!("{right}; the token itself is good"),
        Some(false) => "renew the credential: it is expired, revoked or wrong".to_owned(),
        None => format!(
            "either the token is expired or revoked, or it lacks the right (OpenBao says the same of both): issue a new token, or {right}"
        ),
    }
}

fn one<T>(mut answers: Vec<ItemResult<T>>) -> Result<T, KmsError> {
    let answer = answers.pop().unwrap_or_else(|| Err(KmsError::local(KmsErrorClass::Internal)));
    answer.map(|answer| answer.value)
}

fn failure_text(asked: Asked, error: &KmsError) -> String {
    let doing = match (error.stage, asked) {
        (Stage::Credential, _) => "our credential",
        (Stage::Key, Asked::Generate) => "making a DEK",
        (Stage::Key, Asked::Wrap) => "wrapping a DEK",
        (Stage::Key, Asked::Unwrap) => "unwrapping a DEK",
        (Stage::Key, Asked::Rewrap) => "re-wrapping a DEK",
    };
    let mut text = format!("key: {doing}: {:?}", error.class);
    if let Some(status) = error.http_status {
        let _ = write!(text, ", HTTP {status}");
    }
    if let Some(id) = &error.request_id {
        let _ = write!(text, ", request id {id}");
    }
    if let Some(distrust) = error.distrust {
        let _ = write!(text, ": {}", distrust.sentence());
    }
    text
}

/// Returns the right that an operation needs.
fn right(provider: &Provider, asked: Asked) -> Cow<'static, str> {
    let right = match (provider, asked) {
        (Provider::Vault(VaultKey { mount, key }), _) => {
            let (purpose, path) = match asked {
                Asked::Generate | Asked::Wrap => ("", "encrypt"),
                Asked::Unwrap => ("", "decrypt"),
                Asked::Rewrap => ("for rotation ", "rewrap"),
            };
            return format!("{purpose}grant `update` on {mount}/{path}/{key}: `byok policy vault-transit`")
                .into();
        }
        (Provider::Aws, Asked::Generate) => {
            "grant kms:GenerateDataKey on this key, in its key policy or ours: `byok policy aws-kms`"
        }
        (Provider::Aws, Asked::Wrap) => {
            "grant kms:Encrypt on this key, in its key policy or ours: `byok policy aws-kms`"
        }
        (Provider::Aws, Asked::Unwrap) => {
            "grant kms:Decrypt on this key, in its key policy or ours: `byok policy aws-kms`"
        }
        (Provider::Aws, Asked::Rewrap) => {
            "for rotation grant kms:ReEncryptFrom and kms:ReEncryptTo on this key: `byok policy aws-kms`"
        }
        (Provider::Gcp, Asked::Generate | Asked::Wrap) => {
            "grant cloudkms.cryptoKeyVersions.useToEncrypt on this key: `byok policy gcp-kms`"
        }
        (Provider::Gcp, Asked::Unwrap) => {
            "grant cloudkms.cryptoKeyVersions.useToDecrypt on this key: `byok policy gcp-kms`"
        }
        (Provider::Gcp, Asked::Rewrap) => {
            "for rotation grant useToEncrypt and useToDecrypt on this key: `byok policy gcp-kms`"
        }
        (Provider::Azure, Asked::Generate | Asked::Wrap) => {
            "grant the data action keys/wrap on this key: `byok policy azure-key-vault`"
        }
        (Provider::Azure, Asked::Unwrap) => {
            "grant the data action keys/unwrap on this key: `byok policy azure-key-vault`"
        }
        (Provider::Azure, Asked::Rewrap) => {
            "for rotation grant the data actions keys/wrap and keys/unwrap on this key: `byok policy azure-key-vault`"
        }
        (Provider::Local, _) => "give the key file back to the user that byok runs as",
    };
    right.into()
}

/// Returns what an operator has to do about an error.
fn remedy(provider: &Provider, asked: Asked, class: KmsErrorClass, stage: Stage) -> Cow<'static, str> {
    let remedy = match (class, stage) {
        (KmsErrorClass::AccessDenied, Stage::Key) => return right(provider, asked),
        (KmsErrorClass::AccessDenied | KmsErrorClass::CredentialInvalid, Stage::Credential) => match provider
        {
            Provider::Aws => {
                "the role cannot be taken: check its trust policy, the external id and who we are (`aws sts get-caller-identity`)"
            }
            Provider::Gcp => {
                "no token is given: check that the service account and its key are enabled, and the right to impersonate"
            }
            Provider::Vault(_) => {
                "the login is refused: issue a new secret id or service account token, and check the role"
            }
            Provider::Azure => {
                "no token is given: check tenant, client id and secret, the federated credential or the managed identity"
            }
            Provider::Local => "check the key file",
        },
        (KmsErrorClass::BudgetSpent, _) => "raise BYOK_KMS_CALLS_PER_MINUTE",
        (KmsErrorClass::CredentialInvalid, Stage::Key) => {
            "renew the credential: it is expired, revoked or wrong"
        }
        (KmsErrorClass::Internal, _) => {
            "look at the KMS's own log: its answer was not one that its documentation describes"
        }
        (KmsErrorClass::InvalidWrappedDek, _) => {
            "the KMS does not open what it has just made: check that one key answers by this name"
        }
        (KmsErrorClass::KeyDisabled, _) => match provider {
            Provider::Vault(VaultKey { mount, key }) => {
                let restore = format!("bao write -f {mount}/keys/{key}/soft-delete-restore");
                return format!("the key is soft-deleted: `{restore}` brings it back").into();
            }
            Provider::Aws | Provider::Gcp | Provider::Azure | Provider::Local => "enable the key in the KMS",
        },
        (KmsErrorClass::KeyNotFound, _) => match provider {
            Provider::Aws => "check the key or alias in BYOK_AWS_KEY_ARN, its account and its region",
            Provider::Gcp => "check project, location, key ring and key in BYOK_GCP_KEY_NAME",
            Provider::Vault(VaultKey { mount, key }) => {
                return format!(
                    "there is no key `{key}` at `{mount}`: check BYOK_VAULT_TRANSIT_KEY, BYOK_VAULT_MOUNT and \
                     BYOK_VAULT_NAMESPACE, or make it: `vault write -f {mount}/keys/{key}`"
                )
                .into();
            }
            Provider::Azure => {
                "check vault and name in BYOK_AZURE_KEY_ID; a soft-deleted key can be recovered"
            }
            Provider::Local => "check BYOK_LOCAL_KEY_FILE",
        },
        (KmsErrorClass::KeyPendingDeletion, _) => {
            "cancel the key's deletion in the KMS, while that is possible"
        }
        (KmsErrorClass::KeyVersionUnavailable, _) => {
            "enable the key version, or lower the key's minimum version"
        }
        (KmsErrorClass::LoginPaused, _) => {
            "our credential was refused: replace it; it is not sent again for a while, so that the role is not locked out"
        }
        (KmsErrorClass::Misconfigured, Stage::Credential) => {
            "no credential was found, or its kind is not supported: check the variables that identify byok"
        }
        (KmsErrorClass::Misconfigured, Stage::Key) => match provider {
            Provider::Aws => {
                "check region and endpoint, that the key is symmetric for encryption, and this machine's clock"
            }
            Provider::Gcp => "check endpoint and location, and that the key's purpose is ENCRYPT_DECRYPT",
            Provider::Vault(VaultKey { mount, key }) => {
                return format!(
                    "check address and namespace, that a Transit engine is mounted at `{mount}`, and that the key `{key}` is one \
                     that encrypts (aes256-gcm96) and was made without `derived=true`: `vault read {mount}/keys/{key}`"
                )
                .into();
            }
            Provider::Azure => {
                "check the vault's address, the key's type and operations, and the credential's tenant"
            }
            Provider::Local => "check the key file",
        },
        (KmsErrorClass::Sealed, _) => "unseal Vault",
        (KmsErrorClass::Throttled, _) => "raise the KMS's quota, or call it less often",
        (KmsErrorClass::Timeout, _) => "check the path to the KMS, or raise BYOK_KMS_TIMEOUT_MS",
        (KmsErrorClass::Unreachable, Stage::Credential) => {
            "the source of our credential is out of reach: check its address, DNS, firewall and certificates"
        }
        (KmsErrorClass::Unreachable, Stage::Key) => "check the KMS's address, DNS, firewall and certificates",
        (KmsErrorClass::WrappedByAnotherKey, _) => "set the variables back to the key that wrapped it",
    };
    remedy.into()
}
