"""One tile of logits: what every kernel shares, so that all passes compute the same weights.

Logits are in base 2 (natural logits times log2 e), hidden keys at the finite ``HIDDEN``. A kernel
takes ``Operand`` and ``Terms`` (see ``launch``) as arguments; a term that the variant lacks is None
there, and its code is left out when the kernel is compiled, so the plain case costs nothing.

``tile_logits`` of ``topk_rows`` is a kernel with queries along the rows of its tile, ``visit`` of
``columns`` one with keys along the rows: it swaps the operands of the product (``TRANSPOSED=True``)
and reads ``query_terms`` inside its loop.
"""

import triton
import triton.language as tl

HIDDEN = tl.constexpr(-1e30)
"""Base-2 logit of a hidden key: finite, so that 0 · (m - s) stays 0 where -inf would give NaN."""
FLOOR = tl.constexpr(-5e29)
"""Smallest running maximum: above ``HIDDEN``, so that hidden keys weigh exactly 0 in every row."""
PADDED = tl.constexpr(-8e29)
"""Largest bias of a padded key; a key that an edit knocks out has more, and weighs 0 as well."""
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
INTERPRET = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """Multiply two matrices into float32: bfloat16 and float16 as they are, float32 as asked."""
    if INTERPRET:
        # The interpreter would multiply the bits of bfloat16 as integers.
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    else:
        return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def step(index, stride):
    """Multiply an index by a stride; None is 1."""
    if stride is None:
        return index
    else:
        return index * stride


@triton.jit
def line_of(operand, batch, head):
    """Point at the first element of a sequence and head, with an offset of 64 bits."""
    address = operand.pointer + step(tl.cast(batch, tl.int64), operand.batch)
    return address + step(tl.cast(head, tl.int64), operand.head)


@triton.jit
def load_tokens(
    operand, batch, head, start, keep, LENGTH: tl.constexpr, SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Load LENGTH tokens of one head from ``start``: (LENGTH, BLOCK_SIZE), zero where not kept.

    ``keep`` (LENGTH,) is ignored where WHOLE. Offsets of the tile's corner have 64 bits.
    """
    tokens = head_of(operand, batch, head, 0, LENGTH, SIZE, BLOCK_SIZE, False)
    return next_tokens(tokens, operand, start, keep, LENGTH, SIZE, BLOCK_SIZE, WHOLE, False)


@triton.jit
def head_of(
    operand, batch, head, length, LENGTH: tl.constexpr, SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Describe the ``length`` tokens of one head to ``next_tokens``, in tiles of LENGTH.

    With TMA the hardware computes addresses and fills what lies beyond the end with zeros; it
    needs channels next to each other and tokens at multiples of 16 bytes.
    """
    corner = line_of(operand, batch, head)
    if TMA:
        return tl.make_tensor_descriptor(
            corner, [length, SIZE], [operand.token, 1], [LENGTH, BLOCK_SIZE]
        )
    else:
        return corner


@triton.jit
def next_tokens(
    tokens, operand, start, keep, LENGTH: tl.constexpr, SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, WHOLE: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Load LENGTH tokens from ``start``: (LENGTH, BLOCK_SIZE), zero where not kept.

    ``tokens`` comes from ``head_of``. ``keep`` (LENGTH,) is ignored where WHOLE, and with TMA.
    """
    if TMA:
        return tokens.load([start, 0])
    else:
        corner = tokens + tl.cast(start, tl.int64) * operand.token
        token = tl.arange(0, LENGTH)
        channel = tl.arange(0, BLOCK_SIZE)
        pointers = corner + (token[:, None] * operand.token + channel[None, :] * operand.channel)
        if WHOLE:
            if SIZE == BLOCK_SIZE:
                return tl.load(pointers)
            else:
                return tl.load(pointers, mask=channel[None, :] < SIZE, other=0.0)
        else:
            if SIZE == BLOCK_SIZE:
                return tl.load(pointers, mask=keep[:, None], other=0.0)
            else:
                return tl.load(pointers, mask=keep[:, None] & (channel[None, :] < SIZE), other=0.0)


@triton.jit
def real_queries(terms, batch, query):
    """Which queries exist and are no padding."""
    inside = query < terms.queries
    if terms.query_mask.pointer is not None:
        mask = line_of(terms.query_mask, batch, 0)
        inside = inside & (tl.load(mask + query, mask=inside, other=0) != 0)
    return inside


@triton.jit
def query_terms(terms, batch, head, query):
    """Load what belongs to each query: (low, high, first_stop, span).

    Beyond the last query, low and high are 0: nothing is visible. Terms that are absent are
    placeholders.
    """
    inside = query < terms.queries
    low = tl.load(terms.low + query, mask=inside, other=0)
    high = tl.load(terms.high + query, mask=inside, other=0)
    first_stop = low
    span = low
    if terms.recent is not None:
        address = line_of(terms.first_stop, batch, head) + step(query, terms.first_stop.token)
        first_stop = tl.load(address, mask=inside, other=0)
    if terms.span_bias.pointer is not None:
        address = line_of(terms.query_spans, batch, 0)
        span = tl.load(address + query, mask=inside, other=-1)
    return low, high, first_stop, span


@triton.jit
def key_terms(terms, batch, head, key, EDGE: tl.constexpr):
    """Load what belongs to each key: (bias, span). A bias of ``HIDDEN`` hides the key.

    Without EDGE all keys exist. Terms that are absent are placeholders.
    """
    bias = key
    span = key
    if terms.key_bias.pointer is not None:
        address = line_of(terms.key_bias, batch, head)
        if EDGE:
            bias = tl.load(address + key, mask=key < terms.keys, other=HIDDEN)
        else:
            bias = tl.load(address + key)
    if terms.span_bias.pointer is not None:
        address = line_of(terms.key_spans, batch, 0)
        span = tl.load(address + key, mask=key < terms.keys, other=-1)
    return bias, span


@triton.jit
def real_keys(terms, key, columns):
    """Which keys exist and are no padding: only those may be loaded."""
    inside = key < terms.keys
    if terms.key_bias.pointer is not None:
        inside = inside & (columns[0] > PADDED)
    return inside


@triton.jit
def along_queries(x, TRANSPOSED: tl.constexpr):
    """Broadcast a vector over queries to a tile; to pairs, where TRANSPOSED is None."""
    if TRANSPOSED is None:
        return x
    elif TRANSPOSED:
        return x[None, :]
    else:
        return x[:, None]


@triton.jit
def along_keys(x, TRANSPOSED: tl.constexpr):
    """Broadcast a vector over keys to a tile; to pairs, where TRANSPOSED is None."""
    if TRANSPOSED is None:
        return x
    elif TRANSPOSED:
        return x[:, None]
    else:
        return x[None, :]


@triton.jit
def tanh(x):
    """Hyperbolic tangent, to 1e-7 of its value: a series near 0, where 1 - e cancels."""
    e = tl.exp2(tl.abs(x) * (-2.0 * LOG2E))
    far = (1.0 - e) / (1.0 + e)
    y = x * x
    near = 1.0 + y * (-1 / 3 + y * (2 / 15 + y * (-17 / 315 + y * (62 / 2835))))
    return tl.where(y < 0.0625, x * near, tl.where(x < 0, -far, far))


@triton.jit
def load_pairs(operand, terms, batch, head, i, j):
    """Load one number for each pair of a query and a key, 0 where there is no such pair."""
    pointers = line_of(operand, batch, head) + step(i.to(tl.int64), operand.token)
    pointers += step(j.to(tl.int64), operand.channel)
    inside = (i < terms.queries) & (j < terms.keys)
    return tl.load(pointers, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def logits(
    scores, query, key, rows, columns, terms, batch, head,
    EDGE: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """Convert q·k into base-2 logits: factor, cap, ALiBi, bias, temperature, edits, hidden keys.

    Parameters: ``scores`` (query, key), or (key, query) where TRANSPOSED, or one for each pair
    where TRANSPOSED is None; ``query`` and ``key`` are indices; ``rows`` and ``columns`` come from
    ``query_terms`` and ``key_terms``. Without EDGE the caller knows that every query of the tile
    sees every key, as to order, window and ends.
    """
    low, high, first_stop, query_span = rows
    key_bias, key_span = columns
    i = along_queries(query, TRANSPOSED)
    j = along_keys(key, TRANSPOSED)
    x = scores * terms.factor
    if terms.softcap is not None:
        x = tanh(x) * terms.softcap
    if terms.slopes is not None:
        x -= tl.load(terms.slopes + head) * tl.abs(i + terms.shift - j).to(tl.float32)
    if terms.bias.pointer is not None:
        x += load_pairs(terms.bias, terms, batch, head, i, j) * LOG2E
    if terms.temperature is not None:
        x = x / tl.load(terms.temperature + head)
    if terms.bias.pointer is not None:
        x = tl.maximum(x, HIDDEN)
    if terms.key_bias.pointer is not None:
        x += along_keys(key_bias, TRANSPOSED)
    if terms.span_bias.pointer is not None:
        table = line_of(terms.span_bias, 0, head)
        qs = along_queries(query_span, TRANSPOSED)
        ks = along_keys(key_span, TRANSPOSED)
        valid = (qs >= 0) & (ks >= 0)
        x += tl.load(table + step(qs, terms.span_bias.token) + ks, mask=valid, other=0.0)
    if terms.recent is not None:
        near = tl.abs(i + terms.shift - j) < tl.load(terms.recent + head)
        x = tl.where(near | (j < along_queries(first_stop, TRANSPOSED)), x, HIDDEN)
    if terms.pattern.pointer is not None:
        fixed = load_pairs(terms.pattern, terms, batch, head, i, j)
        x = tl.where(fixed == fixed, fixed, x)  # NaN: the row keeps its own logits
    if EDGE:
        visible = (j >= along_queries(low, TRANSPOSED)) & (j < along_queries(high, TRANSPOSED))
        x = tl.where(visible, x, HIDDEN)
    return x


@triton.jit
def weights(x, lse, SIGMOID: tl.constexpr):
    """Convert base-2 logits into weights; ``lse`` in base 2 by tile, 1e30 at dead rows.

    Where SIGMOID, each logit has its own weight and ``lse`` is not read.
    """
    if SIGMOID:
        return 1.0 / (1.0 + tl.exp2(-x))
    else:
        return tl.exp2(x - lse)
