/* Runs a library of qcompile without an operating system's loader, C library or Python.

     driver LIBRARY < request > results

   request: six 32-bit words (bytes of parameters, bytes of the arena, inputs, outputs, samples, 0), the bytes of every
   input and output, the packed parameters, and for every sample its inputs.  results: for every sample its outputs.
   The library's bytes are mapped as they are, relocated, and called.  One thread. */

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long word;

#define MOST_ARGUMENTS 512
#define PAGE 65536ul
#define ALIGNMENT 64ul

/* ---- the machine: system calls and the start of the program ---- */

#if defined(__aarch64__)
enum { READ = 63, WRITE = 64, LSEEK = 62, OPENAT = 56, MMAP = 222, EXIT = 94 };
static long call(long number, long a, long b, long c, long d, long e, long f)
{
    register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d, x4 __asm__("x4") = e, x5 __asm__("x5") = f;
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
}
__asm__(".globl _start\n_start:\n mov x29, #0\n mov x0, sp\n b start\n");
typedef struct { u8 ident[16]; unsigned short type, machine; u32 version; word entry, phoff, shoff; u32 flags;
    unsigned short ehsize, phentsize, phnum; } Header;
typedef struct { u32 type, flags; word offset, vaddr, paddr, filesz, memsz, align; } Segment;
typedef struct { u32 name; u8 info, other; unsigned short shndx; word value, size; } Symbol;
typedef struct { word offset, info; long addend; } Relocation;
#define SYMBOL_OF(info) ((info) >> 32)
#define KIND_OF(info) ((u32)(info))
enum { TABLE = 7, TABLE_SIZE = 8, RELATIVE = 1027, ABSOLUTE = 257, GLOBAL = 1025, SLOT = 1026 };
#elif defined(__arm__)
enum { READ = 3, WRITE = 4, LSEEK = 19, OPENAT = 322, MMAP = 192, EXIT = 248 };
static long call(long number, long a, long b, long c, long d, long e, long f)
{
    register long r7 __asm__("r7") = number, r0 __asm__("r0") = a, r1 __asm__("r1") = b, r2 __asm__("r2") = c;
    register long r3 __asm__("r3") = d, r4 __asm__("r4") = e, r5 __asm__("r5") = f;
    __asm__ volatile("svc #0" : "+r"(r0) : "r"(r7), "r"(r1), "r"(r2), "r"(r3), "r"(r4), "r"(r5) : "memory");
    return r0;
}
__asm__(".arm\n.globl _start\n_start:\n mov r0, sp\n bic sp, sp, #7\n b start\n");
typedef struct { u8 ident[16]; unsigned short type, machine; u32 version; word entry, phoff, shoff; u32 flags;
    unsigned short ehsize, phentsize, phnum; } Header;
typedef struct { u32 type; word offset, vaddr, paddr, filesz, memsz; u32 flags, align; } Segment;
typedef struct { u32 name; word value, size; u8 info, other; unsigned short shndx; } Symbol;
typedef struct { word offset, info; } Relocation;
#define SYMBOL_OF(info) ((info) >> 8)
#define KIND_OF(info) ((info) & 255)
enum { TABLE = 17, TABLE_SIZE = 18, RELATIVE = 23, ABSOLUTE = 2, GLOBAL = 21, SLOT = 22 };
#else
#error "no system calls for this architecture"
#endif

/* What compilers call on their own, and what kernels may. */
void *memset(void *to, int value, word n)
{
    for (u8 *p = to; n--; p++) *p = (u8)value;
    return to;
}
void *memmove(void *to, const void *from, word n)
{
    u8 *t = to;
    const u8 *f = from;
    if (t < f) while (n--) *t++ = *f++;
    else while (n--) t[n] = f[n];
    return to;
}
void *memcpy(void *to, const void *from, word n) { return memmove(to, from, n); }

static int equal(const char *a, const char *b)
{
    while (*a && *a == *b) a++, b++;
    return *a == *b;
}

static void fail(const char *what, const char *detail)
{
    const char *parts[] = { "driver: ", what, detail, "\n" };
    for (int i = 0; i < 4; i++) {
        word n = 0;
        while (parts[i][n]) n++;
        call(WRITE, 2, (long)parts[i], (long)n, 0, 0, 0);
    }
    call(EXIT, 1, 0, 0, 0, 0, 0);
}

/* What the compiler's division calls where the divisor is 0. */
static int raise(int signal)
{
    (void)signal;
    fail("a kernel divided by zero", "");
    return 0;
}

static void *memory(word size)
{
    long at = call(MMAP, 0, (long)((size + PAGE) & ~(PAGE - 1)), 7, 0x22, -1, 0);
    if (at < 0 && at > -4096) fail("out of memory", "");
    return (void *)at;
}

static void receive(long file, void *to, word n)
{
    for (u8 *p = to; n;) {
        long got = call(READ, file, (long)p, (long)n, 0, 0, 0);
        if (got <= 0) fail("the request ends early", "");
        p += got;
        n -= (word)got;
    }
}

static void deliver(const void *from, word n)
{
    for (const u8 *p = from; n;) {
        long put = call(WRITE, 1, (long)p, (long)n, 0, 0, 0);
        if (put <= 0) fail("the results cannot be written", "");
        p += put;
        n -= (word)put;
    }
}

/* ---- the library ---- */

static u8 *base;
static word dynamic[32];

/* Loops that would be shared among threads run here, as one task. */
struct environment { void *sync; int tasks; };
static int launch(int (*body)(int, struct environment *, void *), void *data, int tasks)
{
    struct environment alone = { 0, 1 };
    (void)tasks;
    return body(0, &alone, data);
}

static word address_of(word index)
{
    const Symbol *symbol = (const Symbol *)(base + dynamic[6]) + index;
    const char *name = (const char *)(base + dynamic[5] + symbol->name);
    if (!index) return 0;
    if (symbol->shndx) return (word)base + symbol->value;
    if (equal(name, "memset")) return (word)memset;
    if (equal(name, "memcpy") || equal(name, "memmove")) return (word)memmove;
    if (equal(name, "raise")) return (word)raise;
    if (symbol->info >> 4 != 2) fail("undefined symbol ", name);
    return 0;
}

static void relocate(word table, word size)
{
    const Relocation *r = (const Relocation *)(base + table);
    for (word n = size / sizeof *r; n--; r++) {
        word *place = (word *)(base + r->offset);
#if defined(__aarch64__)
        word addend = (word)r->addend;
#else
        word addend = KIND_OF(r->info) == GLOBAL || KIND_OF(r->info) == SLOT ? 0 : *place;
#endif
        switch (KIND_OF(r->info)) {
        case RELATIVE: *place = (word)base + addend; break;
        case ABSOLUTE: case GLOBAL: case SLOT: *place = address_of(SYMBOL_OF(r->info)) + addend; break;
        default: fail("unknown relocation", "");
        }
    }
}

static word find(const char *name)
{
    const Symbol *symbol = (const Symbol *)(base + dynamic[6]);
    /* The hash table's second word is the number of symbols. */
    for (u32 n = ((const u32 *)(base + dynamic[4]))[1]; n--; symbol++)
        if (symbol->shndx && equal((const char *)(base + dynamic[5] + symbol->name), name))
            return (word)base + symbol->value;
    return 0;
}

static void open_library(const char *path)
{
    long file = call(OPENAT, -100, (long)path, 0, 0, 0, 0);
    if (file < 0) fail("cannot open ", path);
    long size = call(LSEEK, file, 0, 2, 0, 0, 0);
    u8 *bytes = memory((word)size);
    call(LSEEK, file, 0, 0, 0, 0, 0);
    receive(file, bytes, (word)size);
    const Header *header = (const Header *)bytes;
    const Segment *segments = (const Segment *)(bytes + header->phoff);
    word end = 0;
    for (int i = 0; i < header->phnum; i++)
        if (segments[i].type == 1 && segments[i].vaddr + segments[i].memsz > end)
            end = segments[i].vaddr + segments[i].memsz;
    base = memory(end);
    for (int i = 0; i < header->phnum; i++)
        if (segments[i].type == 1) memcpy(base + segments[i].vaddr, bytes + segments[i].offset, segments[i].filesz);
    for (int i = 0; i < header->phnum; i++)
        if (segments[i].type == 2)
            for (const word *d = (const word *)(base + segments[i].vaddr); d[0]; d += 2)
                if (d[0] < 32) dynamic[d[0]] = d[1];
    if (dynamic[TABLE]) relocate(dynamic[TABLE], dynamic[TABLE_SIZE]);
    if (dynamic[23]) relocate(dynamic[23], dynamic[2]);
    __builtin___clear_cache((char *)base, (char *)base + end);
}

/* ---- the request ---- */

static u8 *aligned(word size)
{
    return (u8 *)(((word)memory(size + ALIGNMENT) + ALIGNMENT - 1) & ~(ALIGNMENT - 1));
}

__attribute__((used)) void start(word *stack)
{
    static u32 header[6], sizes[MOST_ARGUMENTS];
    static void *a[MOST_ARGUMENTS + 2];
    if (stack[0] != 2) fail("usage: driver LIBRARY", "");
    open_library((const char *)stack[2]);
    word *hook = (word *)find("__TVMBackendParallelLaunch");
    if (hook) *hook = (word)launch;
    int (*entry)() = (int (*)())find(ENTRY);
    if (!entry) fail("the library has no entry function", "");
    receive(0, header, sizeof header);
    u32 inputs = header[2], count = header[2] + header[3];
    if (count != ARGUMENTS) fail("the driver was built for another number of arguments", "");
    receive(0, sizes, count * sizeof *sizes);
    a[0] = aligned(header[0]);
    a[1] = aligned(header[1]);
    for (u32 i = 0; i < count; i++) a[i + 2] = aligned(sizes[i]);
    receive(0, a[0], header[0]);
    for (u32 sample = 0; sample < header[4]; sample++) {
        for (u32 i = 0; i < inputs; i++) receive(0, a[i + 2], sizes[i]);
        if (CALL) fail("a kernel returned an error", "");
        for (u32 i = inputs; i < count; i++) deliver(a[i + 2], sizes[i]);
    }
    call(EXIT, 0, 0, 0, 0, 0, 0);
}
