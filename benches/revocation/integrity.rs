//! The check after all trials that every acknowledged record and every entry of the audit log
//! exists exactly once.

use serde_json::json;
use sqlx::Row as _;

use crate::support::server::TestServer;
use crate::writer::Written;

/// The items of one request.
const ITEMS: usize = 500;

/// The counts after all trials.
pub(crate) struct Integrity {
    /// The acknowledged encryptions.
    pub(crate) written: usize,
    /// Those of them that do not decrypt to their plaintext, or whose DEK is missing.
    pub(crate) lost: usize,
    /// The records with more than one DEK.
    pub(crate) doubled: i64,
    /// The entries of the audit log.
    pub(crate) entries: i64,
    /// The positions of the log with no entry or several, and the answers without an entry.
    pub(crate) wrong_entries: i64,
}

impl Integrity {
    /// Whether nothing is lost, doubled or wrong.
    pub(crate) fn is_whole(&self) -> bool {
        (self.lost, self.doubled, self.wrong_entries) == (0, 0, 0)
    }
}

/// Counts everything, once no other calls are in progress. `plaintexts` is the number of decrypts
/// that were answered.
pub(crate) async fn check(server: &TestServer, written: &[Written], plaintexts: u64) -> Integrity {
    let database = server.database().await;
    // The heads have the number of entries ever appended; positions begin at 0.
    let log = sqlx::query(
        "SELECT count(*), count(DISTINCT seq), coalesce(max(seq) + 1, 0), (SELECT sum(size)::bigint FROM np_byok_heads), \
         count(*) FILTER (WHERE operation = 'decrypt' AND outcome = 'OK') FROM np_byok_audit",
    );
    let log = log.fetch_one(&database).await.expect("counts");
    let [entries, positions, end, head, decrypts] = [0, 1, 2, 3, 4].map(|column| log.get::<i64, _>(column));
    let difference = |one: i64, other: i64| (one - other).abs();
    let missing = (plaintexts as i64 - decrypts).max(0);
    let wrong_entries =
        difference(entries, positions) + difference(positions, end) + difference(end, head) + missing;
    let mut lost = 0;
    for some in written.chunks(ITEMS) {
        let item =
            |one: &Written| json!({ "ciphertext": one.ciphertext, "context": { "record_id": one.record } });
        let items: Vec<_> = some.iter().map(item).collect();
        let answer = server.post("/byok/decrypt/many", json!({ "items": items })).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let results = answer.body["items"].as_array().expect("items");
        lost +=
            some.iter().zip(results).filter(|(one, result)| result["plaintext"] != *one.plaintext).count();
    }
    let fresh: Vec<_> = written.iter().filter(|one| one.fresh).map(|one| one.record.clone()).collect();
    let found: i64 = sqlx::query_scalar(
        "SELECT count(DISTINCT record_id) FROM np_byok_wrapped_deks WHERE record_id = ANY($1)",
    )
    .bind(&fresh)
    .fetch_one(&database)
    .await
    .expect("a count");
    lost += fresh.len() - usize::try_from(found).expect("a count");
    let doubled = sqlx::query_scalar(
        "SELECT count(*) FROM (SELECT FROM np_byok_wrapped_deks GROUP BY record_id HAVING count(*) > 1) AS doubled",
    );
    let doubled = doubled.fetch_one(&database).await.expect("a count");
    database.close().await;
    Integrity { written: written.len(), lost, doubled, entries, wrong_entries }
}
