//! Encryption and decryption of one value or many.

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize, Serializer};

use crate::app::{
    Answered, Committed, DecryptItem, Decrypted, EncryptItem, Encrypted, Plaintext, Release, Room,
    SecretText, context_of,
};
use crate::model::{ErrorCode, Operation, Refusal};
use crate::tenancy::Caller;

use super::Front;
use super::body::{ContextField, Object, answer_within, read};
use super::caller::Authenticated;
use super::problem::problem;

/// How bytes are written in JSON. Read from a string, since serde's own form of an enum also
/// accepts `{"UTF8": null}`.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(try_from = "String")]
enum Encoding {
    /// As text.
    #[default]
    Utf8,
    /// Standard base64, padded (RFC 4648, section 4).
    Base64,
}

impl TryFrom<String> for Encoding {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, &'static str> {
        match name.as_str() {
            "UTF8" | "utf8" => Ok(Self::Utf8),
            "BASE64" | "base64" => Ok(Self::Base64),
            _ => Err("no such encoding"),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EncryptBody {
    plaintext: String,
    #[serde(default)]
    context: ContextField,
    record_id: Option<String>,
    field: Option<String>,
    #[serde(default)]
    encoding: Option<Encoding>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DecryptBody {
    ciphertext: String,
    #[serde(default)]
    context: ContextField,
    record_id: Option<String>,
    field: Option<String>,
    #[serde(default)]
    encoding: Option<Encoding>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Many<T> {
    items: Vec<Object<T>>,
}

/// The answer to an encrypt call.
#[derive(Serialize)]
struct EncryptAnswer {
    ciphertext: String,
    key_version: String,
}

/// The answer to a decrypt call.
#[derive(Serialize)]
struct DecryptAnswer {
    #[serde(serialize_with = "expose")]
    plaintext: SecretText,
}

fn expose<S: Serializer>(secret: &SecretText, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.expose())
}

/// The answer to one of many items, or its error.
#[derive(Serialize)]
#[serde(untagged)]
enum ItemAnswer<T> {
    Done(T),
    Refused { error: ItemError },
}

#[derive(Serialize)]
struct ItemError {
    code: &'static str,
    message: String,
    retryable: bool,
    /// The wrong field of the item.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
}

#[derive(Serialize)]
struct ManyAnswer<T> {
    items: Vec<ItemAnswer<T>>,
}

pub(super) async fn encrypt(
    State(front): State<Front>,
    Authenticated(caller, room): Authenticated,
    body: Body,
) -> Response {
    if let Err(refusal) = front.app.permit(&caller, Operation::Encrypt).await {
        return problem(&refusal);
    }
    let item = read::<EncryptBody>(&front, body).await.and_then(EncryptBody::into_item);
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
    let items = match read::<Many<EncryptBody>>(&front, body).await {
        Ok(many) => many.items.into_iter().map(|Object(body)| body.into_item()).collect(),
        Err(refusal) => return problem(&front.app.refuse(&caller, Operation::Encrypt, refusal).await),
    };
    match front.app.encrypt(&caller, items).await {
        Ok(Answered { answers, committed }) => {
            released(front, caller, committed, many(&*room, answers.into_iter().map(encrypted))).await
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
    let (item, encoding) = split(read::<DecryptBody>(&front, body).await);
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
    let bodies = match read::<Many<DecryptBody>>(&front, body).await {
        Ok(many) => many.items,
        Err(refusal) => return problem(&front.app.refuse(&caller, Operation::Decrypt, refusal).await),
    };
    let (items, encodings): (Vec<_>, Vec<_>) = bodies.into_iter().map(|Object(body)| split(Ok(body))).unzip();
    match front.app.decrypt(&caller, Operation::Decrypt, items).await {
        Ok(Answered { answers, committed }) => {
            let answers = answers.into_iter().zip(encodings);
            let answer = many(&*room, answers.map(|(answer, encoding)| decrypted(answer, encoding)));
            released(front, caller, committed, answer).await
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

impl EncryptBody {
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

fn split(body: Result<DecryptBody, Refusal>) -> (Result<DecryptItem, Refusal>, Encoding) {
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

fn many<T: Serialize>(
    room: &dyn Room,
    answers: impl Iterator<Item = Result<T, Refusal>>,
) -> Result<Response, Refusal> {
    let items = answers
        .map(|answer| match answer {
            Ok(value) => ItemAnswer::Done(value),
            Err(refusal) => ItemAnswer::Refused {
                error: ItemError {
                    field: refusal.field().map(str::to_owned),
                    code: refusal.code.as_str(),
                    message: refusal.message.into_owned(),
                    retryable: refusal.code.retryable(),
                },
            },
        })
        .collect();
    answer_within(room, &ManyAnswer { items })
}
