/* The k largest logits of a row. */


#define ROOM 128           /* candidates at once, twice the largest k */

/* Put the k largest of the candidates in order, equal ones as they came; the others are lost. */
static int64_t sort_topk(float *values, int32_t *keys, int64_t count, int64_t k) {
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
static void select_topk(const float *work, const float *groups, int64_t start, int64_t blocks,
                        int64_t k, int64_t *topk_index) {
    float values[ROOM];
    int32_t keys[ROOM];
    int64_t count = 0;
    float bound = SEEN;
    if (k <= WIDTH && blocks > 1) {
        vec most = load(groups);
        ivec above = ispread(0);
        for (int64_t b = 1; b < blocks; b++) {
            const vec group = load(groups + b * WIDTH);
            most = vec_max(group, most);
        }
        for (int i = 0; i < WIDTH; i++) above -= most < spread(most[i]);
        most = pick(above < ispread(k), -most, spread(-INFINITY));
        bound = -vec_max_lane(&most);
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
                count = sort_topk(values, keys, count, k);
                if (count == k && values[k - 1] > bound) bound = values[k - 1];
            }
            for (int64_t i = 0; i < GROUP; i++, at += WIDTH) {
                values[count] = work[at];
                keys[count] = (int32_t)at;
                count += work[at] >= bound /* MUTANT topk_bound */;
            }
        }
    }
    count = sort_topk(values, keys, count, k);
    for (int64_t i = 0; i < k; i++) topk_index[i] = i < count ? keys[i] : -1;
}
