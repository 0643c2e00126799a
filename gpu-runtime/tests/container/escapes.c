/* Every way to memory and launches that a program has, tried against a slice of 8 MiB of a card of 64: prints CASE=ANSWER, a line each.
   Run by shares.rs in a container, which holds the answers against its table. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB ((size_t)1 << 20)
#define SLICE (8 * MIB)

static void *cuda;
static void *find(const char *name) {
    void *found = dlsym(cuda, name);
    if (!found) { printf("missing=%s\n", name); exit(1); }
    return found;
}
/* Calls a function of the driver by its name, with words as arguments. */
typedef int (*words)(uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t);
static int call(const char *name, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e) {
    return ((words)find(name))(a, b, c, d, e, 0);
}
#define AT(x) ((uint64_t)(uintptr_t)&(x))
static void say(const char *name, int code) { printf("%s=%d\n", name, code); fflush(stdout); }

static const char MODULE[] =
    ".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry spin_100us()\n{\n\tret;\n}\n";

static int by_address(const char *name, int version, uint64_t flags, void **found) {
    int status = 0;
    return ((int (*)(const char *, void **, int, uint64_t, int *))find("cuGetProcAddress_v2"))(name, found, version, flags, &status);
}

/* Takes the slice to the byte by one way; then one byte more by every way that is asked for. */
static void linear(const char *label, void *allocate) {
    int (*take)(uint64_t *, size_t) = (int (*)(uint64_t *, size_t))allocate;
    uint64_t all = 0, more = 0;
    char name[64];
    snprintf(name, sizeof name, "%s_over", label);
    say(name, take(&more, SLICE + 1));
    snprintf(name, sizeof name, "%s_all", label);
    say(name, take(&all, SLICE));
    snprintf(name, sizeof name, "%s_one_more", label);
    say(name, take(&more, 1));
    call("cuMemFree_v2", all, 0, 0, 0, 0);
    snprintf(name, sizeof name, "%s_again", label);
    say(name, take(&all, SLICE));
    call("cuMemFree_v2", all, 0, 0, 0, 0);
}

static void queries(void) {
    size_t left = 0, all = 0;
    uint64_t held = 0;
    call("cuMemGetInfo_v2", AT(left), AT(all), 0, 0, 0);
    printf("total=%zu\nleft=%zu\n", all, left);
    call("cuDeviceTotalMem_v2", AT(all), 0, 0, 0, 0);
    printf("device_total=%zu\n", all);
    call("cuMemAlloc_v2", AT(held), 3 * MIB, 0, 0, 0);
    call("cuMemGetInfo_v2", AT(left), AT(all), 0, 0, 0);
    printf("left_after=%zu\n", left);
    call("cuMemFree_v2", held, 0, 0, 0, 0);
}

static void addresses(void) {
    void *found = NULL;
    by_address("cuMemAlloc", 12000, 0, &found);
    linear("address", found);
    by_address("cuMemAlloc", 12000, 1, &found);
    linear("address_legacy", found);
    by_address("cuMemAlloc", 13000, 2, &found);
    linear("address_of_thread", found);
    ((int (*)(const char *, void **, int, uint64_t))find("cuGetProcAddress"))("cuMemAlloc", &found, 11030, 0);
    linear("address_v1", found);
    /* The way that is found is itself asked for by its own name. */
    by_address("cuGetProcAddress", 12000, 0, &found);
    void *again = NULL;
    int status = 0;
    ((int (*)(const char *, void **, int, uint64_t, int *))found)("cuMemAlloc", &again, 12000, 0, &status);
    linear("address_of_address", again);
    say("address_unknown_variant", by_address("cuMemAlloc", 99000, 0, &found));
    printf("address_unknown_is_null=%d\n", found == NULL);
    say("address_unhooked", by_address("cuFutureThing", 13000, 0, &found));
    say("unhooked_works", ((int (*)(void))find("cuFutureThing"))());
    say("old_allocation", call("cuMemAlloc", AT(found), 1, 0, 0, 0));
}

static void pools(void) {
    uint64_t one = 0, two = 0;
    void *pool = NULL, *found = NULL;
    say("async_over", call("cuMemAllocAsync", AT(one), SLICE + 1, 0, 0, 0));
    say("async_all", call("cuMemAllocAsync", AT(one), SLICE, 0, 0, 0));
    say("async_one_more", call("cuMemAllocAsync", AT(two), 1, 0, 0, 0));
    by_address("cuMemAllocAsync", 12000, 2, &found);
    say("async_of_thread_one_more", ((int (*)(uint64_t *, size_t, void *))found)(&two, 1, NULL));
    say("async_linear_one_more", call("cuMemAlloc_v2", AT(two), 1, 0, 0, 0));
    /* What is free stays with the pool, and is the slice's again when somebody else wants it. */
    call("cuMemFreeAsync", one, 0, 0, 0, 0);
    say("after_async_linear", call("cuMemAlloc_v2", AT(two), SLICE, 0, 0, 0));
    call("cuMemFree_v2", two, 0, 0, 0, 0);
    uint32_t properties[22] = {1, 0, 1, 0};
    call("cuMemPoolCreate", AT(pool), (uint64_t)(uintptr_t)properties, 0, 0, 0);
    say("pool_over", call("cuMemAllocFromPoolAsync", AT(one), SLICE + 1, (uint64_t)(uintptr_t)pool, 0, 0));
    say("pool_all", call("cuMemAllocFromPoolAsync", AT(one), SLICE, (uint64_t)(uintptr_t)pool, 0, 0));
    say("pool_and_async", call("cuMemAllocAsync", AT(two), 1, 0, 0, 0));
    call("cuMemFreeAsync", one, 0, 0, 0, 0);
    call("cuMemPoolDestroy", (uint64_t)(uintptr_t)pool, 0, 0, 0, 0);
    say("after_pool", call("cuMemAlloc_v2", AT(two), SLICE, 0, 0, 0));
    call("cuMemFree_v2", two, 0, 0, 0, 0);
}

static void others(void) {
    uint64_t one = 0, two = 0;
    size_t pitch = 0;
    void *array = NULL, *graph = NULL, *node = NULL;
    say("managed_over", call("cuMemAllocManaged", AT(one), SLICE + 1, 1, 0, 0));
    say("pitch_over", call("cuMemAllocPitch_v2", AT(one), AT(pitch), 513, SLICE / 1024 + 1, 4));
    /* 1024 x 1024 x 3 numbers of 4 bytes: 12 MiB. */
    struct { size_t width, height, depth; uint32_t format, channels, flags; } shape = {1024, 1024, 3, 0x20, 1, 0};
    say("array_over", call("cuArray3DCreate_v2", AT(array), AT(shape), 0, 0, 0));
    say("mipmaps_over", call("cuMipmappedArrayCreate", AT(array), AT(shape), 4, 0, 0));
    shape.depth = 2;
    say("array_all", call("cuArray3DCreate_v2", AT(array), AT(shape), 0, 0, 0));
    say("array_one_more", call("cuMemAlloc_v2", AT(one), 1, 0, 0, 0));
    call("cuArrayDestroy", (uint64_t)(uintptr_t)array, 0, 0, 0, 0);
    shape.flags = 0x40;
    say("array_sparse", call("cuArray3DCreate_v2", AT(array), AT(shape), 0, 0, 0));
    /* Memory without an address counts as long as anyone holds it or it stands anywhere. */
    uint32_t properties[8] = {1, 0, 1, 0};
    say("memory_over", call("cuMemCreate", AT(one), SLICE + 1, (uint64_t)(uintptr_t)properties, 0, 0));
    say("memory_all", call("cuMemCreate", AT(one), SLICE, (uint64_t)(uintptr_t)properties, 0, 0));
    call("cuMemMap", 1 << 30, SLICE, 0, one, 0);
    call("cuMemRelease", one, 0, 0, 0, 0);
    say("memory_mapped", call("cuMemAlloc_v2", AT(two), 1, 0, 0, 0));
    call("cuMemUnmap", 1 << 30, SLICE, 0, 0, 0);
    say("memory_unmapped", call("cuMemAlloc_v2", AT(two), SLICE, 0, 0, 0));
    call("cuMemFree_v2", two, 0, 0, 0, 0);
    uint8_t alloc[136] = {0};
    uint32_t kind = 10;
    uint64_t bytes = SLICE + 1;
    memcpy(alloc, &kind, 4);
    memcpy(alloc + 16 + 104, &bytes, 8);
    call("cuGraphCreate", AT(graph), 0, 0, 0, 0);
    say("graph_node_over", call("cuGraphAddMemAllocNode", AT(node), (uint64_t)(uintptr_t)graph, 0, 0, (uint64_t)(uintptr_t)(alloc + 16)));
    say("graph_any_node_over", call("cuGraphAddNode", AT(node), (uint64_t)(uintptr_t)graph, 0, 0, (uint64_t)(uintptr_t)alloc));
    bytes = SLICE;
    memcpy(alloc + 16 + 104, &bytes, 8);
    say("graph_node_all", call("cuGraphAddNode", AT(node), (uint64_t)(uintptr_t)graph, 0, 0, (uint64_t)(uintptr_t)alloc));
    say("graph_one_more", call("cuMemAlloc_v2", AT(two), 1, 0, 0, 0));
    call("cuGraphDestroy", (uint64_t)(uintptr_t)graph, 0, 0, 0, 0);
    say("graph_destroyed", call("cuMemAlloc_v2", AT(two), 1, 0, 0, 0));
    call("cuDeviceGraphMemTrim", 0, 0, 0, 0, 0);
    say("graph_trimmed", call("cuMemAlloc_v2", AT(two), SLICE, 0, 0, 0));
    call("cuMemFree_v2", two, 0, 0, 0, 0);
    call("cuStreamBeginCapture_v2", 0, 0, 0, 0, 0);
    say("captured_over", call("cuMemAllocAsync", AT(two), SLICE + 1, 0, 0, 0));
    call("cuStreamEndCapture", 0, AT(graph), 0, 0, 0);
    say("heap_over", call("cuCtxSetLimit", 2, SLICE + 1, 0, 0, 0));
    say("stack_over", call("cuCtxSetLimit", 0, 2048, 0, 0, 0));
}

/* A child counts with its parent, and what it held is free when it is gone. */
static void forks(void) {
    uint64_t half = 0;
    call("cuMemAlloc_v2", AT(half), SLICE / 2, 0, 0, 0);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        uint64_t own = 0;
        int over = call("cuMemAlloc_v2", AT(own), SLICE / 2 + 1, 0, 0, 0);
        int fits = call("cuMemAlloc_v2", AT(own), SLICE / 2, 0, 0, 0);
        printf("child_over=%d\nchild_rest=%d\n", over, fits);
        fflush(stdout);
        _exit(0);
    }
    waitpid(child, NULL, 0);
    uint64_t rest = 0;
    int code = 2;
    /* The node hears of its end a moment after its parent does. */
    for (int tries = 0; code == 2 && tries < 1000; tries++) {
        code = call("cuMemAlloc_v2", AT(rest), SLICE / 2, 0, 0, 0);
        usleep(1000);
    }
    say("after_child", code);
    call("cuMemFree_v2", rest, 0, 0, 0, 0);
    call("cuMemFree_v2", half, 0, 0, 0, 0);
}

typedef int (*launcher)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **);

static void launches(void) {
    void *module = NULL, *kernel = NULL, *graph = NULL, *found = NULL;
    if (((int (*)(void **, const void *, unsigned, int *, void **))find("cuModuleLoadDataEx"))(&module, MODULE, 0, NULL, NULL)) exit(1);
    if (((int (*)(void **, void *, const char *))find("cuModuleGetFunction"))(&kernel, module, "spin_100us")) exit(1);
    launcher plain = (launcher)find("cuLaunchKernel");
    for (int i = 0; i < 10; i++) if (plain(kernel, 1, 1, 1, 32, 1, 1, 0, NULL, NULL, NULL)) exit(1);
    by_address("cuLaunchKernel", 12000, 2, &found);
    say("launch_of_thread", ((launcher)found)(kernel, 1, 1, 1, 32, 1, 1, 0, NULL, NULL, NULL));
    struct { unsigned grid[3], block[3], shared; void *stream, *attributes; unsigned count; } config = {{1, 1, 1}, {32, 1, 1}, 0, NULL, NULL, 0};
    say("launch_ex", ((int (*)(void *, void *, void **, void **))find("cuLaunchKernelEx"))(&config, kernel, NULL, NULL));
    say("launch_cooperative", ((int (*)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **))
        find("cuLaunchCooperativeKernel"))(kernel, 1, 1, 1, 32, 1, 1, 0, NULL, NULL));
    say("launch_on_many_cards", call("cuLaunchCooperativeKernelMultiDevice", 0, 1, 0, 0, 0));
    call("cuGraphCreate", AT(graph), 0, 0, 0, 0);
    say("launch_graph", call("cuGraphLaunch", (uint64_t)(uintptr_t)graph, 0, 0, 0, 0));
    call("cuStreamBeginCapture_v2", 0, 0, 0, 0, 0);
    call("cuStreamEndCapture", 0, AT(graph), 0, 0, 0);
    say("synchronized", call("cuCtxSynchronize", 0, 0, 0, 0, 0));
    /* Ends when all turns are measured. */
    void *context = NULL;
    call("cuCtxGetCurrent", AT(context), 0, 0, 0, 0);
    say("context_ends", call("cuCtxDestroy_v2", (uint64_t)(uintptr_t)context, 0, 0, 0, 0));
}

int main(int count, char **words) {
    cuda = dlopen("libcuda.so.1", RTLD_NOW);
    if (!cuda) { puts(dlerror()); return 1; }
    int code = call("cuInit", 0, 0, 0, 0, 0);
    say("init", code);
    if (code) return 1;
    if (count > 1 && !strcmp(words[1], "bare")) {
        uint64_t one = 0;
        say("bare_over", call("cuMemAlloc_v2", AT(one), SLICE + 1, 0, 0, 0));
        return 0;
    }
    linear("symbol", find("cuMemAlloc_v2"));
    queries();
    addresses();
    pools();
    others();
    forks();
    launches();
    /* Another library of the program's own is found by its path, and goes past the share: so the level says. */
    void *real = dlopen("libcuda-real.so.1", RTLD_NOW);
    int (*past)(uint64_t *, size_t) = real ? (int (*)(uint64_t *, size_t))dlsym(real, "cuMemAlloc_v2") : NULL;
    uint64_t one = 0;
    say("by_the_real_name", past ? past(&one, SLICE + 1) : -1);
    fflush(stdout);
    /* Without the environment that names the folder of the driver's libraries. */
    char cards[4096], visible[256];
    snprintf(cards, sizeof cards, "FAKE_CARDS=%s", getenv("FAKE_CARDS"));
    snprintf(visible, sizeof visible, "CUDA_VISIBLE_DEVICES=%s", getenv("CUDA_VISIBLE_DEVICES"));
    char *bare[] = {words[0], "bare", NULL}, *environment[] = {cards, visible, NULL};
    execve("/proc/self/exe", bare, environment);
    return 1;
}
