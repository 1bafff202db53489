//! Sign-ins: each makes a user, which in a user pool costs money, so that there are as few as can be.

use std::{os::unix::fs::PermissionsExt, path::Path};

use super::lab::Lab;

#[test]
fn one_sign_in_serves_every_reconnect_and_the_next_runs() {
    let lab = Lab::new();
    let (mut server, mut worker) = lab.open();
    let look = || assert_eq!(lab.client(&["status"]).exit_code(), 0);
    look();
    look();
    assert_eq!(lab.sign_ins(), 2, "the worker's and the client's");
    for _ in 0..2 {
        server.kill9();
        server.start_again();
        // It is answered by the worker, which has thus come back.
        look();
        assert_eq!(lab.sign_ins(), 0, "of this server's life");
    }
    worker.kill9();
    worker.start_again();
    look();
    assert_eq!(lab.sign_ins(), 0);
    for folder in [lab.path("worker/id-tokens"), lab.path("anna/XDG_CONFIG_HOME/webrtc-connect/id-tokens")] {
        assert_private(&folder);
    }
}

#[test]
fn tokens_that_the_server_does_not_know_any_more_are_replaced_at_once() {
    let lab = Lab::new();
    let (mut server, _worker) = lab.open();
    assert_eq!(lab.client(&["status"]).exit_code(), 0);
    server.kill9();
    std::fs::remove_file(lab.path("server/signing-key.pem")).unwrap();
    server.start_again();
    assert_eq!(lab.client(&["status"]).exit_code(), 0);
    assert_eq!(lab.sign_ins(), 2, "each of them once more");
    assert_eq!(lab.client(&["status"]).exit_code(), 0);
    assert_eq!(lab.sign_ins(), 2);
}

/// One file, for its owner only.
fn assert_private(folder: &Path) {
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    assert_eq!(files[0].metadata().unwrap().permissions().mode() & 0o777, 0o600);
}
