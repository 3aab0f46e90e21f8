//! Logs and traces.

use super::Reader;

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// Text for people to read.
    Text,
}

/// The settings of logs and traces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Telemetry {
    /// `BYOK_LOG_FORMAT`: `json` or `text`.
    pub format: LogFormat,
    /// `BYOK_LOG`: a filter such as `info` or `byok=debug,info`.
    pub filter: String,
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`: the destination of traces (OTLP over HTTP, JSON). Without it,
    /// no traces are made.
    pub otlp_endpoint: Option<String>,
}

impl Telemetry {
    /// Reads the section. `format` applies if the environment does not set one.
    pub fn read(reader: &mut Reader<'_>, format: LogFormat) -> Self {
        let filter = reader.text("BYOK_LOG").unwrap_or_else(|| "info".to_owned());
        if filter.parse::<tracing_subscriber::filter::Targets>().is_err() {
            reader.error("BYOK_LOG", "is not a log filter such as `info` or `byok=debug,info`");
        }
        let formats = [("json", LogFormat::Json), ("text", LogFormat::Text)];
        Self {
            format: reader.choice("BYOK_LOG_FORMAT", format, &formats),
            filter,
            otlp_endpoint: reader.text("OTEL_EXPORTER_OTLP_ENDPOINT"),
        }
    }
}
