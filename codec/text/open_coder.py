"""Open the coder of a pack on one device or many."""

from functools import partial

from codec.devices import compute_threads, find_devices, kind_of, processors, split_cluster, visible_gpus
from codec.errors import CodecError, FormatError, MismatchError
from codec.exact.chunks import CHUNK_UNIT
from codec.pack.reader import Pack
from codec.startup import starting
from codec.text.base import DocumentCoder
from codec.text.coder import Coder
from codec.text.policy import Adaptation, Policy

_MOST_THREADS = 4
"""Threads that prepare text for a GPU. More of them keep the thread that launches kernels from the interpreter: beside
an H200 with 16 processors 4, 6, 8 and 10 encoded 846,000, 821,000, 735,000 and 675,000 tokens a second."""


def default_policy(pack: Pack, adaptation: Adaptation = Adaptation.NONE) -> Policy:
    """Return the policy of the model's whole window. Raises MismatchError for a pack that holds weights only."""
    return Policy(pack.for_text()[0].window, adaptation)


@starting()
def open_coder(pack: Pack, policy: Policy | None = None, device: str = "cpu") -> DocumentCoder:
    """Open the coder of a pack on all devices of a name.

    A processor, or a GPU that is the only one, is used from this process. Several devices have a process each, those of
    a cluster an actor each.

    Args:
        pack: an opened pack with a model.
        policy: what documents are predicted from, by default `default_policy`.
        device: a name as of `codec.devices.find_devices`.

    Raises:
        MismatchError: the pack holds weights only, or no tables for the recall that the policy asks for.
        FormatError: a window that the model does not have.
        CodecError: no such device.
    """
    policy, devices = policy or default_policy(pack), find_devices(device)
    if (address := split_cluster(device)[1]) is not None:
        from codec.text.cluster.coder import Cluster

        check_policy(pack, policy)
        return Cluster(partial(make_coder, pack, policy), devices, address)
    if devices == ["cpu"] or (len(devices) == 1 and len(visible_gpus()) == 1):
        return make_coder(pack, policy, kind_of(devices[0]))
    from codec.text.workers import Workers  # which a decoder on one device does without

    check_policy(pack, policy)
    return Workers(pack, policy, devices)


@starting()
def make_coder(pack: Pack, policy: Policy | None = None, device: str = "cpu", threads: int | None = None) -> Coder:
    """Make the coder of a pack in this process; errors as of `open_coder`.

    Args:
        pack: an opened pack with a model.
        policy: what documents are predicted from, by default `default_policy`.
        device: cpu, or cuda for torch's current GPU.
        threads: of the model and of the preparation of text on a processor, by default `compute_threads`. With a GPU,
            the number of processors to count with, by default all: three of eight prepare text, at most _MOST_THREADS.
    """
    if device not in ("cpu", "cuda"):
        raise CodecError(f"device {device!r}: expected cpu or cuda, of which CUDA_VISIBLE_DEVICES chooses one")
    policy = policy or default_policy(pack)
    check_policy(pack, policy)
    recall = pack.recall if policy.adaptation == Adaptation.RECALL else None
    threads = threads or (compute_threads() if device == "cpu" else processors())
    if device == "cuda":
        threads = max(1, min(threads * 3 // 8, _MOST_THREADS))
    return Coder(pack.weights, device, pack.for_text()[1], policy.window, recall, threads)


def check_policy(pack: Pack, policy: Policy) -> None:
    """Check that a pack can code with a policy; errors as of `open_coder`."""
    config, tokenizer = pack.for_text()
    if not 1 <= policy.window <= config.window:
        raise FormatError(f"window of {policy.window} tokens: expected 1 to {config.window}, the model's window")
    if config.restarts and policy.window % CHUNK_UNIT:
        raise FormatError(f"window of {policy.window} tokens: expected a multiple of {CHUNK_UNIT} for such a model")
    try:
        len(tokenizer.token_bytes)
    except UnicodeDecodeError as error:
        raise FormatError(f"pack: a piece of its tokenizer is not UTF-8 ({error}); fetch the pack again") from error
    if policy.adaptation == Adaptation.RECALL and not pack.recall:
        raise MismatchError("pack: it has no tables of recall; learn them from text with: underpar recall")
