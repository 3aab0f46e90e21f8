//! Every SQL statement. Handles wrapped DEKs and entries; never a plaintext, never a plain DEK.
