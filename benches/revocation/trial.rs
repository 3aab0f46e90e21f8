//! One trial: off, until past the bound, and on again.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use crate::cause::Hand;
use crate::load::Load;
use crate::measure::{Machine, PROBE_INTERVAL};
use crate::random::Random;
use crate::writer::Writer;

/// How long the key stays off after the bound, so that a plaintext after it would be seen.
const PAST_THE_BOUND: Duration = Duration::from_millis(200);

/// What came of it. Times from when the provider had answered that the key is off; none where it came before.
pub(crate) struct Trial {
    /// To the first refusal.
    pub(crate) refused: Duration,
    /// The same, from before the provider was asked.
    pub(crate) refused_since_asked: Duration,
    /// To the last plaintext.
    pub(crate) last_plaintext: Duration,
    /// How many plaintexts came after the bound.
    pub(crate) late: u64,
    /// From when the provider had answered that the key is on again, to the first plaintext.
    pub(crate) recovered: Duration,
    /// Decrypts in a second, before.
    pub(crate) rate: f64,
}

/// Begins once the server is well and the machine is free; ends with the server coming back.
///
/// # Errors
/// Something came that should never come, or did not come.
pub(crate) async fn one(
    hand: &Hand,
    (load, writer): (&Load, &Writer),
    (bound, random): (Duration, &mut Random),
    machine: &Machine,
) -> Result<Trial, String> {
    let seen = &load.seen;
    seen.well().await?;
    let alone = machine.lock().await;
    writer.fresh(false);
    seen.full(true);
    let (began, plaintexts) = (Instant::now(), seen.plaintexts());
    seen.well().await?;
    sleep(random.below(PROBE_INTERVAL)).await;
    let rate = (seen.plaintexts() - plaintexts) as f64 / began.elapsed().as_secs_f64();
    seen.sound()?;

    seen.forget();
    let asked = Instant::now();
    hand.off().await;
    let off = Instant::now();
    seen.count_after(off + bound);
    sleep_until(off + bound + PAST_THE_BOUND).await;
    let refused = seen.first_refusal().await;
    let (late, last_plaintext) = (seen.late(), seen.last_plaintext());

    seen.full(false);
    drop(alone);
    writer.fresh(true);
    seen.forget();
    hand.back().await;
    let on = Instant::now();
    let (refused, back) = (refused?, seen.first_plaintext().await?);
    seen.sound()?;
    Ok(Trial {
        refused: refused.saturating_duration_since(off),
        refused_since_asked: refused - asked,
        last_plaintext: last_plaintext.saturating_duration_since(off),
        late,
        recovered: back.saturating_duration_since(on),
        rate,
    })
}
