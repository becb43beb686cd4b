/* One sweep over the rows of an attention call: exact softmax and the reductions asked for.

   Where queries and keys are given, logits are made here as well, and where `mixed` is, the weights
   meet the values: a few rows at a time, so that they are in the cache from the first product to
   the second. Nothing else of the matrix is kept unless weights are asked for. Without fast-math: a
   NaN among the visible logits of a row reaches every result of that row. */

#include "sweep.h"
#include "amx_tiles.inc.c"
#include "topk_select.inc.c"

#define NEAR (1 << 19)     /* floats of the rows between two products of BLAS */
#define NEARBY (1 << 20)   /* the same for AMX tiles, which gain little by more than 128 rows */
#define MARGIN 48          /* floats before a row: a tile's columns and a vector */
#define NEGLIGIBLE -75.0f  /* logit, less the largest, below which a weight is 0 */

/* BLAS counts columns first, so that every product here is that of the transposes. Its integers
   have 4 or 8 bytes; small numbers of 8 bytes, lowest byte first, read the same as 4. */
typedef void Gemm(const char *, const char *, const int64_t *, const int64_t *, const int64_t *,
                  const float *, const float *, const int64_t *, const float *, const int64_t *,
                  const float *, float *, const int64_t *);

/* The larger one; NaN where one of them is. */
static inline float nan_max(float a, float b) { return a > b || a != a ? a : b; }

/* Add row[from..to); the 16 floats before it are readable. */
static float sum_range(const float *row, int64_t from, int64_t to) {
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
    return vec_sum(&sum);
}

/* Copy the logits of a row between its bounds, times `scale`, hidden ones at MASKED, and find the
   largest, that of the row and that of every group of eight. The copy is filled up to whole blocks;
   of the source, what lies between its bounds is read, and up to `room` besides. */
static float load_row(const float *source, int64_t room, float scale, const uint8_t *real_keys,
                   int64_t keys, int64_t low, int64_t high, float *work, float *groups) {
    const int64_t start = low / WIDTH * WIDTH;
    vec most = spread(MASKED);
    for (int64_t first = start; first < high; first += SPAN, groups += WIDTH) {
        vec group = spread(MASKED);
        if (first >= low && first + SPAN <= high && !real_keys) {
            for (int64_t j = first; j < first + SPAN; j += WIDTH) {
                const vec s = load(source + j) * spread(scale);
                store(work + j, s);
                group = vec_max(s, group);
            }
            store(groups, group);
            most = vec_max(group, most);
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
                const ivec from = key >= ispread(low /* MUTANT window_start */);
                const ivec to = key < ispread(high /* MUTANT row_end */);
                s = pick(from & to, s, spread(MASKED));
            }
            if (real_keys && j < keys) {
                bvec byte = {0};
                memcpy(&byte, real_keys + j, j + WIDTH <= keys ? WIDTH : keys - j);
                const ivec visible = __builtin_convertvector(byte, ivec) != 0 /* MUTANT padding */;
                s = pick(visible, s, spread(MASKED));
            }
            store(work + j, s);
            group = vec_max(s, group);
        }
        store(groups, group);
        most = vec_max(group, most);
    }
    return vec_max_lane(&most);
}

/* exp(x) for x from NEGLIGIBLE to 0, as 2^n 2^f with |f| <= 1/2: within 2e-7 of itself. */
static inline vec exp_approx(vec x) {
    const vec magic = spread(12582912); /* 1.5 * 2^23: n ends up in the last bits */
    const vec t = x * spread(1.44269504088896341) + magic;
    const vec f = x * spread(1.44269504088896341) - (t - magic);
    vec p = f * spread(0x1.5bba14p-10) + spread(0x1.3cea88p-7);
    p = p * f + spread(0x1.c6b752p-5);
    p = p * f + spread(0x1.ebf9bcp-3);
    p = p * f + spread(0x1.62e42ap-1 /* MUTANT exponential */);
    p = p * f + spread(1);
    return (vec)((ivec)p + ((ivec)t << 23));
}

/* Turn logits into exponentials; returns their sum, and in `loss` that of x exp(x). */
static float exp_row(float *work, int64_t start, int64_t stop, float shift, float *loss) {
    vec sum = spread(0), lost = spread(0);
    for (int64_t j = start; j < stop; j += WIDTH) {
        vec x = load(work + j) - spread(shift);
        const ivec gone = x < spread(NEGLIGIBLE);
        x = vec_max(spread(NEGLIGIBLE), x);
        const vec e = (vec)((ivec)exp_approx(x) & ~gone);
        store(work + j, e);
        sum += e;
        lost += e * x;
    }
    *loss = vec_sum(&lost);
    /* An exponent is added as an integer, which a NaN may not survive; here it does. */
    return *loss == *loss ? vec_sum(&sum) : *loss;
}

/* Take the weights of a row into the columns of its tile; beyond it the exponentials are 0. */
static void add_to_columns(const float *work, float factor, int64_t start, int64_t high,
                           float *key_sum, float *key_max) {
    for (int64_t j = start; key_sum && j < high; j += WIDTH)
        store(key_sum + j, load(key_sum + j) + load(work + j) * spread(factor));
    for (int64_t j = start; key_max && j < high; j += WIDTH) {
        const vec w = load(work + j) * spread(factor), before = load(key_max + j);
        store(key_max + j, pick((w > before) | (w != w), w, before));
    }
}

/* Keep the weights of a row, zero outside its bounds. */
static void store_weights(const float *work, float factor, int64_t keys, int64_t start,
                          int64_t high, float *out) {
    int64_t j = start;
    memset(out, 0, start * sizeof(float));
    for (; j < high && j + WIDTH <= keys; j += WIDTH)
        store(out + j, load(work + j) * spread(factor));
    for (; j < high; j++) out[j] = work[j] * factor;
    if (j < keys) memset(out + j, 0, (keys - j) * sizeof(float));
}

/* Add the exponentials of each bin, to both sides of the query. */
static void distance_histogram(const Sweep *c, const float *work, int64_t low, int64_t high,
                               int64_t here, float factor, float *histogram) {
    int64_t near = 0;
    for (int64_t b = 0; b < c->bins; b++) {
        const int64_t far = c->bin_ends[b];
        const int64_t left = here - far + 1, right = here + (b ? near : 1 /* MUTANT own_key */);
        const int64_t end = here - near + 1 /* MUTANT bin_end */, stop = here + far;
        float mass = sum_range(work, left > low ? left : low, end < high ? end : high);
        mass += sum_range(work, right > low ? right : low, stop < high ? stop : high);
        histogram[b] = mass * factor;
        near = far;
    }
}

/* Average the distances, less `less`, raised to the power 1 or 2. */
static float mean_distance(const float *work, int64_t start, int64_t high, int64_t here, float clip,
                   float less, int squared) {
    vec sum = spread(0);
    for (int64_t j = start; j < high; j += WIDTH) {
        vec d = spread(here) - __builtin_convertvector(LANE + ispread(j), vec);
        d = (vec)((ivec)d & 0x7fffffff);
        d = pick(d < spread(clip), d, spread(clip)) - spread(less);
        sum += load(work + j) * (squared ? d * d : d);
    }
    return vec_sum(&sum);
}

/* Add a finished tile to the columns, and reduce its own to tiles of keys. */
static void reduce_tile(const Sweep *c, const Work *w, int64_t head, int64_t tile) {
    const int64_t across = (c->keys + c->tile - 1) / c->tile;
    const int64_t tiles = (c->rows + c->tile - 1) / c->tile;
    const int64_t place = (head * tiles + tile) * across;
    for (int64_t t = 0; c->tile_sum && t < across; t++) {
        const int64_t stop = (t + 1) * c->tile;
        const int64_t end = stop < c->keys ? stop : c->keys;
        c->tile_sum[place + t] = sum_range(w->key_sum, t * c->tile, end);
    }
    for (int64_t t = 0; c->tile_max && t < across; t++) {
        float best = 0.0f;
        for (int64_t j = t * c->tile; j < (t + 1) * c->tile && j < c->keys; j++)
            best = nan_max(w->key_max[j], best);
        c->tile_max[place + t] = best;
    }
    float *key_sum = c->key_sum + head * c->keys, *key_max = c->key_max + head * c->keys;
    for (int64_t j = 0; c->key_sum && j < c->keys; j++) key_sum[j] += w->key_sum[j];
    for (int64_t j = 0; c->key_max && j < c->keys; j++)
        key_max[j] = nan_max(w->key_max[j], key_max[j]);
}

/* Add the exponentials of the first keys of a sequence. */
static float first_keys_mass(const Sweep *c, const float *work, int64_t sequence, int64_t low,
                        int64_t high) {
    const int64_t stop = high < c->first_count ? high : c->first_count /* MUTANT first_keys */;
    if (!c->first_keys) return sum_range(work, low, stop);
    float mass = 0.0f;
    for (int64_t i = 0; i < c->first_count; i++) {
        const int64_t key = c->first_keys[sequence * c->first_count + i] - c->first;
        if (key >= low && key < high) mass += work[key];
    }
    return mass;
}

/* Process row r of the head, in buffer slot `place`; 1 if abs(max_logit) > limit. */
static int do_row(const Sweep *c, const Work *w, int64_t head, int64_t r, int64_t place) {
    const int64_t at = head * c->rows + r, sequence = head / c->heads;
    const uint8_t *real_keys = c->real_keys ? c->real_keys + sequence * c->real_keys_stride : NULL;
    float *work = w->rows + place * w->stride;
    const int64_t given = head * (c->end - c->begin) + r - c->begin;
    const float *source = c->logits ? c->logits + given * c->keys : work;
    const int64_t room = c->logits ? c->keys : w->stride - MARGIN;
    const float scale = c->key_amx ? /* MUTANT amx_scale */ c->scale : 1.0f;
    int64_t low = c->low[r] - c->first, high = c->high[r] - c->first;
    if (low < 0) low = 0;
    if (high > c->keys) high = c->keys;
    if (high < low || (c->valid_rows && !c->valid_rows[sequence * c->valid_rows_stride + r]))
        high = low;
    const int64_t start = low / WIDTH * WIDTH;
    const int64_t blocks = (high - start + SPAN - 1) / SPAN;

    float max_logit = MASKED;
    if (high > low)
        max_logit = load_row(source, room, scale, real_keys, c->keys, low, high, work, w->groups);
    int seen = max_logit > SEEN;
    /* Nothing is larger than a NaN: a row of them looks empty. */
    for (int64_t j = low; !seen && j < high; j++) seen = work[j] != work[j];
    if (seen && fabsf(max_logit) > c->limit) return 1;
    float shift = max_logit, rest = 0.0f, loss = 0.0f, mass = 1.0f, factor = 0.0f, sunk = 0.0f;
    if (seen) {
        if (c->topk_index)
            select_topk(work, w->groups, start, blocks, c->k, c->topk_index + at * c->k);
        if (c->sinks) {
            const float sink = c->sinks[head % c->heads];
            if (!(sink <= shift)) shift = sink;
            rest = expf(sink - shift);
            sunk = rest > 0.0f ? rest * (sink - shift) : 0.0f;
        }
        mass = exp_row(work, start, high, shift, &loss) + /* MUTANT sink_mass */ rest;
        factor = 1.0f / mass;
        add_to_columns(work, factor, start, high, w->key_sum, w->key_max);
    } else {
        for (int64_t i = 0; c->topk_index && i < c->k; i++) c->topk_index[at * c->k + i] = -1;
        low = high = 0;
    }
    const int64_t end = seen ? start + (high - start + WIDTH - 1) / WIDTH * WIDTH : w->low;
    const int64_t begin = seen ? start : w->low;
    if (w->low < begin) memset(work + w->low, 0, (begin - w->low) * sizeof(float));
    if (/* MUTANT behind_row */ end < w->high)
        memset(work + end, 0, (w->high - end) * sizeof(float));
    w->factors[place] = factor;
    if (c->weights)
        store_weights(work, factor, c->keys, seen ? start : 0, high, c->weights + at * c->keys);
    c->max_logit[at] = seen ? max_logit : MASKED;
    c->max_prob[at] = expf(max_logit - shift) * factor;
    c->lse_minus_max[at] = logf(mass) + (shift - max_logit);
    if (c->entropy) c->entropy[at] = logf(mass) - (loss + /* MUTANT sink_entropy */ sunk) * factor;
    if (c->first_sum) c->first_sum[at] = first_keys_mass(c, work, sequence, low, high) * factor;
    for (int64_t i = 0; c->topk_weights && i < c->k; i++) {
        const int64_t key = c->topk_index[at * c->k + i];
        const float weight = key < 0 ? NAN : work[key] /* MUTANT topk_weights */ * factor;
        c->topk_weights[at * c->k + i] = weight;
    }
    const int64_t here = c->first_position + r;
    if (c->distance_hist)
        distance_histogram(c, work, low, high, here, factor, c->distance_hist + at * c->bins);
    if (c->mean_distance || c->distance_variance) {
        const float mean = mean_distance(work, start, high, here, c->clip, 0.0f, 0) * factor;
        if (c->mean_distance) c->mean_distance[at] = mean;
        if (c->distance_variance) {
            const float sum = mean_distance(work, start, high, here, c->clip, mean, 1);
            c->distance_variance[at] = sum * factor;
        }
    }
    return 0;
}

/* Rows that pass from the first product to the last together, in multiples of 32. */
static int64_t rows_together(const Sweep *c) {
    const int amx = c->key_amx || c->value_amx;
    const int64_t least = amx ? 64 : 32, most = amx ? 128 : MOST;
    int64_t rows = amx ? NEARBY / c->keys : c->gemm ? NEAR / (c->keys + 1) : 0;
    rows = rows < least ? least : rows > most ? most : rows / 32 * 32;
    return rows > c->rows ? (c->rows + 31) / 32 * 32 : rows;
}

/* Columns that some rows see, and that their products take. */
static void find_columns(const Sweep *c, Work *w, int64_t from, int64_t to) {
    visible_columns(c, from, to, &w->low, &w->high);
    if (w->low == w->high) return;
    for (int64_t r = from, i = 0; r < to; r += 32, i++)
        visible_columns(c, r, r + 32 < to ? r + 32 : to, &w->lows[i], &w->highs[i]);
    if (!c->key_amx && !c->value_amx) return;
    w->low = (w->low + c->first) / TERMS * TERMS - c->first;
    w->high = (w->high + c->first + TERMS - 1) / TERMS * TERMS - c->first;
}

/* Logits of some rows against the keys that one of them sees. */
static void score_rows(const Sweep *c, const Work *w, int64_t head, int64_t from, int64_t to) {
    const int64_t rows = to - from, keys = w->high - w->low;
    const float none = 0.0f;
    if (keys <= 0) return;
    if (c->key_amx) {
        score_amx(c, w, head, from, to);
        return;
    }
    const float *key = c->key + /* MUTANT key_head */ head / c->group * c->key_head
                       + c->first + w->low;
    ((Gemm *)c->gemm)("N", "N", &keys, &rows, &c->size, &c->scale, key, &c->stride,
                      query_row_at(c, head, from), &c->query_row, &none,
                      w->rows + w->low, &w->stride);
}

/* Average the values by the weights of some rows. */
static void average_values(const Sweep *c, const Work *w, int64_t head, int64_t from, int64_t to) {
    const int64_t rows = to - from, keys = w->high - w->low;
    const float one = 1.0f, none = 0.0f;
    float *out = attn_output_at(c, head, from);
    if (keys <= 0) {
        memset(out, 0, rows * c->value_size * sizeof(float));
        return;
    }
    if (c->value_amx) {
        average_amx(c, w, head, from, to);
        return;
    }
    const float *value = c->value + /* MUTANT value_head */ head / c->group * c->value_head
                         + (c->first + w->low) * c->value_size;
    ((Gemm *)c->gemm)("N", "N", &c->value_size, &rows, &keys, &one, value, &c->value_size,
                      w->rows + w->low, &w->stride, &none, out, &c->value_size);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t d = 0; d < c->value_size; d++) out[r * c->value_size + d] *= w->factors[r];
}

/* Process the rows of one head; 1 if a row is beyond the limit. */
static int do_head(const Sweep *c, Work *w, int64_t head) {
    for (int64_t from = c->begin; from < c->end; from += w->rows_together) {
        const int64_t to = from + w->rows_together < c->end ? from + w->rows_together : c->end;
        find_columns(c, w, from, to);
        if (c->query) score_rows(c, w, head, from, to);
        for (int64_t r = from; r < to; r++) {
            if (do_row(c, w, head, r, r - from)) return 1;
            const int64_t next = r + 1;
            if (!(w->key_sum || w->key_max)) continue;
            if ((next /* MUTANT tile_end */) % c->tile && next < c->end) continue;
            reduce_tile(c, w, head, r / c->tile);
            if (w->key_sum) memset(w->key_sum, 0, c->keys * sizeof(float));
            if (w->key_max) memset(w->key_max, 0, c->keys * sizeof(float));
        }
        if (c->attn_output) average_values(c, w, head, from, to);
    }
    return 0;
}

/* Floats rounded up to lines of the cache. */
static int64_t round_to_lines(int64_t floats) { return (floats + WIDTH - 1) / WIDTH * WIDTH; }

/* Lay out the memory of a call; returns its floats. */
static int64_t layout_memory(const Sweep *c, Work *w) {
    const int64_t rows = rows_together(c), columns = round_to_lines(c->keys) + 2 * SPAN;
    const int64_t steps = (c->size + TERMS - 1) / TERMS;
    const int64_t spell = 2 * STEPS_TOGETHER * PARTS * AMX_TILE;
    const int64_t queries = c->key_amx ? rows / EDGE * steps * c->key_parts * AMX_TILE : 0;
    const int summed = c->key_sum || c->tile_sum, peaked = c->key_max || c->tile_max;
    float *const memory = c->memory;
    int64_t floats = 0;
    /* An odd number of lines from row to row: rows of a power of two would share one set of the
       cache. */
    w->stride = (columns + MARGIN) / WIDTH % 2 ? columns + MARGIN : columns + MARGIN + WIDTH;
    w->rows_together = rows;
#define PIECE(count) (memory + (floats += round_to_lines(count) + MARGIN) - round_to_lines(count))
    w->rows = PIECE(rows * w->stride);
    w->groups = PIECE(columns / GROUP + WIDTH);
    w->key_sum = summed ? PIECE(columns) : NULL;
    w->key_max = peaked ? PIECE(columns) : NULL;
    w->factors = PIECE(rows);
    w->left = (uint16_t *)PIECE((queries > spell ? queries : spell) / 2);
    w->attn_output = c->value_amx ? PIECE(rows * round_to_lines(c->value_size + TERMS)) : NULL;
    if (w->key_sum && memory) memset(w->key_sum - MARGIN, 0, (columns + MARGIN) * sizeof(float));
    if (w->key_max && memory) memset(w->key_max - MARGIN, 0, (columns + MARGIN) * sizeof(float));
    return floats;
}

/* Bytes of memory that a call needs, whose own is NULL. */
int64_t memory_bytes(const Sweep *c) {
    Work w;
    return layout_memory(c, &w) * sizeof(float);
}

/* Returns 0, or 1 when a row is beyond the limit. */
int sweep(const Sweep *c) {
    const int amx = c->key_amx || c->value_amx;
    int status = 0;
    Work w;
    layout_memory(c, &w);
    if (amx) amx_configure();
    for (int64_t head = 0; !status && head < c->batch * c->heads; head++) {
        const size_t row = c->keys * sizeof(float);
        if (c->key_sum && !c->begin) memset(c->key_sum + head * c->keys, 0, row);
        if (c->key_max && !c->begin) memset(c->key_max + head * c->keys, 0, row);
        status = do_head(c, &w, head);
    }
    if (amx) amx_release();
    return status;
}
