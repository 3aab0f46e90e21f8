//! Access to headers that may be present only once.

use http::{HeaderMap, HeaderName};

use crate::model::{ErrorCode, Refusal};

/// The value of a header, if present. A duplicate is refused, since two readers could use different
/// values.
pub(super) fn the_one<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h str>, Refusal> {
    let mut values = headers.get_all(name).iter();
    let value = values.next();
    if values.next().is_some() {
        return Err(Refusal::because(
            ErrorCode::InvalidHeaders,
            format!("The header {name} is present more than once"),
        ));
    }
    value.map(|value| text(name, value)).transpose()
}

/// A header's value as text. Hasura sends session variables as UTF-8.
pub(super) fn text<'h>(name: &HeaderName, value: &'h http::HeaderValue) -> Result<&'h str, Refusal> {
    std::str::from_utf8(value.as_bytes())
        .map_err(|_| Refusal::because(ErrorCode::InvalidHeaders, format!("The header {name} is not UTF-8")))
}
