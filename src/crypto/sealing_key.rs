//! The key that encrypts cached DEKs. A cache drops its values late, but wiping this key makes all
//! of them useless at once.

use std::sync::atomic::{AtomicU64, Ordering};

use super::provider::{NONCE_BYTES, TAG_BYTES, aead_open, aead_seal};
use super::secret::Dek;

/// A key that lives in the memory of this process only. Its bytes are wiped when it is dropped, and
/// nothing sealed under it can be opened again.
///
/// The nonce is a counter of 64 bits from zero, since the key is random, never stored, cannot be
/// cloned and ends with the process. So a nonce could repeat only after 2⁶⁴ encryptions, and no
/// encryption waits for the random source.
pub struct SealingKey {
    key: Dek,
    next: AtomicU64,
}

/// An encrypted DEK in the cache: 56 bytes that are not secret without the key.
#[derive(Clone)]
pub struct SealedDek {
    counter: u64,
    ciphertext: [u8; 32],
    tag: [u8; TAG_BYTES],
}

impl SealingKey {
    /// A new key, from the operating system's random source.
    pub fn generate() -> Self {
        Self { key: Dek::generate(), next: AtomicU64::new(0) }
    }

    /// Encrypts a DEK. `aad` identifies it (tenant, key, DEK id) and must be the same to open it.
    pub fn seal(&self, dek: &Dek, aad: &[u8]) -> SealedDek {
        // Relaxed, since it only matters that each call gets a number of its own.
        let counter = self.next.fetch_add(1, Ordering::Relaxed);
        let mut ciphertext = *dek.expose();
        let tag = aead_seal(self.key.expose(), nonce(counter), aad, &mut ciphertext);
        SealedDek { counter, ciphertext, tag }
    }

    /// Decrypts a DEK that this key encrypted. `None` for anything else.
    pub fn open(&self, sealed: &SealedDek, aad: &[u8]) -> Option<Dek> {
        let mut dek = Dek::zeroed();
        dek.bytes_mut().copy_from_slice(&sealed.ciphertext);
        aead_open(self.key.expose(), nonce(sealed.counter), aad, dek.bytes_mut(), sealed.tag)?;
        Some(dek)
    }
}

fn nonce(counter: u64) -> [u8; NONCE_BYTES] {
    let mut nonce = [0; NONCE_BYTES];
    nonce[NONCE_BYTES - 8..].copy_from_slice(&counter.to_be_bytes());
    nonce
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_dek_opens() {
        let (key, dek) = (SealingKey::generate(), Dek::generate());
        let sealed = key.seal(&dek, b"a");
        assert_eq!(key.open(&sealed, b"a").unwrap().expose(), dek.expose());
    }

    #[test]
    fn it_does_not_open_as_another() {
        let key = SealingKey::generate();
        let sealed = key.seal(&Dek::generate(), b"a");
        assert!(key.open(&sealed, b"b").is_none());
    }

    #[test]
    fn it_does_not_open_under_another_key() {
        let sealed = SealingKey::generate().seal(&Dek::generate(), b"a");
        assert!(SealingKey::generate().open(&sealed, b"a").is_none());
    }

    #[test]
    fn it_does_not_open_when_changed() {
        let key = SealingKey::generate();
        let sealed = key.seal(&Dek::generate(), b"a");
        let changed = |change: fn(&mut SealedDek)| {
            let mut copy = sealed.clone();
            change(&mut copy);
            key.open(&copy, b"a").is_none()
        };
        assert!(changed(|sealed| sealed.counter += 1));
        assert!(changed(|sealed| sealed.ciphertext[31] ^= 1));
        assert!(changed(|sealed| sealed.tag[0] ^= 1));
    }

    #[test]
    fn no_two_seals_share_a_nonce() {
        let (key, dek) = (SealingKey::generate(), Dek::generate());
        let nonces: std::collections::BTreeSet<u64> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..1000).map(|_| key.seal(&dek, b"").counter).collect::<Vec<_>>()))
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(nonces.len(), 4000);
    }
}
