//! `webrtc-server init`: makes what the server needs in AWS, or prints how to: a shell script of AWS CLI commands, with the least IAM policy
//! for the server's role in it.

use serde_json::{Value, json};

use crate::runtime::config::SignInWay;

/// What the server may do with its rooms: what [`Store`](crate::runtime::store::Store) calls, and the two looks at its start.
const ROOM_ACTIONS: [&str; 5] =
    ["dynamodb:GetItem", "dynamodb:PutItem", "dynamodb:DeleteItem", "dynamodb:DescribeTable", "dynamodb:DescribeTimeToLive"];

/// What the server may do with its users, in whichever way they sign in: deleting them, finding those that were forgotten, and the two looks at
/// its start.
const USER_ACTIONS: [&str; 4] =
    ["cognito-idp:AdminDeleteUser", "cognito-idp:ListUsers", "cognito-idp:DescribeUserPool", "cognito-idp:DescribeUserPoolClient"];

/// One part of what the server needs: the commands that make it, and what the server may do with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// For people.
    pub title: &'static str,
    /// Each one line of shell.
    pub commands: Vec<String>,
    /// A statement of the IAM policy.
    pub statement: Value,
}

/// The table of rooms. The name needs no quoting: it has letters, digits, `_`, `.` and `-`.
pub fn rooms(table: &str) -> Part {
    Part {
        title: "Rooms: a table that costs by use, from which AWS deletes what has expired",
        commands: vec![
            format!(
                "aws dynamodb create-table --table-name {table} --billing-mode PAY_PER_REQUEST \
                 --attribute-definitions AttributeName=room_id,AttributeType=S --key-schema AttributeName=room_id,KeyType=HASH"
            ),
            format!("aws dynamodb wait table-exists --table-name {table}"),
            format!(
                "aws dynamodb update-time-to-live --table-name {table} \
                 --time-to-live-specification Enabled=true,AttributeName=expires_at"
            ),
        ],
        statement: json!({
            "Sid": "Rooms",
            "Effect": "Allow",
            "Action": ROOM_ACTIONS,
            "Resource": format!("arn:aws:dynamodb:*:*:table/{table}"),
        }),
    }
}

/// The user pool and its app client. The name needs no quoting: it has letters, digits, `_`, `.` and `-`.
pub fn users(name: &str, way: SignInWay) -> Part {
    // With SignUp and InitiateAuth a user acts for himself, which needs no rights.
    let (flow, closed, own): (_, _, &[&str]) = match way {
        SignInWay::Admin => (
            "ALLOW_ADMIN_USER_PASSWORD_AUTH",
            true,
            &["cognito-idp:AdminCreateUser", "cognito-idp:AdminSetUserPassword", "cognito-idp:AdminInitiateAuth"],
        ),
        SignInWay::SignUp => ("ALLOW_USER_PASSWORD_AUTH", false, &["cognito-idp:AdminConfirmSignUp"]),
    };
    let actions: Vec<&str> = USER_ACTIONS.iter().chain(own).copied().collect();
    Part {
        title: "Anonymous users: a pool where they have nothing but names, and an app client whose id tokens are valid for a day",
        commands: vec![
            format!(
                "POOL=$(aws cognito-idp create-user-pool --pool-name {name} --admin-create-user-config AllowAdminCreateUserOnly={closed} \
                 --mfa-configuration OFF --deletion-protection ACTIVE --query UserPool.Id --output text)"
            ),
            format!(
                "CLIENT=$(aws cognito-idp create-user-pool-client --user-pool-id \"$POOL\" --client-name webrtc-server \
                 --explicit-auth-flows {flow} --id-token-validity 24 --access-token-validity 1 --refresh-token-validity 24 \
                 --token-validity-units IdToken=hours,AccessToken=hours,RefreshToken=hours --prevent-user-existence-errors ENABLED \
                 --query UserPoolClient.ClientId --output text)"
            ),
            format!("echo \"webrtc-server --auth cognito --cognito-pool $POOL --cognito-client $CLIENT --cognito-sign-in {way}\""),
        ],
        statement: json!({
            "Sid": "Users",
            "Effect": "Allow",
            "Action": actions,
            "Resource": "arn:aws:cognito-idp:*:*:userpool/*",
        }),
    }
}

/// The whole policy.
pub fn policy(parts: &[Part]) -> Value {
    let statements: Vec<&Value> = parts.iter().map(|part| &part.statement).collect();
    json!({"Version": "2012-10-17", "Statement": statements})
}

/// A shell script that makes everything.
pub fn script(parts: &[Part]) -> String {
    let mut script = "#!/bin/sh\n# What webrtc-server needs in AWS. Each command is run once; AWS_REGION and AWS_PROFILE say where and by whom.\nset -e\n".to_owned();
    for part in parts {
        script.push_str(&format!("\n# {}.\n{}\n", part.title, part.commands.join("\n")));
    }
    script.push_str(
        "\n# The least that the server itself may do: attach it to its role. The stars stand for region and account; name yours, and the pool, to allow still less.\n",
    );
    script.push_str(&format!("aws iam create-policy --policy-name webrtc-connect-server --policy-document '{:#}'\n", policy(parts)));
    script
}

/// The same for programs.
pub fn to_json(parts: &[Part]) -> Value {
    let commands: Vec<&String> = parts.iter().flat_map(|part| &part.commands).collect();
    json!({"commands": commands, "policy": policy(parts)})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_allows_what_the_server_calls_on_its_table_alone() {
        let policy = policy(&[rooms("my-rooms")]);
        let statement = &policy["Statement"][0];
        assert_eq!(statement["Resource"], "arn:aws:dynamodb:*:*:table/my-rooms");
        let actions = statement["Action"].as_array().unwrap();
        assert!(actions.contains(&json!("dynamodb:GetItem")) && !actions.contains(&json!("dynamodb:CreateTable")));
        assert!(!policy.to_string().contains("dynamodb:*\""));
    }

    #[test]
    fn users_need_the_rights_of_their_way_alone() {
        let actions = |way| users("my-users", way).statement["Action"].to_string();
        let (admin, sign_up) = (actions(SignInWay::Admin), actions(SignInWay::SignUp));
        assert!(admin.contains("AdminCreateUser") && !admin.contains("AdminConfirmSignUp"));
        assert!(sign_up.contains("AdminConfirmSignUp") && !sign_up.contains("AdminCreateUser"));
        assert!([admin, sign_up].iter().all(|actions| actions.contains("AdminDeleteUser") && !actions.contains('*')));
    }

    #[test]
    fn the_script_is_shell_and_its_policy_json() {
        let parts = [rooms("my-rooms"), users("my-users", SignInWay::Admin)];
        let script = script(&parts);
        let checked = std::process::Command::new("sh").args(["-n", "-c", &script]).status().unwrap();
        assert!(checked.success(), "{script}");
        let (_, quoted) = script.split_once("--policy-document '").unwrap();
        let document: Value = serde_json::from_str(quoted.trim_end().strip_suffix('\'').unwrap()).unwrap();
        assert_eq!(document, policy(&parts));
        assert!(script.contains("AttributeName=expires_at"));
    }
}
