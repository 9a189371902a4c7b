"""GPT-2 on random weights with ONNX Runtime.

The graph is the one that ONNX Runtime's own tools end with: its fused operators
for attention over a KV cache of fixed size (GroupQueryAttention, present bound to
past), for residual and norm (SkipLayerNormalization) and for GELU (FastGelu). All
tensors are bound on the device; a step's token is the next step's input.

Mode `bound` is the only one.
"""

import functools
import os
import tempfile

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import peer

PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
NUMPY = {"f16": np.float16, "f32": np.float32}
ONNX = {"f16": TensorProto.FLOAT16, "f32": TensorProto.FLOAT}
TOLERANCE = {"f16": 2e-2, "f32": 1e-4}
# Operators that ONNX itself does not have.
CONTRIB = {"GroupQueryAttention", "SkipLayerNormalization", "FastGelu"}


def build(size: peer.Size, weights: dict, dtype: str) -> onnx.ModelProto:
    """ids, positions, seqlens, total, past.* -> token, logits, present.*"""
    nodes = []

    def add(op: str, inputs: list[str], outputs: list[str], **attributes) -> str:
        domain = "com.microsoft" if op in CONTRIB else ""
        nodes.append(helper.make_node(op, inputs, outputs, domain=domain, **attributes))
        return outputs[0]

    def linear(x: str, name: str, bias: bool = True) -> str:
        y = add("MatMul", [x, f"{name}.weight"], [f"{name}.product"])
        return add("Add", [y, f"{name}.bias"], [name]) if bias else y

    add("Gather", ["wte.weight", "ids"], ["wte"])
    add("Gather", ["wpe.weight", "positions"], ["wpe"])
    residual = add("Add", ["wte", "wpe"], ["embedded"])
    # What is still to be added to the residual: a product and its bias.
    pending: tuple[str, str] | None = None

    def norm(name: str) -> str:
        nonlocal residual
        gain = [f"{name}.weight", f"{name}.bias"]
        if pending is None:
            return add("LayerNormalization", [residual, *gain], [name], epsilon=peer.EPSILON)
        product, bias = pending
        add(
            "SkipLayerNormalization",
            [product, residual, *gain, bias],
            [name, "", "", f"{name}.sum"],
            epsilon=peer.EPSILON,
        )
        residual = f"{name}.sum"
        return name

    for i in range(size.layers):
        h = f"h.{i}."
        qkv = linear(norm(f"{h}ln_1"), f"{h}attn.c_attn")
        add("Split", [qkv], [f"{h}q", f"{h}k", f"{h}v"], axis=-1, num_outputs=3)
        add(
            "GroupQueryAttention",
            [f"{h}q", f"{h}k", f"{h}v", f"past.{i}.k", f"past.{i}.v", "seqlens", "total"],
            [f"{h}attn", f"present.{i}.k", f"present.{i}.v"],
            num_heads=size.heads,
            kv_num_heads=size.heads,
        )
        pending = linear(f"{h}attn", f"{h}attn.c_proj", bias=False), f"{h}attn.c_proj.bias"
        hidden = linear(norm(f"{h}ln_2"), f"{h}mlp.c_fc", bias=False)
        hidden = add("FastGelu", [hidden, f"{h}mlp.c_fc.bias"], [f"{h}mlp.act"])
        pending = linear(hidden, f"{h}mlp.c_proj", bias=False), f"{h}mlp.c_proj.bias"
    last = add("Gather", [norm("ln_f"), "last"], ["ln_f.last"], axis=1)
    add("Gemm", [last, "wte.weight"], ["logits"], transB=1)
    add("ArgMax", ["logits"], ["token"], axis=1, keepdims=1)

    def info(name: str, kind: int, *shape) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    def cache(name: str) -> onnx.ValueInfoProto:
        return info(name, kind, "batch", size.heads, "capacity", size.width // size.heads)

    kind = ONNX[dtype]
    halves = [f"{i}.{half}" for i in range(size.layers) for half in "kv"]
    graph = helper.make_graph(
        nodes,
        "gpt2",
        [
            info("ids", TensorProto.INT64, "batch", "seq"),
            info("positions", TensorProto.INT64, "batch", "seq"),
            info("seqlens", TensorProto.INT32, "batch"),
            info("total", TensorProto.INT32),
            *(cache(f"past.{half}") for half in halves),
        ],
        [
            info("token", TensorProto.INT64, "batch", 1),
            info("logits", kind, "batch", peer.VOCAB),
            *(cache(f"present.{half}") for half in halves),
        ],
        [numpy_helper.from_array(array, name) for name, array in weights.items()]
        + [numpy_helper.from_array(np.array(-1), "last")],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def session(size: peer.Size, weights: dict, args) -> onnxruntime.InferenceSession:
    def load(path: str, strict: bool) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.disable_cpu_ep_fallback", str(int(strict)))
        return onnxruntime.InferenceSession(path, options, providers=[PROVIDERS[args.device]])

    # A model of more than 2 GB keeps its weights in a file of their own.
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "gpt2.onnx")
        onnx.save(build(size, weights, args.dtype), path, save_as_external_data=True, location="gpt2.data")
        try:
            own = load(path, strict=args.device != "cpu")
        except Exception as error:  # the binding raises several types
            peer.remark(f"some operators run on the processor: {error}")
            own = load(path, strict=False)
    if own.get_providers()[0] != PROVIDERS[args.device]:
        raise SystemExit(f"ONNX Runtime could not start {PROVIDERS[args.device]}")
    return own


class Model:
    """A session with its tensors bound, for one batch and one capacity."""

    def __init__(self, own: onnxruntime.InferenceSession, size: peer.Size, args, batch: int, capacity: int):
        self.session, self.device, self.batch = own, args.device, batch
        shape = (batch, size.heads, capacity, size.width // size.heads)
        halves = [f"{i}.{half}" for i in range(size.layers) for half in "kv"]
        self.cache = {half: self.value(np.zeros(shape, NUMPY[args.dtype])) for half in halves}
        self.tokens = [self.value(np.zeros((batch, 1), np.int64)) for _ in range(2)]
        self.logits = self.value(np.zeros((batch, peer.VOCAB), NUMPY[args.dtype]))

    def value(self, array, device: str | None = None) -> onnxruntime.OrtValue:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array, device or self.device, 0)

    def binding(self, past: int, seq: int, ids, token):
        """The work on `seq` tokens behind `past`, ready to run."""
        batch, total = self.batch, past + seq
        bound = self.session.io_binding()
        bound.bind_ortvalue_input("ids", ids)
        positions = np.broadcast_to(np.arange(past, total), (batch, seq)).copy()
        bound.bind_ortvalue_input("positions", self.value(positions))
        bound.bind_ortvalue_input("seqlens", self.value(np.full(batch, total - 1, np.int32)))
        # Read by the processor, to choose a kernel.
        bound.bind_ortvalue_input("total", self.value(np.array(total, np.int32), "cpu"))
        for half, value in self.cache.items():
            bound.bind_ortvalue_input(f"past.{half}", value)
            bound.bind_ortvalue_output(f"present.{half}", value)
        bound.bind_ortvalue_output("token", token)
        bound.bind_ortvalue_output("logits", self.logits)
        return bound

    def prefill(self, ids: np.ndarray):
        return self.binding(0, ids.shape[1], self.value(ids), self.tokens[0])

    def step(self, past: int, count: int):
        """The step after `count` others since the prompt."""
        return self.binding(past, 1, self.tokens[count % 2], self.tokens[(count + 1) % 2])


def check(own, size: peer.Size, weights: dict, args):
    ids = np.random.default_rng(1).integers(0, peer.VOCAB, (2, 17))
    model = Model(own, size, args, 2, 17)
    own.run_with_iobinding(model.prefill(ids[:, :16]))
    expected = peer.reference(weights, size, ids[:, :16])
    peer.check("prefill", model.logits.numpy(), expected, TOLERANCE[args.dtype])
    own.run_with_iobinding(model.binding(16, 1, model.value(ids[:, 16:].copy()), model.tokens[1]))
    expected = peer.reference(weights, size, ids)
    peer.check("decode", model.logits.numpy(), expected, TOLERANCE[args.dtype])


def measure(own, size: peer.Size, args, _mode: str, what: str, batch: int, length: int) -> tuple[float, int]:
    ids = np.random.default_rng(length).integers(0, peer.VOCAB, (batch, length))
    model = Model(own, size, args, batch, length + (args.steps if what == "decode" else 0))
    prompt = model.prefill(ids)
    if what == "prefill":

        def work():
            own.run_with_iobinding(prompt)
            model.tokens[0].numpy()

        return peer.repeat(work, args.seconds)
    own.run_with_iobinding(prompt)
    steps = [model.step(length + count, count) for count in range(args.steps)]

    def steps_work():
        for bound in steps:
            own.run_with_iobinding(bound)
        model.tokens[args.steps % 2].numpy()

    seconds, runs = peer.repeat(steps_work, args.seconds)
    return seconds / args.steps, runs


def main():
    parser = peer.arguments(__doc__.splitlines()[0], list(PROVIDERS), list(ONNX))
    parser.add_argument("--modes", **peer.some_of(["bound"]))
    args = parser.parse_args()
    if PROVIDERS[args.device] not in onnxruntime.get_available_providers():
        raise SystemExit(
            f"this ONNX Runtime has no {PROVIDERS[args.device]}; requirements-cuda.txt has one with it"
        )
    if hasattr(onnxruntime, "preload_dlls"):
        # CUDA's libraries from PyPI are not on the loader's path.
        onnxruntime.preload_dlls()
    report = peer.Report(f"ONNX Runtime {onnxruntime.__version__}", PROVIDERS[args.device], args)
    size = peer.SIZES[args.size]
    weights = peer.weights(size, args.dtype)
    own = session(size, weights, args)
    check(own, size, weights, args)
    report.run(functools.partial(measure, own, size, args))


if __name__ == "__main__":
    main()
