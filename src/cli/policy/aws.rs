//! Policies for a key in AWS KMS: the policies of the key and of the role, and the role's trust
//! policy. The JSON is printed between lines that begin with `#`.

use serde::Serialize;
use serde_json::{Value, json};

use crate::config::{AwsKeyArn, AwsKeyName, AwsRole, AwsSettings, Reader};

/// The actions that wrap and unwrap need, which is all that serving needs.
const SERVING: [&str; 3] = ["kms:GenerateDataKey", "kms:Encrypt", "kms:Decrypt"];
/// The actions that ReEncrypt needs. AWS re-wraps by itself, so that no plain DEK is disclosed.
const ROTATION: [&str; 2] = ["kms:ReEncryptFrom", "kms:ReEncryptTo"];
/// The actions that optional features need.
const OPTIONAL: [&str; 2] = ["kms:ListKeyRotations", "kms:DescribeKey"];

/// Returns the commands for `aws iam` and `aws kms`.
pub(super) fn policy(reader: &mut Reader<'_>) -> String {
    let (Some(key), role) = AwsSettings::grant(reader) else { return String::new() };
    printed(&key, role.as_ref())
}

fn printed(key: &AwsKeyArn, role: Option<&AwsRole>) -> String {
    let AwsKeyArn { partition, region, account, .. } = key;
    let (arn, alias) = match &key.name {
        AwsKeyName::Key(_) => (key.arn.clone(), None),
        AwsKeyName::Alias(alias) => {
            (format!("arn:{partition}:kms:{region}:{account}:key/KEY-ID-OF-THE-ALIAS"), Some(alias))
        }
    };
    let principal = role.map_or_else(
        || format!("arn:{partition}:iam::{account}:role/ROLE-OR-USER-THAT-BYOK-RUNS-AS"),
        |role| role.arn.clone(),
    );
    let mut text = String::new();
    let mut section = |comment: &str, statement: &[Statement]| {
        comment.lines().for_each(|line| text.push_str(&format!("# {line}\n")));
        let document = Document { version: "2012-10-17", statement };
        let json = serde_json::to_string_pretty(&document).expect("no map has a key that is no string");
        text.push_str(&format!("{json}\n\n"));
    };
    let hint = alias.map_or_else(String::new, |alias| {
        format!(
            "\nBYOK_AWS_KEY_ARN names an alias, and policies are about keys: put in the id of the key that it names now:\n\
             aws kms describe-key --region {region} --key-id alias/{alias} --query KeyMetadata.KeyId"
        )
    });
    section(
        &format!(
            "1. The role's permissions: wrap and unwrap with this one key, and re-wrap for rotation (`byok rotate`), which\n\
             may be left out.\n\
             aws iam put-role-policy --role-name ROLE --policy-name byok --policy-document file://permissions.json{hint}"
        ),
        &needed(&arn, None),
    );
    section(
        "2. The key's policy. Needed where it does not leave permissions to IAM (the console's default does, for the\n\
         key's own account): add the statements, keep the others. In a key policy `*` is this key.\n\
         aws kms put-key-policy --key-id KEY --policy-name default --policy file://key-policy.json",
        &needed("*", Some(&principal)),
    );
    match role {
        Some(role) => section(
            "3. The role's trust policy. Insert the identity that byok runs as. The external id keeps another customer of the same\n\
             service from naming this role as theirs.\n\
             aws iam update-assume-role-policy --role-name ROLE --policy-document file://trust.json",
            &[trust(role, partition)],
        ),
        None => section(
            "3. No role is assumed: BYOK_AWS_ROLE_ARN is not set. If the key is a customer's, use a role of theirs with an\n\
             external id; this command then prints its trust policy. The identity that assumes a role needs, on its side:",
            &[statement(
                "ByokTakeRole",
                &["sts:AssumeRole"],
                &format!("arn:{partition}:iam::{account}:role/THE-CUSTOMERS-ROLE"),
                None,
            )],
        ),
    }
    section(
        "Optional, beside 1 (or 2). kms:ListKeyRotations: key versions are numbers (`mrk-…/1`) instead of digits of their\n\
         key material's id; works only for a role of the key's own account. kms:DescribeKey: `byok doctor` can say why\n\
         a key is refused.",
        &[statement("ByokLook", &OPTIONAL, &arn, None)],
    );
    section(
        "Optional, instead of 1: the role opens and makes only what byok makes, whatever else this key wraps, and re-encrypts\n\
         under this key only.",
        &tightened(&arn),
    );
    text
}

/// A policy document, with its members in the usual order.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Document<'a> {
    version: &'static str,
    statement: &'a [Statement],
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Statement {
    sid: &'static str,
    effect: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    principal: Option<Value>,
    action: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    condition: Option<Value>,
}

fn needed(resource: &str, principal: Option<&str>) -> [Statement; 2] {
    [
        statement("ByokWrapAndUnwrap", &SERVING, resource, principal),
        statement("ByokRotate", &ROTATION, resource, principal),
    ]
}

fn statement(
    sid: &'static str,
    actions: &[&'static str],
    resource: &str,
    principal: Option<&str>,
) -> Statement {
    Statement {
        sid,
        effect: "Allow",
        principal: principal.map(|arn| json!({ "AWS": arn })),
        action: actions.to_vec(),
        resource: Some(resource.to_owned()),
        condition: None,
    }
}

fn trust(role: &AwsRole, partition: &str) -> Statement {
    let us = format!("arn:{partition}:iam::ACCOUNT-THAT-BYOK-RUNS-IN:role/ROLE-THAT-BYOK-RUNS-AS");
    let shown = |id: &String| json!({ "StringEquals": { "sts:ExternalId": id } });
    Statement {
        sid: "ByokTakesThisRole",
        effect: "Allow",
        principal: Some(json!({ "AWS": us })),
        action: vec!["sts:AssumeRole"],
        resource: None,
        condition: role.external_id.as_ref().map(shown),
    }
}

/// Returns statements that restrict the encryption context. `ForAllValues` alone is also true if
/// there is no encryption context at all, so `Null` is added
/// (<https://docs.aws.amazon.com/kms/latest/developerguide/conditions-kms.html#conditions-kms-encryption-context-keys>).
fn tightened(arn: &str) -> [Statement; 2] {
    let mut ours = json!({
        "ForAllValues:StringEquals": {
            "kms:EncryptionContextKeys": ["byok:tenant", "byok:dek", "byok:purpose", "byok:checkpoint"],
        },
        "Null": { "kms:EncryptionContextKeys": "false" },
    });
    let mut statements = needed(arn, None);
    statements[0].condition = Some(ours.clone());
    ours["Bool"] = json!({ "kms:ReEncryptOnSameKey": "true" });
    statements[1].condition = Some(ours);
    statements
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Env;

    const KEY: &str = "arn:aws:kms:eu-west-1:111122223333:key/mrk-0123456789abcdef0123456789abcdef";

    fn documents(pairs: &[(&str, &str)]) -> Vec<Value> {
        let env = Env::from_pairs(pairs.iter().copied());
        let mut reader = Reader::new(&env);
        let text = policy(&mut reader);
        assert!(reader.into_errors().is_empty());
        let json: String = text.lines().filter(|line| !line.starts_with('#')).collect();
        serde_json::Deserializer::from_str(&json).into_iter().map(|value| value.unwrap()).collect()
    }

    #[test]
    fn the_permissions_are_for_one_key_and_no_more_than_needed() {
        let permissions = &documents(&[("BYOK_AWS_KEY_ARN", KEY)])[0]["Statement"];
        let actions = ["kms:GenerateDataKey", "kms:Encrypt", "kms:Decrypt"];
        assert_eq!(permissions[0]["Action"], json!(actions));
        assert_eq!(permissions[1]["Action"], json!(["kms:ReEncryptFrom", "kms:ReEncryptTo"]));
        let permissions = permissions.as_array().unwrap();
        assert!(permissions.len() == 2 && permissions.iter().all(|statement| statement["Resource"] == KEY));
    }

    #[test]
    fn the_trust_policy_asks_for_the_external_id() {
        let role = "arn:aws:iam::111122223333:role/byok";
        let documents = documents(&[
            ("BYOK_AWS_KEY_ARN", KEY),
            ("BYOK_AWS_ROLE_ARN", role),
            ("BYOK_AWS_EXTERNAL_ID", "byok-7f3a"),
        ]);
        assert_eq!(documents[1]["Statement"][0]["Principal"]["AWS"], role);
        assert_eq!(documents[2]["Statement"][0]["Condition"]["StringEquals"]["sts:ExternalId"], "byok-7f3a");
    }

    #[test]
    fn an_alias_is_no_resource() {
        let alias = "arn:aws-cn:kms:cn-north-1:111122223333:alias/byok";
        for document in documents(&[("BYOK_AWS_KEY_ARN", alias)]) {
            let resource = &document["Statement"][0]["Resource"];
            assert!(!resource.as_str().unwrap_or_default().contains("alias"));
        }
    }
}
