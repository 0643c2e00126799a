// Kernels of the kinds that customers bring, for the executor's tests. See README.md for how they are compiled.
#include <stdint.h>

extern "C" __global__ void vector_add(const float *a, const float *b, float *c, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) c[i] = a[i] + b[i];
}

extern "C" __global__ void saxpy(int n, float a, const float *x, float *y) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += blockDim.x * gridDim.x)
        y[i] = fmaf(a, x[i], y[i]);
}

// Sums within blocks of 256 through shared memory, a warp's last steps by exchanges.
extern "C" __global__ void block_sum(const uint32_t *in, uint32_t *sums, int n) {
    __shared__ uint32_t part[256];
    int t = threadIdx.x, i = blockIdx.x * blockDim.x * 2 + t;
    uint32_t sum = i < n ? in[i] : 0;
    if (i + blockDim.x < n) sum += in[i + blockDim.x];
    part[t] = sum;
    __syncthreads();
    for (int half = blockDim.x / 2; half >= 32; half >>= 1) {
        if (t < half) part[t] = sum = sum + part[t + half];
        __syncthreads();
    }
    if (t < 32) {
        for (int step = 16; step > 0; step >>= 1) sum += __shfl_down_sync(0xffffffffu, sum, step);
        if (t == 0) sums[blockIdx.x] = sum;
    }
}

// c = a * b in tiles of 16 by 16; n divides into them.
extern "C" __global__ void gemm_f32(const float *a, const float *b, float *c, int n) {
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

extern "C" __global__ void gemm_i32(const int *a, const int *b, int *c, int n) {
    __shared__ int as[16][16], bs[16][16];
    int row = blockIdx.y * 16 + threadIdx.y, column = blockIdx.x * 16 + threadIdx.x, sum = 0;
    for (int t = 0; t < n; t += 16) {
        as[threadIdx.y][threadIdx.x] = a[row * n + t + threadIdx.x];
        bs[threadIdx.y][threadIdx.x] = b[(t + threadIdx.y) * n + column];
        __syncthreads();
        for (int k = 0; k < 16; k++) sum += as[threadIdx.y][k] * bs[k][threadIdx.x];
        __syncthreads();
    }
    c[row * n + column] = sum;
}

// Counts bytes in a block's shared memory first.
extern "C" __global__ void histogram(const unsigned char *data, uint32_t *bins, int n) {
    __shared__ uint32_t own[256];
    for (int i = threadIdx.x; i < 256; i += blockDim.x) own[i] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += blockDim.x * gridDim.x)
        atomicAdd(&own[data[i]], 1u);
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += blockDim.x) atomicAdd(&bins[i], own[i]);
}

// Inclusive prefix sums within a block (Hillis and Steele), and the block's sum.
extern "C" __global__ void scan_block(const uint32_t *in, uint32_t *out, uint32_t *sums, int n) {
    extern __shared__ uint32_t line[];
    int t = threadIdx.x, i = blockIdx.x * blockDim.x + t;
    line[t] = i < n ? in[i] : 0;
    __syncthreads();
    for (int step = 1; step < blockDim.x; step <<= 1) {
        uint32_t before = t >= step ? line[t - step] : 0;
        __syncthreads();
        line[t] += before;
        __syncthreads();
    }
    if (i < n) out[i] = line[t];
    if (t == blockDim.x - 1) sums[blockIdx.x] = line[t];
}

// Adds to each block the sums of those before it: the second half of a prefix sum.
extern "C" __global__ void scan_add(uint32_t *out, const uint32_t *sums, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n && blockIdx.x > 0) out[i] += sums[blockIdx.x - 1];
}

// One step of n bodies of equal mass; the square root is exact, so that every machine finds the same.
extern "C" __global__ void nbody(const float4 *at, float4 *force, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float4 own = at[i];
    float x = 0, y = 0, z = 0;
    for (int j = 0; j < n; j++) {
        float4 other = at[j];
        float dx = other.x - own.x, dy = other.y - own.y, dz = other.z - own.z;
        float square = fmaf(dx, dx, fmaf(dy, dy, fmaf(dz, dz, 0.01f)));
        float weight = other.w / (square * sqrtf(square));
        x = fmaf(dx, weight, x);
        y = fmaf(dy, weight, y);
        z = fmaf(dz, weight, z);
    }
    force[i] = make_float4(x, y, z, 0);
}

__constant__ uint32_t K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

__device__ uint32_t turn(uint32_t x, int by) { return x >> by | x << (32 - by); }

// Looks for the least nonce whose SHA-256, of eight bytes (prefix, nonce; big-endian), begins with `zeros` zero bits.
extern "C" __global__ void sha256_search(uint32_t prefix, uint32_t first, int zeros, uint32_t *found) {
    uint32_t nonce = first + blockIdx.x * blockDim.x + threadIdx.x;
    uint32_t w[64] = {prefix, nonce, 0x80000000u};
    w[15] = 64;
    for (int i = 16; i < 64; i++) {
        uint32_t a = turn(w[i - 15], 7) ^ turn(w[i - 15], 18) ^ w[i - 15] >> 3;
        uint32_t b = turn(w[i - 2], 17) ^ turn(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + a + w[i - 7] + b;
    }
    uint32_t s[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    for (int i = 0; i < 64; i++) {
        uint32_t e = turn(s[4], 6) ^ turn(s[4], 11) ^ turn(s[4], 25);
        uint32_t t1 = s[7] + e + (s[4] & s[5] ^ ~s[4] & s[6]) + K[i] + w[i];
        uint32_t a = turn(s[0], 2) ^ turn(s[0], 13) ^ turn(s[0], 22);
        uint32_t t2 = a + (s[0] & s[1] ^ s[0] & s[2] ^ s[1] & s[2]);
        for (int j = 7; j > 0; j--) s[j] = s[j - 1];
        s[4] += t1;
        s[0] = t1 + t2;
    }
    if (__clz(s[0] + 0x6a09e667) >= zeros) atomicMin(found, nonce);
}
