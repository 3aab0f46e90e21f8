//! Which tenant is served. There is one, the primary; requests and jobs ask here who it is, and find nobody until the database
//! was reached. Knows no key and no caller.

mod primary;

pub use primary::Primary;
