//! The command line's arguments.

use crate::measure::PROVIDERS;
use crate::outage::Outage;

/// The trials of a full run with the key disabled. Every other outage has a tenth of them.
const TRIALS: usize = 100;
/// The trials of `--quick`, for every outage.
const QUICK: usize = 2;

pub(crate) struct Arguments {
    pub(crate) json: bool,
    pub(crate) seed: u64,
    pub(crate) providers: Vec<&'static str>,
    /// Settings of the server that replace its defaults.
    pub(crate) settings: Vec<(String, String)>,
    trials: usize,
    /// The outage that has all trials; the key disabled if none is given.
    main: Option<Outage>,
    all: bool,
}

impl Arguments {
    /// # Errors
    /// An argument is unknown or has a bad value.
    pub(crate) fn read(words: &[String]) -> Result<Self, String> {
        let mut arguments = Self {
            json: false,
            // Short enough to be typed again without an error.
            seed: u32::from_be_bytes(byok::crypto::random()).into(),
            providers: PROVIDERS.to_vec(),
            settings: Vec::new(),
            trials: TRIALS,
            main: None,
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
                    let names = Outage::ALL.map(Outage::name).join(", ");
                    let outage = Outage::ALL.into_iter().find(|outage| outage.name() == name);
                    arguments.main = Some(outage.ok_or(format!("`{name}` is none of {names}"))?);
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

    /// The outages to try, with the number of trials of each.
    pub(crate) fn outages(&self) -> Vec<(Outage, usize)> {
        let main = (self.main.unwrap_or(Outage::KEY_DISABLED), self.trials);
        let others = Outage::ALL.into_iter().filter(|outage| *outage != main.0);
        let fewer = if self.trials == QUICK { QUICK } else { self.trials.div_ceil(10) };
        let others = others.map(|outage| (outage, fewer));
        std::iter::once(main).chain(others.filter(|_| self.all)).collect()
    }
}

fn number<N: std::str::FromStr>(word: &str) -> Result<N, String> {
    word.parse().map_err(|_| format!("`{word}` is not a number"))
}
