//! Plain types that every room shares. No I/O, no decisions.
