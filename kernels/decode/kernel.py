"""Decode attention in Triton: the keys are split over programs, and a second kernel combines their results.

With one query per head, reading the cache takes most of the time, so all multiprocessors must read (Flash-Decoding, Dao
et al., 2023). The query heads that share keys and values are the rows of one tile.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from megagpt.kernels.attention.softcap import score_factors, squash
from megagpt.kernels.backend import check_tiles, chip, descriptor_memory, multiprocessors
from megagpt.kernels.decode import reference

MOST_SPLITS = 64


@triton.jit(do_not_specialize=["group", "keys", "oldest", "chunk", "splits"])
def decode_attention_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, first_key_ptr,
    q_batch, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head,
    kv_heads, group, keys, oldest, chunk, splits, scale_log2, squash_scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Attention of a tile of query heads over `chunk` keys from oldest + split * chunk on.

    out: [B, H, splits, D]; lse: float32 [B, H, splits], to base two, -inf where no key is seen.
    """
    tiles = tl.cdiv(group, BLOCK_M)
    split = tl.program_id(0) % splits
    tile = tl.program_id(0) // splits % tiles
    kv_head = tl.program_id(0) // splits // tiles % kv_heads
    batch = (tl.program_id(0) // splits // tiles // kv_heads).to(tl.int64)
    members = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    heads = kv_head * group + members
    depth = tl.arange(0, BLOCK_D)
    inside = (members < group)[:, None] & (depth < D)[None, :]
    q = tl.load(q_ptr + batch * q_batch + heads.to(tl.int64)[:, None] * q_head + depth[None, :], inside, 0.0)
    k_tile = tl.make_tensor_descriptor(
        k_ptr + batch * k_batch + kv_head.to(tl.int64) * k_head, [keys, D], [k_row, 1], [BLOCK_N, BLOCK_D]
    )
    v_tile = tl.make_tensor_descriptor(
        v_ptr + batch * v_batch + kv_head.to(tl.int64) * v_head, [keys, D], [v_row, 1], [BLOCK_N, BLOCK_D]
    )
    lo = oldest + split * chunk
    hi = tl.minimum(lo + chunk, keys)
    if PADDED:
        lo = tl.maximum(lo, tl.load(first_key_ptr + batch))

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    largest = tl.full([BLOCK_M], -1e30, tl.float32)
    for column in tl.range(lo, hi, BLOCK_N):
        k = k_tile.load([column, 0])  # [BN, D]
        scores = tl.dot(q, k.T)  # [BM, BN]
        if squash_scale is not None:
            scores = squash(scores, squash_scale)
        scores = tl.where((column + tl.arange(0, BLOCK_N) < hi)[None, :], scores * scale_log2, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, 1))
        probabilities = tl.exp2(scores - new_largest[:, None])
        shrink = tl.exp2(largest - new_largest)
        total = total * shrink + tl.sum(probabilities, 1)
        v = v_tile.load([column, 0])  # [BN, D]
        acc = tl.dot(probabilities.to(v.dtype), v, acc * shrink[:, None])
        largest = new_largest

    seen = total > 0.0
    out = acc / tl.where(seen, total, 1.0)[:, None]
    at = (batch * kv_heads * group + heads) * splits + split
    tl.store(out_ptr + at[:, None] * D + depth[None, :], out.to(out_ptr.dtype.element_ty), inside)
    tl.store(lse_ptr + at, tl.where(seen, largest + tl.log2(total), float("-inf")), members < group)


@triton.jit(do_not_specialize=["splits"])
def decode_join_kernel(
    parts_ptr, lse_ptr, out_ptr, splits, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr
):
    """out [rows, D] = mean of the parts [rows, splits, D], weighted by exp2(lse) [rows, splits]."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, BLOCK_S)
    depth = tl.arange(0, BLOCK_D)
    lse = tl.load(lse_ptr + row * splits + split, split < splits, float("-inf"))
    largest = tl.maximum(tl.max(lse, 0), -1e30)
    weight = tl.exp2(lse - largest)
    weight = weight / tl.maximum(tl.sum(weight, 0), 1e-30)
    inside = (split < splits)[:, None] & (depth < D)[None, :]
    parts = tl.load(parts_ptr + (row * splits + split)[:, None] * D + depth[None, :], inside, 0.0)
    out = tl.sum(parts * weight[:, None], 0)
    tl.store(out_ptr + row * D + depth, out.to(out_ptr.dtype.element_ty), depth < D)


def decode_attention(
    q: Tensor, k: Tensor, v: Tensor, first_key: Tensor | None, window: int, scale: float, softcap: float | None
) -> Tensor:
    """See `reference.decode_attention`, which is used for float32."""
    if q.dtype == torch.float32:
        return reference.decode_attention(q, k, v, first_key, window, scale, softcap)
    check_tiles(q=q, k=k, v=v)
    batch, _, heads, depth = q.shape
    keys, kv_heads = k.shape[1:3]
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if not q.numel() or not keys:
        return out.zero_()
    group, block_d = heads // kv_heads, triton.next_power_of_2(depth)
    block_m, block_n, num_stages = _tiles(block_d)
    oldest = max(keys - window, 0) if window else 0
    programs = batch * kv_heads * triton.cdiv(group, block_m)
    blocks = triton.cdiv(keys - oldest, block_n)
    splits = max(1, min(2 * multiprocessors(q.device) // programs, blocks, MOST_SPLITS))
    chunk = triton.cdiv(blocks, splits) * block_n
    splits = triton.cdiv(keys - oldest, chunk)
    parts = out if splits == 1 else torch.empty(batch, heads, splits, depth, dtype=torch.float32, device=q.device)
    lse = torch.empty(batch, heads, splits, dtype=torch.float32, device=q.device)
    descriptor_memory()
    decode_attention_kernel[(programs * splits,)](
        q, k, v, parts, lse, first_key, q.stride(0), q.stride(2), *k.stride()[:3], *v.stride()[:3],
        kv_heads, group, keys, oldest, chunk, splits, *score_factors(scale, softcap), D=depth, BLOCK_D=block_d,
        BLOCK_M=block_m, BLOCK_N=block_n, PADDED=first_key is not None, enable_fp_fusion=True, num_warps=4,
        num_stages=num_stages,
    )  # fmt: skip
    if splits > 1:
        block_s = max(16, triton.next_power_of_2(splits))
        decode_join_kernel[(batch * heads,)](
            parts, lse, out, splits, D=depth, BLOCK_D=block_d, BLOCK_S=block_s, enable_fp_fusion=True, num_warps=4
        )
    return out


def _tiles(block_d: int) -> tuple[int, int, int]:
    """Query heads and keys of a tile, and the number of pipeline stages. Hopper's matrix instruction has 64 rows."""
    if chip() not in (90, 100, 103):
        return 16, {64: 64, 128: 64, 256: 32}[block_d], 2
    return 64, {64: 128, 128: 64, 256: 32}[block_d], 3
