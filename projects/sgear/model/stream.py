"""Online anticipation: one more frame or feature at a time, an answer after each.

A frame goes through the ViT once, however many windows it lies in. What looks at the whole window (context blocks,
prototypes, decoder) runs again for each answer: it depends on the place of a step in the window.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from projects.sgear.model.decoder import Cache
from projects.sgear.model.sgear import Outputs, Sgear


class Stream:
    """Answers for the last T steps of a stream, T being what the network was built for.

    At first the window is filled by repeating the first step in front, as clips at the start of a video are.

    With `grow` (AVT only, whose decoder never looks back differently) the window is everything since the start, and the
    decoder's keys and values are kept: a step costs the same however many there were, up to the decoder's positions.

    Raises: ValueError for `grow` with another network than AVT's.
    """

    def __init__(self, net: Sgear, *, grow: bool = False) -> None:
        if grow and net.cfg.kind != "avt":
            raise ValueError(
                "a growing window needs model.kind=avt: S-GEAR chooses prototypes for a window as a whole, and has "
                "weights for a fixed number of steps"
            )
        self.net, self.grow = net.eval(), grow
        self.steps: deque[Tensor] = deque(maxlen=net.frames)
        self.cache: Cache | None = None
        self.count = 0
        """Steps seen so far."""
        self._window: tuple[Tensor, Tensor] | None = None

    @torch.inference_mode()
    def add(self, x: Tensor) -> Outputs:
        """The answer after one more frame (B,3,H,W) or feature (B,C).

        With `grow`, `past` and its logits are of this step alone, (B,1,...).

        Raises: ValueError as the network does.
        """
        video = self.net.cfg.input == "video"
        step = self.net.backbone(x[:, :, None]) if video else x[:, None]
        self.count += 1
        if self.grow:
            observed, _ = self.net.contextualize(step) if video else self.net.standardize(step)
            predicted, self.cache = self.net.future_predictor.next(observed, self.cache)
            return self.net.answer(predicted[:, 0], predicted[:, 0], observed, observed, observed[:, :0])
        self.steps.append(step)
        missing = self.net.frames - len(self.steps)
        window = torch.cat([self.steps[0]] * missing + list(self.steps), dim=1)
        self._window = self.net.contextualize(window) if video else self.net.standardize(window)
        return self.net.anticipate(*self._window)

    @torch.inference_mode()
    def ahead(self, steps: int) -> Tensor:
        """Scores (B,steps,K) of the actions at the next `steps` steps after what was added; see `Sgear.ahead`.

        Raises: ValueError before the first step, and with `grow`.
        """
        if self._window is None:
            raise ValueError("nothing to look ahead from: add a step first (a stream with `grow` only answers for one)")
        return self.net.ahead(*self._window, steps)

    def reset(self) -> None:
        """Forget everything: another video begins."""
        self.steps.clear()
        self.cache, self.count, self._window = None, 0, None
