//! Doctor with a real server and a real worker.

use super::lab::Lab;

/// What a program of ours says with `--json`, as one object, and its exit code.
fn examine(lab: &Lab) -> (serde_json::Value, i32) {
    let mut client = lab.client(&["doctor"]);
    let code = client.exit_code();
    (client.all("doctor")[0].clone(), code)
}

#[test]
fn doctor_looks_at_both_sides_and_at_what_is_between_them() {
    let lab = Lab::new();
    let (_server, mut worker) = lab.open();
    let (well, code) = examine(&lab);
    assert_eq!((code, well["healthy"].as_bool()), (0, Some(true)), "{well:#}");
    assert_eq!(well["problems"].as_array().map(Vec::len), Some(0), "{well:#}");
    let examination = &well["examination"];
    assert_eq!(examination["trial"]["route"]["kind"], "direct", "{well:#}");
    assert!(examination["worker"]["addresses"].as_array().is_some_and(|addresses| !addresses.is_empty()), "{well:#}");
    let layers: Vec<&str> = examination["steps"].as_array().unwrap().iter().map(|step| step["layer"].as_str().unwrap()).collect();
    assert_eq!(layers, ["dns", "tcp", "http", "websocket"]);
    assert_eq!(well["pairs"][0]["state"], "in-use");

    worker.kill9();
    let (gone, code) = examine(&lab);
    assert_eq!((code, gone["problems"][0]["cause"].as_str()), (11, Some("worker-gone")), "{gone:#}");
}

#[test]
fn status_says_which_way_it_came() {
    let lab = Lab::new();
    let (_server, _worker) = lab.open();
    let mut client = lab.client(&["status"]);
    assert_eq!(client.exit_code(), 0);
    let path = client.all("path")[0];
    assert_eq!((path["route"]["kind"].as_str(), &path["why"]), (Some("direct"), &serde_json::Value::Null), "{path}");
}
