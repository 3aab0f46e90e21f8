//! The rate limits: meters of calls and items per tenant, and the share of them that one user may
//! take, at the rates of the tenant's settings that the call began with. The meters live in the
//! memory of this process, so each replica has its own; `docs/limits.md` has the maths. Requests to
//! the KMS are metered where they are sent (`kms`).

use std::hash::{BuildHasher as _, RandomState};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use crate::config::Rates;
use crate::model::{ErrorCode, Operation, Refusal};
use crate::tenancy::Caller;

use super::App;
use super::meter::{CountedUsage, Exceeded, Meter, Taker, User};

/// All meters of an [`App`]. Refused calls and items are charged to meters of their own, so that
/// one caller's invalid requests do not use up what others need.
pub(super) struct Meters {
    encrypt: Meter,
    decrypt: Meter,
    other: Meter,
    refused: Meter,
    encrypt_items: ItemMeters,
    decrypt_items: ItemMeters,
    /// The hasher of user names. Its keys are new in each process, so that nobody can choose a name
    /// that collides with another user's.
    users: RandomState,
    began: Instant,
}

/// The items that are served in a minute, and the items that are refused, which have the same
/// limit.
struct ItemMeters {
    served: Meter,
    refused: Meter,
}

impl Default for Meters {
    fn default() -> Self {
        let calls = || Meter::new(CountedUsage::FromTheSecondUser);
        let refused = || Meter::new(CountedUsage::All);
        let items = || ItemMeters { served: calls(), refused: refused() };
        Self {
            encrypt: calls(),
            decrypt: calls(),
            other: calls(),
            refused: refused(),
            encrypt_items: items(),
            decrypt_items: items(),
            users: RandomState::new(),
            began: Instant::now(),
        }
    }
}

impl Meters {
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Returns the user of a caller. Callers without a user count as one user per role.
    fn user(&self, caller: &Caller) -> User {
        User(match &caller.identity.user {
            Some(user) => self.users.hash_one((true, user.as_str())),
            None => self.users.hash_one((false, &*caller.identity.role)),
        })
    }

    fn taker(&self, caller: &Caller, per_minute: NonZeroU32) -> Taker {
        Taker { tenant: caller.tenant().uid, user: self.user(caller), per_minute }
    }

    /// Returns the meter of an operation's calls, and the rate.
    fn calls(&self, rates: &Rates, operation: Operation) -> (&Meter, NonZeroU32) {
        match operation {
            Operation::Encrypt => (&self.encrypt, rates.encrypt_calls),
            Operation::Decrypt | Operation::Reveal => (&self.decrypt, rates.decrypt_calls),
            Operation::Rotate
            | Operation::Audit
            | Operation::Health
            | Operation::Incident
            | Operation::Prune
            | Operation::Erase
            | Operation::Hold
            | Operation::Restore
            | Operation::Seal => (&self.other, rates.decrypt_calls),
        }
    }

    /// Returns the meters of an operation's items, and who takes from them; `None` if the items
    /// have no limit.
    fn items(&self, caller: &Caller, operation: Operation) -> Option<(&ItemMeters, Taker)> {
        let rates = rates(caller);
        let (meters, per_minute) = match operation {
            Operation::Encrypt => (&self.encrypt_items, rates.encrypt_items?),
            Operation::Decrypt | Operation::Reveal => (&self.decrypt_items, rates.decrypt_items?),
            Operation::Rotate
            | Operation::Audit
            | Operation::Health
            | Operation::Incident
            | Operation::Prune
            | Operation::Erase
            | Operation::Hold
            | Operation::Restore
            | Operation::Seal => return None,
        };
        Some((meters, self.taker(caller, per_minute)))
    }

    /// Takes a call. A user who has used up their allowance of refused calls for the minute gets no
    /// further calls of any kind, because those calls could only be charged to all users.
    fn take_call(&self, caller: &Caller, operation: Operation) -> Result<(), Exceeded> {
        let (now, (calls, per_minute)) = (self.now(), self.calls(rates(caller), operation));
        let taker = self.taker(caller, per_minute);
        self.refused.has_room(Taker { per_minute: refusals(caller), ..taker }, now)?;
        calls.take(taker, 1, now)
    }

    fn take_items(&self, caller: &Caller, operation: Operation, items: usize) -> Result<(), Exceeded> {
        let Some((meters, taker)) = self.items(caller, operation) else { return Ok(()) };
        let now = self.now();
        meters.refused.has_room(taker, now)?;
        meters.served.take(taker, u32::try_from(items).unwrap_or(u32::MAX), now)
    }

    /// Takes one of the calls that are refused before they do anything, and recorded. The first one
    /// of each user in a minute is recorded, however many calls of others are refused.
    pub(super) fn take_refusal(&self, caller: &Caller) -> Result<(), Refusal> {
        self.refused.take_or_first(self.taker(caller, refusals(caller)), self.now()).map_err(of_calls)
    }

    fn give_back_call(&self, caller: &Caller, operation: Operation) {
        let (calls, per_minute) = self.calls(rates(caller), operation);
        calls.give_back(self.taker(caller, per_minute), 1, self.now());
    }

    /// Moves a call from the meter of served calls to that of refused calls. If the refused calls
    /// of many users together exceed what that meter can bound, the call stays charged as a served
    /// one.
    fn charge_call_apart(&self, caller: &Caller, operation: Operation) {
        if self.refused.charge(self.taker(caller, refusals(caller)), 1, self.now()) {
            self.give_back_call(caller, operation);
        }
    }

    /// Moves refused items from the meter of served items to that of refused items, in the same
    /// way.
    fn charge_items_apart(&self, caller: &Caller, operation: Operation, refused: u32) {
        let Some((meters, taker)) = self.items(caller, operation) else { return };
        let now = self.now();
        if refused > 0 && meters.refused.charge(taker, refused, now) {
            meters.served.give_back(taker, refused, now);
        }
    }
}

/// Returns the rates of the caller's tenant, as they were when the call began.
fn rates(caller: &Caller) -> &Rates {
    &caller.runtime.settings.rates
}

/// Returns how many calls a minute may be refused: as many as may decrypt.
fn refusals(caller: &Caller) -> NonZeroU32 {
    rates(caller).decrypt_calls
}

/// Returns whether an item was refused because of what its caller sent. A refusal because of the
/// key, the database or the budget of KMS requests is not the caller's fault.
fn is_fault_of_caller(refusal: &Refusal) -> bool {
    let code = refusal.code;
    matches!(code.http_status(), 400..500)
        && !matches!(code, ErrorCode::KmsAccessDenied | ErrorCode::RateLimited)
}

fn of_calls(over: Exceeded) -> Refusal {
    let refusal = Refusal::from(ErrorCode::RateLimited);
    match over {
        Exceeded::RetryAfter(wait) => refusal.after(wait),
        // Cannot happen: a call counts as one, and a rate is at least one.
        Exceeded::NeverFits => refusal,
    }
}

impl App {
    /// Meters a call and checks whether its role may ever perform this operation. A call counts as
    /// one, however many items it has. Refused calls have a meter of their own, so that a caller
    /// who may do nothing, or who sends invalid requests, can neither use up the tenant's budget
    /// nor flood its log. Past that meter's limit, a refusal leaves no entry.
    pub(super) async fn enter(&self, caller: &Caller, operation: Operation) -> Result<(), Refusal> {
        self.may_append(caller)?;
        if !self.may_ever(caller, operation) {
            return Err(self.refuse(caller, operation, ErrorCode::PermissionDenied.into()).await);
        }
        self.meters.take_call(caller, operation).map_err(of_calls)
    }

    /// Refuses a call that has no items, has too many, or exceeds the tenant's limit of items per
    /// minute. In the last case the refusal leaves no entry, as with a call over the rate.
    pub(super) async fn bound(
        &self,
        caller: &Caller,
        operation: Operation,
        items: usize,
    ) -> Result<(), Refusal> {
        let refusal = match items {
            0 => Refusal::because(ErrorCode::RequestMalformed, "The request has no items.").at("items"),
            items if items > self.limits.items => ErrorCode::TooManyItems.into(),
            items => match self.meters.take_items(caller, operation, items) {
                Ok(()) => return Ok(()),
                Err(Exceeded::RetryAfter(wait)) => {
                    let spent = "The items of this minute are used up for this tenant.";
                    return Err(Refusal::because(ErrorCode::RateLimited, spent).after(wait));
                }
                Err(Exceeded::NeverFits) => Refusal::because(
                    ErrorCode::TooManyItems,
                    "The request holds more items than the tenant may send in a whole minute: it can never pass.",
                ),
            },
        };
        Err(self.refuse_entered(caller, operation, refusal).await)
    }

    /// Refuses a call that has been metered but has done nothing yet, and charges it to the meter
    /// of refused calls.
    pub(super) async fn refuse_entered(
        &self,
        caller: &Caller,
        operation: Operation,
        refusal: Refusal,
    ) -> Refusal {
        self.meters.give_back_call(caller, operation);
        self.refuse(caller, operation, refusal).await
    }

    /// Charges the items that were refused through the caller's fault to the meter of refused
    /// items. If all items were, it charges the call itself to the meter of refused calls.
    pub(super) fn settle<T>(&self, caller: &Caller, operation: Operation, answers: &[Result<T, Refusal>]) {
        let refused = answers.iter().filter(|answer| answer.as_ref().is_err_and(is_fault_of_caller)).count();
        if refused == answers.len() {
            self.meters.charge_call_apart(caller, operation);
        }
        self.meters.charge_items_apart(caller, operation, u32::try_from(refused).unwrap_or(u32::MAX));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::model::{Identity, Means, RequestId, Session, Tenant, TenantUid};
    use crate::tenancy::{TenantRuntime, TenantSettings};

    use super::*;

    fn caller(role: &str, user: Option<&str>) -> Caller {
        let (session, means) = (Session::default(), Means::Jwt);
        let identity = Identity { role: role.into(), user: user.map(str::to_owned), session, means };
        let tenant = Arc::new(Tenant { uid: TenantUid([7; 16]), name: "primary".to_owned() });
        let settings = TenantSettings::of_variables([("BYOK_DECRYPT_ITEMS_PER_MINUTE", "1000")]);
        let runtime = TenantRuntime::without_keys_under(tenant, settings);
        Caller { runtime, identity, request_id: RequestId::fresh() }
    }

    #[test]
    fn callers_without_a_user_are_one_user_by_role() {
        let meters = Meters::default();
        let user = |role, name| meters.user(&caller(role, name));
        assert_eq!(user("user", Some("anna")), user("admin", Some("anna")));
        assert_ne!(user("user", Some("anna")), user("user", Some("bert")));
        assert_eq!(user("anonymous", None), user("anonymous", None));
        assert_ne!(user("anonymous", None), user("service", None));
        assert_ne!(user("anonymous", None), user("user", Some("anonymous")));
    }

    #[test]
    fn only_what_its_caller_sent_is_charged_apart() {
        for code in [ErrorCode::PermissionDenied, ErrorCode::TokenMalformed, ErrorCode::DecryptFailed] {
            assert!(is_fault_of_caller(&code.into()), "{}", code.as_str());
        }
        for code in [
            ErrorCode::KmsAccessDenied,
            ErrorCode::KmsUnavailable,
            ErrorCode::KmsMisconfigured,
            ErrorCode::StoreUnavailable,
            ErrorCode::AuditLogBehind,
            ErrorCode::RateLimited,
            ErrorCode::Internal,
        ] {
            assert!(!is_fault_of_caller(&code.into()), "{}", code.as_str());
        }
    }

    #[test]
    fn refused_items_are_refunded_up_to_a_minutes_worth_each() {
        let (anna, bert) = (caller("user", Some("anna")), caller("user", Some("bert")));
        let meters = Meters::default();
        let operation = Operation::Decrypt;
        assert_eq!(meters.take_items(&anna, operation, 1_000), Ok(()));
        meters.charge_items_apart(&anna, operation, 1_000);
        // A minute's worth was refused. Anna's items are no longer let in, and other users are not
        // affected.
        assert!(matches!(meters.take_items(&anna, operation, 1), Err(Exceeded::RetryAfter(_))));
        assert_eq!(meters.take_items(&bert, operation, 500), Ok(()));
    }
}
