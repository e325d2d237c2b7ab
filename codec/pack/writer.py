"""Write packs: decide what becomes of each tensor, quantize and code slabs side by side, meet a budget."""

import math
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar

import numpy as np
import torch

from codec.console import Advance, ignore_progress
from codec.errors import BudgetError, FormatError
from codec.model.byte_pairs import AnyTokenizer, open_tokenizer
from codec.model.config import AnyConfig
from codec.numerics.widths import ARITHMETIC
from codec.pack.blas import one_blas_thread
from codec.pack.container import container_chunks
from codec.pack.header import MAX_ELEMENTS, check_vocabulary, write_header
from codec.pack.parts.dtypes import SLAB, size_of, slabs
from codec.pack.parts.tensors import plain
from codec.pack.plan import Item, Plan, Rules, Vectors, make_plan
from codec.pack.slab_coder import Coded, Slab, SlabCoder, matrix_of
from codec.pack.vectors import batches
from codec.quantization.calibration import Calibration
from codec.quantization.quantizers import Quantizer, RowAbsmax, RowOctaves, Strategy
from codec.quantization.rate import finest_within
from codec.quantization.sensitivity import SensitivityGrid, unit_for
from codec.zstd import shrink

FINEST_RATE = 12.0
"""Bits a weight beyond which a budget buys nothing: rounding is then finer than bfloat16's."""

_DEFAULT_BITS = 8
_IN_MEMORY = 1 << 24  # bytes of a pack that wait in memory; a larger one waits in a file

_ROOM, _BYTES_AN_ELEMENT = 1 << 27, 16
"""Bytes for slabs coded side by side, besides half of the largest tensor, and bytes for each of their elements.
So `underpar pack` stays within 500 MiB and 1.5 times the largest tensor, which lies in memory as a whole, however many
cores there are. A model with a config takes all cores: its tensors lie in memory at any rate."""

T = TypeVar("T")


@dataclass(frozen=True)
class Extras:
    """Files and metadata that a pack carries along with the weights.

    Attributes:
        metadata: of the safetensors file that the weights came from.
        files: other files of the model's folder by their name, such as config.json.
    """

    metadata: Mapping[str, str]
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class Written:
    """A pack in a temporary file, which is deleted when the last reference to it is gone."""

    file: BinaryIO
    size: int
    error: float  # squared, over each tensor's mean square

    def __len__(self) -> int:
        return self.size

    def read(self) -> bytes:
        """Return the pack's bytes."""
        self.file.seek(0)
        return self.file.read()

    def copy_to(self, file: IO[bytes]) -> None:
        """Write the pack's bytes to a file, piece by piece."""
        self.file.seek(0)
        shutil.copyfileobj(self.file, file)


def compress(
    state_dict: Mapping[str, torch.Tensor],
    config: AnyConfig | None = None,
    tokenizer: AnyTokenizer | bytes | None = None,
    budget: int | None = None,
    calibration: Calibration | None = None,
    quantizer: Quantizer | None = None,
    strategy: Strategy = SensitivityGrid,
    *,
    lossless: Sequence[str] = (),
    skip: Sequence[str] = (),
    bits: Mapping[str, float] | None = None,
    vectors: Vectors = "exact",
) -> bytes:
    """Compress a model into the bytes of a pack.

    Without a config, floating tensors of two or more dimensions and 1,024 or more elements are quantized, unless they
    are shorter as they are; all others come back exactly. With one, `codec.model.parameters` says which are quantized,
    and the others become float16.

    Args:
        state_dict: the weights. With a config, exactly the tensors of `codec.model.parameters.parameters(config)`.
        config: the model's shape; without it the pack holds weights only.
        tokenizer: a tokenizer or its serialized form: a SentencePiece `.model`, or `BytePairs.model`.
        budget: the largest allowed size of the pack in bytes. The finest unit of `strategy` that fits is taken, at most
            `codec.quantization.rate.slack_of(budget)` bytes below the budget.
        calibration: second moments by matrix (`trainer.fit.calibrate`), which say where a budget's bits matter most.
            Without it, each tensor's error counts relative to its own mean square.
        quantizer: to use as it is, in place of one that fits a budget; without either, 8 bits a weight.
        strategy: the quantizers by their unit that a budget chooses from (`codec.quantization.strategies` has more by
            name).
        lossless: shell patterns of names; these tensors come back exactly. `["*"]` keeps everything.
        skip: shell patterns of names; these tensors are left out.
        bits: about how many bits a weight, by shell pattern, whatever the budget.
        vectors: "float16" keeps tensors that are not quantized in half precision; those of over 16 million elements
            stay as they are.

    Returns:
        The pack; whatever it says decodes to the same numbers everywhere. Without a budget, `decompress` gives the same
        tensors whichever machine made the pack. Its bytes are the same for the same version of zstandard (1.5.7 in
        `constraints.txt`), unless a logarithm that chooses among codes falls on an edge. With a budget, errors are fed
        back by sums in floating point, and another machine's pack may differ in a few integers.

    Raises:
        BudgetError: the budget cannot be met; `.smallest` says what can.
        MismatchError: state dict and config, config and tokenizer, or calibration do not belong together; a pattern
            that matches nothing.
        FormatError: entries that a pack cannot hold.

    >>> import torch, codec
    >>> blob = codec.compress({"w": 127 * torch.eye(128)})
    >>> torch.equal(codec.decompress(blob)["w"], 127 * torch.eye(128))
    True
    """
    rules = Rules(lossless, skip, bits or {}, vectors)
    job = PackJob(state_dict, config, tokenizer, calibration, rules)
    return job.run(budget, quantizer, strategy).read()


class PackJob:
    """The work of `compress`, with a result that may be too large for memory."""

    def __init__(
        self,
        state: Mapping[str, torch.Tensor],
        config: AnyConfig | None = None,
        tokenizer: AnyTokenizer | bytes | None = None,
        calibration: Calibration | None = None,
        rules: Rules = Rules(),  # frozen
        extras: Extras = Extras({}, {}),
        folder: Path | None = None,
        advance: Advance = ignore_progress,
    ):
        """Check the contents of the pack, and plan.

        Args:
            state: as for `compress`; tensors are read on access, several times each.
            config: as for `compress`.
            tokenizer: as for `compress`.
            calibration: as for `compress`.
            rules: the caller's wishes by names of tensors.
            extras: files and metadata to carry along.
            folder: the folder of the temporary file; the system's if None.
            advance: called with the number of elements done.

        Raises:
            FormatError: an argument of another type, or something that a pack cannot hold.
            MismatchError: arguments that do not belong together.
        """
        if config is not None and not hasattr(config, "to_json"):
            raise FormatError(f"config: a {type(config).__name__}, expected a ModelConfig; pass ModelConfig(...)")
        if isinstance(tokenizer, bytes):
            tokenizer = open_tokenizer(tokenizer)
        if tokenizer is not None and not hasattr(tokenizer, "vocab_size"):
            raise FormatError(
                f"tokenizer: a {type(tokenizer).__name__}, expected a Tokenizer or the bytes of a SentencePiece model"
            )
        if calibration is not None and not isinstance(calibration, Mapping):
            raise FormatError(
                f"calibration: a {type(calibration).__name__}, expected Moments by name; pass load_calibration(path)"
            )
        self.plan: Plan = make_plan(state, config, rules)
        if config and tokenizer:
            check_vocabulary(config, tokenizer)
        self._state, self._config, self._tokenizer = state, config, tokenizer
        self._calibration, self._extras, self._folder, self._advance = calibration, extras, folder, advance
        self._scales: dict[str, float] = {}

    @property
    def weights(self) -> int:
        """Return the number of weights that a budget decides on."""
        return sum(int(np.prod(i.shape)) for i in self.plan.parts if i.how == "quantize" and i.bits is None)

    def run(
        self, budget: int | None = None, quantizer: Quantizer | None = None, strategy: Strategy = SensitivityGrid
    ) -> Written:
        """Write the pack; the arguments and errors are those of `compress`."""
        if budget is not None and (isinstance(budget, bool) or not isinstance(budget, (int, float, np.integer))):
            raise FormatError(f"budget: {budget!r}, expected a number of bytes")
        if budget is not None and not budget > 0:
            raise FormatError(f"budget of {budget} bytes, expected more than 0")
        budget = None if budget is None else min(budget, 1 << 62)  # integers may be larger than any float
        count = self.weights
        if quantizer or budget is None or not count:
            chosen = quantizer or (RowAbsmax(_DEFAULT_BITS) if self._config else RowOctaves(_DEFAULT_BITS))
            written = self._build(chosen, quantizer is None)
            if budget is not None and len(written) > budget:
                raise BudgetError(self._too_big(budget, len(written)), len(written))
            return written
        rates = self._measure(strategy(1.0))
        first, finest = 1.0, 0.0
        if rates:
            first = unit_for(min(FINEST_RATE, 8 * budget / count), rates, count)
            finest = unit_for(FINEST_RATE, rates, count)
        try:
            best = finest_within(budget, lambda unit: self._build(strategy(unit), True), count, first, finest)
        except BudgetError as error:
            raise BudgetError(self._too_big(budget, error.smallest), error.smallest) from error
        if self._calibration is None and not self._config and 8 * budget > (_DEFAULT_BITS - 2) * count:
            default = self._build(RowOctaves(_DEFAULT_BITS), True)
            if len(default) <= budget and default.error < best.error:
                return default
        return best

    def _too_big(self, budget: float, smallest: int) -> str:
        kept = sorted((i for i in self.plan.items if i.how == "exact"), key=lambda i: -size_of(i.dtype, i.shape))
        size = sum(size_of(i.dtype, i.shape) for i in kept)
        said = f"budget of {budget} bytes: the smallest pack has {smallest}; raise the budget to that or more"
        if not kept or 2 * size < smallest:
            return said
        return f"{said}, or name in `bits` what is kept exactly: {size} bytes, the largest is {kept[0].name}"

    def _slabs(self, kinds: Callable[[Item], bool]) -> Iterator[tuple[Slab, torch.Tensor]]:
        """Yield the slabs of the tensors with parts of their own, and the slabs' elements."""
        for item in filter(kinds, self.plan.parts):
            flat = plain(item.name, self._state[item.name]).reshape(-1)
            for place in slabs(item.shape, MAX_ELEMENTS if self._config else SLAB):
                slab = Slab(item, *place)
                yield slab, slab.of(flat)

    def _ahead(
        self, works: Iterable[tuple[Slab, torch.Tensor]], function: Callable[[tuple[Slab, torch.Tensor]], T]
    ) -> Iterator[T]:
        """Yield a function's results in order, computed on all cores as far as memory allows."""
        threads = torch.get_num_threads()
        largest = max((size_of(item.dtype, item.shape) for item in self.plan.parts), default=0)
        room = math.inf if self._config else (_ROOM + largest // 2) // _BYTES_AN_ELEMENT
        waiting: deque[tuple[int, Future[T]]] = deque()
        with one_blas_thread(), ThreadPoolExecutor(threads) as pool:
            try:
                for work in works:
                    size = work[0].rows * work[0].columns
                    while waiting and (len(waiting) > threads or size + sum(n for n, _ in waiting) > room):
                        yield waiting.popleft()[1].result()
                    waiting.append((size, pool.submit(function, work)))
                    del work
                while waiting:
                    yield waiting.popleft()[1].result()
            finally:
                for _, future in waiting:
                    future.cancel()

    def _measure(self, one: Quantizer) -> list[tuple[Any, int]]:
        """Measure every tensor's root mean square, and return the rates of its slabs on steps of unit 1."""
        sums: dict[str, float] = {}

        wanted = [item.name for item in self.plan.parts if item.how == "quantize"]
        if self._calibration is None:
            for name, found in self._ahead(self._slabs(lambda item: item.how == "quantize"), _finite_square):
                sums[name] = sums.get(name, 0.0) + found
            counts = {item.name: int(np.prod(item.shape)) for item in self.plan.parts}
            self._scales.update({name: (sums.get(name, 0.0) / max(1, counts[name])) ** 0.5 for name in wanted})
        if not isinstance(one, SensitivityGrid):
            return []

        def rate(work: tuple[Slab, torch.Tensor]) -> tuple[Any, int]:
            slab, tensor = work
            weights = np.nan_to_num(tensor.float().numpy(), posinf=0.0, neginf=0.0)
            matrix = matrix_of(slab, weights, self._calibration, self._scales.get(slab.item.name))
            try:
                return one.rates(matrix), slab.columns
            except FormatError as error:
                raise FormatError(f"tensor {slab.item.name}: {error}") from error

        return list(self._ahead(self._slabs(lambda item: item.how == "quantize" and item.bits is None), rate))

    def _build(self, quantizer: Quantizer, may_be_exact: bool) -> Written:
        """Write a pack with a quantizer; slabs may stay exact where that is shorter, if `may_be_exact`."""
        if self._calibration is None and not self._scales:
            self._measure(RowAbsmax(8))
        coder = SlabCoder(
            quantizer,
            self._calibration,
            self._scales,
            may_be_exact and self._config is None,
            self._config is not None,
        )
        file: Any = tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=str(self._folder) if self._folder else None)  # noqa: SIM115  # closed with Written
        errors: list[float] = []
        size = 0
        for chunk in container_chunks(self._sections(coder, errors)):
            file.write(chunk)
            size += len(chunk)
        return Written(file, size, sum(errors))

    def _sections(self, coder: SlabCoder, errors: list[float]) -> Iterator[tuple[str, Iterable[bytes]]]:
        entries: dict[str, dict[str, Any]] = {
            item.name: {"name": item.name, "shape": list(item.shape), "dtype": item.dtype, "parts": []}
            for item in self.plan.parts
        }
        vectors = batches(self.plan.vectors, self._state, self._config is None)

        def parts() -> Iterator[bytes]:
            def work(given: tuple[Slab, torch.Tensor]) -> tuple[Slab, Coded]:
                return given[0], coder(*given)

            for slab, coded in self._ahead(self._slabs(lambda item: True), work):
                entries[slab.item.name]["parts"].append(len(coded.part))
                errors.append(coded.error)
                self._advance(slab.rows * slab.columns)
                yield coded.part
            for batch in vectors:
                yield batch.part

        yield "tensors", parts()
        header: dict[str, Any] = {
            "arithmetic": ARITHMETIC,
            "tensors": list(entries.values()),
            "vectors": [entry for batch in vectors for entry in batch.entries],
            "batches": [[len(batch.entries), len(batch.part)] for batch in vectors],
        }
        if self._config:
            header["whole"] = True
        if self.plan.twins:
            header["twins"] = self.plan.twins
        if self._extras.metadata:
            header["metadata"] = dict(self._extras.metadata)
        if self._extras.files:
            header["files"] = {name: len(content) for name, content in self._extras.files.items()}
        yield "header", [write_header(header)]
        yield "config", [shrink(self._config.to_json().encode()) if self._config else b""]
        yield "tokenizer", [shrink(self._tokenizer.model) if self._tokenizer else b""]
        if self._extras.files:
            yield "files", [shrink(b"".join(self._extras.files.values()))]


def _finite_square(work: tuple[Slab, torch.Tensor]) -> tuple[str, float]:
    """Return the sum of squares of a slab's finite elements."""
    total = 0.0
    for piece in work[1].reshape(-1).split(1 << 16):
        weights = piece.float().numpy()
        total += float(np.square(weights[np.isfinite(weights)], dtype=np.float64).sum())
    return work[0].item.name, total
