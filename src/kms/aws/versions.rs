//! The names of the key's versions. AWS has no numbers for them: each has a key material id of 64
//! hexadecimal digits.
//!
//! | the customer permits | the name of a version |
//! |---|---|
//! | `kms:ListKeyRotations` | its index in the list of all key material, from 1 |
//! | nothing more than use | the first twelve digits of its key material id |
//! | — (a server that gives no key material ids) | [`UNNAMED`] |
//!
//! A name never changes while the process runs, even if its rights do. The list is read when a key
//! material is seen for the first time (at the start, and after a rotation): once at a time, and
//! within a short time limit. Only the name waits for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_sdk_kms::types::{KeyMaterialState, RotationsListEntry};
use tokio::time::{Instant, timeout_at};

use crate::kms::KmsError;

/// The version's name where the server gives no key material ids.
pub(super) const UNNAMED: &str = "current";
/// The number of digits of a key material id in a name.
const SHORT: usize = 12;

/// The names of versions, and what is needed to name the next ones.
#[derive(Default)]
pub(super) struct Versions {
    known: Mutex<Known>,
    /// The lock under which the list is read, once at a time.
    gate: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Known {
    names: HashMap<Arc<str>, Arc<str>>,
    /// The index of each key material in the list, from 1.
    indexes: HashMap<Arc<str>, usize>,
    /// Whether a list was refused.
    refused: bool,
    /// The name of the version that wrapped last.
    current: Option<Arc<str>>,
}

impl Versions {
    /// The name of the key material that has just wrapped. `list` ends before the deadline by
    /// itself.
    pub(super) async fn wrapped_by(
        &self,
        material: Option<&str>,
        deadline: Instant,
        list: impl Future<Output = Result<Vec<RotationsListEntry>, KmsError>>,
    ) -> Arc<str> {
        let name = self.name(material, deadline, list).await;
        self.lock().current = Some(name.clone());
        name
    }

    /// The name of the version that wrapped last; AWS's Encrypt does not return it.
    pub(super) fn current(&self) -> Option<Arc<str>> {
        self.lock().current.clone()
    }

    /// Whether a name that another process may have given is one of this key material's.
    pub(super) fn is_named(&self, material: Option<&str>, name: &str) -> bool {
        let Some(id) = material.and_then(checked) else { return name == UNNAMED };
        let known = self.lock();
        id[..SHORT] == *name || known.indexes.get(id).is_some_and(|index| index.to_string() == name)
    }

    /// Lets the next unknown key material ask for the list, whatever was seen before.
    pub(super) fn look_again(&self) {
        self.lock().refused = false;
    }

    /// Whether the list was refused.
    pub(super) fn may_not_list(&self) -> bool {
        self.lock().refused
    }

    async fn name(
        &self,
        material: Option<&str>,
        deadline: Instant,
        list: impl Future<Output = Result<Vec<RotationsListEntry>, KmsError>>,
    ) -> Arc<str> {
        let Some(id) = material.and_then(checked) else { return UNNAMED.into() };
        let given = || self.lock().names.get(id).cloned();
        if let Some(name) = given() {
            return name;
        }
        let turn = timeout_at(deadline, self.gate.lock()).await;
        if let Some(name) = given() {
            return name;
        }
        if turn.is_ok() && !self.may_not_list() {
            match list.await {
                Ok(entries) => self.lock().indexes = indexes(&entries),
                Err(error) => self.lock().refused = !error.class.retryable(),
            }
        }
        let mut known = self.lock();
        let index = known.indexes.get(id).map(|index| index.to_string().into());
        let name: Arc<str> = index.unwrap_or_else(|| id[..SHORT].into());
        known.names.entry(id.into()).or_insert(name).clone()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A key material id, if it is one (`KeyMaterialIdType` of the service's model).
fn checked(id: &str) -> Option<&str> {
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    (id.len() == 64 && id.bytes().all(digit)).then_some(id)
}

/// The indexes of all key material that has ever wrapped: the first has no date, the others are
/// ordered by theirs. Empty if the list is inconsistent.
fn indexes(entries: &[RotationsListEntry]) -> HashMap<Arc<str>, usize> {
    let wraps =
        |state: &KeyMaterialState| matches!(state, KeyMaterialState::Current | KeyMaterialState::NonCurrent);
    let mut used: Vec<_> = entries
        .iter()
        .filter(|entry| entry.key_material_state().is_some_and(wraps))
        .map(|entry| {
            (entry.rotation_date().map(|date| date.as_nanos()), entry.key_material_id().and_then(checked))
        })
        .collect();
    // `None` sorts first.
    used.sort_by_key(|(date, _)| *date);
    if used.iter().filter(|(date, _)| date.is_none()).count() != 1 {
        return HashMap::new();
    }
    let indexed = used.into_iter().zip(1..).map(|((_, id), index)| Some((id?.into(), index)));
    indexed.collect::<Option<_>>().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use aws_sdk_kms::primitives::DateTime;

    use super::*;
    use crate::kms::KmsErrorClass;

    fn id(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    fn entry(digit: char, date: Option<i64>, state: KeyMaterialState) -> RotationsListEntry {
        RotationsListEntry::builder()
            .key_material_id(id(digit))
            .set_rotation_date(date.map(DateTime::from_secs))
            .key_material_state(state)
            .build()
    }

    fn list() -> Vec<RotationsListEntry> {
        vec![
            entry('c', Some(20), KeyMaterialState::Current),
            entry('d', None, KeyMaterialState::PendingRotation),
            entry('a', None, KeyMaterialState::NonCurrent),
            entry('b', Some(10), KeyMaterialState::NonCurrent),
        ]
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(1)
    }

    async fn name(
        versions: &Versions,
        digit: char,
        listed: Result<Vec<RotationsListEntry>, KmsErrorClass>,
    ) -> String {
        let list = async { listed.map_err(KmsError::local) };
        versions.wrapped_by(Some(&id(digit)), soon(), list).await.to_string()
    }

    #[tokio::test]
    async fn a_version_is_called_by_its_place_where_we_may_list() {
        let versions = Versions::default();
        assert_eq!(name(&versions, 'a', Ok(list())).await, "1");
        assert_eq!(name(&versions, 'c', Ok(list())).await, "3");
        assert_eq!(versions.current().as_deref(), Some("3"));
    }

    #[tokio::test]
    async fn a_version_is_named_by_key_material_without_the_right() {
        let versions = Versions::default();
        assert_eq!(name(&versions, 'a', Err(KmsErrorClass::AccessDenied)).await, "aaaaaaaaaaaa");
        assert!(versions.may_not_list());
        let asked = async { panic!("it was refused") };
        assert_eq!(&*versions.wrapped_by(Some(&id('b')), soon(), asked).await, "bbbbbbbbbbbb");
    }

    #[tokio::test]
    async fn a_name_stays_whatever_rights_come_and_go() {
        let versions = Versions::default();
        assert_eq!(name(&versions, 'a', Err(KmsErrorClass::AccessDenied)).await, "aaaaaaaaaaaa");
        versions.look_again();
        assert_eq!(name(&versions, 'b', Ok(list())).await, "2");
        assert_eq!(name(&versions, 'a', Ok(list())).await, "aaaaaaaaaaaa");
        assert!(versions.is_named(Some(&id('a')), "aaaaaaaaaaaa") && versions.is_named(Some(&id('a')), "1"));
        assert!(!versions.is_named(Some(&id('a')), "2"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_of_anothers_is_waited_for_until_the_deadline() {
        let (versions, began) = (Versions::default(), Instant::now());
        let (one, other) = (id('a'), id('c'));
        let long = async {
            tokio::time::sleep(Duration::from_secs(9)).await;
            Ok(list())
        };
        let listing = versions.wrapped_by(Some(&one), began + Duration::from_secs(9), long);
        let waiting = async {
            let name = versions.wrapped_by(Some(&other), soon(), async { Ok(list()) }).await;
            (name, began.elapsed())
        };
        let (named, (name, waited)) = tokio::join!(listing, waiting);
        assert_eq!((&*named, &*name, waited.as_secs()), ("1", "cccccccccccc", 1));
        assert_eq!(self::name(&versions, 'c', Ok(list())).await, "cccccccccccc");
    }

    #[tokio::test]
    async fn an_outage_is_no_refusal() {
        let versions = Versions::default();
        assert_eq!(name(&versions, 'a', Err(KmsErrorClass::Unreachable)).await, "aaaaaaaaaaaa");
        assert_eq!(name(&versions, 'b', Ok(list())).await, "2");
    }

    #[tokio::test]
    async fn a_server_without_key_material_ids_has_one_name() {
        let versions = Versions::default();
        for material in [None, Some("1"), Some("../../x")] {
            let asked = async { panic!("there is nothing to look up") };
            assert_eq!(&*versions.wrapped_by(material, soon(), asked).await, UNNAMED);
        }
    }

    #[test]
    fn a_list_that_does_not_fit_together_gives_no_places() {
        assert!(indexes(&[]).is_empty());
        assert!(indexes(&[entry('a', Some(1), KeyMaterialState::Current)]).is_empty());
        let two_first =
            [entry('a', None, KeyMaterialState::Current), entry('b', None, KeyMaterialState::NonCurrent)];
        assert!(indexes(&two_first).is_empty());
    }
}
