/* Nanoseconds of this thread that one launch of an empty kernel takes: launcher LIBRARY MILLISECONDS */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static const char MODULE[] =
    ".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry spin_0us()\n{\n\tret;\n}\n";
/* Launches between two waits: fewer than a driver's queue holds, so that no launch waits for the card. */
enum { AT_ONCE = 512 };

typedef int (*launcher)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **);

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1e9 + at.tv_nsec;
}

static int fails(const char *what, int code) {
    if (code) fprintf(stderr, "%s answers %d\n", what, code);
    return code;
}

int main(int count, char **words) {
    void *cuda = count == 3 ? dlopen(words[1], RTLD_NOW) : NULL;
    if (!cuda) { fprintf(stderr, "%s\n", count == 3 ? dlerror() : "launcher LIBRARY MILLISECONDS"); return 1; }
    int (*init)(unsigned) = (int (*)(unsigned))dlsym(cuda, "cuInit");
    int (*device)(int *, int) = (int (*)(int *, int))dlsym(cuda, "cuDeviceGet");
    int (*context)(void **, unsigned, int) = (int (*)(void **, unsigned, int))dlsym(cuda, "cuCtxCreate_v2");
    int (*load)(void **, const void *, unsigned, int *, void **) =
        (int (*)(void **, const void *, unsigned, int *, void **))dlsym(cuda, "cuModuleLoadDataEx");
    int (*find)(void **, void *, const char *) = (int (*)(void **, void *, const char *))dlsym(cuda, "cuModuleGetFunction");
    launcher launch = (launcher)dlsym(cuda, "cuLaunchKernel");
    int (*synchronize)(void) = (int (*)(void))dlsym(cuda, "cuCtxSynchronize");
    int card = 0;
    void *own = NULL, *module = NULL, *kernel = NULL;
    if (fails("cuInit", init(0)) || fails("cuDeviceGet", device(&card, 0)) || fails("cuCtxCreate", context(&own, 0, card)) ||
        fails("cuModuleLoadDataEx", load(&module, MODULE, 0, NULL, NULL)) || fails("cuModuleGetFunction", find(&kernel, module, "spin_0us")))
        return 1;
    double end = now() + atof(words[2]) * 1e6, took = 0, launches = 0;
    for (int round = 0; round < 3 || now() < end; round++) {
        double begun = now();
        for (int at = 0; at < AT_ONCE; at++)
            if (fails("cuLaunchKernel", launch(kernel, 1, 1, 1, 32, 1, 1, 0, NULL, NULL, NULL))) return 1;
        /* The first rounds learn how long the kernel takes. */
        if (round >= 2) { took += now() - begun; launches += AT_ONCE; }
        if (fails("cuCtxSynchronize", synchronize())) return 1;
    }
    printf("%.1f\n", took / launches);
    return 0;
}
