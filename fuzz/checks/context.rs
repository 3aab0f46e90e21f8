//! The properties of a context of any pairs. The including file brings `crypto` into scope.

use std::collections::BTreeMap;

use super::crypto::{Context, ContextError, MAX_CONTEXT_BYTES, MAX_CONTEXT_PAIRS};

/// Panics if a property does not hold. Every line of `data` is a pair, `key=value`; a line without
/// `=` has no value.
pub(super) fn check(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let pairs: Vec<(&str, &str)> =
        text.split_terminator('\n').map(|line| line.split_once('=').unwrap_or((line, ""))).collect();
    let distinct: BTreeMap<&str, &str> = pairs.iter().copied().collect();
    let bytes = 4 + pairs.iter().map(|(key, value)| 8 + key.len() + value.len()).sum::<usize>();

    match Context::from_pairs(pairs.iter().copied()) {
        Ok(context) => {
            assert_eq!(distinct.len(), pairs.len());
            assert!(!distinct.contains_key(""));
            assert!(context.len() <= MAX_CONTEXT_PAIRS);
            assert!(context.iter().eq(distinct.iter().map(|(key, value)| (*key, *value))));
            let encoding = context.canonical();
            assert!(encoding.len() == bytes && bytes <= MAX_CONTEXT_BYTES);
            assert_eq!(decode(&encoding), pairs_of(&distinct), "the encoding has one reading");
            let reversed = Context::from_pairs(pairs.into_iter().rev()).expect("the order does not matter");
            assert_eq!(context.digest(), reversed.digest());
        }
        Err(ContextError::DuplicateKey) => assert!(distinct.len() < pairs.len()),
        Err(ContextError::EmptyKey) => assert!(distinct.contains_key("")),
        Err(ContextError::TooManyPairs) => assert!(pairs.len() > MAX_CONTEXT_PAIRS),
        Err(ContextError::TooLarge) => assert!(bytes > MAX_CONTEXT_BYTES),
    }
}

fn pairs_of<'a>(map: &BTreeMap<&'a str, &'a str>) -> Vec<(&'a str, &'a str)> {
    map.iter().map(|(key, value)| (*key, *value)).collect()
}

/// Decodes a canonical encoding, which the product itself never needs to do.
fn decode(mut encoding: &[u8]) -> Vec<(&str, &str)> {
    let count = number(&mut encoding);
    let pairs = (0..count).map(|_| (string(&mut encoding), string(&mut encoding))).collect();
    assert!(encoding.is_empty(), "nothing comes after the last pair");
    pairs
}

fn string<'a>(encoding: &mut &'a [u8]) -> &'a str {
    let length = number(encoding);
    let (text, rest) = encoding.split_at(length);
    *encoding = rest;
    std::str::from_utf8(text).expect("keys and values are UTF-8")
}

fn number(encoding: &mut &[u8]) -> usize {
    let (number, rest) = encoding.split_first_chunk::<4>().expect("four bytes of length");
    *encoding = rest;
    u32::from_be_bytes(*number) as usize
}
