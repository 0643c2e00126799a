// What a machine's speed with modules is told by: compiled as tests/module/cuda/README.md says, into bench.ptx.
#include <stdint.h>

// Integers alone: 256 rounds of a mixer in each thread.
extern "C" __global__ void mix(uint32_t *out) {
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x, x = i;
    for (int round = 0; round < 256; round++) {
        x ^= x >> 16;
        x *= 0x7feb352du;
        x ^= x >> 15;
        x += i;
    }
    out[i] = x;
}

// Floats through shared memory: a product of matrices in tiles of 16 by 16.
extern "C" __global__ void gemm(const float *a, const float *b, float *c, int n) {
    __shared__ float as[16][16], bs[16][16];
    int row = blockIdx.y * 16 + threadIdx.y, column = blockIdx.x * 16 + threadIdx.x;
    float sum = 0;
    for (int t = 0; t < n; t += 16) {
        as[threadIdx.y][threadIdx.x] = a[row * n + t + threadIdx.x];
        bs[threadIdx.y][threadIdx.x] = b[(t + threadIdx.y) * n + column];
        __syncthreads();
        for (int k = 0; k < 16; k++) sum = fmaf(as[threadIdx.y][k], bs[k][threadIdx.x], sum);
        __syncthreads();
    }
    c[row * n + column] = sum;
}

// Memory: y = a x + y.
extern "C" __global__ void saxpy(int n, float a, const float *x, float *y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = fmaf(a, x[i], y[i]);
}
