"""Functions that launch attention's Triton kernels, with the tile sizes for each chip."""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from megagpt.kernels.attention import reference
from megagpt.kernels.attention.backward import attention_delta_kernel, attention_dkdv_kernel, attention_dq_kernel
from megagpt.kernels.attention.forward import attention_forward_kernel
from megagpt.kernels.attention.softcap import score_factors
from megagpt.kernels.backend import check_tiles, chip, descriptor_memory, has_tiles

DELTA_ROWS = 64  # queries per program of the delta kernel; lse and delta are padded to a multiple of twice this


@dataclass(frozen=True)
class Launch:
    """Tile sizes and settings of one launch."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int
    warp_specialize: bool = False

    @property
    def options(self) -> dict[str, int]:
        """The settings as keyword arguments of a kernel."""
        return {
            "BLOCK_M": self.queries,
            "BLOCK_N": self.keys,
            "enable_fp_fusion": True,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
        }


# {chip: {head dimension: launch}}; dimensions 80 and 96 use the tiles of 128, and 192 those of 256. None of them spills
# registers (`tools/kernel_report.py`); their speed must be measured on a GPU.
FORWARD = {
    80: {64: Launch(128, 64, 8, 3), 128: Launch(128, 64, 8, 2), 256: Launch(64, 32, 8, 2)},
    90: {64: Launch(128, 128, 8, 3), 128: Launch(128, 128, 8, 2), 256: Launch(128, 64, 8, 2)},
    100: {64: Launch(128, 128, 8, 2), 128: Launch(128, 128, 8, 2), 256: Launch(128, 64, 8, 2)},
    120: {64: Launch(128, 64, 8, 3), 128: Launch(128, 64, 8, 2), 256: Launch(32, 16, 4, 2)},
}
DKDV = {
    80: {64: Launch(32, 64, 4, 2), 128: Launch(32, 64, 8, 2), 256: Launch(32, 32, 8, 1)},
    86: {64: Launch(32, 64, 4, 2), 128: Launch(32, 64, 8, 2), 256: Launch(16, 32, 8, 2)},
    90: {64: Launch(64, 128, 8, 2), 128: Launch(64, 128, 8, 2), 256: Launch(32, 64, 8, 2)},
    100: {64: Launch(64, 128, 8, 2), 128: Launch(64, 128, 8, 2), 256: Launch(64, 64, 8, 2)},
    120: {64: Launch(32, 64, 4, 2), 128: Launch(32, 64, 8, 2), 256: Launch(16, 32, 8, 2)},
}
DKDV_PACKED = {**DKDV, 90: {**DKDV[90], 128: Launch(32, 128, 8, 2)}}  # document bounds need registers too
DQ = {
    80: {64: Launch(128, 64, 8, 2), 128: Launch(64, 64, 8, 2), 256: Launch(64, 32, 8, 2)},
    86: {64: Launch(128, 64, 8, 2), 128: Launch(64, 64, 8, 2), 256: Launch(64, 32, 8, 1)},
    90: {64: Launch(128, 128, 8, 2), 128: Launch(128, 64, 8, 3), 256: Launch(64, 32, 8, 2)},
    100: {64: Launch(128, 128, 8, 2), 128: Launch(64, 64, 8, 3), 256: Launch(64, 64, 8, 2)},
    120: {64: Launch(128, 64, 8, 2), 128: Launch(32, 32, 4, 2), 256: Launch(16, 32, 4, 1)},
}
# Soft-capped scores are kept in addition to their probabilities, which needs registers.
DKDV_SOFTCAP = {**DKDV, 90: {**DKDV[90], 128: Launch(32, 128, 8, 2), 256: Launch(16, 64, 8, 2)}}
DQ_SOFTCAP = {
    **DQ,
    90: {**DQ[90], 64: Launch(128, 64, 8, 2)},
    100: {**DQ[100], 64: Launch(128, 64, 8, 2), 128: Launch(64, 64, 8, 2)},
    120: {**DQ[120], 64: Launch(64, 64, 8, 2)},
}


def _launch(table: dict[int, dict[int, Launch]], block_d: int) -> Launch:
    return table[max(known for known in table if known <= chip())][max(block_d, 64)]


def attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start: Tensor | None,
    end: Tensor | None,
    first_key: Tensor | None,
    causal: bool,
    window: int,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """See `reference.attention_forward`, which is used for float32."""
    if q.dtype == torch.float32:
        return reference.attention_forward(q, k, v, start, end, first_key, causal, window, scale, softcap)
    check_tiles(q=q, k=k, v=v)
    batch, queries, heads, depth = q.shape
    keys = k.shape[1]
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(batch, heads, queries, dtype=torch.float32, device=q.device)
    if not out.numel() or not keys:
        return out.zero_(), lse.fill_(float("-inf"))
    block_d = triton.next_power_of_2(depth)
    launch = _launch(FORWARD, block_d)
    flags = {"CAUSAL": causal, "BANDED": window > 0, "PACKED": start is not None, "PADDED": first_key is not None}
    descriptor_memory()
    attention_forward_kernel[(triton.cdiv(queries, launch.queries) * batch * heads,)](
        q, k, v, out, lse, start, end, first_key, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        heads, heads // k.shape[2], queries, keys, window, *score_factors(scale, softcap), D=depth, BLOCK_D=block_d,
        **flags, WARP_SPECIALIZE=launch.warp_specialize and flags | {"CAUSAL": False} == dict.fromkeys(flags, False),
        **launch.options,
    )  # fmt: skip
    return out, lse


def attention_backward(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    start: Tensor | None,
    end: Tensor | None,
    causal: bool,
    window: int,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.attention_backward`, which is used for float32. The result is the same in every run."""
    if q.dtype == torch.float32:
        return reference.attention_backward(dout, dlse, q, k, v, out, lse, start, end, causal, window, scale, softcap)
    batch, queries, heads, depth = q.shape
    keys, kv_heads = k.shape[1:3]
    dq, dk, dv = (torch.empty(part.shape, dtype=part.dtype, device=part.device) for part in (q, k, v))
    if not q.numel() or not k.numel():
        return dq.zero_(), dk.zero_(), dv.zero_()
    dout = dout if has_tiles(dout) else dout.contiguous()
    dlse = None if dlse is None else dlse.contiguous()
    block_d = triton.next_power_of_2(depth)
    padded = triton.cdiv(queries, 2 * DELTA_ROWS) * 2 * DELTA_ROWS
    delta, lse_log2 = (torch.empty(batch, heads, padded, dtype=torch.float32, device=q.device) for _ in range(2))
    attention_delta_kernel[(padded // DELTA_ROWS * batch * heads,)](
        out, dout, lse, dlse, lse_log2, delta, *dout.stride()[:3], heads, queries, padded,
        D=depth, BLOCK_D=block_d, BLOCK_M=DELTA_ROWS, HAS_DLSE=dlse is not None, enable_fp_fusion=True, num_warps=4,
    )  # fmt: skip

    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *dout.stride()[:3])
    sizes = (heads, heads // kv_heads, queries, padded, keys, window, scale, *score_factors(scale, softcap))
    settings = {"D": depth, "BLOCK_D": block_d, "CAUSAL": causal, "BANDED": window > 0, "PACKED": start is not None}
    descriptor_memory()
    dkdv = DKDV if start is None else DKDV_PACKED
    launch = _launch(dkdv if softcap is None else DKDV_SOFTCAP, block_d)
    launches = [(True, True)] if block_d < 256 else [(True, False), (False, True)]
    for makes_dk, makes_dv in launches:
        attention_dkdv_kernel[(triton.cdiv(keys, launch.keys) * batch * kv_heads,)](
            q, k, v, dout, lse_log2, delta, dk, dv, start, end, *strides, *sizes, **settings, DK=makes_dk, DV=makes_dv,
            WARP_SPECIALIZE=launch.warp_specialize and not window and start is None, **launch.options,
        )  # fmt: skip
    launch = _launch(DQ if softcap is None else DQ_SOFTCAP, block_d)
    attention_dq_kernel[(triton.cdiv(queries, launch.queries) * batch * heads,)](
        q, k, v, dout, lse_log2, delta, dq, start, end, *strides, *sizes, **settings, **launch.options
    )
    return dq, dk, dv
