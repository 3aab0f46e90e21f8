//! The metrics that `/metrics` shows, in both of Prometheus' text formats. `docs/metrics.md` lists them.

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

/// The most key versions that the metrics show, the worst first: who holds a key can make versions without end.
const MOST_KEY_VERSIONS: usize = 32;

/// All metrics, in two formats.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetricsText {
    /// OpenMetrics 1.0 (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).
    pub open_metrics: String,
    /// What every Prometheus reads, version 0.0.4 (<https://prometheus.io/docs/instrumenting/exposition_formats/>).
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
struct PlaceLabels {
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

/// What a scrape shows of one key version.
pub struct KeyShown {
    /// Which.
    pub key_version: KeyVersion,
    /// Can it be used?
    pub posture: Posture,
    /// How old its proof is, where that matters: nobody probes what nobody uses.
    pub proof_age: Option<Duration>,
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
    postures: Family<PostureLabels, Gauge>,
    proof_ages: Family<KeyLabels, Gauge<f64, AtomicU64>>,
    incidents: Family<ToLabels, Counter>,
    probes: Family<OutcomeLabels, Counter>,
    pool: PoolMetrics,
    kms: RequestMetrics,
    audit_log_behind: Gauge,
    checkpoints_made: Counter,
    checkpoint_place_failures: Family<PlaceLabels, Gauge>,
    checkpoint_place_unpublished: Family<PlaceLabels, Gauge>,
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
        let (postures, proof_ages) = (Family::default(), Family::default());
        let (incidents, probes) = (Family::default(), Family::default());
        registry.register(
            "key_posture",
            "1 for the posture that a key version has, else 0",
            Clone::clone(&postures),
        );
        registry.register(
            "key_proof_age_seconds",
            "Since a key version was shown to work that is in use, or cannot be used",
            Clone::clone(&proof_ages),
        );
        registry.register(
            "incidents",
            "Changes of posture that this server wrote down",
            Clone::clone(&incidents),
        );
        registry.register("probes", "Probes of keys by this server, by what they met", Clone::clone(&probes));
        let pool = PoolMetrics::default();
        registry.register("dek_pool", "DEKs that were made ahead of need and are ready", pool.held.clone());
        registry.register("dek_pool_made", "DEKs made ahead of need, each paid for", pool.made.clone());
        registry.register("dek_pool_taken", "DEKs made ahead of need and used", pool.taken.clone());
        registry.register(
            "dek_pool_discarded",
            "DEKs made ahead of need and thrown away unused",
            pool.discarded.clone(),
        );
        let kms = RequestMetrics::registered(&mut registry);
        let (audit_log_behind, checkpoints_made) = (Gauge::default(), Counter::default());
        let checkpoint_place_failures = Family::default();
        registry.register(
            "audit_log_behind",
            "1 when the audit log is behind what was published of it",
            audit_log_behind.clone(),
        );
        registry.register("checkpoints_made", "Checkpoints made by this server", checkpoints_made.clone());
        registry.register(
            "checkpoint_place_failures",
            "Attempts of this server to publish a checkpoint that failed since the last that did not",
            Clone::clone(&checkpoint_place_failures),
        );
        let checkpoint_place_unpublished = Family::default();
        registry.register(
            "checkpoint_place_unpublished",
            "Entries of the audit log that no checkpoint at this place covers yet",
            Clone::clone(&checkpoint_place_unpublished),
        );
        let (streams_behind, stream_failures) = (Family::default(), Family::default());
        registry.register(
            "audit_stream_behind",
            "Entries of the audit log that a stream has not taken yet",
            Clone::clone(&streams_behind),
        );
        registry.register(
            "audit_stream_failures",
            "Deliveries of a stream by this server that were not taken",
            Clone::clone(&stream_failures),
        );
        let (rereads, files_behind) = (Family::default(), Family::default());
        registry.register(
            "rereads",
            "Changes of files that configure this server, by what became of them",
            Clone::clone(&rereads),
        );
        registry.register(
            "files_behind",
            "1 when a part of the configuration is not the one that its files hold now",
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
            places_taken,
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
            checkpoint_place_failures,
            checkpoint_place_unpublished,
            streams_behind,
            stream_failures,
            rereads,
            files_behind,
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

    /// Whether the audit log is behind what was published, how many checkpoints were made, and of each kind of
    /// place how often publishing failed there and how many entries wait for it.
    pub fn set_checkpoints(
        &self,
        behind: bool,
        made: u64,
        places: impl Iterator<Item = (&'static str, u32, u64)>,
    ) {
        self.audit_log_behind.set(i64::from(behind));
        self.checkpoints_made.inner().store(made, Ordering::Relaxed);
        for (place, failures, unpublished) in places {
            self.checkpoint_place_failures.get_or_create(&PlaceLabels { place }).set(i64::from(failures));
            let unpublished = i64::try_from(unpublished).unwrap_or(i64::MAX);
            self.checkpoint_place_unpublished.get_or_create(&PlaceLabels { place }).set(unpublished);
        }
    }

    /// How many DEKs are in memory.
    pub fn set_cached_deks(&self, count: u64) {
        self.cached_deks.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// How the keys are; versions that were shown before and are not among them are shown no more.
    pub fn set_keys(&self, mut keys: Vec<KeyShown>) {
        keys.sort_by_cached_key(|key| (Reverse(key.posture), key.proof_age, key.key_version.to_string()));
        keys.truncate(MOST_KEY_VERSIONS);
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

    /// What the watch over the keys has counted since the start.
    pub fn set_watch(&self, probes: [(&'static str, u64); 3], incidents: [(Posture, u64); 3]) {
        for (outcome, count) in probes {
            self.probes.get_or_create(&OutcomeLabels { outcome }).inner().store(count, Ordering::Relaxed);
        }
        for (posture, count) in incidents {
            let labels = ToLabels { posture: posture.as_str() };
            self.incidents.get_or_create(&labels).inner().store(count, Ordering::Relaxed);
        }
    }

    /// What became of the DEKs that were made ahead of need.
    pub fn set_dek_pool(&self, counts: PoolCounts) {
        self.pool.held.set(i64::try_from(counts.held).unwrap_or(i64::MAX));
        self.pool.made.inner().store(counts.made, Ordering::Relaxed);
        self.pool.taken.inner().store(counts.taken, Ordering::Relaxed);
        self.pool.discarded.inner().store(counts.discarded, Ordering::Relaxed);
    }

    /// The requests to the KMS of `provider`, made and not made, since the start.
    pub fn set_kms_requests(
        &self,
        provider: &'static str,
        made: impl Iterator<Item = MadeShown>,
        withheld: impl Iterator<Item = WithheldShown>,
    ) {
        self.kms.set(provider, made, withheld);
    }

    /// How far a stream of the log is behind, and how many of its deliveries failed.
    pub fn set_stream(&self, stream: &'static str, behind: u64, failures: u64) {
        let labels = StreamLabels { stream };
        let behind = i64::try_from(behind).unwrap_or(i64::MAX);
        self.streams_behind.get_or_create(&labels).set(behind);
        self.stream_failures.get_or_create(&labels).inner().store(failures, Ordering::Relaxed);
    }

    /// What became of files that were read again.
    pub fn set_rereads(&self, rereads: &Rereads) {
        for (part, of_part) in rereads.all() {
            for (outcome, count) in of_part.counts {
                let labels = RereadLabels { part, outcome: outcome.as_str() };
                self.rereads.get_or_create(&labels).inner().store(count, Ordering::Relaxed);
            }
            self.files_behind.get_or_create(&PartLabels { part }).set(of_part.is_behind.into());
        }
    }

    /// All of them as text.
    pub fn text(&self) -> MetricsText {
        let mut open_metrics = String::new();
        // Writing into a string does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut open_metrics, &self.registry);
        MetricsText { classic: classic(&open_metrics), open_metrics }
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
    fn key_states_show_in_the_metrics_for_a_bounded_number() {
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
        assert_eq!(text.matches("byok_key_posture{").count(), 3 * MOST_KEY_VERSIONS);
        metrics.set_keys(Vec::new());
        assert!(!metrics.text().classic.contains("byok_key_posture{"));
    }

    #[test]
    fn what_became_of_the_pool_shows_in_the_metrics() {
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
    fn an_answer_shows_in_the_metrics() {
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
