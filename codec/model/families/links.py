"""Translate tensors between our names and another layout's, both ways, from one table of links."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from codec.errors import FormatError
from codec.model.parameter import Parameter


@dataclass(frozen=True)
class Link:
    """Our tensors, one below the other, are their tensors, one below the other, all of one size.

    `transposed`: theirs are [inputs, outputs]. `paired`: heads whose rows are in the order of GGUF's Llama, each of
    the first half before the one of the second half with which it rotates; 0 where rows have our order. `longer`:
    theirs may have more rows, of positions beyond our window, which are left out.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    transposed: bool = False
    paired: int = 0
    longer: bool = False


def renamed(ours: str, theirs: str, transposed: bool = False, paired: int = 0, longer: bool = False) -> Link:
    """Link one tensor to one."""
    return Link((ours,), (theirs,), transposed, paired, longer)


def to_ours(
    links: Sequence[Link], take: Callable[[str], Tensor], expected: Mapping[str, Parameter], where: str
) -> dict[str, Tensor]:
    """Make our state dict of the tensors that `take` finds by their names.

    Raises:
        FormatError: a shape is not what the config says; `where` says of which file.
    """
    found: dict[str, Tensor] = {}
    for link in links:
        parts = [take(name) for name in link.theirs]
        parts = [part.T if link.transposed and part.ndim == 2 else part for part in parts]
        shapes = [expected[name].shape for name in link.ours]
        wanted = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        parts = [part[: wanted[0]] if link.longer else part for part in parts]
        rows = sum(part.shape[0] if part.ndim else 1 for part in parts)
        if any(part.shape[1:] != wanted[1:] or part.ndim != len(wanted) for part in parts) or rows != wanted[0]:
            raise FormatError(
                f"{where}: tensor {link.theirs[0]}: found {tuple(parts[0].shape)} of {len(parts)}, the config expects "
                f"{wanted} in all; pass the weights and the config of one model"
            )
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        if link.paired:
            whole = whole.reshape(link.paired, -1, 2, *whole.shape[1:]).transpose(1, 2).reshape(whole.shape)
        for name, part in zip(link.ours, whole.split([shape[0] for shape in shapes]), strict=True):
            found[name] = part.contiguous()
    return found


def to_theirs(links: Sequence[Link], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Make another layout's tensors of our state dict: the counterpart of `to_ours`, for links that are not paired."""
    found: dict[str, Tensor] = {}
    for link in links:
        whole = torch.cat([state[name] for name in link.ours]) if len(link.ours) > 1 else state[link.ours[0]]
        for name, part in zip(link.theirs, whole.chunk(len(link.theirs)), strict=True):
            found[name] = (part.T if link.transposed and part.ndim == 2 else part).contiguous()
    return found
