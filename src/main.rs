//! Dispatch only: the command line lives in `byok::cli`.

use std::process::ExitCode;

/// A call makes and frees some hundred small pieces of memory: glibc's allocator took a fifth of its time, this one less
/// than half of that (`docs/performance.md`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    byok::cli::run()
}
