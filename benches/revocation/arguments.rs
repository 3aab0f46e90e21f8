//! What is asked for on the command line.

use crate::cause::Cause;
use crate::measure::PROVIDERS;

/// How many trials a full run has of the key disabled; of everything else a tenth.
const TRIALS: usize = 100;
const QUICK: usize = 2;

pub(crate) struct Arguments {
    pub(crate) json: bool,
    pub(crate) seed: u64,
    pub(crate) providers: Vec<&'static str>,
    /// Settings of the server that go before its defaults.
    pub(crate) settings: Vec<(String, String)>,
    trials: usize,
    /// The only one; otherwise the key disabled.
    only: Option<Cause>,
    all: bool,
}

impl Arguments {
    /// # Errors
    /// What is wrong with them.
    pub(crate) fn read(words: &[String]) -> Result<Self, String> {
        let mut arguments = Self {
            json: false,
            // Of a length that is typed again without an error.
            seed: u32::from_be_bytes(byok::crypto::random()).into(),
            providers: PROVIDERS.to_vec(),
            settings: Vec::new(),
            trials: TRIALS,
            only: None,
            all: false,
        };
        let mut words = words.iter().map(String::as_str);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} takes a value"));
            match word {
                "--json" => arguments.json = true,
                "--all" => arguments.all = true,
                "--quick" => arguments.trials = QUICK,
                "--trials" => arguments.trials = number::<usize>(value()?)?.max(1),
                "--seed" => arguments.seed = number(value()?)?,
                "--set" => {
                    let (name, value) = value()?.split_once('=').ok_or("--set takes NAME=VALUE")?;
                    arguments.settings.push((name.to_owned(), value.to_owned()));
                }
                "--provider" => {
                    let name = value()?;
                    arguments.providers = PROVIDERS.into_iter().filter(|one| *one == name).collect();
                    if arguments.providers.is_empty() {
                        return Err(format!("`{name}` is none of {}", PROVIDERS.join(", ")));
                    }
                }
                "--switch" => {
                    let name = value()?;
                    let names = Cause::ALL.map(Cause::name).join(", ");
                    let cause = Cause::ALL.into_iter().find(|cause| cause.name() == name);
                    arguments.only = Some(cause.ok_or(format!("`{name}` is none of {names}"))?);
                }
                _ => {
                    return Err(format!(
                        "`{word}` is none of --all, --json, --provider NAME, --quick, --seed N, --set NAME=VALUE, --switch NAME, --trials N"
                    ));
                }
            }
        }
        Ok(arguments)
    }

    /// What is tried, and how often.
    pub(crate) fn causes(&self) -> Vec<(Cause, usize)> {
        let headline = (self.only.unwrap_or(Cause::HEADLINE), self.trials);
        let others = Cause::ALL.into_iter().filter(|cause| *cause != headline.0);
        let fewer = if self.trials == QUICK { QUICK } else { self.trials.div_ceil(10) };
        let others = others.map(|cause| (cause, fewer));
        std::iter::once(headline).chain(others.filter(|_| self.all)).collect()
    }
}

fn number<N: std::str::FromStr>(word: &str) -> Result<N, String> {
    word.parse().map_err(|_| format!("`{word}` is not a number"))
}
