/* What hostile and ordinary tasks do, one a word. Static, so that an image needs nothing else. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/keyctl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static void tell(const char *what, long answer) {
    printf("%s=%s\n", what, answer < 0 ? strerrorname_np(errno) : "ok");
}

static int copy(const char *from, const char *to) {
    char buffer[65536];
    int in = open(from, O_RDONLY), out = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (in < 0 || out < 0) return 2;
    for (ssize_t n; (n = read(in, buffer, sizeof buffer)) > 0;)
        if (write(out, buffer, n) != n) return 3;
    return 0;
}

/* Every way out that a task may try, and what the kernel says. */
static int reach(void) {
    if (access("/bin/task", F_OK)) return 99; /* Not in its container: harm nobody. */
    tell("mount", mount("none", "/tmp", "tmpfs", 0, 0));
    tell("remount", mount(0, "/", 0, MS_REMOUNT, 0));
    tell("umount", umount2("/proc", MNT_DETACH));
    tell("chroot", chroot("/tmp"));
    tell("unshare_user", unshare(CLONE_NEWUSER));
    tell("unshare_mount", unshare(CLONE_NEWNS));
    tell("clone_user", syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0));
    tell("setns", setns(open("/proc/self/ns/net", O_RDONLY), 0));
    tell("ptrace", ptrace(PTRACE_TRACEME, 0, 0, 0));
    tell("ptrace_init", ptrace(PTRACE_ATTACH, 1, 0, 0));
    tell("keyctl", syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_USER_KEYRING, 1));
    tell("add_key", syscall(SYS_add_key, "user", "makai", "x", 1, KEY_SPEC_USER_KEYRING));
    tell("bpf", syscall(SYS_bpf, 0, 0, 0));
    tell("io_uring", syscall(SYS_io_uring_setup, 1, 0));
    tell("mknod", mknod("/tmp/disk", S_IFBLK | 0666, 8 << 8));
    tell("sethostname", sethostname("x", 1));
    tell("settime", syscall(SYS_clock_settime, 0, 0));
    tell("kill_init", kill(1, SIGKILL));
    tell("setuid_outside", setuid(70000));
    tell("write_root", open("/bin/new", O_CREAT | O_WRONLY, 0644));
    tell("write_in", open("/in/new", O_CREAT | O_WRONLY, 0644));
    tell("sysctl", open("/proc/sys/kernel/core_pattern", O_WRONLY));
    tell("sysrq", open("/proc/sysrq-trigger", O_WRONLY) < 0 || write(open("/proc/sysrq-trigger", O_WRONLY), "h", 1));
    tell("disk", open("/dev/vda", O_RDONLY));
    tell("cgroups", open("/sys/fs/cgroup", O_RDONLY));
    tell("init_root", open("/proc/1/root/etc/passwd", O_RDONLY));
    tell("init_exe", open("/proc/1/exe", O_RDONLY));
    tell("init_memory", open("/proc/1/mem", O_RDONLY));
    tell("packet_socket", socket(AF_PACKET, SOCK_RAW, 0));
    tell("crypto_socket", socket(AF_ALG, SOCK_SEQPACKET, 0));
    int out = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(53), .sin_addr.s_addr = inet_addr("192.0.2.1")};
    tell("network", connect(out, (void *)&to, sizeof to));
    int in = socket(AF_INET, SOCK_STREAM, 0);
    to.sin_addr.s_addr = inet_addr("127.0.0.1"), to.sin_port = htons(8080);
    tell("loopback", bind(in, (void *)&to, sizeof to) || listen(in, 1) || connect(out, (void *)&to, sizeof to) ? -1 : 0);
    int descriptors = 0;
    for (int fd = 3; fd < 1024; fd++) descriptors += fcntl(fd, F_GETFD) >= 0 && fd > in;
    printf("descriptors=%d\n", descriptors);
    FILE *status = fopen("/proc/self/status", "r");
    for (char line[256]; fgets(line, sizeof line, status);)
        if (!strncmp(line, "Cap", 3) || !strncmp(line, "NoNewPrivs", 10) || !strncmp(line, "Seccomp:", 8)) fputs(line, stdout);
    return 0;
}

int main(int count, char **words) {
    const char *what = count > 1 ? words[1] : "";
    if (!strcmp(what, "exit")) return atoi(words[2]);
    if (!strcmp(what, "say")) return puts(words[2]) < 0 || fputs("to stderr\n", stderr) < 0;
    if (!strcmp(what, "env")) {
        for (char **one = environ; *one; one++) puts(*one);
        char folder[4096];
        printf("pwd=%s uid=%d gid=%d pid=%d\n", getcwd(folder, sizeof folder), getuid(), getgid(), getpid());
        return 0;
    }
    if (!strcmp(what, "copy")) return copy(words[2], words[3]);
    if (!strcmp(what, "abort")) abort();
    if (!strcmp(what, "reach")) return reach();
    if (!strcmp(what, "sleep")) { puts("sleeping"); fflush(stdout); return sleep(atoi(words[2])); }
    if (!strcmp(what, "spin")) for (volatile long n = 0;; n++) {}
    if (!strcmp(what, "fork-bomb")) {
        for (;;) if (fork() < 0 && errno == EAGAIN && getpid() == 2) { puts("refused"); fflush(stdout); sleep(1); return 0; }
    }
    if (!strcmp(what, "memory-bomb")) for (;;) { char *more = malloc(1 << 20); if (!more) return 9; memset(more, 1, 1 << 20); }
    if (!strcmp(what, "tmp-bomb") || !strcmp(what, "disk-bomb")) {
        static char block[1 << 20];
        char name[64];
        memset(block, 1, sizeof block);
        for (int n = 0;; n++) {
            sprintf(name, "%s/%d", !strcmp(what, "tmp-bomb") ? "/tmp" : "/out", n);
            int out = open(name, O_CREAT | O_WRONLY, 0600);
            for (int m = 0; m < 4; m++) if (write(out, block, sizeof block) < 0) { perror("write"); return 8; }
            close(out);
            usleep(1000);
        }
    }
    if (!strcmp(what, "deep")) {
        if (chdir("/out")) return 6;
        for (int n = 0; n < 3000; n++) {
            if (mkdir("d", 0700) || chdir("d")) return 5;
        }
        return sleep(5);
    }
    if (!strcmp(what, "litter")) return symlink("/etc/passwd", "/out/link") || mkfifo("/out/pipe", 0600) || mkdir("/out/closed", 0)
        || copy("/bin/task", "/out/task") || chmod("/out/task", 04777);
    if (!strcmp(what, "flood")) { char line[8192]; memset(line, 'x', sizeof line); line[8191] = '\n'; for (;;) if (write(1, line, sizeof line) < 0) return 4; }
    if (!strcmp(what, "stubborn")) {
        signal(SIGTERM, SIG_IGN);
        for (int n = 0; n < 4; n++) if (!fork()) { setsid(); for (;;) pause(); }
        puts("ignoring"); fflush(stdout);
        for (;;) pause();
    }
    if (!strcmp(what, "polite")) { sigset_t set; sigemptyset(&set); sigaddset(&set, SIGTERM); sigprocmask(SIG_BLOCK, &set, 0);
        puts("waiting"); fflush(stdout); int signal; sigwait(&set, &signal); puts("bye"); return 0; }
    if (!strcmp(what, "orphans")) {
        /* Grandchildren whose parent is gone: the container's first process must reap them. */
        for (int n = 0; n < 200; n++) { pid_t child = fork(); if (!child) { if (!fork()) _exit(0); _exit(0); } waitpid(child, 0, 0); }
        usleep(200000);
        int zombies = 0;
        for (int pid = 2; pid < 1000; pid++) { char path[64], state; int id; sprintf(path, "/proc/%d/stat", pid);
            FILE *stat = fopen(path, "r"); if (stat && fscanf(stat, "%d %*s %c", &id, &state) == 2 && state == 'Z') zombies++; if (stat) fclose(stat); }
        printf("zombies=%d\n", zombies);
        return zombies;
    }
    fprintf(stderr, "no task %s\n", what);
    return 2;
}
