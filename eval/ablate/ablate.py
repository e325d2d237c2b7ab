"""Ablations of weight codecs: a frozen plan of points, measured in parallel, kept line by line.

Workers quantize, write and read back; this process measures what came back, on a GPU where there is one, and appends
each point to `points.jsonl`, so that a run that was stopped goes on where it was.
"""

import hashlib
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file

import codec
from codec.console import Advance, ignore_progress, notes
from codec.errors import CodecError, FormatError
from codec.quantization.quantizers import Matrix, Strategy
from codec.quantization.sensitivity import SensitivityGrid, unit_for
from codec.quantization.strategies import STRATEGIES
from eval.ablate.divergence import Ruler
from eval.ablate.peers import PEERS
from eval.ablate.subject import Subject, load_subject

POINTS = "points.jsonl"

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
"""Environment variables that limit a worker to one thread; the work is parallel by points."""

Kind = Literal["strategy", "peer"]


@dataclass(frozen=True)
class Point:
    """One pack or peer's file to be made.

    A strategy has a unit, or a rate in bits a weight that is about met, or a budget in bytes; a peer has a scale of all
    steps, and one of the embedding's on top.
    """

    kind: Kind
    name: str
    unit: float | None = None
    rate: float | None = None
    budget: int | None = None
    scale: float | None = None
    embedding: float | None = None

    @property
    def key(self) -> str:
        """What tells it from all others, for people too."""
        settings = {k: v for k, v in asdict(self).items() if k not in ("kind", "name") and v is not None}
        return " ".join(
            [self.name, *(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in settings.items())]
        )


@dataclass(frozen=True)
class Made:
    """What a worker says of a point; the weights that came back are in the file `state` if they are to be measured."""

    bytes: int
    encode_seconds: float
    decode_seconds: float
    relative_error: float
    state: Path | None


@dataclass(frozen=True)
class Measured:
    """A finished point. Per-window sums are empty where the distortion is the relative error."""

    point: Point
    bytes: int  # config and tokenizer included where the model has them
    bits_per_weight: float  # 8 * bytes over all parameters
    encode_seconds: float
    decode_seconds: float
    relative_error: float  # squared, over all matrices
    kl: float | None = None  # nats a token
    kl_error: float | None = None  # standard errors, by window
    bpb: float | None = None
    tax: float | None = None  # bits per byte over the float model's
    tax_error: float | None = None
    windows_kl: list[float] = field(default_factory=list)  # nats, sums
    windows_tax: list[float] = field(default_factory=list)  # nats over the float model's

    @property
    def distortion(self) -> float:
        """KL where the model can be run, the relative squared error where it cannot."""
        return self.relative_error if self.kl is None else self.kl


@dataclass(frozen=True)
class Outcome:
    """Measured points in the plan's order; why others are not there, by key."""

    points: list[Measured]
    skipped: dict[str, str]  # a tool that is not installed
    failed: dict[str, str]


def make_plan(
    strategies: Sequence[str],
    units: Sequence[float],
    rates: Sequence[float],
    budgets: Sequence[int],
    peers: Sequence[str],
    scales: Sequence[float],
    embeddings: Sequence[float],
) -> tuple[Point, ...]:
    """Every strategy at every unit, rate and budget, every peer at every scale and scale of the embedding.

    A strategy that has no unit, or a peer without steps, is one point.

    Raises:
        CodecError: a name that does not exist, or settings out of range.
    """
    for wanted, known, what in ((strategies, STRATEGIES, "strategy"), (peers, PEERS, "peer")):
        if unknown := [name for name in wanted if name not in known]:
            raise CodecError(f"{what} {unknown[0]!r}: expected one of {', '.join(known)}")
    if any(not 0 < value < float("inf") for value in (*units, *rates, *budgets, *scales, *embeddings)):
        raise CodecError("units, rates, budgets and scales: expected numbers above 0")
    plan = []
    for name in strategies:
        if STRATEGIES[name](1.0) == STRATEGIES[name](2.0):
            plan.append(Point("strategy", name, unit=1.0))
            continue
        plan += [Point("strategy", name, unit=unit) for unit in units]
        plan += [Point("strategy", name, rate=rate) for rate in rates]
        plan += [Point("strategy", name, budget=budget) for budget in budgets]
    for name in peers:
        grid = [(1.0, 1.0)] if PEERS[name].lossless else [(s, e) for s in scales for e in embeddings]
        plan += [Point("peer", name, scale=scale, embedding=embedding) for scale, embedding in grid]
    return tuple(dict.fromkeys(plan))


def make(subject: Subject, point: Point) -> tuple[Made, dict[str, torch.Tensor]]:
    """Make a point's file and read it back."""
    if point.kind == "peer":
        coded = PEERS[point.name].run(subject, point.scale or 1.0, point.embedding or 1.0)
        size = coded.bytes + subject.companions
        error = subject.relative_error(coded.state)
        return Made(size, coded.encode_seconds, coded.decode_seconds, error, None), coded.state
    strategy = STRATEGIES[point.name]
    began = time.perf_counter()
    if point.budget is not None:
        blob = _pack(subject, budget=point.budget, strategy=strategy)
    else:
        unit = point.unit or unit_of_rate(subject, strategy, point.rate or 1.0)
        blob = _pack(subject, quantizer=strategy(unit))
    encoded = time.perf_counter()
    state = codec.open(blob).state_dict()
    decoded = time.perf_counter()
    return Made(len(blob), encoded - began, decoded - encoded, subject.relative_error(state), None), state


def unit_of_rate(subject: Subject, strategy: Strategy, rate: float) -> float:
    """The unit at which a strategy's pack has about `rate` bits a weight."""
    one = strategy(1.0)
    if not isinstance(one, SensitivityGrid):
        return float(2.0 ** (8 * len(_pack(subject, quantizer=one)) / subject.parameters - rate))
    rates = []
    for name, weights in subject.matrices.items():
        matrix = Matrix(name, subject.roles[name], weights, subject.moments(name))
        rates.append((one.rates(matrix), weights.shape[1]))
    return unit_for(rate, rates, sum(weights.size for weights in subject.matrices.values()))


def _pack(subject: Subject, **how: Any) -> bytes:
    tokenizer = subject.tokenizer if subject.config else None
    return codec.compress(subject.state, subject.config, tokenizer, calibration=subject.calibration, **how)


def run_plan(
    model: Path,
    plan: Sequence[Point],
    folder: Path,
    ruler: Ruler | None,
    processes: int,
    advance: Advance = ignore_progress,
) -> Outcome:
    """Measure a plan's points, those in `folder` excepted, which were measured before.

    Args:
        model: a run folder or a `.safetensors` file, read once by every worker.
        ruler: measures KL and bpb; None: the relative squared error is all.
        processes: workers; 1 works in this process.
        advance: told 1 for every point.

    Raises:
        CodecError: `folder` holds points of another model or text.
    """
    subject = load_subject(model)
    origin = fingerprint(subject, ruler)
    done = read_points(folder / POINTS, origin)
    missing = {name: PEERS[name].missing() for name in {p.name for p in plan if p.kind == "peer"}}
    skipped = {p.key: missing[p.name] for p in plan if p.kind == "peer" and missing[p.name]}
    todo = sorted((p for p in plan if p not in done and p.key not in skipped), key=_slow_first)
    advance(len(plan) - len(todo))
    failed: dict[str, str] = {}
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as states, (folder / POINTS).open("a") as log:
        for point, made in _made(model, subject, todo, Path(states) if ruler else None, processes):
            advance(1)
            if isinstance(made, str):
                failed[point.key] = made
                notes.print(f"{point.key}: {made}", markup=False, highlight=False)
                continue
            done[point] = measure(point, made, ruler, subject.parameters)
            log.write(json.dumps({"origin": origin, **asdict(done[point])}) + "\n")
            log.flush()
    return Outcome([done[point] for point in plan if point in done], skipped, failed)


def measure(point: Point, made: Made, ruler: Ruler | None, parameters: int) -> Measured:
    """A made point with its distortion; its file of weights is deleted."""
    bits = 8 * made.bytes / parameters
    plain = Measured(point, made.bytes, bits, made.encode_seconds, made.decode_seconds, made.relative_error)
    if ruler is None or made.state is None:
        return plain
    found = ruler.measure(load_file(made.state))
    made.state.unlink()
    kl, tax = ruler.kl(found), ruler.tax(found)
    return replace(
        plain,
        kl=kl.value,
        kl_error=kl.error,
        bpb=ruler.bpb(found).value,
        tax=tax.value,
        tax_error=tax.error,
        windows_kl=found.kl.tolist(),
        windows_tax=(found.nats - ruler.reference_nats).tolist(),
    )


def fingerprint(subject: Subject, ruler: Ruler | None) -> str:
    """What all points of a folder have in common: the weights, the calibration and the text."""
    digest = hashlib.sha256()
    for name, tensor in subject.state.items():
        digest.update(name.encode() + tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    for name in sorted(subject.calibration or {}):
        digest.update(subject.moments(name).inputs.tobytes())
    if ruler:
        digest.update(ruler.rows.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def read_points(path: Path, origin: str) -> dict[Point, Measured]:
    """The points of an earlier run; a last line that was cut off is left out.

    Raises:
        CodecError: they are of another model or text.
        FormatError: a line is not what `run_plan` writes.
    """
    if not path.exists():
        return {}
    text = path.read_text()
    found = {}
    for line in text[: text.rfind("\n") + 1].splitlines():
        try:
            values = json.loads(line)
            if values.pop("origin") != origin:
                raise CodecError(
                    f"{path} holds points of another model, calibration or text; choose another folder for this run"
                )
            point = Point(**values.pop("point"))
            found[point] = Measured(point, **values)
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, CodecError):
                raise
            raise FormatError(f"{path}: not what underpar writes ({error!r}); choose another folder") from error
    if not text.endswith("\n"):
        path.write_text(text[: text.rfind("\n") + 1])
    return found


def _slow_first(point: Point) -> int:
    """Archivers and byte budgets take minutes; begun last, they would be waited for alone."""
    if point.kind == "peer":
        return 0 if "lrzip" in point.name or "zpaq" in point.name else 1 if "brotli" in point.name else 3
    return 2 if point.budget else 3


_subject: Subject  # of a worker


def _start_worker(model: Path) -> None:
    global _subject
    torch.set_num_threads(1)
    _subject = load_subject(model)


def _work(point: Point, folder: Path | None) -> Made | str:
    """Make a point in a worker; a failure as text, so that it costs no other point."""
    return _attempt(_subject, point, folder)


def _attempt(subject: Subject, point: Point, folder: Path | None) -> Made | str:
    try:
        made, state = make(subject, point)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if folder is None:
        return made
    path = folder / f"{hashlib.sha256(repr(point).encode()).hexdigest()}.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return replace(made, state=path)


def _made(
    model: Path, subject: Subject, todo: Sequence[Point], folder: Path | None, processes: int
) -> Iterator[tuple[Point, Made | str]]:
    """Points as they are made. Few are in flight beyond the workers, so that few files wait to be measured."""
    if processes == 1:
        for point in todo:
            yield point, _attempt(subject, point, folder)
        return
    waiting = list(reversed(todo))
    context = multiprocessing.get_context("spawn")  # a forked child cannot use its parent's CUDA
    with _one_thread_each(), ProcessPoolExecutor(processes, context, _start_worker, (model,)) as pool:
        flying: dict[Future[Made | str], Point] = {}
        while waiting or flying:
            while waiting and len(flying) < processes + 4:
                point = waiting.pop()
                flying[pool.submit(_work, point, folder)] = point
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                yield flying.pop(future), future.result()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Environment in which a child process uses one thread."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
