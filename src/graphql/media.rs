//! The media type of an answer, and what its HTTP status means (GraphQL over HTTP, section 6).

use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::model::{ErrorCode, MediaRange};

const GRAPHQL_RESPONSE: &str = "application/graphql-response+json";

/// A media type of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    /// `application/json`: everything but a malformed request is answered with 200. Hasura asks for
    /// this; it is also the default.
    Json,
    /// `application/graphql-response+json`: a request that did not run has the status of its
    /// refusal.
    GraphqlResponse,
}

impl Media {
    /// The media type for a request with these headers. The newer one is used only if the request
    /// names it and weights it at least as high as the other.
    pub fn asked_for(headers: &HeaderMap) -> Self {
        // Of the media ranges that include the older type, the most specific one counts.
        let (mut newer, mut older) = (0.0, [None; 3]);
        let lines = headers.get_all(header::ACCEPT).iter().filter_map(|line| line.to_str().ok());
        for MediaRange { name, weight, .. } in lines.flat_map(MediaRange::listed) {
            match name.as_str() {
                GRAPHQL_RESPONSE => newer = weight,
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
            Self::GraphqlResponse => GRAPHQL_RESPONSE,
        })
    }

    /// The status of the answer to a well-formed request; `not_run` is why it did not run, if it
    /// did not.
    pub(super) fn status(self, not_run: Option<ErrorCode>) -> StatusCode {
        match (self, not_run) {
            (Self::GraphqlResponse, Some(code)) => status_of(code),
            (Self::GraphqlResponse | Self::Json, _) => StatusCode::OK,
        }
    }
}

/// The status of the code, the same as over REST.
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
    fn the_newer_media_type_is_for_clients_that_name_it() {
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
    fn only_the_newer_media_type_has_the_status_of_the_refusal() {
        let not_run = Some(ErrorCode::QueryInvalid);
        assert_eq!((Media::Json.status(not_run), Media::Json.status(None)), (StatusCode::OK, StatusCode::OK));
        assert_eq!(Media::GraphqlResponse.status(not_run), StatusCode::BAD_REQUEST);
        assert_eq!(Media::GraphqlResponse.status(None), StatusCode::OK);
    }
}
