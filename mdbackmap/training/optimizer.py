"""What turns gradients into steps: one rule for matrices, another for everything else."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Optimizer:
    """Muon for the weight matrices of linear layers, AdamW for the rest, as one optimizer.

    Muon steps along the nearest orthogonal matrix to the momentum, so that no direction of a
    layer is learnt much slower than another: Jordan et al., 2024,
    https://kellerjordan.github.io/posts/muon; scaled after Liu et al., arXiv 2502.16982, so that
    both rules share a learning rate.

    Parameters
    ----------
    network : torch.nn.Module
    learning_rate : float
    weight_decay : float
        Of the matrices of linear layers.
    """

    def __init__(
        self, network: nn.Module, learning_rate: float, weight_decay: float = 1e-4
    ) -> None:
        matrices = [m.weight for m in network.modules() if isinstance(m, nn.Linear)]
        known = {id(p) for p in matrices}
        rest = [p for p in network.parameters() if id(p) not in known]
        self._parts = (
            torch.optim.Muon(matrices, lr=learning_rate, weight_decay=weight_decay,
                             adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=learning_rate, weight_decay=1e-5),
        )  # fmt: skip

    def set_learning_rate(self, value: float) -> None:
        """Set the learning rate of the next step."""
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = value

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part in self._parts:
            part.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Take a step."""
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on later."""
        return {"matrices": self._parts[0].state_dict(), "rest": self._parts[1].state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        for part, name in zip(self._parts, ("matrices", "rest"), strict=True):
            part.load_state_dict(state[name])
