//! An answer between its commit and its client, in one process: it is released while its keys are
//! shown to work, withheld whole and recorded as withheld if it is too late, and broken off if it
//! has already begun.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use byok::app::Release;
use byok::model::ErrorCode;
use byok::server::RequestRuntime;
use tokio::sync::Notify;

use crate::guarded::{Behaviour, Deployment, Replica, until};

/// A time after A, and after a replica's allowance for its own clock.
const PAST_THE_BOUND: u64 = 3_200;

/// A whole answer with the values of these records, each with its own entry.
async fn answer(one: &Replica, records: &[&str]) -> Arc<Release> {
    let caller = one.caller();
    let mut committed = Vec::new();
    for record in records {
        let token = one.encrypt(record).await.unwrap();
        committed.push(one.decrypt_for(&caller, &token, record).await.map_err(ErrorCode::as_str).unwrap());
    }
    Release::of(one.app.clone(), caller, committed).unwrap()
}

async fn confirmed(release: &Arc<Release>) -> Result<(), ErrorCode> {
    release.confirm().await.map_err(|refusal| refusal.code)
}

#[tokio::test]
async fn an_answer_is_given_at_once_without_another_call() {
    let one = Deployment::new().await.replica().await;
    let release = answer(&one, &["r"]).await;
    let (commits, calls) = (one.store.commits.load(Ordering::SeqCst), one.kms.calls());
    assert_eq!(confirmed(&release).await, Ok(()));
    assert!(release.may_leave());
    assert_eq!((one.store.commits.load(Ordering::SeqCst), one.kms.calls()), (commits, calls));
}

#[tokio::test]
async fn a_late_answer_is_withheld_whole_and_each_entry_refused() {
    for (behaviour, code) in
        [(Behaviour::Refuse, ErrorCode::KmsAccessDenied), (Behaviour::Fail, ErrorCode::KmsUnavailable)]
    {
        let one = Deployment::new().await.replica().await;
        let release = answer(&one, &["first", "second"]).await;
        one.kms.set_behaviour(behaviour);
        one.clock.sleep(PAST_THE_BOUND);
        assert_eq!(confirmed(&release).await, Err(code));
        let outcomes = one.outcomes(20).await;
        let decrypts: Vec<_> = outcomes.iter().filter(|outcome| outcome.starts_with("Decrypt")).collect();
        let refused = format!("Decrypt Refused({code:?})");
        assert_eq!(decrypts, [&refused, &refused, "Decrypt Ok", "Decrypt Ok"]);
        assert!(!release.may_leave());
        one.kms.set_behaviour(Behaviour::Work);
        assert!(!release.may_leave(), "a withheld answer stays withheld");
    }
}

#[tokio::test]
async fn an_answer_that_waited_is_given_where_the_key_still_works() {
    for cache_seconds in [300, 0] {
        let one = Deployment::new().await.replica_with(cache_seconds).await;
        let release = answer(&one, &["r"]).await;
        one.clock.sleep(PAST_THE_BOUND);
        let unwraps = one.kms.unwraps.load(Ordering::SeqCst);
        assert_eq!(confirmed(&release).await, Ok(()));
        assert_eq!(one.kms.unwraps.load(Ordering::SeqCst), unwraps + 1, "it was asked");
        assert_eq!(one.outcomes(1).await, ["Decrypt Ok"]);
        assert!(release.may_leave(), "for as long again");
    }
}

#[tokio::test]
async fn an_answer_from_before_a_revocation_is_not_given_after_it() {
    let one = Deployment::new().await.replica().await;
    let token = one.encrypt("r").await.unwrap();
    let release = answer(&one, &["r"]).await;
    one.kms.set_behaviour(Behaviour::Refuse);
    one.clock.sleep(PAST_THE_BOUND);
    assert_eq!(one.decrypt(&token, "r").await, Err(ErrorCode::KmsAccessDenied));
    one.kms.set_behaviour(Behaviour::Work);
    until("the key is used again", async || one.decrypt(&token, "r").await.is_ok()).await;
    assert_eq!(confirmed(&release).await, Err(ErrorCode::KmsUnavailable));
}

#[tokio::test]
async fn a_refusal_replacing_an_answer_that_cannot_be_recorded_says_so() {
    let one = Deployment::new().await.replica().await;
    let release = answer(&one, &["r"]).await;
    one.store.cut.store(true, Ordering::SeqCst);
    one.clock.sleep(PAST_THE_BOUND);
    assert_eq!(confirmed(&release).await, Err(ErrorCode::StoreUnavailable));
}

#[tokio::test]
async fn an_answer_broken_off_is_refused_only_where_none_has_left() {
    let one = Deployment::new().await.replica().await;
    let (begun, waiting) = (answer(&one, &["begun"]).await, answer(&one, &["waiting"]).await);
    begun.begin();
    one.kms.set_behaviour(Behaviour::Fail);
    one.clock.sleep(PAST_THE_BOUND);
    assert!(!begun.may_leave());
    begun.break_off();
    waiting.break_off();
    let refused = "Decrypt Refused(KmsUnavailable)";
    until("the one that waited is refused", async || one.outcomes(1).await == [refused]).await;
    let outcomes = one.outcomes(20).await;
    assert_eq!(outcomes.iter().filter(|outcome| *outcome == refused).count(), 1);
}

#[tokio::test]
async fn an_answer_lost_before_its_first_byte_has_all_entries_refused() {
    let one = Deployment::new().await.replica().await;
    let lost = answer(&one, &["first", "second"]).await;
    let given = answer(&one, &["given"]).await;
    assert_eq!(confirmed(&lost).await, Ok(()));
    given.begin();
    drop((lost, given));
    let refused = "Decrypt Refused(Unavailable)";
    until("both are refused", async || one.outcomes(2).await == [refused, refused]).await;
    one.app.settled().await;
    let outcomes = one.outcomes(20).await;
    assert_eq!(outcomes.iter().filter(|outcome| *outcome == refused).count(), 2);
    assert_eq!(outcomes.iter().filter(|outcome| *outcome == "Decrypt Ok").count(), 3);
}

#[tokio::test]
async fn a_call_given_up_during_its_commit_leaves_a_refusal_too() {
    let one = Deployment::new().await.replica().await;
    let token = one.encrypt("r").await.unwrap();
    let (durable, heard) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let is_durable = durable.clone();
    *one.store.then.lock().unwrap() = Some(Box::new(move || is_durable.notify_one()));
    let caller = one.caller();
    tokio::select! {
        biased;
        () = durable.notified() => heard.notify_one(),
        _ = one.decrypt_for(&caller, &token, "r") => panic!("it was answered"),
    }
    heard.notified().await;
    let both = ["Decrypt Refused(Unavailable)", "Decrypt Ok"];
    until("it is refused", async || one.outcomes(2).await == both).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ungiven_answer_is_recorded_though_its_requests_runtime_has_ended() {
    let one = Deployment::new().await.replica().await;
    let (late, lost) = (answer(&one, &["late"]).await, answer(&one, &["lost"]).await);
    one.kms.set_behaviour(Behaviour::Fail);
    one.clock.sleep(PAST_THE_BOUND);
    let requests = RequestRuntime::start().unwrap();
    requests.spawn(async move { late.break_off() }).await.unwrap();
    requests.spawn(async move {
        std::future::pending::<()>().await;
        drop(lost);
    });
    requests.end().await;
    one.app.settled().await;
    let mut last = one.outcomes(2).await;
    last.sort();
    assert_eq!(last, ["Decrypt Refused(KmsUnavailable)", "Decrypt Refused(Unavailable)"]);
}
