//! IAM bindings on one key of Google Cloud KMS.

use crate::config::{GcpKey, GcpSettings, Reader};

/// Returns the commands for `gcloud`. `roles/cloudkms.cryptoKeyEncrypterDecrypter` has
/// `useToEncrypt` and `useToDecrypt`. It also has the rights to list locations and to see the
/// project, but a binding on a key does not extend to those. No predefined role of Google's has
/// less.
pub(super) fn policy(reader: &mut Reader<'_>) -> String {
    let Some(key) = GcpKey::read(reader) else { return String::new() };
    let impersonate = GcpSettings::impersonated(reader);
    // In a project of a domain (`example.com:project`), accounts are at `project.example.com`.
    let home = match key.project.split_once(':') {
        Some((domain, project)) => format!("{project}.{domain}"),
        None => key.project.clone(),
    };
    let account = impersonate.clone().unwrap_or_else(|| format!("byok@{home}.iam.gserviceaccount.com"));
    let GcpKey { project, location, ring, key, .. } = key;
    let acting = match impersonate {
        Some(_) => format!(
            "
# Allow the account that byok runs as to act as that account:
gcloud iam service-accounts add-iam-policy-binding '{account}' \\
  --member='serviceAccount:RUNS_AS@PROJECT.iam.gserviceaccount.com' --role='roles/iam.serviceAccountTokenCreator'
"
        ),
        None => String::new(),
    };
    format!(
        "# Encrypt and decrypt with this one key. Put the account that byok uses in place of {account},
# if it is another. Grant nothing on the key ring or the project: that would reach every key in it.
gcloud kms keys add-iam-policy-binding '{key}' --keyring='{ring}' --location='{location}' --project='{project}' \\
  --member='serviceAccount:{account}' --role='roles/cloudkms.cryptoKeyEncrypterDecrypter'
{acting}
# Optional. Nothing else is used: byok learns the key's version by encrypting, and reads no key.
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Env;

    #[test]
    fn shell_commands_name_an_account_and_nothing_else() {
        let account = "a@b'; touch canary; '";
        let env = Env::from_pairs([
            ("BYOK_GCP_KEY_NAME", "projects/p/locations/l/keyRings/r/cryptoKeys/k"),
            ("BYOK_GCP_IMPERSONATE_SERVICE_ACCOUNT", account),
        ]);
        let mut reader = Reader::new(&env);
        policy(&mut reader);
        assert_eq!(reader.into_errors().len(), 1);
    }
}
