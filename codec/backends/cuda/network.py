"""Run the exact network on a GPU: Triton kernels with the constants of the reference model."""

import math
from dataclasses import dataclass, replace

import torch
import triton
from torch import Tensor

from codec.backends.cuda.constants import Columns, CudaLayer
from codec.backends.cuda.kernels.elementwise import (
    activate_kernel,
    launch,
    mixed_kernel,
    residual_kernel,
    rotate_kernel,
    turn_kernel,
    value_kernel,
)
from codec.backends.cuda.kernels.head import Head
from codec.backends.cuda.kernels.matmul import INPUTS, Limbs, limbs, multiply, padded
from codec.backends.cuda.kv_cache import ChunkCache, Chunks, Context, Heads, Sequences, strides
from codec.backends.cuda.recall import Memory, slot_bytes
from codec.backends.cuda.streams import side_by_side
from codec.exact.model import ExactModel
from codec.exact.recall import Recall
from codec.exact.weights import check_known
from codec.model.config import GATE_INPUTS, AnyConfig
from codec.numerics import tables


@dataclass(frozen=True)
class _Product:
    """A matrix product that is still to be added to the residual stream."""

    integers: Tensor
    matrix: Limbs
    steps: Tensor
    scale: Tensor


@dataclass(frozen=True)
class _Skip:
    """A skip connection: an output of the first half that an execution of the second half adds.

    `stream` is None for the last output of the first half, which is the residual stream itself.
    """

    stream: Tensor | None
    weights: Tensor
    gates: Tensor | None


@dataclass(frozen=True)
class _Pending:
    """The operations on the residual stream before the next norm, in this order."""

    product: _Product | None = None
    saved: Tensor | None = None  # buffer for the stream, filled in
    skip: _Skip | None = None
    first: Tensor | None = None
    mix: Tensor | None = None


@dataclass(frozen=True)
class _Rows:
    """Normalised rows as operands of matrices, and the rows' first integers for gates."""

    operands: Tensor  # int8 [matrices, 2, N, K], padded
    steps: Tensor  # float64 [matrices, N]
    lead: Tensor  # float64 [N, GATE_INPUTS]
    lead_steps: Tensor  # float64 [N]


class CudaNetwork:
    """A model's constants on a GPU, and the kernels that run rows of tokens.

    Raises:
        UnsupportedError: the kernels do not compute the model's options or integers.
    """

    def __init__(self, model: ExactModel, recall: Recall | None = None):
        check_known(model.config)
        c = model.config
        self.config: AnyConfig = c
        self.device, self._model, self._recall = model.device, model, recall
        self.heads = Heads(c, max(32, triton.next_power_of_2(c.head_dim)), self.device)
        self.memory_bytes = (
            slot_bytes(c.model_dim, c.vocab_size) if recall else 0
        )  # bytes of each decoding slot, beside its pages
        self._head_norm = self._tensor(1.0 / c.head_dim)
        self._final_norm = self._tensor(1.0, 1.0 / c.model_dim)
        self.head_matrix, self._head_columns = limbs(model.head), Columns.of(model.head, bare=recall is not None)
        self.head = Head(c, self.head_matrix.rows, model.softcap)
        self._layers = [CudaLayer.of(layer) for layer in model.layers]
        self._first = None
        if model.starts_alone:
            tokens = torch.arange(c.vocab_size, device=self.device)[:, None]
            self._first = model.start(tokens, tokens, torch.zeros_like(tokens))[:, 0].contiguous()

    def _tensor(self, *values: float) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self.device)

    def start(self, tokens: Tensor, previous: Tensor | None, positions: Tensor) -> Tensor:
        """Compute the residual stream before the first block, float64 [N, dim]; see `ExactModel.start`."""
        if self._first is not None:
            return self._first[tokens.flatten()]
        return self._model.start(tokens, previous, positions).flatten(0, 1)

    def run(self, first: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Run rows of tokens through the network.

        Args:
            first: float64 [N, dim], the residual stream before the first block.
            context: the keys and values that the rows write and see.

        Returns:
            The head's operand and, with a match model, the hidden states: int8 [1 or 2, 2, N, K], padded, and their
            steps float64 [1 or 2, N].
        """
        half = self._model.config.encoder_length
        x, skips, pending = first, [], _Pending()
        turn = self._rotations_of(self._model.turns, context.positions)
        for n, i in enumerate(self._model.config.schedule):
            layer = self._layers[i]
            pending = replace(pending, first=first, mix=layer.residual_mix)
            if 0 < n < half:
                skips.append(torch.empty_like(first))
                pending = replace(pending, saved=skips[-1])
            if half <= n < 2 * half:
                pending = replace(pending, skip=self._skip(n - half, skips))
            x, rows = self._residual(x, pending, layer.norm, layer.columns)
            operand, steps = self._mixed(layer, rows, *self._attention(layer, rows, turn, context, n))
            product = _Product(
                multiply(operand, layer.attention_out), layer.attention_out, steps, layer.attention_scale
            )
            x, mixed = self._residual(x, _Pending(product), layer.norm, layer.up_columns)
            seen, at = (rows, 3) if layer.parallel else (mixed, 0)
            operand, steps = self._activate(layer, len(x), multiply(seen.operands[at], layer.up), seen.steps[at])
            pending = _Pending(_Product(multiply(operand, layer.down), layer.down, steps, layer.mlp_scale))
        _, rows = self._residual(x, pending, self._final_norm, self._head_columns)
        return rows.operands, rows.steps

    def _skip(self, j: int, skips: list[Tensor]) -> _Skip:
        """Return the skip connection of execution j of the second half."""
        gates = self._model.skip_gates[j] if self._model.config.skips == "gated" else None
        return _Skip(skips.pop() if j else None, self._model.skip_weights[j], gates)

    def _residual(self, x: Tensor, pending: _Pending, norm: Tensor, columns: Columns) -> tuple[Tensor, _Rows]:
        """Apply the pending operations to the stream; return the stream float64 [N, dim] and its normalised rows."""
        (rows, dim), matrices = x.shape, len(columns.steps)
        count, width = padded(rows), padded(dim, INPUTS)
        out = torch.empty_like(x)
        found = _Rows(
            torch.empty(matrices, 2, count, width, dtype=torch.int8, device=x.device),
            torch.empty(matrices, count, dtype=torch.float64, device=x.device),
            torch.empty(rows, GATE_INPUTS, dtype=torch.float64, device=x.device),
            torch.empty(rows, dtype=torch.float64, device=x.device),
        )
        y, skip, none = pending.product, pending.skip, x  # `none` stands for tensors that the kernel does not read
        product = (none, none, none, none, 0)
        if y is not None:
            product = (y.integers, y.matrix.rows, y.steps, y.scale, y.integers.shape[1])
        taken = (none, none, none) if skip is None else (skip.stream, skip.weights, skip.gates)
        given = (pending.saved, *taken, pending.first, pending.mix)
        launch(
            residual_kernel, (rows,), x, out, *product, *(none if t is None else t for t in given), norm,
            columns.steps, found.operands, found.steps, found.lead, found.lead_steps, count, dim, width,
            UPDATE=y is not None, SAVE=pending.saved is not None,
            SKIP=0 if skip is None else 1 if skip.gates is None else 2, OWN=skip is not None and skip.stream is None,
            MIX=pending.mix is not None, MATRICES=matrices, COLUMNS=columns.mask,
            BLOCK=triton.next_power_of_2(dim), num_warps=4,
        )  # fmt: skip
        return out, found

    def _rotations_of(self, turns: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Compute cosines and sines float64 [N, pairs] of positions [N]."""
        cos, sin = torch.empty(2, len(positions), turns.shape[2], dtype=torch.float64, device=self.device)
        launch(
            turn_kernel, (len(positions),), turns, positions, cos, sin,
            turns.shape[1] - tables.TURN_LEVELS * tables.TURN_DIGITS, turns.shape[1], PAIRS=turns.shape[2],
            DIGITS=tables.TURN_DIGITS, LEVELS=tables.TURN_LEVELS, BLOCK=triton.next_power_of_2(turns.shape[2]),
            num_warps=1,
        )  # fmt: skip
        return cos, sin

    def _attention(
        self, layer: CudaLayer, rows: _Rows, turn: tuple[Tensor, Tensor], context: Context, n: int
    ) -> tuple[Tensor, Tensor]:
        """Compute the outputs of attention, float64 [N, dim], and the rows' own values, int16 [N, kv_dim]."""
        c, count = self._model.config, len(context.rows)
        keys, _ = context.store(n)
        queries = torch.empty(2, count, c.num_heads, self.heads.padded, dtype=torch.int8, device=self.device)
        own = torch.empty(count, c.kv_dim, dtype=torch.int16, device=self.device)
        at = context.places
        side_by_side(
            lambda: self._rotate(rows, 0, layer.query, turn, queries, context.rows, at),
            lambda: self._rotate(rows, 1, layer.key, turn, keys, context.slots, at),
            lambda: self._value(layer, rows, context, n, own),
        )
        return context.attend(n, queries, layer.score_scale), own

    def _value(self, layer: CudaLayer, rows: _Rows, context: Context, n: int, own: Tensor) -> None:
        """Store the rows' values of execution `n` in `context`, and in `own`, int16 [N, kv_dim]."""
        c, (_, values) = self._model.config, context.store(n)
        products = multiply(rows.operands[2], layer.value)
        launch(
            value_kernel, (len(own) // context.run, c.num_kv_heads), products, layer.value.rows, products,
            rows.steps[2], products.shape[1], context.places, context.slots, layer.value_scale, own, values,
            *values.stride()[:3],
            HEADS=c.num_kv_heads, HEAD_DIM=c.head_dim, BIAS=False, RUN=context.run, BLOCK=self.heads.padded,
            TOGETHER=values.shape[-1], num_warps=4,
        )  # fmt: skip

    def _rotate(
        self, rows: _Rows, at: int, matrix: Limbs, turn: tuple[Tensor, Tensor], out: Tensor, slots: Tensor,
        places: Tensor,
    ) -> None:  # fmt: skip
        """Store queries or keys in `out`, int8 [2, slots, heads, D] or [2, slots, heads, places, D]."""
        c, products = self._model.config, multiply(rows.operands[at], matrix)
        heads, (slot, head, place) = out.shape[2], strides(out)
        block = triton.next_power_of_2(heads)
        launch(
            rotate_kernel, (len(slots),), products, matrix.rows, rows.steps[at], products.shape[1], places, slots,
            *turn, self._head_norm, out, out.stride(0), slot, head, place, HEADS=heads,
            HEAD_DIM=c.head_dim, HALF=c.rotary_dims // 2, FRACTION=math.ldexp(1.0, self._model.query_fraction),
            HEAD_BLOCK=block, BLOCK=self.heads.padded, num_warps=max(1, block // 4),
        )  # fmt: skip

    def _mixed(self, layer: CudaLayer, rows: _Rows, mixed: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        c, count, matrix = self._model.config, len(mixed), layer.attention_out
        gate = (mixed, mixed, mixed)  # placeholders that the kernel does not read
        if layer.gate is not None:
            gate = (layer.gate.linear.integers, layer.gate.linear.rows, layer.gate.table)
        operand = torch.empty(2, padded(count), matrix.inputs, dtype=torch.int8, device=self.device)
        steps = torch.empty(padded(count), dtype=torch.float64, device=self.device)
        launch(
            mixed_kernel, (count,), mixed, own, rows.lead, rows.lead_steps, *gate, layer.value_step,
            mixed if matrix.columns is None else matrix.columns, operand, steps, padded(count), matrix.inputs,
            GROUP=c.num_heads // c.num_kv_heads, HEADS=c.num_heads, HEAD_DIM=c.head_dim, XSA=layer.xsa,
            GATED=layer.gate is not None, COLUMNS=matrix.columns is not None,
            HEAD_BLOCK=triton.next_power_of_2(c.num_heads), BLOCK=triton.next_power_of_2(c.head_dim), num_warps=4,
        )  # fmt: skip
        return operand, steps

    def _activate(self, layer: CudaLayer, rows: int, products: Tensor, up_steps: Tensor) -> tuple[Tensor, Tensor]:
        c, count, matrix = self._model.config, len(products), layer.down
        hidden = c.mlp_mult * c.model_dim
        operand = torch.empty(matrix.operand_limbs, count, matrix.inputs, dtype=torch.int8, device=self.device)
        steps = torch.empty(count, dtype=torch.float64, device=self.device)
        launch(
            activate_kernel, (rows,), products, layer.up.rows, up_steps, products.shape[1],
            products if matrix.columns is None else matrix.columns, operand, steps, count, hidden, matrix.inputs,
            LEAKY=c.activation == "leaky_relu2", COLUMNS=matrix.columns is not None,
            BLOCK=triton.next_power_of_2(hidden), num_warps=8,
        )  # fmt: skip
        return operand, steps

    def products(self, operand: Tensor) -> Tensor:
        """Multiply the head's operand (`run`) with the head's matrix: integers [N, V], padded, for `head`."""
        return multiply(operand, self.head_matrix)

    @torch.inference_mode()
    def run_sequences(self, tokens: Tensor, begins: Tensor) -> tuple[Tensor, Tensor]:
        """Run whole sequences, int64 [N], laid out as `codec.backends.cuda.sequences.Layout`; see `run`."""
        context = Sequences(self.heads, begins)
        return self.run(self.start(tokens[None], None, context.positions[None]), context)

    @torch.inference_mode()
    def run_chunks(self, tokens: Tensor, past: ChunkCache) -> tuple[Tensor, Tensor]:
        """Run the next chunks of documents; see `run`.

        Args:
            tokens: int64 [B, T], T a multiple of POSITIONS.
            past: the KV cache of the chunks before. The first B documents are those of the tokens; their chunks are
                added.
        """
        batch, length = tokens.shape
        context, previous = Chunks(self.heads, batch, length, past), past.last[:batch] if past.length else None
        past.last, past.length = tokens[:, -1:], past.length + length
        return self.run(self.start(tokens, previous, context.positions.view(batch, length)), context)

    def new_memory(self, slots: int, fresh: int, rows: int, tokens: int = 1 << 62) -> Memory | None:
        """Create the match model's memory, None without a match model; arguments as of `recall.Memory`."""
        c = self.config
        if not self._recall:
            return None
        return Memory(self._recall, slots, c.model_dim, c.vocab_size, fresh, rows, self.device, tokens)
