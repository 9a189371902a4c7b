"""GPT-2 on random weights with IREE: PyTorch to MLIR by iree-turbine, compiled ahead
of time for one shape a case, weights as parameters outside of the module.

A decode step takes the KV cache, of just the positions that a case needs, as
arguments and returns it: IREE's way without state in the module.

Modes:

fused  attention is IREE's operator (which 3.13 cannot compile for Vulkan's default
       target)
plain  attention is two products and a softmax
"""

import functools
import os
import subprocess
import sys
import tempfile
import warnings

import iree.runtime as rt
import iree.turbine.aot as aot
import numpy as np
import torch
import torch.nn.functional as F
from iree.compiler import version
from torch import nn

import peer
import processes

# The flags of iree-compile, and the driver that runs what it makes.
DEVICES = {
    # What is vectorised must not be of 64 bits for SPIR-V.
    "vulkan": (["--iree-hal-target-device=vulkan", "--iree-input-demote-i64-to-i32"], "vulkan"),
    "cuda": (["--iree-hal-target-device=cuda"], "cuda"),
    "cpu": (
        [
            "--iree-hal-target-device=local",
            "--iree-hal-local-target-device-backends=llvm-cpu",
            "--iree-llvmcpu-target-cpu=host",
        ],
        "local-task",
    ),
}
TOLERANCE = {"f16": 2e-2, "f32": 1e-4}


def host(array: rt.DeviceArray) -> np.ndarray:
    """`array.to_host()` by way of a staging buffer: the runtime's own way in 3.13
    imports the result's memory, which Vulkan wants aligned to a page."""
    device, source = array._device, array._buffer_view.get_buffer()
    staging = device.allocator.allocate_buffer(
        memory_type=int(rt.MemoryType.HOST_LOCAL | rt.MemoryType.DEVICE_VISIBLE),
        allowed_usage=int(rt.BufferUsage.TRANSFER_TARGET | rt.BufferUsage.MAPPING_SCOPED),
        allocation_size=source.byte_length(),
    )
    semaphore = device.create_semaphore(0)
    begin, end = (rt.HalFence.create_at(semaphore, value) for value in (0, 1))
    device.queue_copy(source, staging, wait_semaphores=begin, signal_semaphores=end)
    end.wait()
    return staging.map().asarray(array._buffer_view.shape, array.dtype)


class Gpt2(nn.Module):
    """A function of ids, or of a token, its position and the cache; the result is
    the next token, the logits and the cache."""

    def __init__(self, size: peer.Size, weights: dict, fused: bool):
        super().__init__()
        self.size, self.fused = size, fused
        for name, array in weights.items():
            value = nn.Parameter(torch.from_numpy(array), requires_grad=False)
            self.register_parameter(name.replace(".", "_"), value)

    def w(self, name: str) -> torch.Tensor:
        return getattr(self, name.replace(".", "_"))

    def linear(self, x, name: str):
        return x @ self.w(f"{name}.weight") + self.w(f"{name}.bias")

    def norm(self, x, name: str):
        return F.layer_norm(x, x.shape[-1:], self.w(f"{name}.weight"), self.w(f"{name}.bias"), peer.EPSILON)

    def run(self, x, mask, store):
        """`store` puts the new half of a layer's cache in its place."""
        batch, length, width = x.shape
        split = (batch, length, self.size.heads, width // self.size.heads)
        caches = []
        for i in range(self.size.layers):
            qkv = self.linear(self.norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn").chunk(3, -1)
            q, k, v = (t.reshape(split).transpose(1, 2) for t in qkv)
            keys, values, kept = store(i, k, v)
            caches += kept
            if self.fused:
                y = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
            else:
                y = ((q * q.shape[-1] ** -0.5) @ keys.transpose(2, 3) + mask).softmax(-1) @ values
            x = x + self.linear(y.transpose(1, 2).reshape(x.shape), f"h.{i}.attn.c_proj")
            hidden = F.gelu(self.linear(self.norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc"), approximate="tanh")
            x = x + self.linear(hidden, f"h.{i}.mlp.c_proj")
        logits = self.norm(x[:, -1], "ln_f") @ self.w("wte.weight").T
        return logits.argmax(-1, keepdim=True).to(torch.int32), logits, *caches

    def additive(self, seen: torch.Tensor) -> torch.Tensor:
        """0 where a position is seen, little elsewhere."""
        return torch.where(seen, 0.0, -6e4).to(self.w("wte.weight").dtype)


class Prefill(Gpt2):
    def __init__(self, size: peer.Size, weights: dict, fused: bool, capacity: int):
        super().__init__(size, weights, fused)
        self.capacity = capacity

    def forward(self, ids):
        length = ids.shape[1]
        x = F.embedding(ids, self.w("wte.weight")) + self.w("wpe.weight")[:length]
        seen = torch.arange(length)[None, :] <= torch.arange(length)[:, None]

        def store(_, k, v):
            return k, v, [F.pad(t, (0, 0, 0, self.capacity - length)) for t in (k, v)]

        return self.run(x, self.additive(seen)[None, None], store)


class Step(Gpt2):
    def forward(self, token, position, *cache):
        slots = torch.arange(cache[0].shape[2])
        here = (slots == position)[None, None, :, None]
        x = F.embedding(token, self.w("wte.weight")) + F.embedding(position, self.w("wpe.weight"))

        def store(i, k, v):
            # A scatter does not compile for SPIR-V.
            kept = [torch.where(here, new, old) for new, old in ((k, cache[2 * i]), (v, cache[2 * i + 1]))]
            return *kept, kept

        return self.run(x, self.additive(slots <= position)[None, None, None], store)


class Compiler:
    """Compiles modules and loads them beside one copy of the weights."""

    def __init__(self, args, size: peer.Size, weights: dict, folder: str):
        self.args, self.size, self.weights, self.folder = args, size, weights, folder
        self.flags, driver = DEVICES[args.device]
        self.flags = [*self.flags, *args.iree_flag]
        self.config = rt.Config(driver)
        module = Gpt2(size, weights, fused=False)
        aot.externalize_module_parameters(module)
        archive = os.path.join(folder, "weights.irpa")
        aot.save_module_parameters(archive, module)
        index = rt.ParameterIndex()
        # Drivers import no part of a mapped file that is not aligned to a page.
        index.load(archive, mmap=False)
        self.provider = index.create_provider(scope="model")

    def array(self, values: np.ndarray):
        return rt.asdevicearray(self.config.device, values)

    def load(self, module: Gpt2, arguments: tuple):
        aot.externalize_module_parameters(module)
        source, compiled = (os.path.join(self.folder, name) for name in ("gpt2.mlir", "gpt2.vmfb"))
        aot.export(module, args=arguments).save_mlir(source)
        done = subprocess.run(
            [
                os.path.join(os.path.dirname(sys.executable), "iree-compile"),
                source,
                "-o",
                compiled,
                *self.flags,
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error:" in line]
            raise RuntimeError(f"iree-compile: {errors[0] if errors else done.stderr.strip()[:300]}")
        instance = self.config.vm_instance
        modules = [
            rt.create_io_parameters_module(instance, self.provider),
            rt.create_hal_module(instance, self.config.device),
            rt.VmModule.copy_buffer(instance, open(compiled, "rb").read()),
        ]
        return rt.SystemContext(vm_modules=modules, config=self.config).modules.module.main

    def prefill(self, fused: bool, batch: int, length: int, capacity: int):
        module = Prefill(self.size, self.weights, fused, capacity)
        return self.load(module, (torch.ones(batch, length, dtype=torch.int32),))

    def step(self, fused: bool, batch: int, capacity: int):
        module = Step(self.size, self.weights, fused)
        shape = (batch, self.size.heads, capacity, self.size.width // self.size.heads)
        cache = [torch.zeros(shape, dtype=module.w("wte.weight").dtype) for _ in range(2 * self.size.layers)]
        return self.load(
            module, (torch.ones(batch, 1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32), *cache)
        )


def measure(compiler: Compiler, args, mode: str, what: str, batch: int, length: int) -> tuple[float, int]:
    ids = np.random.default_rng(length).integers(0, peer.VOCAB, (batch, length), np.int32)
    expected = functools.partial(peer.reference, compiler.weights, compiler.size)
    capacity = length + (args.steps if what == "decode" else 0)
    prefill = compiler.prefill(mode == "fused", batch, length, capacity)
    prompt = compiler.array(ids)
    token, logits, *cache = prefill(prompt)
    peer.check("prefill", host(logits), expected(ids), TOLERANCE[args.dtype])
    if what == "prefill":
        return peer.repeat(lambda: host(prefill(prompt)[0]), args.seconds)

    step = compiler.step(mode == "fused", batch, capacity)
    positions = [compiler.array(np.array([length + i], np.int32)) for i in range(args.steps)]
    _, logits, *_ = step(token, positions[0], *cache)
    longer = np.concatenate((ids, host(token)), axis=1)
    peer.check("decode", host(logits), expected(longer), TOLERANCE[args.dtype])

    def steps():
        last, kept = token, cache
        for position in positions:
            last, _, *kept = step(last, position, *kept)
        host(last)

    seconds, runs = peer.repeat(steps, args.seconds)
    return seconds / args.steps, runs


def main():
    parser = peer.arguments(__doc__.splitlines()[0], list(DEVICES), list(TOLERANCE))
    parser.add_argument("--modes", **peer.some_of(["fused", "plain"]))
    parser.add_argument(
        "--iree-flag",
        action="append",
        default=[],
        help="for iree-compile, such as --iree-vulkan-target=ampere",
    )
    args = parser.parse_args()
    processes.exit_on_signals()
    warnings.simplefilter("ignore", FutureWarning)  # iree-turbine's calls of torch
    size = peer.SIZES[args.size]
    # The driver's first is the one that `rt.Config` takes.
    driver = DEVICES[args.device][1]
    name = next((found["name"] for found in rt.get_driver(driver).query_available_devices()), "no device")
    report = peer.Report(f"IREE {version.VERSION}", f"{driver}: {name}", args)
    with tempfile.TemporaryDirectory() as folder:
        compiler = Compiler(args, size, peer.weights(size, args.dtype), folder)
        report.run(functools.partial(measure, compiler, args))


if __name__ == "__main__":
    main()
