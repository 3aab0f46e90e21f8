//! The report: a line for each scenario, and the ratios with their aims.

use serde_json::{Map, Value, json};

use crate::generator::Sample;
use crate::scenarios::{
    DECRYPT, DECRYPT_MANY, DECRYPT_REST, ECHO, NO_OP, REVEAL, Target, VAULT, VAULT_BATCH,
};

/// The rounds of a scenario.
pub(crate) struct Measured {
    name: &'static str,
    target: Target,
    pub(crate) rounds: Vec<Sample>,
}

/// A quotient of two scenarios' records per second, and the least that is aimed at.
struct Ratio {
    name: &'static str,
    of: &'static str,
    to: &'static str,
    aim: f64,
}

const RATIOS: [Ratio; 4] = [
    Ratio { name: "rest_over_echo", of: DECRYPT_REST, to: ECHO, aim: 0.3 },
    Ratio { name: "graphql_over_noop", of: DECRYPT, to: NO_OP, aim: 1.0 },
    Ratio { name: "graphql_over_vault", of: DECRYPT, to: VAULT, aim: 2.0 },
    Ratio { name: "many_over_vault_batch", of: DECRYPT_MANY, to: VAULT_BATCH, aim: 0.7 },
];

/// Rates that are reported by themselves.
const RATES: [(&str, &str); 2] = [("many_records_per_s", DECRYPT_MANY), ("reveal_records_per_s", REVEAL)];

/// The line of one scenario: medians over the rounds.
struct Line {
    requests_per_s: f64,
    records_per_s: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// Processor time of the server under test and of PostgreSQL, in microseconds a record.
    cpu_us: f64,
    postgres_us: f64,
    /// The shares of their cores that the server and the generator used, which show the bottleneck.
    server_busy: f64,
    generator_busy: f64,
    resident_mib: f64,
}

impl Measured {
    pub(crate) fn new(name: &'static str, target: Target) -> Self {
        Self { name, target, rounds: Vec::new() }
    }

    /// The scenario's name, marked if the other byok was called.
    fn title(&self) -> String {
        match self.target {
            Target::Against => format!("{}, against", self.name),
            Target::Byok | Target::Echo | Target::NoOp | Target::Vault => self.name.to_owned(),
        }
    }

    fn line(&self) -> Line {
        let of = |value: &dyn Fn(&Sample) -> f64| median(self.rounds.iter().map(value).collect());
        Line {
            requests_per_s: of(&|sample| sample.requests / sample.seconds),
            records_per_s: of(&records_per_s),
            p50_ms: of(&|sample| percentile_ms(sample, 0.50)),
            p99_ms: of(&|sample| percentile_ms(sample, 0.99)),
            cpu_us: of(&|sample| sample.cpu[0] * 1e6 / sample.records),
            postgres_us: of(&|sample| sample.cpu[1] * 1e6 / sample.records),
            server_busy: of(&|sample| sample.cpu[0] / sample.seconds),
            generator_busy: of(&|sample| sample.cpu[2] / sample.seconds),
            resident_mib: of(&|sample| sample.resident_bytes as f64 / f64::from(1 << 20)),
        }
    }
}

/// Prints the table to standard output.
pub(crate) fn print(measured: &[Measured]) {
    println!(
        "{:<32} {:>9} {:>10} {:>8} {:>8} {:>9} {:>9} {:>7} {:>7} {:>8}",
        "", "calls/s", "records/s", "p50 ms", "p99 ms", "cpu µs", "pg µs", "server", "client", "RSS MiB"
    );
    for scenario in measured {
        let line = scenario.line();
        println!(
            "{:<32} {:>9.0} {:>10.0} {:>8.2} {:>8.2} {:>9.2} {:>9.2} {:>6.0}% {:>6.0}% {:>8.0}",
            scenario.title(),
            line.requests_per_s,
            line.records_per_s,
            line.p50_ms,
            line.p99_ms,
            line.cpu_us,
            line.postgres_us,
            line.server_busy * 100.0,
            line.generator_busy * 100.0,
            line.resident_mib,
        );
    }
    println!();
    for ratio in &RATIOS {
        if let Some(value) = ratio.value(measured) {
            let verdict = if value >= ratio.aim { "" } else { "  (missed)" };
            println!("{:<32} {value:>9.2}   aim {:.1}{verdict}", ratio.name, ratio.aim);
        }
    }
    for (name, value) in over_against(measured) {
        println!("{name:<32} {value:>9.3}   over the other");
    }
}

/// The quotient of byok to the other byok, by scenario.
fn over_against(measured: &[Measured]) -> impl Iterator<Item = (&'static str, f64)> {
    let others = measured.iter().filter(|other| other.target == Target::Against);
    others.filter_map(|other| Some((other.name, quotient(named(measured, other.name)?, other))))
}

/// One object with the ratios, the rates and every line.
pub(crate) fn json(measured: &[Measured]) -> Value {
    let mut object = Map::new();
    for ratio in &RATIOS {
        object.insert(ratio.name.to_owned(), json!(ratio.value(measured).map(rounded)));
    }
    for (name, scenario) in RATES {
        let rate = named(measured, scenario).map(|found| rounded(found.line().records_per_s));
        object.insert(name.to_owned(), json!(rate));
    }
    let against: Map<String, Value> =
        over_against(measured).map(|(name, value)| (name.to_owned(), json!(rounded(value)))).collect();
    if !against.is_empty() {
        object.insert("over_against".to_owned(), Value::Object(against));
    }
    let lines = measured.iter().map(|scenario| (scenario.title(), scenario.line().json()));
    object.insert("scenarios".to_owned(), Value::Object(lines.collect()));
    Value::Object(object)
}

impl Line {
    fn json(&self) -> Value {
        json!({
            "requests_per_s": rounded(self.requests_per_s),
            "records_per_s": rounded(self.records_per_s),
            "p50_ms": rounded(self.p50_ms),
            "p99_ms": rounded(self.p99_ms),
            "cpu_us_per_record": rounded(self.cpu_us),
            "postgres_cpu_us_per_record": rounded(self.postgres_us),
            "server_busy": rounded(self.server_busy),
            "generator_busy": rounded(self.generator_busy),
            "resident_mib": rounded(self.resident_mib),
        })
    }
}

impl Ratio {
    fn value(&self, measured: &[Measured]) -> Option<f64> {
        Some(quotient(named(measured, self.of)?, named(measured, self.to)?))
    }
}

/// The median over the rounds: each round's two values come from the same minute.
fn quotient(of: &Measured, to: &Measured) -> f64 {
    let ratios = of.rounds.iter().zip(&to.rounds).map(|(of, to)| records_per_s(of) / records_per_s(to));
    median(ratios.collect())
}

fn named<'a>(measured: &'a [Measured], name: &str) -> Option<&'a Measured> {
    measured.iter().find(|scenario| scenario.name == name && scenario.target != Target::Against)
}

fn records_per_s(sample: &Sample) -> f64 {
    sample.records / sample.seconds
}

fn percentile_ms(sample: &Sample, part: f64) -> f64 {
    let index = (sample.latencies.len() as f64 * part) as usize;
    sample.latencies.get(index).map_or(f64::NAN, |micros| f64::from(*micros) / 1_000.0)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The value with three decimals; more would be noise.
fn rounded(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}
