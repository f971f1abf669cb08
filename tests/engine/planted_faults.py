"""``make planted-faults``: faults in the code of a GPU's engine, one at a time, and the tests that must fail with each.

A fault is planted in a copy of the repository. A fault that no test notices shows that a test is missing. The tests run
without a GPU, so some faults cannot be noticed at all: a race between the host and the device, and a launch that a real
compiler refuses.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch  # noqa: F401 - imported once for all faults
import triton  # noqa: F401
from transformers import Phi3ForCausalLM  # noqa: F401

ROOT = Path(__file__).parents[2]
COPIED = ("phi3_serve", "tests", "training", "pyproject.toml", "setup.py")
TIMEOUT_S = 600
# Those of their tests that notice faults need no fixture of another folder.
FOLDERS_OF_THEIR_OWN = ("kernels", "model", "adapters")

ENGINE = "phi3_serve/engine"
ATTENTION = f"{ENGINE}/kernels/triton_attention.py"
LAYERS = f"{ENGINE}/kernels/triton_layers.py"
LINEAR = f"{ENGINE}/kernels/triton_linear.py"
LOW_RANK = f"{ENGINE}/kernels/triton_low_rank.py"
IN_FP8 = f"{ENGINE}/kernels/triton_fp8.py"
QUANTIZED = f"{ENGINE}/kernels/triton_quantized.py"
SAMPLING = f"{ENGINE}/kernels/triton_sampling.py"
PENALTIES = f"{ENGINE}/kernels/triton_penalties.py"
WARPERS = f"{ENGINE}/kernels/triton_warpers.py"
HOME = f"{ENGINE}/kernels/cuda.py"
FLASH = f"{ENGINE}/kernels/flash_attention.py"
LARGEST_STEP = f"{ENGINE}/model/largest_step.py"
PROMPTS = f"{ENGINE}/kernels/prompt_attention.py"
TIER = f"{ENGINE}/adapters/device_tier.py"
PAGES = f"{ENGINE}/adapters/pages.py"
TABLE = f"{ENGINE}/adapters/page_table.py"
TILES = f"{ENGINE}/model/adapter_tiles.py"
CPU_ADAPTERS = f"{ENGINE}/kernels/cpu_adapters.py"
CPU_RUNNER = f"{ENGINE}/model/runner.py"
SEQUENCE = f"{ENGINE}/kvcache/cached_sequence.py"
STRATEGY = f"{ENGINE}/sampling/strategies/base.py"
SCHEDULER = f"{ENGINE}/scheduler.py"
BUFFER = f"{ENGINE}/model/step_buffer.py"
RUNNER = f"{ENGINE}/model/device_runner.py"
CHOOSER = f"{ENGINE}/sampling/triton_chooser.py"
SAMPLER = f"{ENGINE}/sampling/device_sampler.py"
COUNTS = f"{ENGINE}/sampling/token_counts.py"
EDITS = f"{ENGINE}/sampling/score_edits.py"
COUNTED_PENALTIES = f"{ENGINE}/sampling/penalties.py"
ERROR_KIND = f"{ENGINE}/error_kind.py"
CORE = f"{ENGINE}/engine_core.py"

OF_ATTENTION = "tests/engine/kernels/test_triton_attention.py"
OF_ATTENTION_IN_8_BITS = "tests/engine/kernels/test_triton_attention.py::test_a_cache_in_8_bits"
OF_LAYERS = "tests/engine/kernels/test_triton_layers.py"
OF_LAYERS_IN_8_BITS = "tests/engine/kernels/test_triton_layers.py::test_store_in_8_bits"
OF_LEFT = "tests/engine/kernels/test_triton_choices.py::test_a_token_is_left_however_flat_the_scores"
OF_CHOICES = "tests/engine/kernels/test_triton_choices.py::test_random_rows[704]"
OF_LOW_RANK = "tests/engine/kernels/test_triton_low_rank.py"
OF_ROUNDING = "tests/engine/kernels/test_triton_fp8.py::test_rows_are_rounded_as_the_reference_rounds_them"
OF_FP8_PRODUCTS = "tests/engine/kernels/test_triton_fp8.py::test_products"
OF_FP8_DTYPES = "tests/engine/kernels/test_triton_fp8.py::test_products_in_bfloat16_become_the_dtype_of_the_rows"
OF_FLASH = "tests/engine/kernels/test_flash_attention.py"
OF_GATHERED_STEPS = "tests/engine/model/test_device_steps.py::test_prompts_drafts_and_decoded_tokens[gathering]"
OF_ALONE = "tests/engine/model/test_device_steps.py::test_a_long_chunk_beside_another_is_not_gathered"
OF_QUANTIZED = "tests/engine/kernels/test_triton_quantized.py"
OF_SELF_CHECK = "tests/engine/kernels/test_self_check.py::test_right_kernels_are_kept"
OF_SELF_CHECK_IN_8_BITS = "tests/engine/kernels/test_self_check.py::test_right_kernels_over_a_cache_in_8_bits_are_kept"
OF_STEPS = "tests/engine/model/test_device_steps.py::test_prompts_drafts_and_decoded_tokens[reference]"
OF_MIXED_STEPS = "tests/engine/model/test_device_steps.py::test_one_decoded_token_beside_a_prompt[reference]"
OF_TRITON_STEPS = "tests/engine/model/test_device_steps.py::test_one_decoded_token_beside_a_prompt[triton]"
OF_SHAPES = "tests/engine/model/test_meta.py"
OF_PROMPTS = "tests/engine/model/test_prompt_graphs.py"
OF_PROMPTS_IN_TRITON = f"{OF_PROMPTS}::test_a_prompt_in_chunks[triton]"
OF_LARGEST_STEP = "tests/engine/model/test_largest_step.py"
OF_WHOLE_PROMPTS = "tests/gpu/test_make_gpu.py::test_whole_prompts_with_torchs_attention"
OF_GRAPHS = "tests/engine/model/test_cuda_graphs.py"
OF_RUNNER = "tests/engine/model/test_device_runner.py"
OF_TIER = "tests/engine/adapters/test_device_tier.py"
OF_TABLE = "tests/engine/adapters/test_page_table.py"
OF_ADAPTERS = "tests/engine/model/test_device_adapters.py::test_prompts_drafts_and_decoded_tokens"
OF_REPLACED = "tests/engine/model/test_device_adapters.py::test_a_kernel_that_the_reference_replaces_is_not_captured"
OF_PEFT = "tests/engine/test_adapters.py::test_random_requests_in_company[0]"
OF_PREFIXES = "tests/engine/test_adapters.py::test_a_prefix_is_known_by_its_adapters_and_strengths"
OF_KEPT = "tests/engine/model/test_device_adapters.py::test_running_requests_keep_their_adapters_on_the_device"
OF_CHOOSER = "tests/engine/sampling/test_triton_chooser.py"
OF_COUNTS = "tests/engine/sampling/test_token_counts.py"
OF_PENALTIES = "tests/engine/model/test_device_penalties.py::test_penalties_in_company[torch]"
OF_ERROR_KIND = "tests/engine/test_error_kind.py"
OF_LACKS = "tests/engine/test_engine.py::test_a_request_without_memory_fails_alone"
OF_LIES = "tests/engine/test_engine.py::test_an_error_of_the_device_that_looks_like_a_lack_of_memory_ends_the_engine"


@dataclass(frozen=True, slots=True)
class Fault:
    """``old`` occurs once in ``file``; with ``new`` in its place each of ``noticed_by`` has to fail."""

    name: str
    file: str
    old: str
    new: str
    noticed_by: tuple[str, ...]


def _of(file: str, noticed_by: tuple[str, ...], *faults: tuple[str, str, str]) -> list[Fault]:
    return [Fault(name, file, old, new, noticed_by) for name, old, new in faults]


FAULTS: list[Fault] = [
    *_of(
        ATTENTION,
        (OF_ATTENTION, OF_SELF_CHECK),
        ("a query does not see itself", "key[None, :] <= positions[:, None]", "key[None, :] < positions[:, None]"),
        ("a query sees the next token", "key[None, :] <= positions[:, None]", "key[None, :] <= positions[:, None] + 1"),
        ("the window has a key more", "key[None, :] > positions[:, None] - WINDOW", "key[None, :] >= positions[:, None] - WINDOW"),
        ("the window has a key less", "key[None, :] > positions[:, None] - WINDOW", "key[None, :] > positions[:, None] - WINDOW + 1"),
        ("keys begin at the window of the last query", "tl.maximum(position - WINDOW + 1, 0) // _PAGE", "tl.maximum(position + num_queries - WINDOW, 0) // _PAGE"),
        ("old sums are not rescaled", "row_sum = row_sum * rescale + tl.sum(weights, 1)", "row_sum = row_sum + tl.sum(weights, 1)"),
        ("old values are not rescaled", "acc = tl.dot(weights, v.to(q.dtype), acc * rescale[:, None]", "acc = tl.dot(weights, v.to(q.dtype), acc"),
        ("splits are weighted by the inverse sums", "row_max - tl.log2(factor)", "row_max + tl.log2(factor)"),
        ("an unwritten split is read", "is_split = split < tl.cdiv", "is_split = split <= tl.cdiv"),
        ("a split is left out", "is_split = split < tl.cdiv(stop - begin,", "is_split = split + 1 < tl.cdiv(stop - begin,"),
        ("splits overlap", "split_begin = begin + tl.program_id(2) * length", "split_begin = begin + tl.program_id(2) * (length - BLOCK_N)"),
        ("query heads are in the wrong order", "head = kv_head * GROUP + row % GROUP", "head = kv_head * GROUP + (GROUP - 1 - row % GROUP)"),
        ("keys are read as values", "values = keys + num_kv_heads.to(tl.int64) * cache_stride", "values = keys"),
        ("all heads read the keys of the first", "keys = cache + kv_head.to(tl.int64) * cache_stride", "keys = cache"),
        ("blocks are read as if they lay in order", "slot = page.to(tl.int64) * _PAGE + key % _PAGE", "slot = key.to(tl.int64)"),
        ("every sequence reads the first block table", "block_tables + table, scale", "block_tables, scale"),
        ("the scale is forgotten", "scale * _LOG2_E)", "_LOG2_E)"),
        ("the base of the exponentials is 2", "scale * _LOG2_E)", "scale)"),
        ("keys are unmasked too early", "full_begin = begin + tl.cdiv(tl.maximum(stop - WINDOW - begin, 0), BLOCK_N) * BLOCK_N", "full_begin = begin"),
        ("keys are unmasked too late", "full_stop = begin + (position + 1 - begin) // BLOCK_N * BLOCK_N", "full_stop = begin + tl.cdiv(position + 1 - begin, BLOCK_N) * BLOCK_N"),
        ("the last dimensions of a head are forgotten", "scores = tl.dot(q_rest, tl.trans(k_rest.to(q.dtype)), scores", "scores = tl.dot(q_rest * 0, tl.trans(k_rest.to(q.dtype)), scores"),
        ("the last dimensions of the values are forgotten", "_store_rows(rows, acc_rest * factor[:, None]", "_store_rows(rows, acc_rest * 0"),
        ("later tiles write to the rows of the first", "return batch_row + first, num_queries", "return batch_row, num_queries"),
        ("positions of later tiles are those of the first", "position = end - count + first", "position = end - count"),
    ),
    *_of(
        ATTENTION,
        (OF_ATTENTION_IN_8_BITS, OF_SELF_CHECK_IN_8_BITS),
        ("the scales of the keys are those of the first head", "key_scales = scales + kv_head.to(tl.int64) * (cache_stride // DIM)", "key_scales = scales"),
        ("the scales of the keys are taken for the values", "value_scales = key_scales + num_kv_heads.to(tl.int64) * (cache_stride // DIM)", "value_scales = key_scales"),
        ("scores are not scaled", "scores *= tl.load(key_scales + slot, mask=is_key, other=0.0)[None, :]", "pass"),
        ("values are not scaled", "weights *= (of_keys * LARGEST_VALUE)[None, :]", "pass"),
        ("sums stay as large as the values", "factor = factor * (1.0 / LARGEST_VALUE)", "pass"),
    ),
    *_of(
        LAYERS,
        (OF_LAYERS_IN_8_BITS, OF_SELF_CHECK_IN_8_BITS),
        ("the second half does not count for the scale", "largest = tl.maximum(_largest(low), _largest(high))", "largest = _largest(low)"),
        ("what does not rotate does not count for the scale", "largest = tl.maximum(largest, _largest(unrotated))", "pass"),
        ("the scale is inverse", "largest * (1.0 / LARGEST_VALUE)) + not_finite", "inverse) + not_finite"),
        ("all heads have one scale", "scales + (head - HEADS).to(tl.int64) * (cache_head_stride // DIM) + slot", "scales + (head * 0).to(tl.int64) + slot"),
        ("numbers are cut off", "scaled = (scaled + _TO_NEAREST_EVEN) - _TO_NEAREST_EVEN", "pass"),
    ),
    *_of(
        LAYERS,
        (OF_LAYERS, OF_SELF_CHECK),
        ("epsilon is forgotten", "tl.rsqrt(tl.sum(x * x) / WIDTH + epsilon)", "tl.rsqrt(tl.sum(x * x) / WIDTH)"),
        ("the mean is over the padded width", "tl.sum(x * x) / WIDTH", "tl.sum(x * x) / BLOCK"),
        ("the sum is not kept", "tl.store(hidden + start + columns, added, mask=is_inside)", "pass"),
        ("the weight is forgotten", "(w * (x * factor)", "((x * factor)"),
        ("the sine has the wrong sign", "(y * low_sine)", "(-y * low_sine)"),
        ("the second half takes the sine of the first", "angle + HALF, mask=column < HALF, other=0.0).to(tl.float32)[None, :]\n    x =", "angle, mask=column < HALF, other=0.0).to(tl.float32)[None, :]\n    x ="),
        ("keys are not rotated", "is_rotated = head < HEADS + KV_HEADS", "is_rotated = head < HEADS"),
        ("values are rotated, too", "is_rotated = head < HEADS + KV_HEADS", "is_rotated = head < HEADS + 2 * KV_HEADS"),
        ("padding is stored", "& (slot >= 0)", "& (slot >= -1)"),
        ("slot 0 is not stored", "& (slot >= 0)", "& (slot > 0)"),
        ("queries are stored", "is_stored = (head >= HEADS) &", "is_stored = (head >= HEADS - 1) &"),
        ("dimensions that do not rotate are not stored", "tl.store(target + rest, unrotated", "tl.store(target + rest, unrotated * 0"),
        ("the sign in SiLU", "(1.0 + tl.exp(-gate))", "(1.0 + tl.exp(gate))"),
        ("the halves change places", "tl.load(gate_up + token * 2 * WIDTH + column,", "tl.load(gate_up + token * 2 * WIDTH + (WIDTH - 1 - column),"),
        ("the second block of columns is that of the first", "column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)", "column = tl.arange(0, BLOCK)"),
    ),
    *_of(
        LAYERS,
        (OF_LAYERS,),  # a difference of rounding, within the tolerance of the check at load
        ("the norm is not rounded before the weight", "(w * (x * factor).to(dtype).to(tl.float32))", "(w * (x * factor))"),
        ("the norm is that of the unrounded sum", "x = added.to(tl.float32)", "x = x"),
        ("a product of the rotation is not rounded", "(x * low_cosine).to(dtype).to(tl.float32)", "(x * low_cosine)"),
        ("SiLU is not rounded before the product", "silu = (gate / (1.0 + tl.exp(-gate))).to(dtype)", "silu = gate / (1.0 + tl.exp(-gate))"),
    ),
    *_of(
        LINEAR,
        (f"{OF_LAYERS}::test_multiply_row",),
        ("only the first inputs are read", "w = tl.load(weights + start,", "w = tl.load(weights,"),
        ("later inputs are those of the first", "values = tl.load(x + start + k)", "values = tl.load(x + k)"),
        ("programs write the same outputs", "n = tl.program_id(0) * block_n + tl.arange(0, block_n)", "n = tl.arange(0, block_n)"),
    ),
    *_of(
        LOW_RANK,
        (OF_LOW_RANK, OF_SELF_CHECK),
        ("the scaling of a page is forgotten", "factor = tl.load(scalings + page * scaling_stride) * strength", "factor = strength"),
        ("the strength is forgotten", "factor = tl.load(scalings + page * scaling_stride) * strength", "factor = tl.load(scalings + page * scaling_stride) + 0 * strength"),
        ("all tiles have the pages of the first", "strength = tl.load(pages + (first_page + number) * 2 + 1).to(tl.float32, bitcast=True)\n            factor", "strength = tl.load(pages + (1 + number) * 2 + 1).to(tl.float32, bitcast=True)\n            factor"),
        ("pages overwrite the products of the first", "tl.store(targets + number * RANK, total", "tl.store(targets, total"),
        ("tiles overwrite the products of the first", "targets = products + ((tl.program_id(1) * num_rows + first + m)", "targets = products + ((tl.program_id(1) * num_rows + m)"),
        ("A is read at the end of the pages before it", "of_page = a + page * stride + r[:, None] * inputs", "of_page = a + page * RANK * inputs + r[:, None] * inputs * 0"),
        ("B is that of the first page", "of_page = b + page * stride", "of_page = b + 0 * page * stride"),
        ("rows of x are not those of the tile", "of_tile = x + tl.load(rows + first + m, mask=is_row, other=0)", "of_tile = x + (first + m)"),
        ("rows of the output are not those of the tile", "row = tl.load(rows + first + m, mask=is_row, other=0).to(tl.int64)\n        of_tile = output", "row = (first + m).to(tl.int64)\n        of_tile = output"),
        ("the output is overwritten", "added = total + tl.load(of_tile", "added = total + 0 * tl.load(of_tile"),
        ("only the last page counts", "total = tl.dot(product, b_block, total,", "total = tl.dot(product, b_block, total * 0,"),
    ),
    *_of(
        LOW_RANK,
        (OF_LOW_RANK,),
        ("a page that does not change the layer is read", "if tl.load(scalings + page * scaling_stride) * strength != 0:", "if True:"),
        ("only the first split is added", "for split in range(splits)", "for split in range(1)"),
        ("every split has all inputs", "begin = tl.program_id(1) * length\n    end = tl.minimum(begin + length, inputs)", "begin = 0\n    end = inputs"),
        ("only as many tiles as programs are run", "for tile in range(tl.program_id(0), tl.load(num_tiles), tl.num_programs(0)):\n        first = tl.load(tiles + tile * 4)\n        is_row = m < tl.load(tiles + tile * 4 + 1)\n        first_page = tl.load(tiles + tile * 4 + 2)\n        total", "for tile in range(tl.program_id(0), tl.minimum(tl.num_programs(0), tl.load(num_tiles)), tl.num_programs(0)):\n        first = tl.load(tiles + tile * 4)\n        is_row = m < tl.load(tiles + tile * 4 + 1)\n        first_page = tl.load(tiles + tile * 4 + 2)\n        total"),
        ("later outputs are those of the first", "n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)", "n = tl.arange(0, BLOCK_N)"),
        ("the sum is rounded before it is added", "added = total + ", "added = total.to(output.dtype.element_ty).to(tl.float32) + "),
    ),
    *_of(
        IN_FP8,
        (OF_ROUNDING,),
        ("a row has the scale of its last numbers", "largest = tl.maximum(largest, tl.abs(numbers))", "largest = tl.abs(numbers)"),
        ("numbers below 0 are not looked at", "largest = tl.maximum(largest, tl.abs(numbers))", "largest = tl.maximum(largest, numbers)"),
        ("all rows have the scale of the first", "tl.store(scales + row, tl", "tl.store(scales, tl"),
        ("all rows are the first", "numbers = tl.load(x + row * inputs + start + column, mask=start + column < inputs, other=0.0).to(tl.float32)\n        rounded", "numbers = tl.load(x + start + column, mask=start + column < inputs, other=0.0).to(tl.float32)\n        rounded"),
        ("rows are stored without their padding", "tl.store(values + row * stored + start", "tl.store(values + row * inputs + start"),
        ("the padding is not written", "mask=start + column < stored)", "mask=start + column < inputs)"),
        ("a row of zeros is divided by zero", "is_zero = of_row < _SMALLEST", "is_zero = of_row < 0.0"),
    ),
    *_of(
        IN_FP8,
        (OF_FP8_PRODUCTS,),
        ("the scales of the weight are forgotten", "            self._scales.T,\n", "            torch.ones_like(self._scales).T,\n"),
        ("the scales of the rows are forgotten", "            scales,\n            self", "            torch.ones_like(scales),\n            self"),
        ("the padding is returned", "products[:, : self._outputs]", "products"),
    ),
    *_of(
        IN_FP8,
        (OF_FP8_DTYPES,),
        ("CUTLASS is asked for float16", "return torch.bfloat16 if is_cutlass else wanted", "return wanted"),
        ("products keep the dtype of torch's kernel", ".to(x.dtype).contiguous()", ".contiguous()"),
    ),
    *_of(
        QUANTIZED,
        (f"{OF_QUANTIZED}::test_products",),
        ("the low bits are taken for the high ones", "high = ((stored >> 4)", "high = ((stored & 15)"),
        ("weights below 0 are taken for large ones", "low = stored.to(tl.int8, bitcast=True)", "low = stored"),
        ("weights of 4 bits are raised", "low = ((stored & 15).to(tl.int32) - RAISED_BY)", "low = ((stored & 15).to(tl.int32))"),
        ("all groups take the first scale", "+ (g // groups_of_scale)[None, :]", "+ (g * 0)[None, :]"),
        ("outputs take the scales of others", "of_scale = n[:, None] * (groups // groups_of_scale)", "of_scale = n[:, None]"),
        ("steps are forgotten", "scale *= tl.load(steps + of_group", "scale = tl.load(steps + of_group"),
        ("the high bits have no minimum", "high -= minimum[:, :, None]", "high = high"),
        ("minima are those of the scales", "minimum *= tl.load(minimum_steps + of_group", "minimum *= tl.load(steps + of_group"),
        ("a row reads the inputs of the first groups", "k = g[:, None] * (BYTES * 8 // BITS) + tl.arange(0, BYTES)[None, :]\n    ", "k = g[:, None] % BLOCK_G * (BYTES * 8 // BITS) + tl.arange(0, BYTES)[None, :]\n    "),
        ("rows read the inputs of the first groups", "k = ((start + column // BYTES)", "k = ((column // BYTES)"),
        ("rows beyond a tile are those of the first", "m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)", "m = tl.arange(0, BLOCK_M)"),
        ("weights of one row are not rounded to the dtype of the input", "total += low.to(dtype).to(tl.float32) * of_low", "total += low * of_low"),
        ("the high bits of a row are not added", "total += high.to(dtype).to(tl.float32)", "total += 0 * high.to(dtype).to(tl.float32)"),
        ("dequantised weights lie in the wrong place", "tl.store(targets + BYTES, high", "tl.store(targets, high"),
    ),
    *_of(
        SAMPLING,
        (OF_LAYERS,),
        ("the last of equal scores is taken", "token = tl.min(tl.where((scores == highest) & is_token, column, BLOCK), 0)", "token = tl.max(tl.where((scores == highest) & is_token, column, -1), 0)"),
        ("a score that is no number goes unnoticed", "& (has_nan == 0)", ""),
        ("rows share their noise", "+ tl.load(seed + 1) * 65536 + row", "+ tl.load(seed + 1) * 65536"),
        ("steps share their noise", "tl.load(seed) + tl.load(seed + 1) * 65536", "tl.load(seed)"),
        ("a draw from infinite scores goes unnoticed", "((highest < float(\"inf\")) | (is_drawn == 0))", "(highest == highest)"),
        ("no token is drawn", "is_drawn = tl.load(ints + 1) > 0", "is_drawn = tl.load(ints + 1) > 1"),
    ),
    *_of(
        SAMPLING,
        (OF_CHOICES,),
        ("a chosen token is not counted", "tl.atomic_add(counts + slot * VOCAB + token, 2)", "tl.atomic_add(counts + slot * VOCAB + token, 0)"),
        ("a chosen token is counted for the first row", "tl.atomic_add(counts + slot * VOCAB + token", "tl.atomic_add(counts + token"),
        ("all rows have the counts of the first", "of_tokens = tl.load(counts + slot * VOCAB + column", "of_tokens = tl.load(counts + column"),
        ("encoder_repetition_penalty is not inverted", "1 / p.encoder_repetition_penalty", "p.encoder_repetition_penalty"),
        ("a penalty that looks at no token is applied", "p.repetition_penalty if p.repeat_last_n else 1.0", "p.repetition_penalty"),
    ),
    *_of(
        PENALTIES,
        (OF_CHOICES,),
        ("the answer is taken for the prompt", "counts % 2 > 0", "counts > 0"),
        ("the prompt is not repeated", "tl.where(counts > 0, _repeated", "tl.where(counts > 1, _repeated"),
        ("the prompt counts as the answer", "in_answer = counts // 2", "in_answer = (counts + 1) // 2"),
        ("negative scores are divided", "tl.where(scores < 0.0, scores * penalty", "tl.where(scores < -1e9, scores * penalty"),
        ("the last bias is forgotten", "range(first, stop)", "range(first, stop - 1)"),
        ("how often a token comes is forgotten", "* in_answer.to(tl.float32)", ""),
    ),
    *_of(
        PENALTIES,
        (OF_CHOICES, OF_CHOOSER),
        ("biases are not added", "scores + tl.load(values + edit)", "scores"),
    ),
    *_of(
        EDITS,
        (OF_CHOICES, OF_CHOOSER),
        ("an answer may end one token too early", "length < settings.min_length", "length < settings.min_length - 1"),
        ("no answer ends", "(settings.min_length_ids, phase.must_go_on)", "(settings.min_length_ids, True)"),
        ("what may not begin may never come", "length == settings.begin_index", "length >= settings.begin_index"),
    ),
    *_of(
        EDITS,
        (OF_CHOICES,),
        ("bad words are allowed", "(settings.biases, settings.bans, settings.bans_of_answer):\n        if (found", "(settings.biases,):\n        if (found"),
    ),
    *_of(
        COUNTS,
        (OF_COUNTS,),
        ("a token that the host chose is not counted", "if self._lengths[slot] != len(sequence):", "if self._lengths[slot] == _UNKNOWN:"),
        ("a slot keeps the counts of its last owner", "                self._lengths[slot] = _UNKNOWN\n", ""),
        ("unread tokens are counted from the host", "        if sequence.num_unread:\n", "        if False:\n"),
    ),
    *_of(
        COUNTS,
        (OF_COUNTS, OF_PENALTIES),
        ("chosen tokens are not expected", "self._lengths[slot] = len(sequence) + 1", "self._lengths[slot] = len(sequence)"),
        ("every sequence gets another slot", "for sequence in sequences if sequence in self._slots}", "for sequence in sequences if False}"),
        ("the prompt is not counted", "> 0)).astype", "> 9999)).astype"),
    ),
    *_of(
        SAMPLER,
        (OF_PENALTIES,),
        ("rows have the counts of others", "iter(self.counts.slots(list(compress(sequences, are_counted))))", "iter(self.counts.slots(list(compress(sequences, are_counted)))[::-1])"),
        ("torch does not count what it chose", "tokens[to_count].long()] += 2", "tokens[to_count].long()] += 0"),
    ),
    *_of(
        COUNTED_PENALTIES,
        (OF_COUNTS,),
        ("every window looks at all tokens", "looks_at_all = not 0 < p.repeat_last_n < settings.max_length", "looks_at_all = True"),
        ("penalties of any size are taken", " and all(1 / MOST <= f <= MOST for f in factors)", ""),
    ),
    *_of(
        CHOOSER,
        (OF_CHOOSER,),
        ("rows keep the slots of other rows", "(id(row.settings), row.slot, row.phase)", "(id(row.settings), 0, row.phase)"),
        ("rows keep what the first step rules out", "(id(row.settings), row.slot, row.phase)", "(id(row.settings), row.slot, Phase())"),
    ),
    *_of(
        WARPERS,
        (OF_LAYERS, OF_CHOICES),
        ("the temperature is forgotten", "scores = scores / tl.load(floats)", "scores = scores / 1.0"),
        ("top_k keeps no equal scores", "scores = tl.where(keys >= threshold, scores, float(\"-inf\"))\n    return scores\n\n\n@triton.jit\ndef _top_p", "scores = tl.where(keys > threshold, scores, float(\"-inf\"))\n    return scores\n\n\n@triton.jit\ndef _top_p"),
        ("top_k is off by one", "tl.minimum(tl.maximum(top_k, keep), VOCAB)", "tl.minimum(tl.maximum(top_k + 1, keep), VOCAB)"),
        ("top_p is inverted", "limit = (1.0 - top_p) * tl.sum(weights, 0)", "limit = top_p * tl.sum(weights, 0)"),
        ("the edge of the nucleus is kept whole", "is_removed = (keys < low) | (is_edge & (rank <= num_removed))", "is_removed = keys < low"),
        ("min_p is forgotten", "is_kept = (weights >= min_p)", "is_kept = (weights >= 0.0)"),
    ),
    *_of(
        WARPERS,
        (OF_LEFT,),
        ("no token is kept below epsilon", " | (keys >= _kth_largest(keys, keep))\n    return", "\n    return"),
    ),
    *_of(
        WARPERS,
        (OF_LAYERS,),
        ("-0 is less than 0", "bits = tl.where(scores == 0.0, 0.0, scores).to", "bits = scores.to"),
    ),
    *_of(
        WARPERS,
        (OF_CHOICES,),
        ("the entropy is that of the weights", "entropy = -tl.sum(weights / total *", "entropy = -tl.sum(weights *"),
        ("typical tokens are those of the most information", "keys = _ordered(tl.abs(-logprobs - entropy))", "keys = _ordered(tl.abs(logprobs))"),
        ("typical tokens have less than the probability", "0.0), 0) >= typical_p", "0.0), 0) > 0.9 * typical_p"),
        ("the last typical token is ruled out", "scores = tl.where(keys <= threshold, scores", "scores = tl.where(keys < threshold, scores"),
        ("epsilon is that of the likeliest token", "(weights / tl.sum(weights, 0) >= probability)", "(weights >= probability)"),
        ("eta knows no entropy", "tl.minimum(eta, tl.sqrt(eta) * tl.exp(-entropy))", "eta"),
        ("eta is not limited", "tl.minimum(eta, tl.sqrt(eta) * tl.exp(-entropy))", "tl.sqrt(eta) * tl.exp(-entropy)"),
        ("typical tokens are ruled out before the least likely ones", "    scores = _min_p(scores, tl.load(floats + 2), keep)\n    scores = _typical_p(scores, tl.load(floats + 3), keep)\n", "    scores = _typical_p(scores, tl.load(floats + 3), keep)\n    scores = _min_p(scores, tl.load(floats + 2), keep)\n"),
    ),
    *_of(
        HOME,
        (OF_SELF_CHECK,),
        ("long tiles get the config of short ones", "self._long_config(queries.long_tiles.shape[0])", "self._short_config(queries.long_tiles.shape[0])"),
        ("short tiles are forgotten", "            if num_tiles := tiles.shape[0]:\n", "            if (num_tiles := tiles.shape[0]) and tiles is not queries.short_tiles:\n"),
    ),
    *_of(
        FLASH,
        (OF_FLASH,),
        ("the keys of a block beyond the last one are seen", "[:, :, :num_keys]", "[:, :, :]"),
        ("heads take the keys of the first ones", "in_blocks[:, kv_heads]", "in_blocks[:, : kv_heads.stop - kv_heads.start]"),
        ("queries do not follow their keys", "heads = slice(first * group, stop * group)", "heads = slice(0, (stop - first) * group)"),
        ("gathered queries see the next token", "        True,  # causal\n", "        False,  # causal\n"),
        ("all keys are gathered at once", "at_once = max(1, kv_heads * keys_at_once(kv_heads, query.shape[2], query.dtype) // num_keys)", "at_once = kv_heads"),
        ("keys before the window are gathered", "first_seen = 0 if window is None else max(", "first_seen = 0 if True else max("),
    ),
    *_of(
        FLASH,
        (OF_FLASH, OF_WHOLE_PROMPTS),
        ("the window has a key more", "None if window is None else window - 1", "None if window is None else window"),
        ("gathered blocks begin one too late", "first_block = first_seen // BLOCK_SIZE", "first_block = -(-first_seen // BLOCK_SIZE)"),
    ),
    *_of(
        FLASH,
        (OF_FLASH, OF_GATHERED_STEPS),
        ("every chunk reads the first block table", "block_tables[chunk.table + first_block : chunk.table - ", "block_tables[first_block : -"),
        ("a chunk is written to the first rows", "rows = slice(chunk.row, chunk.row + chunk.num_queries)", "rows = slice(0, chunk.num_queries)"),
    ),
    *_of(
        PROMPTS,
        (OF_FLASH,),
        ("torch's attention is used unchecked", "problem = problem_of_attention(flash, shape, device=device, dtype=dtype)", "problem = None"),
        ("a device is not asked after a trial that failed", "        _wait_for(device)  # an error", "        # an error"),
        ("large chunks are not compared", "if not error <= NORM_BOUND:", "if False:"),
        ("an error of the trial is not told", 'problem = f"{type(error).__name__}: {error}"', 'return Trial(NOTHING_GATHERED)'),
        ("the slower one is chosen", "theirs < ours * (1 - LEAST_GAIN)", "theirs > ours * (1 - LEAST_GAIN)"),
    ),
    *_of(
        BUFFER,
        (OF_ALONE,),
        ("long chunks are gathered one after another", "len(long_chunks) == 1 and chunk is long_chunks[0] and", "chunk.num_tokens > MAX_SHORT_QUERIES and"),
    ),
    *_of(
        BUFFER,
        (OF_GATHERED_STEPS,),
        ("gathered chunks are in no tile and not gathered", "if is_gathered(chunk)\n", "if False\n"),
    ),
    *_of(
        BUFFER,
        (OF_STEPS,),
        ("a decoded token does not see itself", "(row, 1, start + 1, table)", "(row, 1, start, table)"),
        ("padding is written to block 0", "[NOT_STORED] * padding", "[0] * padding"),
        ("decoded tokens take position 0", "        starts + [0] * padding,\n", "        [0] * rows,\n"),
        ("decoded tokens take the short factors", "[chunk.uses_long_factors[0] for chunk in chunks] + [0] * padding", "[0] * rows"),
        ("chunks take the short factors", "chain.from_iterable(chunk.uses_long_factors for chunk in chunks)", "chain.from_iterable([0] * chunk.num_tokens for chunk in chunks)"),
        ("chunks begin at position 0", "chain.from_iterable(range(chunk.start, chunk.end) for chunk in chunks)", "chain.from_iterable(range(chunk.num_tokens) for chunk in chunks)"),
        ("all sequences share the first block table", "starts.append(len(tables))", "starts.append(0)"),
        ("parts of the buffer are not aligned", "start = _aligned(start + size)", "start = start + size"),
    ),
    *_of(
        RUNNER,
        (OF_STEPS,),
        ("the buffer is not filled before a graph", "            self._buffer.fill(integers)\n            return", "            return"),
        ("an unread token is that of its neighbour", "self._chosen[(-1 - ids).clamp_(min=0)]", "self._chosen[(-ids).clamp_(min=0)]"),
        ("unread tokens are not read", "torch.where(ids < 0, unread, ids)", "ids.clamp(min=0)"),
        ("token 0 is taken for an unread one", "torch.where(ids < 0, unread, ids)", "torch.where(ids <= 0, unread, ids)"),
        ("the window is forgotten", "_DeviceAttention(self.kernels, integers.queries, self._window)", "_DeviceAttention(self.kernels, integers.queries, None)"),
        ("a graph is captured over another buffer", "StepIntegers.of(self._buffer.on_device, shape)", "StepIntegers.of(self._buffer.on_device.clone(), shape)"),
    ),
    *_of(
        BUFFER,
        (OF_PROMPTS,),
        ("padding of a prompt is written to block 0", "[NOT_STORED] * len(padding)", "padding"),
        ("a prompt gives the logits of its first token", "[max(0, count - 1)]", "[0]"),
        ("a prompt with a graph begins at position 0", "[*range(chunk.start, chunk.end), *padding]", "[*range(count), *padding]"),
        ("a prompt with a graph takes the short factors", "[*chunk.uses_long_factors, *padding]", "[0] * shape.tokens"),
    ),
    *_of(
        BUFFER,
        (OF_PROMPTS_IN_TRITON,),
        ("a prompt with a graph is its first tile", "for first in range(0, count, queries_per_tile)]\n    tiles +=", "for first in range(0, 1, queries_per_tile)]\n    tiles +="),
        ("the graph of a prompt has one tile", "return cls(tokens, 1, 2, 0, -(-tokens // queries_per_tile))", "return cls(tokens, 1, 2, 0, 1)"),
    ),
    *_of(
        RUNNER,
        (OF_PROMPTS,),
        ("drafts take the graph of a prompt", "len(chunks) == 1 and chunk.num_logits <= 1", "len(chunks) == 1"),
        ("a prompt beside others takes its graph", "is_alone = len(chunks) == 1 and", "is_alone = True and"),
        ("decode steps that have no graph leave those of prompts", "            self._capture = self._adapters_capture = without_graphs\n            self._prompt_shapes = []\n", "            self._capture = without_graphs\n"),
        ("a graph of a prompt that fails is tried for the next size", "(\"prompt_graphs\", error)\n            self._prompt_shapes = []\n", "(\"prompt_graphs\", error)\n"),
        ("the device is not asked after a capture that failed", '        self.check_device()\n        problem =', "        problem ="),
        ("a prompt takes a graph that is too small", "if chunk.num_tokens <= shape.tokens)", "if chunk.num_tokens <= 2 * shape.tokens)"),
    ),
    *_of(
        LARGEST_STEP,
        (OF_LARGEST_STEP,),
        ("keys are gathered that no cache holds", "most = min(most, max_cached)", "pass"),
        ("the cache limits sequences with a window", "if sliding_window(config) is None:", "if True:"),
        ("the weights are part of the cache", " - torch.cuda.memory_allocated()", ""),
    ),
    *_of(
        RUNNER,
        (OF_GRAPHS,),
        ("the first replay of a graph is left to requests", "        graph.replay()\n        torch.cuda.synchronize()\n", ""),
        ("the others share the pool of a graph that fails", "        graph.replay()\n        torch.cuda.synchronize()\n        self._pool", "        self._pool = graph.pool()\n        graph.replay()\n        self._pool"),
    ),
    *_of(
        BUFFER,
        (OF_SHAPES, OF_TRITON_STEPS),
        ("only the first tile of a chunk is run", "for first in range(0, chunk.num_tokens, size)", "for first in range(0, 1, size)"),
        ("long chunks are forgotten", "lambda chunk: chunk.num_tokens > MAX_SHORT_QUERIES", "lambda chunk: False"),
    ),
    *_of(
        RUNNER,
        (OF_SHAPES, OF_STEPS),
        ("padding rows are returned", "self._graph(shape)()[: sum(chunk.num_logits for chunk in chunks)]", "self._graph(shape)()"),
        ("prompts give the logits of all tokens", "None if all_logits else integers.logit_rows", "None"),
        ("prompts are run as decoded tokens", "return chunk.num_tokens == 1 and chunk.num_logits == 1", "return chunk.num_logits == 1"),
    ),
    *_of(
        RUNNER,
        (OF_SHAPES,),
        ("decode steps without graphs are not run before requests come", "self._graph(StepShape.of_decode(rows))()", "self._graph(StepShape.of_decode(rows))"),
        ("the longest prompt is not run before requests come", "for num_tokens in (MAX_SHORT_QUERIES + 1, self.sizes.token_budget):", "for num_tokens in (MAX_SHORT_QUERIES + 1,):"),
    ),
    *_of(
        RUNNER,
        (OF_MIXED_STEPS,),
        ("one decoded token makes a decode step", "all(_is_decoded(chunk) for chunk in chunks)", "any(_is_decoded(chunk) for chunk in chunks)"),
    ),
    *_of(
        TIER,
        (OF_TIER,),
        ("a request starts before its adapter is copied", "return all(is_there) and all(self._is_copied(adapter) for adapter in wanted)", "return all(is_there)"),
        ("a request starts without pages for its adapter", "return all(is_there) and all", "return all"),
        ("a step does not wait for a copy", "            copied.before_next_step()\n", "            pass\n"),
        ("an adapter in use loses its pages", "for adapter in (*wanted, *_paged(running))", "for adapter in wanted"),
        ("adapters of one step take the pages of each other", "in_use = {adapter.number for adapters in of_step for adapter in _paged(adapters)}", "in_use: set[int] = set()"),
        ("an adapter is copied again for each request", "if (pages := self._table.find(adapter.number)) is None:", "if (pages := self._table.find(adapter.number)) is None or True:"),
        ("the pool is made at once", "        self._lock = Lock()\n", "        self._lock = Lock()\n        self._make_pool()\n"),
        ("copies of adapters that are gone stay in memory", "for number, copied in self._copies.items() if number in self._table}", "for number, copied in self._copies.items()}"),
    ),
    *_of(
        PAGES,
        (OF_TIER, OF_ADAPTERS),
        ("layers overlap in a page", "end = of_b + self._aligned(PAGE_RANK * outputs)", "end = of_b"),
        ("a page takes the scalings of another layer", "pages.view(torch.float32)[:, place]", "pages.view(torch.float32)[:, 0]"),
        ("ranks beyond the first page are forgotten", "for start in range(0, rank, PAGE_RANK)", "for start in range(0, PAGE_RANK, PAGE_RANK)"),
    ),
    *_of(
        TABLE,
        (OF_TABLE,),
        ("use is not counted", "        pages = self._held.pop(adapter, None)\n", "        return self._held.get(adapter)\n"),
        ("an adapter in use gives its pages away", "if other not in in_use]", "]"),
        ("adapters lose pages for what does not fit", "if count > len(self._free) + sum(len(self._held[other]) for other in unused):", "if count > self.num_pages:"),
    ),
    *_of(
        TILES,
        (OF_ADAPTERS,),
        ("tiles have the pages of the first mix", "firsts[mix], len(mix)))", "min(firsts.values()), len(mix)))"),
        ("only the first page of a mix counts", "firsts[mix], len(mix)))", "firsts[mix], 1))"),
        ("rows without an adapter do not count", "        first, end = end, end + count\n", "        first, end = end, end + count * bool(mix)\n"),
        ("tiles begin at the first row", "tiles.append((len(rows) + start, count,", "tiles.append((start, count,"),
    ),
    *_of(
        BUFFER,
        (OF_ADAPTERS,),
        ("pages lie over the block tables", "firsts = first_pages(mixes, len(tables) // 2)", "firsts = first_pages(mixes, 0)"),
        ("pages begin at an odd place", "    if len(tables) % 2:\n", "    if False:\n"),
        ("logits have the adapters of as many tokens", "tiles_of(mixes, [chunk.num_logits for chunk in chunks]", "tiles_of(mixes, [chunk.num_tokens for chunk in chunks]"),
    ),
    *_of(
        RUNNER,
        (OF_ADAPTERS,),
        ("a graph with adapters is replayed without", "is_adapted=mixes is not None), pack_decode(chunks, rows, mixes)", "is_adapted=mixes is not None), pack_decode(chunks, rows, mixes and [()] * len(mixes))"),
        ("graphs leave the head as it is", "integers.adapted if all_logits else integers.adapted_logits", "integers.adapted_logits"),
        ("prompts leave the head as it is", "adapts_logits=changed is not None and self._head in changed", "adapts_logits=False"),
        ("the layers of one adapter are those of all", "return frozenset().union(*(", "return frozenset().intersection(*("),
    ),
    *_of(
        RUNNER,
        (OF_REPLACED,),
        ("the reference is captured in a graph", "without_graphs if ADD_LOW_RANK in kernels.replaced else capture", "capture"),
    ),
    *_of(
        SEQUENCE,
        (OF_PREFIXES,),
        ("a prefix does not know its adapters", "PrefixRoot(adapters=tuple((applied.adapter.number, applied.strength) for applied in adapters))", "PrefixRoot()"),
        ("a prefix does not know the strengths", "(applied.adapter.number, applied.strength) for", "(applied.adapter.number, 1.0) for"),
    ),
    *_of(
        SEQUENCE,
        (OF_PEFT,),
        ("a fork has no adapters", "            adapters=self.adapters,\n", ""),
    ),
    *_of(
        STRATEGY,
        (OF_PEFT,),
        ("the negative prompt has no adapters", "                    adapters=adapters,\n", ""),
    ),
    *_of(
        CPU_RUNNER,
        (OF_PEFT,),
        ("logits have the adapters of as many tokens", "adapted_rows(chunks, lambda chunk: chunk.num_logits)", "adapted_rows(chunks, lambda chunk: chunk.num_tokens)"),
        ("the head is left as it is", "if any(adapter.changes[self._head] is not None", "if any(False"),
    ),
    *_of(
        CPU_ADAPTERS,
        (OF_PEFT,),
        ("a group has the strengths of its first rows", "[strength for _, strength in some.adapters]", "[strength for _, strength in ranges[0].adapters]"),
        ("a group begins with the first adapter of all", "described.append((first_part, ", "described.append((0, "),
    ),
    *_of(
        SCHEDULER,
        (OF_KEPT,),
        ("requests do not wait for adapters", "or not has_adapters):", "or False):"),
        ("adapters of running requests are not kept", "running = [applied for g in self.running for applied in g.request.adapters]", "running: list[AppliedAdapter] = []"),
    ),
    *_of(
        CHOOSER,
        (OF_CHOOSER,),
        ("each step draws with the same noise", "        self._seed[1] += 1\n", ""),
        ("settings are those of the first rows", "if ids != self._rows:", "if not self._rows:"),
        ("a new request with the address of an old one gets its settings", "self._rows, self._settings, self._kept = ids, settings, list(rows)", "self._rows, self._settings = ids, settings"),
    ),
    *_of(
        SAMPLER,
        (OF_RUNNER,),
        ("processors are ignored", "            and _PROCESSORS.issuperset(settings.processors)\n", ""),
        ("biases of sequences are taken for those of tokens", "            and are_editable(settings)\n", ""),
        ("a window of repetitions is ignored", "            and are_countable(settings)\n", ""),
        ("drafts are ignored", "            and parameters.prompt_lookup_num_tokens is None\n", ""),
        ("scores are not returned", "            and not parameters.output_scores\n", ""),
        ("beams are taken for plain rows", "strategy.choice != \"by_strategy\"", "True"),
    ),
    *_of(
        ERROR_KIND,
        (OF_ERROR_KIND, OF_LACKS),
        ("a lack of memory is known by torch's class alone", "if is_of_memory or any(words in str(error) for words in _MEMORY_WORDS):", "if is_of_memory:"),
        ("an AcceleratorError is no lack of memory", "if is_of_memory or any(", "if is_of_memory or not isinstance(error, torch.AcceleratorError) and any("),
    ),
    *_of(
        ERROR_KIND,
        (OF_ERROR_KIND,),
        ("every AcceleratorError stays", "isinstance(error, torch.AcceleratorError) and any(words in str(error) for words in _DEVICE_WORDS)", "isinstance(error, torch.AcceleratorError)"),
    ),
    *_of(
        CORE,
        (OF_LIES,),
        ("a device that seems to lack memory is not asked", "        self.runner.check_device()  # what a library", "        # what a library"),
    ),
]  # fmt: skip


class Copy:
    """A copy of the repository in which one fault at a time is planted."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, directory / name)

    def first_failure(self, fault: Fault, tests: str) -> str | None:
        """The first of ``tests`` that fails with ``fault``; None if none does."""
        path = self._directory / fault.file
        right = path.read_text()
        path.write_text(planted(fault, right))
        try:
            return self.first_failure_without_fault(tests)
        finally:
            path.write_text(right)

    def first_failure_without_fault(self, tests: str) -> str | None:
        """The first of ``tests`` that fails in the copy as it is."""
        output = self._directory / "output.txt"
        pid = os.fork()  # so that torch and Triton, which take seconds to import, are imported once
        if not pid:
            try:
                code = _run_in_copy(self._directory, tests, output)
            except BaseException:
                traceback.print_exc()
                code = 99
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code == 0:
            return None
        if code < 0 and code != -signal.SIGALRM:  # a kernel has written where it must not
            return f"the end of the process by {signal.Signals(-code).name}"
        text = output.read_text()
        failed = [line for line in text.splitlines() if line.startswith(("FAILED tests", "ERROR tests"))]
        if code != 1 or not failed:
            raise RuntimeError(f"pytest ended with {code}:\n{text[-3000:]}")
        return failed[0].split(" ")[1]


def _run_in_copy(directory: Path, tests: str, output: Path) -> int:
    """The exit code of ``tests`` of the copy in ``directory``, run in this process."""
    signal.alarm(TIMEOUT_S)
    os.chdir(directory)
    for name in [name for name in sys.modules if name.split(".")[0] in COPIED]:
        del sys.modules[name]
    sys.path[:] = [str(directory), *(path for path in sys.path if Path(path).resolve() not in (ROOT, Path()))]
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    folder = Path(tests.split("::")[0]).parent
    # The conftest.py of all tests imports Ray, which takes seconds.
    is_alone = folder.name in FOLDERS_OF_THEIR_OWN and tests != OF_LARGEST_STEP
    cut = ["--confcutdir", str(folder)] if is_alone else []
    code = pytest.main(["-x", "-q", "--no-header", "-W", "ignore", "-p", "no:cacheprovider", *cut, tests])
    sys.stdout.flush()
    return int(code)


def planted(fault: Fault, text: str) -> str:
    """``text`` of the fault's file with the fault.

    Raises:
        ValueError: the place of the fault does not occur exactly once.
    """
    if (count := text.count(fault.old)) != 1:
        raise ValueError(f"{fault.name}: {fault.old!r} occurs {count} times in {fault.file}")
    return text.replace(fault.old, fault.new)


def main(words: Sequence[str]) -> int:
    """Plant the faults whose file or name has one of ``words``, or all; 1 if one goes unnoticed."""
    chosen = [fault for fault in FAULTS if not words or any(word in f"{fault.file} {fault.name}" for word in words)]
    unnoticed = 0
    with tempfile.TemporaryDirectory() as directory:
        copy = Copy(Path(directory))
        for tests in dict.fromkeys(tests for fault in chosen for tests in fault.noticed_by):
            if failed := copy.first_failure_without_fault(tests):
                print(f"{failed} fails without a fault")
                return 1
            print(f"{tests}: passes without a fault", flush=True)
        for number, fault in enumerate(chosen, 1):
            for tests in fault.noticed_by:
                began = time.monotonic()
                failed = copy.first_failure(fault, tests)
                unnoticed += failed is None
                shown = f"noticed by {failed}" if failed else f"NOT NOTICED by {tests}"
                seconds = time.monotonic() - began
                print(f"{number}/{len(chosen)} {fault.file}: {fault.name}: {shown} ({seconds:.0f} s)", flush=True)
    print(f"{len(chosen)} faults, {unnoticed} times unnoticed")
    return int(unnoticed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
