//! `/metrics`: the state of the server and its keys, in the text format that the request asks for.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};

use crate::app::{App, KeyStatus};
use crate::kms::BUCKETS;
use crate::model::Posture;
use crate::telemetry::{KeyShown, MadeShown, MetricsText, WithheldShown};

use super::layer::Layer;
use super::metrics_format::Format;

/// The interval at which the text may be made again, and how many times at once after a pause.
const INTERVAL: Duration = Duration::from_millis(50);
const BURST: u32 = 100;

/// The text, shared by all scrapes.
pub(super) struct MetricsPage {
    app: Arc<App>,
    layer: Arc<Layer>,
    last: Mutex<Last>,
}

#[derive(Default)]
struct Last {
    open_metrics: Bytes,
    classic: Bytes,
    /// When the full burst is available again.
    full_burst_at: Option<Instant>,
}

impl MetricsPage {
    pub(super) fn new(app: Arc<App>, layer: Arc<Layer>) -> Self {
        Self { app, layer, last: Mutex::default() }
    }

    /// The page, at most [`INTERVAL`] old.
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
        let full_burst_at = last.full_burst_at.map_or(now, |at| at.max(now)) + INTERVAL;
        if full_burst_at.duration_since(now) <= INTERVAL * BURST {
            let MetricsText { open_metrics, classic } = self.make();
            *last = Last {
                open_metrics: open_metrics.into(),
                classic: classic.into(),
                full_burst_at: Some(full_burst_at),
            };
        }
        match format {
            Format::Classic => last.classic.clone(),
            Format::OpenMetrics => last.open_metrics.clone(),
        }
    }

    fn make(&self) -> MetricsText {
        let (Layer { metrics, bounds, .. }, app) = (&*self.layer, &self.app);
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
        let destinations = checkpoints.destinations().into_iter();
        let destinations = destinations.map(|at| (at.kind, at.failures, at.unpublished));
        metrics.set_checkpoints(checkpoints.any_is_behind(), checkpoints.made(), destinations);
        app.stream_statuses().iter().for_each(|one| metrics.set_stream(one.name, one.behind, one.failures));
        metrics.set_rereads(app.rereads());
        metrics.set_held(bounds.requests.held(), bounds.bytes.held());
        metrics.text()
    }
}

fn keys_shown(app: &App) -> Vec<KeyShown> {
    let reading = |key: KeyStatus| KeyShown {
        key_version: key.key_version,
        posture: key.posture,
        proof_age: key.proof_age.filter(|_| key.in_memory || key.posture != Posture::Active),
    };
    app.key_statuses().into_iter().map(reading).collect()
}
