#!/usr/bin/env python3
"""Train kiln's built-in `demo` model: a small GPT-2 on the prose of the Rust
documentation.

One command runs the whole pipeline: it extracts the text, trains the
tokenizer, trains the model, exports it and writes sample continuations.

    python -m venv venv
    venv/bin/pip install torch transformers tokenizers safetensors numpy lxml
    venv/bin/python models/demo/train.py

The text is read from the HTML documentation that ships with a Rust toolchain
(`rustup component add rust-docs`), found through `rustc --print sysroot`;
`--docs DIR` reads it from somewhere else.

Steps can be run on their own, in this order; each reads what the one before it
left in the work folder (`--work`, by default `demo-work` in the system's
temporary folder):

    train.py --steps corpus       HTML        -> train.txt, valid.txt
    train.py --steps tokenizer    train.txt   -> OUT/tokenizer.json, *.bin
    train.py --steps train        *.bin       -> checkpoints, OUT/model.safetensors
    train.py --steps samples      OUT         -> OUT/samples.txt

Training is bounded by wall-clock time (`--minutes`), and the learning rate
follows the clock, so that the decay always completes: a slower machine sees
fewer tokens, never a truncated schedule. The exported folder (`--out`, by
default the folder of this file) has the layout of a Hugging Face GPT-2:
config.json, tokenizer.json and model.safetensors (f16, tied head not stored).
"""

import argparse
import json
import math
import os
import random
import re
import subprocess
import tempfile
import time
from pathlib import Path

# Threads that sleep while they wait share a busy machine far better.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

END = "<|endoftext|>"

# Folders of the documentation that are read, under `html/`. All of them are
# licensed MIT OR Apache-2.0; the embedded book, which is also offered under
# CC-BY-SA, is left out. Of paragraphs that repeat, the first one counts, so
# the books come first.
SOURCES = """
    book nomicon rust-by-example edition-guide reference style-guide cargo rustc
    rustdoc clippy unstable-book error_codes std alloc core proc_macro test
""".split()

# Pages that repeat other pages, hold no prose or are not by the Rust project.
SKIP_PATH = re.compile(
    r"(^|/)(print|toc|all|404|searchindex|SUMMARY|genindex)\.html$"
    r"|^(core|std)/(arch|core_arch|core_simd|simd)/"
    r"|^core/stdarch|^book/(first-edition|second-edition|2018-edition)/"
    r"|^rust-by-example/(es|fr|ja|ko|pt|ru|zh)[^/]*/"
)

PROMPTS = [
    "The borrow checker",
    "A vector is",
    "Ownership is",
    "In this chapter, we",
    "When you run",
    "The compiler will",
    "This function returns",
    "If you want to",
    "A trait is",
    "The standard library",
    "Note that",
    "Cargo is",
    "Memory safety",
    "Let's look at",
    "Threads can",
    "An iterator",
    "Unsafe code",
    "Returns `true` if",
    "The program",
    "However, it is not",
]


# ---------------------------------------------------------------- the corpus


def docs_folder(args):
    if args.docs:
        return Path(args.docs)
    sysroot = subprocess.check_output(["rustc", "--print", "sysroot"], text=True)
    return Path(sysroot.strip()) / "share" / "doc" / "rust" / "html"


def paragraph_text(node):
    """The text of one <p> or <li>, with inline code set in backticks.

    Nested blocks (code listings, lists, tables) are left out: they are
    visited on their own, or are not prose.
    """
    parts = []

    def walk(element, in_code):
        if element.text:
            parts.append(element.text)
        for child in element:
            tag = child.tag
            if not isinstance(tag, str):
                pass
            elif tag in ("pre", "ul", "ol", "table", "svg", "script", "button", "sup", "p", "div", "blockquote"):
                parts.append(" ")
            elif tag == "br":
                parts.append(" ")
            elif tag == "code" and not in_code:
                parts.append("`")
                walk(child, True)
                parts.append("`")
            else:
                walk(child, in_code)
            if child.tail:
                parts.append(child.tail)

    walk(node, False)
    text = "".join(parts)
    for fancy, plain in (("\u2019", "'"), ("\u2018", "'"), ("\u201c", '"'), ("\u201d", '"'),
                         ("\u2026", "..."), ("\u2013", "-"), ("\u2014", " - "), ("\u2011", "-"),
                         ("\u00a0", " "), ("\u200b", "")):
        text = text.replace(fancy, plain)
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"^\[?[a-z][\w.-]+\.[\w.-]+\]? (?=[A-Z])", "", text)  # rule names of the reference
    return text


SENTENCE_END = re.compile(r"[.!?:;][)\"'`*]*$")


def is_prose(text):
    """Whether a paragraph reads like sentences in English."""
    if len(text) < 40 or len(text.split()) < 7:
        return False
    if not SENTENCE_END.search(text):
        return False
    if not (text[0].isupper() or text[0] in "`\"'("):
        return False
    if text.count("`") % 2 or not text.isascii() or "http" in text:
        return False
    outside = re.sub(r"`[^`]*`", "", text)
    if len(outside) < 0.55 * len(text):
        return False
    if len(outside.split()) < 6:
        return False
    letters = sum(c.isalpha() or c in " ,.'" for c in outside)
    if letters < 0.93 * len(outside):
        return False
    # Long inline code is a listing in disguise.
    return all(len(code) <= 60 for code in re.findall(r"`([^`]*)`", text))


def duplicate_key(text):
    """Paragraphs with one key differ only in numbers or primitive types."""
    key = text.lower()
    key = re.sub(r"\b[iuf](8|16|32|64|128|size)\b", "T", key)
    key = re.sub(r"nonzero\w*|atomic\w*", "T", key)
    key = re.sub(r"\d+", "0", key)
    return re.sub(r"[^a-zT0]+", " ", key)


def page_paragraphs(path):
    """The paragraphs of prose of one page, in order."""
    from lxml import html

    try:
        root = html.fromstring(path.read_bytes())
    except Exception:
        return
    if root.xpath("//meta[@http-equiv='refresh']"):
        return
    blocks = root.xpath(
        "//*[contains(concat(' ', normalize-space(@class), ' '), ' docblock ')]"
    ) or root.xpath("//main")
    for block in blocks:
        for node in block.iter("p", "li"):
            if node.tag == "li" and node.find("p") is not None:
                continue
            text = paragraph_text(node)
            if is_prose(text):
                yield text


def read_corpus(html):
    """The documents as (source, [paragraph]), without repeated paragraphs."""
    documents, seen = [], set()
    for source in SOURCES:
        for path in sorted((html / source).rglob("*.html")):
            name = path.relative_to(html).as_posix()
            if SKIP_PATH.search(name):
                continue
            paragraphs = []
            for text in page_paragraphs(path):
                key = duplicate_key(text)
                if key not in seen:
                    seen.add(key)
                    paragraphs.append(text)
            if paragraphs:
                documents.append((source, paragraphs))
    return documents


def step_corpus(args, work):
    documents = read_corpus(docs_folder(args))
    # Short pages are joined with their neighbours, so that a document has a
    # few paragraphs to it.
    joined = []
    for source, paragraphs in documents:
        if joined and joined[-1][0] == source and sum(map(len, joined[-1][1])) < 600:
            joined[-1][1].extend(paragraphs)
        else:
            joined.append((source, list(paragraphs)))
    rng = random.Random(args.seed)
    rng.shuffle(joined)
    held_out = max(1, round(0.02 * len(joined)))
    counts = {}
    with open(work / "valid.txt", "w") as valid, open(work / "train.txt", "w") as train:
        for i, (source, paragraphs) in enumerate(joined):
            text = "\n\n".join(paragraphs) + "\n" + END + "\n"
            counts[source] = counts.get(source, 0) + len(text)
            if i < held_out:
                valid.write(text)
            else:
                train.write(text)
    for source, size in sorted(counts.items(), key=lambda item: -item[1]):
        print(f"  {source:16} {size:9,} bytes")
    print(f"{len(joined)} documents, {sum(counts.values()):,} bytes, {held_out} held out")


def read_documents(path):
    return [d.strip("\n") for d in path.read_text().split(END) if d.strip()]


# ------------------------------------------------------------- the tokenizer


def step_tokenizer(args, work):
    import numpy as np
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    train = read_documents(work / "train.txt")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=args.vocab,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(train, trainer)
    tokenizer.save(str(args.out / "tokenizer.json"))

    end = tokenizer.token_to_id(END)
    for split in ("train", "valid"):
        documents = read_documents(work / f"{split}.txt")
        ids = []
        for encoding in tokenizer.encode_batch(documents):
            ids.append(end)
            ids.extend(encoding.ids)
        np.array(ids, dtype=np.uint16).tofile(work / f"{split}.bin")
        size = sum(len(d.encode()) for d in documents)
        meta = {"tokens": len(ids), "bytes": size, "documents": len(documents)}
        (work / f"{split}.json").write_text(json.dumps(meta))
        print(f"{split}: {len(ids):,} tokens, {size:,} bytes, {size / len(ids):.2f} bytes a token")


# ----------------------------------------------------------------- the model


def model_config(args):
    from transformers import GPT2Config

    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    end = tokenizer.token_to_id(END)
    return GPT2Config(
        vocab_size=tokenizer.get_vocab_size(),
        n_positions=args.context,
        n_embd=args.width,
        n_layer=args.layers,
        n_head=args.heads,
        activation_function="gelu_new",
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=args.dropout,
        bos_token_id=end,
        eos_token_id=end,
        tie_word_embeddings=True,
    )


def export(model, out):
    """Write config.json and model.safetensors as Hugging Face names them."""
    import torch
    from safetensors.torch import save_file

    tensors = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" or name.endswith((".attn.bias", ".attn.masked_bias")):
            continue
        tensors[name] = tensor.detach().to(torch.float16).contiguous().clone()
    partial = out / "model.safetensors.partial"
    save_file(tensors, str(partial), metadata={"format": "pt"})
    partial.chmod(0o644)
    partial.replace(out / "model.safetensors")

    config = model.config.to_dict()
    config["architectures"] = ["GPT2LMHeadModel"]
    # "dtype" is the newer name of "torch_dtype"; readers of either are served.
    config["dtype"] = config["torch_dtype"] = "float16"
    for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        config[key] = 0.0
    for key in ("_name_or_path", "transformers_version"):
        config.pop(key, None)
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def validation_loss(model, data, context, batch, limit=None):
    """The mean loss over the held-out text, in nats a token.

    Windows overlap by half, and only the second half of each counts (but for
    the first), so that every token but the first few has a context behind it.
    """
    import torch
    import torch.nn.functional as F

    half = context // 2
    starts = list(range(0, len(data) - context - 1, half))
    if limit:
        starts = starts[:: max(1, len(starts) // limit)]
    total = count = 0
    model.eval()
    with torch.no_grad():
        for i in range(0, len(starts), batch):
            group = starts[i : i + batch]
            rows = torch.stack([data[s : s + context + 1] for s in group])
            logits = model(rows[:, :-1]).logits[:, half:].float()
            targets = rows[:, half + 1 :]
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
            total += loss.item()
            count += targets.numel()
    model.train()
    return total / count


def batches(data, context, batch, seed):
    """Endless batches; each pass cuts the text at a new offset and shuffles."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    rows = []
    while True:
        offset = int(torch.randint(context, (1,), generator=generator))
        starts = torch.arange(offset, len(data) - context - 1, context)
        for start in starts[torch.randperm(len(starts), generator=generator)].tolist():
            rows.append(data[start : start + context + 1])
            if len(rows) == batch:
                stacked = torch.stack(rows)
                rows = []
                yield stacked[:, :-1], stacked[:, 1:]


def step_train(args, work):
    import numpy as np
    import torch
    import torch.nn.functional as F
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    train, valid = (
        torch.from_numpy(np.fromfile(work / f"{split}.bin", dtype=np.uint16).astype(np.int64))
        for split in ("train", "valid")
    )
    model = GPT2LMHeadModel(model_config(args))
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, {len(train):,} tokens of training text")

    # Muon for the matrices inside the layers, AdamW for all else.
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and ".h." in n]
    ids = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if id(p) not in ids]
    optimizers = [
        torch.optim.Muon(hidden, lr=args.lr_muon, weight_decay=args.decay, momentum=0.95,
                         adjust_lr_fn="original"),
        torch.optim.AdamW(
            [
                {"params": [p for p in rest if p.ndim >= 2], "weight_decay": 0.01},
                {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=args.lr, betas=(0.9, 0.97),
        ),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]

    # GPT-2's "gelu_new" is the tanh approximation; PyTorch's own is one kernel.
    for block in model.transformer.h:
        block.mlp.act = torch.nn.GELU(approximate="tanh")
    log = open(work / "log.txt", "a")

    def say(line):
        print(line, flush=True)
        log.write(line + "\n")
        log.flush()

    model.train()
    source = batches(train, args.context, args.batch, args.seed)
    seconds = args.minutes * 60
    begun = time.time()
    mean_loss, step, seen, last_report, last_save = None, 0, 0, begun, begun
    while True:
        done = (time.time() - begun) / seconds
        if done >= 1 or (args.max_steps and step >= args.max_steps):
            break
        warm = min(1.0, (step + 1) / args.warmup)
        # Constant, then linear to zero over the last part of the time.
        scale = warm * min(1.0, (1 - done) / args.cooldown)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * scale

        inputs, targets = next(source)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            logits = model(inputs, use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()

        step += 1
        seen += inputs.numel()
        value = loss.item()
        mean_loss = value if mean_loss is None else 0.97 * mean_loss + 0.03 * value
        now = time.time()
        if step == 10 or now - last_report > 60:
            last_report = now
            say(f"{(now - begun) / 60:6.1f} min  step {step:6}  tokens {seen / 1e6:7.2f}M  "
                f"epochs {seen / len(train):5.2f}  lr {scale:.3f}  loss {mean_loss:.4f}  "
                f"{seen / (now - begun):,.0f} tokens/s")
        if now - last_save > args.save_every * 60:
            last_save = now
            torch.save(model.state_dict(), work / "checkpoint.pt")
            export(model, args.out)
            loss_now = validation_loss(model, valid, args.context, args.batch, limit=64)
            say(f"        validation loss {loss_now:.4f} (part), exported")

    export(model, args.out)
    minutes = (time.time() - begun) / 60
    # The losses of what was exported: the weights as rounded to f16.
    model = GPT2LMHeadModel.from_pretrained(args.out, dtype=torch.float32)
    meta = json.loads((work / "valid.json").read_text())
    bytes_per_token = meta["bytes"] / meta["tokens"]
    result = {"parameters": parameters, "steps": step, "tokens_seen": seen,
              "epochs": seen / len(train), "minutes": minutes}
    for split, data in (("train", train[: 4 * len(valid)]), ("valid", valid)):
        loss = validation_loss(model, data, args.context, args.batch)
        result[f"{split}_loss"] = loss
        result[f"{split}_perplexity"] = math.exp(loss)
    result["valid_bits_per_byte"] = result["valid_loss"] / math.log(2) / bytes_per_token
    (work / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    say(json.dumps(result, indent=2))


# --------------------------------------------------------------- the samples


def step_samples(args, work):
    import torch
    from tokenizers import Tokenizer
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(args.threads)
    tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    model = GPT2LMHeadModel.from_pretrained(args.out, dtype=torch.float32).eval()
    end = tokenizer.token_to_id(END)

    def continuation(prompt, **how):
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        with torch.no_grad():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=60,
                                 pad_token_id=end, **how)
        new = [i for i in out[0, ids.shape[1]:].tolist() if i != end]
        return tokenizer.decode(new)

    lines = ["Continuations of up to 60 tokens; the prompt is in brackets.", ""]
    for title, how in (
        ("Sampled, temperature 0.7, top-k 40", dict(do_sample=True, temperature=0.7, top_k=40)),
        ("Greedy", dict(do_sample=False)),
    ):
        lines += [title, "=" * len(title), ""]
        torch.manual_seed(args.seed)
        for prompt in PROMPTS:
            text = continuation(prompt, **how).replace("\n\n", "\n    ")
            lines += [f"[{prompt}]{text}", ""]
    text = "\n".join(lines).rstrip() + "\n"
    (args.out / "samples.txt").write_text(text)
    print(text)


# ----------------------------------------------------------- the command line


def main():
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Train kiln's built-in demo model.")
    parser.add_argument("--docs", help="HTML folder of the Rust documentation")
    parser.add_argument("--out", type=Path, default=here, help="folder of the finished model")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "demo-work",
                        help="folder of the text, the checkpoints and the log")
    parser.add_argument("--steps", default="corpus,tokenizer,train,samples",
                        help="which steps to run, separated by commas")
    parser.add_argument("--vocab", type=int, default=3072)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--minutes", type=float, default=58, help="wall-clock time of training")
    parser.add_argument("--max-steps", type=int, help="stop after so many steps at the latest")
    parser.add_argument("--batch", type=int, default=12, help="sequences in a batch")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate of AdamW")
    parser.add_argument("--lr-muon", type=float, default=2e-2, help="peak learning rate of Muon")
    parser.add_argument("--decay", type=float, default=0.05, help="weight decay of Muon")
    parser.add_argument("--warmup", type=int, default=50, help="steps of warm-up")
    parser.add_argument("--cooldown", type=float, default=0.6,
                        help="share of the time over which the learning rate falls to zero")
    parser.add_argument("--save-every", type=float, default=3, help="minutes between checkpoints")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True,
                        help="multiply matrices in bfloat16 (weights stay f32)")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    args.work.mkdir(parents=True, exist_ok=True)
    steps = {"corpus": step_corpus, "tokenizer": step_tokenizer,
             "train": step_train, "samples": step_samples}
    for step in args.steps.split(","):
        print(f"== {step}", flush=True)
        steps[step](args, args.work)


if __name__ == "__main__":
    main()
