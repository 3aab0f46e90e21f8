//! Replays `tests/vectors/`; its README describes the files.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::provider::aead_open;
use super::seal::{Keys, seal_with_nonce};
use super::{Binding, Context, ContextError, DecryptFailed, Dek, Token, TokenError, open};

type Pairs = Vec<(String, String)>;

/// Bytes, written in hexadecimal.
#[derive(Deserialize, Debug, PartialEq)]
#[serde(try_from = "String")]
struct Hex(Vec<u8>);

impl TryFrom<String> for Hex {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        (0..text.len() / 2)
            .map(|n| u8::from_str_radix(&text[2 * n..2 * n + 2], 16))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl Hex {
    fn array<const N: usize>(&self) -> [u8; N] {
        self.0.as_slice().try_into().unwrap()
    }
}

#[derive(Deserialize)]
struct Contexts {
    good: Vec<GoodContext>,
    bad: Vec<BadContext>,
}

#[derive(Deserialize)]
struct GoodContext {
    name: String,
    context: Pairs,
    canonical: Hex,
    digest: Hex,
}

#[derive(Deserialize)]
struct BadContext {
    name: String,
    context: Pairs,
    error: String,
}

/// The inputs with which a token is opened.
#[derive(Deserialize)]
struct Asked {
    name: String,
    tenant_uid: Hex,
    dek_id: Hex,
    dek: Hex,
    context: Pairs,
    token: String,
}

impl Asked {
    fn dek(&self) -> Dek {
        Dek::from_slice(&self.dek.0).unwrap()
    }

    fn binding(&self) -> Binding {
        let context = Context::from_pairs(self.context.clone()).unwrap();
        Binding::new(&self.tenant_uid.array(), &self.dek_id.array(), &context.digest())
    }

    fn token(&self) -> Token {
        Token::parse(&self.token).expect(&self.name)
    }
}

#[derive(Deserialize)]
struct Seal {
    #[serde(flatten)]
    asked: Asked,
    nonce: Hex,
    plaintext: Hex,
    transcript: Hex,
    encryption_key: Hex,
    commitment: Hex,
}

#[derive(Deserialize)]
struct Unreadable {
    name: String,
    token: String,
    error: String,
}

#[derive(Deserialize)]
struct Refused {
    #[serde(flatten)]
    asked: Asked,
    error: String,
    aead_alone_opens: Option<Hex>,
}

fn read<T: DeserializeOwned>(text: &str) -> T {
    serde_json::from_str(text).unwrap()
}

fn contexts() -> Contexts {
    read(include_str!("../../tests/vectors/context.json"))
}

fn seals() -> Vec<Seal> {
    read(include_str!("../../tests/vectors/seal.json"))
}

fn unreadable() -> Vec<Unreadable> {
    read(include_str!("../../tests/vectors/unreadable.json"))
}

fn refused() -> Vec<Refused> {
    read(include_str!("../../tests/vectors/refused.json"))
}

#[test]
fn good_contexts_have_their_encoding_and_digest() {
    for vector in contexts().good {
        let context = Context::from_pairs(vector.context).unwrap();
        assert_eq!(Hex(context.canonical()), vector.canonical, "{}", vector.name);
        assert_eq!(Hex(context.digest().to_vec()), vector.digest, "{}", vector.name);
    }
}

#[test]
fn bad_contexts_are_refused_for_their_reason() {
    for vector in contexts().bad {
        let error: ContextError = Context::from_pairs(vector.context).expect_err(&vector.name);
        assert_eq!(format!("{error:?}"), vector.error, "{}", vector.name);
    }
}

#[test]
fn every_step_of_a_seal_is_as_the_vectors_say() {
    for Seal { asked, transcript, encryption_key, commitment, .. } in seals() {
        let binding = asked.binding();
        let keys = Keys::derive(&asked.dek(), &binding);
        assert_eq!(Hex(binding.transcript().to_vec()), transcript, "{}", asked.name);
        assert_eq!(Hex(keys.encryption.to_vec()), encryption_key, "{}", asked.name);
        assert_eq!(Hex(keys.commitment.to_vec()), commitment, "{}", asked.name);
    }
}

#[test]
fn a_seal_with_a_fixed_nonce_is_exactly_the_token() {
    for Seal { asked, nonce, plaintext, .. } in seals() {
        let token = seal_with_nonce(&asked.dek(), &asked.binding(), nonce.array(), &plaintext.0);
        assert_eq!(token.encode(), asked.token, "{}", asked.name);
    }
}

#[test]
fn good_tokens_open() {
    for Seal { asked, plaintext, .. } in seals() {
        let opened = open(&asked.dek(), &asked.binding(), &asked.token()).expect(&asked.name);
        assert_eq!(opened.expose(), plaintext.0, "{}", asked.name);
    }
}

#[test]
fn unreadable_tokens_are_refused_for_their_reason() {
    for vector in unreadable() {
        let error: TokenError = Token::parse(&vector.token).expect_err(&vector.name);
        assert_eq!(format!("{error:?}"), vector.error, "{}", vector.name);
    }
}

#[test]
fn refused_tokens_parse_and_do_not_open() {
    for Refused { asked, error, .. } in refused() {
        let opened = open(&asked.dek(), &asked.binding(), &asked.token());
        assert_eq!(opened.err(), Some(DecryptFailed), "{}", asked.name);
        assert_eq!(error, "DecryptFailed");
    }
}

/// The AEAD does open these: without the commitment, an attacker who swaps the wrapped DEK would
/// choose what is read.
#[test]
fn a_ciphertext_that_opens_under_two_keys_fails_by_its_commitment() {
    let two_faced: Vec<_> =
        refused().into_iter().filter_map(|vector| Some((vector.asked, vector.aead_alone_opens?))).collect();
    assert_eq!(two_faced.len(), 2);
    for (asked, opens) in two_faced {
        let token = asked.token();
        let keys = Keys::derive(&asked.dek(), &asked.binding());
        let (ciphertext, tag) = token.ciphertext_and_tag.split_last_chunk().unwrap();
        let mut plaintext = ciphertext.to_vec();
        assert!(aead_open(&keys.encryption, token.nonce, &[], &mut plaintext, *tag).is_some());
        assert_eq!(Hex(plaintext), opens);
        assert!(open(&asked.dek(), &asked.binding(), &token).is_err());
    }
}
