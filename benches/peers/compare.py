"""Measures kiln and every peer that is installed in one run, and prints ratios.

kiln runs first and last, and its time is the mean of the two: how far they are
apart tells how quiet the machine was.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import peer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


class Peer(NamedTuple):
    name: str
    script: str
    modules: list[str]
    # By what the machine has: the peer's devices.
    devices: dict[str, list[str]]
    install: str


BURN = HERE / "burn" / "target" / "release" / "peer-burn"
PEERS = [
    Peer(
        "pytorch",
        "pytorch.py",
        ["torch", "transformers"],
        {"gpu": ["cuda"], "cpu": ["cpu"]},
        "pip install torch transformers",
    ),
    Peer(
        "onnxruntime",
        "onnx_runtime.py",
        ["onnxruntime", "onnx"],
        {"gpu": ["cuda"], "cpu": ["cpu"]},
        "pip install onnx onnxruntime (or onnxruntime-gpu)",
    ),
    Peer(
        "iree",
        "iree_runtime.py",
        ["iree.compiler", "iree.runtime", "iree.turbine"],
        {"gpu": ["vulkan"], "cpu": ["vulkan", "cpu"]},
        "pip install torch iree-base-compiler iree-base-runtime iree-turbine",
    ),
    Peer(
        "llama.cpp",
        "llama_cpp.py",
        ["gguf"],
        {"gpu": ["vulkan"], "cpu": ["lavapipe"]},
        "pip install gguf, and llama-bench built with -DGGML_VULKAN=ON, named by --flags",
    ),
    # A program, not a script.
    Peer(
        "burn",
        "",
        [],
        {"gpu": ["gpu"], "cpu": ["cpu"]},
        f"cargo build --release --manifest-path {HERE / 'burn' / 'Cargo.toml'}",
    ),
]


def numbers(values: list[int]) -> str:
    return ",".join(map(str, values))


def named(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if name not in [p.name for p in PEERS] or not value:
        raise argparse.ArgumentTypeError(f"`{text}` is not PEER=VALUE, PEER one of {[p.name for p in PEERS]}")
    return name, value


def arguments():
    parser = peer.arguments(__doc__.splitlines()[0], ["gpu", "cpu"], ["f16", "f32"])
    add = parser.add_argument
    add("--peers", **peer.some_of([p.name for p in PEERS]))
    add("--kiln", default=str(ROOT / "target" / "release" / "kiln"), metavar="PROGRAM")
    add("--kiln-dtype", choices=["f32", "f16", "q8", "q4"], help="where it is not --dtype")
    add("--kiln-device", metavar="DEVICE", help="as `kiln devices` lists them")
    add("--burn", default=str(BURN), metavar="PROGRAM")
    add(
        "--python",
        type=named,
        action="append",
        default=[],
        metavar="PEER=PROGRAM",
        help="where a peer is installed, if not here",
    )
    add(
        "--flags",
        type=named,
        action="append",
        default=[],
        metavar="PEER=FLAGS",
        help="more for a peer's script, such as pytorch='--modes graph'",
    )
    add("--timeout", type=float, default=600.0, metavar="SECONDS", help="after which a peer is stopped")
    args = parser.parse_args()
    args.python, args.flags = dict(args.python), dict(args.flags)
    return args


def kiln(args) -> dict:
    """Milliseconds by (what, batch, length), beside kiln's own words on itself."""
    lengths = sorted({*args.prompts, *args.contexts})
    command = [args.kiln, "bench", "--random-weights", args.size, "--dtype", args.kiln_dtype or args.dtype]
    command += [
        "--lengths",
        numbers(lengths),
        "--batches",
        numbers(args.batches),
        "--steps",
        str(args.steps),
        "--json",
    ]
    command += ["--device", args.kiln_device] if args.kiln_device else []
    peer.remark(" ".join(command))
    done = subprocess.run(command, stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit("kiln failed; its message is above")
    report = json.loads(done.stdout)
    times = {}
    for case in report["cases"]:
        for what, asked in (("prefill", args.prompts), ("decode", args.contexts)):
            if case["length"] in asked and case[f"{what}_ms"] is not None:
                times[what, case["batch"], case["length"]] = case[f"{what}_ms"]
    about = {key: report[key] for key in ("model", "dtype", "device", "driver", "tier", "joined", "skipped")}
    return {"about": about, "times": times}


def missing(one: Peer, args) -> str | None:
    """Why a peer cannot run here."""
    if not one.script:
        return None if shutil.which(args.burn) else f"no program `{args.burn}`"
    python = args.python.get(one.name, sys.executable)
    # Beside the scripts, so that a script's name that hides a package is noticed.
    done = subprocess.run(
        [python, "-c", f"import {', '.join(one.modules)}"], cwd=HERE, stderr=subprocess.PIPE, text=True
    )
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no reason given"])[-1]


def run(one: Peer, device: str, args, folder: str) -> dict:
    """A peer's report; raises where it has none."""
    program = (
        [args.python.get(one.name, sys.executable), str(HERE / one.script)] if one.script else [args.burn]
    )
    out = os.path.join(folder, "report.json")
    Path(out).unlink(missing_ok=True)
    command = [
        *program,
        "--size",
        args.size,
        "--dtype",
        args.dtype,
        "--device",
        device,
        "--steps",
        str(args.steps),
    ]
    for name in ("prompts", "contexts", "batches"):
        # An empty list is no argument to every parser.
        command += [f"--{name}={numbers(getattr(args, name))}"]
    command += ["--seconds", str(args.seconds), "--budget", str(args.budget), "--json", out]
    command += args.flags.get(one.name, "").split()
    done = subprocess.run(command, timeout=args.timeout, stdout=sys.stderr)
    if done.returncode or not os.path.exists(out):
        raise RuntimeError(f"ended with status {done.returncode} and no report; its messages are above")
    return json.loads(Path(out).read_text(encoding="utf-8"))


def table(result: dict) -> str:
    header = ["", "batch", "tokens", "peer", "mode", "ms", "tokens/s", "kiln ms", "kiln / peer"]
    lines = [header]
    for row in result["rows"]:
        place = [row["what"], str(row["batch"]), str(row["length"])]
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        ours = "-" if row["kiln_ms"] is None else f"{row['kiln_ms']:.2f}"
        lines.append(
            [*place, row["peer"], row["mode"], f"{row['ms']:.2f}", f"{row['tokens_per_s']:.1f}", ours, ratio]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    left = {0, 3, 4}

    def cell(i: int, text: str) -> str:
        return text.ljust(widths[i]) if i in left else text.rjust(widths[i])

    return "\n".join("  ".join(cell(i, text) for i, text in enumerate(line)).rstrip() for line in lines)


def text(result: dict) -> str:
    about = result["kiln"]
    parts = [
        f"{about['model']}: kiln in {about['dtype']} on {about['device']}, tier {about['tier']};"
        f" peers in {result['dtype']}",
        f"driver {about['driver']}",
        f"kiln's two runs are up to {result['kiln_spread']:.0%} apart",
        "`kiln / peer` is tokens/s over tokens/s: above 1 kiln is faster\n",
        table(result),
    ]
    parts += [
        f"skipped: {s['peer']} {s['mode']} {s['what']} {s['batch']} x {s['length']}: {s['reason']}"
        for s in result["skipped"]
    ]
    parts += [f"no report: {m['peer']}: {m['reason']}; to install: {m['install']}" for m in result["missing"]]
    return "\n".join(parts)


def main():
    args = arguments()
    if not shutil.which(args.kiln):
        raise SystemExit(
            f"no program `{args.kiln}`; `cargo build --release` makes it, or name one with --kiln"
        )
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 1:
        peer.remark(f"the load average is {load:.1f}: other work runs here, and times will be off")

    first = kiln(args)
    reports, absent = [], []
    with tempfile.TemporaryDirectory() as folder:
        for one in PEERS:
            if one.name not in args.peers:
                continue
            if reason := missing(one, args):
                absent.append({"peer": one.name, "reason": reason, "install": one.install})
                continue
            for device in one.devices[args.device]:
                try:
                    reports.append(run(one, device, args, folder) | {"name": f"{one.name} {device}"})
                except (RuntimeError, subprocess.TimeoutExpired, json.JSONDecodeError) as error:
                    absent.append(
                        {"peer": f"{one.name} {device}", "reason": str(error), "install": one.install}
                    )
    last = kiln(args)
    both = first["times"].keys() & last["times"].keys()
    ours = {key: (first["times"][key] + last["times"][key]) / 2 for key in both}

    rows = []
    for report in reports:
        for case in report["measured"]:
            mine = ours.get((case["what"], case["batch"], case["length"]))
            ratio = mine and case["ms"] / mine
            rows.append({"peer": report["name"]} | case | {"kiln_ms": mine, "ratio": ratio})
    rows.sort(key=lambda row: (row["what"], row["batch"], row["length"], row["ms"]))
    result = {
        "kiln": first["about"],
        "dtype": args.dtype,
        "load": load,
        "kiln_spread": max((abs(first["times"][k] - last["times"][k]) / ours[k] for k in both), default=0.0),
        "peers": {
            report["name"]: {"version": report["peer"], "device": report["device"]} for report in reports
        },
        "rows": rows,
        "skipped": [{"peer": report["name"]} | case for report in reports for case in report["skipped"]],
        "missing": absent,
    }
    if args.json:
        with open(args.json, "w", encoding="utf-8") if args.json != "-" else sys.stdout as file:
            file.write(json.dumps(result) + "\n")
    if args.json != "-":
        print(text(result))


if __name__ == "__main__":
    main()
