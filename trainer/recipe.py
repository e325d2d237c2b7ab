"""Recipes: everything that decides a training run, as TOML files with overrides from the command line."""

import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from codec.errors import FormatError
from codec.files import read_bytes
from codec.model.config import ModelConfig

RECIPES = Path(__file__).parent / "recipes"
"""The folder of the named recipes."""


RECIPE = "recipe.json"
"""The recipe of a run, in its folder."""


Mixture = tuple[tuple[str, float], ...]
"""Folders of token shards, and how often each is read while one of weight 1 is read once."""


@dataclass(frozen=True)
class DataRecipe:
    """The sources of tokens."""

    shards: str = "embedded"  # a folder of token shards; "embedded" is the sample that ships
    mixture: Mixture = ()  # folders to train on with weights, such as [["web", 2], ["books", 1]]; none: data.shards
    tokenizer: str = ""  # path of the SentencePiece model that made the shards; the sample brings its own
    seed: int = 0  # of the order in which training data is read
    late_shards: str = ""  # a folder of token shards of the same tokenizer, for the end of the run; "": none
    late_from: float = 0.8  # share of the run after which training reads late_shards


ORTHOGONAL = ("newton_schulz", "polar_express")
"""Ways to make an update orthogonal (`trainer.optim.orthogonal`)."""


@dataclass(frozen=True)
class OptimRecipe:
    """Optimizer settings; the defaults are the challenge's baseline."""

    matrix_lr: float = 0.04
    embed_lr: float = 0.05
    vector_lr: float = 0.04
    momentum: float = 0.95
    momentum_start: float = 0.85
    momentum_warmup: int = 500  # steps
    orthogonal: str = "newton_schulz"  # how Muon makes updates orthogonal, one of ORTHOGONAL
    level_rows: bool = False  # before that, all rows of an update are scaled to one length (MuonEq-R)
    weight_decay: float = 0.0  # of matrices
    embed_weight_decay: float = 0.0  # of embeddings and hash tables
    beta1: float = 0.9
    beta2: float = 0.95
    adam_eps: float = 1e-8
    grad_clip: float = 0.0  # greatest norm of all gradients together; 0: no limit


KERNELS = ("heads", "loss", "mlp", "xsa")
"""The kernels of `trainer.kernels` that a recipe may switch on: modules `heads`, `loss`, `mlp` and `xsa`."""

COMPILING = ("quick", "tuned", "searched")
"""The ways to compile on a GPU: without a search for faster kernels, with a minute's search among the compiler's own,
or with minutes more over kernels for matrix products."""

QAT = ("int8", "int6", "int5", "int4", "ternary", "binary", "grid3", "grid4")
"""Quantizers of quantization-aware training (`trainer.model.qat`)."""


Steps = tuple[tuple[float, int], ...]
"""Values over a run: pairs of a share of the run, ascending from 0, and the value from that share on."""


@dataclass(frozen=True)
class TrainRecipe:
    """Length, batch and bookkeeping of a run; the defaults are the challenge's baseline."""

    seed: int = 1337  # of the initial weights
    weights: str = ""  # a run folder, .safetensors file or pack with whose weights the run begins; "": initial ones
    batch_tokens: int = 524_288  # tokens a step, over all processes
    batch_schedule: Steps = ()  # tokens a step over the run, such as [[0, 262144], [0.2, 524288]]; none: batch_tokens
    window_schedule: Steps = ()  # tokens a row over the run, of which a whole number make a window; none: model.window
    micro_batches: int = 8  # parts of batch_tokens computed one after another, divided among the processes
    iterations: int = 20_000  # steps at most; 0: no cap
    seconds: float = 600.0  # wall-clock seconds of training at most, checkpoints included; 0: no cap
    reserved_seconds: float = 0.0  # part of `seconds` kept for the work after the last step, such as calibration
    fp8: bool = False  # the matrix products of blocks in 8 bits
    kernels: str = "heads loss xsa"  # on a GPU, the Triton kernels that replace the compiler's, of KERNELS
    compiling: str = "quick"  # on a GPU, one of COMPILING
    prime_steps: int = 20  # untimed steps on a GPU whose effect is undone: they compile
    warmup_steps: int = 0  # steps over which the learning rate rises
    warmdown_steps: int = 1200  # steps at the end over which the learning rate falls
    warmdown_fraction: float = 0.0  # or the share of the run over which the learning rate falls
    min_lr: float = 0.0  # share of the learning rate that is left at the end
    qk_gain: float = 1.5  # initial value of the query gains
    document_masks: bool = False  # attention stays within documents, in training and in validation
    loop_from: float = 0.0  # share of the run after which the model's loops run; before, each layer runs once
    ema_decay: float = 0.0  # of the moving average of the weights that is saved; 0: none
    swa_every: int = 0  # steps between the weights whose plain mean is saved; 0: none
    swa_fraction: float = 0.2  # the last share of the run, over which this mean is taken
    initial: str = "uniform"  # distribution of the initial matrices, one of INITIAL
    qat: str = ""  # the quantizer in the forward pass at the end of the run, one of QAT; "": none
    qat_fraction: float = 0.2  # the last share of the run with that quantizer; 1: all of the run
    qat_calibration: str = ""  # moments of a run of this model, for the steps of a grid; "": from the weights alone
    log_every: int = 200  # steps
    checkpoint_seconds: float = 60.0  # between resumable checkpoints; 0: none by time
    checkpoint_steps: int = 0  # between resumable checkpoints; 0: none by steps
    val_tokens: int = 0  # tokens of the validation shards that are scored after training


@dataclass(frozen=True)
class LearningRecipe:
    """A teacher, for text that is little and therefore read often; none by default.

    A student of the teacher's own size learns more from its probabilities and the text together than from the text
    alone (the NanoGPT Slowrun, 2026): 2.6 % of the bits per byte on recipe `proxy`, where a share of 0.6 was better
    than 0.8 (docs/results/training.md).
    """

    teacher: str = ""  # a run folder, .safetensors file or pack whose probabilities are learned besides the text
    teacher_share: float = 0.6  # share of the teacher in the loss


INITIAL = ("uniform", "orthogonal", "spectral")
"""Distributions of the initial matrices that do not start at 0 (`trainer.model.init`)."""


LENGTH = {
    "iterations",
    "seconds",
    "compiling",
    "kernels",
    "prime_steps",
    "log_every",
    "checkpoint_seconds",
    "checkpoint_steps",
    "val_tokens",
}
"""Entries of TrainRecipe that may change when a run is resumed."""


@dataclass(frozen=True)
class Recipe:
    """All settings of a training run.

    Raises:
        FormatError: settings that contradict each other.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataRecipe = field(default_factory=DataRecipe)
    optim: OptimRecipe = field(default_factory=OptimRecipe)
    train: TrainRecipe = field(default_factory=TrainRecipe)
    learning: LearningRecipe = field(default_factory=LearningRecipe)

    def __post_init__(self) -> None:
        train, window = self.train, self.model.window
        for section in (self.optim, self.train, self.learning):
            for name, value in asdict(section).items():
                if isinstance(value, int | float) and value < 0:
                    raise FormatError(f"recipe: {name} is {value}, expected 0 or more")
        if not train.iterations and not train.seconds:
            raise FormatError("recipe: train.iterations and train.seconds are both 0; set one of them to end the run")
        if train.warmdown_steps and train.warmdown_fraction:
            raise FormatError("recipe: train.warmdown_steps and train.warmdown_fraction are both set; leave one at 0")
        if train.batch_tokens % window or not train.batch_tokens:
            raise FormatError(
                f"recipe: train.batch_tokens is {train.batch_tokens}, expected a multiple of model.window {window}"
            )
        for name, unit in (("batch_schedule", window), ("window_schedule", 1)):
            check_steps(f"train.{name}", getattr(train, name), unit)
        for _, length in train.window_schedule:
            if window % length:
                raise FormatError(f"recipe: train.window_schedule has {length}, which does not divide {window}")
        for _, tokens in train.batch_schedule:
            if tokens * train.micro_batches % train.batch_tokens:
                raise FormatError(
                    f"recipe: train.batch_schedule has {tokens}, expected a multiple of a micro-batch, "
                    f"{train.batch_tokens} / {train.micro_batches} tokens"
                )
        if train.seconds and train.reserved_seconds >= train.seconds:
            raise FormatError(
                f"recipe: train.reserved_seconds is {train.reserved_seconds}, expected less than {train.seconds}"
            )
        if train.ema_decay and train.swa_every:
            raise FormatError("recipe: train.ema_decay and train.swa_every are both set; leave one at 0")
        for name in ("qat_fraction", "swa_fraction"):
            if not 0 < getattr(train, name) <= 1:
                raise FormatError(f"recipe: train.{name} is {getattr(train, name)}, expected above 0 and at most 1")
        if train.initial not in INITIAL:
            raise FormatError(f"recipe: train.initial is {train.initial!r}, expected one of {INITIAL}")
        if train.qat and train.qat not in QAT:
            raise FormatError(f'recipe: train.qat is {train.qat!r}, expected one of {QAT}, or "" for none')
        if self.optim.orthogonal not in ORTHOGONAL:
            raise FormatError(f"recipe: optim.orthogonal is {self.optim.orthogonal!r}, expected one of {ORTHOGONAL}")
        if unknown := sorted(set(train.kernels.split()) - set(KERNELS)):
            raise FormatError(f"recipe: train.kernels has {unknown}, expected some of {KERNELS}")
        if train.compiling not in COMPILING:
            raise FormatError(f"recipe: train.compiling is {train.compiling!r}, expected one of {COMPILING}")
        for name, share in (("train.loop_from", train.loop_from), ("data.late_from", self.data.late_from)):
            if not 0 <= share < 1:
                raise FormatError(f"recipe: {name} is {share}, expected a share of the run, less than 1")
        if self.learning.teacher_share > 1:
            raise FormatError(f"recipe: learning.teacher_share is {self.learning.teacher_share}, expected at most 1")
        if not train.log_every or not train.micro_batches:
            raise FormatError("recipe: train.log_every and train.micro_batches must be at least 1")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, for `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Recipe":
        """Make a recipe of plain values.

        Raises:
            FormatError: an unknown section or entry, or a value of another type.
        """
        known = ("model", "data", "optim", "train", "learning")
        if unknown := sorted(set(values) - set(known)):
            raise FormatError(f"recipe: unknown sections {unknown}, expected some of {sorted(known)}")
        for name, section in values.items():
            if not isinstance(section, dict):
                raise FormatError(f"recipe: {name} is {section!r}, expected a table [{name}]")
        return cls(
            ModelConfig.from_dict(values.get("model", {})),
            section_of(DataRecipe, "data", values.get("data", {})),
            section_of(OptimRecipe, "optim", values.get("optim", {})),
            section_of(TrainRecipe, "train", values.get("train", {})),
            section_of(LearningRecipe, "learning", values.get("learning", {})),
        )


def check_steps(name: str, steps: Steps, unit: int) -> None:
    """Check a schedule.

    Raises:
        FormatError: shares do not ascend from 0, or a value is not a multiple of `unit` above 0.
    """
    shares = [share for share, _ in steps]
    if steps and (shares[0] != 0 or shares != sorted(set(shares)) or shares[-1] >= 1):
        raise FormatError(f"recipe: {name} begins at {shares}, expected shares of the run that ascend from 0")
    for _, value in steps:
        if value < 1 or value % unit:
            raise FormatError(f"recipe: {name} has {value}, expected a multiple of {unit} above 0")


Section = TypeVar("Section", DataRecipe, OptimRecipe, TrainRecipe, LearningRecipe)


def section_of(kind: type[Section], section: str, values: dict[str, Any]) -> Section:
    """Make a section of the entries of a table.

    Args:
        kind: the class of the section.
        section: its name, for messages.
        values: entries by name.

    Raises:
        FormatError: an unknown or ill-typed entry.
    """
    types = {entry.name: type(entry.default) for entry in fields(kind)}
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if name not in types:
            raise FormatError(f"recipe: unknown entry {section}.{name}, expected one of {sorted(types)}")
        expected = types[name]
        if expected is float and type(value) is int:
            value = float(value)
        if expected is tuple:
            value = (mixture_of if name == "mixture" else steps_of)(f"{section}.{name}", value)
        if type(value) is not expected:
            raise FormatError(f"recipe: {section}.{name} is {value!r}, expected a value of type {expected.__name__}")
        checked[name] = value
    return kind(**checked)


def steps_of(name: str, value: Any) -> Steps:
    """Make `Steps` of lists.

    Raises:
        FormatError: `value` is no list of pairs of a share and a whole number.
    """
    if isinstance(value, list | tuple):
        pairs = [tuple(pair) if isinstance(pair, list | tuple) else () for pair in value]
        if all(len(pair) == 2 and type(pair[0]) in (int, float) and type(pair[1]) is int for pair in pairs):
            return tuple((float(share), size) for share, size in pairs)
    raise FormatError(f"recipe: {name} is {value!r}, expected pairs such as [[0, 1024], [0.5, 2048]]")


def mixture_of(name: str, value: Any) -> Mixture:
    """Make a `Mixture` of lists.

    Raises:
        FormatError: `value` is no list of pairs of a folder and a number above 0.
    """
    if isinstance(value, list | tuple):
        pairs = [tuple(pair) if isinstance(pair, list | tuple) else () for pair in value]
        if all(len(pair) == 2 and type(pair[0]) is str and type(pair[1]) in (int, float) for pair in pairs) and all(
            0 < weight < float("inf") for _, weight in pairs
        ):
            return tuple((folder, float(weight)) for folder, weight in pairs)
    raise FormatError(f'recipe: {name} is {value!r}, expected folders with weights above 0 such as [["web", 2]]')


def load_recipe(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """Load a recipe.

    Args:
        name: of a recipe that ships, such as `baseline`, or the path of a TOML file.
        overrides: entries to set, each like `model.window=256`.

    Raises:
        FormatError: no such recipe, not TOML, or an unknown or ill-typed entry.
    """
    shipped = {path.stem: path for path in sorted(RECIPES.glob("*.toml"))}
    path = shipped.get(name, Path(name))
    if name not in shipped and not path.is_file():
        raise FormatError(f"recipe {name}: neither a file nor one of {sorted(shipped)}")
    try:
        values = tomllib.loads(read_bytes(path, "recipe").decode())
    except ValueError as error:
        raise FormatError(f"recipe {path}: not TOML ({error})") from error
    for override in overrides:
        apply_override(values, override)
    return Recipe.from_dict(values)


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one entry of the nested `values` from `section.entry=value`; a value that is not TOML counts as text.

    Raises:
        FormatError: `override` has another form.
    """
    key, equals, text = override.partition("=")
    section, dot, entry = key.strip().partition(".")
    if not equals or not dot:
        raise FormatError(f"override {override!r}: expected section.entry=value, such as model.num_layers=4")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    values.setdefault(section, {})[entry] = value


def differences(saved: Recipe, wanted: Recipe) -> list[str]:
    """Return the entries that differ and that a resumed run may not change, as `section.entry: a -> b`."""
    found = []
    for section, old in saved.to_dict().items():
        new = wanted.to_dict()[section]
        for name, value in old.items():
            if value != new[name] and not (section == "train" and name in LENGTH):
                found.append(f"{section}.{name}: {value!r} -> {new[name]!r}")
    return found
