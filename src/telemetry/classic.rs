//! Prometheus' own text format, version 0.0.4 (<https://prometheus.io/docs/instrumenting/exposition_formats/>), made of
//! OpenMetrics 1.0 as our metrics are written in it. Samples are the same in both; what is said about them differs: a counter is
//! declared under the name of its samples, there is no type `info`, a quotation mark in a help text is not escaped, and no line says that
//! the text has ended.

use std::fmt::Write as _;

/// The classic text of these metrics. They have no units, exemplars or times.
pub(super) fn classic(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    // The help comes before the type, which says what the metric is called.
    let mut help = "";
    for line in open_metrics.lines() {
        if let Some(said) = line.strip_prefix("# HELP ") {
            help = said.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|it| it.split_once(' ')) {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                _ => ("", kind),
            };
            let help = help.replace(r#"\""#, "\"");
            // Writing into a string does not fail.
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
    fn samples_stay_and_declarations_are_those_of_the_classic_format() {
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
