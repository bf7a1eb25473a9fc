/* Local response normalization, b = a·(k + alpha·Σ a²)^-0.75, forward and backward, each in one pass over memory.

   A tensor is `outer` blocks of `channels` × `inner` numbers. NCHW: a block is a tower of an image, `inner` its pixels;
   channels last: a block is a tower of one pixel, and `inner` is 1. So no window leaves its tower. Sums are float32 and
   recomputed for each window (a sliding sum would lose small squares and spread an infinity).

   Built by lrn.py and called through ctypes: standard C headers only, no state, no errors. The caller ensures
   size <= MAX_SIZE, and channels <= MAX_CHANNELS if inner is 1. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define MAX_SIZE 16
#define MAX_CHANNELS 4096
#define STRIP 1024 /* pixels processed together, so that the rows of a window stay in the nearest caches */

typedef struct { /* keep in sync with _Shape in lrn.py */
    int64_t outer, channels, inner;
    int32_t size, bfloat16, threads;
    float alpha, k; /* alpha is divided by size */
} Shape;

/* ── memory access: float32, or bfloat16 (its upper half) rounded to nearest, ties to even ── */

/* Return n numbers as float32: in place, or converted into `buffer`. */
static const float *load(const void *from, int64_t at, int64_t n, int bfloat16, float *buffer) {
    if (!bfloat16) return (const float *)from + at;
    const uint16_t *halves = (const uint16_t *)from + at;
    for (int64_t i = 0; i < n; i++) {
        uint32_t word = (uint32_t)halves[i] << 16;
        memcpy(buffer + i, &word, sizeof word);
    }
    return buffer;
}

/* Return where to write n float32 results: in place, or `buffer` for a later `store`. */
static float *target(void *to, int64_t at, int bfloat16, float *buffer) {
    return bfloat16 ? buffer : (float *)to + at;
}

static void store(void *to, int64_t at, int64_t n, int bfloat16, const float *buffer) {
    if (!bfloat16) return;
    uint16_t *halves = (uint16_t *)to + at;
    for (int64_t i = 0; i < n; i++) {
        uint32_t word;
        memcpy(&word, buffer + i, sizeof word);
        uint32_t rounded = (word + 0x7fff + ((word >> 16) & 1)) >> 16;
        halves[i] = buffer[i] == buffer[i] ? (uint16_t)rounded : 0x7fc0; /* rounding could turn a NaN into infinity */
    }
}

/* ── arithmetic on n cached numbers: loops that the compiler vectorizes ── */

/* sums[i] = Σ over r < size of q[r·step + i]: rows of a strip (step STRIP), or neighbors in a row (step 1). */
static void window(const float *restrict q, int64_t step, int size, int64_t n, float *restrict sums) {
    if (size == 5) { /* the size in all networks: one pass */
        for (int64_t i = 0; i < n; i++)
            sums[i] = (q[i] + q[i + step]) + (q[i + 2 * step] + q[i + 3 * step]) + q[i + 4 * step];
        return;
    }
    memcpy(sums, q, n * sizeof(float));
    for (int r = 1; r < size; r++)
        for (int64_t i = 0; i < n; i++) sums[i] += q[r * step + i];
}

static void squares(const float *restrict x, int64_t n, float *restrict q) {
    for (int64_t i = 0; i < n; i++) q[i] = x[i] * x[i];
}

static void normalize(const float *restrict x, const float *restrict sums, float alpha, float k, int64_t n,
                             float *restrict y) {
    for (int64_t i = 0; i < n; i++) {
        float root = 1.0f / sqrtf(k + alpha * sums[i]);
        y[i] = x[i] * (root * sqrtf(root));
    }
}

/* With scale s: direct = dy·s^-0.75, the gradient through the numerator; indirect = dy·x·s^-1.75, through the sums. */
static void gradients(const float *restrict x, const float *restrict dy, const float *restrict sums,
                             float alpha, float k, int64_t n, float *restrict direct, float *restrict indirect) {
    for (int64_t i = 0; i < n; i++) {
        float root = 1.0f / sqrtf(k + alpha * sums[i]);
        direct[i] = dy[i] * (root * sqrtf(root));
        indirect[i] = direct[i] * x[i] * (root * root);
    }
}

static void combine(const float *restrict x, const float *restrict direct, const float *restrict sums,
                           float alpha, int64_t n, float *restrict dx) {
    for (int64_t i = 0; i < n; i++) dx[i] = direct[i] - (1.5f * alpha) * x[i] * sums[i]; /* 2·beta = 1.5 */
}

/* ── a strip of pixels, channel by channel, with the last `size` rows in ring buffers; rows beyond the edge are zero ── */

static void square_row(const void *x, int64_t at, int64_t c, int64_t n, Shape s, float *q) {
    float buffer[STRIP];
    if (c < s.channels) squares(load(x, at + c * s.inner, n, s.bfloat16, buffer), n, q);
    else memset(q, 0, n * sizeof(float));
}

static void strip_forward(const void *x, void *y, int64_t at, int64_t n, Shape s) {
    float q[MAX_SIZE * STRIP], sums[STRIP], buffer[STRIP], out[STRIP];
    int size = s.size, after = (size - 1) / 2;
    memset(q, 0, size * STRIP * sizeof(float));
    for (int64_t c = 0; c < s.channels + after; c++) {
        square_row(x, at, c, n, s, q + (c % size) * STRIP);
        if (c < after) continue;
        int64_t here = at + (c - after) * s.inner;
        window(q, STRIP, size, n, sums);
        normalize(load(x, here, n, s.bfloat16, buffer), sums, s.alpha, s.k, n, target(y, here, s.bfloat16, out));
        store(y, here, n, s.bfloat16, out);
    }
}

static void strip_backward(const void *x, const void *dy, void *dx, int64_t at, int64_t n, Shape s) {
    float q[MAX_SIZE * STRIP], indirect[MAX_SIZE * STRIP], direct[MAX_SIZE * STRIP];
    float sums[STRIP], buffer[STRIP], buffer_dy[STRIP], out[STRIP];
    int size = s.size, before = size / 2, after = (size - 1) / 2;
    memset(q, 0, size * STRIP * sizeof(float));
    memset(indirect, 0, size * STRIP * sizeof(float));
    for (int64_t c = 0; c < s.channels + after + before; c++) { /* square c, compute the scale of j and the gradient of i */
        int64_t j = c - after, i = j - before;
        square_row(x, at, c, n, s, q + (c % size) * STRIP);
        if (j < 0) continue;
        float *newest = indirect + (j % size) * STRIP;
        if (j < s.channels) {
            int64_t here = at + j * s.inner;
            window(q, STRIP, size, n, sums);
            gradients(load(x, here, n, s.bfloat16, buffer), load(dy, here, n, s.bfloat16, buffer_dy), sums, s.alpha, s.k, n,
                      direct + (j % size) * STRIP, newest);
        } else {
            memset(newest, 0, n * sizeof(float));
        }
        if (i < 0) continue;
        int64_t here = at + i * s.inner;
        window(indirect, STRIP, size, n, sums); /* channel i is in the windows of i - after … i + before */
        combine(load(x, here, n, s.bfloat16, buffer), direct + (i % size) * STRIP, sums, s.alpha, n,
                target(dx, here, s.bfloat16, out));
        store(dx, here, n, s.bfloat16, out);
    }
}

/* ── a row of channels, in buffers padded with zeros ── */

static void row(const void *x, const void *dy, void *result, int64_t at, Shape s) {
    float q[MAX_CHANNELS + MAX_SIZE], indirect[MAX_CHANNELS + MAX_SIZE], sums[MAX_CHANNELS], direct[MAX_CHANNELS];
    float buffer[MAX_CHANNELS], buffer_dy[MAX_CHANNELS], out[MAX_CHANNELS];
    int64_t n = s.channels;
    int size = s.size, before = size / 2, after = (size - 1) / 2;
    const float *a = load(x, at, n, s.bfloat16, buffer);
    float *to = target(result, at, s.bfloat16, out);
    memset(q, 0, before * sizeof(float));
    squares(a, n, q + before);
    memset(q + before + n, 0, after * sizeof(float));
    window(q, 1, size, n, sums);
    if (dy) {
        memset(indirect, 0, after * sizeof(float));
        gradients(a, load(dy, at, n, s.bfloat16, buffer_dy), sums, s.alpha, s.k, n, direct, indirect + after);
        memset(indirect + after + n, 0, before * sizeof(float));
        window(indirect, 1, size, n, sums);
        combine(a, direct, sums, s.alpha, n, to);
    } else {
        normalize(a, sums, s.alpha, s.k, n, to);
    }
    store(result, at, n, s.bfloat16, out);
}

/* Write the output y for x if dy is NULL, else the gradient dx. */
void lrn(const void *x, const void *dy, void *result, Shape s) {
    int64_t strips = (s.inner + STRIP - 1) / STRIP, width = (s.inner + strips - 1) / strips;
#pragma omp parallel for num_threads(s.threads) schedule(static)
    for (int64_t p = 0; p < s.outer * strips; p++) {
        int64_t first = p % strips * width, n = s.inner - first < width ? s.inner - first : width;
        int64_t at = p / strips * s.channels * s.inner + first;
        if (s.inner == 1) row(x, dy, result, at, s);
        else if (dy) strip_backward(x, dy, result, at, n, s);
        else strip_forward(x, result, at, n, s);
    }
}
