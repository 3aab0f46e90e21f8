//! Conversion of the metrics from OpenMetrics 1.0 to Prometheus's own text format, version 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>). The samples are the same in
//! both; the metadata differs: a counter is declared under the name of its samples, there is no
//! type `info`, a quotation mark in a help text is not escaped, and no line marks the end.

use std::fmt::Write as _;

/// Converts these metrics, which have no units, exemplars or timestamps.
pub(super) fn classic(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    // The help comes before the type, which determines the name of the metric.
    let mut help = "";
    for line in open_metrics.lines() {
        if let Some(metadata) = line.strip_prefix("# HELP ") {
            help = metadata.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|it| it.split_once(' ')) {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                _ => ("", kind),
            };
            let help = help.replace(r#"\""#, "\"");
            // Writing to a string cannot fail.
            let _ = write!(text, "# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n");
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_unchanged_and_metadata_is_in_the_classic_format() {
        let open_metrics = r#"# HELP a_requests What \"was\" asked.
# TYPE a_requests counter
a_requests_total{route="/x",text="a \"b\" # HELP"} 3
# HELP a_build This binary.
# TYPE a_build info
a_build_info{version="1"} 1
# HELP a_seconds Durations.
# TYPE a_seconds histogram
a_seconds_sum 1.5
a_seconds_bucket{le="+Inf"} 2
# EOF
"#;
        let expected = r#"# HELP a_requests_total What "was" asked.
# TYPE a_requests_total counter
a_requests_total{route="/x",text="a \"b\" # HELP"} 3
# HELP a_build_info This binary.
# TYPE a_build_info gauge
a_build_info{version="1"} 1
# HELP a_seconds Durations.
# TYPE a_seconds histogram
a_seconds_sum 1.5
a_seconds_bucket{le="+Inf"} 2
"#;
        assert_eq!(classic(open_metrics), expected);
    }
}
