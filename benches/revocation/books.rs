//! Whether all that was acknowledged is there, once: records, and the entries of the audit log.

use serde_json::json;
use sqlx::Row as _;

use crate::support::server::TestServer;
use crate::writer::Written;

/// In one request.
const MANY: usize = 500;

/// What was counted after all trials.
pub(crate) struct Books {
    /// Acknowledged encryptions.
    pub(crate) written: usize,
    /// Of them those that do not decrypt to what they were, or whose DEK is not there.
    pub(crate) lost: usize,
    /// Records with more than one DEK.
    pub(crate) doubled: i64,
    /// Entries of the audit log.
    pub(crate) entries: i64,
    /// Places in it that nobody or more than one has, and answers without an entry.
    pub(crate) wrong_entries: i64,
}

impl Books {
    pub(crate) fn balance(&self) -> bool {
        (self.lost, self.doubled, self.wrong_entries) == (0, 0, 0)
    }
}

/// Nothing is under way any more but what this asks. So many `plaintexts` were answered before.
pub(crate) async fn close(server: &TestServer, written: &[Written], plaintexts: u64) -> Books {
    let database = server.database().await;
    // The head says how many there have ever been; places are counted from 0.
    let log = sqlx::query(
        "SELECT count(*), count(DISTINCT seq), coalesce(max(seq) + 1, 0), (SELECT sum(size)::bigint FROM np_byok_heads), \
         count(*) FILTER (WHERE operation = 'decrypt' AND outcome = 'OK') FROM np_byok_audit",
    );
    let log = log.fetch_one(&database).await.expect("counts");
    let [entries, places, end, head, decrypts] = [0, 1, 2, 3, 4].map(|column| log.get::<i64, _>(column));
    let apart = |one: i64, other: i64| (one - other).abs();
    let missing = (plaintexts as i64 - decrypts).max(0);
    let wrong_entries = apart(entries, places) + apart(places, end) + apart(end, head) + missing;
    let mut lost = 0;
    for some in written.chunks(MANY) {
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
    let there: i64 = sqlx::query_scalar(
        "SELECT count(DISTINCT record_id) FROM np_byok_wrapped_deks WHERE record_id = ANY($1)",
    )
    .bind(&fresh)
    .fetch_one(&database)
    .await
    .expect("a count");
    lost += fresh.len() - usize::try_from(there).expect("a count");
    let doubled = sqlx::query_scalar(
        "SELECT count(*) FROM (SELECT FROM np_byok_wrapped_deks GROUP BY record_id HAVING count(*) > 1) AS doubled",
    );
    let doubled = doubled.fetch_one(&database).await.expect("a count");
    database.close().await;
    Books { written: written.len(), lost, doubled, entries, wrong_entries }
}
