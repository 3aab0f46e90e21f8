//! In which media type an answer goes out, and so whether its HTTP status says anything (GraphQL over HTTP, section 6).

use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::model::{ErrorCode, MediaRange};

const NEW: &str = "application/graphql-response+json";

/// A media type of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    /// `application/json`: all that could be read as a request is answered with 200. Hasura sends this, as does whoever says
    /// nothing of the kind.
    Json,
    /// `application/graphql-response+json`: what did not run has the status of its refusal.
    GraphqlResponse,
}

impl Media {
    /// The one that a request with these headers asks for. The newer one goes out to none but who names it, and likes it
    /// no less than the other.
    pub fn asked_for(headers: &HeaderMap) -> Self {
        // Of the ranges that hold the older one, the nearest to it counts.
        let (mut newer, mut older) = (0.0, [None; 3]);
        let lines = headers.get_all(header::ACCEPT).iter().filter_map(|line| line.to_str().ok());
        for MediaRange { name, weight, .. } in lines.flat_map(MediaRange::listed) {
            match name.as_str() {
                NEW => newer = weight,
                "application/json" => older[0] = Some(weight),
                "application/*" => older[1] = Some(weight),
                "*/*" => older[2] = Some(weight),
                _ => {}
            }
        }
        let older = older.into_iter().flatten().next().unwrap_or_default();
        if newer > 0.0 && newer >= older { Self::GraphqlResponse } else { Self::Json }
    }

    /// The value of `Content-Type`.
    pub(super) fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Json => "application/json",
            Self::GraphqlResponse => NEW,
        })
    }

    /// The status of an answer to what could be read as a request; `unrun` is why it did not run, if it did not.
    pub(super) fn status(self, unrun: Option<ErrorCode>) -> StatusCode {
        match (self, unrun) {
            (Self::GraphqlResponse, Some(code)) => status_of(code),
            (Self::GraphqlResponse | Self::Json, _) => StatusCode::OK,
        }
    }
}

/// The status that REST has for it too.
pub(super) fn status_of(code: ErrorCode) -> StatusCode {
    StatusCode::from_u16(code.http_status()).unwrap_or(StatusCode::BAD_REQUEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked_for(accept: &'static str) -> Media {
        Media::asked_for(&HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]))
    }

    #[test]
    fn the_newer_media_type_is_for_who_names_it() {
        assert_eq!(Media::asked_for(&HeaderMap::new()), Media::Json);
        for json in [
            "",
            "*/*",
            "application/*",
            "application/json",
            "application/json, multipart/mixed",
            "text/html, */*;q=0.8",
            "application/graphql-response+json;q=0",
            "application/graphql-response+json;q=0.5, application/json",
            "application/graphql-response+json;q=0.5, */*;q=0.6",
            "application/graphql-response+json;q=x, application/json",
        ] {
            assert_eq!(asked_for(json), Media::Json, "{json}");
        }
        for newer in [
            "application/graphql-response+json",
            "Application/GraphQL-Response+JSON; charset=utf-8",
            "application/graphql-response+json, application/json;q=0.9",
            "application/graphql-response+json; charset=utf-8, application/json; charset=utf-8",
            "application/graphql-response+json;q=0.5, application/json;q=0, */*",
            "application/json;q=0.4, application/graphql-response+json;q=0.5, */*",
        ] {
            assert_eq!(asked_for(newer), Media::GraphqlResponse, "{newer}");
        }
    }

    #[test]
    fn only_by_the_newer_does_a_status_say_that_nothing_ran() {
        let unrun = Some(ErrorCode::QueryInvalid);
        assert_eq!((Media::Json.status(unrun), Media::Json.status(None)), (StatusCode::OK, StatusCode::OK));
        assert_eq!(Media::GraphqlResponse.status(unrun), StatusCode::BAD_REQUEST);
        assert_eq!(Media::GraphqlResponse.status(None), StatusCode::OK);
    }
}
