"""The signaling server with thousands of peers: memory, latency of its relay, what disturbs them, what a restart costs."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

from report import absolute, environment, parse_names, say, table, write_json
from tools import Failed

LOOPBACK = True
"""Has no use for a link."""
DISTURBERS = ["slow", "malformed", "flood", "guess"]
MOST_MEMORY = 200e6
"""Bytes that the server may have resident with everybody connected and talking."""
MOST_LATENCY = 5e3
"""Microseconds within which 99 of 100 messages must be there."""
DISTURBED = 2.0
"""How much longer that may take while others misbehave."""
LEAST_BASELINE = 1e3
"""Microseconds below which a baseline counts as this: a scheduler's hiccup would double less."""
LIMITS = "[server.limits]\nsockets = 20000\nsign_ins_per_second_in_all = 100000\n"
"""All others are the defaults: each peer has an address of its own."""
START_TIME = 20.0


class Server:
    """The real program with its data in a folder; started again on the same port."""

    def __init__(self, options: argparse.Namespace, folder: Path):
        self._options, self._folder, self.address = options, folder, "127.0.0.1:0"
        (folder / "server.toml").write_text(LIMITS)
        self.start()

    def start(self) -> None:
        """Start, and wait until it listens."""
        command = [self._options.bin_dir / "webrtc-server", "--listen", self.address, "--json", "--store", self._options.store,
                   "--data-dir", self._folder / "data", "--config", self._folder / "server.toml"]
        with open(self._folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(command, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
        line = self.process.stdout.readline()
        if not line:
            raise Failed(f"the server does not start: {(self._folder / 'server.log').read_text()[-500:]}")
        self.address = json.loads(line)["ws"].removeprefix("ws://")

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()


def generate(server: Server, options: argparse.Namespace, *more: object) -> list[dict]:
    """Run the load generator to its end; what it said."""
    command = [options.generator, "--server", server.address, "--pid", server.process.pid, *more]
    events = []
    process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        for line in process.stdout:
            event = json.loads(line)
            events.append(event)
            say(f"  {event['event']} {event.get('name', '')}".rstrip())
            if event["event"] == "ready":
                server.kill()
                server.start()
        if process.wait() != 0:
            raise Failed("the load generator failed")
    finally:
        process.kill()
        process.wait()
    return events


def megabytes(count: float) -> str:
    return f"{count / 1e6:.0f}"


def milliseconds(micros: float | None) -> str:
    return "-" if micros is None else f"{micros / 1e3:.2f}"


def phase_rows(events: list[dict]) -> list[list[str]]:
    """One line for each phase."""
    rows = [["phase", "sent/s", "p50 ms", "p99", "p99.9", "max", "lost", "refused", "dropped", "join p99 ms", "RSS MB", "peak", "CPU %", "generator", "late p99"]]
    for phase in (event for event in events if event["event"] == "phase"):
        messages, relay, late = phase["messages"], phase["latency"]["relay_us"], phase["latency"]["generator_late_us"]
        joins = phase["more"].get("join_ms", {}).get("p99")
        rows.append([phase["name"], f"{messages['sent'] / phase['seconds']:.0f}", *(milliseconds(relay[key]) for key in ("p50", "p99", "p999", "max")),
                     *(str(messages[key]) for key in ("lost", "refused", "dropped")), "-" if joins is None else f"{joins:.0f}",
                     megabytes(phase["rss_after"]), megabytes(phase["rss_peak"]), f"{phase['server_cpu_s'] / phase['seconds'] * 100:.0f}",
                     f"{phase['generator_cpu_s'] / phase['seconds'] * 100:.0f}", milliseconds(late["p99"])])
    return rows


def attack_rows(attacks: list[dict]) -> list[list[str]]:
    """One line for each malformed thing."""
    rows = [["malformed", "ends with", "CPU ms each", "RSS kB each"]]
    for attack in attacks:
        rows.append([attack["attack"], ", ".join(attack["endings"]), f"{attack['cpu_ms_each']:.1f}", f"{attack['rss_grown'] / attack['times'] / 1e3:.0f}"])
    return rows


def phase_faults(phase: dict, baseline: dict | None) -> list[str]:
    """What must not be in any phase."""
    name, messages, found = phase["name"], phase["messages"], []
    for what in "lost", "twice", "broken", "unsent", "dropped":
        if messages[what]:
            found.append(f"{name}: {messages[what]} {'peers' if what == 'dropped' else 'messages'} {what}")
    found += [f"{name}: a peer could not join: {why}" for why in phase["more"].get("joins_failed", [])[:3]]
    p99 = phase["latency"]["relay_us"]["p99"]
    if name == "baseline" and p99 > MOST_LATENCY:
        found.append(f"{name}: 99 of 100 messages within {p99 / 1e3:.1f} ms; {MOST_LATENCY / 1e3:.0f} are the goal")
    if baseline and name in DISTURBERS:
        most = DISTURBED * max(baseline["latency"]["relay_us"]["p99"], LEAST_BASELINE)
        if p99 > most:
            found.append(f"{name}: 99 of 100 messages within {p99 / 1e3:.1f} ms; {most / 1e3:.1f} are the goal")
    if name in ("negotiate", "baseline") and phase["rss_peak"] > MOST_MEMORY:
        found.append(f"{name}: {megabytes(phase['rss_peak'])} MB resident; {megabytes(MOST_MEMORY)} are allowed")
    return found


def disturber_faults(phase: dict, before: dict) -> list[str]:
    """What the disturbers themselves must have met."""
    more, found = phase["more"], []
    if phase["name"] == "slow":
        if more["cut_after_ms"]["max"] is None or more["cut_after_ms"]["max"] > 6e3:
            found.append(f"slow: half-open connections were cut after {more['cut_after_ms']['max']} ms; 5 s are the goal")
        if more["join_ms"]["p99"] > 250:
            found.append(f"slow: 99 of 100 peers joined within {more['join_ms']['p99']:.0f} ms; 250 are the goal")
        if phase["rss_after"] - before["rss_after"] > 40e6:
            found.append(f"slow: the server grew by {megabytes(phase['rss_after'] - before['rss_after'])} MB; 40 are allowed")
    if phase["name"] == "flood":
        if unexpected := set(more["flood_ended"]) - {"4429", "RATE_LIMITED"}:
            found.append(f"flood: it was cut with {', '.join(unexpected)} instead of 4429")
        if not more["deaf_was_cut"]:
            found.append("flood: the peer that does not read was not cut")
    if phase["name"] == "guess":
        kinds = more["guess_answers"]
        if len(kinds) != 1 or "ROOM_NOT_FOUND" not in next(iter(kinds)):
            found.append(f"guess: wrong rooms and wrong tokens are answered differently: {kinds}")
        room, token = more["guess_wrong_room_ms"]["p50"], more["guess_wrong_token_ms"]["p50"]
        if abs(room - token) > 0.1 * max(room, token):
            found.append(f"guess: wrong rooms are answered in {room:.2f} ms and wrong tokens in {token:.2f} ms, which differ by more than a tenth")
    return found


def faults(events: list[dict]) -> list[str]:
    """What must not be."""
    by_name = {event["name"]: event for event in events if event["event"] == "phase"}
    baseline, found, before = by_name.get("baseline"), [], None
    for phase in by_name.values():
        found += phase_faults(phase, baseline)
        if before:
            found += disturber_faults(phase, before)
        before = phase
    for event in events:
        if event["event"] == "malformed":
            for attack in event["attacks"]:
                if list(attack["endings"]) != [attack["expected"]]:
                    found.append(f"{attack['attack']}: ended with {attack['endings']} instead of {attack['expected']}")
                if attack["cpu_ms_each"] > 50:
                    found.append(f"{attack['attack']}: {attack['cpu_ms_each']:.0f} ms of processor time; 50 are allowed")
        if event["event"] == "end" and event["senders_with_messages_unaccounted"]:
            found.append(f"messages of {event['senders_with_messages_unaccounted']} senders are neither delivered nor refused")
        if event["event"] == "restart":
            found += restart_faults(event)
    return found


def restart_faults(event: dict) -> list[str]:
    """What must not be after the server was killed."""
    found = []
    if event["back"] < event["peers"] or event["back_s"]["max"] > 120:
        found.append(f"restart: {event['back']} of {event['peers']} peers were back, the last after {event['back_s']['max']} s; 120 are the goal")
    if event["peak_connections_per_s"] > 200:
        found.append(f"restart: {event['peak_connections_per_s']} connections in one second; 200 are the goal")
    return found


def show(events: list[dict]) -> None:
    """The tables, and what fits none."""
    if any(event["event"] == "phase" for event in events):
        print(table(phase_rows(events), left=1))
    for event in events:
        more = event.get("more", {})
        if event["event"] == "gathered":
            print(f"\n{event['sockets']} peers registered in {event['seconds']:.1f} s; RSS {megabytes(event['rss_empty'])} MB without them, "
                  f"{megabytes(event['rss'])} with them idle; pings take {event['idle_cpu'] * 100:.1f} % of a processor")
        elif event["event"] == "malformed":
            print("\n" + table(attack_rows(event["attacks"])))
        elif "half_open" in more:
            print(f"\nslow: {more['half_open']} half-open at any time, cut after {more['cut_after_ms']['p50'] / 1e3:.1f} s, at most {more['cut_after_ms']['max'] / 1e3:.1f}")
        elif "flood_sent" in more:
            print(f"flood: {more['flood_sent']} messages sent, ended with {more['flood_ended']}; the peer that never reads was cut {more['deaf_was_cut']} times, "
                  f"after {(more['deaf_cut_after_ms']['p50'] or 0) / 1e3:.1f} s, its sender told {more['deaf_was_busy']} times")
        elif "guess_answers" in more:
            print(f"guess: {sum(more['guess_answers'].values())} guesses, {len(more['guess_answers'])} kind(s) of answer; median {more['guess_wrong_room_ms']['p50']:.3f} ms for a "
                  f"wrong room, {more['guess_wrong_token_ms']['p50']:.3f} for a wrong token")
        elif event["event"] == "end":
            print(f"at the end: RSS {megabytes(event['rss'])} MB, {event['dropped']} of {event['peers']} peers lost; {event['silent_closed']} of {event['silent']} silent peers closed")
        elif event["event"] == "restart":
            print(f"restart: {event['back']} of {event['peers']} peers back after {event['back_s']['p50']:.1f} s (median) and {event['back_s']['max']:.1f} s (last); "
                  f"{event['connections']} connections, at most {event['peak_connections_per_s']} in one second, {event['refused']} refused")


def run(options: argparse.Namespace, work: Path) -> int:
    """The command."""
    facts = environment(options, store=options.store)
    server = Server(options, work)
    try:
        if options.restart:
            events = generate(server, options, "--restart", options.restart)
        else:
            disturb = ["--disturb", ",".join(options.disturb)] if options.disturb else []
            events = generate(server, options, "--rooms", options.rooms, "--rate", options.rate, "--bytes", options.bytes,
                              "--seconds", options.seconds, "--slow", options.slow, *disturb)
    finally:
        server.kill()
    show(events)
    write_json(options.json, facts, events)
    wrong = faults(events)
    for fault in wrong:
        say(f"error: {fault}")
    return 1 if wrong else 0


def arguments(command: argparse.ArgumentParser) -> None:
    """Its options."""
    command.add_argument("--generator", type=absolute, required=True, help="the load generator; by default it is built")
    command.add_argument("--rooms", type=int, default=5000, help="of two peers each [default: 5000]")
    command.add_argument("--rate", type=float, default=6000, help="relayed messages a second [default: 6000]")
    command.add_argument("--bytes", type=int, default=4096, help="that a message carries [default: 4096]")
    command.add_argument("--seconds", type=int, default=20, help="that each phase lasts [default: 20]")
    command.add_argument("--disturb", type=parse_names(DISTURBERS), default=DISTURBERS, metavar="NAME,…",
                         help=f"who misbehaves, one after the other [default: {','.join(DISTURBERS)}]")
    command.add_argument("--calm", dest="disturb", action="store_const", const=[], help="nobody misbehaves")
    command.add_argument("--slow", type=int, default=2000, help="half-open connections, and as many silent peers [default: 2000]")
    command.add_argument("--store", choices=["redb", "memory"], default="redb", help="of the server [default: redb]")
    command.add_argument("--restart", type=int, metavar="PEERS", help="only this: so many peers lose the server, which is killed and started again")
