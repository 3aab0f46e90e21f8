//! Logs, traces and metrics. Never holds a plaintext, a key, a token or a provider's message: what is logged of a request
//! is its id, route, status, code and duration.

use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicI64, Ordering};

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::trace::SdkTracerProvider;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tracing_subscriber::filter::{FilterExt as _, LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt};

use crate::config::{LogFormat, Telemetry};

/// Where the spans of requests are made.
const REQUESTS: &str = "byok::server";

/// Keeps the trace exporter; its drop sends what is left.
pub struct Guard(Option<SdkTracerProvider>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(provider) = &self.0 {
            let _ = provider.shutdown();
        }
    }
}

/// Starts logs, and traces where an endpoint is configured. To be called once, inside the runtime.
///
/// # Errors
/// A sentence for the operator: the filter or the endpoint is unusable, or logging was started before.
pub fn start(settings: &Telemetry) -> Result<Guard, String> {
    let filter: Targets = settings.filter.parse().map_err(|_| "BYOK_LOG: is not a log filter".to_owned())?;
    // What others log may hold anything: the providers' clients print requests, answers and credentials' errors.
    let ours = Targets::new().with_target("byok", LevelFilter::TRACE);
    let provider = settings.otlp_endpoint.as_deref().map(exporter).transpose()?;
    let traces = provider.as_ref().map(|provider| {
        // The requests' spans, whatever the logs are to say.
        let filter = filter.clone().with_target(REQUESTS, LevelFilter::DEBUG);
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("byok"));
        layer.with_filter(filter.and(ours.clone()))
    });
    // Standard error: standard output belongs to what a command answers.
    let lines = match settings.format {
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_writer(std::io::stderr).boxed(),
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal();
            fmt::layer().with_target(false).with_ansi(colours).with_writer(std::io::stderr).boxed()
        }
    };
    tracing_subscriber::registry()
        .with(traces)
        .with(lines.with_filter(filter.and(ours)))
        .try_init()
        .map_err(|_| "logging was started before".to_owned())?;
    Ok(Guard(provider))
}

fn exporter(endpoint: &str) -> Result<SdkTracerProvider, String> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
        .with_protocol(opentelemetry_otlp::Protocol::HttpJson)
        .build()
        .map_err(|_| {
            "OTEL_EXPORTER_OTLP_ENDPOINT: is not an address that traces can be sent to".to_owned()
        })?;
    opentelemetry::global::set_text_map_propagator(
        opentelemetry_sdk::propagation::TraceContextPropagator::new(),
    );
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(opentelemetry_sdk::Resource::builder().with_service_name("byok").build())
        .build())
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: String,
    method: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BoundLabels {
    full: &'static str,
}

/// What became of the DEKs that were made ahead of need: what was made is held, taken or discarded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolCounts {
    /// Ready now.
    pub held: u64,
    /// Made by the KMS, each for the price of a DEK.
    pub made: u64,
    /// Given to an encrypt.
    pub taken: u64,
    /// Thrown away unused.
    pub discarded: u64,
}

/// The DEK pool, as `/metrics` shows it.
#[derive(Default)]
struct PoolMetrics {
    held: Gauge<i64, AtomicI64>,
    made: Counter,
    taken: Counter,
    discarded: Counter,
}

/// The metrics that `/metrics` shows. Labels are of closed sets: a route's template, never a path.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    durations: Family<RouteLabels, Histogram>,
    in_flight: Gauge,
    refusals: Family<CodeLabels, Counter>,
    shed: Family<BoundLabels, Counter>,
    places_taken: Gauge,
    body_bytes_held: Gauge,
    cached_deks: Gauge<i64, AtomicI64>,
    pool: PoolMetrics,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("byok");
        let requests = Family::<RequestLabels, Counter>::default();
        let buckets =
            || Histogram::new([0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0]);
        let durations = Family::new_with_constructor(buckets as fn() -> Histogram);
        let (in_flight, cached_deks) = (Gauge::default(), Gauge::default());
        let refusals = Family::<CodeLabels, Counter>::default();
        let shed = Family::<BoundLabels, Counter>::default();
        let (places_taken, body_bytes_held) = (Gauge::default(), Gauge::default());
        registry.register("requests", "Requests answered", requests.clone());
        registry.register(
            "request_duration_seconds",
            "From the head of a request to its answer",
            durations.clone(),
        );
        registry.register("requests_in_flight", "Requests being answered", in_flight.clone());
        registry.register("errors", "Requests refused, by code", refusals.clone());
        registry.register("requests_shed", "Requests refused for want of room", shed.clone());
        registry.register("places_taken", "Requests that are worked on", places_taken.clone());
        registry.register("body_bytes_held", "Bytes of bodies in memory", body_bytes_held.clone());
        registry.register("deks_cached", "DEKs in memory, about", cached_deks.clone());
        let pool = PoolMetrics::default();
        registry.register("dek_pool", "DEKs that were made ahead of need and are ready", pool.held.clone());
        registry.register("dek_pool_made", "DEKs made ahead of need, each paid for", pool.made.clone());
        registry.register("dek_pool_taken", "DEKs made ahead of need and used", pool.taken.clone());
        registry.register(
            "dek_pool_discarded",
            "DEKs made ahead of need and thrown away unused",
            pool.discarded.clone(),
        );
        registry.register("build", "This binary", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        Self {
            registry,
            requests,
            durations,
            in_flight,
            refusals,
            shed,
            places_taken,
            body_bytes_held,
            cached_deks,
            pool,
        }
    }
}

impl Metrics {
    /// A request has come.
    pub fn began(&self) {
        self.in_flight.inc();
    }

    /// A request has been answered, or given up.
    pub fn ended(&self) {
        self.in_flight.dec();
    }

    /// What was answered.
    pub fn answered(&self, route: &str, method: &str, status: u16, code: Option<&'static str>, seconds: f64) {
        let labels = RequestLabels { route: route.to_owned(), method: method.to_owned(), status };
        self.requests.get_or_create(&labels).inc();
        self.durations.get_or_create(&RouteLabels { route: route.to_owned() }).observe(seconds);
        if let Some(kind) = code {
            self.refusals.get_or_create(&CodeLabels { kind }).inc();
        }
    }

    /// A request was refused because this was full.
    pub fn shed(&self, full: &'static str) {
        self.shed.get_or_create(&BoundLabels { full }).inc();
    }

    /// How many requests are worked on, and how many bytes of bodies are held.
    pub fn set_held(&self, places: usize, bytes: usize) {
        self.places_taken.set(i64::try_from(places).unwrap_or(i64::MAX));
        self.body_bytes_held.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// How many DEKs are in memory.
    pub fn set_cached_deks(&self, count: u64) {
        self.cached_deks.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// What became of the DEKs that were made ahead of need.
    pub fn set_dek_pool(&self, counts: PoolCounts) {
        self.pool.held.set(i64::try_from(counts.held).unwrap_or(i64::MAX));
        self.pool.made.inner().store(counts.made, Ordering::Relaxed);
        self.pool.taken.inner().store(counts.taken, Ordering::Relaxed);
        self.pool.discarded.inner().store(counts.discarded, Ordering::Relaxed);
    }

    /// The text that Prometheus reads (OpenMetrics 1.0).
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a string does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_shed_and_what_is_held_show_in_the_metrics() {
        let metrics = Metrics::default();
        metrics.shed("places");
        metrics.set_held(3, 4_096);
        let text = metrics.text();
        for line in [
            r#"byok_requests_shed_total{full="places"} 1"#,
            "byok_places_taken 3",
            "byok_body_bytes_held 4096",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn what_became_of_the_pool_shows_in_the_metrics() {
        let metrics = Metrics::default();
        metrics.set_dek_pool(PoolCounts { held: 4, made: 9, taken: 3, discarded: 2 });
        let text = metrics.text();
        for line in [
            "byok_dek_pool 4",
            "byok_dek_pool_made_total 9",
            "byok_dek_pool_taken_total 3",
            "byok_dek_pool_discarded_total 2",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn an_answer_shows_in_the_metrics() {
        let metrics = Metrics::default();
        metrics.answered("/byok/encrypt", "POST", 403, Some("PERMISSION_DENIED"), 0.002);
        let text = metrics.text();
        assert!(
            text.contains(r#"byok_requests_total{route="/byok/encrypt",method="POST",status="403"} 1"#),
            "{text}"
        );
        assert!(text.contains(r#"byok_errors_total{kind="PERMISSION_DENIED"} 1"#), "{text}");
    }
}
