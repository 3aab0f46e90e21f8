//! A policy for Vault.

use crate::config::{Reader, VaultKey};

/// Returns the policy for `vault policy write`.
pub(super) fn policy(reader: &mut Reader<'_>) -> String {
    let VaultKey { mount, key } = VaultKey::read(reader);
    format!(
        r#"# vault policy write byok FILE
# `update` and never `create`: with `create`, a mistyped name would make a key.

# Wrap and unwrap: all that serving needs.
path "{mount}/encrypt/{key}" {{ capabilities = ["update"] }}
path "{mount}/decrypt/{key}" {{ capabilities = ["update"] }}

# Rotation (`byok rotate`, `byokRotate`): Vault re-wraps by itself, so that no plain DEK is seen.
path "{mount}/rewrap/{key}" {{ capabilities = ["update"] }}

# A token that expires is renewed before. The policy `default` grants both, unless the token was made without it.
path "auth/token/renew-self" {{ capabilities = ["update"] }}
path "auth/token/lookup-self" {{ capabilities = ["read"] }}

# `byok doctor` warns of a mount that creates keys by itself, and of a key that is weaker than it should be. For that it needs
# these rights (remove the # to grant them):
# path "sys/capabilities-self" {{ capabilities = ["update"] }}
# path "{mount}/config/keys" {{ capabilities = ["read"] }}
# path "{mount}/keys/{key}" {{ capabilities = ["read"] }}
"#
    )
}
