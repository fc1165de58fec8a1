"""Probes that read only the rows of the head that the state's kind makes candidates (Chen, 2019).

One native call sees what takes torch thirty operations, which would cost several times the rows.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from skimp import kernels
from skimp.kernels.library import at_hand
from skimp.kernels.native import Screened, ScreenTables
from skimp.methods.exit.features import features, likeliest
from skimp.methods.exit.values import CENTRES, REACH, SLOPE, TOKENS
from skimp.models.head import Head


class Screen:
    """The kinds of states of a plan, on the head of its model.

    Attributes:
        tokens: int32 [C, R], the candidates of each kind, ascending.
    """

    def __init__(self, values: Mapping[str, Tensor], head: Head) -> None:
        self._head = head
        like = head.weight
        centres = values[CENTRES].float().to(like.device)
        # The nearest centre c has the largest z·c - |c|²/2. The last row is reach's slope.
        offsets = torch.cat([-0.5 * centres.square().sum(-1), centres.new_zeros(1)])
        slope = values[SLOPE].float().to(like.device)
        self.tokens = values[TOKENS].int().to(like.device).contiguous()
        self._tables = ScreenTables(
            torch.cat([centres, slope[None]]).to(like.dtype),
            offsets.to(like.dtype),
            self.tokens,
            values[REACH].float().to(like.device).contiguous(),
        )

    def see(self, z: Tensor, before: Tensor | None) -> Screened:
        """What a probe sees of states `z` [B, d]; `before` [B]: tokens that the last probe saw."""
        head, native = self._head, at_hand()
        if native is not None and z.is_cpu:
            found = native.screen(
                z, self._tables, head.weight, head.bias, head.scale, head.softcap, before
            )
            if found is not None:
                return found
        return self.see_by_torch(z, before)

    def see_by_torch(self, z: Tensor, before: Tensor | None) -> Screened:
        """The same, on every device and for any number of states."""
        near = kernels.linear(z, self._tables.centres, self._tables.offsets)
        kinds = near[:, :-1].argmax(-1)
        reach = self._tables.reach[kinds] + near[:, -1].float()
        # States of one kind read the same rows of the head: too many to copy them for each state.
        logits = z.new_empty(len(z), self.tokens.shape[1])
        for kind in kinds.unique().tolist():
            rows = (kinds == kind).nonzero().squeeze(-1)
            logits[rows] = self._head.rows(z[rows], self.tokens[kind])
        values, place = likeliest(logits)
        token = self.tokens[kinds].gather(-1, place.unsqueeze(-1)).squeeze(-1).long()
        same = (token * 0 if before is None else token == before).float()
        return Screened(features(logits, values, same, reach), token, kinds, logits)
