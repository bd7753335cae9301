/* Calls of libc that change the file system, counted; the n-th one fails, is cut short, or ends the process.
 *
 * Loaded by LD_PRELOAD, so that Python, SQLite, Arrow and MindSpore's writers are covered alike. Only paths below the
 * given directories count. A process arms it by faults_arm(), or is started with FAULTS_UNDER and the other variables.
 * Not seen: calls that do not go through a symbol of libc (statically linked programs), and the writes of C's buffered
 * streams (fprintf, fwrite), whose fopen is seen; those of C++ go through write(2).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <unistd.h>

enum action { TRACE, FAIL, KILL, TEAR, SHORT };
/* What a call does to the file system: which errors it can meet depends on it. */
enum kind { CREATE, OPEN, WRITE, NAME, REMOVE, SYNC, CLOSE, META };

static char under[8][PATH_MAX]; /* the directories; none: not armed */
static int num_under;
static char trace_path[PATH_MAX];
static long at;
static enum action action;
static int failure, is_lasting;
static atomic_long count;
static int trace_fd = -1;

static enum action action_of(const char *name) {
    static const char *const names[] = {"trace", "fail", "kill", "tear", "short"};
    for (int i = 0; i < 5; i++)
        if (!strcmp(name, names[i])) return (enum action)i;
    abort();
}

void faults_disarm(void) { num_under = 0; }

long faults_count(void) { return atomic_load(&count); }

void faults_arm(const char *folders, const char *trace, long number, const char *what, int error, int lasting) {
    faults_disarm();
    atomic_store(&count, 0);
    at = number, action = action_of(what), failure = error, is_lasting = lasting;
    if (trace_fd >= 0) syscall(SYS_close, trace_fd);
    trace_fd = -1;
    snprintf(trace_path, sizeof trace_path, "%s", trace ? trace : "");
    int found = 0;
    for (const char *start = folders; *start && found < 8; found++) {
        const char *end = strchrnul(start, ':');
        snprintf(under[found], PATH_MAX, "%.*s", (int)(end - start), start);
        start = *end ? end + 1 : end;
    }
    num_under = found;
}

__attribute__((constructor)) static void arm_by_environment(void) {
    const char *folders = getenv("FAULTS_UNDER"), *number = getenv("FAULTS_AT"), *what = getenv("FAULTS_ACTION");
    const char *error = getenv("FAULTS_ERRNO");
    if (folders)
        faults_arm(folders, getenv("FAULTS_TRACE"), number ? atol(number) : 0, what ? what : "trace",
                   error ? atoi(error) : 0, getenv("FAULTS_LASTING") != NULL);
}

static void *next(const char *name) {
    void *symbol = dlsym(RTLD_NEXT, name);
    if (!symbol) abort();
    return symbol;
}
#define REAL(name) ({ static __typeof__(&name) real; if (!real) real = next(#name); real; })

static int is_under(const char *path) {
    for (int i = 0; i < num_under; i++) {
        size_t length = strlen(under[i]);
        if (!strncmp(path, under[i], length) && (path[length] == '/' || path[length] == 0 || path[length] == ' '))
            return 1;
    }
    return 0;
}

static int path_of(int fd, char *result) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlink, link, result, PATH_MAX - 1);
    if (length <= 0) return 0;
    result[length] = 0;
    return 1;
}

static int absolute(int directory, const char *path, char *result) {
    char base[PATH_MAX];
    if (path[0] == '/') return snprintf(result, PATH_MAX, "%s", path) > 0;
    if (directory == AT_FDCWD ? !getcwd(base, sizeof base) : !path_of(directory, base)) return 0;
    return snprintf(result, PATH_MAX, "%s/%s", base, path) < PATH_MAX;
}

static int can_meet(enum kind kind, int error) {
    switch (error) {
    case ENOSPC: case EDQUOT: return kind == CREATE || kind == WRITE || kind == NAME || kind == SYNC || kind == CLOSE;
    case EROFS: case EACCES: case EPERM: return kind == CREATE || kind == OPEN || kind == NAME || kind == REMOVE || kind == META;
    case EMFILE: case ENFILE: return kind == CREATE || kind == OPEN;
    default: return 1;
    }
}

/* Count a call on `path`. Return what the caller does: TRACE: the call as it is; FAIL; TEAR; SHORT. */
static enum action meet(const char *call, enum kind kind, const char *path, const char *other) {
    int kept = errno;
    long number = atomic_fetch_add(&count, 1) + 1;
    if (trace_path[0]) {
        char line[2 * PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%ld\t%d\t%s\t%s\t%s\n", number, (int)kind, call, path, other ? other : "");
        if (trace_fd < 0) trace_fd = syscall(SYS_openat, AT_FDCWD, trace_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
        syscall(SYS_write, trace_fd, line, length);
    }
    errno = kept;
    if (action == TRACE || at == 0 || number < at || (number > at && !is_lasting)) return TRACE;
    if (action == KILL || (action == TEAR && kind != WRITE)) {
        syscall(SYS_kill, getpid(), SIGKILL);
        for (;;) pause();
    }
    if (action == FAIL) return can_meet(kind, failure) ? FAIL : TRACE;
    return kind == WRITE ? action : TRACE;
}

static enum action meet_path(const char *call, enum kind kind, int directory, const char *path, const char *other) {
    char whole[PATH_MAX];
    if (!num_under || !path) return TRACE;
    int kept = errno;
    int is_seen = absolute(directory, path, whole) && is_under(whole);
    errno = kept;
    return is_seen ? meet(call, kind, whole, other) : TRACE;
}

static enum action meet_fd(const char *call, enum kind kind, int fd) {
    char whole[PATH_MAX];
    if (!num_under) return TRACE;
    int kept = errno;
    int is_seen = path_of(fd, whole) && is_under(whole);
    if (is_seen && kind == CLOSE) {
        long flags = syscall(SYS_fcntl, fd, F_GETFL);
        is_seen = flags >= 0 && (flags & O_ACCMODE) != O_RDONLY;
    }
    char size[32] = "";
    struct stat now;
    if (is_seen && fstat(fd, &now) == 0) snprintf(size, sizeof size, "%lld", (long long)now.st_size);
    errno = kept;
    return is_seen ? meet(call, kind, whole, size) : TRACE;
}

#define FAILS(condition) if ((condition) == FAIL) { errno = failure; return -1; }

static int opens(const char *call, int directory, const char *path, int flags) {
    if ((flags & O_ACCMODE) == O_RDONLY && !(flags & (O_CREAT | O_TRUNC))) return 1;
    int kept = errno;
    int exists = syscall(SYS_faccessat, directory, path, F_OK) == 0;
    errno = kept;
    enum kind kind = (flags & O_CREAT) && !exists ? CREATE : OPEN;
    if (meet_path(call, kind, directory, path, kind == CREATE ? "new" : flags & O_TRUNC ? "truncated" : "") != FAIL) return 1;
    errno = failure;
    return 0;
}

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { va_list list; va_start(list, flags); mode = va_arg(list, mode_t); va_end(list); }

#define OPEN_LIKE(name) \
    int name(const char *path, int flags, ...) { \
        MODE(flags) \
        return opens("open", AT_FDCWD, path, flags) ? REAL(name)(path, flags, mode) : -1; \
    }
OPEN_LIKE(open)
OPEN_LIKE(open64)

#define OPENAT_LIKE(name) \
    int name(int directory, const char *path, int flags, ...) { \
        MODE(flags) \
        return opens("open", directory, path, flags) ? REAL(name)(directory, path, flags, mode) : -1; \
    }
OPENAT_LIKE(openat)
OPENAT_LIKE(openat64)

#define CREAT_LIKE(name) \
    int name(const char *path, mode_t mode) { \
        return opens("open", AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC) ? REAL(name)(path, mode) : -1; \
    }
CREAT_LIKE(creat)
CREAT_LIKE(creat64)

int __open_2(const char *path, int flags);
int __open_2(const char *path, int flags) {
    return opens("open", AT_FDCWD, path, flags) ? REAL(__open_2)(path, flags) : -1;
}
int __open64_2(const char *path, int flags);
int __open64_2(const char *path, int flags) {
    return opens("open", AT_FDCWD, path, flags) ? REAL(__open64_2)(path, flags) : -1;
}

static int flags_of(const char *mode) {
    int both = strchr(mode, '+') ? O_RDWR : O_WRONLY;
    return mode[0] == 'w' ? both | O_CREAT | O_TRUNC : mode[0] == 'a' ? both | O_CREAT : strchr(mode, '+') ? O_RDWR : O_RDONLY;
}

#define FOPEN_LIKE(name) \
    FILE *name(const char *path, const char *mode) { \
        return opens("fopen", AT_FDCWD, path, flags_of(mode)) ? REAL(name)(path, mode) : NULL; \
    }
FOPEN_LIKE(fopen)
FOPEN_LIKE(fopen64)

/* Do a part of a write, then die (TEAR) or return what was written (SHORT). */
#define CUT(what, half) \
    if (what == TEAR || what == SHORT) { \
        ssize_t written = (half); \
        if (what == TEAR) { syscall(SYS_kill, getpid(), SIGKILL); for (;;) pause(); } \
        return written; \
    }

ssize_t write(int fd, const void *data, size_t size) {
    enum action what = meet_fd("write", WRITE, fd);
    FAILS(what)
    CUT(what, size > 1 ? syscall(SYS_write, fd, data, size / 2) : syscall(SYS_write, fd, data, size))
    return REAL(write)(fd, data, size);
}

#define PWRITE_LIKE(name, offset_type) \
    ssize_t name(int fd, const void *data, size_t size, offset_type offset) { \
        enum action what = meet_fd("pwrite", WRITE, fd); \
        FAILS(what) \
        CUT(what, REAL(name)(fd, data, size > 1 ? size / 2 : size, offset)) \
        return REAL(name)(fd, data, size, offset); \
    }
PWRITE_LIKE(pwrite, off_t)
PWRITE_LIKE(pwrite64, off64_t)

ssize_t writev(int fd, const struct iovec *parts, int num_parts) {
    enum action what = meet_fd("writev", WRITE, fd);
    FAILS(what)
    CUT(what, syscall(SYS_writev, fd, parts, num_parts > 1 ? 1 : num_parts))
    return REAL(writev)(fd, parts, num_parts);
}

#define SENDFILE_LIKE(name, offset_type) \
    ssize_t name(int to, int from, offset_type *offset, size_t size) { \
        enum action what = meet_fd("sendfile", WRITE, to); \
        FAILS(what) \
        CUT(what, REAL(name)(to, from, offset, size > 16 ? 16 : size)) \
        return REAL(name)(to, from, offset, size); \
    }
#include <sys/sendfile.h>
SENDFILE_LIKE(sendfile, off_t)
SENDFILE_LIKE(sendfile64, off64_t)

ssize_t copy_file_range(int from, off64_t *from_at, int to, off64_t *to_at, size_t size, unsigned flags) {
    enum action what = meet_fd("copy_file_range", WRITE, to);
    FAILS(what)
    CUT(what, REAL(copy_file_range)(from, from_at, to, to_at, size > 16 ? 16 : size, flags))
    return REAL(copy_file_range)(from, from_at, to, to_at, size, flags);
}

#define SIZE_LIKE(name, offset_type) \
    int name(int fd, offset_type size) { FAILS(meet_fd("ftruncate", WRITE, fd)) return REAL(name)(fd, size); }
SIZE_LIKE(ftruncate, off_t)
SIZE_LIKE(ftruncate64, off64_t)
#define TRUNCATE_LIKE(name, offset_type) \
    int name(const char *path, offset_type size) { \
        FAILS(meet_path("truncate", WRITE, AT_FDCWD, path, NULL)) \
        return REAL(name)(path, size); \
    }
TRUNCATE_LIKE(truncate, off_t)
TRUNCATE_LIKE(truncate64, off64_t)
#define ALLOCATE_LIKE(name, offset_type) \
    int name(int fd, offset_type start, offset_type size) { \
        if (meet_fd("fallocate", WRITE, fd) == FAIL) return failure; \
        return REAL(name)(fd, start, size); \
    }
ALLOCATE_LIKE(posix_fallocate, off_t)
ALLOCATE_LIKE(posix_fallocate64, off64_t)

int fsync(int fd) { FAILS(meet_fd("fsync", SYNC, fd)) return REAL(fsync)(fd); }
int fdatasync(int fd) { FAILS(meet_fd("fsync", SYNC, fd)) return REAL(fdatasync)(fd); }

int close(int fd) {
    if (meet_fd("close", CLOSE, fd) == FAIL) { /* the descriptor is gone in any case */
        syscall(SYS_close, fd);
        errno = failure;
        return -1;
    }
    return REAL(close)(fd);
}

int rename(const char *from, const char *to) {
    FAILS(meet_path("rename", NAME, AT_FDCWD, from, to))
    return REAL(rename)(from, to);
}
int renameat(int from_dir, const char *from, int to_dir, const char *to) {
    FAILS(meet_path("rename", NAME, from_dir, from, to))
    return REAL(renameat)(from_dir, from, to_dir, to);
}
int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
    FAILS(meet_path("rename", NAME, from_dir, from, to))
    return REAL(renameat2)(from_dir, from, to_dir, to, flags);
}
int link(const char *from, const char *to) {
    FAILS(meet_path("link", NAME, AT_FDCWD, to, from))
    return REAL(link)(from, to);
}
int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
    FAILS(meet_path("link", NAME, to_dir, to, from))
    return REAL(linkat)(from_dir, from, to_dir, to, flags);
}
int symlink(const char *from, const char *to) {
    FAILS(meet_path("symlink", NAME, AT_FDCWD, to, from))
    return REAL(symlink)(from, to);
}
int symlinkat(const char *from, int to_dir, const char *to) {
    FAILS(meet_path("symlink", NAME, to_dir, to, from))
    return REAL(symlinkat)(from, to_dir, to);
}
int mkdir(const char *path, mode_t mode) {
    FAILS(meet_path("mkdir", CREATE, AT_FDCWD, path, NULL))
    return REAL(mkdir)(path, mode);
}
int mkdirat(int directory, const char *path, mode_t mode) {
    FAILS(meet_path("mkdir", CREATE, directory, path, NULL))
    return REAL(mkdirat)(directory, path, mode);
}
int unlink(const char *path) {
    FAILS(meet_path("unlink", REMOVE, AT_FDCWD, path, NULL))
    return REAL(unlink)(path);
}
int unlinkat(int directory, const char *path, int flags) {
    FAILS(meet_path(flags & AT_REMOVEDIR ? "rmdir" : "unlink", REMOVE, directory, path, NULL))
    return REAL(unlinkat)(directory, path, flags);
}
int rmdir(const char *path) {
    FAILS(meet_path("rmdir", REMOVE, AT_FDCWD, path, NULL))
    return REAL(rmdir)(path);
}
int remove(const char *path) {
    FAILS(meet_path("unlink", REMOVE, AT_FDCWD, path, NULL))
    return REAL(remove)(path);
}
int chmod(const char *path, mode_t mode) {
    FAILS(meet_path("chmod", META, AT_FDCWD, path, NULL))
    return REAL(chmod)(path, mode);
}
int fchmod(int fd, mode_t mode) { FAILS(meet_fd("chmod", META, fd)) return REAL(fchmod)(fd, mode); }
int utimensat(int directory, const char *path, const struct timespec times[2], int flags) {
    FAILS(meet_path("utime", META, directory, path, NULL))
    return REAL(utimensat)(directory, path, times, flags);
}
