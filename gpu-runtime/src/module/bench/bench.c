/* The kernels of bench.cu as plain loops: what one thread of an unoptimised program takes for the same work.
 * It prints, for each, the least processor time of a run in nanoseconds. Compiled by `makai bench jobs` where there is a C compiler:
 *   cc -O0 -o bench bench.c -lm
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define THREADS (1 << 12)
#define ELEMENTS (1 << 18)
#define SIDE 128

static void mix(uint32_t *out) {
    for (uint32_t i = 0; i < THREADS; i++) {
        uint32_t x = i;
        for (int round = 0; round < 256; round++) {
            x ^= x >> 16;
            x *= 0x7feb352du;
            x ^= x >> 15;
            x += i;
        }
        out[i] = x;
    }
}

static void gemm(const float *a, const float *b, float *c, int n) {
    for (int row = 0; row < n; row++) {
        for (int column = 0; column < n; column++) {
            float sum = 0;
            for (int k = 0; k < n; k++) sum = fmaf(a[row * n + k], b[k * n + column], sum);
            c[row * n + column] = sum;
        }
    }
}

static void saxpy(int n, float a, const float *x, float *y) {
    for (int i = 0; i < n; i++) y[i] = fmaf(a, x[i], y[i]);
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

int main(void) {
    uint32_t *out = calloc(THREADS, 4);
    float *a = calloc(SIDE * SIDE, 4), *b = calloc(SIDE * SIDE, 4), *c = calloc(SIDE * SIDE, 4);
    float *x = calloc(ELEMENTS, 4), *y = calloc(ELEMENTS, 4);
    if (!out || !a || !b || !c || !x || !y) return 1;
    static const char *names[] = {"mix", "gemm", "saxpy"};
    for (int kind = 0; kind < 3; kind++) {
        int64_t least = INT64_MAX, total = 0;
        while (total < 300000000) {
            int64_t begun = now();
            if (kind == 0) mix(out);
            if (kind == 1) gemm(a, b, c, SIDE);
            if (kind == 2) saxpy(ELEMENTS, 2.0f, x, y);
            int64_t took = now() - begun;
            total += took;
            if (took < least) least = took;
        }
        printf("%s %lld\n", names[kind], (long long)least);
    }
    return 0;
}
