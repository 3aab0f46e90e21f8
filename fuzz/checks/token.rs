//! The properties of the token parser, for any text. The including file brings `crypto` into scope.

use super::crypto::{Binding, Context, Dek, Token, TokenError, open, seal};

/// Panics if a property does not hold.
pub(super) fn check(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match Token::parse(&text) {
        Ok(token) => {
            assert_eq!(token.encode(), text, "a token has one spelling");
            let dek = Dek::from_slice(&[7; 32]).expect("it has 32 bytes");
            let binding = Binding::new(&[1; 16], &token.dek_id, &Context::empty().digest());
            // If it opens, sealing the plaintext gives the same commitment and the same length.
            if let Ok(plaintext) = open(&dek, &binding, &token) {
                let sealed = seal(&dek, &binding, &token.dek_id, plaintext.expose());
                assert_eq!(sealed.commitment, token.commitment);
                assert_eq!(sealed.ciphertext_and_tag.len(), token.ciphertext_and_tag.len());
            }
        }
        Err(TokenError::NotAToken | TokenError::UnsupportedVersion) => {
            assert!(!text.starts_with(Token::PREFIX), "a text with the prefix is read as a token");
        }
        Err(TokenError::NotCanonical) => assert!(text.len() <= Token::MAX_TEXT_BYTES),
        Err(TokenError::Truncated) => assert!(text.len() < Token::PREFIX.len() + 102),
        Err(TokenError::TooLong) => assert!(text.len() > Token::MAX_TEXT_BYTES),
    }
}
