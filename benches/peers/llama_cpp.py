"""GPT-2 on random weights with llama.cpp, through its own `llama-bench`.

The weights go into a GGUF file. llama-bench knows one sequence at a time, has its KV
cache in f16, waits for each token and feeds random ones; it gives no logits to check.
It warms up with a run of its own, and then takes a number of runs, not a time: here
so many that the last of them, which count, come behind `peer.WARM_UP` seconds of work.

Mode `bench` is the only one.
"""

import functools
import json
import math
import os
import shutil
import statistics
import subprocess
import tempfile
from importlib.metadata import version

import gguf
import numpy as np

import peer
import processes

LAYER = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
TABLES = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm"}


def write(path: str, size: peer.Size, weights: dict):
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(peer.CONTEXT)
    writer.add_embedding_length(size.width)
    writer.add_feed_forward_length(4 * size.width)
    writer.add_block_count(size.layers)
    writer.add_head_count(size.heads)
    writer.add_layer_norm_eps(peer.EPSILON)
    writer.add_vocab_size(peer.VOCAB)
    writer.add_tokenizer_model("none")
    for name, array in weights.items():
        owner, kind = name.rsplit(".", 1)
        if owner.startswith("h."):
            _, layer, part = owner.split(".", 2)
            owner = f"blk.{layer}.{LAYER[part]}"
            # Matrices are [out, in] there.
            array = array.T if array.ndim == 2 else array
        else:
            owner = TABLES[owner]
        # Vectors and the table of positions have kernels in f32 alone.
        if array.ndim == 1 or owner == "position_embd":
            array = array.astype(np.float32)
        writer.add_tensor(f"{owner}.{kind}", np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def measure(path: str, args, _mode: str, what: str, batch: int, length: int) -> tuple[float, int]:
    if batch != 1:
        raise ValueError("llama-bench has one sequence")
    work = {
        "prefill": ["-p", str(length), "-n", "0"],
        "decode": ["-p", "0", "-n", str(args.steps), "-d", str(length)],
    }[what]
    count = 1
    while True:
        times = samples(args, path, work, count)
        counted = runs(args, times[-1])
        # Not so after the first, nor where an idle GPU's clock made its time longer.
        if sum(times[:-counted]) >= peer.WARM_UP:
            break
        count = math.ceil(1.2 * peer.WARM_UP / times[-1]) + counted
    tokens = args.steps if what == "decode" else 1
    return statistics.median_high(times[-counted:]) / tokens, counted


def runs(args, seconds: float) -> int:
    """How many runs of so many seconds count, by the rule of `peer.repeat`."""
    return min(peer.MAX_RUNS, max(1, math.ceil(args.seconds / seconds)))


def samples(args, path: str, work: list[str], count: int) -> list[float]:
    """The seconds of each run."""
    return [ns / 1e9 for ns in bench(args, path, [*work, "-r", str(count)])["samples_ns"]]


def bench(args, path: str, work: list[str]) -> dict:
    command = [args.llama, "-m", path, "-o", "json", "-ngl", "99", "-ub", str(peer.CONTEXT)]
    command += work
    # A driver that runs on the processor is no device unless it is asked for.
    asked = {} if args.device == "vulkan" else {"GGML_VK_VISIBLE_DEVICES": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=asked | dict(os.environ))
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no reason given"])[-1])
    return json.loads(done.stdout)[0]


def main():
    parser = peer.arguments(__doc__.splitlines()[0], ["vulkan", "lavapipe"], ["f16", "f32"])
    parser.add_argument("--modes", **peer.some_of(["bench"]))
    parser.add_argument("--llama", default="llama-bench", metavar="PROGRAM")
    args = parser.parse_args()
    if not shutil.which(args.llama):
        raise SystemExit(f"no program `{args.llama}`; name one with --llama")
    processes.exit_on_signals()
    size = peer.SIZES[args.size]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "gpt2.gguf")
        write(path, size, peer.weights(size, args.dtype))
        about = bench(args, path, ["-p", "8", "-n", "0", "-r", "1"])
        if "Vulkan" not in about["backends"]:
            raise SystemExit(f"`{args.llama}` was built without Vulkan: {about['backends']}")
        if args.device == "lavapipe" and "llvmpipe" not in about["gpu_info"]:
            raise SystemExit(
                f"llama.cpp runs on {about['gpu_info']}; set GGML_VK_VISIBLE_DEVICES to lavapipe's number"
            )
        name = f"llama.cpp {about['build_commit']} (gguf {version('gguf')})"
        report = peer.Report(name, about["gpu_info"], args)
        report.run(functools.partial(measure, path, args))


if __name__ == "__main__":
    main()
