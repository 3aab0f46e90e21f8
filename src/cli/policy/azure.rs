//! Commands for the Azure CLI: a role with two data actions, assigned on only this key.

use crate::config::{AzureKey, AzureService, Reader};

/// Returns the commands for somebody who may assign roles on the vault or in the managed HSM.
pub(super) fn policy(reader: &mut Reader<'_>) -> String {
    let Some(key) = AzureKey::read(reader) else { return String::new() };
    let holder = key.vault.host_str().and_then(|host| host.split('.').next()).unwrap_or_default();
    let name = &key.name;
    match key.service {
        AzureService::Vault => format!(
            r#"# The object id of byok's identity: of the application's service principal, or of the managed identity (a system-assigned one has
# no client id: az vm identity show --name VM --resource-group GROUP --query principalId --output tsv).
PRINCIPAL=$(az ad sp show --id "$BYOK_AZURE_CLIENT_ID" --query id --output tsv)
VAULT=$(az keyvault show --name {holder} --query id --output tsv)
SUBSCRIPTION=$(az account show --query id --output tsv)

# Wrap and unwrap: all that byok needs, rotation included. Once in a subscription:
az role definition create --role-definition '{{
  "Name": "byok wrap and unwrap",
  "Description": "Wraps and unwraps data encryption keys; reads and changes nothing",
  "Actions": [],
  "DataActions": [
    "Microsoft.KeyVault/vaults/keys/wrap/action",
    "Microsoft.KeyVault/vaults/keys/unwrap/action"
  ],
  "AssignableScopes": ["/subscriptions/'"$SUBSCRIPTION"'"]
}}'
# On this one key, in all its versions:
az role assignment create --role "byok wrap and unwrap" \
  --assignee-object-id "$PRINCIPAL" --assignee-principal-type ServicePrincipal \
  --scope "$VAULT/keys/{name}"

# Instead of both, if the vault still has access policies. They cannot name a single key: this grants every key of the vault.
# az keyvault set-policy --name {holder} --object-id "$PRINCIPAL" --key-permissions wrapKey unwrapKey

# `byok doctor` warns of a key without purge protection, or that expires. For that it needs:
# az role assignment create --role "Key Vault Reader" \
#   --assignee-object-id "$PRINCIPAL" --assignee-principal-type ServicePrincipal \
#   --scope "$VAULT/keys/{name}"
"#
        ),
        AzureService::ManagedHsm => format!(
            r#"# The object id of byok's identity: of the application's service principal, or of the managed identity (a system-assigned one has
# no client id: az vm identity show --name VM --resource-group GROUP --query principalId --output tsv).
PRINCIPAL=$(az ad sp show --id "$BYOK_AZURE_CLIENT_ID" --query id --output tsv)

# Wrap and unwrap: all that byok needs, rotation included. Once in this managed HSM:
az keyvault role definition create --hsm-name {holder} --role-definition '{{
  "roleName": "byok wrap and unwrap",
  "description": "Wraps and unwraps data encryption keys; reads and changes nothing",
  "actions": [],
  "notActions": [],
  "dataActions": [
    "Microsoft.KeyVault/managedHsm/keys/wrap/action",
    "Microsoft.KeyVault/managedHsm/keys/unwrap/action"
  ],
  "notDataActions": []
}}'
# On this one key, in all its versions:
az keyvault role assignment create --hsm-name {holder} --role "byok wrap and unwrap" \
  --assignee-object-id "$PRINCIPAL" --assignee-principal-type ServicePrincipal \
  --scope /keys/{name}

# `byok doctor` warns of a key without purge protection, or that expires. For that it needs:
# az keyvault role assignment create --hsm-name {holder} --role "Managed HSM Crypto Auditor" \
#   --assignee-object-id "$PRINCIPAL" --assignee-principal-type ServicePrincipal \
#   --scope /keys/{name}
"#
        ),
    }
}
