//! The measurements of one provider and one outage: a server, its load, the trials, and the check
//! of its records and log.

use std::sync::Arc;
use std::time::Duration;

use byok::kms::Kms;
use sqlx::PgPool;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::arguments::Arguments;
use crate::integrity::{self, Integrity};
use crate::load::Load;
use crate::outage::{Injector, Outage};
use crate::random::Random;
use crate::support::calls::{made, unwraps};
use crate::support::provider::Provided;
use crate::support::server::TestServer;
use crate::support::{needed, postgres};
use crate::trial::{self, Trial};
use crate::writer::Writer;

pub(crate) const PROVIDERS: [&str; 4] = ["aws-kms", "gcp-kms", "vault-transit", "azure-key-vault"];

/// The default of `BYOK_KEY_PROBE_SECONDS`.
pub(crate) const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// The default of `BYOK_KEY_PROBE_TIMEOUT_MS`.
const PROBE_DEADLINE: Duration = Duration::from_millis(2_000);
/// The time that byok itself may take, beside the probe and the round trip.
const OWN_TIME: Duration = Duration::from_millis(100);

/// The lock on the processors: one server at a time is measured at full load.
pub(crate) type Machine = Mutex<()>;

pub(crate) struct Outcome {
    pub(crate) provider: &'static str,
    pub(crate) outage: Outage,
    pub(crate) bound: Duration,
    pub(crate) trials: Vec<Trial>,
    /// The calls that the server refused because it was overloaded.
    pub(crate) shed: u64,
    pub(crate) integrity: Integrity,
}

impl Outcome {
    /// Whether no plaintext was late and no record or entry is lost or doubled.
    pub(crate) fn passed(&self) -> bool {
        self.integrity.is_whole() && self.trials.iter().all(|trial| trial.late == 0)
    }
}

/// The outcome, or none if the provider has no such switch.
///
/// # Errors
/// A trial failed; the message says which, and how.
pub(crate) async fn measure(
    provider: &'static str,
    (outage, trials): (Outage, usize),
    arguments: &Arguments,
    machine: &Machine,
) -> Result<Option<Outcome>, String> {
    let Some(injector) = Injector::on(provided(provider).await, outage).await else { return Ok(None) };
    let mut environment = injector.provided.environment();
    environment.push(("BYOK_LOG", "error,byok::cli::serve=info"));
    environment.extend(arguments.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let server = Arc::new(TestServer::with(&environment).await);
    let load = Load::start(&server).await;
    let writer = Writer::start(&server);
    let bound = PROBE_INTERVAL + PROBE_DEADLINE + round_trip(&injector, &load, machine).await + OWN_TIME;
    let mut random = Random::of(arguments.seed, [provider, outage.name()]);
    let database = server.database().await;
    let mut done = Vec::new();
    for number in 1..=trials {
        forget_outages(&database).await;
        let trial = trial::run(&injector, (&load, &writer), (bound, &mut random), machine).await;
        let trial = trial.map_err(|problem| format!("trial {number}: {problem}"))?;
        eprintln!(
            "{provider}, {}, {number} of {trials}: refused after {:.0} ms, back after {:.0} ms",
            outage.name(),
            trial.refused.as_secs_f64() * 1e3,
            trial.recovered.as_secs_f64() * 1e3
        );
        done.push(trial);
    }
    database.close().await;
    let observations = load.observations.clone();
    observations.wait_until_steady().await?;
    load.stop().await;
    let integrity = integrity::check(&server, &writer.stop().await, observations.plaintexts()).await;
    let (_, database) = server.database_url.rsplit_once('/').expect("a URL with a database");
    let drop_it = format!("DROP DATABASE {database} WITH (FORCE)");
    // A full run writes millions of entries.
    drop(server);
    postgres::execute(&needed("DATABASE_URL"), &drop_it).await;
    Ok(Some(Outcome { provider, outage, bound, trials: done, shed: observations.shed(), integrity }))
}

/// Moves the earlier outages so far back that they no longer count. After several outages the
/// server waits longer before it uses a key again, and all trials must begin alike. A probe in
/// progress finds its row changed, and starts over.
async fn forget_outages(database: &PgPool) {
    let long_ago =
        "UPDATE np_byok_proofs SET since = since - interval '1 day', falls = 0, revision = revision + 1";
    sqlx::query(long_ago).execute(database).await.expect("the proofs' rows");
}

async fn provided(name: &str) -> Provided {
    match name {
        "aws-kms" => Provided::aws().await,
        "gcp-kms" => Provided::gcp().await,
        "vault-transit" => Provided::vault().await,
        "azure-key-vault" => Provided::azure().await,
        other => unreachable!("{other} is none of PROVIDERS"),
    }
}

/// The median time of some unwraps at the provider, at full load.
async fn round_trip(injector: &Injector, load: &Load, machine: &Machine) -> Duration {
    const CALLS: usize = 21;
    let kms: Arc<dyn Kms> = injector.provided.kms();
    let wrapped = made(&*kms).await;
    let _alone = machine.lock().await;
    load.observations.set_full_load(true);
    let mut times = Vec::new();
    for _ in 0..CALLS {
        let began = Instant::now();
        assert_eq!(unwraps(&*kms, &wrapped).await, None);
        times.push(began.elapsed());
    }
    load.observations.set_full_load(false);
    times.sort_unstable();
    times[CALLS / 2]
}
