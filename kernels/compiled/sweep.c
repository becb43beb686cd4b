/* One sweep over the rows of an attention call: exact softmax and the reductions asked for.

   Where queries and keys are given, logits are made here as well, and where `mixed` is, the weights
   meet the values: a few rows at a time, so that they are in the cache from the first product to
   the second. Nothing else of the matrix is kept unless weights are asked for. Without fast-math: a
   NaN among the visible logits of a row reaches every result of that row. */

#include "sweep.h"
#include "amx_tiles.inc.c"
#include "topk_select.inc.c"

#define NEAR (1 << 19)     /* floats of the rows between two products of BLAS */
#define NEARBY (1 << 20)   /* the same for bricks, which gain little by more than 128 rows */
#define MARGIN 48          /* floats before a row: a brick's columns and a vector */
#define NEGLIGIBLE -75.0f  /* logit, less the largest, below which a weight is 0 */

/* BLAS counts columns first, so that every product here is that of the transposes. Its integers
   have 4 or 8 bytes; small numbers of 8 bytes, lowest byte first, read the same as 4. */
typedef void Gemm(const char *, const char *, const int64_t *, const int64_t *, const int64_t *,
                  const float *, const float *, const int64_t *, const float *, const int64_t *,
                  const float *, float *, const int64_t *);

/* The larger one; NaN where one of them is. */
static inline float upper(float a, float b) { return a > b || a != a ? a : b; }

/* Add row[from..to); the 16 floats before it are readable. */
static float add(const float *row, int64_t from, int64_t to) {
    vec sum = spread(0), second = sum, third = sum, fourth = sum;
    if (from >= to) return 0.0f;
    for (; from + 4 * WIDTH <= to; from += 4 * WIDTH) {
        sum += load(row + from);
        second += load(row + from + WIDTH);
        third += load(row + from + 2 * WIDTH);
        fourth += load(row + from + 3 * WIDTH);
    }
    sum += second + (third + fourth);
    for (; from + WIDTH <= to; from += WIDTH) sum += load(row + from);
    if (from < to) {
        const ivec wanted = LANE >= ispread(WIDTH - (to - from));
        sum += pick(wanted, load(row + to - WIDTH), spread(0));
    }
    return total(&sum);
}

/* Copy the logits of a row between its bounds, times `scale`, hidden ones at MASKED, and find the
   largest, that of the row and that of every group of eight. The copy is filled up to whole blocks;
   of the source, what lies between its bounds is read, and up to `room` besides. */
static float enter(const float *source, int64_t room, float scale, const uint8_t *real,
                   int64_t keys, int64_t low, int64_t high, float *work, float *groups) {
    const int64_t start = low / WIDTH * WIDTH;
    vec most = spread(MASKED);
    for (int64_t first = start; first < high; first += SPAN, groups += WIDTH) {
        vec group = spread(MASKED);
        if (first >= low && first + SPAN <= high && !real) {
            for (int64_t j = first; j < first + SPAN; j += WIDTH) {
                const vec s = load(source + j) * spread(scale);
                store(work + j, s);
                group = larger(s, group);
            }
            store(groups, group);
            most = larger(group, most);
            continue;
        }
        for (int64_t j = first; j < first + SPAN; j += WIDTH) {
            vec s = spread(MASKED);
            if (j < high && j + WIDTH <= room) {
                s = load(source + j) * spread(scale);
            } else if (j < high) {
                memcpy(&s, source + j, (high - j) * sizeof(float));
                s *= spread(scale);
            }
            if (j < low || j + WIDTH > high) {
                const ivec key = LANE + ispread(j);
                s = pick((key >= ispread(low)) & (key < ispread(high)), s, spread(MASKED));
            }
            if (real && j < keys) {
                bvec byte = {0};
                memcpy(&byte, real + j, j + WIDTH <= keys ? WIDTH : keys - j);
                s = pick(__builtin_convertvector(byte, ivec) != 0, s, spread(MASKED));
            }
            store(work + j, s);
            group = larger(s, group);
        }
        store(groups, group);
        most = larger(group, most);
    }
    return largest(&most);
}

/* exp(x) for x from NEGLIGIBLE to 0, as 2^n 2^f with |f| <= 1/2: within 2e-7 of itself. */
static inline vec grow(vec x) {
    const vec magic = spread(12582912); /* 1.5 * 2^23: n ends up in the last bits */
    const vec t = x * spread(1.44269504088896341) + magic;
    const vec f = x * spread(1.44269504088896341) - (t - magic);
    vec p = f * spread(0x1.5bba14p-10) + spread(0x1.3cea88p-7);
    p = p * f + spread(0x1.c6b752p-5);
    p = p * f + spread(0x1.ebf9bcp-3);
    p = p * f + spread(0x1.62e42ap-1);
    p = p * f + spread(1);
    return (vec)((ivec)p + ((ivec)t << 23));
}

/* Turn logits into exponentials; returns their sum, and in `loss` that of x exp(x). */
static float raise(float *work, int64_t start, int64_t stop, float shift, float *loss) {
    vec sum = spread(0), lost = spread(0);
    for (int64_t j = start; j < stop; j += WIDTH) {
        vec x = load(work + j) - spread(shift);
        const ivec gone = x < spread(NEGLIGIBLE);
        x = larger(spread(NEGLIGIBLE), x);
        const vec e = (vec)((ivec)grow(x) & ~gone);
        store(work + j, e);
        sum += e;
        lost += e * x;
    }
    *loss = total(&lost);
    /* An exponent is added as an integer, which a NaN may not survive; here it does. */
    return *loss == *loss ? total(&sum) : *loss;
}

/* Take the weights of a row into the columns of its tile; beyond it the exponentials are 0. */
static void gather(const float *work, float factor, int64_t start, int64_t high, float *sums,
                   float *peaks) {
    for (int64_t j = start; sums && j < high; j += WIDTH)
        store(sums + j, load(sums + j) + load(work + j) * spread(factor));
    for (int64_t j = start; peaks && j < high; j += WIDTH) {
        const vec w = load(work + j) * spread(factor), before = load(peaks + j);
        store(peaks + j, pick((w > before) | (w != w), w, before));
    }
}

/* Keep the weights of a row, zero outside its bounds. */
static void keep(const float *work, float factor, int64_t keys, int64_t start, int64_t high,
                 float *out) {
    int64_t j = start;
    memset(out, 0, start * sizeof(float));
    for (; j < high && j + WIDTH <= keys; j += WIDTH)
        store(out + j, load(work + j) * spread(factor));
    for (; j < high; j++) out[j] = work[j] * factor;
    if (j < keys) memset(out + j, 0, (keys - j) * sizeof(float));
}

/* Add the exponentials of each bin, to both sides of the query. */
static void bin(const Sweep *c, const float *work, int64_t low, int64_t high, int64_t here,
                float factor, float *histogram) {
    int64_t near = 0;
    for (int64_t b = 0; b < c->bins; b++) {
        const int64_t far = c->ends[b];
        const int64_t left = here - far + 1, right = here + (b ? near : 1);
        const int64_t end = here - near + 1, stop = here + far;
        float mass = add(work, left > low ? left : low, end < high ? end : high);
        mass += add(work, right > low ? right : low, stop < high ? stop : high);
        histogram[b] = mass * factor;
        near = far;
    }
}

/* Average the distances, less `less`, raised to the power 1 or 2. */
static float reach(const float *work, int64_t start, int64_t high, int64_t here, float clip,
                   float less, int squared) {
    vec sum = spread(0);
    for (int64_t j = start; j < high; j += WIDTH) {
        vec d = spread(here) - __builtin_convertvector(LANE + ispread(j), vec);
        d = (vec)((ivec)d & 0x7fffffff);
        d = pick(d < spread(clip), d, spread(clip)) - spread(less);
        sum += load(work + j) * (squared ? d * d : d);
    }
    return total(&sum);
}

/* Add a finished tile to the columns, and reduce its own to tiles of keys. */
static void finish(const Sweep *c, const Work *w, int64_t head, int64_t tile) {
    const int64_t across = (c->keys + c->tile - 1) / c->tile;
    const int64_t tiles = (c->rows + c->tile - 1) / c->tile;
    const int64_t place = (head * tiles + tile) * across;
    for (int64_t t = 0; c->tile_sums && t < across; t++) {
        const int64_t stop = (t + 1) * c->tile;
        c->tile_sums[place + t] = add(w->sums, t * c->tile, stop < c->keys ? stop : c->keys);
    }
    for (int64_t t = 0; c->tile_peaks && t < across; t++) {
        float best = 0.0f;
        for (int64_t j = t * c->tile; j < (t + 1) * c->tile && j < c->keys; j++)
            best = upper(w->peaks[j], best);
        c->tile_peaks[place + t] = best;
    }
    float *sums = c->sums + head * c->keys, *peaks = c->peaks + head * c->keys;
    for (int64_t j = 0; c->sums && j < c->keys; j++) sums[j] += w->sums[j];
    for (int64_t j = 0; c->peaks && j < c->keys; j++) peaks[j] = upper(w->peaks[j], peaks[j]);
}

/* Add the exponentials of the first keys of a sequence. */
static float begin_mass(const Sweep *c, const float *work, int64_t sequence, int64_t low,
                        int64_t high) {
    if (!c->first_keys) return add(work, low, high < c->firsts ? high : c->firsts);
    float mass = 0.0f;
    for (int64_t i = 0; i < c->firsts; i++) {
        const int64_t key = c->first_keys[sequence * c->firsts + i] - c->first;
        if (key >= low && key < high) mass += work[key];
    }
    return mass;
}

/* Row `place` of those in memory, row r of the head; 1 when it is beyond the limit. */
static int one(const Sweep *c, const Work *w, int64_t head, int64_t r, int64_t place) {
    const int64_t at = head * c->rows + r, sequence = head / c->heads;
    const uint8_t *real = c->real ? c->real + sequence * c->real_stride : NULL;
    float *work = w->rows + place * w->stride;
    const int64_t given = head * (c->end - c->begin) + r - c->begin;
    const float *source = c->logits ? c->logits + given * c->keys : work;
    const int64_t room = c->logits ? c->keys : w->stride - MARGIN;
    const float scale = c->key_bricks ? c->scale : 1.0f;
    int64_t low = c->low[r] - c->first, high = c->high[r] - c->first;
    if (low < 0) low = 0;
    if (high > c->keys) high = c->keys;
    if (high < low || (c->alive && !c->alive[sequence * c->alive_stride + r])) high = low;
    const int64_t start = low / WIDTH * WIDTH;
    const int64_t blocks = (high - start + SPAN - 1) / SPAN;

    float peak = MASKED;
    if (high > low) peak = enter(source, room, scale, real, c->keys, low, high, work, w->groups);
    int seen = peak > SEEN;
    /* Nothing is larger than a NaN: a row of them looks empty. */
    for (int64_t j = low; !seen && j < high; j++) seen = work[j] != work[j];
    if (seen && fabsf(peak) > c->limit) return 1;
    float shift = peak, rest = 0.0f, loss = 0.0f, mass = 1.0f, factor = 0.0f, sunk = 0.0f;
    if (seen) {
        if (c->leaders) lead(work, w->groups, start, blocks, c->k, c->leaders + at * c->k);
        if (c->sinks) {
            const float sink = c->sinks[head % c->heads];
            if (!(sink <= shift)) shift = sink;
            rest = expf(sink - shift);
            sunk = rest > 0.0f ? rest * (sink - shift) : 0.0f;
        }
        mass = raise(work, start, high, shift, &loss) + rest;
        factor = 1.0f / mass;
        gather(work, factor, start, high, w->sums, w->peaks);
    } else {
        for (int64_t i = 0; c->leaders && i < c->k; i++) c->leaders[at * c->k + i] = -1;
        low = high = 0;
    }
    const int64_t end = seen ? start + (high - start + WIDTH - 1) / WIDTH * WIDTH : w->low;
    const int64_t begin = seen ? start : w->low;
    if (w->low < begin) memset(work + w->low, 0, (begin - w->low) * sizeof(float));
    if (end < w->high) memset(work + end, 0, (w->high - end) * sizeof(float));
    w->factors[place] = factor;
    if (c->weights) keep(work, factor, c->keys, seen ? start : 0, high, c->weights + at * c->keys);
    c->peak[at] = seen ? peak : MASKED;
    c->top[at] = expf(peak - shift) * factor;
    c->surplus[at] = logf(mass) + (shift - peak);
    if (c->entropy) c->entropy[at] = logf(mass) - (loss + sunk) * factor;
    if (c->first_sum) c->first_sum[at] = begin_mass(c, work, sequence, low, high) * factor;
    for (int64_t i = 0; c->leader_weights && i < c->k; i++) {
        const int64_t key = c->leaders[at * c->k + i];
        c->leader_weights[at * c->k + i] = key < 0 ? NAN : work[key] * factor;
    }
    const int64_t here = c->position + r;
    if (c->histogram) bin(c, work, low, high, here, factor, c->histogram + at * c->bins);
    if (c->distance || c->variance) {
        const float mean = reach(work, start, high, here, c->clip, 0.0f, 0) * factor;
        if (c->distance) c->distance[at] = mean;
        if (c->variance)
            c->variance[at] = reach(work, start, high, here, c->clip, mean, 1) * factor;
    }
    return 0;
}

/* Rows that pass from the first product to the last together, in multiples of 32. */
static int64_t together(const Sweep *c) {
    const int bricks = c->key_bricks || c->value_bricks;
    const int64_t least = bricks ? 64 : 32, most = bricks ? 128 : MOST;
    int64_t rows = bricks ? NEARBY / c->keys : c->gemm ? NEAR / (c->keys + 1) : 0;
    rows = rows < least ? least : rows > most ? most : rows / 32 * 32;
    return rows > c->rows ? (c->rows + 31) / 32 * 32 : rows;
}

/* Columns that some rows see, and that their products take. */
static void look(const Sweep *c, Work *w, int64_t from, int64_t to) {
    bounds(c, from, to, &w->low, &w->high);
    if (w->low == w->high) return;
    for (int64_t r = from, i = 0; r < to; r += 32, i++)
        bounds(c, r, r + 32 < to ? r + 32 : to, &w->lows[i], &w->highs[i]);
    if (!c->key_bricks && !c->value_bricks) return;
    w->low = (w->low + c->first) / TERMS * TERMS - c->first;
    w->high = (w->high + c->first + TERMS - 1) / TERMS * TERMS - c->first;
}

/* Logits of some rows against the keys that one of them sees. */
static void score(const Sweep *c, const Work *w, int64_t head, int64_t from, int64_t to) {
    const int64_t rows = to - from, keys = w->high - w->low;
    const float none = 0.0f;
    if (keys <= 0) return;
    if (c->key_bricks) {
        score_bricks(c, w, head, from, to);
        return;
    }
    const float *key = c->key + head / c->group * c->key_room + c->first + w->low;
    ((Gemm *)c->gemm)("N", "N", &keys, &rows, &c->size, &c->scale, key, &c->stride,
                      query(c, head, from), &c->query_row, &none,
                      w->rows + w->low, &w->stride);
}

/* Average the values by the weights of some rows. */
static void mix(const Sweep *c, const Work *w, int64_t head, int64_t from, int64_t to) {
    const int64_t rows = to - from, keys = w->high - w->low;
    const float one = 1.0f, none = 0.0f;
    float *out = mixed(c, head, from);
    if (keys <= 0) {
        memset(out, 0, rows * c->value_size * sizeof(float));
        return;
    }
    if (c->value_bricks) {
        mix_bricks(c, w, head, from, to);
        return;
    }
    const float *value = c->value + head / c->group * c->value_room
                         + (c->first + w->low) * c->value_size;
    ((Gemm *)c->gemm)("N", "N", &c->value_size, &rows, &keys, &one, value, &c->value_size,
                      w->rows + w->low, &w->stride, &none, out, &c->value_size);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t d = 0; d < c->value_size; d++) out[r * c->value_size + d] *= w->factors[r];
}

/* The rows of one head; 1 when one is beyond the limit. */
static int all(const Sweep *c, Work *w, int64_t head) {
    for (int64_t from = c->begin; from < c->end; from += w->together) {
        const int64_t to = from + w->together < c->end ? from + w->together : c->end;
        look(c, w, from, to);
        if (c->query) score(c, w, head, from, to);
        for (int64_t r = from; r < to; r++) {
            if (one(c, w, head, r, r - from)) return 1;
            if (!(w->sums || w->peaks) || ((r + 1) % c->tile && r + 1 < c->end)) continue;
            finish(c, w, head, r / c->tile);
            if (w->sums) memset(w->sums, 0, c->keys * sizeof(float));
            if (w->peaks) memset(w->peaks, 0, c->keys * sizeof(float));
        }
        if (c->mixed) mix(c, w, head, from, to);
    }
    return 0;
}

/* Floats rounded up to lines of the cache. */
static int64_t lines(int64_t floats) { return (floats + WIDTH - 1) / WIDTH * WIDTH; }

/* Lay out the memory of a call; returns its floats. */
static int64_t place(const Sweep *c, Work *w) {
    const int64_t rows = together(c), columns = lines(c->keys) + 2 * SPAN;
    const int64_t steps = (c->size + TERMS - 1) / TERMS;
    const int64_t spell = 2 * SPELL * PARTS * BRICK;
    const int64_t queries = c->key_bricks ? rows / EDGE * steps * c->key_parts * BRICK : 0;
    const int summed = c->sums || c->tile_sums, peaked = c->peaks || c->tile_peaks;
    float *const memory = c->memory;
    int64_t floats = 0;
    /* An odd number of lines from row to row: rows of a power of two would share one set of the
       cache. */
    w->stride = (columns + MARGIN) / WIDTH % 2 ? columns + MARGIN : columns + MARGIN + WIDTH;
    w->together = rows;
#define PIECE(count) (memory + (floats += lines(count) + MARGIN) - lines(count))
    w->rows = PIECE(rows * w->stride);
    w->groups = PIECE(columns / GROUP + WIDTH);
    w->sums = summed ? PIECE(columns) : NULL;
    w->peaks = peaked ? PIECE(columns) : NULL;
    w->factors = PIECE(rows);
    w->left = (uint16_t *)PIECE((queries > spell ? queries : spell) / 2);
    w->mixed = c->value_bricks ? PIECE(rows * lines(c->value_size + TERMS)) : NULL;
    if (w->sums && memory) memset(w->sums - MARGIN, 0, (columns + MARGIN) * sizeof(float));
    if (w->peaks && memory) memset(w->peaks - MARGIN, 0, (columns + MARGIN) * sizeof(float));
    return floats;
}

/* Bytes of memory that a call needs, whose own is NULL. */
int64_t room(const Sweep *c) {
    Work w;
    return place(c, &w) * sizeof(float);
}

/* Returns 0, or 1 when a row is beyond the limit. */
int sweep(const Sweep *c) {
    const int bricks = c->key_bricks || c->value_bricks;
    int status = 0;
    Work w;
    place(c, &w);
    if (bricks) lay();
    for (int64_t head = 0; !status && head < c->batch * c->heads; head++) {
        if (c->sums && !c->begin) memset(c->sums + head * c->keys, 0, c->keys * sizeof(float));
        if (c->peaks && !c->begin) memset(c->peaks + head * c->keys, 0, c->keys * sizeof(float));
        status = all(c, &w, head);
    }
    if (bricks) lift();
    return status;
}
