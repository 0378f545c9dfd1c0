/* Preloaded (LD_PRELOAD), makes calls to the file system fail, or the clock differ, as disks and machines do.

   Counts the calls that touch what is below the folder $FAULTS_ROOT, by kind, and fails those that `faults_arm` names.
   Everything else (imports, shared objects, sockets, pipes) passes through. The counts are in memory that processes share
   with those they fork, so that a server reads what its children did.

   $FAULTS_CLOCK is added to the seconds of CLOCK_REALTIME.

   cc -shared -fPIC -O1 -o faults.so faults.c -ldl */

#define _GNU_SOURCE
#undef _FORTIFY_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { OPEN, READ, WRITE, FSYNC, RENAME, READDIR, KINDS };
enum { FDS = 1 << 16 };

struct state {
  atomic_long counts[KINDS];
  atomic_long matching; /* calls of the armed kinds since they were armed */
  atomic_long fired;
  long first, times; /* the matching calls first, first + 1, …, `times` of them, fail; times < 0: all from the first on */
  unsigned mask;     /* of the armed kinds */
  int number;        /* the errno, or -SIGNAL */
  char what[PATH_MAX + 64]; /* the first that failed */
};

static struct state *state;
static char root[PATH_MAX];
static size_t root_length;
static long clock_shift;
static atomic_char tracked[FDS]; /* whether an open file is below the root */

#define REAL(result, name, ...)                       \
  static result (*real_##name)(__VA_ARGS__);          \
  if (!real_##name) real_##name = dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void begin(void) {
  state = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (state == MAP_FAILED) abort();
  const char *folder = getenv("FAULTS_ROOT"), *shift = getenv("FAULTS_CLOCK");
  if (folder && *folder && strlen(folder) < sizeof root) {
    strcpy(root, folder);
    root_length = strlen(root);
  }
  if (shift) clock_shift = atol(shift);
}

/* For ctypes. */
void faults_arm(unsigned mask, long first, long times, int number) {
  for (int kind = 0; kind < KINDS; kind++) state->counts[kind] = 0;
  state->matching = state->fired = 0;
  state->what[0] = 0;
  state->first = first;
  state->times = times;
  state->number = number;
  state->mask = mask;
}
long faults_count(int kind) { return state->counts[kind]; }
long faults_fired(void) { return state->fired; }
const char *faults_what(void) { return state->what; }

static int below(int folder, const char *path) {
  if (!root_length || !path) return 0;
  if (path[0] != '/') {
    char link[64], base[PATH_MAX];
    if (folder >= 0 && folder < FDS && tracked[folder]) return 1;
    if (folder == AT_FDCWD) {
      if (syscall(SYS_getcwd, base, sizeof base) < 0) return 0;
    } else {
      snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
      ssize_t length = readlink(link, base, sizeof base - 1);
      if (length < 0) return 0;
      base[length] = 0;
    }
    return !strncmp(base, root, root_length) && (!base[root_length] || base[root_length] == '/');
  }
  return !strncmp(path, root, root_length) && (!path[root_length] || path[root_length] == '/');
}

static int is_tracked(int fd) { return fd >= 0 && fd < FDS && tracked[fd]; }
static void track(int fd, int whether) {
  if (fd >= 0 && fd < FDS) tracked[fd] = (char)whether;
}

/* Counts a call; whether it is to fail, errno being set. */
static int fails(int kind, int fd, const char *path) {
  static const char *names[] = {"open", "read", "write", "fsync", "rename", "readdir"};
  atomic_fetch_add(&state->counts[kind], 1);
  if (!(state->mask >> kind & 1)) return 0;
  long number = atomic_fetch_add(&state->matching, 1) + 1;
  if (number < state->first || (state->times >= 0 && number >= state->first + state->times)) return 0;
  if (!atomic_fetch_add(&state->fired, 1)) {
    char link[64], file[PATH_MAX] = "";
    if (!path && fd >= 0) {
      snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
      ssize_t length = readlink(link, file, sizeof file - 1);
      file[length > 0 ? length : 0] = 0;
      path = file;
    }
    snprintf(state->what, sizeof state->what, "%s %s", names[kind], path ? path : "");
  }
  if (state->number < 0) { /* of a signal, for who wants the process killed here */
    kill(getpid(), -state->number);
    pause();
  }
  errno = state->number;
  return 1;
}

#define FAIL_PATH(kind, folder, path, result) \
  if (below(folder, path) && fails(kind, -1, path)) return result
#define FAIL_FD(kind, fd, result) \
  if (is_tracked(fd) && fails(kind, fd, NULL)) return result

#define MODE(flags)                                       \
  mode_t mode = 0;                                        \
  if ((flags) & O_CREAT || ((flags) & O_TMPFILE) == O_TMPFILE) { \
    va_list list;                                         \
    va_start(list, flags);                                \
    mode = va_arg(list, mode_t);                          \
    va_end(list);                                         \
  }

static int opened(int folder, const char *path, int flags, mode_t mode) {
  REAL(int, openat, int, const char *, int, ...);
  int ours = below(folder, path);
  if (ours && fails(OPEN, -1, path)) return -1;
  int fd = real_openat(folder, path, flags, mode);
  track(fd, ours);
  return fd;
}
int open(const char *path, int flags, ...) {
  MODE(flags);
  return opened(AT_FDCWD, path, flags, mode);
}
int open64(const char *path, int flags, ...) {
  MODE(flags);
  return opened(AT_FDCWD, path, flags | O_LARGEFILE, mode);
}
int openat(int folder, const char *path, int flags, ...) {
  MODE(flags);
  return opened(folder, path, flags, mode);
}
int openat64(int folder, const char *path, int flags, ...) {
  MODE(flags);
  return opened(folder, path, flags | O_LARGEFILE, mode);
}
int creat(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int __open_2(const char *path, int flags) { return opened(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return opened(AT_FDCWD, path, flags, 0); }
int __openat_2(int folder, const char *path, int flags) { return opened(folder, path, flags, 0); }
int __openat64_2(int folder, const char *path, int flags) { return opened(folder, path, flags, 0); }

#define FOPEN(name)                                                       \
  FILE *name(const char *path, const char *how) {                         \
    REAL(FILE *, name, const char *, const char *);                       \
    int ours = below(AT_FDCWD, path);                                     \
    if (ours && fails(OPEN, -1, path)) return NULL;                       \
    FILE *file = real_##name(path, how);                                  \
    if (file) track(fileno(file), ours);                                  \
    return file;                                                          \
  }
FOPEN(fopen)
FOPEN(fopen64)
int fclose(FILE *file) {
  REAL(int, fclose, FILE *);
  int ours = is_tracked(fileno(file));
  track(fileno(file), 0);
  int result = real_fclose(file);
  /* What is left in the buffer is written here, and the file is closed either way. */
  return ours && fails(WRITE, -1, "fclose") ? EOF : result;
}
size_t fread(void *data, size_t size, size_t count, FILE *file) {
  REAL(size_t, fread, void *, size_t, size_t, FILE *);
  if (is_tracked(fileno(file)) && fails(READ, fileno(file), NULL)) {
    file->_flags |= 0x20; /* _IO_ERR_SEEN, which ferror() asks */
    return 0;
  }
  return real_fread(data, size, count, file);
}
size_t fwrite(const void *data, size_t size, size_t count, FILE *file) {
  REAL(size_t, fwrite, const void *, size_t, size_t, FILE *);
  if (is_tracked(fileno(file)) && fails(WRITE, fileno(file), NULL)) {
    file->_flags |= 0x20;
    return 0;
  }
  return real_fwrite(data, size, count, file);
}
int fflush(FILE *file) {
  REAL(int, fflush, FILE *);
  if (file) FAIL_FD(WRITE, fileno(file), EOF);
  return real_fflush(file);
}

int close(int fd) {
  REAL(int, close, int);
  track(fd, 0);
  return real_close(fd);
}
int dup(int fd) {
  REAL(int, dup, int);
  int other = real_dup(fd);
  track(other, is_tracked(fd));
  return other;
}
int dup2(int fd, int other) {
  REAL(int, dup2, int, int);
  int result = real_dup2(fd, other);
  track(result, is_tracked(fd));
  return result;
}
int dup3(int fd, int other, int flags) {
  REAL(int, dup3, int, int, int);
  int result = real_dup3(fd, other, flags);
  track(result, is_tracked(fd));
  return result;
}

#define ON_FD(result, name, kind, parameters, arguments, fd)                \
  result name parameters {                                                  \
    static result(*real_##name) parameters;                                 \
    if (!real_##name) real_##name = dlsym(RTLD_NEXT, #name);                \
    FAIL_FD(kind, fd, -1);                                                  \
    return real_##name arguments;                                           \
  }
ON_FD(ssize_t, read, READ, (int fd, void *data, size_t size), (fd, data, size), fd)
ON_FD(ssize_t, pread, READ, (int fd, void *data, size_t size, off_t at), (fd, data, size, at), fd)
ON_FD(ssize_t, pread64, READ, (int fd, void *data, size_t size, off64_t at), (fd, data, size, at), fd)
ON_FD(ssize_t, readv, READ, (int fd, const struct iovec *parts, int count), (fd, parts, count), fd)
ON_FD(ssize_t, preadv, READ, (int fd, const struct iovec *parts, int count, off_t at), (fd, parts, count, at), fd)
ON_FD(ssize_t, preadv64, READ, (int fd, const struct iovec *parts, int count, off64_t at), (fd, parts, count, at), fd)
ON_FD(ssize_t, __read_chk, READ, (int fd, void *data, size_t size, size_t most), (fd, data, size, most), fd)
ON_FD(ssize_t, __pread_chk, READ, (int fd, void *data, size_t size, off_t at, size_t most),
      (fd, data, size, at, most), fd)
ON_FD(ssize_t, __pread64_chk, READ, (int fd, void *data, size_t size, off64_t at, size_t most),
      (fd, data, size, at, most), fd)
ON_FD(ssize_t, write, WRITE, (int fd, const void *data, size_t size), (fd, data, size), fd)
ON_FD(ssize_t, pwrite, WRITE, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at), fd)
ON_FD(ssize_t, pwrite64, WRITE, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at), fd)
ON_FD(ssize_t, writev, WRITE, (int fd, const struct iovec *parts, int count), (fd, parts, count), fd)
ON_FD(ssize_t, pwritev, WRITE, (int fd, const struct iovec *parts, int count, off_t at), (fd, parts, count, at), fd)
ON_FD(ssize_t, sendfile, WRITE, (int fd, int from, off_t *at, size_t size), (fd, from, at, size), fd)
ON_FD(ssize_t, sendfile64, WRITE, (int fd, int from, off64_t *at, size_t size), (fd, from, at, size), fd)
ON_FD(ssize_t, copy_file_range, WRITE,
      (int from, off64_t *at, int fd, off64_t *to, size_t size, unsigned flags), (from, at, fd, to, size, flags), fd)
ON_FD(int, ftruncate, WRITE, (int fd, off_t size), (fd, size), fd)
ON_FD(int, ftruncate64, WRITE, (int fd, off64_t size), (fd, size), fd)
ON_FD(int, fsync, FSYNC, (int fd), (fd), fd)
ON_FD(int, fdatasync, FSYNC, (int fd), (fd), fd)

int rename(const char *from, const char *to) {
  REAL(int, rename, const char *, const char *);
  FAIL_PATH(RENAME, AT_FDCWD, to, -1);
  return real_rename(from, to);
}
int renameat(int folder, const char *from, int other, const char *to) {
  REAL(int, renameat, int, const char *, int, const char *);
  FAIL_PATH(RENAME, other, to, -1);
  return real_renameat(folder, from, other, to);
}
int renameat2(int folder, const char *from, int other, const char *to, unsigned flags) {
  REAL(int, renameat2, int, const char *, int, const char *, unsigned);
  FAIL_PATH(RENAME, other, to, -1);
  return real_renameat2(folder, from, other, to, flags);
}

/* A full disk makes no folders either. */
int mkdir(const char *path, mode_t mode) {
  REAL(int, mkdir, const char *, mode_t);
  FAIL_PATH(WRITE, AT_FDCWD, path, -1);
  return real_mkdir(path, mode);
}
int mkdirat(int folder, const char *path, mode_t mode) {
  REAL(int, mkdirat, int, const char *, mode_t);
  FAIL_PATH(WRITE, folder, path, -1);
  return real_mkdirat(folder, path, mode);
}

DIR *opendir(const char *path) {
  REAL(DIR *, opendir, const char *);
  int ours = below(AT_FDCWD, path);
  if (ours && fails(OPEN, -1, path)) return NULL;
  DIR *folder = real_opendir(path);
  if (folder) track(dirfd(folder), ours);
  return folder;
}
int closedir(DIR *folder) {
  REAL(int, closedir, DIR *);
  track(dirfd(folder), 0);
  return real_closedir(folder);
}
struct dirent *readdir(DIR *folder) {
  REAL(struct dirent *, readdir, DIR *);
  FAIL_FD(READDIR, dirfd(folder), NULL);
  return real_readdir(folder);
}
struct dirent64 *readdir64(DIR *folder) {
  REAL(struct dirent64 *, readdir64, DIR *);
  FAIL_FD(READDIR, dirfd(folder), NULL);
  return real_readdir64(folder);
}
int scandir(const char *path, struct dirent ***names, int (*filter)(const struct dirent *),
            int (*compare)(const struct dirent **, const struct dirent **)) {
  REAL(int, scandir, const char *, struct dirent ***, int (*)(const struct dirent *),
       int (*)(const struct dirent **, const struct dirent **));
  FAIL_PATH(READDIR, AT_FDCWD, path, -1);
  return real_scandir(path, names, filter, compare);
}

int clock_gettime(clockid_t which, struct timespec *now) {
  REAL(int, clock_gettime, clockid_t, struct timespec *);
  int result = real_clock_gettime(which, now);
  if (!result && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) now->tv_sec += clock_shift;
  return result;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  REAL(int, gettimeofday, struct timeval *restrict, void *restrict);
  int result = real_gettimeofday(now, zone);
  if (!result) now->tv_sec += clock_shift;
  return result;
}
time_t time(time_t *now) {
  REAL(time_t, time, time_t *);
  time_t seconds = real_time(NULL) + clock_shift;
  if (now) *now = seconds;
  return seconds;
}
/* The kernel, whose clock is not shifted, wakes who waits for a time of this one: Abseil would not wait, but spin. */
long syscall(long number, ...) {
  REAL(long, syscall, long, ...);
  long a[6];
  va_list list;
  va_start(list, number);
  for (int index = 0; index < 6; index++) a[index] = va_arg(list, long);
  va_end(list);
  struct timespec until;
  if (clock_shift && number == SYS_futex && (a[1] & FUTEX_CLOCK_REALTIME) && a[3]) {
    until = *(struct timespec *)a[3];
    until.tv_sec -= clock_shift;
    a[3] = (long)&until;
  }
  return real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
