//! The credentials that the SDK's clients sign with.

use std::fmt;
use std::sync::Arc;

use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, future};
use aws_sdk_kms::config::Credentials;

use crate::kms::renewal::{Renewer, Source};

/// Whatever credentials a renewer holds when a request is signed.
#[derive(Clone)]
pub(super) struct Slot(Arc<dyn Fn() -> Option<Credentials> + Send + Sync>);

impl Slot {
    /// The credentials of this renewer.
    pub(super) fn of<S: Source<Credential = Credentials>>(renewer: &Arc<Renewer<S>>) -> Self {
        let renewer = Arc::clone(renewer);
        Self(Arc::new(move || renewer.current().map(|held| Credentials::clone(&held))))
    }

    /// No credentials, for requests that are not signed.
    pub(super) fn empty() -> Self {
        Self(Arc::new(|| None))
    }
}

impl ProvideCredentials for Slot {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::ready((self.0)().ok_or_else(CredentialsError::not_loaded_no_source))
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slot")
    }
}
