//! What commands print, in the place of the standard macros, which panic where whoever reads has left, as `head` does, or
//! where a disk is full.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write as _};

/// The exit code of a command that SIGPIPE ended, as shells count it (128 + 13).
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

/// Prints to standard output. Ends the process where nobody reads it any more, or it cannot be written.
pub(super) fn to_out(text: Arguments<'_>) {
    let Err(error) = std::io::stdout().lock().write_fmt(text) else { return };
    if error.kind() == ErrorKind::BrokenPipe {
        std::process::exit(LEFT);
    }
    line_to_error(format_args!("byok: standard output: {}", error.kind()));
    std::process::exit(1);
}

/// The same with the end of the line.
pub(super) fn line_to_out(text: Arguments<'_>) {
    to_out(format_args!("{text}\n"));
}

/// Prints to standard error, if anybody reads it.
pub(super) fn line_to_error(text: Arguments<'_>) {
    let _ = std::io::stderr().lock().write_fmt(format_args!("{text}\n"));
}
