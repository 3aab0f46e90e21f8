//! Negotiation of the Prometheus text format (RFC 9110, section 12.5.1).

use axum::http::{HeaderMap, header};

use crate::model::MediaRange;

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Prometheus's own format, which everything that reads metrics can read.
    Classic,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// The format for a request with these headers: OpenMetrics if the request names it and weights
    /// it at least as high as text, otherwise the classic one. A client that accepts neither gets
    /// the classic one as well.
    pub(super) fn asked_for(headers: &HeaderMap) -> Self {
        // Of the media ranges that include the classic format, the most specific one counts.
        let (mut open_metrics, mut classic) = (None::<f32>, [None::<f32>; 3]);
        let lines = headers.get_all(header::ACCEPT).iter().filter_map(|line| line.to_str().ok());
        for range in lines.flat_map(MediaRange::listed) {
            let weight = range.weight;
            let best = |known: Option<f32>| Some(known.map_or(weight, |known| known.max(weight)));
            match (range.name.as_str(), range.parameter("version")) {
                ("application/openmetrics-text", None | Some("1.0.0" | "0.0.1")) => {
                    open_metrics = best(open_metrics);
                }
                ("text/plain", None | Some("0.0.4")) => classic[0] = best(classic[0]),
                ("text/*", _) => classic[1] = best(classic[1]),
                ("*/*", _) => classic[2] = best(classic[2]),
                _ => {}
            }
        }
        let classic = classic.into_iter().flatten().next().unwrap_or_default();
        match open_metrics {
            Some(weight) if weight > 0.0 && weight >= classic => Self::OpenMetrics,
            Some(_) | None => Self::Classic,
        }
    }

    /// The value of `Content-Type`.
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn asked_for(accept: &'static str) -> Format {
        Format::asked_for(&HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]))
    }

    #[test]
    fn open_metrics_is_for_clients_that_name_and_prefer_it() {
        assert_eq!(Format::asked_for(&HeaderMap::new()), Format::Classic);
        for classic in [
            "",
            "*/*",
            "text/html, */*;q=0.8",
            "application/*",
            "text/plain",
            "application/json",
            "text/plain; version=0.0.4, application/openmetrics-text; version=1.0.0; q=0.5",
            "application/openmetrics-text; q=0",
            "application/openmetrics-text; q=0.0, */*; q=0",
            "application/openmetrics-text; version=2.0.0",
            "application/openmetrics-text; q=much, text/plain; q=0.1",
            // The most specific range counts, in any order.
            "application/openmetrics-text;q=0.4, text/plain;q=0.5, */*;q=0.1",
        ] {
            assert_eq!(asked_for(classic), Format::Classic, "{classic}");
        }
        for open_metrics in [
            "application/openmetrics-text",
            "Application/OpenMetrics-Text; Version=1.0.0",
            "application/openmetrics-text, */*",
            "application/openmetrics-text, text/plain",
            "application/openmetrics-text;q=0.4, text/plain;q=0.3, */*;q=0.9",
            // Sent by Prometheus 2 and 3.
            "application/openmetrics-text; version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;\
             version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,/;q=0.1",
        ] {
            assert_eq!(asked_for(open_metrics), Format::OpenMetrics, "{open_metrics}");
        }
    }
}
