//! The seam to the customer's KMS. Wraps and unwraps DEKs; never sees a plaintext.
