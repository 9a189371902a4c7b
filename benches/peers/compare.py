"""Measures kiln and every peer that is installed in one run, and prints ratios.

kiln runs first and last, and its time is the mean of the two: how far they are
apart tells how quiet the machine was.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import kiln_bench
import peer
import processes
from comparison import Comparison

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# Seconds that no import takes.
IMPORTED = 120.0


class Peer(NamedTuple):
    name: str
    script: str
    modules: list[str]
    # By what the machine has: the peer's devices.
    devices: dict[str, list[str]]
    # How many modes it has, unless flags name them.
    modes: int
    install: str


BURN = HERE / "burn" / "target" / "release" / "peer-burn"
PIP = f"pip install -r {HERE / 'requirements.txt'}, or requirements-cuda.txt on an NVIDIA GPU"
PEERS = [
    Peer(
        "pytorch",
        "pytorch.py",
        ["torch", "transformers"],
        {"gpu": ["cuda"], "cpu": ["cpu"]},
        3,
        PIP,
    ),
    Peer(
        "onnxruntime",
        "onnx_runtime.py",
        ["onnxruntime", "onnx"],
        {"gpu": ["cuda"], "cpu": ["cpu"]},
        1,
        PIP,
    ),
    Peer(
        "iree",
        "iree_runtime.py",
        ["iree.compiler", "iree.runtime", "iree.turbine"],
        {"gpu": ["vulkan"], "cpu": ["vulkan", "cpu"]},
        2,
        PIP,
    ),
    Peer(
        "llama.cpp",
        "llama_cpp.py",
        ["gguf"],
        {"gpu": ["vulkan"], "cpu": ["lavapipe"]},
        1,
        f"{PIP}; and llama-bench built with -DGGML_VULKAN=ON, named by --flags 'llama.cpp=--llama PATH'",
    ),
    # A program, not a script.
    Peer(
        "burn",
        "",
        [],
        {"gpu": ["gpu"], "cpu": ["cpu"]},
        2,
        f"cargo build --release --manifest-path {HERE / 'burn' / 'Cargo.toml'}",
    ),
]
# Types of kiln's weights.
DTYPES = ["f32", "f16", "q8", "q4"]
SCRIPTS = [p.name for p in PEERS if p.script]


def named(text: str, names: list[str]) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if name not in names or not value:
        raise argparse.ArgumentTypeError(f"`{text}` is not PEER=VALUE, PEER one of {', '.join(names)}")
    return name, value


def named_python(text: str) -> tuple[str, str]:
    name, value = named(text, SCRIPTS)
    if not (found := shutil.which(value)):
        raise argparse.ArgumentTypeError(f"no program `{value}`")
    # It is run from other folders. A link is kept: an environment is found by it.
    return name, os.path.abspath(found)


def named_flags(text: str) -> tuple[str, list[str]]:
    name, value = named(text, [p.name for p in PEERS])
    try:
        return name, shlex.split(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"`{value}`: {error}") from error


def arguments():
    # kiln has all sizes but the one for trying a script out.
    sizes = [size for size in peer.SIZES if size != "tiny"]
    parser = peer.arguments(__doc__.splitlines()[0], ["gpu", "cpu"], ["f16", "f32"], sizes)
    add = parser.add_argument
    add("--peers", **peer.some_of([p.name for p in PEERS]))
    add("--kiln", default=str(ROOT / "target" / "release" / "kiln"), metavar="PROGRAM")
    add("--kiln-dtype", choices=DTYPES, help="where it is not --dtype")
    add(
        "--kiln-also",
        **peer.some_of(DTYPES, default=[], what="kiln in these types too, compared as peers are: "),
    )
    add(
        "--kiln-device",
        metavar="DEVICE",
        help="as `kiln devices` lists them, in place of the first that --device allows",
    )
    add("--burn", default=str(BURN), metavar="PROGRAM")
    add(
        "--python",
        type=named_python,
        action="append",
        default=[],
        metavar="PEER=PROGRAM",
        help="where a peer is installed, if not here",
    )
    add(
        "--flags",
        type=named_flags,
        action="append",
        default=[],
        metavar="PEER=FLAGS",
        help="more for a peer's script, such as pytorch='--modes graph'; may be repeated",
    )
    add(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="after which a program is stopped; --budget for each of its modes, and once more, by default",
    )
    args = parser.parse_args()
    args.python = dict(args.python)
    args.kiln_dtype = args.kiln_dtype or args.dtype
    args.flags = {
        p.name: [flag for name, more in args.flags if name == p.name for flag in more] for p in PEERS
    }
    return args


def timeout(args, modes: int) -> float:
    """The seconds that a program may take. The last case of a mode may begin when its
    budget is all but used, and starting takes time too."""
    return args.timeout or (modes + 1) * args.budget


def kiln(args, dtype: str, device: str) -> dict:
    """What kiln measures, whose budget is for each case."""
    cases = len(kiln_bench.lengths(args)) * len(args.batches)
    return kiln_bench.bench(args, dtype, device, timeout(args, cases))


def modes(one: Peer, args) -> int:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--modes")
    chosen = parser.parse_known_args(args.flags[one.name])[0].modes
    return len(chosen.split(",")) if chosen else one.modes


def missing(one: Peer, args) -> str | None:
    """Why a peer cannot run here."""
    if not one.script:
        return None if shutil.which(args.burn) else f"no program `{args.burn}`"
    command = [args.python.get(one.name, sys.executable), "-c", f"import {', '.join(one.modules)}"]
    try:
        # Beside the scripts, so that a script's name that hides a package is noticed.
        done = processes.run(command, IMPORTED, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    lines = done.stdout.decode(errors="replace").strip().splitlines()
    return None if done.returncode == 0 else (lines or ["no reason given"])[-1]


def run(one: Peer, device: str, args, folder: str) -> tuple[dict | None, str | None]:
    """A peer's report, if there is any, and why it is not whole."""
    python = args.python.get(one.name, sys.executable)
    program = [python, str(HERE / one.script)] if one.script else [args.burn]
    out = Path(folder) / f"{one.name} {device}.json"
    # What all have in common comes last, so that no flag makes it differ.
    command = [*program, *args.flags[one.name]]
    command += ["--size", args.size, "--dtype", args.dtype, "--device", device, "--steps", str(args.steps)]
    for name in ("prompts", "contexts", "batches"):
        # `=`, for an empty list is no argument to every parser.
        command += [f"--{name}={peer.joined(getattr(args, name))}"]
    command += ["--seconds", str(args.seconds), "--budget", str(args.budget), "--json", str(out)]
    limit, reason = timeout(args, modes(one, args)), None
    try:
        status = processes.run(command, limit, stdout=sys.stderr).returncode
        if status:
            reason = f"ended with status {status}; its messages are above"
    except OSError as error:
        reason = f"did not start: {error}"
    except subprocess.TimeoutExpired:
        reason = f"stopped after {limit:.0f} s, the --timeout"
    if not out.exists():
        return None, reason or "wrote no report"
    report = json.loads(out.read_text(encoding="utf-8")) | {"name": f"{one.name} {device}"}
    return report, reason or (None if report["complete"] else "ended before its last case")


def keep(args, found: Comparison):
    """Writes what there is so far, should this program be stopped."""
    if args.json != "-":
        write(args, found)


def write(args, found: Comparison):
    if args.json == "-":
        print(json.dumps(found.as_dict()))
    elif args.json:
        peer.replace(args.json, json.dumps(found.as_dict()))


def main():
    args = arguments()
    processes.exit_on_signals()
    if not shutil.which(args.kiln):
        raise SystemExit(
            f"no program `{args.kiln}`; `cargo build --release` makes it, or name one with --kiln"
        )
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 1:
        peer.remark(f"the load average is {load:.1f}: other work runs here, and times will be off")

    try:
        kiln_device = args.kiln_device or kiln_bench.adapter(args.kiln, args.device)
        found = Comparison(args, load, kiln(args, args.kiln_dtype, kiln_device))
    except kiln_bench.Failed as error:
        raise SystemExit(str(error)) from error
    for dtype in args.kiln_also:
        try:
            found.reports.append(kiln_bench.as_report(kiln(args, dtype, kiln_device)))
        except kiln_bench.Failed as error:
            found.missing.append({"peer": f"kiln {dtype}", "reason": str(error), "install": None})
        keep(args, found)
    with tempfile.TemporaryDirectory() as folder:
        for one in PEERS:
            if one.name not in args.peers:
                continue
            if reason := missing(one, args):
                found.missing.append({"peer": one.name, "reason": reason, "install": one.install})
                continue
            for device in one.devices[args.device]:
                report, reason = run(one, device, args, folder)
                if report:
                    found.reports.append(report)
                about = {"peer": f"{one.name} {device}", "reason": reason}
                if reason and report:
                    found.partial.append(about)
                elif reason:
                    found.missing.append(about | {"install": None})
                keep(args, found)
    try:
        found.kiln.append(kiln(args, args.kiln_dtype, kiln_device))
    except kiln_bench.Failed as error:
        found.failure = str(error)
    write(args, found)
    if args.json != "-":
        print(found.text())
    if found.failure:
        raise SystemExit(found.failure)


if __name__ == "__main__":
    main()
