"""What the scripts of this folder share: sizes, arguments, timing and the report.

A report is one JSON object:

    {"peer": "PyTorch 2.11.0", "device": "...", "model": "gpt2", "dtype": "f16",
     "measured": [{"mode", "what", "batch", "length", "ms", "tokens_per_s", "runs"}],
     "skipped":  [{"mode", "what", "batch", "length", "reason"}],
     "complete": true}

A file is written after each case, and `complete` is false in it until the last.

`what` is `prefill`, the time of a prompt of `length` tokens up to the first new
token on the host, or `decode`, the time of one further token for every sequence
when `length` tokens are in the KV cache before the first of `--steps`.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple


class Size(NamedTuple):
    layers: int
    heads: int
    width: int


SIZES = {
    "gpt2": Size(12, 12, 768),
    "gpt2-medium": Size(24, 16, 1024),
    "gpt2-large": Size(36, 20, 1280),
    "gpt2-xl": Size(48, 25, 1600),
    # For trying a script out; kiln has no such preset.
    "tiny": Size(2, 4, 128),
}
VOCAB = 50257
CONTEXT = 1024
EPSILON = 1e-5

# What `kiln bench` does as well: seconds of work before anything is timed, and
# the most runs of a case.
WARM_UP = 2.0
MAX_RUNS = 5


def joined(values: list[int]) -> str:
    return ",".join(map(str, values))


def arguments(
    description: str, devices: list[str], dtypes: list[str], sizes=SIZES
) -> argparse.ArgumentParser:
    """The options that every script has; the first of a list is the default."""

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",") if part]

    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add("--size", choices=list(sizes), default="gpt2")
    add("--dtype", choices=dtypes, default=dtypes[0], help="of weights and activations")
    add("--device", choices=devices, default=devices[0])
    add("--prompts", type=numbers, default=[128, 512, 1024], metavar="N,N", help="tokens of a prefill")
    add(
        "--contexts", type=numbers, default=[16, 512, 1000], metavar="N,N", help="tokens before a decode step"
    )
    add("--batches", type=numbers, default=[1], metavar="N,N", help="numbers of sequences")
    add("--steps", type=int, default=16, help="decode steps of a run")
    add(
        "--seconds",
        type=float,
        default=2.0,
        help="after which a case starts no further run; 2, the default, is also `kiln bench`'s",
    )
    add(
        "--budget",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="after which a mode starts no further case",
    )
    add("--json", metavar="FILE", help="write the report there; `-` is standard output")
    return parser


def some_of(names: list[str], default: list[str] | None = None, what: str = "") -> dict:
    """What argparse needs for an option that takes several of `names`, or none; all
    by default."""

    def chosen(text: str) -> list[str]:
        found = [name for name in text.split(",") if name]
        if unknown := [name for name in found if name not in names]:
            raise argparse.ArgumentTypeError(f"{unknown} not among {names}")
        return found

    return {
        "type": chosen,
        "default": names if default is None else default,
        "metavar": "NAME,NAME",
        "help": f"{what}of {', '.join(names)}",
    }


def remark(text: str):
    print(text, file=sys.stderr, flush=True)


def repeat(work: Callable[[], None], seconds: float, prepare: Callable[[], None] = lambda: None):
    """The median time of `work` in seconds, and how many runs it is of: by the rule
    of `kiln bench`, so that no program has the better of more runs.

    `work` returns when its result is on the host; `prepare` runs before it,
    outside the clock.
    """

    def run() -> float:
        prepare()
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    # The first run compiles, the second may capture a graph; and the clock of an
    # idle GPU is a fraction of what it reaches in seconds.
    run()
    warm = time.perf_counter() + WARM_UP
    run()
    while time.perf_counter() < warm:
        run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or (time.perf_counter() < end and len(times) < MAX_RUNS):
        times.append(run())
    return statistics.median_high(times), len(times)


def tokens_per_s(what: str, batch: int, length: int, ms: float) -> float:
    """Of all sequences together."""
    return batch * (length if what == "prefill" else 1) / ms * 1e3


def replace(path: str, text: str):
    """Writes a file so that it is whole whenever this program is stopped."""
    # A device or a pipe is written to, not replaced.
    whole = os.path.isfile(path) or not os.path.exists(path)
    target = os.path.realpath(path) if whole else path
    part = f"{target}.part" if whole else target
    with open(part, "w", encoding="utf-8") as file:
        file.write(text + "\n")
    if whole:
        os.replace(part, target)


class Report:
    """Collects what was measured and what was not."""

    def __init__(self, peer: str, device: str, args):
        self.args = args
        self.head = {"peer": peer, "device": device, "model": args.size, "dtype": args.dtype}
        self.measured: list[dict] = []
        self.skipped: list[dict] = []
        remark(f"{peer}, {args.size} in {args.dtype} on {device}")

    def run(self, measure: Callable[[str, str, int, int], tuple[float, int]]):
        """Measures all cases of the arguments, and writes the report. `measure` takes
        mode, what, batch and length; the result is the seconds of one prompt or step
        and the number of runs. A case that fails stops no other."""
        args = self.args
        whats = [("decode", length) for length in args.contexts] + [
            ("prefill", length) for length in args.prompts
        ]
        for mode in args.modes:
            began = time.perf_counter()
            for batch, (what, length) in itertools.product(args.batches, whats):
                self.case(measure, began, mode, what, batch, length)
                if self.to_file():
                    self.write(complete=False)
        self.write(complete=True)

    def case(self, measure, began: float, mode: str, what: str, batch: int, length: int):
        """Adds a case of a mode that began at a time."""
        args = self.args
        case = {"mode": mode, "what": what, "batch": batch, "length": length}
        label = f"  {mode} {what} {batch} x {length}"
        try:
            last = length + (args.steps if what == "decode" else 0)
            if last > CONTEXT:
                raise ValueError(f"needs {last} positions, the context is {CONTEXT}")
            if time.perf_counter() - began > args.budget:
                raise TimeoutError(f"the mode has used its --budget of {args.budget:.0f} s")
            seconds, runs = measure(mode, what, batch, length)
        except Exception as error:  # whatever a peer raises is a reason to name
            lines = str(error).strip().splitlines() or [""]
            reason = f"{type(error).__name__}: {lines[0][:300]}"
            self.skipped.append(case | {"reason": reason})
            remark(f"{label}: {reason}")
            return
        ms = seconds * 1e3
        rate = tokens_per_s(what, batch, length, ms)
        self.measured.append(case | {"ms": ms, "tokens_per_s": rate, "runs": runs})
        remark(f"{label}: {ms:.3f} ms, {rate:.1f} tokens/s, {runs} runs")

    def to_file(self) -> bool:
        return self.args.json not in (None, "-")

    def write(self, complete: bool):
        found = {"measured": self.measured, "skipped": self.skipped, "complete": complete}
        text = json.dumps(self.head | found)
        if self.to_file():
            replace(self.args.json, text)
        else:
            print(text)


def weights(size: Size, dtype: str) -> dict:
    """Random weights as numpy arrays, by the names that transformers gives them;
    matrices are [in, out] and `wte.weight` is the head as well."""
    import numpy as np

    kind = {"f16": np.float16, "f32": np.float32}[dtype]
    random = np.random.default_rng(0)

    def normal(shape: tuple[int, ...], deviation: float, mean: float = 0.0):
        values = random.standard_normal(shape, dtype=np.float32)
        return (values * np.float32(deviation) + np.float32(mean)).astype(kind)

    width = size.width
    found = {
        "wte.weight": normal((VOCAB, width), width**-0.5),
        "wpe.weight": normal((CONTEXT, width), width**-0.5),
    }
    layers = [f"h.{i}." for i in range(size.layers)]
    for norm in [f"{layer}{name}" for layer in layers for name in ("ln_1", "ln_2")] + ["ln_f"]:
        found |= {f"{norm}.weight": normal((width,), 0.1, 1.0), f"{norm}.bias": normal((width,), 0.1)}
    linears = {"attn.c_attn": (1, 3), "attn.c_proj": (1, 1), "mlp.c_fc": (1, 4), "mlp.c_proj": (4, 1)}
    for layer in layers:
        for name, (inputs, outputs) in linears.items():
            shape = (inputs * width, outputs * width)
            found[f"{layer}{name}.weight"] = normal(shape, shape[0] ** -0.5)
            found[f"{layer}{name}.bias"] = normal(shape[1:], 0.1)
    return found


def reference(found: dict, size: Size, ids):
    """The logits [batch, vocab] of the last of `ids` [batch, seq], plainly in f32."""
    import numpy as np

    def w(name: str):
        return found[name].astype(np.float32)

    def linear(x, name: str):
        return x @ w(f"{name}.weight") + w(f"{name}.bias")

    def norm(x, name: str):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON) * w(f"{name}.weight") + w(
            f"{name}.bias"
        )

    batch, seq = ids.shape
    x = w("wte.weight")[ids] + w("wpe.weight")[:seq]
    for i in range(size.layers):
        qkv = linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn")
        q, k, v = qkv.reshape(batch, seq, 3, size.heads, -1).transpose(2, 0, 3, 1, 4)
        scores = q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1]) + np.triu(np.full((seq, seq), -1e9), 1)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        y = scores / scores.sum(-1, keepdims=True) @ v
        x = x + linear(y.transpose(0, 2, 1, 3).reshape(x.shape), f"h.{i}.attn.c_proj")
        x1 = linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
        gelu = 0.5 * x1 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x1 + 0.044715 * x1**3)))
        x = x + linear(gelu, f"h.{i}.mlp.c_proj")
    return norm(x[:, -1], "ln_f") @ w("wte.weight").T


def check(what: str, logits, expected, tolerance: float):
    """Raises where two vectors of logits differ by more than rounding."""
    import numpy as np

    error = np.linalg.norm(logits.astype(np.float32) - expected) / np.linalg.norm(expected)
    if not error < tolerance:
        raise ValueError(f"logits of {what} are off by {error:.2e}")
