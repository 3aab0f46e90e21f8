//! The report: a table, and a JSON object.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::open_loop::Answers;
use crate::pair::{NEIGHBOUR_RATE, Pair};

/// The ratio of the medians that is aimed at.
const AIM: f64 = 1.1;

pub(crate) struct Report {
    /// The calls per second of the measured tenant.
    pub(crate) rate: f64,
    pub(crate) pairs: Vec<Pair>,
    pub(crate) neighbours: Vec<&'static str>,
}

impl Report {
    pub(crate) fn print(&self) {
        println!(
            "latency of one tenant's hot decrypts in ms, open loop of {:.0} calls/s; alone, and beside tenants with \
             faults and {NEIGHBOUR_RATE} calls/s each\n",
            self.rate
        );
        println!(
            "| pair | p50 alone | p50 beside | ratio | p99 alone | p99 beside | ratio | calls | refused |"
        );
        println!("|---|---|---|---|---|---|---|---|---|");
        for (number, pair) in (1..).zip(&self.pairs) {
            let Pair { alone, beside, .. } = pair;
            println!(
                "| {number} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {} | {} |",
                alone.percentile_ms(0.50),
                beside.percentile_ms(0.50),
                pair.ratio(0.50),
                alone.percentile_ms(0.99),
                beside.percentile_ms(0.99),
                pair.ratio(0.99),
                alone.calls() + beside.calls(),
                pair.refused()
            );
        }
        println!("\n| neighbour | calls | refused |\n|---|---|---|");
        for name in &self.neighbours {
            let calls: usize = self.of_neighbour(name).map(Answers::calls).sum();
            let refused: Vec<_> = self.refusals(name).iter().map(|(code, n)| format!("{n} {code}")).collect();
            println!("| {name} | {calls} | {} |", refused.join(", "));
        }
        println!("\nneighbour_p50_ratio {:.2}, aim {AIM}", self.ratio(0.50));
        println!("neighbour_p99_ratio {:.2}", self.ratio(0.99));
    }

    pub(crate) fn json(&self) -> Value {
        let answers = |answers: &Answers| {
            json!({
                "p50_ms": answers.percentile_ms(0.50),
                "p99_ms": answers.percentile_ms(0.99),
                "calls": answers.calls(),
                "refused": answers.refusals,
            })
        };
        let pair = |pair: &Pair| {
            json!({
                "alone": answers(&pair.alone),
                "beside": answers(&pair.beside),
                "p50_ratio": pair.ratio(0.50),
                "p99_ratio": pair.ratio(0.99),
            })
        };
        let neighbour = |name: &&'static str| {
            let calls: usize = self.of_neighbour(name).map(Answers::calls).sum();
            ((*name).to_owned(), json!({ "calls": calls, "refused": self.refusals(name) }))
        };
        json!({
            "neighbour_p50_ratio": self.ratio(0.50),
            "neighbour_p99_ratio": self.ratio(0.99),
            "refused": self.refused(),
            "calls_per_s": self.rate.round(),
            "neighbour_calls_per_s": NEIGHBOUR_RATE,
            "pairs": self.pairs.iter().map(pair).collect::<Vec<_>>(),
            "neighbours": Value::Object(self.neighbours.iter().map(neighbour).collect()),
        })
    }

    /// # Errors
    /// A call of the measured tenant was refused, or a neighbour's fault had no effect.
    pub(crate) fn verdict(&self) -> Result<(), String> {
        if self.refused() > 0 {
            let codes = self.pairs.iter().flat_map(|pair| [&pair.alone.refusals, &pair.beside.refusals]);
            let codes: Vec<_> = codes.filter(|codes| !codes.is_empty()).collect();
            return Err(format!("calls of the measured tenant were refused: {codes:?}"));
        }
        // A rotation refuses no calls.
        let mut refused = self.neighbours.iter().filter(|name| **name != "rotating");
        match refused.find(|name| self.refusals(name).is_empty()) {
            Some(name) => Err(format!("no call of the tenant `{name}` was refused: its fault had no effect")),
            None => Ok(()),
        }
    }

    fn refused(&self) -> usize {
        self.pairs.iter().map(Pair::refused).sum()
    }

    /// The median over the pairs.
    fn ratio(&self, share: f64) -> f64 {
        let mut ratios: Vec<f64> = self.pairs.iter().map(|pair| pair.ratio(share)).collect();
        ratios.sort_by(f64::total_cmp);
        ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// The answers to one neighbour in each pair.
    fn of_neighbour(&self, name: &str) -> impl Iterator<Item = &Answers> {
        let of_pairs = self.pairs.iter().flat_map(|pair| &pair.neighbours);
        of_pairs.filter(move |(of, _)| *of == name).map(|(_, answers)| answers)
    }

    /// The number of refused calls of one neighbour in all pairs, by error code.
    fn refusals(&self, name: &str) -> BTreeMap<&'static str, usize> {
        let mut refusals = BTreeMap::new();
        for (code, count) in self.of_neighbour(name).flat_map(|answers| &answers.refusals) {
            *refusals.entry(*code).or_default() += count;
        }
        refusals
    }
}
