//! Checkpoints: a log's size and root, signed, as a note of text that anybody can keep. The body is
//! that of c2sp.org/tlog-checkpoint. The note and its keys are those of c2sp.org/signed-note, with
//! signatures of the type Ed25519 (0x01). This module does not decide when a checkpoint is made, or
//! where it is sent.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::crypto::{Ed25519SigningKey, Ed25519VerifyingKey, sha256_of};
use crate::merkle::Hash;

/// The signature type of Ed25519.
const ED25519: u8 = 1;
/// A note is small; a longer text is not one of ours.
const MAX_NOTE_BYTES: usize = 16 << 10;

/// Returns the origin of a tenant's log, `<deployment>/<tenant>/<number of the log>`: the first
/// line of its checkpoints, and the name of the keys that sign them. In the tenant's name, the
/// characters that a key's name must not contain are percent-encoded, and so are `%` and `/`.
pub fn origin_of(deployment: &str, tenant: &str, log: u32) -> String {
    let mut origin = format!("{deployment}/");
    for char in tenant.chars() {
        match char {
            '+' | '%' | '/' => origin.push_str(&format!("%{:02X}", u32::from(char))),
            _ if char.is_whitespace() || char.is_control() => {
                let mut bytes = [0; 4];
                char.encode_utf8(&mut bytes)
                    .bytes()
                    .for_each(|byte| origin.push_str(&format!("%{byte:02X}")));
            }
            _ => origin.push(char),
        }
    }
    origin.push_str(&format!("/{log}"));
    origin
}

/// The contents of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The origin of the log.
    pub origin: String,
    /// The number of its leaves.
    pub size: u64,
    /// The root of its tree.
    pub root: Hash,
}

impl Checkpoint {
    /// Returns the text that is signed: three lines.
    pub fn body(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, self.root)
    }

    /// Returns the note, signed by each of these keys under the origin's name.
    pub fn sign<'k>(&self, keys: impl IntoIterator<Item = &'k Ed25519SigningKey>) -> String {
        let mut note = self.body();
        note.push('\n');
        for key in keys {
            let named = CheckpointKey { name: self.origin.clone(), key: key.verifying_key() };
            let signature = [&named.id()[..], &key.sign(self.body().as_bytes())].concat();
            note.push_str(&format!("— {} {}\n", self.origin, STANDARD.encode(signature)));
        }
        note
    }
}

/// The text does not have the form of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoCheckpoint;

impl fmt::Display for NoCheckpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a checkpoint (c2sp.org/tlog-checkpoint)")
    }
}

impl std::error::Error for NoCheckpoint {}

/// A checkpoint with its signatures. Do not rely on its contents until [`Self::is_signed_by`]
/// returns `true` for a known key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedCheckpoint {
    /// The contents.
    pub checkpoint: Checkpoint,
    body: String,
    signatures: Vec<(String, [u8; 4], Vec<u8>)>,
}

impl SignedCheckpoint {
    /// Parses a note. Lines after the root are kept as part of the signed text, but not
    /// interpreted.
    ///
    /// # Errors
    /// [`NoCheckpoint`].
    pub fn parse(note: &str) -> Result<Self, NoCheckpoint> {
        Self::read(note).ok_or(NoCheckpoint)
    }

    fn read(note: &str) -> Option<Self> {
        if note.len() > MAX_NOTE_BYTES || note.chars().any(|char| char.is_control() && char != '\n') {
            return None;
        }
        // Split at the last empty line: the body may contain an empty line, the signatures do not.
        let (body, signed) = note.rsplit_once("\n\n").map(|(body, signed)| (format!("{body}\n"), signed))?;
        let mut lines = body.lines();
        let origin = lines.next().filter(|origin| !origin.is_empty())?.to_owned();
        let number = lines.next()?;
        let size: u64 = number.parse().ok()?;
        // A size has one spelling: no sign, no leading zero.
        if size.to_string() != number {
            return None;
        }
        let root = Hash::from_base64(lines.next()?)?;
        let signatures: Option<Vec<_>> = signed.strip_suffix('\n')?.split('\n').map(signature).collect();
        Some(Self { checkpoint: Checkpoint { origin, size, root }, body, signatures: signatures? })
    }

    /// Returns whether one of the signatures is by this key.
    pub fn is_signed_by(&self, key: &CheckpointKey) -> bool {
        let by_key = |(name, id, signature): &(String, [u8; 4], Vec<u8>)| {
            *name == key.name && *id == key.id() && key.key.verifies(self.body.as_bytes(), signature)
        };
        key.name == self.checkpoint.origin && self.signatures.iter().any(by_key)
    }
}

impl SignedCheckpoint {
    /// Returns whether one of the signatures claims to be by this key. [`Self::is_signed_by`]
    /// checks whether it is.
    pub fn names(&self, key: &CheckpointKey) -> bool {
        let named = |(name, id, _): &(String, [u8; 4], Vec<u8>)| *name == key.name && *id == key.id();
        key.name == self.checkpoint.origin && self.signatures.iter().any(named)
    }

    /// Returns the keys that the signatures claim to be by, each as `<name>+<id>`.
    pub fn signers(&self) -> Vec<String> {
        self.signatures.iter().map(|(name, id, _)| format!("{name}+{}", hexadecimal(*id))).collect()
    }
}

fn signature(line: &str) -> Option<(String, [u8; 4], Vec<u8>)> {
    let (name, signature) = line.strip_prefix("— ")?.split_once(' ')?;
    let bytes = STANDARD.decode(signature).ok()?;
    let (id, signature) = bytes.split_first_chunk::<4>()?;
    (is_name(name) && !signature.is_empty()).then(|| (name.to_owned(), *id, signature.to_vec()))
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.chars().any(|char| char.is_whitespace() || char == '+')
}

/// A public key with the name under which it signs:
/// `<name>+<id, 8 hexadecimal digits>+<base64 of 0x01 ‖ key>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointKey {
    /// The name: the origin of the log.
    pub name: String,
    /// The key.
    pub key: Ed25519VerifyingKey,
}

/// The text does not have the form of a key, or its id belongs to another key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoCheckpointKey;

impl fmt::Display for NoCheckpointKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a public key of a note's signer (c2sp.org/signed-note): NAME+ID+KEY")
    }
}

impl std::error::Error for NoCheckpointKey {}

impl CheckpointKey {
    /// Parses a key.
    ///
    /// # Errors
    /// [`NoCheckpointKey`].
    pub fn parse(text: &str) -> Result<Self, NoCheckpointKey> {
        Self::read(text).ok_or(NoCheckpointKey)
    }

    fn read(text: &str) -> Option<Self> {
        // Base64 may contain a plus sign; a name may not.
        let (name, rest) = text.split_once('+')?;
        let (id, key) = rest.split_once('+')?;
        let bytes = STANDARD.decode(key).ok()?;
        let (ED25519, key) = bytes.split_first().map(|(kind, key)| (*kind, key))? else { return None };
        let read = Self { name: name.to_owned(), key: Ed25519VerifyingKey::from_bytes(key.try_into().ok()?) };
        (is_name(name) && hexadecimal(read.id()) == id).then_some(read)
    }

    /// Returns the first 4 bytes of SHA-256(name ‖ "\n" ‖ 0x01 ‖ key).
    pub fn id(&self) -> [u8; 4] {
        let hash = sha256_of(&[self.name.as_bytes(), b"\n", &[ED25519], &self.key.to_bytes()]);
        [hash[0], hash[1], hash[2], hash[3]]
    }
}

impl fmt::Display for CheckpointKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = STANDARD.encode([&[ED25519][..], &self.key.to_bytes()].concat());
        write!(f, "{}+{}+{key}", self.name, hexadecimal(self.id()))
    }
}

fn hexadecimal(id: [u8; 4]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Ed25519SigningKey {
        Ed25519SigningKey::from_pem(&Ed25519SigningKey::generate_pem()).unwrap()
    }

    fn checkpoint() -> Checkpoint {
        Checkpoint { origin: origin_of("byok.example", "acme", 1), size: 7, root: Hash::of_leaf(b"x") }
    }

    fn named(key: &Ed25519SigningKey) -> CheckpointKey {
        CheckpointKey { name: checkpoint().origin, key: key.verifying_key() }
    }

    #[test]
    fn a_signed_checkpoint_reads_back_and_verifies() {
        let (old, new, other) = (key(), key(), key());
        let note = checkpoint().sign([&old, &new]);
        let read = SignedCheckpoint::parse(&note).unwrap();
        assert_eq!(read.checkpoint, checkpoint());
        assert!(read.is_signed_by(&named(&old)) && read.is_signed_by(&named(&new)));
        assert!(!read.is_signed_by(&named(&other)));
        assert!(read.names(&named(&old)) && !read.names(&named(&other)));
        assert_eq!(read.signers().len(), 2);
        assert!(named(&new).to_string().starts_with(&read.signers()[1]));
        let elsewhere = CheckpointKey { name: "byok.example/other/1".to_owned(), ..named(&old) };
        assert!(!read.is_signed_by(&elsewhere));
    }

    #[test]
    fn whatever_is_changed_does_not_verify() {
        let key = key();
        let note = checkpoint().sign([&key]);
        for (was, is) in
            [("\n7\n", "\n8\n"), ("acme/1\n", "acme/2\n"), (" byok.example/acme", " byok.example/acne")]
        {
            assert!(note.contains(was));
            let read = SignedCheckpoint::parse(&note.replacen(was, is, 1));
            assert!(read.is_ok_and(|read| !read.is_signed_by(&named(&key))), "{was}");
        }
        let longer = note.replacen("\n\n", "\nmore\n\n", 1);
        assert!(!SignedCheckpoint::parse(&longer).unwrap().is_signed_by(&named(&key)));
    }

    #[test]
    fn what_is_no_checkpoint_is_refused() {
        let note = checkpoint().sign([&key()]);
        for (was, is) in [
            ("\n7\n", "\n07\n"),
            ("\n7\n", "\n+7\n"),
            ("\n7\n", "\n\n"),
            ("\n\n", "\n"),
            ("— ", "- "),
            ("acme/1\n", "acme/1\r\n"),
        ] {
            assert_eq!(SignedCheckpoint::parse(&note.replacen(was, is, 1)), Err(NoCheckpoint), "{is:?}");
        }
        for bad in ["", "\n\n", &note[..note.len() - 1], &note.repeat(200)] {
            assert_eq!(SignedCheckpoint::parse(bad), Err(NoCheckpoint));
        }
    }

    /// The key is the example in the documentation of golang.org/x/mod/sumdb/note.
    #[test]
    fn a_key_has_the_id_that_others_give_it() {
        let key = CheckpointKey::parse("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
            .unwrap();
        assert_eq!(key.name, "PeterNeumann");
        assert_eq!(key.to_string(), "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW");
        for bad in [
            "",
            "PeterNeumann+c74f20a4+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
            "a+b+c",
            "a+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        ] {
            assert_eq!(CheckpointKey::parse(bad), Err(NoCheckpointKey), "{bad}");
        }
    }

    #[test]
    fn an_origin_is_a_name_whatever_the_tenant_is_called() {
        assert_eq!(origin_of("byok", "primary", 1), "byok/primary/1");
        assert_eq!(origin_of("byok", "a b+c/d\u{a0}%", 2), "byok/a%20b%2Bc%2Fd%C2%A0%25/2");
        assert!(is_name(&origin_of("byok", "a b+c/d\u{a0}%", 2)));
    }
}
