"""Code blocks of a solid stream: consecutive bytes of files, each block decodable without the others.

A block is coded by context mixing, either together with a language model (MIXED, `codec.text.solid.mixed`) or alone
(BYTES, `codec.cm.compressor`), whichever takes fewer bytes. A sample of a larger block is coded both ways first, so
that the model does not run over blocks that it does not help.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from codec.cm.compressor import compress, decompress
from codec.console import Advance, ignore_progress
from codec.devices import compute_threads, processors, thread_pool
from codec.errors import FormatError, MismatchError
from codec.text.coder import Coder
from codec.text.solid import golden, mixed_decoder
from codec.text.solid.mixed import Mixed, Mixing

MIXED, BYTES = 2, 3
"""Kinds of payloads, which are tags of an archive's records."""

_SAMPLE = 4096  # bytes of a sample, from the middle of a block
_LOOKED_AT = 4 * _SAMPLE  # blocks from this size on are looked at
_PAYS = 0.97  # of the bytes that a sample takes without the model
_INVALID = 8  # of the bytes of a block, every 8th that is no UTF-8 makes it none for the model


class Payload(NamedTuple):
    """A coded block."""

    kind: int
    data: bytes
    tokens: int = 0  # that the model coded


@dataclass(frozen=True)
class SolidCoder:
    """A coder of blocks, with a model on one device; without a model all blocks are BYTES.

    Args:
        coder: a coder of `codec.text.open_coder.make_coder`, whose model is used.
    """

    coder: Coder | None = None

    @cached_property
    def _mixing(self) -> Mixing | None:
        c = self.coder
        if c is None:
            return None
        return Mixing(
            c.backend,
            c.tokenizer,
            c.weights.config.vocab_size,
            c.window,
            processors() if c.device == "cuda" else c.threads,
            c.device,
        )

    @property
    def _threads(self) -> int:
        return self._mixing.threads if self._mixing else compute_threads()

    def encode_block(self, data: bytes) -> Payload:
        """Return the payload of one block."""
        return self.encode([data])[0]

    def decode_block(self, kind: int, payload: bytes, size: int) -> bytes:
        """Return the `size` bytes of one block; errors as of `decode`."""
        return next(self.decode({0: (kind, payload, size)}))[1]

    def encode(self, blocks: Sequence[bytes], advance: Advance = ignore_progress) -> list[Payload]:
        """Return the smallest payload of each block, coded side by side; `advance` is called with bytes of text.

        Raises:
            CodecError: this machine does not code what the sources say (`codec.text.solid.golden`).
        """
        mixing = self._mixing
        golden.check_once()
        with thread_pool(self._threads) as pool:
            alone = [pool.submit(compress, block) for block in blocks]
            found: dict[int, Mixed] = {}
            if mixing is not None:
                numbers = self._promising(mixing, blocks, pool)
                payloads = mixing.encode([blocks[n] for n in numbers], advance)
                found = {n: payload for n, payload in zip(numbers, payloads, strict=True) if payload}
            out = []
            for n, future in enumerate(alone):
                data = future.result()
                mixed = found.get(n)
                pays = mixed and len(mixed.data) < len(data)
                out.append(Payload(MIXED, *mixed) if mixed and pays else Payload(BYTES, data))
                advance(0 if n in found else len(blocks[n]))
        return out

    def _promising(self, mixing: Mixing, blocks: Sequence[bytes], pool: ThreadPoolExecutor) -> list[int]:
        """Return the numbers of the blocks for which the model is likely to pay."""
        text = [n for n, block in enumerate(blocks) if block and _invalid(block) * _INVALID < len(block)]
        samples = {n: _sample(blocks[n]) for n in text if len(blocks[n]) >= _LOOKED_AT}
        alone = {n: pool.submit(compress, sample) for n, sample in samples.items()}
        mixed = dict(zip(samples, mixing.encode(list(samples.values())), strict=True))

        def pays(n: int) -> bool:
            payload = mixed[n]
            return payload is not None and len(payload.data) < _PAYS * len(alone[n].result())

        return [n for n in text if n not in samples or pays(n)]

    def decode(
        self, blocks: Mapping[int, tuple[int, bytes, int]], advance: Advance = ignore_progress
    ) -> Iterator[tuple[int, bytes]]:
        """Decode blocks.

        Args:
            blocks: (kind, payload, size of the block) by number.
            advance: called with bytes of payload, from several threads.

        Yields:
            (number, bytes), in the order in which blocks end.

        Raises:
            FormatError: a payload is not one of a block of its size.
            MismatchError: a block is MIXED, and there is no model.
            CodecError: this machine does not code what the sources say (`codec.text.solid.golden`).
        """
        mixing = self._mixing
        golden.check_once()
        alone = {n: (data, size) for n, (kind, data, size) in blocks.items() if kind == BYTES}
        mixed = {n: (data, size) for n, (kind, data, size) in blocks.items() if kind == MIXED}
        if len(alone) + len(mixed) < len(blocks):
            raise FormatError(f"blocks of kinds {sorted({kind for kind, _, _ in blocks.values()})}: expected 2 and 3")
        if mixed and mixing is None:
            raise MismatchError("a block was coded with a model; open the archive with the pack that it names")
        with thread_pool(self._threads) as pool:
            yield from zip(
                alone, pool.map(lambda block: decompress(block[0], block[1], advance), alone.values()), strict=True
            )
        if mixing:
            yield from mixed_decoder.decode(mixing, mixed, advance)


def _invalid(block: bytes) -> int:
    """Return how many runs of a block's bytes are not UTF-8."""
    return block.decode("utf-8", "replace").count("\ufffd") - block.count("\ufffd".encode())


def _sample(block: bytes) -> bytes:
    """Return a sample from the middle of a block: whole characters, and whole lines where there are any."""
    begin = (len(block) - _SAMPLE) // 2
    begin += max(0, block[begin : begin + _SAMPLE // 4].find(b"\n") + 1)
    return block[begin : begin + _SAMPLE].decode("utf-8", "ignore").encode()
