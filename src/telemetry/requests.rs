//! Metrics of the requests to the customer's KMS. The requests are counted where they are made;
//! this exports the counts.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MadeLabels {
    provider: &'static str,
    operation: &'static str,
    class: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WithheldLabels {
    provider: &'static str,
    operation: &'static str,
    reason: &'static str,
}

/// The requests of one operation with one result.
pub struct MadeShown {
    /// The operation.
    pub operation: &'static str,
    /// The class of the result.
    pub class: &'static str,
    /// The upper bound of each bucket of durations, in seconds, and its count; the last bound is
    /// infinite.
    pub buckets: Vec<(f64, u64)>,
    /// The sum of the durations.
    pub total: Duration,
}

/// The requests of one operation that were not made for one reason.
pub struct WithheldShown {
    /// The operation.
    pub operation: &'static str,
    /// The reason.
    pub reason: &'static str,
    /// The number of requests.
    pub count: u64,
}

/// A histogram with counts that are set from outside.
#[derive(Debug, Default)]
struct Durations(Mutex<(Duration, Vec<(f64, u64)>)>);

impl TypedMetric for Durations {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Durations {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (total, buckets) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = buckets.iter().map(|(_, count)| count).sum();
        encoder.encode_histogram::<NoLabelSet>(total.as_secs_f64(), count, buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// The metrics of requests.
#[derive(Default)]
pub(super) struct RequestMetrics {
    made: Family<MadeLabels, Durations>,
    withheld: Family<WithheldLabels, Counter>,
}

impl RequestMetrics {
    pub(super) fn registered(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "kms_request_duration_seconds",
            "Requests to the KMS, by operation and result",
            metrics.made.clone(),
        );
        registry.register(
            "kms_requests_withheld",
            "Requests to the KMS that were withheld",
            metrics.withheld.clone(),
        );
        metrics
    }

    pub(super) fn set(
        &self,
        provider: &'static str,
        made: impl Iterator<Item = MadeShown>,
        withheld: impl Iterator<Item = WithheldShown>,
    ) {
        for MadeShown { operation, class, buckets, total } in made {
            let durations = self.made.get_or_create(&MadeLabels { provider, operation, class });
            *durations.0.lock().unwrap_or_else(PoisonError::into_inner) = (total, buckets);
        }
        for WithheldShown { operation, reason, count } in withheld {
            let labels = WithheldLabels { provider, operation, reason };
            self.withheld.get_or_create(&labels).inner().store(count, Ordering::Relaxed);
        }
    }
}
