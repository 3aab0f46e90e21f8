//! Checkpoints are published where the customer keeps them: a directory, a locked bucket, a
//! webhook. They are published at least once, and again after a destination was down.

use std::collections::BTreeMap;
use std::path::Path;

use byok::archive::Archive;
use byok::config::{AwsCredentials, CheckpointBucket};
use byok::crypto::SecretText;
use reqwest::Method;
use serde_json::{Value, json};

use crate::checkpoints::{KEY_FILE, Note, eventually, made_key, note, verified, vkeys};
use crate::kms_aws_moto::Moto;
use crate::kms_aws_policy::printed;
use crate::support::aws::{Cloud, Front};
use crate::support::rows;
use crate::support::server::{TestServer, create_database};
use crate::support::{http, needed};
use crate::webhook::{Answer, Receiver, SECRET};

pub(crate) const DIRECTORY: &str = "BYOK_AUDIT_CHECKPOINT_DIR";
pub(crate) const EVERY: (&str, &str) = ("BYOK_AUDIT_CHECKPOINT_SECONDS", "1");
const WEBHOOK_URL: &str = "BYOK_AUDIT_CHECKPOINT_WEBHOOK_URL";
const WEBHOOK_SECRET: &str = "BYOK_AUDIT_CHECKPOINT_WEBHOOK_SECRET";

/// A credential that moto accepts, since it verifies no signature.
const SOMEBODY: &str = "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20260101/eu-west-1/s3/aws4_request, SignedHeaders=host, Signature=x";

/// The files of the primary tenant's first log.
fn published(directory: &Path) -> BTreeMap<String, String> {
    let Ok(files) = std::fs::read_dir(directory.join("byok%2Fprimary%2F1")) else { return BTreeMap::new() };
    let paths = files.map(|file| file.unwrap().path());
    let paths = paths.filter(|path| !path.file_name().unwrap().to_str().unwrap().starts_with('.'));
    let read = |path: std::path::PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name, std::fs::read_to_string(path).unwrap())
    };
    paths.map(read).collect()
}

/// Waits until the directory has a checkpoint of the server's current log.
pub(crate) async fn caught_up(server: &TestServer, directory: &Path) -> String {
    let now = note(server).await;
    eventually(async || published(directory).get("latest") == Some(&now)).await;
    now
}

async fn hurry(server: &TestServer) {
    let sql = "UPDATE np_byok_publications SET next_attempt_at = now()";
    sqlx::query(sql).execute(&server.database().await).await.unwrap();
}

async fn metric(server: &TestServer, line: &str) -> bool {
    server.get("/metrics").await.body.as_str().unwrap().lines().any(|shown| shown.ends_with(line))
}

#[tokio::test]
async fn a_directory_holds_every_checkpoint_in_order_and_names_the_last() {
    let folder = tempfile::tempdir().unwrap();
    let key = made_key(folder.path(), "key.pem").await;
    let directory = folder.path().join("not there/yet");
    let at = directory.display().to_string();
    let server = TestServer::with(&[(KEY_FILE, &key), (DIRECTORY, &at), EVERY]).await;
    let replica = server.replica().await;
    for n in 0..12 {
        replica.encrypt("p", &format!("r-{n}")).await;
        if n % 4 == 0 {
            caught_up(&server, &directory).await;
        }
    }
    let last = caught_up(&server, &directory).await;
    let [vkey] = &vkeys(&server).await[..] else { panic!("one key") };
    let mut files = published(&directory);
    assert_eq!(files.remove("latest"), Some(last));
    let sizes: Vec<_> = files.values().map(|note| verified(note, vkey).unwrap().size).collect();
    assert!(sizes.is_sorted() && sizes.len() >= 4, "by name as by size: {sizes:?}");
    for (name, size) in files.keys().zip(&sizes) {
        assert_eq!(*name, format!("{size:020}.note"));
    }
    eventually(async || metric(&server, "checkpoint_place_unpublished{place=\"directory\"} 0").await).await;
}

/// CloudTrail shows a request's encryption context; here a relay in front of the KMS does.
#[tokio::test]
async fn the_log_of_the_customers_kms_holds_our_root() {
    let folder = tempfile::tempdir().unwrap();
    let signing_key = made_key(folder.path(), "key.pem").await;
    let cloud = Cloud::shared();
    let (key, front) = (cloud.key().await, Front::of(&cloud).await);
    key.user.permit(&printed(&[("BYOK_AWS_KEY_ARN", &key.arn)]).remove(0)).await;
    let server = TestServer::with(&[
        (KEY_FILE, &*signing_key),
        EVERY,
        ("BYOK_PROVIDER", "aws-kms"),
        ("BYOK_AWS_KEY_ARN", &key.arn),
        ("BYOK_AWS_ENDPOINT", &front.address),
        ("AWS_ACCESS_KEY_ID", &key.user.id),
        ("AWS_SECRET_ACCESS_KEY", &key.user.secret),
    ])
    .await;
    server.encrypt("p", "r-1").await;
    let [vkey] = &vkeys(&server).await[..] else { panic!("one key") };
    let now = verified(&note(&server).await, vkey).unwrap();
    let wanted = format!("1 {} {}", now.size, now.root);
    let kms_contexts = || -> Vec<Value> {
        let contexts = front.calls().into_iter().map(|call| call.body["EncryptionContext"].clone());
        contexts.filter(|context| context["byok:purpose"] == "checkpoint").collect()
    };
    eventually(async || kms_contexts().iter().any(|context| context["byok:checkpoint"] == wanted.as_str()))
        .await;
    eventually(async || metric(&server, "checkpoint_place_unpublished{place=\"kms\"} 0").await).await;
    // As long as the log does not grow, nothing is published again, and no call is paid for.
    let calls = kms_contexts().len();
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert_eq!(kms_contexts().len(), calls);
    assert!(kms_contexts().iter().all(|context| context["byok:tenant"].is_string()), "{:?}", kms_contexts());
}

#[tokio::test]
async fn a_webhook_gets_checkpoints_signed_each_under_its_own_id() {
    let receiver = Receiver::start(&[Answer::Status(500)]).await;
    let folder = tempfile::tempdir().unwrap();
    let key = made_key(folder.path(), "key.pem").await;
    let hook = [(WEBHOOK_URL, &*receiver.url), (WEBHOOK_SECRET, SECRET)];
    let server = TestServer::with(&[&[(KEY_FILE, &*key), EVERY], &hook[..]].concat()).await;
    let [vkey] = &vkeys(&server).await[..] else { panic!("one key") };
    server.encrypt("p", "r-1").await;
    receiver.receive_at_least(1).await;
    hurry(&server).await;
    receiver.receive_at_least(2).await;
    server.encrypt("p", "r-2").await;
    let received = receiver.receive_at_least(3).await;
    assert_eq!(received[0].id, received[1].id, "the same again after a failure");
    assert_ne!(received[1].id, received[2].id);
    let body: Value = serde_json::from_slice(&received[2].body).unwrap();
    let parsed = verified(body["data"]["note"].as_str().unwrap(), vkey).unwrap();
    assert_eq!(body["type"], "checkpoint");
    assert_eq!(
        body["data"],
        json!({ "tenant": "primary", "origin": "byok/primary/1", "size": parsed.size, "root": parsed.root,
            "note": body["data"]["note"] })
    );
    assert!(!server.logged().contains("CANARY"), "nothing is read from the receiver's answer");
}

#[tokio::test]
async fn a_place_that_is_down_delays_no_other_and_catches_up() {
    let down = Receiver::start(&vec![Answer::Status(503); 2]).await;
    let folder = tempfile::tempdir().unwrap();
    let key = made_key(folder.path(), "key.pem").await;
    let directory = folder.path().join("checkpoints");
    let at = directory.display().to_string();
    let hook = [(WEBHOOK_URL, &*down.url), (WEBHOOK_SECRET, SECRET), (DIRECTORY, &at)];
    let server = TestServer::with(&[&[(KEY_FILE, &*key), EVERY], &hook[..]].concat()).await;
    let [vkey] = &vkeys(&server).await[..] else { panic!("one key") };
    server.encrypt("p", "r-1").await;
    down.receive_at_least(1).await;
    for n in 2..5 {
        server.encrypt("p", &format!("r-{n}")).await;
        caught_up(&server, &directory).await;
    }
    // On a slow machine it has been tried again by now.
    let failures = |count| format!("checkpoint_place_failures{{place=\"webhook\"}} {count}");
    eventually(async || metric(&server, &failures(1)).await || metric(&server, &failures(2)).await).await;
    assert!(
        server
            .logged()
            .contains("a checkpoint could not be published: no published one covers the latest entries")
    );
    hurry(&server).await;
    down.receive_at_least(2).await;
    hurry(&server).await;
    let received = down.receive_at_least(3).await;
    // The tree of the delivered checkpoint contains the tree of every one that the receiver missed.
    let got: Value = serde_json::from_slice(&received[2].body).unwrap();
    let got = verified(got["data"]["note"].as_str().unwrap(), vkey).unwrap();
    let now = verified(&note(&server).await, vkey).unwrap();
    assert_eq!(got, now);
    eventually(async || metric(&server, "checkpoint_place_failures{place=\"webhook\"} 0").await).await;
    eventually(async || metric(&server, "checkpoint_place_unpublished{place=\"webhook\"} 0").await).await;
}

#[tokio::test]
async fn what_was_made_before_a_crash_is_published_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let key = made_key(folder.path(), "key.pem").await;
    let directory = folder.path().join("checkpoints");
    // A file in its place keeps the directory from being created.
    std::fs::write(&directory, "").unwrap();
    let at = directory.display().to_string();
    let mut server = TestServer::with(&[(KEY_FILE, &key), (DIRECTORY, &at), EVERY]).await;
    server.encrypt("p", "r-1").await;
    let made = note(&server).await;
    eventually(async || server.logged().contains("a checkpoint could not be published")).await;
    server.kill().await;
    std::fs::remove_file(&directory).unwrap();
    server.start_again().await;
    hurry(&server).await;
    eventually(async || published(&directory).get("latest") == Some(&made)).await;
}

#[tokio::test]
async fn a_bucket_holds_checkpoints_that_nobody_can_remove() {
    let moto = Moto::start().await;
    let bucket = format!("{}/our-checkpoints", moto.address());
    let made = http().put(&bucket).header("x-amz-bucket-object-lock-enabled", "true").send().await.unwrap();
    assert_eq!(made.status(), 200);
    let folder = tempfile::tempdir().unwrap();
    let key = made_key(folder.path(), "key.pem").await;
    let settings = [
        ("BYOK_AUDIT_CHECKPOINT_S3_BUCKET", "our-checkpoints"),
        ("BYOK_AUDIT_CHECKPOINT_S3_PREFIX", "byok/eu"),
        ("BYOK_AUDIT_CHECKPOINT_S3_REGION", "eu-west-1"),
        ("BYOK_AUDIT_CHECKPOINT_S3_ENDPOINT", moto.address()),
        ("BYOK_AUDIT_CHECKPOINT_S3_RETAIN_DAYS", "30"),
        ("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        (KEY_FILE, &key),
        EVERY,
    ];
    let server = TestServer::with(&settings).await;
    let [vkey] = &vkeys(&server).await[..] else { panic!("one key") };
    server.encrypt("p", "r-1").await;
    let now = note(&server).await;
    let Note { size, .. } = verified(&now, vkey).unwrap();
    let object = format!("{bucket}/byok/eu/byok%252Fprimary%252F1/{size:020}.note");
    let asked = |method: Method, url: &str| http().request(method, url).header("authorization", SOMEBODY);
    let get = async |url: &str| asked(Method::GET, url).send().await.unwrap().text().await.unwrap();
    eventually(async || get(&object).await == now).await;
    eventually(async || get(&format!("{bucket}/byok/eu/byok%252Fprimary%252F1/latest")).await == now).await;
    // An old copy that is restored covers less than the locked checkpoint.
    let archive = Archive::bucket(CheckpointBucket {
        name: "our-checkpoints".to_owned(),
        prefix: "byok/eu/".to_owned(),
        region: "eu-west-1".to_owned(),
        endpoint: Some(moto.address().parse().unwrap()),
        retain_days: 30,
        credentials: AwsCredentials::Keys {
            access_key_id: "AKIAEXAMPLE".to_owned(),
            secret_access_key: SecretText::new("secret".to_owned()),
            session_token: None,
        },
    })
    .unwrap();
    let at = rows::now();
    assert_eq!(archive.above("byok/primary/1", size - 1, at).await, Ok(Some(now.clone())));
    assert_eq!(archive.above("byok/primary/1", size, at).await, Ok(None));
    assert_eq!(archive.above("byok/primary/2", 0, at).await, Ok(None));
    for number in 0..1_100_u64 {
        archive.put("byok/many/1", number, &format!("{number}\n"), at).await.unwrap();
    }
    assert_eq!(archive.above("byok/many/1", 3, at).await, Ok(Some("1099\n".to_owned())), "past one list");
    let head = asked(Method::HEAD, &object).send().await.unwrap();
    assert_eq!(head.headers()["x-amz-object-lock-mode"], "COMPLIANCE");
    let until = head.headers()["x-amz-object-lock-retain-until-date"].to_str().unwrap();
    let until = byok::model::Timestamp::parse(until).unwrap();
    let days = (until.unix_seconds() - rows::now().unix_seconds()) / (24 * 3_600);
    assert!((29..=30).contains(&days), "{days}");
    let version = head.headers()["x-amz-version-id"].to_str().unwrap();
    let removed = asked(Method::DELETE, &format!("{object}?versionId={version}")).send().await.unwrap();
    assert_eq!(removed.status(), 403);
    assert!(server.doctor().await.contains("ok    audit log: it contains all that is known to be published"));
}

#[tokio::test]
async fn a_bucket_that_is_not_there_is_said_and_stops_nothing() {
    let moto = Moto::start().await;
    let folder = tempfile::tempdir().unwrap();
    let key = made_key(folder.path(), "key.pem").await;
    let settings = [
        ("BYOK_AUDIT_CHECKPOINT_S3_BUCKET", "nobodys-checkpoints"),
        ("BYOK_AUDIT_CHECKPOINT_S3_REGION", "eu-west-1"),
        ("BYOK_AUDIT_CHECKPOINT_S3_ENDPOINT", moto.address()),
        ("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", "the-secret-of-the-bucket"),
        (KEY_FILE, &key),
        EVERY,
    ];
    let server = TestServer::with(&settings).await;
    server.encrypt("p", "r-1").await;
    eventually(async || metric(&server, "checkpoint_place_failures{place=\"bucket\"} 1").await).await;
    assert!(!server.logged().contains("the-secret-of-the-bucket"));
    server.encrypt("p", "r-2").await;
}

#[tokio::test]
async fn what_cannot_be_read_is_not_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let key = made_key(folder.path(), "key.pem").await;
    let directory = folder.path().join("checkpoints");
    let latest = directory.join("byok%2Fprimary%2F1/latest");
    std::fs::create_dir_all(&latest).unwrap();
    let at = directory.display().to_string();
    let server = TestServer::with(&[(KEY_FILE, &key), (DIRECTORY, &at), EVERY]).await;
    server.encrypt("p", "r-1").await;
    eventually(async || metric(&server, "checkpoint_place_failures{place=\"directory\"} 1").await).await;
    std::fs::remove_dir(&latest).unwrap();
    assert_eq!(published(&directory), BTreeMap::new());
    hurry(&server).await;
    caught_up(&server, &directory).await;
}

#[tokio::test]
async fn a_place_without_a_key_is_an_error() {
    let database_url = create_database(&needed("DATABASE_URL")).await;
    let environment = [("DATABASE_URL".to_owned(), database_url), (DIRECTORY.to_owned(), "/tmp".to_owned())];
    let output = crate::checkpoints::byok(&environment, &["audit", "restored"]).await;
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains(DIRECTORY));
}
