//! The queries.

use async_graphql::{Context, ID, Object, SimpleObject};

use crate::model::{ErrorCode, Operation, Posture, Refusal};

use super::audit::{AuditCheckpoint, AuditConnection, AuditFilter};
use super::call::Call;
use super::enums::EnumValue;
use super::item::{DecryptArguments, Revealed};
use super::rotation::RotationStatus;
use super::scalars::Jsonb;
use crate::app::{Health, HealthStatus};

pub(super) struct Query;

/// Operations that change nothing but the audit log.
#[Object(name = "Query")]
impl Query {
    /// Decrypts a ciphertext for a row of a remote join. All rows of one request are one call; a
    /// row that fails has the reason in its `error`, and the other rows are answered.
    async fn byok_reveal(
        &self,
        context: &Context<'_>,
        #[graphql(desc = "The ciphertext, as encrypt returned it.")] ciphertext: String,
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

    /// Decrypts many ciphertexts at once, with one entry in the audit log. Only DEKs that are not
    /// in memory need calls to the KMS: with Vault one call for 256 DEKs; with AWS, Google and
    /// Azure one for each.
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
        #[graphql(desc = "The number of entries, 1 to 500; 50 when absent.")] first: Option<i32>,
        #[graphql(desc = "The `endCursor` of the previous page.")] after: Option<String>,
        #[graphql(desc = "Which entries; all when absent.")] filter: Option<AuditFilter>,
    ) -> Result<Option<AuditConnection>, Refusal> {
        let asks_for_newer = context.look_ahead().field("pageInfo").field("hasPreviousPage").exists();
        let query = filter.unwrap_or_default().into_query(first, after, asks_for_newer);
        Ok(Some(Call::of(context)?.audit(&query).await?.into()))
    }

    /// The current size and root of the audit log, signed.
    async fn byok_audit_checkpoint(&self, context: &Context<'_>) -> Result<Option<AuditCheckpoint>, Refusal> {
        let (app, caller) = Call::of(context)?.authenticated()?;
        Ok(Some(app.checkpoint(caller).await?.into()))
    }

    /// The progress of a rotation.
    async fn byok_rotation(
        &self,
        context: &Context<'_>,
        #[graphql(desc = "The id of the rotation, as `byokRotate` returned it.")] id: ID,
    ) -> Result<Option<RotationStatus>, Refusal> {
        let (app, caller) = Call::of(context)?.authenticated()?;
        let id = id.parse().map_err(|_| ErrorCode::RotationNotFound)?;
        Ok(Some(app.rotation(caller, Some(id)).await?.into()))
    }

    /// Whether the customer's key can be used now, by a wrap and an unwrap, made at most once in
    /// five seconds. A caller without identity gets the last known health.
    async fn byok_health(&self, context: &Context<'_>) -> Result<Option<KeyHealth>, Refusal> {
        Ok(Some(Call::of(context)?.health().await.into()))
    }
}

/// The health of the customer's key.
#[derive(SimpleObject)]
#[graphql(name = "ByokHealth")]
struct KeyHealth {
    /// The overall status.
    status: EnumValue<HealthStatus>,
    /// Whether the database answers.
    database: bool,
    /// The version that the key wraps under, if known.
    key_version: Option<String>,
    /// Why no call can be answered; null if calls can.
    error: Option<EnumValue<ErrorCode>>,
    /// How long the KMS took for a wrap and an unwrap, in milliseconds; null if it was not asked.
    kms_latency_ms: Option<f64>,
    /// The posture of this key version; null until one of its data keys is used.
    posture: Option<EnumValue<Posture>>,
    /// The worst posture of all key versions that are probed.
    worst_posture: Option<EnumValue<Posture>>,
    /// When the key was last shown to work (RFC 3339).
    last_success: Option<String>,
    /// How long ago that was, in seconds.
    last_success_seconds_ago: Option<f64>,
    /// The greatest age, in seconds, of the last proof that the key works at which a call is still
    /// answered.
    bound_seconds: f64,
    /// When the server tries again to log in to the KMS, which refused its credential (RFC 3339);
    /// null otherwise.
    next_login: Option<String>,
}

impl From<&Health> for KeyHealth {
    fn from(health: &Health) -> Self {
        Self {
            status: EnumValue(health.status),
            database: health.database,
            key_version: health.key_version.as_ref().map(ToString::to_string),
            error: health.error.map(EnumValue),
            kms_latency_ms: health.kms_latency.map(|latency| (latency.as_secs_f64() * 1e5).round() / 1e2),
            posture: health.posture.map(EnumValue),
            worst_posture: health.worst_posture.map(EnumValue),
            last_success: health.last_success.map(|(at, _)| at.to_string()),
            last_success_seconds_ago: health.last_success.map(|(_, age)| age.as_secs_f64()),
            bound_seconds: health.bound.as_secs_f64(),
            next_login: health.next_login.map(|at| at.to_string()),
        }
    }
}
