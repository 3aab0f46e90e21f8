//! Dispatch only: the command line lives in `byok::cli`.

fn main() {}
