//! The report: tables, and a JSON object.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::measure::{Outcome, PROVIDERS};
use crate::trial::Trial;

pub(crate) fn print(outcomes: &[Outcome]) {
    println!(
        "milliseconds from when the provider had answered that the key is off to the first refusal, and to the last plaintext;\n\
         and from when it had answered that it is on again to the first plaintext\n"
    );
    println!(
        "| provider | switch | trials | calls/s | p50 | p99 | worst | last plaintext | bound | after it | back p50 | back worst |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
    for outcome in outcomes {
        let Summary { refused, last_plaintext, recovered, late, rate, .. } = Summary::of(&[outcome]);
        println!(
            "| {} | {} | {} | {rate:.0} | {:.0} | {:.0} | {:.0} | {last_plaintext:.0} | {:.0} | {late} | {:.0} | {:.0} |",
            outcome.provider,
            outcome.outage.name(),
            outcome.trials.len(),
            refused.p50,
            refused.p99,
            refused.worst,
            milliseconds(outcome.bound),
            recovered.p50,
            recovered.worst,
        );
    }
    println!();
    for outcome in outcomes {
        let integrity = &outcome.integrity;
        println!(
            "{}, {}: {} encryptions acknowledged, {} lost, {} doubled; {} audit entries, {} wrong; {} calls shed",
            outcome.provider,
            outcome.outage.name(),
            integrity.written,
            integrity.lost,
            integrity.doubled,
            integrity.entries,
            integrity.wrong_entries,
            outcome.shed
        );
    }
}

/// One object with the summary of all outcomes, and of each provider and switch.
pub(crate) fn json(outcomes: &[Outcome], seed: u64) -> Value {
    let providers: Map<String, Value> = PROVIDERS
        .iter()
        .map(|provider| (provider, selected(outcomes, |one| one.provider == *provider)))
        .filter(|(_, outcomes)| !outcomes.is_empty())
        .map(|(provider, outcomes)| {
            let switches: Map<_, _> = outcomes
                .iter()
                .map(|one| (one.outage.name().to_owned(), Summary::of(&[one]).json()))
                .collect();
            let mut value = Summary::of(&outcomes).json();
            value["switches"] = switches.into();
            ((*provider).to_owned(), value)
        })
        .collect();
    let mut value = Summary::of(&selected(outcomes, |_| true)).json();
    value["seed"] = seed.into();
    value["providers"] = providers.into();
    value
}

fn selected(outcomes: &[Outcome], which: impl Fn(&Outcome) -> bool) -> Vec<&Outcome> {
    outcomes.iter().filter(|one| which(one)).collect()
}

/// The summary of all trials of some outcomes; times are in milliseconds.
struct Summary {
    trials: usize,
    refused: Spread,
    refused_since_asked: Spread,
    last_plaintext: f64,
    recovered: Spread,
    /// The shortest bound.
    bound: f64,
    late: u64,
    rate: f64,
    lost: usize,
    doubled: i64,
    wrong_entries: i64,
    shed: u64,
}

struct Spread {
    p50: f64,
    p99: f64,
    worst: f64,
}

impl Summary {
    fn of(outcomes: &[&Outcome]) -> Self {
        let trials: Vec<&Trial> = outcomes.iter().flat_map(|outcome| &outcome.trials).collect();
        let spread = |of: fn(&Trial) -> Duration| {
            Spread::of(trials.iter().map(|trial| milliseconds(of(trial))).collect())
        };
        Self {
            trials: trials.len(),
            refused: spread(|trial| trial.refused),
            refused_since_asked: spread(|trial| trial.refused_since_asked),
            last_plaintext: spread(|trial| trial.last_plaintext).worst,
            recovered: spread(|trial| trial.recovered),
            bound: outcomes.iter().map(|one| milliseconds(one.bound)).fold(f64::INFINITY, f64::min),
            late: trials.iter().map(|trial| trial.late).sum(),
            rate: trials.iter().map(|trial| trial.rate).sum::<f64>() / trials.len() as f64,
            lost: outcomes.iter().map(|one| one.integrity.lost).sum(),
            doubled: outcomes.iter().map(|one| one.integrity.doubled).sum(),
            wrong_entries: outcomes.iter().map(|one| one.integrity.wrong_entries).sum(),
            shed: outcomes.iter().map(|one| one.shed).sum(),
        }
    }

    fn json(&self) -> Value {
        json!({
            "trials": self.trials,
            "p50_ms": tenths(self.refused.p50),
            "p99_ms": tenths(self.refused.p99),
            "worst_ms": tenths(self.refused.worst),
            "worst_since_asked_ms": tenths(self.refused_since_asked.worst),
            "last_plaintext_ms": tenths(self.last_plaintext),
            "bound_ms": tenths(self.bound),
            "plaintexts_after_bound": self.late,
            "recovered_ms": { "p50": tenths(self.recovered.p50), "p99": tenths(self.recovered.p99), "worst": tenths(self.recovered.worst) },
            "calls_per_second": self.rate.round(),
            "lost_records": self.lost,
            "doubled_records": self.doubled,
            "wrong_audit_entries": self.wrong_entries,
            "calls_shed": self.shed,
        })
    }
}

impl Spread {
    /// The percentiles of these times, by nearest rank.
    fn of(mut times: Vec<f64>) -> Self {
        times.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| {
            let rank = (share * times.len() as f64).ceil().max(1.0) as usize;
            times.get(rank - 1).copied().unwrap_or(f64::NAN)
        };
        Self { p50: at(0.50), p99: at(0.99), worst: at(1.0) }
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn tenths(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}
