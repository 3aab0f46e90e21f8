//! The token: the string that the caller stores. This file parses and writes it without keys;
//! `seal` has those.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::provider::{NONCE_BYTES, TAG_BYTES};

/// The most bytes of plaintext in a token: 16 MiB. A deployment's own limit is lower.
pub const MAX_PLAINTEXT_BYTES: usize = 16 * 1024 * 1024;

const DEK_ID_BYTES: usize = 16;
const COMMITMENT_BYTES: usize = 32;
const HEADER_BYTES: usize = DEK_ID_BYTES + COMMITMENT_BYTES + NONCE_BYTES;
/// 60 bytes are exactly 80 characters, so header and rest are encoded separately, each canonical by
/// itself.
const HEADER_CHARACTERS: usize = HEADER_BYTES / 3 * 4;
const MIN_BODY_CHARACTERS: usize = HEADER_CHARACTERS + base64_characters(TAG_BYTES);
const MAX_BODY_CHARACTERS: usize = HEADER_CHARACTERS + base64_characters(MAX_PLAINTEXT_BYTES + TAG_BYTES);

/// A parsed token, format version 1.
///
/// ```text
/// byok:v1:AZXm…              base64url (RFC 4648, section 5) without padding, of
///
///  0        16                       48         60                60+n        76+n
///  ├────────┼────────────────────────┼──────────┼──────────────────┼───────────┤
///  │ DEK id │ commitment             │ nonce    │ ciphertext       │ tag       │
///  │ 16     │ 32                     │ 12       │ n                │ 16        │
///  └────────┴────────────────────────┴──────────┴──────────────────┴───────────┘
///   UUIDv7   HKDF-SHA256              random     AES-256-GCM, n = bytes of plaintext ≤ 16 MiB
/// ```
///
/// A token has one spelling: padding, white space, the standard alphabet's `+` and `/`, and unused
/// bits of the last character that are not zero are all refused. So a token can be compared and
/// indexed as text. A later format is `v2`, never a change of this one.
///
/// A token that parses need not be genuine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The id of the DEK that it was sealed with.
    pub dek_id: [u8; DEK_ID_BYTES],
    /// The value that only the right DEK, tenant and context derive.
    pub commitment: [u8; COMMITMENT_BYTES],
    /// The AEAD's nonce.
    pub nonce: [u8; NONCE_BYTES],
    /// The ciphertext, as long as the plaintext, and then the tag; never shorter than the tag.
    pub ciphertext_and_tag: Vec<u8>,
}

impl Token {
    /// The beginning of every token of this version.
    pub const PREFIX: &str = "byok:v1:";

    /// The length of the longest token, in bytes (all ASCII).
    pub const MAX_TEXT_BYTES: usize = Self::PREFIX.len() + MAX_BODY_CHARACTERS;

    /// Parses a token.
    ///
    /// # Errors
    ///
    /// See [`TokenError`]. If several apply, the first of: not a token, unsupported version, too
    /// long, truncated, not canonical.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.as_bytes();
        let Some(body) = text.strip_prefix(Self::PREFIX.as_bytes()) else {
            return Err(if has_other_version(text) {
                TokenError::UnsupportedVersion
            } else {
                TokenError::NotAToken
            });
        };
        if body.len() > MAX_BODY_CHARACTERS {
            return Err(TokenError::TooLong);
        }
        let Some((header, rest)) = body.split_at_checked(HEADER_CHARACTERS) else {
            return Err(TokenError::Truncated);
        };
        if body.len() < MIN_BODY_CHARACTERS {
            return Err(TokenError::Truncated);
        }

        let mut bytes = [0; HEADER_BYTES];
        URL_SAFE_NO_PAD.decode_slice_unchecked(header, &mut bytes).map_err(|_| TokenError::NotCanonical)?;
        let ciphertext_and_tag = URL_SAFE_NO_PAD.decode(rest).map_err(|_| TokenError::NotCanonical)?;

        let mut token = Self { dek_id: [0; _], commitment: [0; _], nonce: [0; _], ciphertext_and_tag };
        let (dek_id, bytes) = bytes.split_at(DEK_ID_BYTES);
        let (commitment, nonce) = bytes.split_at(COMMITMENT_BYTES);
        token.dek_id.copy_from_slice(dek_id);
        token.commitment.copy_from_slice(commitment);
        token.nonce.copy_from_slice(nonce);
        Ok(token)
    }

    /// Writes the token in its canonical form.
    pub fn encode(&self) -> String {
        let mut header = [0; HEADER_BYTES];
        let (dek_id, rest) = header.split_at_mut(DEK_ID_BYTES);
        let (commitment, nonce) = rest.split_at_mut(COMMITMENT_BYTES);
        dek_id.copy_from_slice(&self.dek_id);
        commitment.copy_from_slice(&self.commitment);
        nonce.copy_from_slice(&self.nonce);

        let body = HEADER_CHARACTERS + base64_characters(self.ciphertext_and_tag.len());
        let mut text = String::with_capacity(Self::PREFIX.len() + body);
        text.push_str(Self::PREFIX);
        URL_SAFE_NO_PAD.encode_string(header, &mut text);
        URL_SAFE_NO_PAD.encode_string(&self.ciphertext_and_tag, &mut text);
        text
    }
}

/// Whether `text` begins like a token of another version: `byok:v`, a whole number without a
/// leading zero, `:`. (`v1` does not come here; there is no `v0`.)
fn has_other_version(text: &[u8]) -> bool {
    let Some(version) = text.strip_prefix(b"byok:v") else {
        return false;
    };
    let digits = version.iter().take_while(|character| character.is_ascii_digit()).count();
    digits > 0 && version[0] != b'0' && version.get(digits) == Some(&b':')
}

/// The number of characters for this many bytes, without padding.
const fn base64_characters(bytes: usize) -> usize {
    (bytes * 4).div_ceil(3)
}

/// Why a text is not accepted as a token. Never contains a part of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenError {
    /// It does not begin with `byok:v<number>:`.
    NotAToken,
    /// It is a token of a version that this program does not know.
    UnsupportedVersion,
    /// It is not canonical base64url without padding.
    NotCanonical,
    /// It is shorter than the token of an empty plaintext.
    Truncated,
    /// It is longer than the token of the longest plaintext.
    TooLong,
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAToken => "this is not a byok token",
            Self::UnsupportedVersion => "this token has a version that is not supported here",
            Self::NotCanonical => "this token is not canonical base64url without padding",
            Self::Truncated => "this token is truncated",
            Self::TooLong => "this token is too long",
        })
    }
}

impl std::error::Error for TokenError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_plaintext(bytes: usize) -> Token {
        Token {
            dek_id: [1; 16],
            commitment: [2; 32],
            nonce: [3; 12],
            ciphertext_and_tag: vec![4; bytes + TAG_BYTES],
        }
    }

    #[test]
    fn a_token_of_the_longest_plaintext_is_read() {
        let text = of_plaintext(MAX_PLAINTEXT_BYTES).encode();
        assert_eq!(text.len(), Token::MAX_TEXT_BYTES);
        assert!(Token::parse(&text).is_ok());
    }

    #[test]
    fn one_byte_more_is_too_long() {
        let text = of_plaintext(MAX_PLAINTEXT_BYTES + 1).encode();
        assert_eq!(Token::parse(&text), Err(TokenError::TooLong));
    }

    #[test]
    fn a_token_of_an_empty_plaintext_is_the_shortest_accepted() {
        let text = of_plaintext(0).encode();
        assert!(Token::parse(&text).is_ok());
        for end in Token::PREFIX.len()..text.len() {
            assert_eq!(Token::parse(&text[..end]), Err(TokenError::Truncated), "{end}");
        }
    }

    #[test]
    fn a_long_text_that_is_no_token_is_malformed() {
        assert_eq!(Token::parse(&"x".repeat(Token::MAX_TEXT_BYTES + 1)), Err(TokenError::NotAToken));
    }

    #[test]
    fn every_last_character_but_the_canonical_one_is_refused() {
        // 76 bytes leave two bits of meaning and four of nothing in the last character.
        let text = of_plaintext(0).encode();
        let (head, last) = text.split_at(text.len() - 1);
        let read: Vec<char> = (0..128_u8)
            .map(char::from)
            .filter(|character| Token::parse(&format!("{head}{character}")).is_ok())
            .collect();
        assert_eq!(read, ['A', 'Q', 'g', 'w']);
        assert!(read.contains(&last.chars().next().unwrap()));
    }

    #[test]
    fn a_character_of_several_bytes_across_the_header_is_refused() {
        let text = of_plaintext(8).encode();
        let cut = Token::PREFIX.len() + HEADER_CHARACTERS;
        let text = format!("{}é{}", &text[..cut - 1], &text[cut + 1..]);
        assert_eq!(Token::parse(&text), Err(TokenError::NotCanonical));
    }
}
