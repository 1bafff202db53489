//! What `/openapi.json` promises, held against the real program by Schemathesis: every route with right and wrong input, with and
//! without a user.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::process::start;

/// Nothing of what the tool does is held back; all other limits are tested elsewhere.
const LIMITS: &str = "[server.limits]\nsign_ins_per_minute = 1000000\nsign_ins_per_second_in_all = 1000000\nrooms_per_minute = 1000000\n\
                      requests_per_minute = 10000000\n";
/// Cases of each phase and route: some thousand requests in all.
const CASES: &str = "30";

fn schemathesis() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace");
    let folder = std::env::var_os("WEBRTC_TEST_TOOLS").map_or_else(|| root.join(".venv-tools/bin"), PathBuf::from);
    let tool = folder.join("st");
    assert!(
        tool.exists(),
        "Schemathesis is needed and {} is missing: run scripts/test, or name its folder in WEBRTC_TEST_TOOLS",
        tool.display()
    );
    tool
}

#[tokio::test]
async fn the_rest_interface_keeps_what_its_document_promises() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("webrtc-connect.toml"), LIMITS).unwrap();
    let program = start(dir.path(), &[]);
    let user = program.api.sign_in().await;
    let mut command = Command::new(schemathesis());
    command
        .current_dir(dir.path())
        .args(["--no-color", "run", "--checks", "all", "--generation-deterministic", "--continue-on-failure"])
        .args(["--max-examples", CASES, "--request-timeout", "20", "--output-truncate", "false"])
        .arg("--header")
        .arg(format!("Authorization: Bearer {}", user.token))
        .arg(format!("http://{}/openapi.json", program.api.address));
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    println!("{said}");
}
