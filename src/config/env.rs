//! The environment as a value, and a reader that collects all errors instead of stopping at the
//! first.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::files::{Files, read_file, read_text};
use crate::crypto::SecretText;

/// Environment variables, of the process or of a test. A variable that is set to the empty string
/// counts as not set.
#[derive(Clone, Default)]
pub struct Env {
    values: BTreeMap<String, String>,
    /// The names of the variables whose values are not UTF-8.
    unreadable: BTreeSet<String>,
}

impl Env {
    /// Returns the process's environment.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
    pub fn of_process() -> Self {
        Self::of_os(std::env::vars_os())
    }

    fn of_os(pairs: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let mut env = Self::default();
        for (name, value) in pairs {
            match (name.into_string(), value.into_string()) {
                (Ok(name), Ok(value)) => drop(env.values.insert(name, value)),
                (Ok(name), Err(_)) => drop(env.unreadable.insert(name)),
                // The name is not UTF-8, so it is none of byok's.
                (Err(_), _) => {}
            }
        }
        env
    }

    /// Makes an environment from names and values.
    pub fn from_pairs<K: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        let values = pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        Self { values, unreadable: BTreeSet::new() }
    }

    /// Returns the same environment with one variable set.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.values.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Returns the names of all variables that are set and not empty.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        let set = self.values.iter().filter(|(_, value)| !value.is_empty()).map(|(name, _)| name);
        set.chain(&self.unreadable).map(String::as_str)
    }

    /// Returns whether the variable or its `_FILE` variant is set.
    pub fn is_set(&self, name: &str) -> bool {
        let is_set = |name: &str| self.get(name).is_some() || self.unreadable.contains(name);
        is_set(name) || is_set(&format!("{name}_FILE"))
    }

    /// Returns the value of a variable that is set and not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }
}

/// A variable that is missing or wrong. It contains the variable's name and the values that it
/// accepts, never a secret's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The variable, or the file that it names.
    pub variable: String,
    /// What is wrong, and which values the variable accepts.
    pub problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.variable, self.problem)
    }
}

/// Reads variables and collects the errors.
pub struct Reader<'a> {
    env: &'a Env,
    errors: Vec<ConfigError>,
    /// The variables that were requested and are not UTF-8. Each counts as one error, however
    /// often it is requested.
    unreadable: BTreeSet<String>,
    files: Files,
}

impl<'a> Reader<'a> {
    /// Makes a reader of this environment.
    pub fn new(env: &'a Env) -> Self {
        Self { env, errors: Vec::new(), unreadable: BTreeSet::new(), files: Files::default() }
    }

    /// Takes the files that were read so far, so that they can be checked again later.
    pub fn take_files(&mut self) -> Files {
        std::mem::take(&mut self.files)
    }

    /// Records that a variable's file is read again at each use, so that it is not checked for
    /// changes.
    pub fn read_at_each_use(&mut self, variable: &str) {
        self.files.forget(variable);
    }

    /// Returns the value of a variable that is set and not empty. Records an error if it is not
    /// UTF-8.
    fn value(&mut self, name: &str) -> Option<&'a str> {
        if self.env.unreadable.contains(name) && self.unreadable.insert(name.to_owned()) {
            self.error(name, "is not UTF-8");
        }
        self.env.get(name)
    }

    /// Returns the errors, in the order of reading.
    pub fn into_errors(self) -> Vec<ConfigError> {
        self.errors
    }

    /// Returns the number of errors so far.
    pub fn error_count(&self) -> usize {
        self.errors.len()
    }

    /// Returns whether the variable or its `_FILE` variant is set.
    pub fn is_set(&self, name: &str) -> bool {
        self.env.is_set(name)
    }

    /// Records an error.
    pub fn error(&mut self, variable: &str, problem: impl Into<String>) {
        self.errors.push(ConfigError { variable: variable.to_owned(), problem: problem.into() });
    }

    /// Reads an optional text.
    pub fn text(&mut self, name: &str) -> Option<String> {
        self.value(name).map(str::to_owned)
    }

    /// Reads a required text. If it is missing, records an error and returns the empty string.
    pub fn required(&mut self, name: &str, what: &str) -> String {
        let text = self.text(name);
        if text.is_none() && !self.unreadable.contains(name) {
            self.error(name, format!("is not set; it takes {what}"));
        }
        text.unwrap_or_default()
    }

    /// Reads a secret from `NAME` or from the file that `NAME_FILE` names (one trailing line break
    /// is cut). Records an error if both are set.
    pub fn secret(&mut self, name: &str) -> Option<SecretText> {
        let file_variable = format!("{name}_FILE");
        let path = self.value(&file_variable);
        match (self.value(name), path) {
            (Some(_), Some(_)) => {
                self.error(name, format!("is set together with {file_variable}; keep only one of them"));
                None
            }
            (Some(value), None) => Some(SecretText::new(value.to_owned())),
            (None, Some(path)) => match read_text(Path::new(path)) {
                Ok(text) => {
                    self.files.note(&file_variable, Path::new(path), text.as_bytes());
                    let trimmed = text.strip_suffix('\n').unwrap_or(&text);
                    let trimmed = trimmed.strip_suffix('\r').unwrap_or(trimmed);
                    if trimmed.is_empty() {
                        self.error(&file_variable, "names a file that is empty");
                        return None;
                    }
                    Some(SecretText::new(trimmed.to_owned()))
                }
                Err(problem) => {
                    self.error(&file_variable, problem.to_string());
                    None
                }
            },
            (None, None) => None,
        }
    }

    /// Reads the path of a file that must be readable if the variable is set. The file counts as
    /// read once, unless [`Self::read_at_each_use`] is called.
    pub fn file(&mut self, name: &str) -> Option<PathBuf> {
        let path = PathBuf::from(self.value(name)?);
        match read_file(&path) {
            Ok(bytes) => self.files.note(name, &path, &bytes),
            Err(problem) => self.error(name, problem.to_string()),
        }
        Some(path)
    }

    /// Reads a file that must be readable text if the variable is set. Returns its path and its
    /// content.
    pub fn text_file(&mut self, name: &str) -> Option<(PathBuf, String)> {
        let path = PathBuf::from(self.value(name)?);
        match read_text(&path) {
            Ok(text) => {
                self.files.note(name, &path, text.as_bytes());
                Some((path, text.to_string()))
            }
            Err(problem) => {
                self.error(name, problem.to_string());
                None
            }
        }
    }

    /// Reads a number within bounds.
    pub fn number<T: FromStr + PartialOrd + fmt::Display + Copy>(
        &mut self,
        name: &str,
        default: T,
        bounds: RangeInclusive<T>,
    ) -> T {
        let Some(text) = self.value(name) else { return default };
        match text.trim().parse() {
            Ok(value) if bounds.contains(&value) => value,
            _ => {
                self.error(name, format!("is not a number from {} to {}", bounds.start(), bounds.end()));
                default
            }
        }
    }

    /// Reads `true` or `false`.
    pub fn flag(&mut self, name: &str, default: bool) -> bool {
        match self.value(name) {
            None => default,
            Some("true" | "1") => true,
            Some("false" | "0") => false,
            Some(_) => {
                self.error(name, "is neither `true` nor `false`");
                default
            }
        }
    }

    /// Reads one word of a closed list.
    pub fn choice<T: Copy>(&mut self, name: &str, default: T, words: &[(&str, T)]) -> T {
        let Some(text) = self.value(name) else { return default };
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => *value,
            None => {
                let known: Vec<_> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
                self.error(name, format!("is none of {}", known.join(", ")));
                default
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_is_not_utf8_is_refused_and_not_shown() {
        use std::os::unix::ffi::OsStringExt;
        let value = || OsString::from_vec(b"postgres://u:s3cret\xff@h/d".to_vec());
        let names = ["DATABASE_URL", "AWS_REGION", "BYOK_LOG_FILE", "BYOK_CONSOLE", "OF_SOMEBODY_ELSE"];
        let env = Env::of_os(names.map(|name| (OsString::from(name), value())));
        let mut reader = Reader::new(&env);
        assert!(reader.secret("DATABASE_URL").is_none() && reader.is_set("DATABASE_URL"));
        assert!(reader.required("AWS_REGION", "a region").is_empty());
        assert!(reader.secret("BYOK_LOG").is_none());
        assert!(reader.flag("BYOK_CONSOLE", true) && reader.flag("BYOK_CONSOLE", true));
        let errors: Vec<String> = reader.into_errors().iter().map(ConfigError::to_string).collect();
        let names = ["DATABASE_URL", "AWS_REGION", "BYOK_LOG_FILE", "BYOK_CONSOLE"];
        assert_eq!(errors, names.map(|name| format!("{name}: is not UTF-8")), "each one that is read, once");
    }

    #[test]
    fn a_secret_in_the_place_of_its_file_is_not_shown() {
        let env = Env::from_pairs([("TOKEN_FILE", "s3cret"), ("CA", "s3cret")]);
        let mut reader = Reader::new(&env);
        assert!(reader.secret("TOKEN").is_none() && reader.file("CA").is_some());
        let errors = reader.into_errors();
        assert_eq!(errors.len(), 2);
        assert!(errors.iter().all(|error| !error.to_string().contains("s3cret")), "{errors:?}");
    }

    #[test]
    fn all_errors_are_collected_and_none_shows_a_value() {
        let env = Env::from_pairs([("A", "seven"), ("B", "maybe"), ("C", "s3cret"), ("C_FILE", "/nowhere")]);
        let mut reader = Reader::new(&env);
        reader.number("A", 1_u32, 1..=9);
        reader.flag("B", false);
        assert!(reader.secret("C").is_none());
        reader.required("D", "an address");
        let errors = reader.into_errors();
        assert_eq!(errors.len(), 4);
        assert!(errors.iter().all(|error| !error.to_string().contains("s3cret")));
    }

    #[test]
    fn a_secret_from_a_file_loses_its_trailing_line_break() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "s3cret\n").unwrap();
        let env = Env::from_pairs([("TOKEN_FILE", file.path().to_str().unwrap())]);
        assert_eq!(Reader::new(&env).secret("TOKEN").unwrap().expose(), "s3cret");
    }
}
