//! Statements with names, and the list of all of them, which a test prepares on the real database.

/// Declares statements as constants, and `ALL` with every one of them.
macro_rules! statements {
    ($($(#[$doc:meta])* $name:ident = $sql:expr;)+) => {
        $($(#[$doc])* pub(super) const $name: &str = $sql;)+

        /// Every statement of this file.
        pub(super) const ALL: &[&str] = &[$($name,)+];
    };
}

pub(crate) use statements;
