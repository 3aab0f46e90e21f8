//! A Vault policy.

use crate::config::{Reader, VaultKey};

/// For `vault policy write`.
pub(super) fn policy(reader: &mut Reader<'_>) -> String {
    let VaultKey { mount, key } = VaultKey::read(reader);
    format!(
        r#"# vault policy write byok FILE
# `update` and never `create`: with `create`, a mistyped name would make a key.
path "{mount}/encrypt/{key}" {{ capabilities = ["update"] }}
path "{mount}/decrypt/{key}" {{ capabilities = ["update"] }}
path "{mount}/rewrap/{key}"  {{ capabilities = ["update"] }}

# Optional. `byok doctor` warns of a mount that creates keys by itself, where it may look:
# path "{mount}/config/keys" {{ capabilities = ["read"] }}
"#
    )
}
