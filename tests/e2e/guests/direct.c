// direct INPUT OUTPUT: writes what is mapped of INPUT to OUTPUT, past the page cache where that can
// be, first all in one piece, then in two of which the second is memory.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define PIECE 65536

static void *checked(void *result, const char *what)
{
	if (result == MAP_FAILED || !result) {
		perror(what);
		exit(1);
	}
	return result;
}

int main(int argc, char **argv)
{
	int input = argc == 3 ? open(argv[1], O_RDONLY) : -1;
	int output = argc == 3 ? open(argv[2], O_CREAT | O_TRUNC | O_WRONLY | O_DIRECT, 0644) : -1;
	struct stat info;

	if (input < 0 || output < 0 || fstat(input, &info) || info.st_size % PIECE) {
		perror("direct: its files");
		return 1;
	}
	char *mapped = checked(mmap(NULL, info.st_size, PROT_READ, MAP_SHARED, input, 0), "mmap");
	char *copied = checked(aligned_alloc(4096, PIECE), "aligned_alloc");
	memcpy(copied, mapped, PIECE);
	struct iovec both[] = {{mapped, PIECE}, {copied, PIECE}};
	if (write(output, mapped, info.st_size) != info.st_size || writev(output, both, 2) != 2 * PIECE ||
	    write(output, copied, PIECE) != PIECE) {
		perror("direct: write");
		return 1;
	}
	return 0;
}
