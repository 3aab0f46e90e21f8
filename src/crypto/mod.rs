//! The cryptography: tokens, their keys, what they are bound to, and the types that hold secrets.
//!
//! Pure and synchronous: no I/O, no clock, no environment, no logs; the only external input is the
//! system's random source. Independent of tenants, databases, KMSs and permissions: it sees only
//! bytes.
//!
//! | file | contents |
//! |---|---|
//! | `provider` | the primitives, through the one `use` of the cryptographic library |
//! | `secret` | [`Dek`], [`Plaintext`], [`SecretText`]: wiped when dropped, never printed |
//! | `context` | [`Context`]: the caller's map that a ciphertext is bound to, and its canonical encoding |
//! | `token` | [`Token`]: the string that the caller stores; its format and its parser |
//! | `seal` | [`seal()`] and [`open()`]: key derivation, commitment, AEAD |
//! | `ed25519` | [`Ed25519SigningKey`], [`Ed25519VerifyingKey`]: for reports that others keep |
//! | `rsa` | [`RsaSigningKey`]: RS256, for a provider's credential |
//! | `row_mac` | [`RowMacKey`]: authenticates stored rows with a secret that is not in the database |
//! | `sealing_key` | [`SealingKey`]: encrypts cached DEKs in memory |
//!
//! Test vectors are in `tests/vectors/`, fuzz targets in `fuzz/`; the unit tests replay both.

mod context;
mod ed25519;
mod provider;
mod row_mac;
mod rsa;
mod seal;
mod sealing_key;
mod secret;
mod token;

#[cfg(test)]
mod corpus_tests;
#[cfg(test)]
mod property_tests;
#[cfg(test)]
mod vector_tests;
#[cfg(test)]
mod wycheproof_tests;

pub use context::{Context, ContextError, MAX_CONTEXT_BYTES, MAX_CONTEXT_PAIRS};
pub use ed25519::{Ed25519SigningKey, Ed25519VerifyingKey, NoEd25519Key};
pub use provider::{ct_eq, fill_random, hmac_sha256, random, sha256, sha256_of};
pub use row_mac::{NoRowMacKey, RowMacKey};
pub use rsa::{NoRsaKey, RsaSigningKey};
pub use seal::{Binding, DecryptFailed, open, seal};
pub use sealing_key::{SealedDek, SealingKey};
pub use secret::{Dek, NotText, Plaintext, SecretText};
pub use token::{MAX_PLAINTEXT_BYTES, Token, TokenError};
