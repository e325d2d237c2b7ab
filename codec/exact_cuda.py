"""The exact model on a GPU: Triton kernels with a model's constants, as a `codec.backend.Backend`.

It is built from the reference model, whose constants it shares, and compared with it before it is used.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

from codec import tables
from codec.backend import Integers
from codec.cuda_attention import POSITIONS, attend_rows, attend_step
from codec.cuda_head import Head
from codec.cuda_matmul import INPUTS, Limbs, limbs, multiply, padded
from codec.cuda_rows import activate_kernel, launch, mixed_kernel, residual_kernel, rotate_kernel, value_kernel
from codec.exact import OPERAND, ExactModel
from codec.tokenizer import BOS

_HEAD_ROWS = 8192  # rows of logits at once
_SCORE_BITS = 28  # of a product of a query and a key


Skip = tuple[Tensor | None, Tensor | None, Tensor | None]
"""What a skip takes up, its weights, and its gates where it has any."""


class Context(Protocol):
    """Where keys and values are kept, and who may see them. Tensors as of `codec.cuda_attention`."""

    rows: Tensor  # int64 [N], 0 to N - 1
    positions: Tensor  # int64 [N]
    slots: Tensor  # int64 [N]

    def store(self, execution: int) -> tuple[Tensor, Tensor]:
        """Keys int8 [2, slots, kv_heads, window, D] and values [2, slots, kv_heads, D, window] to be filled in."""

    def attend(self, execution: int, queries: Tensor, scales: Tensor) -> Tensor:
        """What the queries int8 [2, N, heads, D] mix of them, float64 [N, dim]."""


@dataclass(frozen=True)
class _Layer:
    query: Limbs
    key: Limbs
    value: Limbs
    attention_out: Limbs
    up: Limbs
    down: Limbs
    columns: Tensor  # float64 [3, dim]: of query, key and value, read where they have any
    score_scale: Tensor  # float64 [heads]
    value_scale: Tensor  # float64 [kv_heads]
    value_step: Tensor
    attention_scale: Tensor  # float64 [dim]
    mlp_scale: Tensor
    residual_mix: Tensor  # float64 [2, dim]
    norm: Tensor  # float64 [2]
    xsa: bool


@dataclass(frozen=True)
class _Product:
    """A matrix product on its way into the residual stream."""

    integers: Tensor
    matrix: Limbs
    steps: Tensor
    scale: Tensor


class CudaModel:
    """A model on a GPU, as a `codec.backend.Backend`.

    Raises:
        OverflowError: integers or scores beyond what the kernels hold; no trained model comes near.
    """

    def __init__(self, model: ExactModel):
        c = self.config = model.config
        self.device, self._model = model.device, model
        self.fractions = torch.from_numpy(tables.octave()).to(self.device)
        self.head_dim = max(32, triton.next_power_of_2(c.head_dim))  # padded
        self._head_norm = self._tensor(1.0 / c.head_dim)
        self._final_norm = self._tensor(1.0, 1.0 / c.model_dim)
        self.head_matrix = limbs(model.head)
        self.head = Head(model.softcap, self.fractions, c.vocab_size)
        layers = {id(layer): self._layer(layer) for layer in model.layers}
        self._layers = [layers[id(layer)] for layer in model.layers]
        self._first = None
        if model.starts_alone:
            tokens = torch.arange(c.vocab_size, device=self.device)[:, None]
            self._first = model.start(tokens, tokens, torch.zeros_like(tokens))[:, 0].contiguous()
        self._window = padded(c.window, POSITIONS)
        beyond = (0, 0, 0, self._window - c.window)  # angles of padding, which nothing sees
        self._cos, self._sin = (torch.nn.functional.pad(t, beyond) for t in (model.cos, model.sin))
        self.lane_bytes = 4 * len(c.schedule) * c.num_kv_heads * self.head_dim * self._window

    def _tensor(self, *values: float) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self.device)

    def _layer(self, layer) -> _Layer:
        c = self.config
        inputs = (layer.query, layer.key, layer.value)
        ones = torch.ones(c.model_dim, dtype=torch.float64, device=self.device)
        scores = layer.score_scale.reshape(-1).contiguous()
        if float(scores.abs().max()) * 2.0 ** (_SCORE_BITS + 1) >= 1 << 30:
            raise OverflowError("query gains beyond the levels of scores")
        return _Layer(
            query=limbs(layer.query),
            key=limbs(layer.key),
            value=limbs(layer.value),
            attention_out=limbs(layer.attention_out),
            up=limbs(layer.up),
            down=limbs(layer.down, OPERAND * OPERAND),
            columns=torch.stack([ones if linear.columns is None else linear.columns for linear in inputs]),
            score_scale=scores,
            value_scale=(1 / layer.value_step).reshape(-1).contiguous(),
            value_step=layer.value_step.reshape(-1).contiguous(),
            attention_scale=layer.attention_scale,
            mlp_scale=layer.mlp_scale,
            residual_mix=layer.residual_mix.contiguous(),
            norm=self._tensor(layer.norm_scale, 1.0 / c.model_dim),
            xsa=layer.xsa,
        )

    def start(self, tokens: Tensor, previous: Tensor | None, positions: Tensor) -> Tensor:
        """The residual stream before the first block, float64 [N, dim], of tokens [B, T]; see `ExactModel.start`."""
        if self._first is not None:
            return self._first[tokens.flatten()]
        return self._model.start(tokens, previous, positions).flatten(0, 1)

    def run(self, first: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """The head's operand int8 [2, N, K, padded] and its steps float64 [N], of rows `first` [N, dim]."""
        c = self.config
        x, skips, product = first, [], None
        for n, i in enumerate(c.schedule):
            layer = self._layers[i]
            saved = torch.empty_like(first) if 0 < n <= c.encoder_length else None
            if saved is not None:
                skips.append(saved)
            skip = n - c.encoder_length if n >= c.encoder_length and skips else None
            x, operands, steps = self._residual(x, product, layer, first, saved, skip, skips)
            mixed, own = self._attention(layer, operands, steps, context, n)
            operand, step = self._mixed(layer, mixed, own)
            product = _Product(multiply(operand, layer.attention_out), layer.attention_out, step, layer.attention_scale)
            x, operands, steps = self._norm(x, product, layer.norm, layer.up.columns)
            operand, step = self._activate(layer, len(x), multiply(operands[0], layer.up), steps[0])
            product = _Product(multiply(operand, layer.down), layer.down, step, layer.mlp_scale)
        _, operands, steps = self._norm(x, product, self._final_norm, self.head_matrix.columns)
        return operands[0], steps[0]

    def _residual(self, x, product, layer, first, saved, skip, skips):
        """The stream with what is pending, skips and the residual mix, and the operands of queries, keys and values."""
        has = [m.columns is not None for m in (layer.query, layer.key, layer.value)]
        count = 3 if any(has) else 1
        mask = sum(1 << i for i in range(3) if has[i])
        taken: Skip = (None, None, None)
        if skip is not None:
            gates = self._model.skip_gates[skip] if self.config.skips == "gated" else None
            taken = (skips.pop(), self._model.skip_weights[skip], gates)
        return self._launch_residual(
            x, product, layer.norm, count, mask, layer.columns, saved, taken, (first, layer.residual_mix)
        )

    def _norm(self, x, product, norm, columns):
        return self._launch_residual(x, product, norm, 1, int(columns is not None), columns, None, (None,) * 3, None)

    def _launch_residual(self, x, product, norm, operands, mask, columns, saved, taken, mix):
        rows, dim = x.shape
        count, width = padded(rows), padded(dim, INPUTS)
        out = torch.empty_like(x)
        limbs_out = torch.empty(operands, 2, count, width, dtype=torch.int8, device=x.device)
        steps = torch.empty(operands, count, dtype=torch.float64, device=x.device)
        skip, weight, gate = (x if t is None else t for t in taken)
        first, residual_mix = mix or (x, x)
        y = product or _Product(x, self.head_matrix, steps, x)
        launch(
            residual_kernel, (rows,), x, out, y.integers, y.matrix.rows, y.steps, y.scale, y.integers.shape[1],
            x if saved is None else saved, skip, weight, gate, first, residual_mix, norm,
            x if columns is None else columns, limbs_out, steps, count, dim, width, UPDATE=product is not None,
            SAVE=saved is not None, SKIP=0 if taken[0] is None else 1 if taken[2] is None else 2, MIX=mix is not None,
            OPERANDS=operands, COLUMNS=mask, BLOCK=triton.next_power_of_2(dim), num_warps=4,
        )  # fmt: skip
        return out, limbs_out, steps

    def _attention(self, layer: _Layer, operands: Tensor, steps: Tensor, context: Context, n: int):
        """What attention mixes, float64 [N, dim], and the rows' own values, int16 [N, kv_dim]."""
        c, rows, last = self.config, len(context.positions), len(operands) - 1
        query, key, value = (
            (multiply(operands[min(i, last)], m), m, steps[min(i, last)])
            for i, m in enumerate((layer.query, layer.key, layer.value))
        )
        queries = torch.empty(2, rows, c.num_heads, self.head_dim, dtype=torch.int8, device=self.device)
        keys, values = context.store(n)
        self._rotate(query, queries, context, c.num_heads, (1, 0, 2))
        self._rotate(key, keys, context, c.num_kv_heads, (1, 3, 2))
        own = torch.empty(rows, c.kv_dim, dtype=torch.int16, device=self.device)
        launch(
            value_kernel, (rows,), value[0], value[1].rows, value[2], value[0].shape[1], context.positions,
            context.slots, layer.value_scale, own, values, values.stride(0), values.stride(1), values.stride(2),
            values.stride(3), HEADS=c.num_kv_heads, HEAD_DIM=c.head_dim,
            HEAD_BLOCK=triton.next_power_of_2(c.num_kv_heads), BLOCK=self.head_dim, num_warps=4,
        )  # fmt: skip
        return context.attend(n, queries, layer.score_scale), own

    def _rotate(self, product, out: Tensor, context: Context, heads: int, axes: tuple[int, int, int]) -> None:
        c, (integers, matrix, steps) = self.config, product
        slot, position, head = (out.stride(axis) for axis in axes)
        is_query = axes[1] == 0
        launch(
            rotate_kernel, (len(context.positions),), integers, matrix.rows, steps, integers.shape[1],
            context.positions, context.rows if is_query else context.slots, self._cos, self._sin,
            self._head_norm, out, out.stride(0), slot, head, 0 if is_query else position, HEADS=heads,
            HEAD_DIM=c.head_dim, HALF=c.rotary_dims // 2, FRACTION=2.0**self._model.query_fraction,
            HEAD_BLOCK=triton.next_power_of_2(heads), BLOCK=self.head_dim, num_warps=4,
        )  # fmt: skip

    def _mixed(self, layer: _Layer, mixed: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        c, rows, matrix = self.config, len(mixed), layer.attention_out
        count, width = padded(rows), matrix.inputs
        operand = torch.empty(2, count, width, dtype=torch.int8, device=self.device)
        steps = torch.empty(count, dtype=torch.float64, device=self.device)
        launch(
            mixed_kernel, (rows,), mixed, own, layer.value_step, mixed if matrix.columns is None else matrix.columns,
            operand, steps, count, width, GROUP=c.num_heads // c.num_kv_heads, HEADS=c.num_heads, HEAD_DIM=c.head_dim,
            XSA=layer.xsa, COLUMNS=matrix.columns is not None, HEAD_BLOCK=triton.next_power_of_2(c.num_heads),
            BLOCK=triton.next_power_of_2(c.head_dim), num_warps=4,
        )  # fmt: skip
        return operand, steps

    def _activate(self, layer: _Layer, rows: int, products: Tensor, up_steps: Tensor) -> tuple[Tensor, Tensor]:
        c, count, matrix = self.config, len(products), layer.down
        hidden = c.mlp_mult * c.model_dim
        operand = torch.empty(matrix.operand_limbs, count, matrix.inputs, dtype=torch.int8, device=self.device)
        steps = torch.empty(count, dtype=torch.float64, device=self.device)
        launch(
            activate_kernel, (rows,), products, layer.up.rows, up_steps, products.shape[1],
            products if matrix.columns is None else matrix.columns, operand, steps, count, hidden, matrix.inputs,
            LEAKY=c.activation == "leaky_relu2", COLUMNS=matrix.columns is not None,
            BLOCK=triton.next_power_of_2(hidden), num_warps=4,
        )  # fmt: skip
        return operand, steps

    def products(self, operand: Tensor) -> Tensor:
        """The head's products, integers [N, V, padded], of its operand; for `head`, with the steps of `run`."""
        return multiply(operand, self.head_matrix)

    def memory(self, documents: int) -> None:
        """See `codec.backend.Backend`: there is no recall."""

    def score(
        self, inputs: Sequence[Integers], targets: Sequence[Integers], memory: None = None
    ) -> NDArray[np.float64]:
        """See `codec.backend.Backend`."""
        length = padded(max(map(len, inputs)), POSITIONS)
        tokens = np.full((len(inputs), length), BOS)
        for row, window in enumerate(inputs):
            tokens[row, : len(window)] = window
        ends = [row * length + len(window) for row, window in enumerate(inputs)]
        rows = np.concatenate([np.arange(end - len(t), end) for end, t in zip(ends, targets, strict=True)])
        wanted = torch.from_numpy(np.stack((rows, np.concatenate(targets)))).to(self.device)
        operand, steps = self.forward(torch.from_numpy(tokens).to(self.device))
        out = torch.empty(3, len(rows), dtype=torch.float64, device=self.device)
        for at in range(0, len(rows), _HEAD_ROWS):
            index, symbols = wanted[:, at : at + _HEAD_ROWS]
            part = operand.new_empty(len(operand), padded(len(index)), operand.shape[2])
            part[:, : len(index)] = operand[:, index]
            found = self.head.intervals(self.products(part), self.head_matrix.rows, steps[index], symbols)
            for n, values in enumerate(found):
                out[n, at : at + len(index)] = values
        return out.cpu().numpy()

    @torch.inference_mode()
    def forward(
        self, tokens: Tensor, cache: "Cache | None" = None, slots: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`run` on whole sequences int64 [B, T], T a multiple of POSITIONS; into `slots` of a cache if one is given."""
        batch, length = tokens.shape
        context = Sequences(self, batch, length, cache, slots)
        positions = context.positions.view(tokens.shape)
        return self.run(self.start(tokens, None, positions), context)

    def new_cache(self, slots: int) -> "Cache":
        """Room for keys and values of so many sequences as long as the window."""
        c = self.config
        shape = (2, slots, c.num_kv_heads)

        def tensors(*rest: int) -> list[Tensor]:
            return [torch.zeros(*shape, *rest, dtype=torch.int8, device=self.device) for _ in c.schedule]

        return Cache(tensors(self._window, self.head_dim), tensors(self.head_dim, self._window))


@dataclass(frozen=True)
class Cache:
    """Keys int8 [2, slots, kv_heads, window, D] and values [2, slots, kv_heads, D, window] of each execution."""

    keys: list[Tensor]
    values: list[Tensor]


class Sequences:
    """Whole sequences that see themselves, a `Context`."""

    def __init__(self, model: CudaModel, batch: int, length: int, cache: Cache | None, slots: Tensor | None):
        c, device = model.config, model.device
        self._model, self._shape, self._cache, self._into = model, (batch, length), cache, slots
        self.rows = torch.arange(batch * length, device=device)
        self.positions = self.rows % length
        self.slots = torch.div(self.rows, length, rounding_mode="floor")
        shape = (2, batch, c.num_kv_heads)
        self._keys = torch.empty(*shape, length, model.head_dim, dtype=torch.int8, device=device)
        self._values = torch.empty(*shape, model.head_dim, length, dtype=torch.int8, device=device)

    def store(self, execution: int) -> tuple[Tensor, Tensor]:
        """See `Context`."""
        return self._keys, self._values

    def attend(self, execution: int, queries: Tensor, scales: Tensor) -> Tensor:
        """See `Context`."""
        batch, length = self._shape
        if self._cache is not None:
            self._cache.keys[execution][:, self._into, :, :length] = self._keys
            self._cache.values[execution][:, self._into, :, :, :length] = self._values
        queries = queries.view(2, batch, length, *queries.shape[2:])
        c = self._model.config
        return attend_rows(queries, self._keys, self._values, scales, self._model.fractions, c.head_dim)


class Steps:
    """One token of each lane, which sees what its slot of a cache holds; a `Context`."""

    def __init__(self, model: CudaModel, cache: Cache, positions: Tensor, slots: Tensor):
        self._model, self._cache, self.positions, self.slots = model, cache, positions, slots
        self.rows = torch.arange(len(slots), device=slots.device)

    def store(self, execution: int) -> tuple[Tensor, Tensor]:
        """See `Context`."""
        return self._cache.keys[execution], self._cache.values[execution]

    def attend(self, execution: int, queries: Tensor, scales: Tensor) -> Tensor:
        """See `Context`."""
        keys, values = self.store(execution)
        m = self._model
        return attend_step(queries, keys, values, self.positions, self.slots, scales, m.fractions, m.config.head_dim)
