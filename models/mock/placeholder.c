/* Stands where ttnn expects Tenstorrent's RISC-V compiler, on a mock mesh only.
 *
 * Kernels of a mock mesh are built and loaded but never run, so every compile may give the same object, and
 * every link of that object through the same linker script and firmware symbols gives the same ELF. Compiles
 * copy PLACEHOLDER_OBJECT; links copy from PLACEHOLDER_LINKS and call PLACEHOLDER_ZIG's ld.lld on a miss.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static void fail(const char *what, const char *name) {
    fprintf(stderr, "placeholder kernel compiler: %s %s: %s\n", what, name, strerror(errno));
    exit(1);
}

static void write_file(const char *path, const char *bytes, size_t size) {
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (file < 0) fail("cannot create", path);
    while (size) {
        ssize_t done = write(file, bytes, size);
        if (done < 0) fail("cannot write", path);
        bytes += done;
        size -= done;
    }
    close(file);
}

/* Copies `from` to `to`; returns 0 if `from` does not exist. */
static int copy(const char *from, const char *to) {
    char buffer[1 << 16];
    size_t size = 0;
    ssize_t got;
    int file = open(from, O_RDONLY);
    if (file < 0) return 0;
    while ((got = read(file, buffer + size, sizeof buffer - size)) > 0) size += got;
    close(file);
    if (got < 0 || size == sizeof buffer) fail("cannot copy", from);
    write_file(to, buffer, size);
    return 1;
}

static uint64_t hash = 14695981039346656037ull, cross = 88172645463325252ull;

static void mix(const void *data, size_t size) {
    const unsigned char *byte = data;
    while (size--) {
        hash = (hash ^ *byte) * 1099511628211ull;
        cross = (cross + *byte++) * 6364136223846793005ull + 1442695040888963407ull;
    }
}

/* An input of the link counts by its name, size and time of change. */
static void mix_file(const char *path) {
    struct stat info;
    if (stat(path, &info)) fail("cannot read", path);
    mix(&info.st_size, sizeof info.st_size);
    mix(&info.st_mtim, sizeof info.st_mtim);
}

static int ends_with(const char *text, const char *tail) {
    size_t length = strlen(text), part = strlen(tail);
    return length >= part && !strcmp(text + length - part, tail);
}

static void link_elf(char **flags, int count, const char *out) {
    const char *symbols = "--just-symbols=";
    char cached[4096], fresh[4096];
    for (int i = 3; i < count; i++) {
        mix(flags[i], strlen(flags[i]) + 1);
        if (!strncmp(flags[i], "-T", 2)) mix_file(flags[i] + 2);
        if (!strncmp(flags[i], symbols, strlen(symbols))) mix_file(flags[i] + strlen(symbols));
    }
    snprintf(cached, sizeof cached, "%s/%016llx%016llx.elf", PLACEHOLDER_LINKS, (unsigned long long)hash,
             (unsigned long long)cross);
    if (copy(cached, out)) return;
    snprintf(fresh, sizeof fresh, "%s.%ld", cached, (long)getpid());
    flags[0] = PLACEHOLDER_ZIG;
    flags[1] = "ld.lld";
    flags[2] = PLACEHOLDER_OBJECT;
    flags[count] = "-o";
    flags[count + 1] = fresh;
    flags[count + 2] = NULL;
    pid_t child = fork();
    if (child < 0) fail("cannot start", PLACEHOLDER_ZIG);
    if (!child) {
        execv(PLACEHOLDER_ZIG, flags);
        fail("cannot start", PLACEHOLDER_ZIG);
    }
    int status;
    if (waitpid(child, &status, 0) < 0 || status) {
        unlink(fresh);
        fprintf(stderr, "placeholder kernel compiler: the link of %s failed\n", out);
        exit(1);
    }
    if (!copy(fresh, out)) fail("cannot read", fresh);
    if (rename(fresh, cached)) fail("cannot keep", cached);
}

int main(int argc, char **argv) {
    const char *out = NULL, *dependencies = NULL, *source = "";
    int compile = 0, count = 3;
    size_t room = 8;
    for (int i = 1; i < argc; i++) room += 1 + strlen(argv[i]);
    char **flags = calloc(room, sizeof *flags);
    if (!flags) fail("cannot hold", "arguments");
    for (int i = 1; i < argc; i++) {
        char *flag = argv[i];
        if (!strcmp(flag, "--version")) {
            puts(PLACEHOLDER_VERSION);
            return 0;
        }
        if (!strcmp(flag, "-c")) compile = 1;
        else if (!strcmp(flag, "-o") && i + 1 < argc) out = argv[++i];
        else if (!strcmp(flag, "-MF") && i + 1 < argc) dependencies = argv[++i];
        else if (!strncmp(flag, "-Wl,", 4))
            for (char *word = strtok(flag + 4, ","); word; word = strtok(NULL, ",")) flags[count++] = word;
        else if (!strcmp(flag, "-T") && i + 1 < argc) {
            if (asprintf(&flags[count++], "-T%s", argv[++i]) < 0) fail("cannot hold", "arguments");
        } else if (!strncmp(flag, "-T", 2) || !strncmp(flag, "-L", 2)) flags[count++] = flag;
        else if (ends_with(flag, ".cc") || ends_with(flag, ".cpp") || ends_with(flag, ".S")) source = flag;
    }
    if (!out) {
        fprintf(stderr, "placeholder kernel compiler: only compiles and links with -o are understood\n");
        return 1;
    }
    if (ends_with(out, ".gch")) {
        write_file(out, "", 0);
    } else if (compile) {
        if (!copy(PLACEHOLDER_OBJECT, out)) fail("cannot read", PLACEHOLDER_OBJECT);
        if (dependencies) {
            char *line;
            int size = asprintf(&line, "%s: %s\n", out, source);
            if (size < 0) fail("cannot hold", "dependencies");
            write_file(dependencies, line, size);
        }
    } else {
        link_elf(flags, count, out);
    }
    return 0;
}
