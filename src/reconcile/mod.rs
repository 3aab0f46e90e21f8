//! Holds the log against the log of the customer's KMS, by the KMS's request ids: what is in one and not in the other. It
//! reads what it is given: it asks no provider and no database, and writes nothing.
//!
//! | file | what it holds |
//! |---|---|
//! | `objects` | the records of an export, one at a time |
//! | `record` | what a record says, whatever its format |
//! | `cloudtrail`, `vault`, `google`, `key_vault` | one format each |
//! | `export` | an export, read: calls of our keys by request id |
//! | `account` | entries and calls, held against each other |
//! | `report` | what came out |

mod account;
mod cloudtrail;
mod export;
mod google;
mod key_vault;
mod objects;
mod record;
mod report;
#[cfg(test)]
mod tests;
mod vault;

pub use account::{Reconciliation, Terms};
pub use export::{Between, Export, MOST_CALLS, UnusableExport};
pub use record::{Format, Use};
pub use report::{Missing, Named, Principal, Report, Why};
