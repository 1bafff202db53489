"""What a holder of valid credentials may do with our coturn, and what not. Real coturn, started by scripts/coturn."""

from __future__ import annotations

import re
import stat
import time

import pytest
from conftest import NEW, OLD, PRIVATE, PUBLIC, RELAY, ROOT, TURN, TURN6, eventually
from turn_client import Refused, credential

SHORT = 0.3
"""For what must not arrive, in seconds; what should arrive does so in a few milliseconds."""

FORBIDDEN = [
    *PRIVATE, "0.0.0.0", "0.1.2.3", "10.255.255.255", "127.0.0.1", "127.255.255.254", "169.254.0.1", "172.31.255.255", "192.0.0.8",
    "192.168.0.1", "198.18.0.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
    # The rest of the networks that coturn's own addresses lie in.
    "198.51.100.77", "2001:db8:1::77",
    "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:0.0.0.0", "::ffff:10.1.2.3", "::ffff:169.254.169.254", "::ffff:8.8.8.8",
    f"::ffff:{TURN}", "64:ff9b::a01:203", "64:ff9b:1::1", "2001::1", "2002:a01:203::1", "100::1", "3fff::1", "5f00::1", "fc00::1", "fd00::1",
    "fd00:ec2::254", "fe80::1", "febf::1", "fec0::1", "ff02::1",
]
"""0.0.0.0 and its like mean loopback to the kernel; 169.254.169.254 and fd00:ec2::254 are a cloud's metadata."""


def code(attempt, *arguments) -> int | None:
    """The error code; None when it succeeded."""
    try:
        attempt(*arguments)
    except Refused as refused:
        return refused.args[0]
    return None


@pytest.fixture(scope="module")
def allocated(turn):
    """A client with an allocation for each family."""
    clients = {4: turn.client("both-families"), 6: turn.client("both-families")}
    for family, client in clients.items():
        client.allocate(family)
    return clients


@pytest.mark.parametrize("ip", FORBIDDEN)
def test_no_private_or_special_peer_is_reached(allocated, ip):
    client = allocated[6 if ":" in ip else 4]
    assert (code(client.permit, ip), code(client.bind_channel, ip, 53)) == (403, 403)


ALLOWED = [
    "1.2.3.4", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.1", "169.253.255.255",
    "172.15.255.255", "172.32.0.0", "192.0.1.0", "192.169.0.0", "198.17.255.255", "198.20.0.0", "223.255.255.255",
    "2001:200::1", "2003::1", "2600::1", "2a00:1450::1", "2620:4f:8001::1", "65::1",
]
"""Neighbours of what is denied: a range too wide would cut off users."""


@pytest.mark.parametrize("ip", ALLOWED)
def test_peers_on_the_internet_are_permitted(allocated, ip):
    client = allocated[6 if ":" in ip else 4]
    assert code(client.permit, ip) is None


def test_no_administration_is_reached(turn, allocated):
    # The ports of coturn's own telnet and web administration, where they are by default.
    for port in (5766, 8080):
        assert not turn.reachable("127.0.0.1", port)
        assert code(allocated[4].bind_channel, "127.0.0.1", port) == 403


def test_nothing_goes_to_a_peer_without_permission(turn, allocated):
    for ip in ("10.1.2.3", "169.254.169.254", "127.0.0.1", "fd00::1", "::1"):
        service, client = turn.service(ip), allocated[6 if ":" in ip else 4]
        client.send(ip, service.port(), b"secret")
        assert service.serve_one(SHORT) is None, ip


def test_a_peer_on_the_internet_is_reached(turn):
    client, service = turn.client(), turn.service(PUBLIC)
    client.allocate()
    client.permit(PUBLIC)
    client.send(PUBLIC, service.port(), b"hello")
    assert service.serve_one(10) == b"hello"
    assert client.receive() == (PUBLIC, service.port(), b"hello")


@pytest.mark.parametrize("family, ip", [(4, TURN), (6, TURN6)])
def test_two_relays_of_the_same_server_reach_each_other(turn, family, ip):
    one, two = turn.client("one", server=ip), turn.client("two", server=ip)
    (ip_one, port_one), (ip_two, port_two) = one.allocate(family), two.allocate(family)
    assert (ip_one, ip_two) == (ip, ip)
    one.permit(ip_two)
    two.bind_channel(ip_one, port_one)
    one.send(ip_two, port_two, b"from one")
    assert two.receive() == ("channel 0x4000", 0, b"from one")
    two.send(ip_one, port_one, b"from two")
    assert one.receive() == (ip_two, port_two, b"from two")


def test_a_relay_with_an_address_of_its_own_does_not_reach_the_listeners(lab):
    lab.start_coturn(COTURN_IP=TURN, COTURN_RELAY_IP=RELAY)
    one, two = lab.client("one"), lab.client("two")
    one.allocate()
    relayed = two.allocate()
    assert relayed[0] == RELAY
    for port in (3478, 443):
        assert (code(one.permit, TURN), code(one.bind_channel, TURN, port)) == (403, 403)
    one.permit(RELAY)
    two.permit(RELAY)
    one.send(*relayed, b"relay to relay")
    assert two.receive()[2] == b"relay to relay"


def test_the_firewall_keeps_relays_from_other_ports_of_their_address(lab):
    lab.start_coturn()
    one, two, service = lab.client("one"), lab.client("two"), lab.service(TURN, 5353)
    one.allocate()
    relayed = two.allocate()
    one.permit(TURN)
    two.permit(TURN)
    one.send(TURN, 5353, b"without the firewall")
    assert service.serve_one(10) == b"without the firewall", "else this test shows nothing"
    assert one.receive()[2] == b"without the firewall"

    rules = (ROOT / "deploy/coturn/firewall.nft").read_text()
    # In the namespace there is one account only.
    rules, replaced = re.subn(r'"turnserver"', "0", rules)
    assert replaced == 1
    path = lab.folder / "firewall.nft"
    path.write_text(rules)
    for _ in range(2):
        lab.run("nft", "-f", str(path))
    one.send(TURN, 5353, b"with it")
    assert service.serve_one(SHORT) is None
    one.send(*relayed, b"relay to relay")
    assert two.receive()[2] == b"relay to relay"
    assert lab.client("three").binding()[0] == TURN, "its listeners answer as before"


def test_a_peer_has_its_quota_whatever_credentials_it_has(turn):
    quota = int(re.search(r"^user-quota=(\d+)$", (ROOT / "deploy/coturn/turnserver.conf").read_text(), re.M)[1])
    clients = [turn.client("greedy") for _ in range(quota + 1)]
    for client in clients[:-1]:
        client.allocate()
    assert code(clients[-1].allocate) == 486
    # A renewed credential is another user name, of the same peer.
    assert code(turn.client("greedy", lasts=1200).allocate) == 486
    turn.client("modest").allocate()
    clients[0].refresh(0)
    # The place is free within moments, not at once.
    eventually(lambda: code(turn.client("greedy", lasts=1200).allocate) is None)


def test_credentials_end_and_allocations_made_before_go_on(turn):
    assert code(turn.client("late", lasts=-2).allocate) == 401
    expiry = int(time.time()) + 2
    username = f"{expiry}:early"
    password = credential(turn.secret(), username)
    live = turn.client_with(username, password)
    live.allocate()
    # coturn's clock counts seconds, and may be a little behind.
    eventually(lambda: time.time() > expiry and code(turn.client_with(username, password).allocate) == 401)
    assert live.refresh(600) == 600
    live.permit(PUBLIC)


def test_forged_credentials_are_refused(turn):
    good = f"{int(time.time()) + 600}:peer"
    password = credential(turn.secret(), good)
    for username, wrong in [
        (good, "wrong"),
        (good, credential("another-secret-another-secret", good)),
        (good.replace("peer", "other"), password),
        (f"{int(time.time()) + 6000}:peer", password),
        ("peer", credential(turn.secret(), "peer")),
    ]:
        assert code(turn.client_with(username, wrong).allocate) == 401, username
    assert code(turn.client_with(good, password).allocate) is None


def test_both_secrets_are_accepted_while_one_takes_the_others_place(lab):
    secret = lab.folder / "secret"
    secret.write_text(f"# since March\n{OLD}\n{NEW}\n")
    secret.chmod(0o600)
    lab.start_coturn()
    for known in (OLD, NEW):
        lab.client(secret=known).allocate()
    assert code(lab.client(secret="canary-of-somebody-else").allocate) == 401


def test_without_a_certificate_443_is_plain_tcp(turn):
    client = turn.client("tcp", transport="tcp", port=443)
    relayed = client.allocate()
    peer = turn.client("udp")
    peer.allocate()
    peer.permit(relayed[0])
    client.permit(relayed[0])
    peer.send(*relayed, b"to tcp")
    assert client.receive()[2] == b"to tcp"


def test_with_a_certificate_443_is_tls_of_today(lab):
    certificate, key = str(lab.folder / "cert.pem"), str(lab.folder / "key.pem")
    lab.run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=turn",
            "-addext", f"subjectAltName=IP:{TURN}", "-keyout", key, "-out", certificate)
    said = lab.start_coturn(COTURN_CERT=certificate, COTURN_KEY=key)
    assert f"turns:{TURN}:443?transport=tcp" in said
    lab.client("tls", transport="tls", port=443, ca=certificate).allocate()
    # What cannot be TLS goes to the same port: networks that let only 443 out and look for no TLS.
    lab.client("tcp", transport="tcp", port=443).allocate()
    for version in ("-tls1", "-tls1_1"):
        # It does not even answer them as TLS, so that openssl waits.
        refused, said = lab.attempt("timeout", "2", "openssl", "s_client", version, "-cipher", "DEFAULT@SECLEVEL=0", "-connect", f"{TURN}:443")
        assert refused, said
    assert lab.attempt("openssl", "s_client", "-tls1_2", "-connect", f"{TURN}:443", "-CAfile", certificate)[0] == 0


def test_good_credentials_are_accepted_from_the_first_moment(lab):
    lab.start_coturn()
    for number in range(8):
        lab.client(f"peer-{number}").allocate()
    assert "ERROR" not in lab.log(), lab.log()


def test_the_secret_stays_in_private_files(lab):
    said = lab.start_coturn()
    secret = lab.secret()
    assert re.fullmatch("[0-9a-f]{64}", secret)
    lab.client().allocate()
    assert code(lab.client(secret="canary-of-somebody-else").allocate) == 401
    assert secret not in said + lab.log()
    processes = lab.run("ps", "-eo", "args")
    assert "turnserver -c" in processes and secret not in processes
    for name in ("secret", "turnserver.conf"):
        assert stat.S_IMODE((lab.folder / name).stat().st_mode) == 0o600, name
    assert f"--turn-secret-file {lab.folder}/secret" in said and f"turn:{TURN}:3478?transport=udp" in said


def test_a_secret_that_others_may_read_is_refused(lab):
    secret = lab.folder / "secret"
    secret.write_text(OLD)
    secret.chmod(0o644)
    refused, said = lab.attempt(str(ROOT / "scripts/coturn"), "start", COTURN_DIR=str(lab.folder), COTURN_IP=TURN)
    assert refused and "chmod 600" in said and OLD not in said


def test_a_taken_port_is_said_and_nothing_stays_behind(lab):
    lab.start_coturn()
    other = str(lab.folder / "other")
    for environment, says in [
        ({"COTURN_IP": TURN}, f"something listens on {TURN}, port 3478, already"),
        ({"COTURN_IP": TURN, "COTURN_PORT": "3500"}, f"something listens on {TURN}, port 443, already"),
        # No address of this machine.
        ({"COTURN_IP": "198.51.100.99"}, "coturn cannot listen at 198.51.100.99, ports 3478 and 443"),
    ]:
        refused, said = lab.attempt(str(ROOT / "scripts/coturn"), "start", COTURN_DIR=other, **environment)
        assert refused and says in said, said
    assert other not in lab.run("ps", "-eo", "args")
    lab.client().allocate()


CONTAINERS = '''#!/usr/bin/env bash
# Stands in for docker: one container, which is the installed turnserver with the configuration that is mounted for it.
set -eu
state="$(dirname "$0")"
case "$1" in
run)
    printf '%s\\n' "$@" >"$state/arguments"
    config="$(sed -n 's|:/etc/coturn/turnserver.conf:ro$||p' "$state/arguments")"
    setsid turnserver -c "$config" >/dev/null 2>&1 </dev/null &
    echo $! >"$state/pid"
    ;;
inspect) kill -0 "$(cat "$state/pid")" && echo true ;;
rm) kill "$(cat "$state/pid")" && rm "$state/pid" ;;
esac
'''


def test_a_container_takes_the_place_of_a_turnserver_that_is_not_installed(lab):
    folder = lab.folder / "containers"
    folder.mkdir()
    engine = folder / "docker"
    engine.write_text(CONTAINERS)
    engine.chmod(0o755)
    lab.start_coturn(COTURN_ENGINE=str(engine))
    lab.client().allocate()
    arguments = (folder / "arguments").read_text()
    assert "--network=host" in arguments and lab.secret() not in arguments
    lab.run(str(ROOT / "scripts/coturn"), "stop")
    eventually(lambda: not lab.reachable(TURN, 3478))


def test_started_again_it_takes_the_place_of_the_first_and_stop_ends_it(lab):
    for _ in range(2):
        lab.start_coturn()
    assert lab.run("ps", "-eo", "args").count(f"turnserver -c {lab.folder}") == 1
    lab.client().allocate()
    lab.run(str(ROOT / "scripts/coturn"), "stop")
    assert f"turnserver -c {lab.folder}" not in lab.run("ps", "-eo", "args")
    assert not lab.reachable(TURN, 3478)
    lab.run(str(ROOT / "scripts/coturn"), "stop")
