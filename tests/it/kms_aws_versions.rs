//! The names of key versions: numbers if the customer lets us list them, key material ids if not.
//! Neither ever prevents an operation.

use std::time::{Duration, Instant};

use byok::crypto::Dek;
use byok::kms::{AwsKms, DekBinding, Kms, KmsDiagnosis};
use byok::model::Wrapped;
use serde_json::{Value, json};

use crate::support::aws::{Cloud, Fault, Front, Key, material, permissions};
use crate::support::calls::binding;
use crate::support::server::TestServer;

async fn wrapped(kms: &AwsKms) -> (DekBinding, Wrapped) {
    let binding = binding();
    (binding, kms.generate(&[binding]).await.remove(0).expect("a DEK").value.wrapped)
}

async fn version(kms: &AwsKms) -> String {
    wrapped(kms).await.1.key_version.version.to_string()
}

async fn key(may_list: bool) -> (Key, Front) {
    let cloud = Cloud::shared();
    let key = cloud.key().await;
    if may_list {
        key.user.permit(&permissions(&key.arn, &["kms:ListKeyRotations"])).await;
    }
    (key, Front::of(&cloud).await)
}

/// The real binary with this key.
async fn serving(key: &Key, front: &Front) -> TestServer {
    TestServer::with(&[
        ("BYOK_PROVIDER", "aws-kms"),
        ("BYOK_AWS_KEY_ARN", &key.arn),
        ("BYOK_AWS_ENDPOINT", &front.address),
        ("AWS_ACCESS_KEY_ID", &key.user.id),
        ("AWS_SECRET_ACCESS_KEY", &key.user.secret),
    ])
    .await
}

/// The rotation's state once it is done.
async fn ended(server: &TestServer, id: &str, within: Duration) -> Value {
    let began = Instant::now();
    loop {
        let job = server.get(&format!("/byok/rotate/{id}")).await.body;
        if job["state"] == "DONE" {
            return job;
        }
        assert!(began.elapsed() < within, "{job}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn us(key: &Key, front: &Front) -> AwsKms {
    key.kms_with(|settings| settings.endpoint = Some(front.address.parse().expect("an address")))
}

fn short(key: &Key, number: usize) -> String {
    material(key.id(), number)[..12].to_owned()
}

#[tokio::test]
async fn a_version_is_a_number_where_we_may_list() {
    let (key, front) = key(true).await;
    let kms = us(&key, &front);
    assert_eq!(version(&kms).await, "1");
    front.rotate(&key).await;
    front.rotate(&key).await;
    assert_eq!(version(&kms).await, "3");
    assert_eq!(kms.current_version().await.expect("a version").to_string(), format!("{}/3", key.id()));
    assert_eq!(version(&us(&key, &front)).await, "3", "in another process too");
}

#[tokio::test]
async fn a_version_is_part_of_its_material_where_we_may_not() {
    let (key, front) = key(false).await;
    let kms = us(&key, &front);
    assert_eq!(version(&kms).await, short(&key, 0));
    front.rotate(&key).await;
    assert_eq!(version(&kms).await, short(&key, 1));
    assert_eq!(front.count("ListKeyRotations"), 1, "it was refused once, and is not asked for again");
    let open = kms.exposure().await;
    assert!(open.iter().any(|open| open.remedy.contains("kms:ListKeyRotations")));
}

#[tokio::test]
async fn names_are_looked_up_once_a_material_and_not_each_call() {
    let (key, front) = key(true).await;
    let kms = us(&key, &front);
    let bindings = [binding(); 50];
    assert!(kms.generate(&bindings).await.iter().all(Result::is_ok));
    assert_eq!(front.count("ListKeyRotations"), 1);
    front.rotate(&key).await;
    assert!(kms.generate(&bindings).await.iter().all(Result::is_ok));
    assert_eq!(front.count("ListKeyRotations"), 2);
    let old = wrapped(&kms).await;
    assert!(kms.unwrap(&[old]).await.remove(0).is_ok());
    assert_eq!(front.count("ListKeyRotations"), 2);
}

#[tokio::test]
async fn a_name_stays_when_the_right_to_list_comes_or_goes() {
    let (key, front) = key(false).await;
    let kms = us(&key, &front);
    assert_eq!(version(&kms).await, short(&key, 0));
    key.user.permit(&permissions(&key.arn, &["kms:ListKeyRotations"])).await;
    assert_eq!(&*kms.current_version().await.expect("a version").version, short(&key, 0));
    front.rotate(&key).await;
    assert_eq!(&*kms.current_version().await.expect("a version").version, "2");
    key.allow(true).await;
    assert_eq!(version(&kms).await, "2");
    front.rotate(&key).await;
    assert_eq!(version(&kms).await, short(&key, 2));
}

#[tokio::test]
async fn a_list_that_hangs_costs_a_name_and_no_call() {
    let (key, front) = key(true).await;
    front.fail("ListKeyRotations", 99, Fault::Late(Duration::from_secs(30)));
    let kms = us(&key, &front);
    assert_eq!(version(&kms).await, short(&key, 0));
}

#[tokio::test]
async fn a_rewrap_takes_either_name_of_the_current_version() {
    let (key, front) = key(true).await;
    let kms = us(&key, &front);
    let old = wrapped(&kms).await;
    front.rotate(&key).await;
    let to = kms.current_version().await.expect("a version");
    let by_id = byok::model::KeyVersion::new(to.key.clone(), short(&key, 1));
    for name in [to, by_id] {
        let again = kms.rewrap(std::slice::from_ref(&old), &name).await.remove(0).expect("it rewraps").value;
        assert_eq!(again.key_version, name);
    }
    let gone = old.1.key_version.clone();
    let again = kms.rewrap(std::slice::from_ref(&old), &gone).await.remove(0).expect("it rewraps").value;
    assert_eq!(&*again.key_version.version, "2", "what AWS cannot do, it does not claim");
}

#[tokio::test]
async fn what_is_wrapped_names_the_version_that_wrapped_last() {
    let (key, front) = key(true).await;
    let kms = us(&key, &front);
    let dek = Dek::generate();
    let wrap =
        async || kms.wrap(&[(binding(), &dek)]).await.remove(0).expect("it wraps").value.key_version.version;
    assert_eq!(&*wrap().await, "1");
    front.rotate(&key).await;
    kms.current_version().await.expect("a version");
    assert_eq!(&*wrap().await, "2");
}

#[tokio::test]
async fn wrapping_reads_the_version_once_and_needs_no_right_for_it() {
    let (key, front) = key(true).await;
    let deks: Vec<_> = (0..40).map(|_| Dek::generate()).collect();
    let items: Vec<_> = deks.iter().map(|dek| (binding(), dek)).collect();
    assert!(us(&key, &front).wrap(&items).await.iter().all(Result::is_ok));
    assert_eq!((front.count("GenerateDataKey"), front.count("Encrypt")), (1, 40));
    let encrypt = json!({ "Effect": "Allow", "Action": "kms:Encrypt", "Resource": key.arn });
    key.user.permit(&json!({ "Version": "2012-10-17", "Statement": [encrypt] })).await;
    let wrapped = us(&key, &front).wrap(&items[..1]).await.remove(0).expect("it wraps").value;
    assert_eq!(&*wrapped.key_version.version, "current");
}

#[tokio::test]
async fn a_server_without_key_material_ids_works_under_one_name() {
    let (key, front) = key(true).await;
    front.hide_ids();
    let kms = us(&key, &front);
    let old = wrapped(&kms).await;
    assert_eq!(&*old.1.key_version.version, "current");
    assert_eq!(kms.current_version().await.expect("a version"), old.1.key_version);
    assert!(kms.unwrap(&[old]).await.remove(0).is_ok());
    assert_eq!(front.count("ListKeyRotations"), 0);
}

/// AWS wraps under the current material, whatever was asked for, and the service continues
/// meanwhile.
#[tokio::test]
async fn a_key_rotated_during_a_rotation_takes_the_job_along() {
    let (key, front) = key(true).await;
    let server = serving(&key, &front).await;
    let mut tokens = Vec::new();
    for record in 0..20 {
        tokens.push(server.encrypt("hello", &record.to_string()).await);
    }
    front.rotate(&key).await;
    // The first re-wraps ask for version 2 and happen under version 3.
    front.fail("ReEncrypt", 20, Fault::Late(Duration::from_millis(1500)));
    let started = server.post("/byok/rotate", json!({})).await;
    assert_eq!(started.body["target"], format!("{}/2", key.id()), "{}", started.body);
    while front.count("ReEncrypt") == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    front.rotate(&key).await;
    let id = started.body["id"].as_str().expect("an id");
    let job = ended(&server, id, Duration::from_secs(60)).await;
    assert_eq!(job["target"], format!("{}/3", key.id()), "{job}");
    assert!(front.count("ReEncrypt") <= 40, "{}", front.count("ReEncrypt"));
    let again = server.post("/byok/rotate", json!({ "dry_run": true })).await;
    assert_eq!(again.body["deks"], 0, "{}", again.body);
    for (record, token) in tokens.iter().enumerate() {
        let body = json!({ "ciphertext": token, "context": { "record_id": record.to_string() } });
        assert_eq!(server.post("/byok/decrypt", body).await.status, 200);
    }
}

/// A rotation does not take effect everywhere at once: a re-wrap that still used the old material
/// does not complete it.
#[tokio::test]
async fn a_rewrap_under_the_old_version_does_not_end_the_rotation() {
    let (key, front) = key(true).await;
    let server = serving(&key, &front).await;
    server.encrypt("hello", "1").await;
    front.rotate(&key).await;
    front.fail("ReEncrypt", 2, Fault::Stale);
    let started = server.post("/byok/rotate", json!({})).await;
    let id = started.body["id"].as_str().expect("an id");
    let began = Instant::now();
    let job = ended(&server, id, Duration::from_secs(30)).await;
    assert_eq!((&job["target"], front.count("ReEncrypt")), (&json!(format!("{}/2", key.id())), 3), "{job}");
    assert!(began.elapsed() > Duration::from_secs(1), "there is a pause between one pass and the next");
}
