"""Attention along time: every position to all others, or to those around it in memory that grows with the length alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vmae2_ds.config.tad_head import attention_chunk

# B videos, T positions, H heads, K channels of a head; n chunks of Q queries, each with its S keys.


def attend_along_time(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor, is_real_BT: Tensor, window: int) -> Tensor:
    """Each position attends to the real ones no more than window // 2 away, or with a window of -1 to all: (B, T, H, K).

    What a position that is not real gets has no meaning, but is finite.
    """
    length = q_BTHK.shape[1]
    chunk = attention_chunk(window, length)
    reach = window // 2 if window > 0 else length
    if chunk == length:
        allowed_BQS = _allowed(is_real_BT[:, None], reach, 0, length)
        out = _attend(q_BTHK, k_BTHK, v_BTHK, allowed_BQS[:, 0])
        return out
    after = -length % chunk
    around = (reach, after + reach)
    q_nQHK = F.pad(q_BTHK, (0, 0, 0, 0, 0, after)).unflatten(1, (-1, chunk)).flatten(0, 1)
    k_nSHK, v_nSHK = (_chunks(x, chunk, reach, around) for x in (k_BTHK, v_BTHK))
    key_is_real_BnS = F.pad(is_real_BT, around).unfold(1, chunk + 2 * reach, chunk)
    allowed_nQS = _allowed(key_is_real_BnS, reach, reach, chunk).flatten(0, 1)
    out_nQHK = _attend(q_nQHK, k_nSHK, v_nSHK, allowed_nQS)
    return out_nQHK.unflatten(0, (len(q_BTHK), -1)).flatten(1, 2)[:, :length]


def _chunks(x_BTHK: Tensor, chunk: int, reach: int, around: tuple[int, int]) -> Tensor:
    """Each chunk's keys or values, with those around it: (B n, S, H, K)."""
    padded_BTHK = F.pad(x_BTHK, (0, 0, 0, 0, *around))
    return padded_BTHK.unfold(1, chunk + 2 * reach, chunk).movedim(-1, 2).flatten(0, 1)


def _allowed(key_is_real_BnS: Tensor, reach: int, first: int, queries: int) -> Tensor:
    """Which keys each query of a chunk may see: real ones within reach, and the query's own place, lest there be none.

    The first query stands at key `first`. (B, n, Q, S).
    """
    device = key_is_real_BnS.device
    away_QS = (
        torch.arange(key_is_real_BnS.shape[-1], device=device) - torch.arange(queries, device=device)[:, None] - first
    )
    return (away_QS.abs() <= reach) & (key_is_real_BnS[:, :, None] | (away_QS == 0))


def _attend(q_BQHK: Tensor, k_BSHK: Tensor, v_BSHK: Tensor, allowed_BQS: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q_BQHK, k_BSHK, v_BSHK))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed_BQS[:, None]).transpose(1, 2)
