/*
 * What a program may expect of the processor it runs on, wherever its kernel keeps it: the floating point registers are
 * its own across system calls, threads, signals, forks, execs, page faults and a debugger, faults tell what they were, and
 * clocks never go back.
 *
 * Prints what is wrong, a line each, and ends with 1; or `all well`.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <immintrin.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/ucontext.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define WORDS 16
#define MXCSR 0x1f80
#define MXCSR_OTHER 0x9f80

static int wrong;

static void expect(int holds, const char *what)
{
	if (!holds && __sync_fetch_and_add(&wrong, 1) < 20)
		printf("wrong: %s\n", what);
}

/* Puts `in` into four registers, makes a system call, and stores them in `out`. */
__attribute__((noinline)) static long across(long call, long a, long b, const unsigned *in, unsigned *out)
{
	long result;

	asm volatile("movdqu (%[in]), %%xmm0\n movdqu 16(%[in]), %%xmm1\n"
		     "movdqu 32(%[in]), %%xmm7\n movdqu 48(%[in]), %%xmm15\n"
		     "syscall\n"
		     "movdqu %%xmm0, (%[out])\n movdqu %%xmm1, 16(%[out])\n"
		     "movdqu %%xmm7, 32(%[out])\n movdqu %%xmm15, 48(%[out])\n"
		     : "=a"(result)
		     : "a"(call), "D"(a), "S"(b), [in] "r"(in), [out] "r"(out)
		     : "rcx", "r11", "memory", "xmm0", "xmm1", "xmm7", "xmm15");
	return result;
}

static void fill(unsigned *words, unsigned seed)
{
	for (unsigned i = 0; i < WORDS; i++)
		words[i] = seed * 2654435761u + i * 40503u;
}

static long kept(const char *what, unsigned seed, long call, long a, long b)
{
	unsigned in[WORDS], out[WORDS];
	long result;

	fill(in, seed);
	result = across(call, a, b, in, out);
	expect(!memcmp(in, out, sizeof(in)), what);
	return result;
}

static void *thread(void *number)
{
	static const long calls[] = { SYS_sched_yield, SYS_getppid, SYS_gettid };

	for (unsigned i = 0; i < 1500; i++)
		kept("registers of a thread", (unsigned)(long)number * 100000 + i, calls[i % 3], 0, 0);
	return NULL;
}

static void *short_thread(void *number)
{
	kept("registers of a thread that ends", (unsigned)(long)number, SYS_sched_yield, 0, 0);
	return NULL;
}

static void threads(void)
{
	pthread_t all[6], one;

	for (long i = 0; i < 6; i++)
		pthread_create(&all[i], NULL, thread, (void *)(i + 1));
	for (int i = 0; i < 6; i++)
		pthread_join(all[i], NULL);
	for (long i = 0; i < 200; i++) {
		pthread_create(&one, NULL, short_thread, (void *)i);
		kept("registers while a thread ends", i + 7, SYS_sched_yield, 0, 0);
		pthread_join(one, NULL);
	}
}

static void spoil(int signal)
{
	(void)signal;
	asm volatile("pcmpeqd %%xmm0, %%xmm0\n movdqu %%xmm0, %%xmm1\n movdqu %%xmm0, %%xmm7\n movdqu %%xmm0, %%xmm15"
		     ::: "xmm0", "xmm1", "xmm7", "xmm15");
	getppid();
}

static void signals(void)
{
	struct sigaction action = { .sa_handler = spoil, .sa_flags = SA_RESTART };
	struct itimerval every = { { 0, 1000 }, { 0, 1000 } };

	sigaction(SIGALRM, &action, NULL);
	sigaction(SIGUSR1, &action, NULL);
	setitimer(ITIMER_REAL, &every, NULL);
	for (unsigned i = 0; i < 10000; i++)
		kept("registers over a timer's signals", i, i & 1 ? SYS_getppid : SYS_sched_yield, 0, 0);
	memset(&every, 0, sizeof(every));
	setitimer(ITIMER_REAL, &every, NULL);
	for (unsigned i = 0; i < 100; i++)
		kept("registers over a signal of our own", i, SYS_kill, getpid(), SIGUSR1);
}

static void processes(void)
{
	for (unsigned i = 0; i < 100; i++) {
		int before = wrong, status;
		long child = kept("registers over fork", i, SYS_fork, 0, 0);

		if (child == 0)
			_exit(wrong != before);
		waitpid(child, &status, 0);
		expect(status == 0, "registers of a forked child");
	}
	for (unsigned i = 0; i < 20; i++) {
		int status;
		pid_t child = vfork();

		if (child == 0) {
			_mm_setcsr(MXCSR_OTHER);
			kept("registers of a child that shares memory", i, SYS_getppid, 0, 0);
			execl("/proc/self/exe", "processor", "fresh", NULL);
			_exit(2);
		}
		/* The child changed ours, if the registers were shared as the memory is. */
		expect(_mm_getcsr() == MXCSR, "control register after vfork");
		kept("registers after vfork", i, SYS_getppid, 0, 0);
		waitpid(child, &status, 0);
		expect(status == 0, "control register of a new program");
	}
}

static void debugger(void)
{
	unsigned want[WORDS], out[WORDS];
	struct user_fpregs_struct seen;
	int status;
	pid_t child;

	fill(want, 5);
	fflush(stdout);
	child = fork();
	if (child == 0) {
		ptrace(PTRACE_TRACEME, 0, NULL, NULL);
		across(SYS_kill, getpid(), SIGSTOP, want, out);
		want[0] = ~want[0];
		_exit(memcmp(want, out, sizeof(want)) != 0);
	}
	waitpid(child, &status, 0);
	expect(ptrace(PTRACE_GETFPREGS, child, NULL, &seen) == 0, "a debugger reads registers");
	expect(!memcmp(seen.xmm_space, want, 16), "registers that a debugger reads");
	seen.xmm_space[0] = ~seen.xmm_space[0];
	expect(ptrace(PTRACE_SETFPREGS, child, NULL, &seen) == 0, "a debugger writes registers");
	ptrace(PTRACE_CONT, child, NULL, NULL);
	waitpid(child, &status, 0);
	expect(status == 0, "registers that a debugger wrote");
}

static sigjmp_buf back;
static siginfo_t fault;
static long fault_was_write;

static void faulted(int signal, siginfo_t *info, void *context)
{
	fault = *info;
	fault.si_signo = signal;
	fault_was_write = ((ucontext_t *)context)->uc_mcontext.gregs[REG_ERR] & 2;
	siglongjmp(back, 1);
}

static void fails(volatile char *at, int writes, int signal, const char *what)
{
	if (!sigsetjmp(back, 1)) {
		if (writes)
			*at = 1;
		else
			(void)*at;
		expect(0, what);
		return;
	}
	expect(fault.si_signo == signal && fault.si_addr == (void *)at, what);
	if (signal == SIGSEGV)
		expect(!fault_was_write == !writes, what);
}

static char *map(size_t size, int protection, int flags, int file)
{
	char *at = mmap(NULL, size, protection, flags, file, 0);

	if (at == MAP_FAILED) {
		perror("mmap");
		exit(2);
	}
	return at;
}

static void faults(void)
{
	enum { PAGE = 4096, PAGES = 64 };
	const int both = PROT_READ | PROT_WRITE, anonymous = MAP_PRIVATE | MAP_ANONYMOUS;
	struct sigaction action = { .sa_sigaction = faulted, .sa_flags = SA_SIGINFO };
	unsigned in[WORDS], out[WORDS];
	char *at;
	int file = memfd_create("pages", 0), status;
	pid_t child;

	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	for (int round = 0; round < 2; round++) {
		/* with, without swap reserved: memory that is read before it is written */
		at = map(PAGES * PAGE, both, anonymous | (round ? MAP_NORESERVE : 0), -1);
		for (int i = 0; i < PAGES; i++) {
			expect(at[i * PAGE] == 0, "new memory is empty");
			fill(in, i);
			asm volatile("movdqu (%0), %%xmm3\n movb $1, (%2)\n movdqu %%xmm3, (%1)"
				     :: "r"(in), "r"(out), "r"(at + i * PAGE + 8) : "xmm3", "memory");
			expect(!memcmp(in, out, 16), "registers over a page fault");
		}
		child = fork();
		if (child == 0) {
			for (int i = 0; i < PAGES; i++)
				at[i * PAGE + 8]++;
			_exit(at[8] != 2 || at[(PAGES - 1) * PAGE + 8] != 2);
		}
		waitpid(child, &status, 0);
		expect(status == 0 && at[8] == 1, "a child's copy of memory");
		mprotect(at, PAGE, PROT_READ);
		expect(at[8] == 1, "protected memory is read");
		fails(at, 1, SIGSEGV, "write to memory that is read only");
		mprotect(at, PAGE, PROT_NONE);
		fails(at, 0, SIGSEGV, "read of memory that nobody may touch");
		fails(at, 1, SIGSEGV, "write to memory that nobody may touch");
		mprotect(at, PAGE, both);
		at[8]++;
		expect(at[8] == 2, "memory that is given back");
		munmap(at, PAGES * PAGE);
		fails(at + PAGE, 0, SIGSEGV, "read of memory that is gone");
		fails(at + PAGE, 1, SIGSEGV, "write to memory that is gone");
	}
	at = map(PAGE, PROT_READ, anonymous, -1);
	fails(at, 1, SIGSEGV, "write to new memory that is read only");
	expect(at[1] == 0, "new memory that is read only");

	expect(ftruncate(file, 2 * PAGE) == 0 && pwrite(file, "file", 4, 0) == 4, "a file");
	char *shared = map(3 * PAGE, both, MAP_SHARED, file), *own = map(PAGE, both, MAP_PRIVATE, file);
	expect(!memcmp(own, "file", 4), "a private mapping shows the file");
	own[0] = 'o';
	expect(shared[0] == 'f', "a private mapping is private");
	shared[1] = 'I';
	expect(pread(file, out, 4, 0) == 4 && !memcmp(out, "fIle", 4), "a shared mapping is the file");
	fails(shared + 2 * PAGE, 0, SIGBUS, "read behind a file's end");
	fails(shared + 2 * PAGE, 1, SIGBUS, "write behind a file's end");
}

static long long nanoseconds(clockid_t clock, int by_system_call)
{
	struct timespec now;

	if (by_system_call)
		syscall(SYS_clock_gettime, clock, &now);
	else
		clock_gettime(clock, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static volatile long long *latest;

/* Clocks that are read with and without a system call, by turns, over many ticks and in other processes. */
static void clocks(void)
{
	static const clockid_t all[] = { CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC_RAW, CLOCK_REALTIME };
	/* Somebody may set the last one back. */
	const int count = sizeof(all) / sizeof(*all), steady = count - 1;
	const long long period = 400000000, from = nanoseconds(CLOCK_MONOTONIC, 0);
	int status;
	pid_t child;

	latest = (long long *)map(4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
	fflush(stdout);
	child = fork();
	for (unsigned turn = 0; nanoseconds(CLOCK_MONOTONIC, turn & 1) - from < period; turn++) {
		for (int at = 0; at < steady; at++) {
			/* what the other process saw before this was asked */
			long long before = latest[at], now = nanoseconds(all[at], turn % 5 == 0);

			expect(now >= before, "a clock goes on");
			if (now > latest[at])
				latest[at] = now;
		}
		if (turn % 1000 == 0)
			sched_yield();
	}
	if (child == 0)
		_exit(wrong);
	waitpid(child, &status, 0);
	expect(status == 0, "a child's clock goes on");
	for (int at = 0; at < count; at++) {
		const struct timespec nap = { 0, 20000000 };
		long long before = nanoseconds(all[at], at & 1), passed;
		struct timespec resolution;

		nanosleep(&nap, NULL);
		passed = nanoseconds(all[at], 0) - before;
		expect(passed > 19000000 && passed < 10000000000LL, "a clock tells how long a sleep was");
		expect(clock_getres(all[at], &resolution) == 0 && resolution.tv_sec == 0, "a clock's resolution");
	}
	expect(llabs(time(NULL) - nanoseconds(CLOCK_REALTIME, 1) / 1000000000) <= 1, "time of day in seconds");
}

int main(int count, char **words)
{
	if (count > 1 && !strcmp(words[1], "fresh"))
		return _mm_getcsr() != MXCSR;
	setvbuf(stdout, NULL, _IOLBF, 0);
	threads();
	signals();
	processes();
	debugger();
	faults();
	clocks();
	if (!wrong)
		puts("all well");
	return wrong != 0;
}
