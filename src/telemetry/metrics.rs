//! The metrics of `/metrics`, in both of Prometheus's text formats. `docs/metrics.md` lists them.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::classic::classic;
use super::requests::{MadeShown, RequestMetrics, WithheldShown};
use super::rereads::Rereads;
use crate::model::{KeyVersion, Posture};

/// The most key versions that the metrics show, the worst first: the owner of a key can make any
/// number of versions.
const MAX_KEY_VERSIONS: usize = 32;

/// All metrics, in two formats.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetricsText {
    /// OpenMetrics 1.0 (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).
    pub open_metrics: String,
    /// The format that every Prometheus reads, version 0.0.4
    /// (<https://prometheus.io/docs/instrumenting/exposition_formats/>).
    pub classic: String,
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

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PostureLabels {
    key_version: String,
    posture: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KeyLabels {
    key_version: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ToLabels {
    posture: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DestinationLabels {
    place: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RereadLabels {
    part: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PartLabels {
    part: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StreamLabels {
    stream: &'static str,
}

/// The state of one key version.
pub struct KeyShown {
    /// The key version.
    pub key_version: KeyVersion,
    /// Whether the key version can be used.
    pub posture: Posture,
    /// The age of its proof; `None` for a version that is not in use, and so not probed.
    pub proof_age: Option<Duration>,
}

/// The counts of the DEK pool: each DEK that was made is held, taken or discarded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolCounts {
    /// The DEKs ready now.
    pub held: u64,
    /// The DEKs made by the KMS, each at the price of a DEK.
    pub made: u64,
    /// The DEKs used by an encrypt call.
    pub taken: u64,
    /// The DEKs discarded unused.
    pub discarded: u64,
}

/// The metrics of the DEK pool.
#[derive(Default)]
struct PoolMetrics {
    held: Gauge<i64, AtomicI64>,
    made: Counter,
    taken: Counter,
    discarded: Counter,
}

/// All metrics. The values of labels come from closed sets: the template of a route, never a path.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    durations: Family<RouteLabels, Histogram>,
    in_flight: Gauge,
    refusals: Family<CodeLabels, Counter>,
    shed: Family<BoundLabels, Counter>,
    requests_held: Gauge,
    body_bytes_held: Gauge,
    cached_deks: Gauge<i64, AtomicI64>,
    postures: Family<PostureLabels, Gauge>,
    proof_ages: Family<KeyLabels, Gauge<f64, AtomicU64>>,
    incidents: Family<ToLabels, Counter>,
    probes: Family<OutcomeLabels, Counter>,
    pool: PoolMetrics,
    kms: RequestMetrics,
    audit_log_behind: Gauge,
    checkpoints_made: Counter,
    destination_failures: Family<DestinationLabels, Gauge>,
    destination_unpublished: Family<DestinationLabels, Gauge>,
    streams_behind: Family<StreamLabels, Gauge>,
    stream_failures: Family<StreamLabels, Counter>,
    rereads: Family<RereadLabels, Counter>,
    files_behind: Family<PartLabels, Gauge>,
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
        let (requests_held, body_bytes_held) = (Gauge::default(), Gauge::default());
        registry.register("requests", "Requests answered", requests.clone());
        registry.register(
            "request_duration_seconds",
            "From the head of a request to its answer",
            durations.clone(),
        );
        registry.register("requests_in_flight", "Requests being answered", in_flight.clone());
        registry.register("errors", "Requests refused, by code", refusals.clone());
        registry.register("requests_shed", "Requests refused because a limit was reached", shed.clone());
        registry.register("places_taken", "Requests in progress", requests_held.clone());
        registry.register("body_bytes_held", "Bytes of bodies in memory", body_bytes_held.clone());
        registry.register("deks_cached", "DEKs in memory, about", cached_deks.clone());
        let (postures, proof_ages) = (Family::default(), Family::default());
        let (incidents, probes) = (Family::default(), Family::default());
        registry.register(
            "key_posture",
            "1 for the posture that a key version has, else 0",
            Clone::clone(&postures),
        );
        registry.register(
            "key_proof_age_seconds",
            "Time since a key version that is in use, or cannot be used, was last shown to work",
            Clone::clone(&proof_ages),
        );
        registry.register(
            "incidents",
            "Changes of posture recorded by this server",
            Clone::clone(&incidents),
        );
        registry.register("probes", "Probes of keys by this server, by outcome", Clone::clone(&probes));
        let pool = PoolMetrics::default();
        registry.register("dek_pool", "DEKs made ahead of need and ready", pool.held.clone());
        registry.register(
            "dek_pool_made",
            "DEKs made ahead of need, each at the price of a DEK",
            pool.made.clone(),
        );
        registry.register("dek_pool_taken", "DEKs made ahead of need and used", pool.taken.clone());
        registry.register(
            "dek_pool_discarded",
            "DEKs made ahead of need and thrown away unused",
            pool.discarded.clone(),
        );
        let kms = RequestMetrics::registered(&mut registry);
        let (audit_log_behind, checkpoints_made) = (Gauge::default(), Counter::default());
        let destination_failures = Family::default();
        registry.register(
            "audit_log_behind",
            "1 if the audit log is older than its published checkpoint",
            audit_log_behind.clone(),
        );
        registry.register("checkpoints_made", "Checkpoints made by this server", checkpoints_made.clone());
        registry.register(
            "checkpoint_place_failures",
            "Failed attempts of this server to publish a checkpoint since the last success",
            Clone::clone(&destination_failures),
        );
        let destination_unpublished = Family::default();
        registry.register(
            "checkpoint_place_unpublished",
            "Entries of the audit log that no checkpoint at this destination covers yet",
            Clone::clone(&destination_unpublished),
        );
        let (streams_behind, stream_failures) = (Family::default(), Family::default());
        registry.register(
            "audit_stream_behind",
            "Entries of the audit log that a stream has not delivered yet",
            Clone::clone(&streams_behind),
        );
        registry.register(
            "audit_stream_failures",
            "Failed deliveries of a stream by this server",
            Clone::clone(&stream_failures),
        );
        let (rereads, files_behind) = (Family::default(), Family::default());
        registry.register(
            "rereads",
            "Changes of files that configure this server, by outcome",
            Clone::clone(&rereads),
        );
        registry.register(
            "files_behind",
            "1 if a part of the configuration in use differs from its files",
            Clone::clone(&files_behind),
        );
        registry.register("build", "This binary", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        Self {
            registry,
            requests,
            durations,
            in_flight,
            refusals,
            shed,
            requests_held,
            body_bytes_held,
            cached_deks,
            postures,
            proof_ages,
            incidents,
            probes,
            pool,
            kms,
            audit_log_behind,
            checkpoints_made,
            destination_failures,
            destination_unpublished,
            streams_behind,
            stream_failures,
            rereads,
            files_behind,
        }
    }
}

impl Metrics {
    /// Counts a request as begun.
    pub fn began(&self) {
        self.in_flight.inc();
    }

    /// Counts a request as ended, answered or not.
    pub fn ended(&self) {
        self.in_flight.dec();
    }

    /// Counts an answer.
    pub fn answered(&self, route: &str, method: &str, status: u16, code: Option<&'static str>, seconds: f64) {
        let labels = RequestLabels { route: route.to_owned(), method: method.to_owned(), status };
        self.requests.get_or_create(&labels).inc();
        self.durations.get_or_create(&RouteLabels { route: route.to_owned() }).observe(seconds);
        if let Some(kind) = code {
            self.refusals.get_or_create(&CodeLabels { kind }).inc();
        }
    }

    /// Counts a request refused because the limit named `full` was reached.
    pub fn shed(&self, full: &'static str) {
        self.shed.get_or_create(&BoundLabels { full }).inc();
    }

    /// Sets the number of requests in progress, and of bytes of bodies held.
    pub fn set_held(&self, requests: usize, bytes: usize) {
        self.requests_held.set(i64::try_from(requests).unwrap_or(i64::MAX));
        self.body_bytes_held.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Sets whether the audit log is behind its published checkpoint, how many checkpoints were
    /// made, and for each kind of destination the failures to publish and the entries not yet
    /// covered.
    pub fn set_checkpoints(
        &self,
        behind: bool,
        made: u64,
        destinations: impl Iterator<Item = (&'static str, u32, u64)>,
    ) {
        self.audit_log_behind.set(i64::from(behind));
        self.checkpoints_made.inner().store(made, Ordering::Relaxed);
        for (place, failures, unpublished) in destinations {
            self.destination_failures.get_or_create(&DestinationLabels { place }).set(i64::from(failures));
            let unpublished = i64::try_from(unpublished).unwrap_or(i64::MAX);
            self.destination_unpublished.get_or_create(&DestinationLabels { place }).set(unpublished);
        }
    }

    /// Sets the number of DEKs in memory.
    pub fn set_cached_deks(&self, count: u64) {
        self.cached_deks.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Sets the state of the keys; other versions are removed.
    pub fn set_keys(&self, mut keys: Vec<KeyShown>) {
        keys.sort_by_cached_key(|key| (Reverse(key.posture), key.proof_age, key.key_version.to_string()));
        keys.truncate(MAX_KEY_VERSIONS);
        self.postures.clear();
        self.proof_ages.clear();
        for key in keys {
            let key_version = key.key_version.to_string();
            for posture in Posture::ALL {
                let labels = PostureLabels { key_version: key_version.clone(), posture: posture.as_str() };
                self.postures.get_or_create(&labels).set((posture == key.posture).into());
            }
            if let Some(age) = key.proof_age {
                self.proof_ages.get_or_create(&KeyLabels { key_version }).set(age.as_secs_f64());
            }
        }
    }

    /// Sets the counts of probes and incidents since the start.
    pub fn set_watch(&self, probes: [(&'static str, u64); 3], incidents: [(Posture, u64); 3]) {
        for (outcome, count) in probes {
            self.probes.get_or_create(&OutcomeLabels { outcome }).inner().store(count, Ordering::Relaxed);
        }
        for (posture, count) in incidents {
            let labels = ToLabels { posture: posture.as_str() };
            self.incidents.get_or_create(&labels).inner().store(count, Ordering::Relaxed);
        }
    }

    /// Sets the counts of the DEK pool.
    pub fn set_dek_pool(&self, counts: PoolCounts) {
        self.pool.held.set(i64::try_from(counts.held).unwrap_or(i64::MAX));
        self.pool.made.inner().store(counts.made, Ordering::Relaxed);
        self.pool.taken.inner().store(counts.taken, Ordering::Relaxed);
        self.pool.discarded.inner().store(counts.discarded, Ordering::Relaxed);
    }

    /// Sets the counts of requests to the KMS of `provider`, made and withheld, since the start.
    pub fn set_kms_requests(
        &self,
        provider: &'static str,
        made: impl Iterator<Item = MadeShown>,
        withheld: impl Iterator<Item = WithheldShown>,
    ) {
        self.kms.set(provider, made, withheld);
    }

    /// Sets how far a stream of the log is behind, and how many of its deliveries failed.
    pub fn set_stream(&self, stream: &'static str, behind: u64, failures: u64) {
        let labels = StreamLabels { stream };
        let behind = i64::try_from(behind).unwrap_or(i64::MAX);
        self.streams_behind.get_or_create(&labels).set(behind);
        self.stream_failures.get_or_create(&labels).inner().store(failures, Ordering::Relaxed);
    }

    /// Sets the outcomes of reading configuration files again.
    pub fn set_rereads(&self, rereads: &Rereads) {
        for (part, of_part) in rereads.all() {
            for (outcome, count) in of_part.counts {
                let labels = RereadLabels { part, outcome: outcome.as_str() };
                self.rereads.get_or_create(&labels).inner().store(count, Ordering::Relaxed);
            }
            self.files_behind.get_or_create(&PartLabels { part }).set(of_part.is_behind.into());
        }
    }

    /// All metrics as text.
    pub fn text(&self) -> MetricsText {
        let mut open_metrics = String::new();
        // Writing to a string cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut open_metrics, &self.registry);
        MetricsText { classic: classic(&open_metrics), open_metrics }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metrics_have_shed_requests_and_held_bytes() {
        let metrics = Metrics::default();
        metrics.shed("places");
        metrics.set_held(3, 4_096);
        let text = metrics.text().classic;
        for line in [
            r#"byok_requests_shed_total{full="places"} 1"#,
            "byok_places_taken 3",
            "byok_body_bytes_held 4096",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn the_metrics_have_the_state_of_a_limited_number_of_keys() {
        let metrics = Metrics::default();
        let key = |number: usize, posture| KeyShown {
            key_version: KeyVersion::new("byok", number.to_string()),
            posture,
            proof_age: Some(Duration::from_millis(1_500)),
        };
        let mut keys: Vec<KeyShown> = (0..100).map(|number| key(number, Posture::Active)).collect();
        keys.push(key(100, Posture::Revoked));
        metrics.set_keys(keys);
        metrics.set_watch(
            [("works", 7), ("refused", 1), ("out_of_reach", 0)],
            Posture::ALL.map(|posture| (posture, 2)),
        );
        let text = metrics.text().classic;
        for line in [
            r#"byok_key_posture{key_version="byok/100",posture="revoked"} 1"#,
            r#"byok_key_posture{key_version="byok/100",posture="active"} 0"#,
            r#"byok_key_proof_age_seconds{key_version="byok/100"} 1.5"#,
            r#"byok_probes_total{outcome="works"} 7"#,
            r#"byok_incidents_total{posture="degraded"} 2"#,
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert_eq!(text.matches("byok_key_posture{").count(), 3 * MAX_KEY_VERSIONS);
        metrics.set_keys(Vec::new());
        assert!(!metrics.text().classic.contains("byok_key_posture{"));
    }

    #[test]
    fn the_metrics_have_the_counts_of_the_pool() {
        let metrics = Metrics::default();
        metrics.set_dek_pool(PoolCounts { held: 4, made: 9, taken: 3, discarded: 2 });
        let text = metrics.text().classic;
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
    fn the_metrics_count_answers() {
        let metrics = Metrics::default();
        metrics.answered("/byok/encrypt", "POST", 403, Some("PERMISSION_DENIED"), 0.002);
        let text = metrics.text().classic;
        assert!(
            text.contains(r#"byok_requests_total{route="/byok/encrypt",method="POST",status="403"} 1"#),
            "{text}"
        );
        assert!(text.contains(r#"byok_errors_total{kind="PERMISSION_DENIED"} 1"#), "{text}");
    }
}
