//! `/metrics`: what is known of the server and its keys, as text, in the format that is asked for.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};

use crate::app::{App, Standing};
use crate::kms::BUCKETS;
use crate::model::Posture;
use crate::telemetry::{KeyShown, MadeShown, MetricsText, WithheldShown};

use super::Outside;
use super::metrics_format::Format;

/// How often the text is made anew: in any case after this time, and so often at once when nobody asked for a while.
const FRESH: Duration = Duration::from_millis(50);
const BURST: u32 = 100;

/// The text, which all who ask share.
pub(super) struct MetricsPage {
    app: Arc<App>,
    outside: Arc<Outside>,
    last: Mutex<Last>,
}

#[derive(Default)]
struct Last {
    open_metrics: Bytes,
    classic: Bytes,
    /// When as many may be made at once again as ever.
    rested: Option<Instant>,
}

impl MetricsPage {
    pub(super) fn new(app: Arc<App>, outside: Arc<Outside>) -> Self {
        Self { app, outside, last: Mutex::default() }
    }

    /// The page as it is now, or was at most [`FRESH`] ago.
    pub(super) fn show(&self, asked: &HeaderMap) -> Response {
        let format = Format::asked_for(asked);
        let headers = [
            (header::CONTENT_TYPE, HeaderValue::from_static(format.content_type())),
            (header::VARY, HeaderValue::from_static("accept")),
        ];
        (headers, self.text(format)).into_response()
    }

    fn text(&self, format: Format) -> Bytes {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let rested = last.rested.map_or(now, |rested| rested.max(now)) + FRESH;
        if rested.duration_since(now) <= FRESH * BURST {
            let MetricsText { open_metrics, classic } = self.make();
            *last = Last { open_metrics: open_metrics.into(), classic: classic.into(), rested: Some(rested) };
        }
        match format {
            Format::Classic => last.classic.clone(),
            Format::OpenMetrics => last.open_metrics.clone(),
        }
    }

    fn make(&self) -> MetricsText {
        let (Outside { metrics, bounds, .. }, app) = (&*self.outside, &self.app);
        metrics.set_cached_deks(app.cached_deks());
        metrics.set_keys(keys_shown(app));
        metrics.set_watch(app.probes(), app.incidents());
        metrics.set_dek_pool(app.dek_pool());
        let requests = app.kms_requests();
        let made = requests.made.iter().map(|made| MadeShown {
            operation: made.asked.as_str(),
            class: made.result,
            buckets: BUCKETS.into_iter().chain([f64::INFINITY]).zip(made.durations).collect(),
            total: made.total,
        });
        let withheld = requests.withheld.iter().map(|withheld| WithheldShown {
            operation: withheld.asked.as_str(),
            reason: withheld.reason,
            count: withheld.count,
        });
        metrics.set_kms_requests(requests.provider, made, withheld);
        let checkpoints = app.checkpoints();
        let places = checkpoints.places().iter();
        let places = places.map(|place| (place.kind(), place.failures(), place.unpublished()));
        metrics.set_checkpoints(checkpoints.is_behind(), checkpoints.made(), places);
        app.streams_shown().iter().for_each(|one| metrics.set_stream(one.name, one.behind, one.failures));
        metrics.set_rereads(app.rereads());
        metrics.set_held(bounds.places.held(), bounds.bytes.held());
        metrics.text()
    }
}

fn keys_shown(app: &App) -> Vec<KeyShown> {
    let shown = |key: Standing| KeyShown {
        key_version: key.key_version,
        posture: key.posture,
        proof_age: key.proof_age.filter(|_| key.in_memory || key.posture != Posture::Active),
    };
    app.key_standing().into_iter().map(shown).collect()
}
