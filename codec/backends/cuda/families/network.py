"""A model of an open family on a GPU: its constants, and the kernels that run rows of tokens."""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from codec.backends.cuda.backend import CudaBackend
from codec.backends.cuda.families.kernels import activation_kernel, heads_kernel, stream_kernel
from codec.backends.cuda.kernels.elementwise import launch, mixed_kernel, value_kernel
from codec.backends.cuda.kernels.head import Head
from codec.backends.cuda.kernels.matmul import INPUTS, Limbs, limbs, multiply, padded
from codec.backends.cuda.kv_cache import Context, Heads, strides
from codec.backends.cuda.recall import slot_bytes
from codec.backends.cuda.streams import side_by_side
from codec.exact.families.transformer import Biased, ExactLayer, ExactTransformer
from codec.exact.recall import Recall


@dataclass(frozen=True)
class _Matrix:
    """A matrix for `multiply`, and what is added to its products."""

    limbs: Limbs
    bias: Tensor | None


@dataclass(frozen=True)
class _Layer:
    """A layer's constants."""

    query: _Matrix
    key: _Matrix
    value: _Matrix
    attention_out: _Matrix
    up: _Matrix
    down: _Matrix
    columns: Tensor  # float64 [3, dim] of query, key and value
    up_columns: Tensor  # float64 [1, dim]
    exact: ExactLayer
    value_scale: Tensor  # float64 [kv_heads]
    value_step: Tensor  # float64 [kv_heads]


@dataclass(frozen=True)
class _Product:
    """A matrix product on its way into the residual stream."""

    integers: Tensor
    matrix: _Matrix
    steps: Tensor


@dataclass(frozen=True)
class _Rows:
    """Normalised rows as operands of matrices: int8 [matrices, 2, N, K], padded, and steps float64 [matrices, N]."""

    operands: Tensor
    steps: Tensor


def _matrix(source: Biased) -> _Matrix:
    return _Matrix(limbs(source.linear), source.bias)


def _columns(*sources: Biased) -> Tensor:
    return torch.stack([source.linear.columns for source in sources if source.linear.columns is not None])


def _layer(layer: ExactLayer) -> _Layer:
    scale = layer.value_scale[:, 0].contiguous()
    names = ("query", "key", "value", "attention_out", "up", "down")
    return _Layer(
        **{name: _matrix(getattr(layer, name)) for name in names},
        columns=_columns(layer.query, layer.key, layer.value),
        up_columns=_columns(layer.up),
        exact=layer,
        value_scale=scale,
        value_step=1 / scale,
    )


class CudaTransformer(CudaBackend):
    """Run a model of an open family, as a `codec.exact.backend.Backend`.

    Raises:
        UnsupportedError: integers that the kernels do not know.
    """

    def __init__(self, model: ExactTransformer, recall: Recall | None = None):
        c = model.config
        self.config, self.device, self._recall, self._exact = c, model.device, recall, model
        self.heads = Heads(c, max(32, triton.next_power_of_2(c.head_dim)), self.device)
        self.memory_bytes = slot_bytes(c.model_dim, c.vocab_size) if recall else 0
        self._norm = self._tensor(1.0 / c.model_dim, c.norm_epsilon, float(c.model_dim))
        self._head_norm = self._tensor(1.0 / c.head_dim, c.norm_epsilon, model.score_unit)
        self.head_matrix, self._last_columns = limbs(model.head.linear), _columns(model.head)
        self.head = Head(c, self.head_matrix.rows, bias=model.head.bias)
        self._blocks = [_layer(layer) for layer in model.layers]

    def start(self, tokens: Tensor, previous: Tensor | None, positions: Tensor) -> Tensor:
        """Look up the embedding of tokens [B, T], float64 [N, dim]; `run` adds that of positions."""
        return self._exact.embedding(tokens.flatten())

    def run(self, first: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """See `codec.backends.cuda.network.CudaNetwork`."""
        x, product, turn = first, None, None
        if self._exact.places is not None:
            x = x + self._exact.places(context.local)
        if self._exact.turns is not None:
            cos, sin = self._rotations_of(self._exact.turns, context.local)
            turn = cos, -sin
        for n, layer in enumerate(self._blocks):
            x, rows = self._stream(x, product, layer.columns)
            operand, steps = self._attended(layer, self._attention_of(layer, rows, turn, context, n))
            product = _Product(multiply(operand, layer.attention_out.limbs), layer.attention_out, steps)
            x, rows = self._stream(x, product, layer.up_columns)
            operand, steps = self._activation(layer, len(x), multiply(rows.operands[0], layer.up.limbs), rows.steps[0])
            product = _Product(multiply(operand, layer.down.limbs), layer.down, steps)
        _, rows = self._stream(x, product, self._last_columns, bare=self._recall is not None)
        return rows.operands, rows.steps

    def _stream(self, x: Tensor, product: _Product | None, columns: Tensor, bare: bool = False) -> tuple[Tensor, _Rows]:
        """Compute the stream after a product, float64 [N, dim], and its normalised rows; for recall `bare`, too."""
        (rows, dim), matrices = x.shape, len(columns)
        count, width = padded(rows), padded(dim, INPUTS)
        out = torch.empty_like(x)
        found = _Rows(
            torch.empty(matrices + bare, 2, count, width, dtype=torch.int8, device=x.device),
            torch.empty(matrices + bare, count, dtype=torch.float64, device=x.device),
        )
        y = (x, x, x, x, 0)  # stands for what the kernel does not read
        if product is not None:
            bias = x if product.matrix.bias is None else product.matrix.bias
            y = (product.integers, product.matrix.limbs.rows, bias, product.steps, product.integers.shape[1])
        launch(
            stream_kernel, (rows,), x, out, *y, self._norm, columns, found.operands, found.steps, count, dim, width,
            UPDATE=product is not None, BIAS=product is not None and product.matrix.bias is not None,
            LAYER=self._exact.config.norm == "layer", MATRICES=matrices, BARE=int(bare),
            BLOCK=triton.next_power_of_2(dim), num_warps=4,
        )  # fmt: skip
        return out, found

    def _attention_of(
        self, layer: _Layer, rows: _Rows, turn: tuple[Tensor, Tensor] | None, context: Context, n: int
    ) -> Tensor:
        """Compute the outputs of all heads, float64 [N, q_dim]."""
        c, count = self.config, len(context.rows)
        keys, _ = context.store(n)
        queries = torch.empty(2, count, c.num_heads, self.heads.padded, dtype=torch.int8, device=self.device)
        scales = torch.empty(count, c.num_heads, dtype=torch.float64, device=self.device)
        side_by_side(
            lambda: self._split(rows, 0, layer, turn, queries, context.rows, context.places, scales),
            lambda: self._split(rows, 1, layer, turn, keys, context.slots, context.places, scales),
            lambda: self._values(layer, rows, context, n),
        )
        return context.attend(n, queries, scales)

    def _split(
        self, rows: _Rows, at: int, layer: _Layer, turn: tuple[Tensor, Tensor] | None, out: Tensor, slots: Tensor,
        places: Tensor, scales: Tensor,
    ) -> None:  # fmt: skip
        """Write queries (`at` 0) to `out` int8 [2, N, heads, D], or keys (1) to [2, slots, heads, places, D]."""
        c, exact = self.config, layer.exact
        matrix, gain = (layer.key, exact.key_gain) if at else (layer.query, exact.query_gain)
        products, heads, (slot, head, place) = multiply(rows.operands[at], matrix.limbs), out.shape[2], strides(out)
        cos, sin = turn or (scales, scales)
        launch(
            heads_kernel, (len(slots),), products, matrix.limbs.rows, scales if matrix.bias is None else matrix.bias,
            rows.steps[at], products.shape[1], places, slots, cos, sin, self._head_norm,
            scales if gain is None else gain, exact.key_scale, scales, out, out.stride(0), slot, head, place,
            HEADS=heads, GROUP=heads // c.num_kv_heads, HEAD_DIM=c.head_dim, HALF=c.head_dim // 2 if turn else 0,
            BIAS=matrix.bias is not None, NORM=gain is not None, QUERY_BITS=0 if at else self._exact.query_bits,
            HEAD_BLOCK=triton.next_power_of_2(heads), BLOCK=self.heads.padded, num_warps=4,
        )  # fmt: skip

    def _values(self, layer: _Layer, rows: _Rows, context: Context, n: int) -> None:
        """Write the rows' values where `context` keeps those of layer `n`."""
        c, (_, values), matrix = self.config, context.store(n), layer.value
        products = multiply(rows.operands[2], matrix.limbs)
        own = torch.empty(len(context.rows), c.kv_dim, dtype=torch.int16, device=self.device)
        launch(
            value_kernel, (len(own) // context.run, c.num_kv_heads), products, matrix.limbs.rows,
            products if matrix.bias is None else matrix.bias, rows.steps[2], products.shape[1], context.places,
            context.slots, layer.value_scale, own, values, *values.stride()[:3], HEADS=c.num_kv_heads,
            HEAD_DIM=c.head_dim, BIAS=matrix.bias is not None, RUN=context.run, BLOCK=self.heads.padded,
            TOGETHER=values.shape[-1], num_warps=4,
        )  # fmt: skip

    def _attended(self, layer: _Layer, mixed: Tensor) -> tuple[Tensor, Tensor]:
        c, count, matrix = self.config, len(mixed), layer.attention_out.limbs
        operand = torch.empty(2, padded(count), matrix.inputs, dtype=torch.int8, device=self.device)
        steps = torch.empty(padded(count), dtype=torch.float64, device=self.device)
        launch(
            mixed_kernel, (count,), *[mixed] * 7, layer.value_step,
            mixed if matrix.columns is None else matrix.columns, operand, steps, padded(count), matrix.inputs,
            GROUP=c.num_heads // c.num_kv_heads, HEADS=c.num_heads, HEAD_DIM=c.head_dim, XSA=False, GATED=False,
            COLUMNS=matrix.columns is not None, HEAD_BLOCK=triton.next_power_of_2(c.num_heads),
            BLOCK=triton.next_power_of_2(c.head_dim), num_warps=4,
        )  # fmt: skip
        return operand, steps

    def _activation(self, layer: _Layer, rows: int, products: Tensor, up_steps: Tensor) -> tuple[Tensor, Tensor]:
        count, matrix, up = len(products), layer.down.limbs, layer.up
        operand = torch.empty(2, count, matrix.inputs, dtype=torch.int8, device=self.device)
        steps = torch.empty(count, dtype=torch.float64, device=self.device)
        launch(
            activation_kernel, (rows,), products, up.limbs.rows, products if up.bias is None else up.bias, up_steps,
            products.shape[1], self._exact.sigmoid, products if matrix.columns is None else matrix.columns, operand,
            steps, count, self._exact.config.hidden_dim, matrix.inputs, GATED=self._exact.config.activation == "swiglu",
            BIAS=up.bias is not None, COLUMNS=matrix.columns is not None,
            BLOCK=triton.next_power_of_2(self._exact.config.hidden_dim), num_warps=4,
        )  # fmt: skip
        return operand, steps
