/*
 * PID 1 of the guests that the contract suite launches: obeys lines on the link device that the
 * kernel command line names (hyper.link=/dev/...). Static, no libraries beyond libc, one thread.
 *
 *   echo TEXT             ok TEXT
 *   mirror N              ok, then N bytes in and the same N bytes out, as they come
 *   beat COUNT MILLIS     COUNT lines "beat I", one per MILLIS, then ok
 *   cat PATH              ok N, then N bytes (at most 64 KiB of the file)
 *   size DEV              ok BYTES
 *   read DEV OFF LEN      ok LEN, then LEN bytes
 *   write DEV OFF LEN     reads LEN bytes, writes and syncs them; first tries to lift read-only
 *   forget DEV            drops the guest's cached blocks of DEV (BLKFLSBUF)
 *   hold DEV              keeps DEV open until release
 *   release               ok
 *   take I BYTES          fills as much memory, kept as number I (0 to 3)
 *   look I                whether all of it is as it was filled
 *   drop I                gives it back
 *   stay CPU              is on this CPU from now on
 *   udp IF IP PEER PORT   sets IF up with IP/24, sends "ping" to PEER:PORT, answers ok REPLY
 *   poweroff | panic      no answer
 *
 * A failed command answers "err ERRNO text". The first line of all is "ready".
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <net/if.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define CHUNK (64 * 1024)
static int link_fd = -1;
static char chunk[CHUNK];

static void doze(long millis) {
    struct timespec t = {millis / 1000, millis % 1000 * 1000000};
    nanosleep(&t, NULL);
}

/* Dying is a kernel panic, with the reason on the console. */
static void die(const char *why) {
    int console = open("/dev/console", O_WRONLY | O_NOCTTY);
    if (console >= 0) dprintf(console, "contract guest: %s: %s\n", why, strerror(errno));
    _exit(7);
}

/* A read of 0 bytes means that the host is not connected: wait for it. */
static size_t take_some(char *to, size_t most) {
    for (;;) {
        ssize_t got = read(link_fd, to, most);
        if (got > 0) return (size_t)got;
        if (got < 0 && errno != EINTR && errno != EAGAIN) die("read link");
        doze(1);
    }
}

static void take(char *to, size_t count) {
    while (count) {
        size_t got = take_some(to, count);
        to += got;
        count -= got;
    }
}

static void give(const char *from, size_t count) {
    while (count) {
        ssize_t done = write(link_fd, from, count);
        if (done < 0 && errno != EINTR && errno != EAGAIN) die("write link");
        if (done <= 0) { doze(1); continue; }
        from += done;
        count -= (size_t)done;
    }
}

static void say(const char *text) { give(text, strlen(text)); }

static void say_number(const char *word, unsigned long long number) {
    char line[64];
    snprintf(line, sizeof line, "%s %llu\n", word, number);
    say(line);
}

static void fail(const char *what) {
    char line[128];
    snprintf(line, sizeof line, "err %d %s\n", errno, what);
    say(line);
}

/* Device nodes may appear a little after the command that needs them. */
static int open_soon(const char *path, int flags) {
    for (int tries = 0;; tries++) {
        int fd = open(path, flags | O_NOCTTY | O_CLOEXEC);
        if (fd >= 0 || tries >= 200 || (errno != ENOENT && errno != ENXIO && errno != ENODEV && errno != EBUSY)) return fd;
        doze(10);
    }
}

static void find_link(void) {
    static char line[8192];
    char path[128] = "";
    int fd = open("/proc/cmdline", O_RDONLY);
    ssize_t got = fd < 0 ? -1 : read(fd, line, sizeof line - 1);
    if (got < 0) die("read /proc/cmdline");
    close(fd);
    for (char *word = strtok(line, " \n"); word; word = strtok(NULL, " \n"))
        if (!strncmp(word, "hyper.link=", 11)) snprintf(path, sizeof path, "%s", word + 11);
    if (!path[0]) { errno = EINVAL; die("no hyper.link= on the command line"); }
    for (int tries = 0; link_fd < 0 && tries < 10; tries++) link_fd = open_soon(path, O_RDWR);
    if (link_fd < 0) die(path);
    struct termios raw;
    if (!tcgetattr(link_fd, &raw)) {
        cfmakeraw(&raw);
        tcsetattr(link_fd, TCSANOW, &raw);
    }
}

static void mirror(unsigned long long left) {
    say("ok\n");
    while (left) {
        size_t got = take_some(chunk, left < CHUNK ? left : CHUNK);
        give(chunk, got);
        left -= got;
    }
}

static void beat(long count, long millis) {
    for (long i = 0; i < count; i++) {
        say_number("beat", (unsigned long long)i);
        doze(millis);
    }
    say("ok\n");
}

static void cat(const char *path) {
    size_t size = 0;
    ssize_t got = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) { fail("open"); return; }
    while (size < CHUNK && (got = read(fd, chunk + size, CHUNK - size)) > 0) size += (size_t)got;
    close(fd);
    if (got < 0) { fail("read"); return; }
    say_number("ok", size);
    give(chunk, size);
}

static void size_of(const char *dev) {
    uint64_t bytes = 0;
    int fd = open_soon(dev, O_RDONLY);
    int failed = fd < 0 || ioctl(fd, BLKGETSIZE64, &bytes);
    int why = errno;
    if (fd >= 0) close(fd);
    errno = why;
    if (failed) fail("size");
    else say_number("ok", bytes);
}

static void read_block(const char *dev, unsigned long long off, size_t len) {
    char *bytes = malloc(len ? len : 1);
    size_t done = 0;
    int fd = open_soon(dev, O_RDONLY);
    if (fd < 0 || !bytes) { fail("open"); free(bytes); return; }
    while (done < len) {
        ssize_t got = pread(fd, bytes + done, len - done, (off_t)(off + done));
        if (got <= 0) break;
        done += (size_t)got;
    }
    close(fd);
    if (done < len) fail("read");
    else { say_number("ok", len); give(bytes, len); }
    free(bytes);
}

static void write_block(const char *dev, unsigned long long off, size_t len) {
    char *bytes = malloc(len ? len : 1);
    size_t done = 0;
    int writable = 0;
    if (!bytes) die("malloc");
    take(bytes, len);
    int fd = open_soon(dev, O_RDONLY);
    if (fd >= 0) { ioctl(fd, BLKROSET, &writable); close(fd); }
    fd = open_soon(dev, O_RDWR);
    while (fd >= 0 && done < len) {
        ssize_t put = pwrite(fd, bytes + done, len - done, (off_t)(off + done));
        if (put <= 0) break;
        done += (size_t)put;
    }
    int failed = fd < 0 || done < len || fsync(fd);
    int why = errno;
    /* What is answered is done with: the host may take the disk away. */
    if (fd >= 0) close(fd);
    errno = why;
    if (failed) fail("write");
    else say("ok\n");
    free(bytes);
}

static void forget(const char *dev) {
    int fd = open_soon(dev, O_RDONLY);
    int failed = fd < 0 || ioctl(fd, BLKFLSBUF, 0);
    int why = errno;
    if (fd >= 0) close(fd);
    errno = why;
    if (failed) fail("forget");
    else say("ok\n");
}

static int held_fd = -1;

static void hold(const char *dev) {
    held_fd = open_soon(dev, O_RDONLY);
    if (held_fd < 0) fail("hold");
    else say("ok\n");
}

static void release(void) {
    if (held_fd >= 0) close(held_fd);
    held_fd = -1;
    say("ok\n");
}

static struct { uint64_t *words; size_t bytes; } taken[4];

static uint64_t word(unsigned at, size_t i) { return (i + 1) * 0x9e3779b97f4a7c15u + at; }

static void take_memory(unsigned at, size_t bytes) {
    void *where = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (where == MAP_FAILED) { fail("mmap"); return; }
    taken[at].words = where;
    taken[at].bytes = bytes;
    for (size_t i = 0; i < bytes / 8; i += 64) taken[at].words[i] = word(at, i);
    say("ok\n");
}

static void look(unsigned at) {
    for (size_t i = 0; i < taken[at].bytes / 8; i += 64)
        if (taken[at].words[i] != word(at, i)) { errno = EIO; fail("memory changed"); return; }
    say("ok\n");
}

static void drop_memory(unsigned at) {
    if (taken[at].bytes && munmap(taken[at].words, taken[at].bytes)) { fail("munmap"); return; }
    taken[at].bytes = 0;
    say("ok\n");
}

static int interface_up(int fd, const char *name, const char *ip) {
    struct ifreq req;
    struct sockaddr_in *address = (struct sockaddr_in *)&req.ifr_addr;
    memset(&req, 0, sizeof req);
    memcpy(req.ifr_name, name, strnlen(name, sizeof req.ifr_name - 1));
    address->sin_family = AF_INET;
    if (inet_pton(AF_INET, ip, &address->sin_addr) != 1) return -1;
    if (ioctl(fd, SIOCSIFADDR, &req)) return -1;
    inet_pton(AF_INET, "255.255.255.0", &address->sin_addr);
    if (ioctl(fd, SIOCSIFNETMASK, &req)) return -1;
    if (ioctl(fd, SIOCGIFFLAGS, &req)) return -1;
    req.ifr_flags |= IFF_UP;
    return ioctl(fd, SIOCSIFFLAGS, &req);
}

static void udp(const char *name, const char *ip, const char *peer, int port) {
    struct timeval half = {0, 500000};
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    char reply[256] = "";
    ssize_t got = -1;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    inet_pton(AF_INET, peer, &to.sin_addr);
    if (fd < 0 || interface_up(fd, name, ip) || connect(fd, (struct sockaddr *)&to, sizeof to) ||
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &half, sizeof half)) {
        fail("interface");
        return;
    }
    for (int tries = 0; got < 0 && tries < 10; tries++) {
        (void)!send(fd, "ping", 4, 0);
        got = recv(fd, reply, sizeof reply - 8, 0);
    }
    close(fd);
    if (got < 0) { fail("no reply"); return; }
    say("ok ");
    give(reply, (size_t)got);
    say("\n");
}

static void stay(unsigned cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set)) { fail("affinity"); return; }
    say("ok\n");
}

static void obey(char *line) {
    char a[160] = "", b[64] = "", c[64] = "";
    unsigned long long x = 0, y = 0;
    int port = 0;
    if (!strncmp(line, "echo ", 5)) { say("ok "); say(line + 5); say("\n"); }
    else if (sscanf(line, "mirror %llu", &x) == 1) mirror(x);
    else if (sscanf(line, "beat %llu %llu", &x, &y) == 2) beat((long)x, (long)y);
    else if (sscanf(line, "cat %159s", a) == 1) cat(a);
    else if (sscanf(line, "size %159s", a) == 1) size_of(a);
    else if (sscanf(line, "read %159s %llu %llu", a, &x, &y) == 3) read_block(a, x, (size_t)y);
    else if (sscanf(line, "write %159s %llu %llu", a, &x, &y) == 3) write_block(a, x, (size_t)y);
    else if (sscanf(line, "forget %159s", a) == 1) forget(a);
    else if (sscanf(line, "hold %159s", a) == 1) hold(a);
    else if (!strcmp(line, "release")) release();
    else if (sscanf(line, "take %llu %llu", &x, &y) == 2 && x < 4) take_memory((unsigned)x, (size_t)y);
    else if (sscanf(line, "look %llu", &x) == 1 && x < 4) look((unsigned)x);
    else if (sscanf(line, "drop %llu", &x) == 1 && x < 4) drop_memory((unsigned)x);
    else if (sscanf(line, "udp %63s %63s %159s %d", b, c, a, &port) == 4) udp(b, c, a, port);
    else if (sscanf(line, "stay %llu", &x) == 1 && x < CPU_SETSIZE) stay((unsigned)x);
    else if (!strcmp(line, "poweroff")) { sync(); reboot(RB_POWER_OFF); die("power off"); }
    else if (!strcmp(line, "panic")) _exit(7);
    else { errno = EINVAL; fail("unknown command"); }
}

int main(void) {
    static char line[512];
    size_t length = 0;
    mkdir("/dev", 0755);
    mkdir("/proc", 0755);
    mkdir("/sys", 0755);
    mount("dev", "/dev", "devtmpfs", 0, NULL); /* EBUSY: the kernel has done it */
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sys", "/sys", "sysfs", 0, NULL);
    find_link();
    say("ready\n");
    for (;;) {
        take(line + length, 1);
        if (line[length] == '\n') {
            line[length] = 0;
            length = 0;
            obey(line);
        } else if (++length == sizeof line) {
            errno = E2BIG;
            die("line too long");
        }
    }
}
