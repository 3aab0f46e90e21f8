//! Who calls (authn), and what they may do (policy). Knows nothing of keys or of plaintext.
