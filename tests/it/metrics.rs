//! The metrics: served in the requested format, readable by Prometheus' own tools, and complete on
//! the page, in the rules and on the dashboard of `docs/`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::checkpoints::{KEY_FILE, eventually, made_key};
use crate::checkpoints_destinations::{DIRECTORY, EVERY};
use crate::reread::hang_up;
use crate::support::{needed, server::TestServer};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A server on which everything has happened that a metric counts.
struct Busy {
    server: TestServer,
    _folder: tempfile::TempDir,
}

impl Busy {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = made_key(folder.path(), "key.pem").await;
        let text = |name: &str| folder.path().join(name).display().to_string();
        let server = TestServer::with(&[
            (KEY_FILE, &key),
            (DIRECTORY, &text("checkpoints")),
            EVERY,
            ("BYOK_AUDIT_STREAM_FILE", &text("audit.jsonl")),
            ("BYOK_KMS_CALLS_PER_MINUTE", "10"),
        ])
        .await;
        let busy = Self { server, _folder: folder };
        let token = busy.server.encrypt("p", "r").await;
        assert_eq!(busy.server.decrypt(&token, "another").await.status, 422);
        // More new records than the budget allows requests for.
        for n in 0..20 {
            let body = json!({ "plaintext": "p", "context": { "record_id": format!("r-{n}") } });
            busy.server.post("/byok/encrypt", body).await;
        }
        hang_up(&busy.server);
        // More requests without credentials than one address may send.
        let stranger = async || {
            let request = busy.server.client.post(format!("{}/graphql", busy.server.base));
            request.json(&json!({ "query": "{ __typename }" })).send().await.unwrap().status()
        };
        futures_util::future::join_all((0..400).map(|_| stranger())).await;
        let all =
            ["byok_requests_shed_total{", "byok_kms_requests_withheld_total{", "byok_key_proof_age_seconds{"];
        let more = ["byok_checkpoint_place_unpublished{", "byok_audit_stream_behind{", "byok_rereads_total{"];
        eventually(async || {
            let text = busy.scrape(None).await.1;
            all.iter().chain(&more).all(|name| text.contains(name))
        })
        .await;
        busy
    }

    /// The content type and text of the answer to a scrape with this `Accept`.
    async fn scrape(&self, accept: Option<&str>) -> (String, String) {
        let mut request = self.server.client.get(format!("{}/metrics", self.server.base));
        if let Some(accept) = accept {
            request = request.header("accept", accept);
        }
        let answer = request.send().await.unwrap();
        assert_eq!((answer.status().as_u16(), &answer.headers()["vary"]), (200, &"accept".parse().unwrap()));
        let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
        (kind, answer.text().await.unwrap())
    }
}

/// The exit code and output of a program that reads this text on its standard input.
async fn run_with_input(program: &str, arguments: &[&str], input: &str) -> (Option<i32>, String) {
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn().expect("it runs");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).await.unwrap();
    drop(stdin);
    let output = child.wait_with_output().await.unwrap();
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

/// Each sample's name with its labels' names, as Prometheus' Python library reads the text.
async fn parsed(parser: &str, text: &str) -> BTreeSet<String> {
    let script = format!(
        "import sys
from {parser} import text_string_to_metric_families as read
for family in read(sys.stdin.read()):
    for sample in family.samples:
        print(sample.name, sorted(sample.labels))"
    );
    let (code, samples) = run_with_input(&needed("BYOK_TEST_PYTHON"), &["-c", &script], text).await;
    assert_eq!(code, Some(0), "{samples}");
    samples.lines().map(str::to_owned).collect()
}

fn file(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)).unwrap()
}

/// Every metric name in a text, without a histogram's suffixes.
fn named(text: &str, types: &BTreeMap<String, String>) -> BTreeSet<String> {
    let words = text.split(|char: char| !char.is_ascii_alphanumeric() && char != '_');
    let names = words.filter(|word| word.starts_with("byok_")).map(|word| {
        let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| word.strip_suffix(suffix));
        let of_histogram =
            of_histogram.filter(|name| types.get(*name).is_some_and(|kind| kind == "histogram"));
        of_histogram.unwrap_or(word).to_owned()
    });
    names.collect()
}

/// Collects every expression of the dashboard.
fn expressions(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            found.extend(members.get("expr").and_then(Value::as_str).map(str::to_owned));
            members.values().for_each(|member| expressions(member, found));
        }
        Value::Array(values) => values.iter().for_each(|value| expressions(value, found)),
        _ => {}
    }
}

#[tokio::test]
async fn prometheus_reads_both_formats_and_they_say_the_same() {
    let busy = Busy::start().await;
    let (kind, classic) = busy.scrape(None).await;
    assert_eq!(kind, CLASSIC);
    let prometheus =
        "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
    let (kind, open_metrics) = busy.scrape(Some(prometheus)).await;
    assert_eq!(kind, OPEN_METRICS);
    assert_eq!(busy.scrape(Some("text/html, */*;q=0.8")).await.0, CLASSIC, "a browser");

    // The exit code and standard output for a text without problems.
    let promtool = needed("BYOK_TEST_PROMTOOL");
    assert_eq!(run_with_input(&promtool, &["check", "metrics"], &classic).await, (Some(0), String::new()));
    let samples = parsed("prometheus_client.parser", &classic).await;
    assert!(!samples.is_empty());
    let others = parsed("prometheus_client.openmetrics.parser", &open_metrics).await;
    assert_eq!(samples, others);
}

#[tokio::test]
async fn the_page_the_rules_and_the_dashboard_name_what_is_served() {
    let busy = Busy::start().await;
    let text = busy.scrape(None).await.1;
    let types: BTreeMap<String, String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
        .collect();
    let served: BTreeSet<String> = types.keys().cloned().collect();
    let (page, rules, dashboard) =
        (file("metrics.md"), file("monitoring/alerts.yaml"), file("monitoring/dashboard.json"));
    assert_eq!(named(&dashboard, &types), served, "the dashboard");
    assert_eq!(named(&page, &types), served, "the page");
    let of_rules = named(&rules, &types);
    assert!(of_rules.is_subset(&served), "the rules: {:?}", of_rules.difference(&served));

    let rows = page.lines().filter(|line| line.starts_with("| `byok_"));
    let mut documented = BTreeMap::new();
    for row in rows {
        let [_, name, kind, labels, ..] = row.split('|').map(str::trim).collect::<Vec<_>>()[..] else {
            panic!("{row}")
        };
        let name = name.trim_matches('`');
        assert_eq!(types.get(name).map(String::as_str), Some(kind), "{name}");
        let labels =
            labels.split(", ").map(|label| label.trim_matches('`')).filter(|label| !label.is_empty());
        documented.insert(name.to_owned(), labels.map(str::to_owned).collect::<BTreeSet<_>>());
    }
    for sample in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, labels) = sample.split_once('{').unwrap_or((sample.split(' ').next().unwrap(), ""));
        let [name] = &named(name, &types).into_iter().collect::<Vec<_>>()[..] else { panic!("{sample}") };
        let labels =
            labels.split("\",").filter_map(|label| Some(label.trim_start_matches('}').split_once("=\"")?.0));
        let labels: BTreeSet<String> = labels.filter(|label| *label != "le").map(str::to_owned).collect();
        assert_eq!(documented.get(name), Some(&labels), "{sample}");
    }

    // Prometheus accepts the expressions.
    let promtool = needed("BYOK_TEST_PROMTOOL");
    let path = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/monitoring").join(name);
    let rules = path("alerts.yaml").display().to_string();
    let (code, report) = run_with_input(&promtool, &["check", "rules", &rules], "").await;
    assert!(code == Some(0) && report.contains("SUCCESS: 21 rules found"), "{report}");
    let mut found = Vec::new();
    expressions(&serde_json::from_str(&dashboard).unwrap(), &mut found);
    let rules: Vec<Value> = found
        .iter()
        .enumerate()
        .map(|(n, expression)| json!({ "record": format!("panel_{n}"), "expr": expression.replace("$__rate_interval", "5m") }))
        .collect();
    // JSON is YAML.
    let folder = tempfile::tempdir().unwrap();
    let written = folder.path().join("rules.yaml");
    std::fs::write(&written, json!({ "groups": [{ "name": "panels", "rules": rules }] }).to_string())
        .unwrap();
    let (code, report) = run_with_input(&promtool, &["check", "rules", written.to_str().unwrap()], "").await;
    assert_eq!(code, Some(0), "{report}");
}

#[tokio::test]
async fn requests_to_the_kms_are_counted_by_what_came_of_them() {
    let server = TestServer::start().await;
    let token = server.encrypt("p", "r").await;
    assert_eq!(server.decrypt(&token, "r").await.status, 200);
    let has = async |operation: &str, class: &str| {
        let text = server.get("/metrics").await.body.as_str().unwrap().to_owned();
        text.contains(&format!(
            "byok_kms_request_duration_seconds_count{{provider=\"vault-transit\",operation=\"{operation}\",class=\"{class}\"}}"
        ))
    };
    assert!(has("wrap", "ok").await);
    eventually(async || has("unwrap", "ok").await).await;
    assert!(!has("unwrap", "refused").await);
    server.key.revoke_token().await;
    eventually(async || has("unwrap", "refused").await).await;
}
