//! The operations on the one key, and the checks of their answers.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_sdk_kms::Client;
use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::operation::RequestId;
use aws_sdk_kms::operation::generate_data_key::GenerateDataKeyOutput;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{DataKeySpec, IncludeKeyMaterial, RotationsListEntry};
use futures_util::future::BoxFuture;
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout_at};
use zeroize::{Zeroize as _, Zeroizing};

use crate::config::{AwsKeyArn, AwsKeyName, AwsSettings};
use crate::crypto::Dek;
use crate::kms::budget::Share;
use crate::kms::call::{Call, CallPolicy, Failed, each};
use crate::kms::{
    Answer, Asked, Connections, DekBinding, Exposure, Generated, ItemResult, KmsError, KmsErrorClass, Purpose,
};
use crate::model::{KeyVersion, Wrapped};

use super::client::Clients;
use super::identity::Identity;
use super::versions::{UNNAMED, Versions};
use super::{errors, exposure};

/// The wrap scheme of this provider: the DEK's 32 bytes are the plaintext, tenant and DEK id the
/// encryption context.
const SCHEME: i16 = 1;
/// The name of the tenant in the encryption context.
pub(super) const TENANT: &str = "byok:tenant";
/// The name of the DEK's id in the encryption context.
pub(super) const DEK: &str = "byok:dek";
/// The name of the purpose in the encryption context of a DEK that is no record's.
pub(super) const PURPOSE: &str = "byok:purpose";
const CHECKPOINT: &str = "byok:checkpoint";
/// The longest ciphertext that AWS takes (`CiphertextType` of the service's model). Ours are some
/// 180 bytes.
const MAX_WRAPPED_BYTES: usize = 6144;
/// The DEKs of one batch; each is a call.
pub(super) const BATCH: usize = 128;
/// The longest time that a name waits for the list of key material.
const LIST_PATIENCE: Duration = Duration::from_secs(1);
/// The most pages of a thousand entries; a key has a handful of entries.
const LIST_PAGES: usize = 10;

/// A client of one key, and what is known about the key.
pub(super) struct Key {
    /// The client, built when it is needed and there is none.
    client: Mutex<Option<Client>>,
    make: Box<dyn Fn() -> Client + Send + Sync>,
    pub(super) identity: Identity,
    pub(super) policy: CallPolicy,
    configured: AwsKeyArn,
    pinned: OnceCell<Pinned>,
    pub(super) versions: Versions,
    pub(super) warnings: Vec<Exposure>,
}

/// The one key, resolved.
pub(super) struct Pinned {
    pub(super) arn: String,
    pub(super) id: Arc<str>,
}

type Context = HashMap<String, String>;
/// The ARN of the key, the id of the key material, and the id of the request.
type Learned = (Option<String>, Option<String>, Option<Arc<str>>);

impl Connections for Key {
    /// Closes all connections: idle ones at once, the others when their call ends.
    fn hang_up(&self) {
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Key {
    pub(super) fn client(&self) -> Client {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        client.get_or_insert_with(|| (self.make)()).clone()
    }

    pub(super) fn new(settings: AwsSettings) -> Self {
        let identity = Identity::new(&settings, Clients::new());
        let slot = identity.slot();
        let policy = CallPolicy::new("aws-kms", settings.timeout, settings.calls_per_minute);
        let configured = settings.key.clone();
        let warnings = exposure::of_settings(&settings);
        let pinned = match &settings.key.name {
            AwsKeyName::Key(id) => {
                OnceCell::new_with(Some(Pinned { arn: settings.key.arn.clone(), id: id.as_str().into() }))
            }
            AwsKeyName::Alias(_) => OnceCell::new(),
        };
        // This client has its own connections, so that no other client keeps them open.
        let make = Box::new(move || Clients::new().kms(&settings, slot.clone()));
        Self {
            client: Mutex::new(Some(make())),
            identity,
            policy,
            configured,
            make,
            pinned,
            versions: Versions::default(),
            warnings,
        }
    }

    /// The current version, which is read again each time, so that a rotation is noticed.
    pub(super) async fn current_version(
        &self,
        share: Share,
        deadline: Instant,
    ) -> Result<KeyVersion, KmsError> {
        self.versions.look_again();
        let pinned = self.pinned(share, deadline).await?;
        let (arn, material, request_id) = self.learn(&pinned.arn, share, deadline).await?;
        ours(pinned, arn.as_deref(), &request_id)?;
        Ok(self.version(pinned, material.as_deref(), deadline).await)
    }

    /// Calls `one` for each item, once the key is resolved.
    pub(super) async fn batch<'a, Item, T, One>(
        &'a self,
        items: &'a [Item],
        share: Share,
        deadline: Instant,
        one: impl Fn(&'a Pinned, &'a Item) -> One,
    ) -> Vec<ItemResult<T>>
    where
        One: Future<Output = ItemResult<T>>,
    {
        if items.is_empty() {
            return Vec::new();
        }
        match self.pinned(share, deadline).await {
            Ok(pinned) => each(items, |item| one(pinned, item)).await,
            Err(error) => items.iter().map(|_| Err(error.clone())).collect(),
        }
    }

    /// Learns the current version before the first wrap, if we may. The answer of Encrypt does not
    /// name the key material, so it is assumed to be the last one that is known; if there is none,
    /// the name is [`UNNAMED`].
    pub(super) async fn before_wrap(&self, share: Share, deadline: Instant) {
        if self.versions.current().is_none() {
            let _ = self.current_version(share, deadline).await;
        }
    }

    pub(super) async fn generate(
        &self,
        pinned: &Pinned,
        deadline: Instant,
        binding: &DekBinding,
    ) -> ItemResult<Generated> {
        let (mut made, request_id) =
            self.data_key(&pinned.arn, binding.purpose.into(), deadline, context(binding)).await?;
        let dek = dek(made.plaintext.take(), &request_id);
        ours(pinned, made.key_id(), &request_id)?;
        let version = self.version(pinned, made.key_material_id(), deadline).await;
        let wrapped = wrapped(made.ciphertext_blob.take(), version, &request_id)?;
        Ok(Answer { value: Generated { dek: dek?, wrapped }, request_id })
    }

    pub(super) async fn wrap(
        &self,
        pinned: &Pinned,
        deadline: Instant,
        binding: &DekBinding,
        dek: &Dek,
    ) -> ItemResult<Wrapped> {
        let send = || {
            let call = self.client().encrypt().key_id(&pinned.arn).plaintext(Blob::new(dek.expose()));
            call.set_encryption_context(Some(context(binding))).send()
        };
        let call = Call { asked: Asked::Wrap, share: binding.purpose.into(), deadline };
        let (made, request_id) = self.call(call, send).await?;
        ours(pinned, made.key_id(), &request_id)?;
        let name = self.versions.current().unwrap_or_else(|| UNNAMED.into());
        let version = KeyVersion::new(pinned.id.clone(), name);
        Ok(Answer { value: wrapped(made.ciphertext_blob, version, &request_id)?, request_id })
    }

    pub(super) async fn unwrap(
        &self,
        pinned: &Pinned,
        deadline: Instant,
        binding: &DekBinding,
        wrapped: &Wrapped,
    ) -> ItemResult<Dek> {
        let blob = ciphertext(pinned, wrapped)?;
        let send = || {
            let call = self.client().decrypt().key_id(&pinned.arn).ciphertext_blob(blob.clone());
            call.set_encryption_context(Some(context(binding))).send()
        };
        let call = Call { asked: Asked::Unwrap, share: binding.purpose.into(), deadline };
        let (mut opened, request_id) = self.call(call, send).await?;
        let dek = dek(opened.plaintext.take(), &request_id);
        ours(pinned, opened.key_id(), &request_id)?;
        Ok(Answer { value: dek?, request_id })
    }

    pub(super) async fn rewrap(
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
            let call = self.client().re_encrypt().ciphertext_blob(blob.clone());
            call.source_key_id(&pinned.arn)
                .destination_key_id(&pinned.arn)
                .set_source_encryption_context(Some(context(binding)))
                .set_destination_encryption_context(Some(context(binding)))
                .send()
        };
        let call = Call { asked: Asked::Rewrap, share: Share::of_rewrap([binding.purpose]), deadline };
        let (made, request_id) = self.call(call, send).await?;
        ours(pinned, made.source_key_id(), &request_id)?;
        ours(pinned, made.key_id(), &request_id)?;
        let material = made.destination_key_material_id();
        let mut version = self.version(pinned, material, deadline).await;
        // A replica with the right to list names the version differently from one without; it is
        // the same version.
        if self.versions.is_named(material, &to.version) {
            version = to.clone();
        }
        Ok(Answer { value: wrapped(made.ciphertext_blob, version, &request_id)?, request_id })
    }

    /// The one key, after resolving the alias if one is configured.
    pub(super) async fn pinned(&self, share: Share, deadline: Instant) -> Result<&Pinned, KmsError> {
        let misconfigured = || KmsError::local(KmsErrorClass::Misconfigured);
        let resolve = async || {
            let (arn, ..) = self.learn(&self.configured.arn, share, deadline).await?;
            let key = AwsKeyArn::parse(arn.as_deref().unwrap_or_default()).map_err(|_| misconfigured())?;
            match key.name {
                // An alias is in the account and the region of its key.
                AwsKeyName::Key(ref id) if key.is_beside(&self.configured) => {
                    Ok(Pinned { id: id.as_str().into(), arn: key.arn })
                }
                AwsKeyName::Key(_) | AwsKeyName::Alias(_) => Err(misconfigured()),
            }
        };
        self.pinned.get_or_try_init(resolve).await
    }

    /// Learns the key and the key material from a data key that is generated and thrown away.
    async fn learn(&self, key: &str, share: Share, deadline: Instant) -> Result<Learned, KmsError> {
        let purpose = HashMap::from([(PURPOSE.to_owned(), "version".to_owned())]);
        let (made, request_id) = self.data_key(key, share, deadline, purpose).await?;
        if let Some(plaintext) = made.plaintext {
            plaintext.into_inner().zeroize();
        }
        Ok((made.key_id, made.key_material_id, request_id))
    }

    async fn version(&self, pinned: &Pinned, material: Option<&str>, deadline: Instant) -> KeyVersion {
        let list = self.list(&pinned.arn, deadline);
        let name = self.versions.wrapped_by(material, deadline, list).await;
        KeyVersion::new(pinned.id.clone(), name)
    }

    async fn data_key(
        &self,
        key: &str,
        share: Share,
        deadline: Instant,
        context: Context,
    ) -> Result<(GenerateDataKeyOutput, Option<Arc<str>>), KmsError> {
        let send = || {
            let call = self.client().generate_data_key().key_id(key).key_spec(DataKeySpec::Aes256);
            call.set_encryption_context(Some(context.clone())).send()
        };
        self.call(Call { asked: Asked::Generate, share, deadline }, send).await
    }

    /// The list of key material, boxed because every other call contains it.
    fn list<'a>(
        &'a self,
        arn: &'a str,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Vec<RotationsListEntry>, KmsError>> {
        Box::pin(self.list_now(arn, deadline))
    }

    /// All key material of the key, within a time limit that leaves the rest of the deadline to the
    /// call itself.
    async fn list_now(&self, arn: &str, deadline: Instant) -> Result<Vec<RotationsListEntry>, KmsError> {
        let rest = deadline.saturating_duration_since(Instant::now()) / 2;
        let soon = Instant::now() + rest.min(LIST_PATIENCE);
        let pages = async {
            let (mut entries, mut marker) = (Vec::new(), None);
            for _ in 0..LIST_PAGES {
                let send = || {
                    let call = self.client().list_key_rotations().key_id(arn).limit(1000);
                    let call = call.include_key_material(IncludeKeyMaterial::AllKeyMaterial);
                    call.set_marker(marker.clone()).send()
                };
                // The share of a probe is counted but not refused: names do not change, so the list
                // is read only once after a rotation.
                let call = Call { asked: Asked::Describe, share: Share::Probe, deadline: soon };
                let page = self.call(call, send).await?.0;
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

    /// Makes one call by the policy. A credential that KMS refuses is replaced once, if it can be.
    pub(super) async fn call<Output, Error, Sent>(
        &self,
        call: Call,
        send: impl Fn() -> Sent,
    ) -> Result<(Output, Option<Arc<str>>), KmsError>
    where
        Output: RequestId,
        Error: ProvideErrorMetadata + StdError + 'static,
        Sent: Future<Output = Result<Output, SdkError<Error, HttpResponse>>> + Send,
    {
        let Call { share, deadline, .. } = call;
        let attempt = || async {
            let held = self.identity.ready(deadline).await?;
            // Boxed, because the SDK's futures are large and nest too deeply for the compiler.
            let sent =
                || -> BoxFuture<'_, Result<Output, SdkError<Error, HttpResponse>>> { Box::pin(send()) };
            let mut outcome = sent().await;
            if let Err(error) = &outcome
                && errors::of(error).class == KmsErrorClass::CredentialInvalid
                && self.identity.replace(&held, deadline).await?
            {
                self.policy.one_more(share)?;
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
        self.policy.run(call, attempt).await
    }
}

fn context(binding: &DekBinding) -> Context {
    let mut context = HashMap::from([
        (TENANT.to_owned(), binding.tenant.to_string()),
        (DEK.to_owned(), binding.dek_id.to_string()),
    ]);
    match binding.purpose {
        Purpose::Record | Purpose::RecordAhead | Purpose::RecordProbed => {}
        Purpose::Probe => drop(context.insert(PURPOSE.to_owned(), "probe".to_owned())),
        Purpose::Checkpoint(position) => {
            context.insert(PURPOSE.to_owned(), "checkpoint".to_owned());
            context.insert(CHECKPOINT.to_owned(), position.to_string());
        }
    }
    context
}

/// The ciphertext that is sent to be unwrapped. The row comes from the database, so its key must be
/// compared with ours.
fn ciphertext(pinned: &Pinned, wrapped: &Wrapped) -> Result<Blob, KmsError> {
    if wrapped.key_version.key != pinned.id {
        return Err(KmsError::local(KmsErrorClass::WrappedByAnotherKey));
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

/// Takes the DEK out of an answer, and wipes the answer's copy.
fn dek(blob: Option<Blob>, request_id: &Option<Arc<str>>) -> Result<Dek, KmsError> {
    let bytes = Zeroizing::new(blob.map(Blob::into_inner).unwrap_or_default());
    Dek::from_slice(&bytes).ok_or_else(|| undocumented(KmsErrorClass::Internal, request_id))
}

/// Checks that the answer is of our key: same account, same region, same key.
fn ours(pinned: &Pinned, answered: Option<&str>, request_id: &Option<Arc<str>>) -> Result<(), KmsError> {
    match answered {
        Some(arn) if arn == pinned.arn => Ok(()),
        Some(_) => Err(undocumented(KmsErrorClass::Misconfigured, request_id)),
        None => Err(undocumented(KmsErrorClass::Internal, request_id)),
    }
}

/// The error of an answer that does not fit the request.
fn undocumented(class: KmsErrorClass, request_id: &Option<Arc<str>>) -> KmsError {
    KmsError::answered(class, 200, request_id.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kms::LogPosition;
    use crate::merkle::Hash;
    use crate::model::{DekId, TenantUid};

    #[test]
    fn only_a_probe_has_a_purpose_in_its_context() {
        let record =
            DekBinding { tenant: TenantUid([7; 16]), dek_id: DekId::new(), purpose: Purpose::Record };
        let (tenant, dek) = ("07".repeat(16), record.dek_id.to_string());
        let pairs = [("byok:tenant", tenant.as_str()), ("byok:dek", dek.as_str()), ("byok:purpose", "probe")];
        let of = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<Context>()
        };
        assert_eq!(context(&record), of(&pairs[..2]));
        assert_eq!(context(&DekBinding { purpose: Purpose::Probe, ..record }), of(&pairs));
        let position = LogPosition { log: 1, size: 7, root: Hash([0; 32]) };
        let text = "1 7 AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        let marked = [pairs[0], pairs[1], ("byok:purpose", "checkpoint"), ("byok:checkpoint", text)];
        assert_eq!(context(&DekBinding { purpose: Purpose::Checkpoint(position), ..record }), of(&marked));
    }
}
