//! Logs, traces and metrics. They never contain a plaintext, a key, a token or a provider's
//! message: of a request, only its id, route, status, code and duration are logged.

mod classic;
mod metrics;
mod requests;
mod rereads;

use std::io::IsTerminal as _;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::filter::{FilterExt as _, LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt};

use crate::config::{LogFormat, Telemetry};

pub use metrics::{KeyShown, Metrics, MetricsText, PoolCounts};
pub use requests::{MadeShown, WithheldShown};
pub use rereads::{Reread, Rereads};

/// The module that makes the spans of requests.
const REQUEST_TARGET: &str = "byok::server";

/// Owns the trace exporter; dropping it sends the remaining traces.
pub struct Guard(Option<SdkTracerProvider>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(provider) = &self.0 {
            let _ = provider.shutdown();
        }
    }
}

/// Starts logs, and traces if an endpoint is configured. Must be called once, inside the runtime.
///
/// # Errors
/// A sentence for the operator: the filter or the endpoint is invalid, or logging was started
/// before.
pub fn start(settings: &Telemetry) -> Result<Guard, String> {
    let filter: Targets = settings.filter.parse().map_err(|_| "BYOK_LOG: is not a log filter".to_owned())?;
    // Other crates may log anything: the providers' clients log requests, answers and errors of
    // credentials.
    let ours = Targets::new().with_target("byok", LevelFilter::TRACE);
    let provider = settings.otlp_endpoint.as_deref().map(exporter).transpose()?;
    let traces = provider.as_ref().map(|provider| {
        // The spans of requests are traced whatever the filter of the logs is.
        let filter = filter.clone().with_target(REQUEST_TARGET, LevelFilter::DEBUG);
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("byok"));
        layer.with_filter(filter.and(ours.clone()))
    });
    // To standard error, since standard output is for the output of commands. Internal errors are
    // not logged: a failure to write to standard error would be reported there again, and panic.
    let lines = match settings.format {
        LogFormat::Json => {
            let layer = fmt::layer().json().flatten_event(true).with_writer(std::io::stderr);
            layer.log_internal_errors(false).boxed()
        }
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal();
            let layer = fmt::layer().with_target(false).with_ansi(colours).with_writer(std::io::stderr);
            layer.log_internal_errors(false).boxed()
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
