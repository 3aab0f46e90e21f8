//! Searchable statements, and a list of all of them, which a test prepares on the real database.

/// Declares statements as constants, and `ALL` with every one of them.
macro_rules! statements {
    ($($(#[$doc:meta])* $name:ident = $sql:expr;)+) => {
        $($(#[$doc])* pub(super) const $name: &str = $sql;)+

        /// Every statement of this file.
        pub(super) const ALL: &[&str] = &[$($name,)+];
    };
}

/// Declares reads of PostgreSQL as constants, and `READS` with every one of them. Two columns
/// follow the columns of each read. The first tells whether there is a row at all, because one is
/// returned even if there is none. The second tells whether the transaction that read it was
/// read-only. A transaction that began on a standby cannot write, even if the standby is promoted
/// meanwhile: what it read may be out of date.
macro_rules! reads {
    ($($(#[$doc:meta])* $name:ident = $sql:literal;)+) => {
        $($(#[$doc])* pub(super) const $name: &str = concat!(
            "SELECT q.*, s.byok_read_only FROM (SELECT pg_catalog.current_setting('transaction_read_only')
                OPERATOR(pg_catalog.=) 'on' AS byok_read_only) AS s
            LEFT JOIN (SELECT r.*, true AS byok_there FROM (", $sql, ") AS r) AS q ON true");)+

        /// Every read of this file.
        pub(super) const READS: &[&str] = &[$($name,)+];
    };
}

pub(crate) use {reads, statements};
