/* One sweep over the rows of a panel: exact softmax, in place, and the reductions asked for.

   Where queries and keys are given, logits are made here as well, and where `mixed` is, the weights
   meet the values: a few rows at a time, so that they are in the cache from the first product to
   the second. A row is read from memory once and stays in the cache nearest to the processor until its weights
   are written back. Vectors are the compiler's own, so one text serves every processor. Without
   fast-math: a NaN among the visible logits of a row reaches every result of that row. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define WIDTH 16           /* floats of a vector; narrower processors take several steps */
#define GROUP 8            /* vectors of a block; each of its lanes is one group of the top-k */
#define SPAN (WIDTH * GROUP)
#define ROOM 128           /* candidates for the top-k at once, twice the largest k */
#define MASKED -1e30f      /* logit of a hidden key */
#define SEEN -4.9e29f      /* logits above it belong to keys that are seen */
#define NEAR (1 << 19)     /* floats of the rows between two products: they stay in the cache */
#define NEGLIGIBLE -75.0f  /* logit, less the largest, below which a weight is 0 */

typedef float vec __attribute__((vector_size(4 * WIDTH)));
typedef float half_vec __attribute__((vector_size(2 * WIDTH)));
typedef float quarter_vec __attribute__((vector_size(WIDTH)));
typedef int32_t ivec __attribute__((vector_size(4 * WIDTH)));
typedef uint8_t bvec __attribute__((vector_size(WIDTH)));

/* What to do; sweep.py holds the same list. Rows are [batch][head][row], each of `keys` floats. */
typedef struct {
    int64_t batch, heads, rows, keys;
    float *panel;                   /* logits, overwritten by the weights */
    const int64_t *low, *high;      /* [row]: first visible key and one past the last */
    int64_t first;                  /* key of the panel's first column */
    const uint8_t *real;            /* [batch][key]: keys that are no padding; NULL: all are */
    int64_t real_stride;
    const uint8_t *alive;           /* [batch][row]: rows with a result; NULL: all are */
    int64_t alive_stride;
    const float *sinks;             /* [head]: logits of learned sinks; NULL: none */
    int64_t position;               /* column at which the first row's query stands */
    int64_t tile;                   /* rows and keys of a tile */
    int64_t bins;
    const int64_t *ends;            /* [bin]: one past the largest distance */
    int64_t k;
    float limit;                    /* stop at a row whose largest logit is farther from 0 */
    float clip;                     /* longer distances count as this */
    float *peak, *top, *surplus;    /* [..][row] */
    float *entropy, *distance, *variance; /* [..][row], or NULL */
    float *histogram;               /* [..][row][bin], or NULL */
    int64_t *leaders;               /* [..][row][k], or NULL */
    float *sums, *peaks;            /* [batch][head][key], or NULL: over all rows */
    float *tile_sums, *tile_peaks;  /* [batch][head][tile][tile of keys], or NULL */
    void *gemm;                     /* sgemm of the machine's BLAS; NULL: no products here */
    const float *query;             /* [..][row][size]; NULL: the panel holds logits */
    const float *key;               /* [batch][kv head][size][key], size rows `stride` apart */
    const float *value;             /* [batch][kv head][key][value_size] */
    int64_t size, value_size, stride;
    int64_t key_room, value_room;   /* floats from one KV head to the next */
    int64_t group;                  /* heads of the panel that share a KV head */
    float scale;                    /* factor of the products */
    float *mixed;                   /* [..][row][value_size], or NULL */
} Sweep;

/* BLAS counts columns first, so that every product here is that of the transposes. Its integers
   have 4 or 8 bytes; small numbers of 8 bytes, lowest byte first, read the same as 4. */
typedef void Gemm(const char *, const char *, const int64_t *, const int64_t *, const int64_t *,
                  const float *, const float *, const int64_t *, const float *, const int64_t *,
                  const float *, float *, const int64_t *);

static const ivec LANE = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

#define spread(x) ((vec){0} + (float)(x))
#define ispread(x) ((ivec){0} + (int32_t)(x))
#define pick(yes, a, b) ((vec)(((ivec)(a) & (yes)) | ((ivec)(b) & ~(yes))))
#define load(from) (*(const loose *)(from))
#define store(to, v) (*(loose *)(to) = (v))
typedef float loose __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

static float total(const vec *v) {
    const half_vec *half = (const half_vec *)v;
    const half_vec eight = half[0] + half[1];
    const quarter_vec *quarter = (const quarter_vec *)&eight;
    const quarter_vec four = quarter[0] + quarter[1];
    return (four[0] + four[1]) + (four[2] + four[3]);
}

static float largest(const vec *v) {
    float f[WIDTH];
    store(f, *v);
    for (int w = WIDTH / 2; w; w /= 2)
        for (int i = 0; i < w; i++) f[i] = f[i] > f[i + w] ? f[i] : f[i + w];
    return f[0];
}

/* The larger one; NaN where one of them is. */
static inline float upper(float a, float b) { return a > b || a != a ? a : b; }

/* Add row[from..to); the 16 floats before it are readable. */
static float add(const float *row, int64_t from, int64_t to) {
    vec sum = spread(0);
    if (from >= to) return 0.0f;
    for (; from + WIDTH <= to; from += WIDTH) sum += load(row + from);
    if (from < to) {
        const ivec wanted = LANE >= ispread(WIDTH - (to - from));
        sum += pick(wanted, load(row + to - WIDTH), spread(0));
    }
    return total(&sum);
}

/* Copy the logits of a row between its bounds, hidden ones at MASKED, and find the largest, that
   of the row and that of every group of eight. The copy is filled up to whole blocks. */
static float enter(const float *source, const uint8_t *real, int64_t keys, int64_t low,
                   int64_t high, float *work, float *groups) {
    const int64_t start = low / WIDTH * WIDTH;
    vec most = spread(MASKED);
    for (int64_t first = start; first < high; first += SPAN, groups += WIDTH) {
        vec group = spread(MASKED);
        for (int64_t j = first; j < first + SPAN; j += WIDTH) {
            vec s = spread(MASKED);
            if (j + WIDTH <= keys) {
                s = load(source + j);
            } else if (j < keys) {
                memcpy(&s, source + j, (keys - j) * sizeof(float));
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
            group = pick(s > group, s, group);
        }
        store(groups, group);
        most = pick(group > most, group, most);
    }
    return largest(&most);
}

/* Put the k largest of the candidates in order, equal ones as they came; the others are lost. */
static int64_t order(float *values, int32_t *keys, int64_t count, int64_t k) {
    float value[ROOM];
    int32_t key[ROOM], rank[ROOM];
    memcpy(value, values, count * sizeof(float));
    memcpy(key, keys, count * sizeof(int32_t));
    for (int64_t v = 0; v < count; v += WIDTH) {
        const vec mine = load(values + v);
        const ivec place = LANE + ispread(v);
        ivec above = ispread(0);
        for (int64_t i = 0; i < count; i++) {
            const vec other = spread(value[i]);
            above -= (mine < other) | ((mine == other) & (place > ispread(i)));
        }
        memcpy(rank + v, &above, sizeof above);
    }
    for (int64_t i = 0; i < count; i++) {
        values[rank[i]] = value[i];
        keys[rank[i]] = key[i];
    }
    return count < k ? count : k;
}

/* Find the columns of the k largest logits. The k largest groups hold them. Of the largest in each
   of the sixteen lanes, the k-th bounds them from below, so few groups are opened. Branches on
   values would be guessed wrongly: a candidate is written first and counted afterwards. */
static void lead(const float *work, const float *groups, int64_t start, int64_t blocks, int64_t k,
                 int64_t *leaders) {
    float values[ROOM];
    int32_t keys[ROOM];
    int64_t count = 0;
    float bound = SEEN;
    if (k <= WIDTH && blocks > 1) {
        vec most = load(groups);
        ivec above = ispread(0);
        for (int64_t b = 1; b < blocks; b++) {
            const vec group = load(groups + b * WIDTH);
            most = pick(group > most, group, most);
        }
        for (int i = 0; i < WIDTH; i++) above -= most < spread(most[i]);
        most = pick(above < ispread(k), -most, spread(-INFINITY));
        bound = -largest(&most);
        if (!(bound > SEEN)) bound = SEEN;
    }
    for (int64_t b = 0; b < blocks; b++) {
        const ivec near = load(groups + b * WIDTH) >= spread(bound);
        const bvec bytes = __builtin_convertvector(near & 1, bvec);
        uint8_t lanes[WIDTH];
        uint64_t half[2];
        memcpy(lanes, &bytes, WIDTH);
        memcpy(half, lanes, WIDTH);
        if (!(half[0] | half[1])) continue;
        for (int64_t lane = 0; lane < WIDTH; lane++) {
            if (!lanes[lane]) continue;
            int64_t at = start + b * SPAN + lane;
            if (count + GROUP > ROOM) {
                count = order(values, keys, count, k);
                if (count == k && values[k - 1] > bound) bound = values[k - 1];
            }
            for (int64_t i = 0; i < GROUP; i++, at += WIDTH) {
                values[count] = work[at];
                keys[count] = (int32_t)at;
                count += work[at] >= bound;
            }
        }
    }
    count = order(values, keys, count, k);
    for (int64_t i = 0; i < k; i++) leaders[i] = i < count ? keys[i] : -1;
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
        x = pick(gone, spread(NEGLIGIBLE), x);
        const vec e = (vec)((ivec)grow(x) & ~gone);
        store(work + j, e);
        sum += e;
        lost += e * x;
    }
    *loss = total(&lost);
    /* An exponent is added as an integer, which a NaN may not survive; here it does. */
    return *loss == *loss ? total(&sum) : *loss;
}

/* Memory of one call: a row, its groups, and what the rows of a tile add up to. */
typedef struct { float *row, *groups, *sums, *peaks; } Work;

/* Write the weights of a row, zero outside its bounds, and take them into their tile. */
static void leave(const float *work, float factor, int64_t keys, int64_t start, int64_t high,
                  float *out, float *sums, float *peaks) {
    int64_t j = start;
    memset(out, 0, start * sizeof(float));
    for (; j < high && j + WIDTH <= keys; j += WIDTH) {
        const vec w = load(work + j) * spread(factor);
        store(out + j, w);
        if (sums) store(sums + j, load(sums + j) + w);
        if (peaks) {
            const vec before = load(peaks + j);
            store(peaks + j, pick((w > before) | (w != w), w, before));
        }
    }
    for (; j < high; j++) {
        out[j] = work[j] * factor;
        if (sums) sums[j] += out[j];
        if (peaks) peaks[j] = upper(out[j], peaks[j]);
    }
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
static void close(const Sweep *c, const Work *w, int64_t head, int64_t tile) {
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

static int one(const Sweep *c, const Work *w, int64_t head, int64_t r) {
    const int64_t at = head * c->rows + r, sequence = head / c->heads;
    const uint8_t *real = c->real ? c->real + sequence * c->real_stride : NULL;
    float *row = c->panel + at * c->keys, *work = w->row;
    int64_t low = c->low[r] - c->first, high = c->high[r] - c->first;
    if (low < 0) low = 0;
    if (high > c->keys) high = c->keys;
    if (high < low || (c->alive && !c->alive[sequence * c->alive_stride + r])) high = low;
    const int64_t start = low / WIDTH * WIDTH;
    const int64_t blocks = (high - start + SPAN - 1) / SPAN;

    const float peak = high > low ? enter(row, real, c->keys, low, high, work, w->groups) : MASKED;
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
        leave(work, factor, c->keys, start, high, row, w->sums, w->peaks);
    } else {
        memset(row, 0, c->keys * sizeof(float));
        for (int64_t i = 0; c->leaders && i < c->k; i++) c->leaders[at * c->k + i] = -1;
        low = high = 0;
    }
    c->peak[at] = seen ? peak : MASKED;
    c->top[at] = expf(peak - shift) * factor;
    c->surplus[at] = logf(mass) + (shift - peak);
    if (c->entropy) c->entropy[at] = logf(mass) - (loss + sunk) * factor;
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

/* Rows that pass from the first product to the last together, at least 32. */
static int64_t together(const Sweep *c) {
    const int64_t rows = NEAR / (c->keys + 1) / 16 * 16;
    return !c->gemm ? c->rows : rows < 32 ? 32 : rows;
}

/* Keys that some of these rows see, as columns of the panel. */
static void bounds(const Sweep *c, int64_t from, int64_t to, int64_t *low, int64_t *high) {
    *low = c->keys;
    *high = 0;
    for (int64_t r = from; r < to; r++) {
        if (c->low[r] - c->first < *low) *low = c->low[r] - c->first;
        if (c->high[r] - c->first > *high) *high = c->high[r] - c->first;
    }
    if (*low < 0) *low = 0;
    if (*high > c->keys) *high = c->keys;
}

/* Logits of some rows against the keys that one of them sees. */
static void score(const Sweep *c, int64_t head, int64_t from, int64_t to) {
    const int64_t at = head * c->rows + from, rows = to - from;
    const float none = 0.0f;
    int64_t low, high;
    bounds(c, from, to, &low, &high);
    const int64_t keys = high - low;
    if (keys <= 0) return;
    const float *key = c->key + head / c->group * c->key_room + low;
    ((Gemm *)c->gemm)("N", "N", &keys, &rows, &c->size, &c->scale, key, &c->stride,
                      c->query + at * c->size, &c->size, &none,
                      c->panel + at * c->keys + low, &c->keys);
}

/* Average the values by the weights of some rows. */
static void mix(const Sweep *c, int64_t head, int64_t from, int64_t to) {
    const int64_t at = head * c->rows + from, rows = to - from;
    const float one = 1.0f, none = 0.0f;
    int64_t low, high;
    bounds(c, from, to, &low, &high);
    const int64_t keys = high - low;
    float *out = c->mixed + at * c->value_size;
    if (keys <= 0) {
        memset(out, 0, rows * c->value_size * sizeof(float));
        return;
    }
    const float *value = c->value + head / c->group * c->value_room + low * c->value_size;
    ((Gemm *)c->gemm)("N", "N", &c->value_size, &rows, &keys, &one, value, &c->value_size,
                      c->panel + at * c->keys + low, &c->keys, &none, out, &c->value_size);
}

/* The rows of one head; 1 when one is beyond the limit. */
static int all(const Sweep *c, const Work *w, int64_t head) {
    const int64_t step = together(c);
    for (int64_t from = 0; from < c->rows; from += step) {
        const int64_t to = from + step < c->rows ? from + step : c->rows;
        if (c->query) score(c, head, from, to);
        for (int64_t r = from; r < to; r++) {
            if (one(c, w, head, r)) return 1;
            if (!(w->sums || w->peaks) || ((r + 1) % c->tile && r + 1 < c->rows)) continue;
            close(c, w, head, r / c->tile);
            if (w->sums) memset(w->sums, 0, c->keys * sizeof(float));
            if (w->peaks) memset(w->peaks, 0, c->keys * sizeof(float));
        }
        if (c->mixed) mix(c, head, from, to);
    }
    return 0;
}

/* Returns 0; 1 when a row is beyond the limit, with the panel spoilt; 2 without memory. */
int sweep(const Sweep *c) {
    const int64_t room = (c->keys + 3 * SPAN - 1) / SPAN * SPAN;
    const int summed = c->sums || c->tile_sums, peaked = c->peaks || c->tile_peaks;
    float *memory = NULL;
    if (posix_memalign((void **)&memory, 64, (3 * room + room / GROUP) * sizeof(float))) return 2;
    /* Room on the left of a row and of sums: the last vector of a range may begin before it. */
    memset(memory, 0, 3 * room * sizeof(float));
    const Work w = {memory + SPAN, memory + 3 * room, summed ? memory + room + SPAN : NULL,
                    peaked ? memory + 2 * room + SPAN : NULL};
    int status = 0;
    for (int64_t head = 0; !status && head < c->batch * c->heads; head++) {
        if (c->sums) memset(c->sums + head * c->keys, 0, c->keys * sizeof(float));
        if (c->peaks) memset(c->peaks + head * c->keys, 0, c->keys * sizeof(float));
        status = all(c, &w, head);
    }
    free(memory);
    return status;
}
