/* Products of float32 matrices on a processor's matrix unit, which multiplies bfloat16.

   A float32 number is the sum of three bfloat16 numbers, its parts; one that was bfloat16 before is
   its only part. Products of parts are exact in float32, and those left out (third with second,
   third with third) are below half a unit in the last place of the product. The small ones are
   added first. So the sum is as near to the exact one as BLAS comes, and the unit is more than
   twice as fast as float32 arithmetic, and eight times where there is one part.

   An AMX tile holds 16 rows of 32 terms. The left factor of a product has its rows there, the right
   one its columns; term t shares a word with term t + 16, on both sides. */

#define EDGE 16            /* rows of an AMX tile */
#define TERMS 32           /* terms of an AMX tile */
#define AMX_TILE (EDGE * TERMS)
#define PARTS (3 /* MUTANT amx_parts */) /* of a float32 number */
#define STEPS_TOGETHER 8   /* steps of the second product before it is added to the sum */

/* Take the next part off every number: the nearest bfloat16, as the upper half of its word. */
static inline uvec next_bf16(vec *from, int last) {
    const uvec bits = ((uvec)*from + (last ? 0u : 0x8000u)) & 0xffff0000u;
    *from -= (vec)bits;
    return bits;
}

/* Write the parts of 32 numbers, each part as one row of an AMX tile. */
static inline void split_bf16(vec even, vec odd, int64_t parts, uint16_t *to) {
    for (int64_t p = 0; p < parts; p++) {
        /* The last part is all that is left: cutting it off keeps a NaN. */
        const uvec low = next_bf16(&even, p + 1 == parts), high = next_bf16(&odd, p + 1 == parts);
        const uvec words = low >> 16 | high;
        memcpy(to + p * AMX_TILE, &words, sizeof words);
    }
}

/* Read up to 16 numbers, zeros where there are none. */
static inline vec load_partial(const float *from, int64_t count, int64_t apart) {
    vec found = spread(0);
    if (count >= WIDTH && apart == 1) return load(from);
#ifdef __AVX512F__
    if (count >= WIDTH && apart < 1 << 26)
        return (vec)_mm512_i32gather_ps((__m512i)(LANE * ispread(apart)), from, sizeof(float));
#endif
    for (int64_t i = 0; i < count && i < WIDTH; i++) found[i] = from[i * apart];
    return found;
}

/* Pack the right factor of products. Tiles of one step, 32 terms, lie `step` tiles from those of
   the next, and those of 16 columns `edge` tiles from the next; there is one for each part. Columns
   are filled up to a multiple of 32. */
void pack_tiles(const float *from, int64_t terms, int64_t columns, int64_t term_stride,
          int64_t column_stride, int64_t parts, int64_t step, int64_t edge, uint16_t *to) {
    for (int64_t s = 0; s * TERMS < terms; s++)
        for (int64_t e = 0; e < (columns + 2 * EDGE - 1) / (2 * EDGE) * 2; e++) {
            uint16_t *amx_tile = to + (s * step + e * edge) * parts * AMX_TILE;
            const float *corner = from + e * EDGE * column_stride;
            for (int64_t r = 0; r < EDGE; r++) {
                vec half[2];
                for (int h = 0; h < 2; h++) {
                    const int64_t t = s * TERMS + h * EDGE + r;
                    half[h] = load_partial(corner + (t /* MUTANT amx_terms */) * term_stride,
                                   t < terms ? columns - e * EDGE : 0, column_stride);
                }
                split_bf16(half[0], half[1], parts, amx_tile + r * TERMS);
            }
        }
}

#if defined(__AMX_BF16__) && defined(__linux__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Ask the system for the matrix unit; 1 where it may be used. */
int amx_available(void) {
    enum { REQUEST = 0x1023, DATA = 18 };
    return !syscall(SYS_arch_prctl, REQUEST, DATA);
}

static void amx_configure(void) {
    struct {
        uint8_t palette, start, none[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        shape.bytes[i] = 2 * TERMS;
        shape.rows[i] = EDGE;
    }
    _tile_loadconfig(&shape);
}

static void amx_release(void) { _tile_release(); }

/* Multiply 32 rows by 32 columns: two AMX tiles on the left, two on the right, in every step. */
static inline __attribute__((always_inline)) void
tile_matmul_parts(const uint16_t *left, int64_t below, int left_parts, const uint16_t *right,
                  int64_t beside, int64_t ahead, int right_parts, int64_t steps, float *out,
                  int64_t stride) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int largest = 0; largest < 2; largest++)
        for (int64_t s = 0; s < steps; s++)
            for (int i = 0; i < left_parts; i++) {
                const uint16_t *a = left + (s * left_parts + i) * AMX_TILE;
                if (largest ? i > 0 : left_parts + right_parts == 2) continue;
                _tile_loadd(4, a, 2 * TERMS);
                _tile_loadd(5, a + below, 2 * TERMS);
                for (int j = 0; j < right_parts; j++) {
                    if (i + j >= PARTS /* MUTANT amx_third_parts */) break;
                    const uint16_t *b = right + s * ahead + j * AMX_TILE;
                    if (largest != (i + j == 0)) continue;
                    _tile_loadd(6, b, 2 * TERMS);
                    _tile_loadd(7, b + beside, 2 * TERMS);
                    _tile_dpbf16ps(0, 4, 6);
                    _tile_dpbf16ps(1, 4, 7);
                    _tile_dpbf16ps(2, 5, 6);
                    _tile_dpbf16ps(3, 5, 7);
                }
            }
    _tile_stored(0, out, stride * sizeof(float));
    _tile_stored(1, out + EDGE, stride * sizeof(float));
    _tile_stored(2, out + EDGE * stride, stride * sizeof(float));
    _tile_stored(3, out + EDGE * stride + EDGE, stride * sizeof(float));
}

#define WITH(l, r)                                                                                \
    if (left_parts == l && right_parts == r)                                                      \
        tile_matmul_parts(left, below, l, right, beside, ahead, r, steps, out, stride)

/* The same with numbers of parts that only the call knows. */
static void tile_matmul(const uint16_t *left, int64_t below, int64_t left_parts,
                        const uint16_t *right, int64_t beside, int64_t ahead, int64_t right_parts,
                        int64_t steps, float *out, int64_t stride) {
    WITH(1, 1);
    WITH(2, 2);
    WITH(3, 1);
    WITH(3, 2);
    WITH(3, 3);
}

/* Logits of some rows, less their scale, against the keys that one of them sees. */
static void score_amx(const Sweep *c, const Work *w, int64_t head, int64_t from, int64_t to) {
    const int64_t steps = (c->size + TERMS - 1) / TERMS, parts = c->key_parts;
    const int64_t below = steps * parts * AMX_TILE, edge = steps * parts * AMX_TILE;
    const uint16_t *right = c->key_amx + /* MUTANT amx_key_head */ head / c->group * c->key_head;
    for (int64_t r = 0; r < (to - from + 2 * EDGE - 1) / (2 * EDGE) * 2 * EDGE; r++) {
        const int64_t there = from + r < to;
        const float *row = query_row_at(c, head, from + r * there);
        uint16_t *amx_tile = w->left + r / EDGE * below + r % EDGE * TERMS;
        for (int64_t s = 0; s < steps; s++) {
            const int64_t t = s * TERMS, rest = there ? c->size - t : 0;
            split_bf16(load_partial(row + t, rest, 1), load_partial(row + t + EDGE, rest - EDGE, 1),
                       parts, amx_tile + s * parts * AMX_TILE);
        }
    }
    for (int64_t n = (w->low + c->first) / TERMS; n * TERMS < w->high + c->first; n++)
        for (int64_t r = 0; from + r < to; r += 2 * EDGE) {
            const int64_t column = n * TERMS - c->first;
            const int64_t high = w->highs[r / TERMS], low = w->lows[r / TERMS];
            if (column >= high || column + TERMS /* MUTANT amx_window */ <= low) continue;
            tile_matmul(w->left + r / EDGE * below, below, parts, right + 2 * n * edge, edge,
                        parts * AMX_TILE, parts, steps, w->rows + r * w->stride + column,
                        w->stride);
        }
}

/* Average the values by the exponentials of some rows: sums of a few steps, then their sum, so that
   a long text costs no precision. */
static void average_amx(const Sweep *c, const Work *w, int64_t head, int64_t from, int64_t to) {
    const int64_t edges = (c->value_size + 2 * EDGE - 1) / (2 * EDGE) * 2, width = edges * EDGE;
    const int64_t beside = c->value_parts * AMX_TILE, ahead = edges * beside;
    const int64_t rows = (to - from + 2 * EDGE - 1) / (2 * EDGE) * 2 * EDGE;
    const uint16_t *right = c->value_amx
                            + /* MUTANT amx_value_head */ head / c->group * c->value_head;
    float part[2 * EDGE * 2 * EDGE] __attribute__((aligned(64)));
    memset(w->attn_output, 0, rows * width * sizeof(float));
    for (int64_t r = to - from; r < rows; r++)
        memset(w->rows + r * w->stride + w->low, 0, (w->high - w->low) * sizeof(float));
    const int64_t first_step = (w->low + c->first) / TERMS;
    for (int64_t s = first_step; s * TERMS < w->high + c->first; s += STEPS_TOGETHER)
        for (int64_t r = 0; r < rows; r += 2 * EDGE) {
            const int64_t column = s * TERMS - c->first, high = w->highs[r / TERMS];
            if (column >= high || column + STEPS_TOGETHER * TERMS <= w->lows[r / TERMS]) continue;
            const int64_t left = (high - column + TERMS - 1 /* MUTANT amx_steps */) / TERMS;
            const int64_t steps = left < STEPS_TOGETHER ? left : STEPS_TOGETHER;
            const int64_t below = steps * PARTS * AMX_TILE;
            for (int64_t i = 0; i < 2 * EDGE; i++) {
                const float *row = w->rows + (r + i) * w->stride + column;
                uint16_t *amx_tile = w->left + i / EDGE * below + i % EDGE * TERMS;
                for (int64_t t = 0; t < steps; t++, row += TERMS, amx_tile += PARTS * AMX_TILE)
                    split_bf16(load(row), load(row + EDGE), PARTS, amx_tile);
            }
            for (int64_t e = 0; e < edges; e += 2) {
                tile_matmul(w->left, below, PARTS, right + s * ahead + e * beside, beside, ahead,
                     c->value_parts, steps, part, 2 * EDGE);
                for (int64_t i = 0; i < 2 * EDGE; i++)
                    for (int64_t j = 0; j < 2 * EDGE; j += WIDTH) {
                        float *sum = w->attn_output + (r + i) * width + e * EDGE + j;
                        store(sum, load(sum) + load(part + i * 2 * EDGE + j));
                    }
            }
        }
    for (int64_t r = 0; from + r < to; r++) {
        float *out = attn_output_at(c, head, from + r);
        for (int64_t d = 0; d < c->value_size; d++)
            out[d] = w->attn_output[r * width + d] * w->factors[r];
    }
}

#else
int amx_available(void) { return 0; }
static void amx_configure(void) {}
static void amx_release(void) {}
static void score_amx(const Sweep *c, const Work *w, int64_t head, int64_t from, int64_t to) {}
static void average_amx(const Sweep *c, const Work *w, int64_t head, int64_t from, int64_t to) {}
#endif
