"""GPT-2 on random weights with PyTorch.

Modes, all with the same weights:

eager     transformers' GPT2LMHeadModel as `generate` runs it, growing KV cache
compiled  the same model under torch.compile with CUDA graphs, static KV cache
graph     a GPT-2 written for speed (below), static KV cache, a token a replay of
          one CUDA graph that feeds its own argmax; without CUDA it runs uncaptured
fused     the model of `graph` under torch.compile with CUDA graphs and tuned
          kernels; tuning takes minutes

A static cache has just the positions that a case needs. The models of `graph` and
`fused` are held against transformers before they are timed.
"""

import itertools

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, StaticCache

import peer

DTYPES = {"f16": torch.float16, "f32": torch.float32}
# |a - b| / |b| over the logits, for two ways to round.
TOLERANCE = {torch.float16: 2e-2, torch.float32: 1e-4}


def build(size: peer.Size, dtype: torch.dtype, device: str) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=peer.VOCAB,
        n_positions=peer.CONTEXT,
        n_layer=size.layers,
        n_head=size.heads,
        n_embd=size.width,
    )
    config._attn_implementation = "sdpa"
    # Where it is to be: 1.5 billion weights take long to be drawn and moved.
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = GPT2LMHeadModel(config).eval()
    torch.set_default_dtype(torch.float32)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            gain = name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight"))
            deviation = size.width**-0.5 if parameter.ndim > 1 else 0.1
            parameter.normal_(1.0 if gain else 0.0, deviation, generator=generator)
    return model


def argmax(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, -1:].argmax(-1)


class Mode:
    """A way to run a model. Both steps and prompts return the next token of each
    sequence, [batch, 1], on the device."""

    context = torch.inference_mode

    def prefill(self, ids: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def rewind(self, past: int):
        """Forgets what is behind the first `past` positions."""
        raise NotImplementedError

    def fill(self, ids: torch.Tensor) -> torch.Tensor:
        """A prompt that is not timed."""
        return self.prefill(ids)


class Eager(Mode):
    """transformers with the cache that `generate` takes by default."""

    def __init__(self, model: GPT2LMHeadModel, batch: int, capacity: int):
        self.model = model

    def prefill(self, ids: torch.Tensor) -> torch.Tensor:
        self.cache = DynamicCache(config=self.model.config)
        return self.step(ids)

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        return argmax(self.model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits)

    def rewind(self, past: int):
        if (extra := self.cache.get_seq_length() - past) > 0:
            self.cache.crop(-extra)


class Compiled(Mode):
    """transformers with a static cache under torch.compile."""

    # Inference tensors are no static inputs of torch.compile's CUDA graphs.
    context = torch.no_grad

    def __init__(self, model: GPT2LMHeadModel, batch: int, capacity: int):
        def step(ids: torch.Tensor, cache: StaticCache) -> torch.Tensor:
            return argmax(model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits)

        # Shapes of an earlier case would make this one's dynamic.
        torch._dynamo.reset()
        self.cache = StaticCache(config=model.config, max_cache_len=capacity)
        self.plain = step
        self.compiled = torch.compile(step, mode="reduce-overhead", fullgraph=True, dynamic=False)
        # Allocates the cache: inside what is compiled, it could not be static.
        step(torch.ones(batch, 1, dtype=torch.long, device=model.device), self.cache)

    def prefill(self, ids: torch.Tensor) -> torch.Tensor:
        self.rewind(0)
        return self.step(ids)

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        # The next replay overwrites the result.
        return self.compiled(ids, self.cache).clone()

    def fill(self, ids: torch.Tensor) -> torch.Tensor:
        self.rewind(0)
        return self.plain(ids, self.cache)

    def rewind(self, past: int):
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(past)


def linear(conv) -> nn.Linear:
    """From transformers' layer, whose weights are [in, out]."""
    layer = nn.Linear(*conv.weight.shape, device="meta")
    layer.weight, layer.bias = nn.Parameter(conv.weight.T.contiguous()), nn.Parameter(conv.bias)
    return layer


class Block(nn.Module):
    """A transformer block; its cache is a pair of [batch, heads, capacity, depth]."""

    def __init__(self, hf, heads: int, attention: str):
        super().__init__()
        self.heads, self.attention = heads, attention
        self.ln_1, self.ln_2 = hf.ln_1, hf.ln_2
        self.c_attn, self.attn_proj = linear(hf.attn.c_attn), linear(hf.attn.c_proj)
        self.c_fc, self.mlp_proj = linear(hf.mlp.c_fc), linear(hf.mlp.c_proj)

    def forward(self, x, keys, values, position, mask):
        """`mask` is None for a prompt, which begins at position 0."""
        batch, length, width = x.shape
        split = (batch, length, self.heads, width // self.heads)
        q, k, v = (t.view(split).transpose(1, 2) for t in self.c_attn(self.ln_1(x)).chunk(3, dim=-1))
        if mask is None:
            keys[:, :, :length], values[:, :, :length] = k, v
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            keys.index_copy_(2, position, k)
            values.index_copy_(2, position, v)
            if self.attention == "sdpa":
                y = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
            else:
                scores = (q * split[-1] ** -0.5) @ keys.transpose(2, 3)
                scores = scores.masked_fill(~mask, float("-inf"))
                y = scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ values
        x = x + self.attn_proj(y.transpose(1, 2).reshape(x.shape))
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class Static(nn.Module):
    """GPT-2 with a static KV cache, for one batch and one capacity."""

    def __init__(self, hf: GPT2LMHeadModel, batch: int, capacity: int, attention: str):
        super().__init__()
        config, like = hf.config, {"device": hf.device, "dtype": hf.dtype}
        self.wte, self.wpe, self.ln_f = hf.transformer.wte, hf.transformer.wpe, hf.transformer.ln_f
        self.blocks = nn.ModuleList(Block(b, config.n_head, attention) for b in hf.transformer.h)
        # An odd number of outputs is slow.
        self.vocab = config.vocab_size
        self.head = F.pad(self.wte.weight, (0, 0, 0, -self.vocab % 64))
        depth = config.n_embd // config.n_head
        cache = (batch, config.n_head, capacity, depth)
        self.cache = [(torch.zeros(cache, **like), torch.zeros(cache, **like)) for _ in self.blocks]
        index = {"device": hf.device, "dtype": torch.long}
        self.slots = torch.arange(capacity, **index)
        self.position = torch.zeros(1, **index)
        self.token = torch.ones(batch, 1, **index)
        self.logits = torch.zeros(batch, self.vocab, **like)
        for tensor in (self.position, self.token, self.logits, *itertools.chain(*self.cache)):
            torch._dynamo.mark_static_address(tensor)

    def forward(self, ids: torch.Tensor, prompt: bool):
        """Leaves the logits, their argmax and the position behind `ids`."""
        length = ids.shape[1]
        at = self.slots[:length] if prompt else self.position
        mask = None if prompt else (self.slots <= self.position).view(1, 1, 1, -1)
        x = self.wte(ids) + self.wpe(at)
        for block, (keys, values) in zip(self.blocks, self.cache, strict=True):
            x = block(x, keys, values, at, mask)
        logits = F.linear(self.ln_f(x[:, -1]), self.head)[:, : self.vocab]
        self.logits.copy_(logits)
        self.token.copy_(logits.argmax(-1, keepdim=True))
        if prompt:
            self.position.fill_(length)
        else:
            self.position.add_(1)

    def rewind(self, past: int):
        self.position.fill_(past)


class Graph(Mode):
    """[`Static`], each of its graphs captured."""

    attention = "sdpa"

    def __init__(self, model: GPT2LMHeadModel, batch: int, capacity: int):
        self.static = Static(model, batch, capacity, self.attention)
        self.cuda = model.device.type == "cuda"
        self.prompts: dict[int, tuple] = {}
        self.one = self.capture(lambda: self.static(self.static.token, prompt=False))

    def capture(self, work):
        if not self.cuda:
            return work
        self.static.rewind(0)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.static.rewind(0)
                work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return graph.replay

    def prefill(self, ids: torch.Tensor) -> torch.Tensor:
        length = ids.shape[1]
        if length not in self.prompts:
            own = ids.clone()
            self.prompts[length] = own, self.capture(lambda: self.static(own, prompt=True))
        own, work = self.prompts[length]
        own.copy_(ids)
        work()
        return self.static.token

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        if ids is not self.static.token:
            self.static.token.copy_(ids)
        self.one()
        return self.static.token

    def rewind(self, past: int):
        self.static.rewind(past)


class GraphMatmul(Graph):
    """Attention of a decode step as two products: for one query often faster."""

    attention = "matmul"


class Fused(Graph):
    """[`Static`] under torch.compile, which fuses and makes the CUDA graphs."""

    context = torch.no_grad

    def __init__(self, model: GPT2LMHeadModel, batch: int, capacity: int):
        torch._dynamo.reset()
        super().__init__(model, batch, capacity)

    def capture(self, work):
        options = {"triton.cudagraphs": True, "coordinate_descent_tuning": True}
        return torch.compile(work, fullgraph=True, dynamic=False, options=options)


MODES = {"eager": [Eager], "compiled": [Compiled], "graph": [Graph, GraphMatmul], "fused": [Fused]}


def check(model: GPT2LMHeadModel, own: Graph, ids: torch.Tensor):
    """Raises where a prompt's logits, or those of the token behind it, are not
    those of transformers."""
    length = ids.shape[1] - 1
    expected = model(ids, logits_to_keep=2).logits.float()
    for i, work in enumerate((lambda: own.prefill(ids[:, :length]), lambda: own.step(ids[:, length:]))):
        work()
        error = (own.static.logits - expected[:, i]).norm() / expected[:, i].norm()
        if not error < TOLERANCE[model.dtype]:
            raise ValueError(f"logits of {'decode' if i else 'prefill'} are off by {error:.2e}")


def measure(args, model: GPT2LMHeadModel, variant: type[Mode], what: str, batch: int, length: int):
    """The seconds of one prompt or step, and how many runs they are the median of."""
    generator = torch.Generator(model.device).manual_seed(length)
    ids = torch.randint(peer.VOCAB, (batch, length + 1), device=model.device, generator=generator)
    with variant.context():
        own = variant(model, batch, length + (args.steps if what == "decode" else 1))
        if isinstance(own, Graph):
            check(model, own, ids[:, : peer.CONTEXT])
        ids = ids[:, :length].contiguous()
        if what == "prefill":
            return peer.repeat(lambda: own.prefill(ids).tolist(), args.seconds)
        first = own.fill(ids).clone()

        def steps():
            token = first
            for _ in range(args.steps):
                token = own.step(token)
            token.tolist()

        seconds, runs = peer.repeat(steps, args.seconds, lambda: own.rewind(length))
        return seconds / args.steps, runs


def main():
    parser = peer.arguments(__doc__.splitlines()[0], ["cuda", "cpu"], list(DTYPES))
    modes = peer.some_of(list(MODES)) | {"default": ["eager", "compiled", "graph"]}
    parser.add_argument("--modes", **modes)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no CUDA device; `--device cpu` measures the processor")
    device = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} threads"
    report = peer.Report(
        f"PyTorch {torch.__version__}, transformers {transformers.__version__}", device, args
    )
    model = build(peer.SIZES[args.size], DTYPES[args.dtype], args.device)

    def best(mode: str, what: str, batch: int, length: int) -> tuple[float, int]:
        # Variants differ in decode steps only; the fastest counts.
        variants = MODES[mode] if what == "decode" else MODES[mode][:1]
        return min(measure(args, model, variant, what, batch, length) for variant in variants)

    report.run(best)


if __name__ == "__main__":
    main()
