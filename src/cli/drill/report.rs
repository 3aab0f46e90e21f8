//! The report: canonical JSON (RFC 8785: keys sorted, no white space, integers only), and next to
//! it a file with the Ed25519 signature of its bytes, so that OpenSSL alone can verify it.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value;

use crate::cli::Failure;
use crate::crypto::{Ed25519SigningKey, Ed25519VerifyingKey, SecretText};

/// The format of the report. The number changes if the meaning changes.
pub(super) const FORMAT: &str = "byok-drill/1";

/// The report to verify, and the key to verify it with.
#[derive(Args)]
pub(super) struct Verify {
    /// The report
    report: PathBuf,
    /// The public key, in PEM, that you obtained before the drill; not the one in the report
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The signature. Default: the report's name with `.sig`
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,
}

/// Writes a new file. Fails if it exists already.
pub(super) fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::Running(format!("{}: {error}", path.display()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)
}

/// Reads the signing key in this file.
pub(super) fn signing_key(path: &Path) -> Result<Ed25519SigningKey, Failure> {
    let text = std::fs::read_to_string(path).map(SecretText::new);
    let text = text.map_err(|error| Failure::Running(format!("{}: {error}", path.display())))?;
    Ed25519SigningKey::from_pem(&text)
        .map_err(|_| Failure::Running(format!("{} is not an Ed25519 key in PKCS#8 and PEM", path.display())))
}

/// Returns the path of a report's signature.
pub(super) fn signature_of(report: &Path) -> PathBuf {
    let mut name = report.as_os_str().to_owned();
    name.push(".sig");
    PathBuf::from(name)
}

/// Writes a report and its signature.
pub(super) fn write(path: &Path, report: &Value, key: &Ed25519SigningKey) -> Result<(), Failure> {
    let bytes = canonical(report);
    write_new(path, bytes.as_bytes(), 0o644)?;
    write_new(&signature_of(path), &key.sign(bytes.as_bytes()), 0o644)
}

/// Runs `byok drill verify`.
pub(super) fn verify(arguments: &Verify) -> Result<(), Failure> {
    let failed =
        |path: &Path, error: std::io::Error| Failure::Running(format!("{}: {error}", path.display()));
    let Verify { report, key, signature } = arguments;
    let signature = signature.clone().unwrap_or_else(|| signature_of(report));
    let bytes = std::fs::read(report).map_err(|error| failed(report, error))?;
    let signed = std::fs::read(&signature).map_err(|error| failed(&signature, error))?;
    let pem = std::fs::read_to_string(key).map_err(|error| failed(key, error))?;
    let key = Ed25519VerifyingKey::from_pem(&pem)
        .map_err(|_| Failure::Running(format!("{} is not an Ed25519 public key in PEM", key.display())))?;
    if !key.verifies(&bytes, &signed) {
        let problem = "the signature does not belong to this report and this key";
        return Err(Failure::Running(format!("{}: {problem}", report.display())));
    }
    let read: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    if read["format"] != FORMAT || read["public_key"] != key.to_base64() {
        let problem = "is signed by this key, but is not a report of a drill that names it";
        return Err(Failure::Running(format!("{} {problem}", report.display())));
    }
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    println!(
        "the signature is good: a drill of {} at {}, {}",
        text(&read["key_version"]),
        text(&read["started_at"]),
        text(&read["verdict"])
    );
    Ok(())
}

/// Serializes a value so that the same value always has the same bytes.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut members: Vec<(&String, &Value)> = map.iter().collect();
            members.sort_unstable_by_key(|(name, _)| *name);
            let member = |(name, value): &(&String, &Value)| {
                format!("{}:{}", Value::String((*name).clone()), canonical(value))
            };
            format!("{{{}}}", members.iter().map(member).collect::<Vec<_>>().join(","))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(",")),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_same_report_has_the_same_bytes() {
        let value = json!({ "b": [1, null, { "z": "ü\n", "a": true }], "a": -5 });
        assert_eq!(canonical(&value), r#"{"a":-5,"b":[1,null,{"a":true,"z":"ü\n"}]}"#);
    }

    #[test]
    fn an_existing_file_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.json");
        assert!(write_new(&path, b"one", 0o600).is_ok());
        assert!(write_new(&path, b"two", 0o600).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
    }
}
