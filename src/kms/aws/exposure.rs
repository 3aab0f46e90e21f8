//! Settings that work but leave something unprotected, as far as the configuration shows them and
//! the customer permits us to read the key's description.

use aws_sdk_kms::types::KeyState;

use crate::config::{AwsCredentials, AwsSettings};
use crate::kms::budget::Share;
use crate::kms::call::Call;
use crate::kms::{Asked, Exposure};

use super::key::Key;

/// The exposures that the configuration alone shows.
pub(super) fn of_settings(settings: &AwsSettings) -> Vec<Exposure> {
    let mut found = Vec::new();
    if let AwsCredentials::Keys { session_token: None, .. } = settings.credentials {
        found.push(Exposure {
            what: "identity: an access key that never expires: a copy of it can be used until somebody deletes it",
            remedy: "use web identity (EKS), a container's or a machine's role, or a session",
        });
    }
    if settings.role.as_ref().is_some_and(|role| role.external_id.is_none()) {
        found.push(Exposure {
            what: "identity: the role is taken without an external id; another customer who learns its ARN could pass it off as their own",
            remedy: "set BYOK_AWS_EXTERNAL_ID, and require it in the role's trust policy (`byok policy aws-kms`)",
        });
    }
    found
}

impl Key {
    /// The exposures of the configuration and of the key, for `doctor`.
    pub(super) async fn exposure(&self) -> Vec<Exposure> {
        let mut found = self.warnings.clone();
        let deadline = self.policy.deadline();
        let Ok(pinned) = self.pinned(Share::Probe, deadline).await else { return found };
        if pinned.id.starts_with("mrk-") {
            found.push(Exposure {
                what: "key: it is a multi-region key: disabling it in this region leaves its replicas in other regions usable",
                remedy: "disable it in every region that has a replica; byok itself uses only this region",
            });
        }
        if self.versions.may_not_list() {
            found.push(Exposure {
                what: "key: its versions are named by key material, not by number: we may not list its rotations",
                remedy: "if you want numbers, permit kms:ListKeyRotations on it, as `byok policy aws-kms` prints it",
            });
        }
        // If we may read it, the description distinguishes states that share an error code.
        let send = || self.client().describe_key().key_id(&pinned.arn).send();
        let call = Call { asked: Asked::Describe, share: Share::Probe, deadline };
        let described = self.call(call, send).await.ok().and_then(|(described, _)| described.key_metadata);
        if let Some(what) = described.and_then(|key| state(key.key_state?)) {
            found.push(what);
        }
        found
    }
}

/// The exposure of a state in which KMS refuses the key.
fn state(state: KeyState) -> Option<Exposure> {
    let (what, remedy) = match state {
        KeyState::Disabled => ("key: AWS says that it is disabled", "enable it (kms:EnableKey)"),
        KeyState::PendingDeletion => (
            "key: AWS says that it is scheduled for deletion",
            "cancel the deletion and enable it (kms:CancelKeyDeletion, kms:EnableKey) before the waiting period is over",
        ),
        KeyState::PendingImport => (
            "key: AWS says that its imported key material is missing or has expired",
            "import the same key material again (kms:ImportKeyMaterial)",
        ),
        KeyState::Unavailable => {
            ("key: AWS says that its custom key store is disconnected", "reconnect the key store")
        }
        KeyState::PendingReplicaDeletion => (
            "key: AWS says that it is scheduled for deletion, after its replicas",
            "cancel the deletion (kms:CancelKeyDeletion)",
        ),
        _ => return None,
    };
    Some(Exposure { what, remedy })
}
