//! The properties of the verifier of bundles, for any bytes. The including file brings `audit`,
//! `crypto` and `verify` into scope.

use super::audit::CheckpointKey;
use super::crypto::Ed25519VerifyingKey;
use super::verify::{Trust, verify_bundle};

/// Panics if a property does not hold.
pub(super) fn check(data: &[u8]) {
    let somebody = Ed25519VerifyingKey::from_bytes([7; 32]);
    let keys = vec![CheckpointKey { name: "byok.example/acme/1".to_owned(), key: somebody }];
    let trust = Trust { keys, pinned: None };
    let report = verify_bundle(&mut &data[..], &trust, &mut |_| ()).expect("memory can be read");
    assert!(!report.is_clean(), "nobody has that key");
    for finding in &report.findings {
        assert!(
            !finding.to_string().is_empty() && !finding.name().is_empty(),
            "every finding has a name and a text"
        );
    }
}
