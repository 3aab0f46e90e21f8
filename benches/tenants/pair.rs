//! A pair: the measured tenant by itself, and within the same minute beside the others. Each pair has a server and a database of
//! its own, since what befalls the others is not undone.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::Plan;
use crate::house::House;
use crate::offered::{Offered, offer};

/// Calls a second of each of the others. As many as the measured one has would show that two cores are shared, and not more.
pub(crate) const OF_A_NEIGHBOUR: f64 = 50.0;
/// For how long the others are in trouble before it counts: long enough that the first calls to the KMS that hangs have been
/// given up.
const LEAD: Duration = Duration::from_secs(6);

pub(crate) struct Pair {
    pub(crate) alone: Offered,
    pub(crate) beside: Offered,
    /// What became of each neighbour's calls, by its name.
    pub(crate) neighbours: Vec<(&'static str, Offered)>,
}

pub(crate) async fn measure(plan: &Plan, rate: f64) -> Result<Pair, String> {
    let house = House::new().await;
    let measured = async |window| {
        let caller = house.measured();
        offer(rate, window, move |_| {
            let caller = caller.clone();
            async move { caller.decrypt().await }
        })
        .await
    };
    // Connections are made, and statements prepared.
    measured(plan.window / 4).await;
    let alone = measured(plan.window).await;

    let stop = CancellationToken::new();
    let _stopped = stop.clone().drop_guard();
    house.trouble(stop).await?;
    let calling: Vec<_> = house
        .neighbours()
        .map(|(name, caller)| {
            let calls = offer(OF_A_NEIGHBOUR, LEAD + plan.window, move |number| {
                let caller = caller.clone();
                async move { caller.call(number).await }
            });
            (name, tokio::spawn(calls))
        })
        .collect();
    tokio::time::sleep(LEAD).await;
    let beside = measured(plan.window).await;
    if !house.rotates_still().await {
        return Err("the rotation that was to go on for ever has ended".to_owned());
    }
    let mut neighbours = Vec::new();
    for (name, calls) in calling {
        neighbours.push((name, calls.await.map_err(|error| error.to_string())?));
    }
    Ok(Pair { alone, beside, neighbours })
}

impl Pair {
    /// How many times as long the measured tenant waited beside the others.
    pub(crate) fn ratio(&self, part: f64) -> f64 {
        self.beside.percentile_ms(part) / self.alone.percentile_ms(part)
    }

    /// Of the measured tenant.
    pub(crate) fn refused(&self) -> usize {
        self.alone.refused + self.beside.refused
    }
}
