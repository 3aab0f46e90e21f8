//! One provider and one cause: a server, its load, its trials, and its books at the end.

use std::sync::Arc;
use std::time::Duration;

use byok::kms::Kms;
use sqlx::PgPool;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::arguments::Arguments;
use crate::books::{self, Books};
use crate::cause::{Cause, Hand};
use crate::load::Load;
use crate::random::Random;
use crate::support::calls::{made, unwraps};
use crate::support::provider::Provided;
use crate::support::server::TestServer;
use crate::support::{needed, postgres};
use crate::trial::{self, Trial};
use crate::writer::Writer;

pub(crate) const PROVIDERS: [&str; 4] = ["aws-kms", "gcp-kms", "vault-transit", "azure-key-vault"];

/// What `BYOK_KEY_PROBE_SECONDS` and `BYOK_KEY_PROBE_TIMEOUT_MS` are where nobody sets them.
pub(crate) const PROBE_INTERVAL: Duration = Duration::from_secs(1);
const PROBE_DEADLINE: Duration = Duration::from_millis(2_000);
/// What we allow ourselves beside probe and round trip.
const OURS: Duration = Duration::from_millis(100);

/// Whose turn it is to have the processors.
pub(crate) type Machine = Mutex<()>;

pub(crate) struct Outcome {
    pub(crate) provider: &'static str,
    pub(crate) cause: Cause,
    pub(crate) bound: Duration,
    pub(crate) trials: Vec<Trial>,
    /// Calls that the server had no room for.
    pub(crate) shed: u64,
    pub(crate) books: Books,
}

impl Outcome {
    /// Whether what we promise held.
    pub(crate) fn kept(&self) -> bool {
        self.books.balance() && self.trials.iter().all(|trial| trial.late == 0)
    }
}

/// None where the provider has no such switch.
///
/// # Errors
/// What went wrong with a trial, and which.
pub(crate) async fn measure(
    provider: &'static str,
    (cause, trials): (Cause, usize),
    arguments: &Arguments,
    machine: &Machine,
) -> Result<Option<Outcome>, String> {
    let Some(hand) = Hand::on(provided(provider).await, cause).await else { return Ok(None) };
    let mut environment = hand.provided.environment();
    environment.push(("BYOK_LOG", "error,byok::cli::serve=info"));
    environment.extend(arguments.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let server = Arc::new(TestServer::with(&environment).await);
    let load = Load::start(&server).await;
    let writer = Writer::start(&server);
    let bound = PROBE_INTERVAL + PROBE_DEADLINE + round_trip(&hand, &load, machine).await + OURS;
    let mut random = Random::of(arguments.seed, [provider, cause.name()]);
    let database = server.database().await;
    let mut done = Vec::new();
    for number in 1..=trials {
        calm(&database).await;
        let trial = trial::one(&hand, (&load, &writer), (bound, &mut random), machine).await;
        let trial = trial.map_err(|problem| format!("trial {number}: {problem}"))?;
        eprintln!(
            "{provider}, {}, {number} of {trials}: refused after {:.0} ms, back after {:.0} ms",
            cause.name(),
            trial.refused.as_secs_f64() * 1e3,
            trial.recovered.as_secs_f64() * 1e3
        );
        done.push(trial);
    }
    database.close().await;
    load.seen.well().await?;
    let answered = load.seen.clone();
    load.stop().await;
    let books = books::close(&server, &writer.stop().await, answered.plaintexts()).await;
    let (_, database) = server.database_url.rsplit_once('/').expect("a URL with a database");
    let drop_it = format!("DROP DATABASE {database} WITH (FORCE)");
    // A full run writes millions of entries.
    drop(server);
    postgres::execute(&needed("DATABASE_URL"), &drop_it).await;
    Ok(Some(Outcome { provider, cause, bound, trials: done, shed: answered.shed(), books }))
}

/// Lets the trial before lie so long back that it is forgotten: a key that falls again and again is waited for longer each
/// time, and a trial is to find what the first one found. A probe under way finds its row written, and begins anew.
async fn calm(database: &PgPool) {
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

/// The median of some unwraps at the provider, at full load.
async fn round_trip(hand: &Hand, load: &Load, machine: &Machine) -> Duration {
    const CALLS: usize = 21;
    let kms: Arc<dyn Kms> = hand.provided.kms();
    let wrapped = made(&*kms).await;
    let _alone = machine.lock().await;
    load.seen.full(true);
    let mut times = Vec::new();
    for _ in 0..CALLS {
        let began = Instant::now();
        assert_eq!(unwraps(&*kms, &wrapped).await, None);
        times.push(began.elapsed());
    }
    load.seen.full(false);
    times.sort_unstable();
    times[CALLS / 2]
}
