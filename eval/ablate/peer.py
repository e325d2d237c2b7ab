"""The interface of weight codecs of other projects: a model in, its bytes and the restored weights out."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from eval.ablate.subject import Subject

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Coded:
    """A model encoded and decoded by a peer."""

    bytes: int  # of the weights alone
    state: State
    encode_seconds: float
    decode_seconds: float


@dataclass(frozen=True)
class Peer:
    """A weight codec.

    `run` takes a subject, a factor for all steps, and another factor for the embedding's steps. `missing` returns why
    the peer cannot run on this machine, or "". A lossless peer has no steps.
    """

    run: Callable[[Subject, float, float], Coded]
    missing: Callable[[], str] = lambda: ""
    lossless: bool = False
