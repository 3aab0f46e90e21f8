//! The entry point. The command line is in `byok::cli`.

use std::process::ExitCode;

use mimalloc::MiMalloc;
use zeroizing_alloc::ZeroAlloc;

/// The process's allocator. A call allocates and frees some hundred small pieces of memory. glibc's
/// allocator took a fifth of the time of a call, this one less than half of that
/// (`docs/performance.md`).
///
/// Freed memory is wiped, because KMS clients pass plain DEKs through buffers that byok does not
/// own.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<MiMalloc> = ZeroAlloc(MiMalloc);

fn main() -> ExitCode {
    byok::cli::run()
}
