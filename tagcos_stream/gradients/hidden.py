"""The variant `hidden`: the position-weighted mean of an example's last hidden states, in place of a gradient.

RDS+ (Ivison et al., arXiv 2503.01807, section 3): the state at position i of n counts i / (1 + 2 + ... + n), over all tokens of
the example, as under causal attention later states have seen more of it. B rows of a batch, T tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tagcos_stream.types import Checkpoint

if TYPE_CHECKING:
    import torch

HIDDEN = "hidden"  # name of the variant, and of its input to the projection


def pooled(states: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """Average hidden states with weights proportional to their positions.

    Parameters
    ----------
    states
        (B, T, H), padded on the right.
    lengths
        Tokens of each of the B examples, without padding.

    Returns
    -------
    torch.Tensor
        (B, H), of the dtype of `states`.
    """
    import torch

    counts = torch.tensor(lengths, device=states.device, dtype=states.dtype)[:, None]
    positions = torch.arange(1, states.shape[1] + 1, device=states.device, dtype=states.dtype)[None]
    weights = torch.where(positions <= counts, positions / (counts * (counts + 1) / 2), 0.0)
    return torch.bmm(weights[:, None], states)[:, 0]


def without_adapter(parameters: Mapping[str, torch.Tensor]) -> Checkpoint:
    """Make the checkpoint under which a model computes what it does without its adapter.

    Parameters
    ----------
    parameters
        Adapter parameters by PEFT's names, which give the shapes.

    Returns
    -------
    Checkpoint
        All numbers are zero, and no optimizer step was taken.
    """
    zeros = {name: np.zeros(tuple(parameter.shape), np.float32) for name, parameter in parameters.items()}
    return Checkpoint(0, 0.0, 1.0, 0, weights=zeros, exp_avg=zeros, exp_avg_sq=zeros)
