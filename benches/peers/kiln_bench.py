"""kiln's side of a comparison: the adapter it runs on, and what it measures there."""

import json
import subprocess

import peer
import processes

# Seconds that no list of adapters takes.
LISTED = 60.0


class Failed(Exception):
    """Why there is no output of kiln's."""


def output(command: list[str], timeout: float):
    """What a kiln command prints as JSON."""
    line = " ".join(command[:2])
    try:
        done = processes.run(command, timeout, stdout=subprocess.PIPE)
    except OSError as error:
        raise Failed(f"`{line}` did not start: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise Failed(f"`{line}` was stopped after {timeout:.0f} s") from error
    if done.returncode:
        raise Failed(f"`{line}` ended with status {done.returncode}; its message is above")
    try:
        return json.loads(done.stdout)
    except ValueError as error:
        raise Failed(f"`{line}` printed no JSON") from error


def adapter(program: str, kind: str) -> str:
    """The number of kiln's first adapter that is a GPU, or, for `cpu`, a software
    driver. (What kiln itself calls `cpu` is its interpreter, which cannot be
    measured.)"""
    found = output([program, "devices", "--json"], LISTED)
    for one in found:
        if (one["kind"] == "cpu") == (kind == "cpu"):
            return str(one["device"])
    names = "; ".join(f"{one['name']} ({one['kind']})" for one in found) or "no adapter"
    if kind == "cpu":
        raise Failed(f"kiln finds no software driver, such as Mesa's lavapipe: {names}")
    raise Failed(f"kiln finds no GPU: {names}. `--device cpu` compares on a software driver")


def lengths(args) -> list[int]:
    """All lengths of prompts and contexts, each once."""
    return sorted({*args.prompts, *args.contexts})


def bench(args, dtype: str, device: str, timeout: float) -> dict:
    """Milliseconds and numbers of runs by (what, batch, length), beside kiln's own
    words on itself."""
    command = [args.kiln, "bench", "--random-weights", args.size, "--dtype", dtype]
    command += ["--lengths", peer.joined(lengths(args)), "--batches", peer.joined(args.batches)]
    command += ["--steps", str(args.steps), "--warm-up", str(peer.WARM_UP), "--limit", str(args.budget)]
    command += ["--device", device, "--json"]
    peer.remark(" ".join(command))
    report = output(command, timeout)
    cases = {}
    for case in report["cases"]:
        for what, asked in (("prefill", args.prompts), ("decode", args.contexts)):
            ms = case[f"{what}_ms"]
            if case["length"] in asked and ms is not None:
                cases[what, case["batch"], case["length"]] = ms, case["runs"]
    about = {key: report[key] for key in ("model", "dtype", "device", "driver", "tier", "joined", "skipped")}
    return {"about": about, "cases": cases}


def as_report(found: dict) -> dict:
    """What `bench` found as a peer's report, for kiln with weights in another type."""
    about = found["about"]
    mode = {"mode": about["tier"]}
    measured = [
        mode
        | {"what": what, "batch": batch, "length": length, "ms": ms, "runs": runs}
        | {"tokens_per_s": peer.tokens_per_s(what, batch, length, ms)}
        for (what, batch, length), (ms, runs) in found["cases"].items()
    ]
    skipped = [mode | {"what": "case"} | case for case in about["skipped"]]
    head = {"name": f"kiln {about['dtype']}", "peer": "kiln", "device": about["device"]}
    return head | {"measured": measured, "skipped": skipped, "complete": True}
