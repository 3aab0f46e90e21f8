//! Output of the commands. These macros replace the standard ones, which panic if the reader has
//! closed the pipe, as `head` does, or if a disk is full.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write as _};

/// The exit code of a command that SIGPIPE ended, as shells report it (128 + 13).
const LEFT: i32 = 141;

macro_rules! print {
    ($($text:tt)*) => { $crate::cli::output::to_out(::std::format_args!($($text)*)) };
}

macro_rules! println {
    ($($text:tt)*) => { $crate::cli::output::line_to_out(::std::format_args!($($text)*)) };
}

macro_rules! eprintln {
    ($($text:tt)*) => { $crate::cli::output::line_to_error(::std::format_args!($($text)*)) };
}

/// Prints to standard output. Ends the process if nobody reads the output any more, or if it cannot
/// be written.
pub(super) fn to_out(text: Arguments<'_>) {
    let Err(error) = std::io::stdout().lock().write_fmt(text) else { return };
    if error.kind() == ErrorKind::BrokenPipe {
        std::process::exit(LEFT);
    }
    line_to_error(format_args!("byok: standard output: {}", error.kind()));
    std::process::exit(1);
}

/// Does the same with a line break at the end.
pub(super) fn line_to_out(text: Arguments<'_>) {
    to_out(format_args!("{text}\n"));
}

/// Prints a line to standard error, and ignores errors.
pub(super) fn line_to_error(text: Arguments<'_>) {
    let _ = std::io::stderr().lock().write_fmt(format_args!("{text}\n"));
}
