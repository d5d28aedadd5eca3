/* Kernels that want no good. Built for MODE by hostile.rs, loaded at 16 MiB, entered in 64-bit mode
 * with the first GiB mapped. What they find out goes to the serial port; "reboot: Restarting system"
 * and a reset through the keyboard controller end those that reach their end. */
typedef unsigned long u64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

#define BASE 0xd0000000ul
#define STEP 0x1000ul

static u64 tables[3][512] __attribute__((aligned(4096)));
static u8 rings[1 << 16] __attribute__((aligned(4096)));

static void out(u16 port, u8 value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static void say(const char *text) { while (*text) out(0x3f8, (u8)*text++); }

static void reset(void) {
    say("survived\nreboot: Restarting system\n");
    out(0x64, 0xfe);
    for (;;) {}
}

/* The other three GiB, as they are. */
static void map(void) {
    u64 *pdpt = (u64 *)0xa000;
    for (u64 gib = 1; gib < 4; gib++) {
        for (u64 at = 0; at < 512; at++) tables[gib - 1][at] = (gib << 30) + (at << 21) + 0x83;
        pdpt[gib] = (u64)tables[gib - 1] + 3;
    }
}

static volatile u32 *reg(u64 device, u64 offset) {
    return (volatile u32 *)(BASE + device * STEP + offset);
}

static u64 seed = 88172645463325252ul;
static u64 any(void) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

static u64 devices(void) {
    u64 count = 0;
    while (count < 64 && *reg(count, 0) == 0x74726976) count++;
    return count;
}

/* Brings a device up with queues at `where`. */
static void up(u64 device, u64 where) {
    *reg(device, 0x70) = 0;
    *reg(device, 0x70) = 3;
    *reg(device, 0x24) = 1;
    *reg(device, 0x20) = 1;
    *reg(device, 0x70) = 11;
    for (u32 queue = 0; queue < 6; queue++) {
        *reg(device, 0x30) = queue;
        u32 most = *reg(device, 0x34);
        if (!most) break;
        *reg(device, 0x38) = most;
        *reg(device, 0x80) = (u32)where;
        *reg(device, 0x84) = (u32)(where >> 32);
        *reg(device, 0x90) = (u32)where + 0x4000;
        *reg(device, 0x94) = (u32)(where >> 32);
        *reg(device, 0xa0) = (u32)where + 0x8000;
        *reg(device, 0xa4) = (u32)(where >> 32);
        *reg(device, 0x44) = 1;
    }
    *reg(device, 0x70) = 15;
}

void _start(void) {
#if MODE == 0 /* garbage in registers, rings and descriptors */
    map();
    u64 count = devices();
    if (count < 3) say("no devices\n");
    for (u64 round = 0; round < 60; round++) {
        for (u64 at = 0; at < sizeof rings / 8; at++) {
            u64 value = any();
            /* Sometimes addresses that are memory, short lengths, sane flags. */
            if (value & 1) value = (value & 0xffff) << 8 | (u64)rings;
            ((volatile u64 *)rings)[at] = value;
        }
        for (u64 device = 0; device < count; device++) {
            up(device, round % 3 ? (u64)rings : any());
            for (u64 kick = 0; kick < 8; kick++) *reg(device, 0x50) = (u32)any() % 8;
            for (u64 access = 0; access < 16; access++) {
                u64 offset = any() % 0x400 & ~3ul;
                if (any() & 1) *reg(device, offset) = (u32)any();
                else (void)*reg(device, offset);
            }
        }
    }
    reset();
#elif MODE == 1 /* a storm of kicks, at queues that exist and such that do not */
    map();
    for (u64 device = 0; device < devices(); device++) up(device, (u64)rings);
    for (u64 kick = 0; kick < 100000; kick++) *reg(kick % 4, 0x50) = (u32)(kick % 5);
    reset();
#elif MODE == 2 /* a triple fault */
    static struct { u16 limit; u64 base; } __attribute__((packed)) none;
    __asm__ volatile("lidt %0; ud2" : : "m"(none));
#elif MODE == 3 /* spins */
    say("spinning\n");
#elif MODE == 4 /* memory that is not there, ports that are not there */
    map();
    for (u64 at = 0x40000000; at < 0x100000000ul; at += 0x1234568) {
        volatile u32 *place = (volatile u32 *)(at & ~3ul);
        u32 seen = *place;
        *place = ~seen;
    }
    for (u32 port = 0; port < 0x1000; port += 3)
        if (port != 0x64 && port >> 3 != 0x3f8 >> 3) out((u16)port, (u8)port);
    reset();
#elif MODE == 5 /* chains that have no end, tables within tables */
    map();
    struct { u64 at; u32 length; u16 flags, next; } *table = (void *)rings;
    volatile u16 *avail = (volatile u16 *)(rings + 0x4000);
    for (u16 kind = 0; kind < 4; kind++) {
        for (u16 at = 0; at < 128; at++) {
            table[at].at = (u64)rings;
            table[at].length = kind == 1 ? 0xffffffff : 0x1000;
            table[at].flags = kind == 2 ? 5 : kind == 3 ? 3 : 1;
            table[at].next = kind == 0 ? at : (u16)((at + 1) % 128);
        }
        for (u16 at = 0; at < 128; at++) avail[2 + at] = at;
        avail[0] = 0;
        avail[1] = 127;
        for (u64 device = 0; device < devices(); device++) {
            up(device, (u64)rings);
            for (u32 queue = 0; queue < 6; queue++) *reg(device, 0x50) = queue;
        }
    }
    reset();
#endif
    for (;;) {}
}
