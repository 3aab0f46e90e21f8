//! Compares the log with the log of the customer's KMS, by the KMS's request ids: what one of them
//! has and the other lacks. This module reads what it is given. It calls no provider and no
//! database, and writes nothing.
//!
//! | file | what it holds |
//! |---|---|
//! | `objects` | the records of an export, one at a time |
//! | `record` | the content of a record, whatever its format |
//! | `cloudtrail`, `vault`, `google`, `key_vault` | one format each |
//! | `export` | an export as read: calls of byok's keys by request id |
//! | `account` | the comparison of entries and calls |
//! | `report` | the result |

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
