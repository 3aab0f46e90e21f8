//! AWS KMS.
//!
//! | file | what it holds |
//! |---|---|
//! | `client` | the SDK's clients, and what they may not do by themselves |
//! | `errors` | what AWS's codes mean |
//! | `identity` | who we are: credentials, web identity, the role that we take |
//! | `session` | credentials that end, and how others come |
//! | `versions` | what we call a version of the key |
//!
//! What our identity needs is `kms:GenerateDataKey`, `kms:Encrypt`, `kms:Decrypt`, `kms:ReEncryptFrom` and
//! `kms:ReEncryptTo` on the one key, nothing else.
//!
//! **One key, in one region.** An alias is resolved by the first call, which generates a data key under it: the answer names
//! the key. From then on that key's ARN is what is sent and what every answer must name; an alias that is turned to another
//! key changes nothing until a restart. A multi-region key is used where its ARN says, and never its replica elsewhere:
//! disabling one does not disable the other.
//!
//! **Encryption context**, in the clear in the customer's CloudTrail: [`TENANT`] (32 hexadecimal digits) and [`DEK`] (a
//! UUID) for a DEK; [`PURPOSE`] with `version` for the data key that is generated, and thrown away, to learn the key or its
//! version.

mod client;
mod errors;
mod identity;
mod session;
mod versions;

use std::collections::HashMap;
use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_kms::Client;
use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::operation::RequestId;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{DataKeySpec, IncludeKeyMaterial, KeyState, RotationsListEntry};
use futures_util::future::BoxFuture;
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use zeroize::{Zeroize as _, Zeroizing};

use crate::config::{AwsCredentials, AwsKeyArn, AwsKeyName, AwsSettings, Mistake};
use crate::crypto::Dek;
use crate::kms::call::{CallPolicy, Failed, each};
use crate::kms::{Answer, DekBinding, Exposure, Generated, ItemResult, Kms, KmsError, KmsErrorClass};
use crate::model::{KeyVersion, Wrapped};

use client::Clients;
use identity::Identity;
use versions::Versions;

/// The wrap scheme of this provider: the DEK's 32 bytes are the plaintext, tenant and DEK id the encryption context.
const SCHEME: i16 = 1;
/// In the encryption context: whose DEK it is.
const TENANT: &str = "byok:tenant";
/// In the encryption context: which DEK it is.
const DEK: &str = "byok:dek";
/// In the encryption context of what is no DEK.
const PURPOSE: &str = "byok:purpose";
/// The longest that AWS takes (`CiphertextType` of the service's model). Ours are some 180 bytes.
const MAX_WRAPPED_BYTES: usize = 6144;
/// DEKs of one batch; each is a call.
const BATCH: usize = 128;
/// How long a name waits for the list of key material.
const LIST_PATIENCE: Duration = Duration::from_secs(1);
/// Pages of a thousand entries; a key has a handful.
const LIST_PAGES: usize = 10;
/// How often we look whether a session is due.
const SESSION_WATCH: Duration = Duration::from_secs(1);

/// A key in AWS KMS.
pub struct AwsKms {
    aws: Arc<Aws>,
    /// Renews the sessions; ends with us.
    keeper: Option<JoinHandle<()>>,
}

struct Aws {
    client: Client,
    identity: Identity,
    policy: CallPolicy,
    configured: AwsKeyArn,
    pinned: OnceCell<Pinned>,
    versions: Versions,
    warnings: Vec<Exposure>,
}

/// The one key.
struct Pinned {
    arn: String,
    id: Arc<str>,
}

type Context = HashMap<String, String>;

impl AwsKms {
    /// Reads the system's certificates. Nothing is sent before the first call.
    ///
    /// # Errors
    ///
    /// None at present.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    pub fn new(settings: AwsSettings) -> Result<Self, Mistake> {
        let warnings = warnings(&settings);
        let clients = Clients::new();
        let identity = Identity::new(&settings, clients.clone());
        let client = clients.kms(&settings, identity.slot());
        let pinned = match &settings.key.name {
            AwsKeyName::Key(id) => {
                OnceCell::new_with(Some(Pinned { arn: settings.key.arn.clone(), id: id.as_str().into() }))
            }
            AwsKeyName::Alias(_) => OnceCell::new(),
        };
        let policy = CallPolicy::new(settings.timeout);
        let versions = Versions::default();
        let aws = Aws { client, identity, policy, configured: settings.key, pinned, versions, warnings };
        let aws = Arc::new(aws);
        let keeper = aws.identity.can_renew().then(|| {
            let kept = Arc::clone(&aws);
            tokio::spawn(async move {
                loop {
                    kept.identity.keep(settings.timeout).await;
                    tokio::time::sleep(SESSION_WATCH).await;
                }
            })
        });
        Ok(Self { aws, keeper })
    }
}

impl Drop for AwsKms {
    fn drop(&mut self) {
        if let Some(keeper) = &self.keeper {
            keeper.abort();
        }
    }
}

#[async_trait]
impl Kms for AwsKms {
    async fn generate(&self, bindings: &[DekBinding]) -> Vec<ItemResult<Generated>> {
        self.aws
            .batch(bindings, |pinned, deadline, binding| self.aws.generate(pinned, deadline, binding))
            .await
    }

    async fn wrap(&self, deks: &[(DekBinding, &Dek)]) -> Vec<ItemResult<Wrapped>> {
        self.aws
            .batch(deks, |pinned, deadline, (binding, dek)| self.aws.wrap(pinned, deadline, binding, dek))
            .await
    }

    async fn unwrap(&self, wrapped: &[(DekBinding, Wrapped)]) -> Vec<ItemResult<Dek>> {
        self.aws
            .batch(wrapped, |pinned, deadline, (binding, wrapped)| {
                self.aws.unwrap(pinned, deadline, binding, wrapped)
            })
            .await
    }

    /// AWS always wraps under the current key material: where that is not `to`, what comes back names what it is.
    async fn rewrap(&self, wrapped: &[(DekBinding, Wrapped)], to: &KeyVersion) -> Vec<ItemResult<Wrapped>> {
        self.aws
            .batch(wrapped, |pinned, deadline, (binding, wrapped)| {
                self.aws.rewrap(pinned, deadline, binding, wrapped, to)
            })
            .await
    }

    async fn current_version(&self) -> Result<KeyVersion, KmsError> {
        let deadline = self.aws.policy.deadline();
        self.aws.versions.look_again();
        let pinned = self.aws.pinned(deadline).await?;
        let name = self.aws.learn(&pinned.arn, deadline).await?.1;
        Ok(KeyVersion::new(pinned.id.clone(), name))
    }

    fn batch_limit(&self) -> usize {
        BATCH
    }

    fn rewrap_calls(&self, items: u64) -> u64 {
        items
    }

    async fn exposure(&self) -> Vec<Exposure> {
        self.aws.exposure().await
    }
}

impl Aws {
    async fn batch<'a, Item, T, One>(
        &'a self,
        items: &'a [Item],
        one: impl Fn(&'a Pinned, Instant, &'a Item) -> One,
    ) -> Vec<ItemResult<T>>
    where
        One: Future<Output = ItemResult<T>>,
    {
        let deadline = self.policy.deadline();
        if items.is_empty() {
            return Vec::new();
        }
        match self.pinned(deadline).await {
            Ok(pinned) => each(items, |item| one(pinned, deadline, item)).await,
            Err(error) => items.iter().map(|_| Err(error.clone())).collect(),
        }
    }

    async fn generate(
        &self,
        pinned: &Pinned,
        deadline: Instant,
        binding: &DekBinding,
    ) -> ItemResult<Generated> {
        let (mut made, request_id) = self.data_key(&pinned.arn, deadline, context(binding)).await?;
        let dek = dek(made.plaintext.take(), &request_id);
        ours(pinned, made.key_id(), &request_id)?;
        let version = self.version(pinned, made.key_material_id(), deadline).await;
        let wrapped = wrapped(made.ciphertext_blob.take(), version, &request_id)?;
        Ok(Answer { value: Generated { dek: dek?, wrapped }, request_id })
    }

    async fn wrap(
        &self,
        pinned: &Pinned,
        deadline: Instant,
        binding: &DekBinding,
        dek: &Dek,
    ) -> ItemResult<Wrapped> {
        // Encrypt does not say which key material wrapped: it is taken to be the one that did last.
        let version = match self.versions.current() {
            Some(name) => name,
            None => self.learn(&pinned.arn, deadline).await?.1,
        };
        let send = || {
            let call = self.client.encrypt().key_id(&pinned.arn).plaintext(Blob::new(dek.expose()));
            call.set_encryption_context(Some(context(binding))).send()
        };
        let (made, request_id) = self.call(deadline, send).await?;
        ours(pinned, made.key_id(), &request_id)?;
        let wrapped =
            wrapped(made.ciphertext_blob, KeyVersion::new(pinned.id.clone(), version), &request_id)?;
        Ok(Answer { value: wrapped, request_id })
    }

    async fn unwrap(
        &self,
        pinned: &Pinned,
        deadline: Instant,
        binding: &DekBinding,
        wrapped: &Wrapped,
    ) -> ItemResult<Dek> {
        let blob = ciphertext(pinned, wrapped)?;
        let send = || {
            let call = self.client.decrypt().key_id(&pinned.arn).ciphertext_blob(blob.clone());
            call.set_encryption_context(Some(context(binding))).send()
        };
        let (mut opened, request_id) = self.call(deadline, send).await?;
        let dek = dek(opened.plaintext.take(), &request_id);
        ours(pinned, opened.key_id(), &request_id)?;
        Ok(Answer { value: dek?, request_id })
    }

    async fn rewrap(
        &self,
        pinned: &Pinned,
        deadline: Instant,
        binding: &DekBinding,
        old: &Wrapped,
        to: &KeyVersion,
    ) -> ItemResult<Wrapped> {
        if to.key != pinned.id {
            return Err(KmsError::local(KmsErrorClass::Misconfigured));
        }
        let blob = ciphertext(pinned, old)?;
        let send = || {
            let call = self.client.re_encrypt().ciphertext_blob(blob.clone());
            call.source_key_id(&pinned.arn)
                .destination_key_id(&pinned.arn)
                .set_source_encryption_context(Some(context(binding)))
                .set_destination_encryption_context(Some(context(binding)))
                .send()
        };
        let (made, request_id) = self.call(deadline, send).await?;
        ours(pinned, made.source_key_id(), &request_id)?;
        ours(pinned, made.key_id(), &request_id)?;
        let material = made.destination_key_material_id();
        let mut version = self.version(pinned, material, deadline).await;
        // A replica that may list calls it otherwise than one that may not; it is the same version.
        if self.versions.is_named(material, &to.version) {
            version = to.clone();
        }
        Ok(Answer { value: wrapped(made.ciphertext_blob, version, &request_id)?, request_id })
    }

    /// The one key, resolved where an alias names it.
    async fn pinned(&self, deadline: Instant) -> Result<&Pinned, KmsError> {
        let resolve = async || {
            let (arn, _) = self.learn(&self.configured.arn, deadline).await?;
            // An alias is of its key's account and region.
            match AwsKeyArn::parse(&arn) {
                Ok(key) if key.is_beside(&self.configured) => match key.name {
                    AwsKeyName::Key(id) => Ok(Pinned { arn, id: id.into() }),
                    AwsKeyName::Alias(_) => Err(KmsError::local(KmsErrorClass::Misconfigured)),
                },
                _ => Err(KmsError::local(KmsErrorClass::Misconfigured)),
            }
        };
        self.pinned.get_or_try_init(resolve).await
    }

    /// Generates a data key that is thrown away: which key it is, and what its version is called.
    async fn learn(&self, key: &str, deadline: Instant) -> Result<(String, Arc<str>), KmsError> {
        let purpose = HashMap::from([(PURPOSE.to_owned(), "version".to_owned())]);
        let (mut made, request_id) = self.data_key(key, deadline, purpose).await?;
        if let Some(plaintext) = made.plaintext.take() {
            plaintext.into_inner().zeroize();
        }
        // An alias is answered with the key that it names.
        if AwsKeyArn::parse(key).is_ok_and(|key| matches!(key.name, AwsKeyName::Key(_))) {
            same(key, made.key_id(), &request_id)?;
        }
        let arn = made.key_id.take().unwrap_or_default();
        let material = made.key_material_id();
        let name = self.versions.wrapped_by(material, self.list(&arn, deadline)).await;
        Ok((arn, name))
    }

    async fn version(&self, pinned: &Pinned, material: Option<&str>, deadline: Instant) -> KeyVersion {
        let name = self.versions.wrapped_by(material, self.list(&pinned.arn, deadline)).await;
        KeyVersion::new(pinned.id.clone(), name)
    }

    async fn data_key(
        &self,
        key: &str,
        deadline: Instant,
        context: Context,
    ) -> Result<(aws_sdk_kms::operation::generate_data_key::GenerateDataKeyOutput, Option<Arc<str>>), KmsError>
    {
        let send = || {
            let call = self.client.generate_data_key().key_id(key).key_spec(DataKeySpec::Aes256);
            call.set_encryption_context(Some(context.clone())).send()
        };
        self.call(deadline, send).await
    }

    /// Boxed, as it stands within every other call.
    fn list<'a>(
        &'a self,
        arn: &'a str,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Vec<RotationsListEntry>, KmsError>> {
        Box::pin(self.list_now(arn, deadline))
    }

    /// All key material of the key, within a while that leaves the rest of the deadline to what was asked for.
    async fn list_now(&self, arn: &str, deadline: Instant) -> Result<Vec<RotationsListEntry>, KmsError> {
        let rest = deadline.saturating_duration_since(Instant::now()) / 2;
        let soon = Instant::now() + rest.min(LIST_PATIENCE);
        let pages = async {
            let (mut entries, mut marker) = (Vec::new(), None);
            for _ in 0..LIST_PAGES {
                let send = || {
                    let call = self.client.list_key_rotations().key_id(arn).limit(1000);
                    let call = call.include_key_material(IncludeKeyMaterial::AllKeyMaterial);
                    call.set_marker(marker.clone()).send()
                };
                let page = self.call(soon, send).await?.0;
                entries.extend(page.rotations.unwrap_or_default());
                marker = page.next_marker;
                if !page.truncated || marker.is_none() {
                    return Ok(entries);
                }
            }
            Err(KmsError::local(KmsErrorClass::Internal))
        };
        timeout_at(soon, pages).await.unwrap_or_else(|_| Err(KmsError::local(KmsErrorClass::Unreachable)))
    }

    /// One call by the policy. A credential that KMS refuses is replaced once, where there can be another.
    async fn call<Output, Error, Sent>(
        &self,
        deadline: Instant,
        send: impl Fn() -> Sent,
    ) -> Result<(Output, Option<Arc<str>>), KmsError>
    where
        Output: RequestId,
        Error: ProvideErrorMetadata + StdError + 'static,
        Sent: Future<Output = Result<Output, SdkError<Error, HttpResponse>>> + Send,
    {
        let attempt = || async {
            let held = self.identity.ready(None, deadline).await?;
            // Boxed: the SDK's futures are large, and one inside another too deep for the compiler.
            let sent =
                || -> BoxFuture<'_, Result<Output, SdkError<Error, HttpResponse>>> { Box::pin(send()) };
            let mut outcome = sent().await;
            if let Err(error) = &outcome
                && errors::of(error).class == KmsErrorClass::CredentialInvalid
                && self.identity.can_renew()
            {
                self.identity.ready(Some(held), deadline).await?;
                outcome = sent().await;
            }
            match outcome {
                Ok(output) => {
                    let request_id = output.request_id().and_then(errors::plain_id);
                    Ok((output, request_id))
                }
                Err(error) => Err(Failed { error: errors::of(&error), wait: errors::retry_after(&error) }),
            }
        };
        self.policy.run(deadline, attempt).await
    }

    async fn exposure(&self) -> Vec<Exposure> {
        let mut found = self.warnings.clone();
        let deadline = self.policy.deadline();
        let Ok(pinned) = self.pinned(deadline).await else { return found };
        if pinned.id.starts_with("mrk-") {
            found.push(Exposure {
                what: "key: it is a multi-region key: who disables it in this region leaves its replicas in others usable",
                remedy: "turn it off in every region that it has a replica in; byok itself uses this region only",
            });
        }
        if self.versions.may_not_list() {
            found.push(Exposure {
                what: "key: its versions are shown by their key material, not by number: we may not list its rotations",
                remedy: "permit kms:ListKeyRotations on it, as `byok policy aws-kms` prints it, if you want numbers",
            });
        }
        // Where we may look. It tells apart what one error code of KMS stands for.
        let send = || self.client.describe_key().key_id(&pinned.arn).send();
        let described =
            self.call(deadline, send).await.ok().and_then(|(described, _)| described.key_metadata);
        if let Some(what) = described.and_then(|key| state(key.key_state?)) {
            found.push(what);
        }
        found
    }
}

/// What the configuration alone leaves open.
fn warnings(settings: &AwsSettings) -> Vec<Exposure> {
    let mut found = Vec::new();
    if let AwsCredentials::Keys { session_token: None, .. } = settings.credentials {
        found.push(Exposure {
            what: "identity: an access key that never ends; who copies it can use it until somebody deletes it",
            remedy: "take web identity (EKS), a container's or a machine's role, or a session",
        });
    }
    if settings.role.as_ref().is_some_and(|role| role.external_id.is_none()) {
        found.push(Exposure {
            what: "identity: the role is taken without an external id; another customer who learns its ARN could name it as theirs",
            remedy: "set BYOK_AWS_EXTERNAL_ID, and require it in the role's trust policy (`byok policy aws-kms`)",
        });
    }
    found
}

/// A state in which KMS refuses the key, and what ends it.
fn state(state: KeyState) -> Option<Exposure> {
    let (what, remedy) = match state {
        KeyState::Disabled => ("key: AWS says that it is disabled", "enable it (kms:EnableKey)"),
        KeyState::PendingDeletion => (
            "key: AWS says that it waits for its deletion",
            "cancel the deletion and enable it (kms:CancelKeyDeletion, kms:EnableKey) before the waiting period is over",
        ),
        KeyState::PendingImport => (
            "key: AWS says that its imported key material is missing or has expired",
            "import the same key material again (kms:ImportKeyMaterial)",
        ),
        KeyState::Unavailable => {
            ("key: AWS says that its custom key store is disconnected", "connect the key store again")
        }
        KeyState::PendingReplicaDeletion => (
            "key: AWS says that it waits for the deletion of its replicas",
            "cancel the deletion (kms:CancelKeyDeletion)",
        ),
        _ => return None,
    };
    Some(Exposure { what, remedy })
}

fn context(binding: &DekBinding) -> Context {
    HashMap::from([
        (TENANT.to_owned(), binding.tenant.to_string()),
        (DEK.to_owned(), binding.dek_id.to_string()),
    ])
}

/// What is sent to be unwrapped. The name in the row must be that of our key: it comes from the database.
fn ciphertext(pinned: &Pinned, wrapped: &Wrapped) -> Result<Blob, KmsError> {
    if wrapped.key_version.key != pinned.id {
        return Err(KmsError::local(KmsErrorClass::Misconfigured));
    }
    let good = wrapped.scheme == SCHEME && (1..=MAX_WRAPPED_BYTES).contains(&wrapped.bytes.len());
    good.then(|| Blob::new(wrapped.bytes.as_slice())).ok_or(KmsError::local(KmsErrorClass::InvalidWrappedDek))
}

fn wrapped(
    blob: Option<Blob>,
    key_version: KeyVersion,
    request_id: &Option<Arc<str>>,
) -> Result<Wrapped, KmsError> {
    let bytes = blob.map(Blob::into_inner).filter(|bytes| (1..=MAX_WRAPPED_BYTES).contains(&bytes.len()));
    let bytes = bytes.ok_or_else(|| undocumented(KmsErrorClass::Internal, request_id))?;
    Ok(Wrapped { bytes, key_version, scheme: SCHEME })
}

/// Takes the plaintext out of an answer, and wipes it.
fn dek(blob: Option<Blob>, request_id: &Option<Arc<str>>) -> Result<Dek, KmsError> {
    let bytes = Zeroizing::new(blob.map(Blob::into_inner).unwrap_or_default());
    Dek::from_slice(&bytes).ok_or_else(|| undocumented(KmsErrorClass::Internal, request_id))
}

/// Only what the one key made or opened is used: same account, same region, same key.
fn ours(pinned: &Pinned, answered: Option<&str>, request_id: &Option<Arc<str>>) -> Result<(), KmsError> {
    same(&pinned.arn, answered, request_id)
}

fn same(asked: &str, answered: Option<&str>, request_id: &Option<Arc<str>>) -> Result<(), KmsError> {
    match answered {
        Some(answered) if answered == asked => Ok(()),
        Some(_) => Err(undocumented(KmsErrorClass::Misconfigured, request_id)),
        None => Err(undocumented(KmsErrorClass::Internal, request_id)),
    }
}

/// Of an answer that says something else than was asked for.
fn undocumented(class: KmsErrorClass, request_id: &Option<Arc<str>>) -> KmsError {
    KmsError::answered(class, 200, request_id.clone())
}
