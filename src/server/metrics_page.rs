//! `/metrics`: what is known of the server and its keys, as text.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};

use crate::app::{App, Standing};
use crate::model::Posture;
use crate::telemetry::KeyShown;

use super::Outside;

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
    text: Bytes,
    /// When as many may be made at once again as ever.
    rested: Option<Instant>,
}

impl MetricsPage {
    pub(super) fn new(app: Arc<App>, outside: Arc<Outside>) -> Self {
        Self { app, outside, last: Mutex::default() }
    }

    /// The page as it is now, or was at most [`FRESH`] ago.
    pub(super) fn show(&self) -> Response {
        let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
        ([(header::CONTENT_TYPE, kind)], self.text()).into_response()
    }

    fn text(&self) -> Bytes {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let rested = last.rested.map_or(now, |rested| rested.max(now)) + FRESH;
        if rested.duration_since(now) <= FRESH * BURST {
            *last = Last { text: self.make().into(), rested: Some(rested) };
        }
        last.text.clone()
    }

    fn make(&self) -> String {
        let (Outside { metrics, bounds, .. }, app) = (&*self.outside, &self.app);
        metrics.set_cached_deks(app.cached_deks());
        metrics.set_keys(keys_shown(app));
        metrics.set_watch(app.probes(), app.incidents());
        metrics.set_dek_pool(app.dek_pool());
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
