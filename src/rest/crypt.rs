//! Encrypt and decrypt, one value or many.

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize, Serializer};

use crate::app::{DecryptItem, Decrypted, EncryptItem, Encrypted, Plaintext, SecretText, context_of};
use crate::model::{Caller, ErrorCode, Operation, Refusal};

use super::Front;
use super::body::{ContextField, answer, read};
use super::caller::Authenticated;
use super::problem::problem;

/// How bytes stand in JSON.
#[derive(Clone, Copy, Default, Deserialize)]
enum Encoding {
    /// As text.
    #[default]
    #[serde(rename = "UTF8", alias = "utf8")]
    Utf8,
    /// Standard base64, padded (RFC 4648, section 4).
    #[serde(rename = "BASE64", alias = "base64")]
    Base64,
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
    items: Vec<T>,
}

/// The seed's answer to encrypt.
#[derive(Serialize)]
struct EncryptAnswer {
    ciphertext: String,
    key_version: String,
}

/// The seed's answer to decrypt.
#[derive(Serialize)]
struct DecryptAnswer {
    #[serde(serialize_with = "expose")]
    plaintext: SecretText,
}

fn expose<S: Serializer>(secret: &SecretText, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.expose())
}

/// One of many: its answer, or why there is none.
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
}

#[derive(Serialize)]
struct ManyAnswer<T> {
    items: Vec<ItemAnswer<T>>,
}

pub(super) async fn encrypt(
    State(front): State<Front>,
    Authenticated(caller): Authenticated,
    body: Body,
) -> Response {
    if let Err(refusal) = front.app.permit(&caller, Operation::Encrypt).await {
        return problem(&refusal);
    }
    let item = read::<EncryptBody>(&front, body).await.and_then(EncryptBody::into_item);
    one(front.app.encrypt(&caller, vec![item]).await.map(|answers| answers.into_iter().map(encrypted)))
}

pub(super) async fn encrypt_many(
    State(front): State<Front>,
    Authenticated(caller): Authenticated,
    body: Body,
) -> Response {
    if let Err(refusal) = front.app.permit(&caller, Operation::Encrypt).await {
        return problem(&refusal);
    }
    let items = match read::<Many<EncryptBody>>(&front, body).await {
        Ok(many) => many.items.into_iter().map(EncryptBody::into_item).collect(),
        Err(refusal) => return problem(&front.app.refuse(&caller, Operation::Encrypt, refusal).await),
    };
    many(front.app.encrypt(&caller, items).await.map(|answers| answers.into_iter().map(encrypted)))
}

pub(super) async fn decrypt(
    State(front): State<Front>,
    Authenticated(caller): Authenticated,
    body: Body,
) -> Response {
    if let Err(refusal) = front.app.permit(&caller, Operation::Decrypt).await {
        return problem(&refusal);
    }
    let (item, encoding) = split(read::<DecryptBody>(&front, body).await);
    one(decrypt_items(&front, &caller, vec![item], vec![encoding]).await)
}

pub(super) async fn decrypt_many(
    State(front): State<Front>,
    Authenticated(caller): Authenticated,
    body: Body,
) -> Response {
    if let Err(refusal) = front.app.permit(&caller, Operation::Decrypt).await {
        return problem(&refusal);
    }
    let bodies = match read::<Many<DecryptBody>>(&front, body).await {
        Ok(many) => many.items,
        Err(refusal) => return problem(&front.app.refuse(&caller, Operation::Decrypt, refusal).await),
    };
    let (items, encodings) = bodies.into_iter().map(|body| split(Ok(body))).unzip();
    many(decrypt_items(&front, &caller, items, encodings).await)
}

async fn decrypt_items(
    front: &Front,
    caller: &Caller,
    items: Vec<Result<DecryptItem, Refusal>>,
    encodings: Vec<Encoding>,
) -> Result<impl Iterator<Item = Result<DecryptAnswer, Refusal>>, Refusal> {
    let answers = front.app.decrypt(caller, Operation::Decrypt, items).await?;
    Ok(answers
        .into_iter()
        .zip(encodings)
        .map(|(answer, encoding)| answer.and_then(|answer| decrypted(answer, encoding))))
}

impl EncryptBody {
    fn into_item(self) -> Result<EncryptItem, Refusal> {
        // First of all under a type that is wiped.
        let text = Plaintext::new(self.plaintext.into_bytes());
        let context =
            context_of(self.record_id.as_deref(), self.field.as_deref(), Some(self.context.value()?))?;
        let plaintext = match self.encoding.unwrap_or_default() {
            Encoding::Utf8 => text,
            Encoding::Base64 => {
                let bytes =
                    STANDARD.decode(text.expose()).map_err(|_| Refusal::from(ErrorCode::EncodingInvalid))?;
                Plaintext::new(bytes)
            }
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

fn decrypted(answer: Decrypted, encoding: Encoding) -> Result<DecryptAnswer, Refusal> {
    let plaintext = match encoding {
        Encoding::Base64 => SecretText::new(STANDARD.encode(answer.plaintext.expose())),
        Encoding::Utf8 => answer.plaintext.into_text().map_err(|_| Refusal::from(ErrorCode::NotText))?,
    };
    Ok(DecryptAnswer { plaintext })
}

fn one<T: Serialize>(answers: Result<impl Iterator<Item = Result<T, Refusal>>, Refusal>) -> Response {
    let only = answers.and_then(|mut answers| answers.next().unwrap_or(Err(ErrorCode::Internal.into())));
    match only {
        Ok(value) => answer(200, &value),
        Err(refusal) => problem(&refusal),
    }
}

fn many<T: Serialize>(answers: Result<impl Iterator<Item = Result<T, Refusal>>, Refusal>) -> Response {
    let answers = match answers {
        Ok(answers) => answers,
        Err(refusal) => return problem(&refusal),
    };
    let items = answers
        .map(|answer| match answer {
            Ok(value) => ItemAnswer::Done(value),
            Err(refusal) => ItemAnswer::Refused {
                error: ItemError {
                    code: refusal.code.as_str(),
                    message: refusal.message.into_owned(),
                    retryable: refusal.code.retryable(),
                },
            },
        })
        .collect();
    answer(200, &ManyAnswer { items })
}
