"""Ablations of weight codecs: a frozen plan of points, measured in parallel, stored line by line.

Workers quantize, write and read back. This process measures the restored weights, on a GPU if there is one, and appends
each point to `points.jsonl`, so that a stopped run can continue.
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
from codec.files import read_bytes
from codec.quantization.quantizers import Strategy
from codec.quantization.sensitivity import SensitivityGrid, unit_for
from codec.quantization.strategies import STRATEGIES
from eval.ablate.divergence import Ruler
from eval.ablate.peers import PEERS
from eval.ablate.subject import Subject, load_subject

POINTS = "points.jsonl"

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
"""Environment variables that limit a worker to one thread; the work is parallel by points."""

Kind = Literal["strategy", "peer", "pack"]


@dataclass(frozen=True)
class Point:
    """One file: a pack by a strategy, a peer's file (a peer is another project's weight codec), or a pack at hand.

    A strategy has a unit, or a rate in bits a weight that is met roughly, or a budget in bytes. A peer has a scale for
    all steps, and another on top for the embedding's. A pack at hand has a path, and a name of the caller's choice.
    """

    kind: Kind
    name: str
    unit: float | None = None
    rate: float | None = None
    budget: int | None = None
    scale: float | None = None
    embedding: float | None = None
    path: str | None = None

    @property
    def key(self) -> str:
        """Return a readable name that no other point has."""
        settings = {k: v for k, v in asdict(self).items() if k not in ("kind", "name") and v is not None}
        return " ".join(
            [self.name, *(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in settings.items())]
        )


@dataclass(frozen=True)
class Made:
    """A worker's result; the restored weights are in the file `state` if their divergence is to be measured."""

    bytes: int
    encode_seconds: float
    decode_seconds: float
    relative_error: float
    state: Path | None


@dataclass(frozen=True)
class Measured:
    """A finished point; sums by window are empty if the distortion is the relative error."""

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
        """Return the KL divergence if the model can be run, else the relative squared error."""
        return self.relative_error if self.kl is None else self.kl


@dataclass(frozen=True)
class Outcome:
    """Measured points in the plan's order, and the reasons for missing points, by key."""

    points: list[Measured]
    skipped: dict[str, str]  # for lack of a tool
    failed: dict[str, str]


def make_plan(
    strategies: Sequence[str],
    units: Sequence[float],
    rates: Sequence[float],
    budgets: Sequence[int],
    peers: Sequence[str],
    scales: Sequence[float],
    embeddings: Sequence[float],
    packs: Sequence[tuple[str, Path]] = (),
) -> tuple[Point, ...]:
    """Return every strategy at every unit, rate and budget, every peer at every scale and embedding's scale, and packs.

    A strategy without a unit, or a peer without steps, is one point. Packs of one name are points of one curve, which
    must not have the name of a strategy or a peer.

    Raises:
        CodecError: an unknown name, or settings out of range.
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
    if taken := [name for name, _ in packs if name in STRATEGIES or name in PEERS or not name]:
        raise CodecError(f"packs named {taken[0]!r}: expected a name that no strategy and no peer has")
    plan += [Point("pack", name, path=str(path)) for name, path in packs]
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
    began = time.perf_counter()
    if point.path is not None:
        blob = read_bytes(Path(point.path), "pack")
    elif point.budget is not None:
        blob = _pack(subject, budget=point.budget, strategy=STRATEGIES[point.name])
    else:
        strategy = STRATEGIES[point.name]
        unit = point.unit or unit_of_rate(subject, strategy, point.rate or 1.0)
        blob = _pack(subject, quantizer=strategy(unit))
    encoded = time.perf_counter()
    pack = codec.open(blob)
    if pack.config != subject.config:
        raise CodecError(f"{point.path}: a pack of another model")
    state = pack.state_dict()
    decoded = time.perf_counter()
    return Made(len(blob), encoded - began, decoded - encoded, subject.relative_error(state), None), state


def unit_of_rate(subject: Subject, strategy: Strategy, rate: float) -> float:
    """Return the unit at which a strategy's pack has about `rate` bits a weight."""
    one = strategy(1.0)
    if not isinstance(one, SensitivityGrid):
        return float(2.0 ** (8 * len(_pack(subject, quantizer=one)) / subject.parameters - rate))
    rates = []
    for name, weights in subject.matrices.items():
        rates.append((one.rates(subject.matrix(name)), weights.shape[1]))
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
    """Measure a plan's points, except those that `folder` has already.

    Args:
        model: a run folder or a `.safetensors` file, read once by every worker.
        plan: the points.
        folder: of the results.
        ruler: measures KL and bpb; None: only the relative squared error is measured.
        processes: workers; 1 works in this process.
        advance: called with 1 for every point.

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
                notes.print(f"{point.key}: {made}")
                continue
            done[point] = measure(point, made, ruler, subject.parameters)
            log.write(json.dumps({"origin": origin, **asdict(done[point])}) + "\n")
            log.flush()
    return Outcome([done[point] for point in plan if point in done], skipped, failed)


def measure(point: Point, made: Made, ruler: Ruler | None, parameters: int) -> Measured:
    """Measure a made point's distortion, and delete its file of weights."""
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
    """Return a hash of what all points of a folder share: the weights, the calibration and the text."""
    digest = hashlib.sha256()
    for name, tensor in subject.state.items():
        digest.update(name.encode() + tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    for name in sorted(subject.calibration or {}):
        digest.update(subject.moments(name).inputs.tobytes())
    if ruler:
        digest.update(ruler.rows.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def read_points(path: Path, origin: str) -> dict[Point, Measured]:
    """Read the points of an earlier run, without a truncated last line.

    Raises:
        CodecError: the points are of another model or text.
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
    """Return an order that begins points of archivers and byte budgets first: they take minutes."""
    if point.kind == "peer":
        return 0 if "lrzip" in point.name or "zpaq" in point.name else 1 if "brotli" in point.name else 3
    return 2 if point.budget else 3


_subject: Subject  # of a worker process


def _start_worker(model: Path) -> None:
    global _subject
    torch.set_num_threads(1)
    _subject = load_subject(model)


def _work(point: Point, folder: Path | None) -> Made | str:
    """Make a point in a worker; a failure is returned as text, so that the other points go on."""
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
    """Yield points as they are made; few are in flight beyond the workers, so that few files wait for measurement."""
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
    """Set the environment in which a child process uses one thread."""
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
