/* Records what a process does to the files of one directory, for tests of power loss.
 *
 * Preloaded (LD_PRELOAD) before the C library. RECORD_DIR is the directory, RECORD_FILE gets the
 * records: u8 kind, u32 file, u64 offset, u32 length, then `length` bytes, in the machine's order.
 *
 *   'o' a file was opened: the bytes are its name      'w' bytes were written at the offset
 *   't' the file was cut or grown to the offset        's' a sync of the file has begun
 *   'a' an asynchronous sync of the file has begun
 *   'u' the file was unlinked; the bytes are its name
 *   'e' a sync has ended without error; the offset is the number of the record that began it
 *
 * One lock is held from before an operation until its record is written, so the order of records is
 * the order of effects. Syncs take effect somewhere between 's' and 'e'. Asynchronous ones
 * (io_submit with IOCB_CMD_FDSYNC, by syscall(2)) begin when they are submitted, and end when
 * io_getevents reports them.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DESCRIPTORS 4096

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint32_t file_of[DESCRIPTORS]; /* 0: not recorded */
static uint32_t files;
static uint64_t records;
static int out = -1;

static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

static uint64_t record(char kind, uint32_t file, uint64_t offset, const void *data, uint32_t length) {
    static ssize_t (*write_)(int, const void *, size_t);
    char head[17];
    if (write_ == NULL) write_ = real("write");
    if (out < 0) {
        int (*open_)(const char *, int, ...) = real("open");
        out = open_(getenv("RECORD_FILE"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (out < 0) abort();
    }
    head[0] = kind;
    memcpy(head + 1, &file, 4);
    memcpy(head + 5, &offset, 8);
    memcpy(head + 13, &length, 4);
    if (write_(out, head, sizeof head) != sizeof head) abort();
    if (length && write_(out, data, length) != (ssize_t)length) abort();
    return ++records;
}

static void opened(int fd, const char *path) {
    const char *dir = getenv("RECORD_DIR");
    size_t n = dir ? strlen(dir) : 0;
    if (fd < 0 || fd >= DESCRIPTORS) return;
    pthread_mutex_lock(&lock);
    file_of[fd] = 0;
    if (n && strncmp(path, dir, n) == 0 && path[n] == '/') {
        file_of[fd] = ++files;
        record('o', files, 0, path + n + 1, strlen(path + n + 1));
    }
    pthread_mutex_unlock(&lock);
}

int unlink(const char *path) {
    int (*unlink_)(const char *) = real("unlink");
    const char *dir = getenv("RECORD_DIR");
    size_t n = dir ? strlen(dir) : 0;
    pthread_mutex_lock(&lock);
    int result = unlink_(path);
    if (result == 0 && n && strncmp(path, dir, n) == 0 && path[n] == '/')
        record('u', ++files, 0, path + n + 1, strlen(path + n + 1));
    pthread_mutex_unlock(&lock);
    return result;
}

static uint32_t recorded(int fd) { return fd >= 0 && fd < DESCRIPTORS ? file_of[fd] : 0; }

#define OPEN(NAME)                                           \
    int NAME(const char *path, int flags, ...) {             \
        int (*open_)(const char *, int, ...) = real(#NAME);  \
        va_list rest;                                        \
        va_start(rest, flags);                               \
        int fd = open_(path, flags, va_arg(rest, mode_t));   \
        va_end(rest);                                        \
        opened(fd, path);                                    \
        return fd;                                           \
    }
OPEN(open)
OPEN(open64)

static ssize_t wrote(uint32_t file, const void *data, ssize_t done, off64_t offset) {
    if (done > 0) record('w', file, offset, data, done);
    pthread_mutex_unlock(&lock);
    return done;
}

#define PWRITE(NAME)                                                             \
    ssize_t NAME(int fd, const void *data, size_t count, off64_t offset) {       \
        static ssize_t (*pwrite_)(int, const void *, size_t, off64_t);           \
        uint32_t file = recorded(fd);                                            \
        if (pwrite_ == NULL) pwrite_ = real(#NAME);                              \
        if (!file) return pwrite_(fd, data, count, offset);                      \
        pthread_mutex_lock(&lock);                                               \
        return wrote(file, data, pwrite_(fd, data, count, offset), offset);      \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

ssize_t write(int fd, const void *data, size_t count) {
    static ssize_t (*write_)(int, const void *, size_t);
    uint32_t file = recorded(fd);
    if (write_ == NULL) write_ = real("write");
    if (!file) return write_(fd, data, count);
    pthread_mutex_lock(&lock);
    off64_t offset = lseek64(fd, 0, SEEK_CUR);
    return wrote(file, data, write_(fd, data, count), offset);
}

#define TRUNCATE(NAME)                                      \
    int NAME(int fd, off64_t size) {                        \
        static int (*truncate_)(int, off64_t);              \
        uint32_t file = recorded(fd);                       \
        if (truncate_ == NULL) truncate_ = real(#NAME);     \
        if (!file) return truncate_(fd, size);              \
        pthread_mutex_lock(&lock);                          \
        int result = truncate_(fd, size);                   \
        if (result == 0) record('t', file, size, NULL, 0);  \
        pthread_mutex_unlock(&lock);                        \
        return result;                                      \
    }
TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)

static uint64_t sync_begins(char kind, uint32_t file) {
    pthread_mutex_lock(&lock);
    uint64_t number = record(kind, file, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    return number;
}

static void sync_ended(uint32_t file, uint64_t number) {
    pthread_mutex_lock(&lock);
    record('e', file, number, NULL, 0);
    pthread_mutex_unlock(&lock);
}

#define SYNC(NAME)                                    \
    int NAME(int fd) {                                \
        static int (*sync_)(int);                     \
        uint32_t file = recorded(fd);                 \
        if (sync_ == NULL) sync_ = real(#NAME);       \
        if (!file) return sync_(fd);                  \
        uint64_t number = sync_begins('s', file);     \
        int result = sync_(fd);                       \
        if (result == 0) sync_ended(file, number);    \
        return result;                                \
    }
SYNC(fsync)
SYNC(fdatasync)

/* One asynchronous sync for each control block is under way at most; its number lies here. */
#define BLOCKS 64
static struct { uint64_t block, number; uint32_t file; } under_way[BLOCKS];

long syscall(long number, ...) {
    static long (*syscall_)(long, ...);
    va_list rest;
    long a[6];
    va_start(rest, number);
    for (int i = 0; i < 6; i++) a[i] = va_arg(rest, long);
    va_end(rest);
    if (syscall_ == NULL) syscall_ = real("syscall");
    if (number == SYS_io_submit && a[1] == 1) {
        struct iocb *block = ((struct iocb **)a[2])[0];
        uint32_t file = recorded(block->aio_fildes);
        if (file && block->aio_lio_opcode == IOCB_CMD_FDSYNC)
            for (int i = 0; i < BLOCKS; i++)
                if (!under_way[i].block) {
                    under_way[i].file = file;
                    under_way[i].number = sync_begins('a', file);
                    under_way[i].block = (uint64_t)block;
                    break;
                }
    }
    long result = syscall_(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (number == SYS_io_getevents && result > 0) {
        struct io_event *events = (struct io_event *)a[3];
        for (long n = 0; n < result; n++)
            for (int i = 0; i < BLOCKS; i++)
                if (under_way[i].block && under_way[i].block == events[n].obj) {
                    if (events[n].res == 0) sync_ended(under_way[i].file, under_way[i].number);
                    under_way[i].block = 0;
                }
    }
    return result;
}

int close(int fd) {
    static int (*close_)(int);
    if (close_ == NULL) close_ = real("close");
    if (recorded(fd)) {
        pthread_mutex_lock(&lock);
        file_of[fd] = 0;
        pthread_mutex_unlock(&lock);
    }
    return close_(fd);
}
