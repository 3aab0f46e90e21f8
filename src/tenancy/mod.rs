//! Knows which tenant is served. There is one, the primary. Requests and jobs ask here which it is,
//! and get an error until the database has been reached. This module knows no key and no caller.

mod primary;

pub use primary::Primary;
