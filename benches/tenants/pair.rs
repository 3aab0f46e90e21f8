//! One pair of measurements: the measured tenant alone, and right after that beside the neighbours
//! with their faults. Each pair has a server and a database of its own, because the faults cannot
//! be undone.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::Plan;
use crate::open_loop::{Answers, open_loop};
use crate::server::Server;

/// The calls per second of each neighbour. At the rate of the measured tenant, they would only show
/// that two cores are shared.
pub(crate) const NEIGHBOUR_RATE: f64 = 50.0;
/// The time between the beginning of the faults and the measurement, in which the first requests to
/// the KMS time out.
const LEAD: Duration = Duration::from_secs(6);

pub(crate) struct Pair {
    pub(crate) alone: Answers,
    pub(crate) beside: Answers,
    /// The answers to each neighbour, by its name.
    pub(crate) neighbours: Vec<(&'static str, Answers)>,
}

pub(crate) async fn measure(plan: &Plan, rate: f64) -> Result<Pair, String> {
    let server = Server::start().await;
    let measured = async |window| {
        let client = server.measured();
        open_loop(rate, window, move |_| {
            let client = client.clone();
            async move { client.decrypt().await }
        })
        .await
    };
    // Opens connections and prepares statements.
    measured(plan.window / 4).await;
    let alone = measured(plan.window).await;

    let stop = CancellationToken::new();
    let _stopped_at_the_end = stop.clone().drop_guard();
    for neighbour in &plan.neighbours {
        server.begin_fault(neighbour, &stop).await?;
    }
    let neighbours: Vec<_> = server
        .neighbours()
        .filter(|(name, _)| plan.neighbours.contains(name))
        .map(|(name, client)| {
            let calls = open_loop(NEIGHBOUR_RATE, LEAD + plan.window, move |number| {
                let client = client.clone();
                async move { client.decrypt_or_encrypt(number).await }
            });
            (name, tokio::spawn(calls))
        })
        .collect();
    tokio::time::sleep(LEAD).await;
    let beside = measured(plan.window).await;
    if plan.neighbours.contains(&"rotating") && !server.is_rotating().await {
        return Err("the rotation without end has ended".to_owned());
    }
    let mut answers = Vec::new();
    for (name, calls) in neighbours {
        answers.push((name, calls.await.map_err(|error| error.to_string())?));
    }
    Ok(Pair { alone, beside, neighbours: answers })
}

impl Pair {
    /// The ratio of a percentile beside the neighbours to the same percentile alone.
    pub(crate) fn ratio(&self, share: f64) -> f64 {
        self.beside.percentile_ms(share) / self.alone.percentile_ms(share)
    }

    /// The number of refused calls of the measured tenant.
    pub(crate) fn refused(&self) -> usize {
        self.alone.refused() + self.beside.refused()
    }
}
