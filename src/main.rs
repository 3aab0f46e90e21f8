//! Dispatch only: the command line lives in `byok::cli`.

use std::process::ExitCode;

use mimalloc::MiMalloc;
use zeroizing_alloc::ZeroAlloc;

/// A call makes and frees some hundred small pieces of memory: glibc's allocator took a fifth of its time, this one less
/// than half of that (`docs/performance.md`).
///
/// What is freed is wiped: clients of the KMS pass plain DEKs through buffers that are not ours.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<MiMalloc> = ZeroAlloc(MiMalloc);

fn main() -> ExitCode {
    byok::cli::run()
}
