//! The mutations.

use async_graphql::{Context, ID, Object};

use crate::model::{ErrorCode, JobCommand, Operation, Refusal};

use super::call::Call;
use super::item::{
    DecryptArguments, DecryptResult, DecryptedValue, Encoding, EncryptArguments, EncryptResult,
    EncryptedValue,
};
use super::rotation::RotationStatus;
use super::scalars::{Jsonb, Secret};

pub(super) struct Mutation;

/// Operations that change something, and decryption by name.
#[Object(name = "Mutation")]
impl Mutation {
    /// Encrypts a value under the data key of its record, which the customer's key wraps.
    async fn byok_encrypt(
        &self,
        context: &Context<'_>,
        #[graphql(desc = "The value.", secret)] plaintext: Secret,
        #[graphql(desc = "The record that the value belongs to; the same as `record_id` in the context.")]
        record_id: Option<ID>,
        #[graphql(desc = "The field of the record; the same as `field` in the context.")] field: Option<
            String,
        >,
        #[graphql(
            name = "context",
            desc = "What the ciphertext is bound to: a flat object of strings, needed again to decrypt."
        )]
        pairs: Option<Jsonb>,
        #[graphql(desc = "How the plaintext is written; UTF8 when absent.")] encoding: Option<Encoding>,
    ) -> Result<Option<EncryptedValue>, Refusal> {
        let call = Call::of(context)?;
        let item = EncryptArguments { plaintext, record_id, field, context: pairs, encoding }.into_item();
        let encrypted = call.encrypt(vec![item]).await?.pop().ok_or(ErrorCode::Internal)??;
        Ok(Some(encrypted.into()))
    }

    /// Encrypts many values at once, with one entry in the audit log. Only DEKs that are not in
    /// memory need calls to the KMS: with Vault one call for 256 DEKs; with AWS, Google and Azure
    /// one for each.
    async fn byok_encrypt_many(
        &self,
        context: &Context<'_>,
        #[graphql(desc = "The values; each is answered, in order.", secret)] items: Vec<EncryptArguments>,
    ) -> Result<Option<Vec<EncryptResult>>, Refusal> {
        let call = Call::of(context)?;
        let items = items.into_iter().map(EncryptArguments::into_item).collect();
        Ok(Some(call.encrypt(items).await?.into_iter().map(EncryptResult::from).collect()))
    }

    /// Decrypts a ciphertext.
    async fn byok_decrypt(
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
        #[graphql(desc = "How to write the plaintext; UTF8 when absent.")] encoding: Option<Encoding>,
    ) -> Result<Option<DecryptedValue>, Refusal> {
        let call = Call::of(context)?;
        let item = DecryptArguments { ciphertext, record_id, field, context: pairs, encoding }.into_item();
        let answers = call.decrypt(Operation::Decrypt, vec![item]).await;
        let decrypted = answers?.pop().ok_or(ErrorCode::Internal)??;
        DecryptedValue::new(decrypted, encoding).map(Some)
    }

    /// Decrypts many ciphertexts at once, with one entry in the audit log. Only DEKs that are not
    /// in memory need calls to the KMS: with Vault one call for 256 DEKs; with AWS, Google and
    /// Azure one for each.
    async fn byok_decrypt_many(
        &self,
        context: &Context<'_>,
        #[graphql(desc = "The ciphertexts; each is answered, in order.")] items: Vec<DecryptArguments>,
    ) -> Result<Option<Vec<DecryptResult>>, Refusal> {
        let call = Call::of(context)?;
        let (encodings, items): (Vec<_>, Vec<_>) =
            items.into_iter().map(|item| (item.encoding, item.into_item())).unzip();
        let answers = call.decrypt(Operation::Decrypt, items).await?;
        Ok(Some(
            answers
                .into_iter()
                .zip(encodings)
                .map(|(answer, encoding)| DecryptResult::new(answer, encoding))
                .collect(),
        ))
    }

    /// Starts a rotation, which re-wraps every data key under the current version of the customer's
    /// key, or joins the one that is running. Refused while one is paused. Ciphertexts do not
    /// change.
    async fn byok_rotate(
        &self,
        context: &Context<'_>,
        #[graphql(desc = "Only report what a rotation would do; false when absent.")] dry_run: Option<bool>,
    ) -> Result<Option<RotationStatus>, Refusal> {
        let (app, caller) = Call::of(context)?.authenticated()?;
        Ok(Some(app.rotate(caller, dry_run.unwrap_or(false)).await?.into()))
    }

    /// Pauses a rotation until it is resumed.
    async fn byok_pause_rotation(
        &self,
        context: &Context<'_>,
        #[graphql(desc = "The id of the rotation, as `byokRotate` returned it.")] id: ID,
    ) -> Result<Option<RotationStatus>, Refusal> {
        command(context, &id, JobCommand::Pause).await
    }

    /// Resumes a paused rotation.
    async fn byok_resume_rotation(
        &self,
        context: &Context<'_>,
        #[graphql(desc = "The id of the rotation, as `byokRotate` returned it.")] id: ID,
    ) -> Result<Option<RotationStatus>, Refusal> {
        command(context, &id, JobCommand::Resume).await
    }

    /// Ends a rotation early. Data keys that it re-wrapped stay re-wrapped; another rotation does
    /// the rest.
    async fn byok_cancel_rotation(
        &self,
        context: &Context<'_>,
        #[graphql(desc = "The id of the rotation, as `byokRotate` returned it.")] id: ID,
    ) -> Result<Option<RotationStatus>, Refusal> {
        command(context, &id, JobCommand::Cancel).await
    }
}

async fn command(
    context: &Context<'_>,
    id: &ID,
    command: JobCommand,
) -> Result<Option<RotationStatus>, Refusal> {
    let (app, caller) = Call::of(context)?.authenticated()?;
    let id = id.parse().map_err(|_| ErrorCode::RotationNotFound)?;
    Ok(Some(app.command_rotation(caller, id, command).await?.into()))
}
