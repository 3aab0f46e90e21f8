//! Encryption and decryption of one value or many.

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use crate::app::{
    Answered, Committed, DecryptItem, Decrypted, EncryptItem, Encrypted, Plaintext, Release, Room,
    SecretText, context_of,
};
use crate::model::{ErrorCode, Operation, Refusal};
use crate::tenancy::Caller;

use super::Front;
use super::body::{Object, answer_within, read};
use super::caller::Authenticated;
use super::crypt_json::{
    DecryptAnswer, DecryptManyAnswer, DecryptManyRequest, DecryptRequest, Encoding, EncryptAnswer,
    EncryptManyAnswer, EncryptManyRequest, EncryptRequest, ItemAnswer,
};
use super::problem::problem;

pub(super) async fn encrypt(
    State(front): State<Front>,
    Authenticated(caller, room): Authenticated,
    body: Body,
) -> Response {
    if let Err(refusal) = front.app.permit(&caller, Operation::Encrypt).await {
        return problem(&refusal);
    }
    let item = read::<EncryptRequest>(&front, body).await.and_then(EncryptRequest::into_item);
    match front.app.encrypt(&caller, vec![item]).await {
        Ok(Answered { answers, committed }) => {
            released(front, caller, committed, one(&*room, answers.into_iter().map(encrypted))).await
        }
        Err(refusal) => problem(&refusal),
    }
}

pub(super) async fn encrypt_many(
    State(front): State<Front>,
    Authenticated(caller, room): Authenticated,
    body: Body,
) -> Response {
    if let Err(refusal) = front.app.permit(&caller, Operation::Encrypt).await {
        return problem(&refusal);
    }
    let items = match read::<EncryptManyRequest>(&front, body).await {
        Ok(many) => many.items.into_iter().map(|Object(body)| body.into_item()).collect(),
        Err(refusal) => return problem(&front.app.refuse(&caller, Operation::Encrypt, refusal).await),
    };
    match front.app.encrypt(&caller, items).await {
        Ok(Answered { answers, committed }) => {
            let items = answers.into_iter().map(|answer| ItemAnswer::from(encrypted(answer))).collect();
            released(front, caller, committed, answer_within(&*room, &EncryptManyAnswer { items })).await
        }
        Err(refusal) => problem(&refusal),
    }
}

pub(super) async fn decrypt(
    State(front): State<Front>,
    Authenticated(caller, room): Authenticated,
    body: Body,
) -> Response {
    if let Err(refusal) = front.app.permit(&caller, Operation::Decrypt).await {
        return problem(&refusal);
    }
    let (item, encoding) = split(read::<DecryptRequest>(&front, body).await);
    match front.app.decrypt(&caller, Operation::Decrypt, vec![item]).await {
        Ok(Answered { answers, committed }) => {
            let answer = one(&*room, answers.into_iter().map(|answer| decrypted(answer, encoding)));
            released(front, caller, committed, answer).await
        }
        Err(refusal) => problem(&refusal),
    }
}

pub(super) async fn decrypt_many(
    State(front): State<Front>,
    Authenticated(caller, room): Authenticated,
    body: Body,
) -> Response {
    if let Err(refusal) = front.app.permit(&caller, Operation::Decrypt).await {
        return problem(&refusal);
    }
    let bodies = match read::<DecryptManyRequest>(&front, body).await {
        Ok(many) => many.items,
        Err(refusal) => return problem(&front.app.refuse(&caller, Operation::Decrypt, refusal).await),
    };
    let (items, encodings): (Vec<_>, Vec<_>) = bodies.into_iter().map(|Object(body)| split(Ok(body))).unzip();
    match front.app.decrypt(&caller, Operation::Decrypt, items).await {
        Ok(Answered { answers, committed }) => {
            let answers = answers.into_iter().zip(encodings);
            let items = answers.map(|(answer, encoding)| decrypted(answer, encoding).into()).collect();
            released(front, caller, committed, answer_within(&*room, &DecryptManyAnswer { items })).await
        }
        Err(refusal) => problem(&refusal),
    }
}

/// The response with its [`Release`], which the server asks how long the response may be sent. If
/// the answer could not be written, its commits are recorded as not answered.
async fn released(
    front: Front,
    caller: Caller,
    committed: Option<Committed>,
    answer: Result<Response, Refusal>,
) -> Response {
    match (answer, Release::of(front.app, caller, committed)) {
        (Ok(mut response), Some(release)) => {
            response.extensions_mut().insert(release);
            response
        }
        (Ok(response), None) => response,
        (Err(refusal), Some(release)) => problem(&release.refuse(refusal).await),
        (Err(refusal), None) => problem(&refusal),
    }
}

impl EncryptRequest {
    fn into_item(self) -> Result<EncryptItem, Refusal> {
        // First of all, move the text into a type that is wiped.
        let text = Plaintext::new(self.plaintext.into_bytes());
        let context =
            context_of(self.record_id.as_deref(), self.field.as_deref(), Some(self.context.value()?))?;
        let plaintext = match self.encoding.unwrap_or_default() {
            Encoding::Utf8 => Ok(text),
            Encoding::Base64 => match STANDARD.decode(text.expose()) {
                Ok(bytes) => Ok(Plaintext::new(bytes)),
                Err(_) => Err(ErrorCode::EncodingInvalid.into()),
            },
        };
        Ok(EncryptItem { plaintext, context })
    }
}

fn split(body: Result<DecryptRequest, Refusal>) -> (Result<DecryptItem, Refusal>, Encoding) {
    match body {
        Err(refusal) => (Err(refusal), Encoding::default()),
        Ok(body) => {
            let pairs = body.context.value();
            let context = pairs
                .and_then(|pairs| context_of(body.record_id.as_deref(), body.field.as_deref(), Some(pairs)));
            let item = context.map(|context| DecryptItem { ciphertext: body.ciphertext, context });
            (item, body.encoding.unwrap_or_default())
        }
    }
}

fn encrypted(answer: Result<Encrypted, Refusal>) -> Result<EncryptAnswer, Refusal> {
    answer.map(|answer| EncryptAnswer {
        ciphertext: answer.ciphertext,
        key_version: answer.key_version.to_string(),
    })
}

fn decrypted(answer: Result<Decrypted, Refusal>, encoding: Encoding) -> Result<DecryptAnswer, Refusal> {
    let answer = answer?;
    let plaintext = match encoding {
        Encoding::Base64 => SecretText::new(STANDARD.encode(answer.plaintext.expose())),
        Encoding::Utf8 => answer.plaintext.into_text().map_err(|_| Refusal::from(ErrorCode::NotText))?,
    };
    Ok(DecryptAnswer { plaintext })
}

fn one<T: Serialize>(
    room: &dyn Room,
    mut answers: impl Iterator<Item = Result<T, Refusal>>,
) -> Result<Response, Refusal> {
    match answers.next().unwrap_or(Err(ErrorCode::Internal.into())) {
        Ok(value) => answer_within(room, &value),
        Err(refusal) => Ok(problem(&refusal)),
    }
}
