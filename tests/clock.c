/* Preloaded into a process: its wall clock is off by the milliseconds in the file $TEST_CLOCK; its monotonic clock is not.
   Raw system calls: looking up the real functions would allocate, before Redis has its allocator. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *offset_ms;

__attribute__((constructor)) static void map_offset(void)
{
    const char *path = getenv("TEST_CLOCK");
    int file = path ? open(path, O_RDONLY) : -1;
    void *page = file < 0 ? MAP_FAILED : mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    offset_ms = page == MAP_FAILED ? NULL : page;
}

int clock_gettime(clockid_t id, struct timespec *t)
{
    long result = syscall(SYS_clock_gettime, id, t);
    if (result == 0 && offset_ms && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) {
        int64_t ns = t->tv_nsec + (*offset_ms % 1000) * 1000000;
        t->tv_sec += *offset_ms / 1000 + (ns >= 1000000000) - (ns < 0);
        t->tv_nsec = (ns + 1000000000) % 1000000000;
    }
    return (int)result;
}

int gettimeofday(struct timeval *restrict v, void *restrict zone)
{
    struct timespec t;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &t);
    v->tv_sec = t.tv_sec;
    v->tv_usec = t.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    if (out)
        *out = t.tv_sec;
    return t.tv_sec;
}
