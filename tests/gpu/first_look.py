"""What a GPU does with the engine: kernels against the reference, answers against transformers, speed, a profile."""

import json
import os
import queue
import statistics
import sys
import time
import traceback
from typing import Any

import torch

from phi3_serve.bench.roofline import linear_sizes, measure_machine
from phi3_serve.bench.shapes import Model, as_loaded, build
from phi3_serve.core import EngineEvent, Failed, Finished
from phi3_serve.engine.engine_core import EngineCore
from phi3_serve.engine.kernels.contract import PagedQueries
from phi3_serve.engine.kernels.reference import ReferenceKernels
from phi3_serve.engine.memory import EngineSizes
from phi3_serve.parameters import GenerationParameters
from phi3_serve.prepare import prepare
from phi3_serve.resolved_parameters import resolve

FOUND: dict[str, Any] = {}
BEGAN = time.time()


def say(*words: Any) -> None:
    print(f"[{time.time() - BEGAN:5.1f}s]", *words, flush=True)


def part(name: str, run: Any) -> None:
    try:
        run()
    except Exception:
        say(name, "FAILED")
        traceback.print_exc()
        sys.stderr.flush()


def kernels() -> None:
    from phi3_serve.engine.kernels.cuda import CudaKernels

    device, reference = torch.device("cuda"), ReferenceKernels()
    torch.backends.cuda.matmul.allow_tf32 = False
    half, full = (torch.bfloat16,), (torch.float32, torch.float16)
    for heads, kv, dim, dtypes in ((32, 32, 96, half), (40, 10, 128, half), (4, 2, 32, full)):
        for dtype in dtypes:
            ours = CudaKernels(num_heads=heads, num_kv_heads=kv, dtype=dtype, device=device)
            cache = torch.randn(2 * kv, 600 * 16, dim, device=device).to(dtype)
            chunks = [(1, 1), (1, 16), (1, 17), (5, 40), (8, 300), (1, 2100), (70, 70), (200, 700), (300, 2500), (0, 0)]
            tables, sequences, short, long, row = [], [], [], [], 0
            for number, (count, end) in enumerate(chunks):
                sequences.append((row, count, end, len(tables)))
                tables += torch.randperm(600)[: -(-end // 16)].tolist()
                tiles, size = (short, ours.queries_per_tile[0]) if count <= 8 else (long, ours.queries_per_tile[1])
                tiles += [(number, first) for first in range(0, max(count, 1), size)]
                row += count
            ints = [torch.tensor(x, dtype=torch.int32, device=device) for x in (sequences, tables, short, long)]
            queries = PagedQueries(*ints)
            qkv = torch.randn(row, heads + 2 * kv, dim, device=device).to(dtype)
            for window in (None, 2047) if dim > 32 else (None, 64):
                mine = ours.attend(qkv, cache, queries, dim**-0.5, window).float()
                theirs = reference.attend(qkv.double(), cache.double(), queries, dim**-0.5, window).float()
                error = ((mine - theirs).norm() / theirs.norm()).item()
                bound = 1e-5 if dtype == torch.float32 else 6e-3 if dtype == torch.bfloat16 else 1e-3
                if not error < bound:
                    say("ATTENTION differs", heads, kv, dim, dtype, window, error)
            hidden, delta = (torch.randn(37, heads * dim, device=device).to(dtype) for _ in range(2))
            weight = torch.randn(heads * dim, device=device).to(dtype)
            a, b = hidden.clone(), hidden.clone()
            mine, theirs = ours.add_rms_norm(a, delta, weight, 1e-5), reference.add_rms_norm(b, delta, weight, 1e-5)
            torch.testing.assert_close(mine, theirs, rtol=1e-5 if dtype == torch.float32 else 2e-2, atol=1e-5)
            assert torch.equal(a, b)
            gate_up = torch.randn(37, 2 * 1000, device=device).to(dtype)
            torch.testing.assert_close(ours.silu_product(gate_up), reference.silu_product(gate_up), rtol=2e-2 if dtype != torch.float32 else 1e-5, atol=1e-5)
            rotation = tuple(torch.randn(37, 1, dim, device=device).to(dtype) for _ in range(2))
            slots = torch.randperm(600 * 16, device=device)[:37].int()
            slots[3] = -1
            qkv = qkv[:37].contiguous()
            q2, c2 = qkv.clone(), cache.clone()
            ours.rotate_and_store(qkv, rotation, slots, cache)
            reference.rotate_and_store(q2, rotation, slots, c2)
            torch.testing.assert_close(qkv[:, : heads + kv], q2[:, : heads + kv], rtol=3e-2 if dtype != torch.float32 else 1e-5, atol=4e-2 if dtype == torch.bfloat16 else 1e-2 if dtype == torch.float16 else 1e-5)
            torch.testing.assert_close(cache, c2, rtol=3e-2 if dtype != torch.float32 else 1e-5, atol=4e-2 if dtype == torch.bfloat16 else 1e-2 if dtype == torch.float16 else 1e-5)
        say("kernels checked", heads, kv, dim)


def sampler() -> None:
    from phi3_serve.engine.kernels.triton_sampling import choose_tokens

    rows, vocab = 4096, 32064
    logits = (torch.randn(1, vocab, device="cuda") * 3).bfloat16().expand(rows, vocab).contiguous()
    for temperature, top_p, min_p, top_k, keep in ((1, 1, 0, 0, 1), (0.7, 1, 0, 10, 1), (1, 0.9, 0, 0, 1), (0.8, 0.8, 0.02, 40, 1), (1.0, 0.5, 0, 0, 3)):
        floats = torch.tensor([(temperature, top_p, min_p)] * rows, device="cuda")
        ints = torch.tensor([(1, top_k, keep)] * rows, dtype=torch.int32, device="cuda")
        tokens = torch.empty(rows, dtype=torch.int32, device="cuda")
        choose_tokens(logits, floats, ints, torch.tensor([5, 9], device="cuda"), tokens)
        scores = logits[0].double() / temperature
        if top_k:
            scores[scores < scores.topk(top_k).values[-1]] = -torch.inf
        if top_p < 1:
            values, order = scores.sort(stable=True)
            removed = values.softmax(-1).cumsum(-1) <= 1 - top_p
            removed[-keep:] = False
            scores[order[removed]] = -torch.inf
        if min_p:
            q = scores.softmax(-1)
            scores[q < min_p * q.max()] = -torch.inf
        q = scores.softmax(-1)
        counts = torch.bincount(tokens.long(), minlength=vocab).double()
        outside = counts[q == 0].sum().item()
        top = q.topk(20).indices
        say("sampler", (temperature, top_p, min_p, top_k), "support", int((q > 0).sum()), "outside", outside,
            "max z", round(float(((counts[top] - rows * q[top]) / (rows * q[top] * (1 - q[top]) + 1e-9).sqrt()).abs().max()), 2))


def asked(name: str, prompt: list[int], new: int, **given: Any) -> Any:
    given = {"do_sample": False, **given}
    return prepare(name, prompt, resolve(GenerationParameters(max_new_tokens=new, min_new_tokens=new, **given), GenerationParameters()), context_length=4096, timeout_s=500, stream=True)


def parity() -> None:
    import tempfile
    from collections import Counter
    from pathlib import Path

    from tests.engine import parity as module
    from tests.random_checkpoint import Shape

    real = module.load
    module.load = lambda *a, **k: real(*a, **{**k, "device": "cuda"})
    torch.backends.cuda.matmul.allow_tf32 = False
    with tempfile.TemporaryDirectory() as directory:
        one = module.Parity(Path(directory), Shape(num_layers=3))
        drawn = module.cases(one.loaded, 5)
        counts: Counter[str] = Counter()
        until = time.time() + float(os.environ.get("PARITY_S", "40"))
        while time.time() < until:
            for verdict, case, ours, theirs in one.run([next(drawn) for _ in range(24)]):
                counts[verdict] += 1
                if verdict == "differs" and counts["differs"] <= 4:
                    say("DIFFERS", case.given, str(ours)[:300], str(theirs)[:300])
        say("parity in float32", dict(counts))
        FOUND["parity"] = dict(counts)
        one.close()


def decode(shape: str, batches: list[tuple[int, int]], machine: Any) -> None:
    model = build(Model(shape, "cuda", torch.bfloat16))
    config = model.config
    say(shape, "built", f"{torch.cuda.memory_allocated() / 1e9:.1f} GB")
    dim = config.hidden_size // config.num_attention_heads
    of_token = 2 * config.num_hidden_layers * config.num_key_value_heads * dim * 2
    free = torch.cuda.mem_get_info()[0] - (6 << 30)
    blocks = int(free // (of_token * 16))
    began = time.time()
    core = EngineCore(as_loaded(model), EngineSizes(num_blocks=blocks, token_budget=2048, max_rows=256, prefix_cache=False), releases_weights=True)
    say(shape, f"engine ready in {time.time() - began:.1f} s with {blocks * 16} tokens of cache")
    weights = sum(o * i for o, i in linear_sizes(config))
    for batch, context in batches:
        if batch * (context + 64) > blocks * 16:
            say(shape, batch, context, "does not fit")
            continue
        steps = 48 if batch < 256 else 24
        done: queue.Queue[EngineEvent] = queue.Queue()
        for number in range(batch):
            prompt = torch.randint(5, 30000, (context - steps // 2,)).tolist()
            core.scheduler.add(core.generation(asked(f"{batch}-{context}-{number}", prompt, steps), done.put))
        t0 = time.perf_counter()
        decoding: list[tuple[float, int]] = []
        prefill: list[tuple[int, float]] = []
        while core.scheduler.has_work:
            began_step = time.perf_counter()
            output = core.step()
            seconds = time.perf_counter() - began_step
            for _, event in output.events:
                if isinstance(event, Failed):
                    raise event.error
            if output.stats.num_tokens == batch:
                decoding.append((seconds, output.stats.num_keys))
            elif output.stats.num_tokens:
                prefill.append((output.stats.num_tokens, seconds))
        total = time.perf_counter() - t0
        middle = decoding[5:-3]
        step = statistics.fmean(s for s, _ in middle)
        keys = statistics.fmean(k for _, k in middle)
        limit = max((weights * 2 + keys * of_token) / machine.bytes_per_s, (2 * weights * batch + 4 * config.num_hidden_layers * config.hidden_size * keys) / machine.flops_per_s)
        pre_tokens, pre_s = sum(t for t, _ in prefill[1:]), sum(s for _, s in prefill[1:])
        say(f"{shape} batch {batch} context {context}: {step * 1e3:.2f} ms, {batch / step:.0f} tokens/s, {limit / step:.0%} of the limit; "
            f"prefill {pre_tokens / pre_s if pre_s else 0:.0f} tokens/s; all {total:.1f} s")
        FOUND[f"decode {shape} {batch} {context}"] = {"step_ms": step * 1e3, "of_limit": limit / step, "prefill": pre_tokens / pre_s if pre_s else None}
        if context == 512:
            profile(core, shape, batch, context)
    del core, model
    torch.cuda.empty_cache()


def profile(core: EngineCore, shape: str, batch: int, context: int) -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    for number in range(batch):
        prompt = torch.randint(5, 30000, (context - 20,)).tolist()
        core.scheduler.add(core.generation(asked(f"p{batch}-{number}", prompt, 30), lambda e: None))
    while core.step().stats.num_tokens != batch:
        pass
    for _ in range(3):
        core.step()
    with profiler(activities=[ProfilerActivity.CUDA]) as found:
        began = time.perf_counter()
        for _ in range(8):
            core.step()
        torch.cuda.synchronize()
        wall = time.perf_counter() - began
    rows = sorted(((e.self_device_time_total / 8e3, e.count / 8, e.key) for e in found.key_averages()), reverse=True)
    busy = sum(ms for ms, _, _ in rows)
    say(f"profile {shape} {batch}: step {wall / 8 * 1e3:.2f} ms under the profiler, GPU busy {busy:.2f} ms")
    for ms, count, name in rows[:12]:
        print(f"      {ms:7.3f} ms {count:6.1f} x {name[:110]}", flush=True)
    while core.scheduler.has_work:
        core.step()


def main(path: str, parts: str) -> None:
    say(torch.__version__, torch.cuda.get_device_name(0))
    machine = measure_machine(torch.device("cuda"), torch.bfloat16)
    say(f"copy {machine.bytes_per_s / 1e12:.2f} TB/s, matmul {machine.flops_per_s / 1e12:.0f} TFLOP/s")
    FOUND["machine"] = {"name": torch.cuda.get_device_name(0), "bytes_per_s": machine.bytes_per_s, "flops_per_s": machine.flops_per_s}
    runs = {
        "kernels": kernels,
        "sampler": sampler,
        "mini": lambda: decode("mini", [(1, 512), (32, 512), (256, 512), (1, 2000), (32, 2000)], machine),
        "medium": lambda: decode("medium", [(1, 512), (32, 512), (32, 2000)], machine),
        "parity": parity,
    }
    for name in parts.split(","):
        part(name, runs[name])
        with open(path, "w") as file:
            json.dump(FOUND, file)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
