/* Preloaded into Redis: writes into the file $POWER_NOTES "begin INODE SIZE" before each sync of a file and "end INODE
   SIZE" after one that succeeded: so many bytes would outlive a power cut. A sync takes $POWER_SLOW_MS longer. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int notes = -1;
static long slow_ms;

__attribute__((constructor)) static void open_notes(void)
{
    const char *path = getenv("POWER_NOTES"), *slow = getenv("POWER_SLOW_MS");
    notes = path ? open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600) : -1;
    slow_ms = slow ? atol(slow) : 0;
}

static void note(const char *word, const struct stat *file)
{
    char line[64];
    int length = snprintf(line, sizeof line, "%s %lu %ld\n", word, (unsigned long)file->st_ino, (long)file->st_size);
    if (write(notes, line, length) != length)
        abort();
}

static int sync_and_note(int fd, long call)
{
    struct stat before;
    int noted = notes >= 0 && fstat(fd, &before) == 0 && S_ISREG(before.st_mode);
    if (noted)
        note("begin", &before);
    struct timespec wait = {slow_ms / 1000, slow_ms % 1000 * 1000000};
    nanosleep(&wait, NULL);
    long result = syscall(call, fd);
    if (noted && result == 0)
        note("end", &before);
    return (int)result;
}

int fsync(int fd) { return sync_and_note(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_and_note(fd, SYS_fdatasync); }
