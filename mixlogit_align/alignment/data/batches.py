"""Tokenized comparisons as padded tensors."""

# Shapes: B comparisons, J candidate responses each (padded), L tokens (padded on the right).

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mixlogit_align.alignment.data.schema import Comparison
from mixlogit_align.errors import InvalidInputError, explain


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizedComparison:
    """A comparison with the token ids of prompt + response (+ end of text) for every candidate.

    Parameters
    ----------
    comparison : Comparison
    input_ids : tuple of lists
        One list of ids for each candidate; all begin with the same ``prompt_length`` ids.
    prompt_length : int
    reference_logps : tuple of float or None
        Log-probability of each candidate under the reference, once known.
    """

    comparison: Comparison
    input_ids: tuple[list[int], ...]
    prompt_length: int
    reference_logps: tuple[float, ...] | None = None

    def with_reference(self, logps: Sequence[float]) -> TokenizedComparison:
        """The same comparison with the reference's log-probabilities."""
        return replace(self, reference_logps=tuple(logps))


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Comparisons as tensors, with who chose and how much it counts.

    Parameters
    ----------
    input_ids : Tensor
        (B, J, L) int64.
    response_mask : Tensor
        (B, J, L) bool: the token belongs to the response.
    available : Tensor
        (B, J) bool: the candidate exists.
    choice : Tensor
        (B,) int64, index of the chosen candidate.
    weights : Tensor
        (B,) float32.
    pair_ids : Tensor
        (B,) int64.
    annotator_ids : tuple of str or None
    groups : tuple of mappings
    reference_logps : Tensor or None
        (B, J) float64, log-probabilities under the reference.
    """

    input_ids: Tensor
    response_mask: Tensor
    available: Tensor
    choice: Tensor
    weights: Tensor
    pair_ids: Tensor
    annotator_ids: tuple[str | None, ...]
    groups: tuple[Mapping[str, str], ...]
    reference_logps: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pair_ids)

    def chosen_rejected(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Split (B, J) values of pairs into (B,) of the chosen and (B,) of the rejected response."""
        if values.shape[1] != 2 or not bool(self.available.all()):
            sizes = sorted(set(self.available.sum(1).tolist()))
            raise InvalidInputError(
                explain(
                    "candidates",
                    got=f"sets of {sizes} responses",
                    expected="pairs",
                    hint="splitting larger sets into pairs before training",
                )
            )
        chosen, rejected = (values.gather(1, index[:, None])[:, 0] for index in (self.choice, 1 - self.choice))
        return chosen, rejected


@dataclass(frozen=True, kw_only=True)
class Collator:
    """Pads comparisons with ``pad_id`` on the right into a `Batch` on ``device``."""

    pad_id: int
    device: str | torch.device = "cpu"

    def __call__(self, rows: Sequence[TokenizedComparison]) -> Batch:
        """The rows as one batch; reference log-probabilities where every row has them."""
        comparisons = [row.comparison for row in rows]
        num_candidates = max(len(row.input_ids) for row in rows)
        length = max(len(ids) for row in rows for ids in row.input_ids)
        candidates = [[*row.input_ids, *[[]] * (num_candidates - len(row.input_ids))] for row in rows]
        sizes = torch.tensor([[len(ids) for ids in sets] for sets in candidates])
        prompts = torch.tensor([row.prompt_length for row in rows])[:, None, None]
        padded = [[ids + [self.pad_id] * (length - len(ids)) for ids in sets] for sets in candidates]
        position = torch.arange(length)
        reference = None
        if all(row.reference_logps is not None for row in rows):
            known = [[*(row.reference_logps or ()), *[0.0] * (num_candidates - len(row.input_ids))] for row in rows]
            reference = torch.tensor(known, dtype=torch.float64, device=self.device)
        return Batch(
            input_ids=torch.tensor(padded, device=self.device),
            response_mask=((position >= prompts) & (position < sizes[..., None])).to(self.device),
            available=(sizes > 0).to(self.device),
            choice=torch.tensor([c.choice for c in comparisons], device=self.device),
            weights=torch.tensor([c.weight for c in comparisons], dtype=torch.float32, device=self.device),
            pair_ids=torch.tensor([c.pair_id for c in comparisons], device=self.device),
            annotator_ids=tuple(c.annotator_id for c in comparisons),
            groups=tuple(c.groups for c in comparisons),
            reference_logps=reference,
        )
