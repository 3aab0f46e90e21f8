//! Policies for a key in AWS KMS: what the key, the role and the role's trust have to say. All JSON stands between lines that
//! begin with `#`.

use serde_json::{Value, json};

use crate::config::{AwsKeyArn, AwsKeyName, AwsRole, AwsSettings, Reader};

/// What wrap and unwrap need: all that serving needs.
const SERVING: [&str; 3] = ["kms:GenerateDataKey", "kms:Encrypt", "kms:Decrypt"];
/// What ReEncrypt asks for: AWS re-wraps by itself, so that no plain DEK is seen.
const ROTATION: [&str; 2] = ["kms:ReEncryptFrom", "kms:ReEncryptTo"];
/// What a feature more asks for.
const OPTIONAL: [&str; 2] = ["kms:ListKeyRotations", "kms:DescribeKey"];

/// For `aws iam` and `aws kms`.
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
    let mut section = |comment: &str, document: &Value| {
        comment.lines().for_each(|line| text.push_str(&format!("# {line}\n")));
        text.push_str(&format!("{document:#}\n\n"));
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
        &document(&needed(&arn, None)),
    );
    section(
        "2. The key's policy. Needed where it does not leave permissions to IAM (the console's default does, for the\n\
         key's own account): add the statements, keep the others. In a key policy `*` is this key.\n\
         aws kms put-key-policy --key-id KEY --policy-name default --policy file://key-policy.json",
        &document(&needed("*", Some(&principal))),
    );
    match role {
        Some(role) => section(
            "3. The role's trust policy. Put in who byok runs as. The external id is what keeps another customer of the same\n\
             service from naming this role as theirs.\n\
             aws iam update-assume-role-policy --role-name ROLE --policy-document file://trust.json",
            &document(&[trust(role, partition)]),
        ),
        None => section(
            "3. No role is taken: BYOK_AWS_ROLE_ARN is not set. Where the key is a customer's, take one of theirs, with an\n\
             external id; this command then prints its trust policy. Whoever takes a role needs, on their side:",
            &document(&[statement(
                "ByokTakeRole",
                &["sts:AssumeRole"],
                &format!("arn:{partition}:iam::{account}:role/THE-CUSTOMERS-ROLE"),
                None,
            )]),
        ),
    }
    section(
        "Optional, beside 1 (or 2). kms:ListKeyRotations: key versions are numbers (`mrk-…/1`) instead of digits of their\n\
         key material's id; works only for a role of the key's own account. kms:DescribeKey: `byok doctor` tells apart why\n\
         a key is refused.",
        &document(&[statement("ByokLook", &OPTIONAL, &arn, None)]),
    );
    section(
        "Optional, instead of 1: the role opens and makes only what byok makes, whatever else this key wraps, and re-encrypts\n\
         under this key only.",
        &document(&tightened(&arn)),
    );
    text
}

fn document(statements: &[Value]) -> Value {
    json!({ "Version": "2012-10-17", "Statement": statements })
}

fn needed(resource: &str, principal: Option<&str>) -> [Value; 2] {
    [
        statement("ByokWrapAndUnwrap", &SERVING, resource, principal),
        statement("ByokRotate", &ROTATION, resource, principal),
    ]
}

fn statement(sid: &str, actions: &[&str], resource: &str, principal: Option<&str>) -> Value {
    let mut statement = json!({ "Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resource });
    if let Some(arn) = principal {
        statement["Principal"] = json!({ "AWS": arn });
    }
    statement
}

fn trust(role: &AwsRole, partition: &str) -> Value {
    let mut trust = json!({
        "Sid": "ByokTakesThisRole",
        "Effect": "Allow",
        "Principal": { "AWS": format!("arn:{partition}:iam::ACCOUNT-THAT-BYOK-RUNS-IN:role/ROLE-THAT-BYOK-RUNS-AS") },
        "Action": "sts:AssumeRole",
    });
    if let Some(id) = &role.external_id {
        trust["Condition"] = json!({ "StringEquals": { "sts:ExternalId": id } });
    }
    trust
}

/// `ForAllValues` alone is true where there is no encryption context at all, so `Null` stands beside it
/// (<https://docs.aws.amazon.com/kms/latest/developerguide/conditions-kms.html#conditions-kms-encryption-context-keys>).
fn tightened(arn: &str) -> [Value; 2] {
    let mut statements = needed(arn, None);
    for statement in &mut statements {
        statement["Condition"] = json!({
            "ForAllValues:StringEquals": {
                "kms:EncryptionContextKeys": ["byok:tenant", "byok:dek", "byok:purpose"],
            },
            "Null": { "kms:EncryptionContextKeys": "false" },
        });
    }
    statements[1]["Condition"]["Bool"] = json!({ "kms:ReEncryptOnSameKey": "true" });
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
        assert!(reader.into_mistakes().is_empty());
        let json: String = text.lines().filter(|line| !line.starts_with('#')).collect();
        serde_json::Deserializer::from_str(&json).into_iter().map(|value| value.unwrap()).collect()
    }

    #[test]
    fn the_permissions_are_for_the_one_key_and_no_more_than_is_needed() {
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
