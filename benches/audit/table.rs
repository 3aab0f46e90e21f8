//! The report: tables, and a JSON object.

use serde_json::{Value, json};

use crate::appends::Appends;
use crate::long::{Disk, Filled};
use crate::rates::{Rate, Rates, Sample};
use crate::reads::{Read, Reads};

pub(crate) struct Report {
    pub(crate) rates: Rates,
    pub(crate) long: Filled,
    pub(crate) appends: Appends,
    pub(crate) reads: Reads,
    pub(crate) disk: Disk,
}

/// The number of callers that the ratio is taken at.
const AT: usize = 64;

impl Report {
    pub(crate) fn print(&self) {
        println!(
            "durable, and the wait for it, which is all that the log adds to a hot decrypt: medians over the rounds\n"
        );
        println!("| what | at once | a second | p50 ms | p99 ms |");
        println!("|---|---|---|---|---|");
        for rate in self.rates.appended.iter().chain(&self.rates.single).chain(&self.rates.replicas) {
            println!(
                "| {} | {} | {:.0} | {:.2} | {:.2} |",
                rate.name,
                rate.callers,
                median(rate, |sample| sample.per_s),
                median(rate, |sample| sample.p50_ms),
                median(rate, |sample| sample.p99_ms)
            );
        }
        println!("\nentries over single rows, {AT} at once: {:.2}", self.over_single());
        for rate in &self.rates.replicas {
            println!(
                "3 replicas with {} over one with {AT}: {:.2}",
                rate.callers,
                median(rate, |sample| sample.per_s) / median(self.appended(AT), |sample| sample.per_s)
            );
        }
        let Filled { entries, appended_per_s, derived_per_s } = self.long;
        println!(
            "\na log of {entries} entries: {appended_per_s:.0} appended a second, {derived_per_s:.0} derived a second\n"
        );
        println!("| an append of | to 10,000, ms | to {entries}, ms | ratio |");
        println!("|---|---|---|---|");
        for append in &self.appends.commits {
            let ratio = append.long_ms / append.short_ms;
            println!("| {} | {:.3} | {:.3} | {ratio:.2} |", append.entries, append.short_ms, append.long_ms);
        }
        println!("\nhashes of one append to {entries}: {:.2} µs", self.appends.hash_us);
        println!("\n| read | p50 ms | p99 ms | worst ms |\n|---|---|---|---|");
        for Read { name, p50_ms, p99_ms, worst_ms } in self.reads.proofs.iter().chain(&self.reads.pages) {
            println!("| {name} | {p50_ms:.3} | {p99_ms:.3} | {worst_ms:.3} |");
        }
        println!("\nthe whole log verified: {:.0} entries a second", self.reads.verified_per_s);
        println!("\n| on disk | bytes an entry |\n|---|---|");
        for (name, bytes) in &self.disk.parts {
            println!("| {name} | {bytes:.0} |");
        }
        println!("| all | {:.0} |", self.disk.bytes_per_entry());
    }

    pub(crate) fn json(&self) -> Value {
        let rates = |rates: &[Rate]| -> Value {
            let rate = |rate: &Rate| {
                let per_s = median(rate, |sample| sample.per_s).round();
                (
                    rate.callers.to_string(),
                    json!({ "per_s": per_s, "p99_ms": median(rate, |sample| sample.p99_ms) }),
                )
            };
            Value::Object(rates.iter().map(rate).collect())
        };
        let worst = |reads: &[Read]| reads.iter().map(|read| read.p99_ms).fold(0.0, f64::max);
        json!({
            "entries_per_s": median(self.appended(AT), |sample| sample.per_s).round(),
            "over_single_row_commits": self.over_single(),
            "append_10m_over_10k": self.appends.commits.first().map(|append| append.long_ms / append.short_ms),
            "proof_ms_at_10m": worst(&self.reads.proofs),
            "page_ms_at_10m": worst(&self.reads.pages),
            "bytes_per_entry": self.disk.bytes_per_entry().round(),
            "entries": self.long.entries,
            "verified_per_s": self.reads.verified_per_s.round(),
            "replicas": rates(&self.rates.replicas),
            "appended": rates(&self.rates.appended),
            "single": rates(&self.rates.single),
        })
    }

    fn appended(&self, callers: usize) -> &Rate {
        let mut rates = self.rates.appended.iter();
        rates.find(|rate| rate.callers == callers).expect("it is measured")
    }

    fn over_single(&self) -> f64 {
        let mut rates = self.rates.single.iter();
        let single = rates.find(|rate| rate.callers == AT).expect("it is measured");
        median(self.appended(AT), |sample| sample.per_s) / median(single, |sample| sample.per_s)
    }
}

/// The median of a value over the rounds.
fn median(rate: &Rate, value: impl Fn(&Sample) -> f64) -> f64 {
    let mut values: Vec<f64> = rate.rounds.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
