//! The queries.

use async_graphql::{Context, ID, Object, SimpleObject};

use crate::model::{ErrorCode, Operation, Posture, Refusal};

use super::audit::{AuditCheckpoint, AuditConnection, AuditFilter};
use super::call::Call;
use super::item::{DecryptArguments, Revealed};
use super::rotation::RotationStatus;
use super::scalars::Jsonb;
use super::words::Word;
use crate::app::{Health, HealthStatus};

pub(super) struct Query;

/// What changes nothing but the audit log.
#[Object(name = "Query")]
impl Query {
    /// Decrypts a ciphertext for a row of a remote join. All that one request asks for are one call; a row that fails says
    /// why in its `error`, and the others stand.
    async fn byok_reveal(
        &self,
        context: &Context<'_>,
        #[graphql(desc = "The ciphertext, as encrypt gave it.")] ciphertext: String,
        #[graphql(desc = "The record that the value belongs to; the same as `record_id` in the context.")]
        record_id: Option<ID>,
        #[graphql(desc = "The field of the record; the same as `field` in the context.")] field: Option<
            String,
        >,
        #[graphql(name = "context", desc = "What the ciphertext was bound to when it was made.")]
        pairs: Option<Jsonb>,
    ) -> Result<Option<Revealed>, Refusal> {
        let item =
            DecryptArguments { ciphertext, record_id, field, context: pairs, encoding: None }.into_item();
        Ok(Some(Revealed::new(Call::of(context)?.reveal(item).await?, None)))
    }

    /// Decrypts many ciphertexts at once: one entry in the audit log. The KMS is asked for DEKs that are not
    /// in memory alone: Vault for 256 in one call, AWS, Google and Azure for each by itself.
    async fn byok_reveal_many(
        &self,
        context: &Context<'_>,
        #[graphql(desc = "The ciphertexts; each is answered, in order.")] items: Vec<DecryptArguments>,
    ) -> Result<Option<Vec<Revealed>>, Refusal> {
        let call = Call::of(context)?;
        let (encodings, items): (Vec<_>, Vec<_>) =
            items.into_iter().map(|item| (item.encoding, item.into_item())).unzip();
        let answers = call.decrypt(Operation::Reveal, items).await?;
        Ok(Some(
            answers
                .into_iter()
                .zip(encodings)
                .map(|(answer, encoding)| Revealed::new(answer, encoding))
                .collect(),
        ))
    }

    /// A page of the audit log, newest entries first.
    async fn byok_audit(
        &self,
        context: &Context<'_>,
        #[graphql(desc = "How many entries, 1 to 500; 50 when absent.")] first: Option<i32>,
        #[graphql(desc = "The `endCursor` of the page before.")] after: Option<String>,
        #[graphql(desc = "Which entries; all when absent.")] filter: Option<AuditFilter>,
    ) -> Result<Option<AuditConnection>, Refusal> {
        let asks_for_newer = context.look_ahead().field("pageInfo").field("hasPreviousPage").exists();
        let query = filter.unwrap_or_default().into_query(first, after, asks_for_newer);
        Ok(Some(Call::of(context)?.audit(&query).await?.into()))
    }

    /// The audit log's size and root as they are now, signed.
    async fn byok_audit_checkpoint(&self, context: &Context<'_>) -> Result<Option<AuditCheckpoint>, Refusal> {
        let (app, caller) = Call::of(context)?.known()?;
        Ok(Some(app.checkpoint(caller).await?.into()))
    }

    /// How far a rotation is.
    async fn byok_rotation(
        &self,
        context: &Context<'_>,
        #[graphql(desc = "The rotation's id, as `byokRotate` gave it.")] id: ID,
    ) -> Result<Option<RotationStatus>, Refusal> {
        let (app, caller) = Call::of(context)?.known()?;
        let id = id.parse().map_err(|_| ErrorCode::RotationNotFound)?;
        Ok(Some(app.rotation(caller, Some(id)).await?.into()))
    }

    /// Whether the customer's key can be used now: a wrap and an unwrap, at most once in five seconds. Without identity, what is known already.
    async fn byok_health(&self, context: &Context<'_>) -> Result<Option<KeyHealth>, Refusal> {
        Ok(Some(Call::of(context)?.health().await.into()))
    }
}

/// How the customer's key is.
#[derive(SimpleObject)]
#[graphql(name = "ByokHealth")]
struct KeyHealth {
    /// All in all.
    status: Word<HealthStatus>,
    /// Whether the database answers.
    database: bool,
    /// The version that the key wraps under, as far as is known.
    key_version: Option<String>,
    /// Why nothing can be answered, where nothing can.
    error: Option<Word<ErrorCode>>,
    /// How long the KMS took for a wrap and an unwrap, in milliseconds; null where it was not asked.
    kms_latency_ms: Option<f64>,
    /// What the watch over this key version says; null while none of its keys was used.
    posture: Option<Word<Posture>>,
    /// The worst posture of all key versions that are watched.
    worst_posture: Option<Word<Posture>>,
    /// When the key was last shown to work (RFC 3339).
    last_success: Option<String>,
    /// How long ago that is.
    last_success_seconds_ago: Option<f64>,
    /// How old the last proof that the key works may be when something is answered, in seconds.
    bound_seconds: f64,
    /// When our credential, which the KMS refused, is shown to it again (RFC 3339); null otherwise.
    next_login: Option<String>,
}

impl From<&Health> for KeyHealth {
    fn from(health: &Health) -> Self {
        Self {
            status: Word(health.status),
            database: health.database,
            key_version: health.key_version.as_ref().map(ToString::to_string),
            error: health.error.map(Word),
            kms_latency_ms: health.kms_latency.map(|latency| (latency.as_secs_f64() * 1e5).round() / 1e2),
            posture: health.posture.map(Word),
            worst_posture: health.worst_posture.map(Word),
            last_success: health.last_success.map(|(at, _)| at.to_string()),
            last_success_seconds_ago: health.last_success.map(|(_, age)| age.as_secs_f64()),
            bound_seconds: health.bound.as_secs_f64(),
            next_login: health.next_login.map(|at| at.to_string()),
        }
    }
}
