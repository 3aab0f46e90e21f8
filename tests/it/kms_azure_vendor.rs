//! The stand-in for Azure is checked with Microsoft's own clients, azure-keyvault-keys and
//! azure-identity for Python: every operation succeeds, and every refusal raises the class that
//! they document.

use crate::support::needed;

#[tokio::test]
async fn microsofts_own_clients_find_in_the_stand_in_what_they_document() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers/azure/vendor_check.py");
    let output =
        tokio::process::Command::new(needed("BYOK_TEST_PYTHON")).arg(script).output().await.expect("it runs");
    let report = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && report.contains("checks held"), "{report}\n{stderr}");
}
