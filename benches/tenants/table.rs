//! What came out.

use serde_json::{Value, json};

use crate::house::NEIGHBOURS;
use crate::offered::Offered;
use crate::pair::{OF_A_NEIGHBOUR, Pair};

/// The largest ratio of medians that is aimed at.
const AIM: f64 = 1.1;

pub(crate) struct Report {
    /// Calls a second of the measured tenant.
    pub(crate) rate: f64,
    pub(crate) pairs: Vec<Pair>,
}

impl Report {
    pub(crate) fn print(&self) {
        println!(
            "a tenant's hot decrypts, {:.0} a second, each begun when it is due; alone, and beside three tenants in trouble \
             with {OF_A_NEIGHBOUR} calls a second each: ms from when a call was due to its answer\n",
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
        for name in NEIGHBOURS {
            let [calls, refused] = self.of_neighbour(name);
            println!("| {name} | {calls} | {refused} |");
        }
        println!("\nneighbour_p50_ratio {:.2}, aim {AIM}", self.ratio(0.50));
        println!("neighbour_p99_ratio {:.2}", self.ratio(0.99));
    }

    pub(crate) fn json(&self) -> Value {
        let offered = |offered: &Offered| {
            json!({
                "p50_ms": offered.percentile_ms(0.50),
                "p99_ms": offered.percentile_ms(0.99),
                "calls": offered.calls(),
                "refused": offered.refused,
            })
        };
        let pair = |pair: &Pair| {
            json!({
                "alone": offered(&pair.alone),
                "beside": offered(&pair.beside),
                "p50_ratio": pair.ratio(0.50),
                "p99_ratio": pair.ratio(0.99),
            })
        };
        let neighbour = |name: &'static str| {
            let [calls, refused] = self.of_neighbour(name);
            (name.to_owned(), json!({ "calls": calls, "refused": refused }))
        };
        json!({
            "neighbour_p50_ratio": self.ratio(0.50),
            "neighbour_p99_ratio": self.ratio(0.99),
            "refused": self.refused(),
            "calls_per_s": self.rate.round(),
            "neighbour_calls_per_s": OF_A_NEIGHBOUR,
            "pairs": self.pairs.iter().map(pair).collect::<Vec<_>>(),
            "neighbours": Value::Object(NEIGHBOURS.into_iter().map(neighbour).collect()),
        })
    }

    /// # Errors
    /// The measured tenant was refused, or the others were not in trouble.
    pub(crate) fn verdict(&self) -> Result<(), String> {
        if self.refused() > 0 {
            return Err(format!("{} calls of the measured tenant were refused", self.refused()));
        }
        match ["hung", "damaged"].into_iter().find(|name| self.of_neighbour(name)[1] == 0) {
            Some(name) => Err(format!("the tenant `{name}` was never refused: it was in no trouble")),
            None => Ok(()),
        }
    }

    fn refused(&self) -> usize {
        self.pairs.iter().map(Pair::refused).sum()
    }

    /// The median over the pairs.
    fn ratio(&self, part: f64) -> f64 {
        let mut ratios: Vec<f64> = self.pairs.iter().map(|pair| pair.ratio(part)).collect();
        ratios.sort_by(f64::total_cmp);
        ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// Calls and refused calls of one neighbour in all pairs.
    fn of_neighbour(&self, name: &str) -> [usize; 2] {
        let of_pairs = self.pairs.iter().flat_map(|pair| &pair.neighbours).filter(|(of, _)| *of == name);
        of_pairs.fold([0, 0], |[calls, refused], (_, one)| [calls + one.calls(), refused + one.refused])
    }
}
