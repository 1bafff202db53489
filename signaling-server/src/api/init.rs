//! `webrtc-server init`: makes what the server needs in AWS, or prints how to: a shell script of AWS CLI commands, with the least IAM policy
//! for the server's role in it.

use serde_json::{Value, json};

/// What the server may do with its rooms: what [`Store`](crate::runtime::store::Store) calls, and the two looks at its start.
const ROOM_ACTIONS: [&str; 5] =
    ["dynamodb:GetItem", "dynamodb:PutItem", "dynamodb:DeleteItem", "dynamodb:DescribeTable", "dynamodb:DescribeTimeToLive"];

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
        "\n# The least that the server itself may do: attach it to its role. The stars stand for region and account; name yours to allow still less.\n",
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
    fn the_script_is_shell_and_its_policy_json() {
        let script = script(&[rooms("my-rooms")]);
        let checked = std::process::Command::new("sh").args(["-n", "-c", &script]).status().unwrap();
        assert!(checked.success(), "{script}");
        let (_, quoted) = script.split_once("--policy-document '").unwrap();
        let document: Value = serde_json::from_str(quoted.trim_end().strip_suffix('\'').unwrap()).unwrap();
        assert_eq!(document, policy(&[rooms("my-rooms")]));
        assert!(script.contains("AttributeName=expires_at"));
    }
}
