"""Run the exact network on integers that a processor multiplies fast, in compiled loops over rows of tokens.

The loops give the integers of `codec.exact.model` and follow that module operation by operation. Products have 16-bit
operands and 32-bit sums here, float64 in the reference.

A row is one token of one sequence. A row has a `position` in the sequence, and a `slot` of the caches that holds the
sequence. A row sees the last `window` positions, its own included. All rows of a call write their keys and values
before any row reads them, so whole sequences and single steps are the same code. A ring therefore holds a full window
plus the rows, after the first, that one call has of a sequence.

Layers are stacked into arrays [layers, ...], so that one compilation serves every model.
"""

import numpy as np

from codec.backends.cpu.attention import attend, remember
from codec.backends.cpu.elementwise import activate, add, mix, mix_skip, norm, rotations, sigmoid
from codec.backends.cpu.matmul import project
from codec.compiled import kernel
from codec.model.config import GATE_INPUTS


@kernel
def gate_rows(linear, layer, table, hidden, steps):
    """Compute the gates [n, gates] of normalised rows (`codec.exact.linear.ExactGate`)."""
    out = project(linear, layer, hidden[:, :GATE_INPUTS].copy(), steps)
    sigmoid(out, table)
    return out


@kernel
def _gates(network, layer, hidden, steps):
    """Compute the gates [n, heads] of a layer; 1 for models without gates."""
    if not network.attention_gate:
        return np.ones((len(hidden), network.score_scale.shape[1]))
    return gate_rows(network.gate, layer, network.sigmoid, hidden, steps)


@kernel
def run(network, x, positions, slots, keys, values, window):
    """Run rows through the network.

    Args:
        network: a `codec.backends.cpu.constants.Network`.
        x: float64 [n, dim], embedded tokens; overwritten.
        positions: int64 [n].
        slots: int64 [n].
        keys: int16 [executions, slots, kv_heads, ring / WIDE, head_dim / 2, WIDE, 2].
        values: int16 [executions, slots, kv_heads, ring / WIDE, head_dim / COLUMNS, WIDE / 2, COLUMNS, 2].
        window: positions that a row sees.

    Returns:
        The snapped, normalised last hidden state: int32 [n, dim] and its steps [n].
    """
    c, rows, (cos, sin) = network, (positions, slots), rotations(network.turns, positions)
    rope = cos, sin, network.query_scale
    hidden, steps = norm(x, 1.0)
    for i in range(x.shape[0]):
        for t in range(x.shape[1]):
            x[i, t] = hidden[i, t] * steps[i]
    first, skips = x.copy(), np.zeros((c.encoder_length, *x.shape))
    for e in range(len(c.schedule)):
        layer, j = c.schedule[e], e - c.encoder_length
        if 0 <= j < c.encoder_length:
            mix_skip(x, skips[c.encoder_length - 1 - j], c.skip_weights[j], c.skip_gates[j], c.gated)
        mix(x, c.residual_mix[layer], first)
        hidden, steps = norm(x, c.norm_scale[layer])
        new_keys, new_values = project(c.key, layer, hidden, steps), project(c.value, layer, hidden, steps)
        queries, gates = project(c.query, layer, hidden, steps), _gates(c, layer, hidden, steps)
        cache, value_step = (keys[e], values[e]), c.value_step[layer]
        remember(new_keys, new_values, rows, c.value_scale[layer], rope, cache)
        hidden, steps = attend(
            queries, gates, rows, window, c.score_scale[layer], value_step, rope, cache, c.xsa[layer]
        )
        mixed = project(c.attention_out, layer, hidden, steps)
        if not c.parallel[layer]:
            add(x, c.attention_scale[layer], mixed)
        hidden, steps = norm(x, c.norm_scale[layer])
        if c.parallel[layer]:
            add(x, c.attention_scale[layer], mixed)
        hidden = activate(project(c.up, layer, hidden, steps), c.slope, steps)
        add(x, c.mlp_scale[layer], project(c.down, layer, hidden, steps))
        if e < c.encoder_length:
            add(skips[e], np.ones(x.shape[1]), x)
    return norm(x, 1.0)
