//! The cryptography: pure, synchronous, no I/O.
