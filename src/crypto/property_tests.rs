//! What must hold for all tokens and contexts, not only for those that someone thought of.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::{Binding, Context, DecryptFailed, Dek, SealingKey, Token, open, seal};

type Pairs = BTreeMap<String, String>;

/// A token with everything that it was made of.
#[derive(Clone, Debug)]
struct Made {
    tenant: [u8; 16],
    dek_id: [u8; 16],
    dek: [u8; 32],
    pairs: Pairs,
    plaintext: Vec<u8>,
}

impl Made {
    fn dek(&self) -> Dek {
        Dek::from_slice(&self.dek).unwrap()
    }

    fn binding(&self) -> Binding {
        Binding::new(&self.tenant, &self.dek_id, &Context::from_pairs(self.pairs.clone()).unwrap().digest())
    }

    fn token(&self) -> Token {
        seal(&self.dek(), &self.binding(), &self.dek_id, &self.plaintext)
    }

    fn opens(&self, token: &Token) -> Result<Vec<u8>, DecryptFailed> {
        open(&self.dek(), &self.binding(), token).map(|plaintext| plaintext.expose().to_vec())
    }
}

/// Small maps over a small alphabet, so that near misses are common.
fn pairs() -> impl Strategy<Value = Pairs> {
    btree_map("[ab\u{0}é]{1,3}", "[ab\u{0}é]{0,3}", 0..4)
}

fn made() -> impl Strategy<Value = Made> {
    (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<[u8; 32]>(), pairs(), vec(any::<u8>(), 0..200))
        .prop_map(|(tenant, dek_id, dek, pairs, plaintext)| Made { tenant, dek_id, dek, pairs, plaintext })
}

fn bytes_of(token: &Token) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(&token.encode()[Token::PREFIX.len()..]).unwrap()
}

fn of_bytes(bytes: &[u8]) -> Token {
    Token::parse(&format!("{}{}", Token::PREFIX, URL_SAFE_NO_PAD.encode(bytes))).unwrap()
}

proptest! {
    #[test]
    fn what_was_sealed_opens(made in made()) {
        prop_assert_eq!(made.opens(&made.token()), Ok(made.plaintext.clone()));
    }

    #[test]
    fn encode_and_parse_round_trip(made in made()) {
        let token = made.token();
        prop_assert_eq!(Token::parse(&token.encode()), Ok(token));
    }

    #[test]
    fn a_flipped_bit_is_refused(made in made(), position in any::<prop::sample::Index>()) {
        let mut bytes = bytes_of(&made.token());
        let bit = position.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        let token = of_bytes(&bytes);
        prop_assert_eq!(made.opens(&token), Err(DecryptFailed));
        // What a server would try: it looks up the DEK by the id in the token.
        let asked = Made { dek_id: token.dek_id, ..made };
        prop_assert_eq!(asked.opens(&token), Err(DecryptFailed));
    }

    #[test]
    fn a_token_cut_or_lengthened_is_refused(made in made(), end in any::<prop::sample::Index>(), more in vec(any::<u8>(), 1..20)) {
        let bytes = bytes_of(&made.token());
        let cut = 76 + end.index(bytes.len() - 75);
        if cut < bytes.len() {
            prop_assert_eq!(made.opens(&of_bytes(&bytes[..cut])), Err(DecryptFailed));
        }
        prop_assert_eq!(made.opens(&of_bytes(&[bytes, more].concat())), Err(DecryptFailed));
    }

    #[test]
    fn another_context_is_refused(made in made(), pairs in pairs()) {
        prop_assume!(pairs != made.pairs);
        let asked = Made { pairs, ..made.clone() };
        prop_assert_eq!(asked.opens(&made.token()), Err(DecryptFailed));
    }

    #[test]
    fn another_tenant_is_refused(made in made(), bit in 0..128_usize) {
        let mut asked = made.clone();
        asked.tenant[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(asked.opens(&made.token()), Err(DecryptFailed));
    }

    #[test]
    fn another_dek_id_is_refused(made in made(), bit in 0..128_usize) {
        let mut asked = made.clone();
        asked.dek_id[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(asked.opens(&made.token()), Err(DecryptFailed));
    }

    #[test]
    fn another_dek_is_refused(made in made(), bit in 0..256_usize) {
        let mut asked = made.clone();
        asked.dek[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(asked.opens(&made.token()), Err(DecryptFailed));
    }

    #[test]
    fn two_contexts_have_two_encodings(one in pairs(), other in pairs()) {
        let encoding = |pairs: &Pairs| Context::from_pairs(pairs.clone()).unwrap().canonical();
        prop_assert_eq!(one == other, encoding(&one) == encoding(&other));
    }

    #[test]
    fn the_order_of_pairs_does_not_matter(pairs in pairs()) {
        let context = Context::from_pairs(pairs.clone());
        prop_assert_eq!(context, Context::from_pairs(pairs.into_iter().rev()));
    }

    #[test]
    fn no_bytes_make_the_parser_panic(bytes in vec(any::<u8>(), 0..300)) {
        let text = String::from_utf8_lossy(&bytes);
        let _ = Token::parse(&text);
        let _ = Token::parse(&format!("{}{text}", Token::PREFIX));
    }

    #[test]
    fn no_text_that_looks_like_a_token_makes_the_parser_panic(text in "(byok:v[0-9]{0,3}:)?[-_A-Za-z0-9é=]{0,200}") {
        let _ = Token::parse(&text);
    }

    #[test]
    fn a_text_that_parses_is_the_only_spelling_of_its_token(body in "[-_A-Za-z0-9]{102,130}") {
        let text = format!("{}{body}", Token::PREFIX);
        if let Ok(token) = Token::parse(&text) {
            prop_assert_eq!(token.encode(), text);
        }
    }

    #[test]
    fn a_token_with_any_character_replaced_never_opens(
        made in made(), position in any::<prop::sample::Index>(), character in any::<char>(),
    ) {
        let text = made.token().encode();
        let position = position.index(text.len());
        prop_assume!(!text[position..].starts_with(character));
        let text = format!("{}{character}{}", &text[..position], &text[position + 1..]);
        if let Ok(token) = Token::parse(&text) {
            prop_assert_eq!(made.opens(&token), Err(DecryptFailed));
        }
    }

    #[test]
    fn a_sealed_dek_opens_only_with_its_own_data(dek in any::<[u8; 32]>(), one in vec(any::<u8>(), 0..40), other in vec(any::<u8>(), 0..40)) {
        let key = SealingKey::generate();
        let sealed = key.seal(&Dek::from_slice(&dek).unwrap(), &one);
        let opened = key.open(&sealed, &other).map(|dek| *dek.expose());
        prop_assert_eq!(opened, (one == other).then_some(dek));
    }
}

#[test]
fn every_single_flipped_bit_of_one_token_is_refused() {
    let made = Made {
        tenant: [1; 16],
        dek_id: [2; 16],
        dek: [3; 32],
        pairs: Pairs::from([("record_id".to_owned(), "7".to_owned())]),
        plaintext: b"Type 2 diabetes".to_vec(),
    };
    let bytes = bytes_of(&made.token());
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(made.opens(&of_bytes(&flipped)), Err(DecryptFailed), "bit {bit}");
    }
}
