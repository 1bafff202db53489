"""Whether `webrtc-client doctor` names the cause: set-ups that are broken in one way each.

For each a worker, and a client that runs doctor; the first problem that it names has to be the one that is there, and whose it is.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import fnmatch

from broken import SETUPS, Broken, changed
from report import environment, say, write_json
from space import LabError
from world import Options, World

HELP = "whether doctor names the cause of what is broken"
GOAL = 0.95
PATIENCE = 60.0
LONGEST = 20.0
"""Seconds within which doctor ends."""
SERIAL = {"the signaling server is down"}
"""What concerns everybody in the lab."""


@dataclasses.dataclass
class Result:
    """What doctor said."""

    setup: Broken
    seconds: float = 0.0
    causes: list[str] = dataclasses.field(default_factory=list)
    side: str = ""
    verdict: str = ""
    error: str | None = None

    @property
    def right(self) -> bool:
        """Whether the cause and its side come first, in time."""
        named = self.causes[:1] == [self.setup.cause] and self.side == self.setup.side and self.setup.says in self.verdict
        return named and not self.error and self.seconds <= LONGEST


def add_options(parser: argparse.ArgumentParser) -> None:
    """Its own options."""
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="set-ups at the same time [default: 2]")
    parser.add_argument("--only", action="append", metavar="PATTERN", help="set-ups whose name or cause matches")
    parser.add_argument("--list", action="store_true", help="only say which set-ups there are")


def run(options: argparse.Namespace) -> int:
    """Break, ask, judge."""
    patterns = options.only or ["*"]
    wanted = [setup for setup in SETUPS if any(fnmatch.fnmatch(word, pattern) for pattern in patterns for word in (setup.name, setup.cause))]
    if not wanted:
        raise LabError("no set-up has such a name; see --list")
    if options.list:
        for setup in wanted:
            print(f"{setup.cause} ({setup.side}): {setup.name}")
        return 0
    with World(Options(options.bin_dir, options.python, options.engine, options.keep)) as world:
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            results = list(pool.map(lambda setup: ask(world, setup), [setup for setup in wanted if setup.name not in SERIAL]))
        results += [ask(world, setup) for setup in wanted if setup.name in SERIAL]
    show(results)
    right = sum(result.right for result in results)
    say(f"{right} of {len(results)} named right")
    if options.json:
        facts = environment(argparse.Namespace(bin_dir=options.bin_dir, rmem_max=None), jobs=options.jobs)
        rows = [{**vars(result), "setup": result.setup.name, "expected": result.setup.cause, "right": result.right} for result in results]
        write_json(options.json, facts, rows)
    return 0 if right >= GOAL * len(results) else 1


def ask(world: World, setup: Broken) -> Result:
    """One set-up, from its networks to what doctor says."""
    result = Result(setup)
    with contextlib.ExitStack() as stack:
        try:
            consult(world, setup, stack, result)
        except LabError as error:
            result.error = str(error)
    say(f"{'ok    ' if result.right else 'MISSED'} {setup.name}: {result.error or result.verdict}"
        + ("" if result.right else f"\n       {setup.cause} ({setup.side}) expected, {', '.join(result.causes)} ({result.side}) in {result.seconds:.1f} s"))
    return result


def consult(world: World, setup: Broken, stack: contextlib.ExitStack, result: Result) -> None:
    """Break it, run doctor, take down what it says."""
    visit = setup.build(world, stack)
    stack.callback(world.remove, *visit.pair.spaces)
    worker = world.worker(visit.pair.worker, ice=visit.ice, environment={**visit.pair.environment, **visit.worker})
    stack.callback(world.ended, worker)
    invite = worker.invite
    if visit.invite:
        invite = worker.folder / "changed-invite"
        invite.write_text(changed(worker.invite.read_text(), visit.invite))
    if visit.meanwhile:
        visit.meanwhile(worker)
    ice = None if "ICE_SERVERS" in visit.client else visit.ice
    client = world.client(visit.pair.client, invite, "doctor", ice=ice, environment=visit.client)
    stack.callback(client.end)
    when, said = client.wait_for("doctor", PATIENCE)
    result.seconds = when - client.begun
    result.causes = [problem["cause"] for problem in said["problems"]]
    result.side = said["problems"][0]["side"] if said["problems"] else ""
    result.verdict = said["verdict"]
    code = client.exit_code()
    if code != (0 if said["healthy"] else 11):
        result.error = f"exit code {code}, healthy: {said['healthy']}"


def show(results: list[Result]) -> None:
    """A table in Markdown."""
    print("| broken | named first | also | verdict | s | |\n|---|---|---|---|---|---|")
    for result in results:
        first, *rest = result.causes or ["nothing"]
        print(f"| {result.setup.name} | {first} ({result.side}) | {', '.join(rest)} | {result.error or result.verdict} | {result.seconds:.1f} | "
              f"{'right' if result.right else '**wrong**'} |")
