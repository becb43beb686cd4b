/* What the files of the sweep share: vectors, and the call as sweep_call.py lists it.

   Vectors are the compiler's own, so one text serves every processor; where it knows an instruction
   that it would not find by itself, that is named. */

#ifndef SWEEP_H
#define SWEEP_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define WIDTH 16           /* floats of a vector; narrower processors take several steps */
#define GROUP 8            /* vectors of a block; each of its lanes is one group of the top-k */
#define SPAN (WIDTH * GROUP)
#define MOST 256           /* rows that pass together, at most */
#define MASKED -1e30f      /* logit of a hidden key */
#define SEEN -4.9e29f      /* logits above it belong to keys that are seen */

typedef float vec __attribute__((vector_size(4 * WIDTH)));
typedef float half_vec __attribute__((vector_size(2 * WIDTH)));
typedef float quarter_vec __attribute__((vector_size(WIDTH)));
typedef int32_t ivec __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t uvec __attribute__((vector_size(4 * WIDTH)));
typedef uint8_t bvec __attribute__((vector_size(WIDTH)));
typedef float loose __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

/* What to do. Rows are [batch][head][row], each of `keys` floats; pointers may be NULL where that
   is said. */
typedef struct {
    int64_t batch, heads, rows, keys;
    int64_t begin, end;             /* rows to do: all, or whole tiles of them, in order */
    const float *logits;            /* those of these rows; NULL: they are made here */
    float *weights;                 /* of a panel, may be where the logits are; NULL: not kept */
    const int64_t *low, *high;      /* [row]: first visible key and one past the last */
    int64_t first;                  /* key of the panel's first column */
    const uint8_t *real_keys;       /* [batch][key]: keys that are no padding; NULL: all are */
    int64_t real_keys_stride;
    const uint8_t *valid_rows;      /* [batch][row]: rows with a result; NULL: all are */
    int64_t valid_rows_stride;
    const float *sinks;             /* [head]: logits of learned sinks; NULL: none */
    int64_t first_position;         /* column of the first row's own key */
    int64_t tile;                   /* rows and keys of a tile */
    int64_t bins;
    const int64_t *bin_ends;        /* [bin]: one past the largest distance */
    int64_t k;
    int64_t first_count;            /* first columns whose weights are added, or their list: */
    const int64_t *first_keys;      /* [batch][..]: first real keys, -1 for none; or NULL */
    float limit;                    /* stop at a row whose largest logit is farther from 0 */
    float clip;                     /* longer distances count as this */
    float *max_logit, *max_prob, *lse_minus_max; /* [..][row] */
    float *entropy, *mean_distance, *distance_variance, *first_sum; /* [..][row], or NULL */
    float *distance_hist;           /* [..][row][bin], or NULL */
    int64_t *topk_index;            /* [..][row][k], or NULL */
    float *topk_weights;            /* [..][row][k], or NULL; only with topk_index */
    float *key_sum, *key_max;       /* [batch][head][key], or NULL: over all rows */
    float *tile_sum, *tile_max;     /* [batch][head][tile][tile of keys], or NULL */
    void *gemm;                     /* sgemm of the machine's BLAS, or NULL */
    const float *query;             /* [batch][head][row][size]; NULL with logits */
    int64_t query_batch, query_head, query_row; /* floats from one to the next */
    const float *key;               /* [batch][kv head][size][key], size rows `stride` apart */
    const float *value;             /* [batch][kv head][key][value_size] */
    const uint16_t *key_amx, *value_amx; /* the same, packed; NULL: BLAS multiplies */
    int64_t key_parts, value_parts; /* bfloat16 numbers that make one of them */
    int64_t size, value_size, stride;
    int64_t key_head, value_head;   /* floats, or bfloat16, from one KV head to the next */
    int64_t group;                  /* heads of the panel that share a KV head */
    float scale;                    /* factor of the products */
    float *attn_output;             /* [batch][head][row][value_size], or NULL */
    int64_t attn_output_batch, attn_output_head; /* floats from one to the next */
    void *memory;                   /* `memory_bytes` bytes, on a line of the cache */
} Sweep;

/* Memory of one call. Rows pass from the first product to the last a few at a time; each has 16
   floats before it that can be read, and whole blocks after it that can be written. */
typedef struct {
    float *rows;                    /* [row][stride]: logits, then exponentials */
    int64_t stride, rows_together;  /* floats from row to row, and rows */
    int64_t low, high;              /* columns that products write and read, whole AMX tiles */
    int64_t lows[MOST / 32], highs[MOST / 32]; /* columns that each 32 rows see */
    float *factors;                 /* [row]: what makes weights of the exponentials */
    float *groups, *key_sum, *key_max; /* of a row; what the rows of a tile add up to, or NULL */
    uint16_t *left;                 /* AMX tiles of queries, then of exponentials */
    float *attn_output;             /* [row][value_size], rounded up to AMX tiles */
} Work;

static const ivec LANE = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

#define spread(x) ((vec){0} + (float)(x))
#define ispread(x) ((ivec){0} + (int32_t)(x))
#define pick(yes, a, b) ((vec)(((ivec)(a) & (yes)) | ((ivec)(b) & ~(yes))))
#define load(from) (*(const loose *)(from))
#define store(to, v) (*(loose *)(to) = (v))

/* a where it is larger, else b: b as well where one of them is NaN. */
static inline vec vec_max(vec a, vec b) {
#ifdef __AVX512F__
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return pick(a > b, a, b);
#endif
}

static float vec_sum(const vec *v) {
    const half_vec *half = (const half_vec *)v;
    const half_vec eight = half[0] + half[1];
    const quarter_vec *quarter = (const quarter_vec *)&eight;
    const quarter_vec four = quarter[0] + quarter[1];
    return (four[0] + four[1]) + (four[2] + four[3]);
}

static float vec_max_lane(const vec *v) {
    float f[WIDTH];
    store(f, *v);
    for (int w = WIDTH / 2; w; w /= 2)
        for (int i = 0; i < w; i++) f[i] = f[i] > f[i + w] ? f[i] : f[i + w];
    return f[0];
}

/* The query of a row. */
static inline const float *query_row_at(const Sweep *c, int64_t head, int64_t r) {
    return c->query + head / c->heads * c->query_batch + head % c->heads * c->query_head
           + r * c->query_row;
}

/* Where the mixed values of a row go. */
static inline float *attn_output_at(const Sweep *c, int64_t head, int64_t r) {
    return c->attn_output + head / c->heads * c->attn_output_batch
           + head % c->heads * c->attn_output_head
           + r * c->value_size;
}

/* Keys that some of these rows see, as columns of the panel. */
static void visible_columns(const Sweep *c, int64_t from, int64_t to, int64_t *low, int64_t *high) {
    *low = c->keys;
    *high = 0;
    for (int64_t r = from; r < to; r++) {
        if (c->low[r] - c->first < *low) *low = c->low[r] - c->first;
        if (c->high[r] - c->first > *high) *high = c->high[r] - c->first;
    }
    if (*low < 0) *low = 0;
    if (*high > c->keys) *high = c->keys;
    if (*high < *low) *high = *low;
}

#endif
