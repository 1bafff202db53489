"""Worker and client that may use relays only, with nothing told to them: all comes from the signaling server."""

from __future__ import annotations

import json

from conftest import TURN, environment_of, eventually, program


def test_two_relays_on_a_private_address_connect_client_and_worker(lab):
    flags = lab.start_coturn().strip().splitlines()[-1].split()
    folder, environment, url = lab.folder, environment_of(lab.folder), "http://127.0.0.1:8001"
    server = lab.background(program("webrtc-server"), "--listen", "127.0.0.1:8001", "--store", "memory", *flags,
                            environment=environment, log=folder / "server.log")
    eventually(lambda: lab.reachable("127.0.0.1", 8001))
    worker = lab.background(program("webrtc-worker"), "--server", url, "--data-dir", str(folder / "worker"), "--relay-only",
                            "--invite-file", str(folder / "invite"), environment=environment, log=folder / "worker.log")
    eventually(lambda: (folder / "invite").exists(), 30)
    said = lab.run(program("webrtc-client"), "--json", "--invite-file", str(folder / "invite"), "--relay-only", "status", **environment)
    [connected] = [event for line in said.splitlines() if line.startswith("{") and (event := json.loads(line)).get("type") == "connected"]
    route = connected["route"]
    assert route["kind"] == "relayed"
    assert route["local"].startswith(f"relay {TURN}:") and route["remote"].startswith(f"relay {TURN}:"), route
    # What goes over a relay does not wait for the driver's next timer, 200 ms away.
    assert route["rtt"] < 0.1, route
    assert server.running() and worker.running()
    log = lab.log() + (folder / "server.log").read_text() + (folder / "worker.log").read_text()
    assert lab.secret() not in log
