/* An update of a block in one pass over memory. Called by fused_apply.py, without Python's headers and without its lock.

   Compiled with -ffp-contract=off and no reordering: an element's result is the same wherever it lies in a block, on
   every processor. A tile is what the first-level cache holds of every array. */
#include <math.h>
#include <stddef.h>
#include <stdlib.h> /* __GLIBC__ */

/* One build for all nodes of a cluster: the loader chooses what the processor can do. */
#if !defined(FOR_EACH_PROCESSOR) && defined(__has_attribute) && defined(__x86_64__) && defined(__GLIBC__)
#if __has_attribute(target_clones)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#endif
#ifndef FOR_EACH_PROCESSOR
#define FOR_EACH_PROCESSOR
#endif

#define TILE 128
#define LANES 16 /* sums of squares side by side, in the same order on every processor */

/* Of fused_apply.py's Coefficients, in its order. */
typedef struct {
    float scale, coupled_decay, kept;        /* g = scale * sum + coupled_decay * w;  w *= kept */
    float one_less_beta1, beta2, one_less_beta2;
    float mean_factor, gradient_factor;      /* w -= (mean_factor * m + gradient_factor * g) / denominator */
    float root_factor, eps;                  /* denominator = root_factor * sqrt(v) + eps */
    float average_weight, lookahead;
} coefficients;

/* Two vectors at a time: half the passes over the tile. */
static inline void sum_tile(const float *const *parts, int num_parts, size_t start, int count, float *restrict sum) {
    const float *first = parts[0] + start;
    int part = 1;
    if (num_parts == 1) {
        for (int i = 0; i < count; i++) sum[i] = first[i];
    } else {
        const float *second = parts[part++] + start;
        for (int i = 0; i < count; i++) sum[i] = first[i] + second[i];
    }
    for (; part + 1 < num_parts; part += 2) {
        const float *next = parts[part] + start, *after = parts[part + 1] + start;
        for (int i = 0; i < count; i++) sum[i] = sum[i] + next[i] + after[i];
    }
    if (part < num_parts) {
        const float *last = parts[part] + start;
        for (int i = 0; i < count; i++) sum[i] += last[i];
    }
}

/* The sum of squares of the sum of vectors, which is written to `total` unless that is NULL; it may be one of them. */
FOR_EACH_PROCESSOR
double hpcasync_sum(const float *const *parts, int num_parts, size_t size, float *total) {
    float sum[TILE];
    double lanes[LANES] = {0}, squares = 0;
    for (size_t start = 0; start < size; start += TILE) {
        int count = size - start < TILE ? (int)(size - start) : TILE;
        sum_tile(parts, num_parts, start, count, sum);
        if (total)
            for (int i = 0; i < count; i++) total[start + i] = sum[i];
        for (int i = count; i < TILE; i++) sum[i] = 0;
        for (int i = 0; i < TILE; i += LANES)
            for (int lane = 0; lane < LANES; lane++) lanes[lane] += (double)sum[i + lane] * sum[i + lane];
    }
    for (int lane = 0; lane < LANES; lane++) squares += lanes[lane];
    return squares;
}

/* Adam's step along the sum of `parts`; `average` and `published` may be NULL. */
FOR_EACH_PROCESSOR
void hpcasync_step(const float *const *parts, int num_parts, size_t size, float *restrict parameters,
                   float *restrict mean, float *restrict square, float *restrict average, float *restrict published,
                   const coefficients *given) {
    const coefficients c = *given;
    float sum[TILE], before[TILE];
    for (size_t start = 0; start < size; start += TILE) {
        int count = size - start < TILE ? (int)(size - start) : TILE;
        float *restrict w = parameters + start, *restrict m = mean + start, *restrict v = square + start;
        sum_tile(parts, num_parts, start, count, sum);
        for (int i = 0; i < count; i++) {
            float now = w[i], g = c.scale * sum[i] + c.coupled_decay * now;
            float first = m[i] + c.one_less_beta1 * (g - m[i]);
            float second = c.beta2 * v[i] + c.one_less_beta2 * (g * g);
            before[i] = now;
            m[i] = first;
            v[i] = second;
            w[i] = c.kept * now - (c.mean_factor * first + c.gradient_factor * g) / (c.root_factor * sqrtf(second) + c.eps);
        }
        if (average) {
            float *restrict e = average + start;
            for (int i = 0; i < count; i++) e[i] += c.average_weight * (w[i] - e[i]);
        }
        if (published) {
            float *restrict p = published + start;
            for (int i = 0; i < count; i++) p[i] = w[i] + c.lookahead * (w[i] - before[i]);
        }
    }
}

/* Of the source that this was compiled from. */
const char *hpcasync_source_digest(void) { return SOURCE_DIGEST; }
