//! Checks the rows of DEKs: whether they are bound to a secret that the database does not hold, and
//! how many are not.

use std::time::Duration;

use super::{Findings, Log};
use crate::audit::{RowMacs, last_sealed};
use crate::config;
use crate::store::DekRow;
use crate::verify::{RowCounts, count_row_seals};

/// The time limit for checking all rows.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn check(
    findings: &mut Findings,
    settings: config::RowMac,
    kms: &config::Kms,
    log: Option<&Log>,
) {
    let Some(keys) = settings.keys else { return without_key(findings, kms, log).await };
    let macs = RowMacs::new(keys);
    let Some(Log { database, tenant }) = log else {
        return findings.ok("rows: bound to BYOK_ROW_MAC_KEY; there are none yet");
    };
    let mut ignored = |_: &DekRow, _| ();
    let counted = count_row_seals(&**database, tenant.uid, &macs, &mut ignored);
    let Ok(Ok(RowCounts { current, previous, unsealed, wrong })) =
        tokio::time::timeout(PATIENCE, counted).await
    else {
        let remedy = "run `byok audit verify` with BYOK_ROW_MAC_KEY set";
        return findings.warn("rows: not all of them could be checked", remedy);
    };
    findings.ok(&format!("rows: {current} are bound to BYOK_ROW_MAC_KEY"));
    if previous > 0 {
        findings.warn(
            &format!("rows: {previous} are bound to BYOK_ROW_MAC_KEY_PREVIOUS"),
            "leave it set until a server has bound them to BYOK_ROW_MAC_KEY, which it does when it starts",
        );
    }
    if settings.required && unsealed > 0 {
        findings.fail(
            &format!("rows: {unsealed} have no MAC, and are refused (DECRYPT_FAILED), as BYOK_ROW_MACS_REQUIRED says"),
            "run `byok audit verify`, and `byok audit reseal` where it is clean",
        );
    } else if unsealed > 0 {
        findings.warn(
            &format!("rows: {unsealed} have no MAC"),
            "a server with the secret seals those that the log confirms, until it has logged that all are sealed; after that they \
             are refused: run `byok audit verify`, and `byok audit reseal` where it is clean",
        );
    }
    if !settings.required
        && previous + unsealed + wrong == 0
        && last_sealed(&**database, tenant.uid).await.is_ok_and(|at| at.is_some())
    {
        findings.warn(
            "rows: all are sealed, but only the database says that a row without a MAC must be refused",
            "set BYOK_ROW_MACS_REQUIRED=true on every replica, once no server of a release without MACs runs beside",
        );
    }
    if wrong > 0 {
        findings.fail(
            &format!("rows: {wrong} have wrong MACs, and are refused (DECRYPT_FAILED)"),
            "they were edited, or another secret has sealed them: run `byok audit verify`. If that secret is lost and the log \
             holds, run `byok audit reseal`",
        );
    }
}

/// Reports that no secret is set. Whether that is a fault depends on the key, and on whether other
/// servers have sealed all rows already.
async fn without_key(findings: &mut Findings, kms: &config::Kms, log: Option<&Log>) {
    let make_one = "set BYOK_ROW_MAC_KEY_FILE on every replica to a file that holds what `openssl rand -base64 32` prints";
    if kms.anybody_wraps() {
        findings.fail(
            "rows: under an RSA key anybody can wrap a DEK, so whoever can write to the database could have records encrypted \
             under a DEK of their own: without BYOK_ROW_MAC_KEY, no new record is encrypted (ROW_MAC_KEY_REQUIRED)",
            make_one,
        );
    } else if all_are_sealed(log).await {
        findings.fail(
            "rows: all rows are sealed, so without BYOK_ROW_MAC_KEY no new record is encrypted (ROW_MAC_KEY_REQUIRED)",
            "set BYOK_ROW_MAC_KEY_FILE to the secret that the rows were sealed with; if it is lost, see `byok audit reseal`",
        );
    } else {
        findings.warn(
            "rows: they get no MACs, so only `byok audit verify` detects a change that was made in the database",
            make_one,
        );
    }
}

/// Returns whether the log says that all rows are sealed. Problems of the database are reported
/// elsewhere.
async fn all_are_sealed(log: Option<&Log>) -> bool {
    let Some(Log { database, tenant }) = log else { return false };
    last_sealed(&**database, tenant.uid).await.is_ok_and(|at| at.is_some())
}
