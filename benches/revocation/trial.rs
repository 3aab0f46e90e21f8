//! One trial: the key is turned off until after the bound, and on again.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use crate::load::Load;
use crate::measure::{Machine, PROBE_INTERVAL};
use crate::outage::Injector;
use crate::random::Random;
use crate::writer::Writer;

/// The time that the key stays off after the bound, so that a plaintext after it would be seen.
const PAST_THE_BOUND: Duration = Duration::from_millis(200);

/// The results of a trial. Times begin when the provider has answered that the key is off; an
/// earlier event has time zero.
pub(crate) struct Trial {
    /// The time to the first refusal.
    pub(crate) refused: Duration,
    /// The same, counted from before the provider was asked to turn the key off.
    pub(crate) refused_since_asked: Duration,
    /// The time to the last plaintext.
    pub(crate) last_plaintext: Duration,
    /// The number of plaintexts that came after the bound.
    pub(crate) late: u64,
    /// The time to the first plaintext, counted from when the provider has answered that the key is
    /// on again.
    pub(crate) recovered: Duration,
    /// The decrypts in a second, before the outage.
    pub(crate) rate: f64,
}

/// Runs a trial, once the server is steady and the machine is free. Returns when the server answers
/// with a plaintext again.
///
/// # Errors
/// A client got a wrong answer, or an expected answer did not come in time.
pub(crate) async fn run(
    injector: &Injector,
    (load, writer): (&Load, &Writer),
    (bound, random): (Duration, &mut Random),
    machine: &Machine,
) -> Result<Trial, String> {
    let observations = &load.observations;
    observations.wait_until_steady().await?;
    let alone = machine.lock().await;
    writer.set_new_records(false);
    observations.set_full_load(true);
    let (began, plaintexts) = (Instant::now(), observations.plaintexts());
    observations.wait_until_steady().await?;
    sleep(random.below(PROBE_INTERVAL)).await;
    let rate = (observations.plaintexts() - plaintexts) as f64 / began.elapsed().as_secs_f64();
    observations.no_error()?;

    observations.reset_firsts();
    let asked = Instant::now();
    injector.begin().await;
    let off = Instant::now();
    observations.count_late_after(off + bound);
    sleep_until(off + bound + PAST_THE_BOUND).await;
    let refused = observations.first_refusal().await;
    let (late, last_plaintext) = (observations.stop_counting_late(), observations.last_plaintext());

    observations.set_full_load(false);
    drop(alone);
    writer.set_new_records(true);
    observations.reset_firsts();
    injector.end().await;
    let on = Instant::now();
    let (refused, back) = (refused?, observations.first_plaintext().await?);
    observations.no_error()?;
    Ok(Trial {
        refused: refused.saturating_duration_since(off),
        refused_since_asked: refused - asked,
        last_plaintext: last_plaintext.saturating_duration_since(off),
        late,
        recovered: back.saturating_duration_since(on),
        rate,
    })
}
