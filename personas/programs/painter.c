/* painter: fills the first connected screen with one colour, through DRM. For tests and pictures.
 *
 * usage: painter RRGGBB [DEVICE]      (DEVICE: /dev/dri/card0)
 *
 * It waits until there is a device and a screen, paints, and then asks for its picture again and again: when the
 * screen was another's meanwhile, the picture is back with the device.
 *
 * Touches: the one device.
 * Never:   ends by itself, unless it was called wrongly. It is made to be the first process of a room.
 * Fails:   by trying again; each new reason is said once, on standard error.
 */

#include <stddef.h>
#include <stdint.h>

#ifndef __x86_64__
#error "the system call instruction below is that of x86-64"
#endif

/* Each picture is asked for again after this long (ns): a person sees no gap, a processor no load. */
#define PAUSE_NS 250000000
#define MODES_MAX 64
#define CONNECTORS_MAX 16
#define CRTCS_MAX 16
#define CONNECTED 1

/* ---- the kernel: system calls, and the structures of its drm_mode.h ------------------------------------------- */

static long call(long number, long a, long b, long c, long d, long e, long f) {
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

void *memset(void *to, int byte, size_t n) {
    void *t = to;
    __asm__ volatile("rep stosb" : "+D"(t), "+c"(n) : "a"(byte) : "memory");
    return to;
}

void *memcpy(void *to, const void *from, size_t n) {
    void *t = to;
    __asm__ volatile("rep movsb" : "+D"(t), "+S"(from), "+c"(n) : : "memory");
    return to;
}

struct resources {
    uint64_t framebuffers, crtcs, connectors, encoders;
    uint32_t framebuffer_count, crtc_count, connector_count, encoder_count;
    uint32_t width_min, width_max, height_min, height_max;
};
struct mode {
    uint32_t clock;
    uint16_t width, horizontal[4], height, vertical[4];
    uint32_t refresh, flags, type;
    char name[32];
};
struct connector {
    uint64_t encoders, modes, properties, values;
    uint32_t mode_count, property_count, encoder_count, encoder, id, type, number, connection;
    uint32_t width_mm, height_mm, subpixel, padding;
};
struct crtc {
    uint64_t connectors;
    uint32_t connector_count, id, framebuffer, x, y, gamma_size, mode_valid;
    struct mode mode;
};
struct dumb {
    uint32_t height, width, bits, flags, handle, pitch;
    uint64_t size;
};
struct map {
    uint32_t handle, padding;
    uint64_t offset;
};
struct framebuffer {
    uint32_t id, width, height, pitch, bits, depth, handle;
};

#define DRM(number, type) (3l << 30 | (long)sizeof(type) << 16 | 'd' << 8 | (number))
#define GET_RESOURCES DRM(0xa0, struct resources)
#define SET_CRTC DRM(0xa2, struct crtc)
#define GET_CONNECTOR DRM(0xa7, struct connector)
#define ADD_FRAMEBUFFER DRM(0xae, struct framebuffer)
#define CREATE_DUMB DRM(0xb2, struct dumb)
#define MAP_DUMB DRM(0xb3, struct map)

_Static_assert(sizeof(struct resources) == 64 && sizeof(struct mode) == 68 && sizeof(struct connector) == 80 &&
                   sizeof(struct crtc) == 104 && sizeof(struct dumb) == 32 && sizeof(struct map) == 16 &&
                   sizeof(struct framebuffer) == 28,
               "the sizes are part of the request's number");

static long request(int device, long number, void *what) { return call(16, device, number, (long)what, 0, 0, 0); }

/* ---- painting -------------------------------------------------------------------------------------------------- */

static const char *last_said = "";

static void say(const char *what) {
    if (what == last_said) return;
    last_said = what;
    size_t n = 0;
    while (what[n]) n++;
    call(1, 2, (long)"painter: ", 9, 0, 0, 0);
    call(1, 2, (long)what, (long)n, 0, 0, 0);
    call(1, 2, (long)"\n", 1, 0, 0, 0);
}

static struct mode modes[MODES_MAX];
static uint32_t connectors[CONNECTORS_MAX], crtcs[CRTCS_MAX];
static uint32_t connector_id;

/* The first connected screen and its first mode, which is the one it likes best. */
static int find_screen(int device, struct crtc *found) {
    struct resources resources = {.connectors = (uint64_t)connectors, .connector_count = CONNECTORS_MAX,
                                  .crtcs = (uint64_t)crtcs, .crtc_count = CRTCS_MAX};
    if (request(device, GET_RESOURCES, &resources) < 0) return 0;
    if (!resources.crtc_count || resources.crtc_count > CRTCS_MAX || resources.connector_count > CONNECTORS_MAX)
        return 0;
    for (uint32_t i = 0; i < resources.connector_count; i++) {
        /* Asked for no modes, the kernel looks at the screen anew; the second time it gives them. */
        struct connector ask = {.id = connectors[i]};
        if (request(device, GET_CONNECTOR, &ask) < 0) continue;
        ask = (struct connector){.id = connectors[i], .modes = (uint64_t)modes, .mode_count = MODES_MAX};
        if (request(device, GET_CONNECTOR, &ask) < 0) continue;
        if (ask.connection != CONNECTED || !ask.mode_count || ask.mode_count > MODES_MAX) continue;
        connector_id = connectors[i];
        *found = (struct crtc){.connectors = (uint64_t)&connector_id, .connector_count = 1, .id = crtcs[0],
                               .mode_valid = 1, .mode = modes[0]};
        return 1;
    }
    return 0;
}

/* A framebuffer as large as the screen, all of it of one colour. */
static int make_picture(int device, struct crtc *screen, uint32_t colour) {
    struct dumb dumb = {.height = screen->mode.height, .width = screen->mode.width, .bits = 32};
    if (request(device, CREATE_DUMB, &dumb) < 0) return 0;
    struct framebuffer buffer = {.width = dumb.width, .height = dumb.height, .pitch = dumb.pitch, .bits = 32,
                                 .depth = 24, .handle = dumb.handle};
    struct map map = {.handle = dumb.handle};
    if (request(device, ADD_FRAMEBUFFER, &buffer) < 0 || request(device, MAP_DUMB, &map) < 0) return 0;
    long at = call(9, 0, (long)dumb.size, 3, 1, device, (long)map.offset);
    if (at < 0 && at > -4096) return 0;
    for (uint64_t i = 0; i < dumb.size / 4; i++) ((volatile uint32_t *)at)[i] = colour;
    screen->framebuffer = buffer.id;
    return 1;
}

static _Noreturn void paint(const char *path, uint32_t colour) {
    static const struct { long seconds, nanoseconds; } pause = {0, PAUSE_NS};
    struct crtc screen;
    long device = -1;
    int ready = 0;
    for (;; call(35, (long)&pause, 0, 0, 0, 0, 0)) {
        if (device < 0) device = call(2, (long)path, 02000002, 0, 0, 0, 0);
        if (device < 0) {
            say("there is no display device (yet)");
            continue;
        }
        if (!ready) ready = find_screen((int)device, &screen) && make_picture((int)device, &screen, colour);
        if (!ready) {
            /* What was made so far goes with the descriptor. */
            say("there is no screen (yet)");
            call(3, device, 0, 0, 0, 0, 0);
            device = -1;
            continue;
        }
        say(request((int)device, SET_CRTC, &screen) < 0 ? "the screen is somebody else's" : "painted");
    }
}

/* Six hexadecimal digits; -1 for anything else. */
static long colour_of(const char *text) {
    long colour = 0;
    for (int i = 0; i < 6; i++) {
        char c = text[i];
        if (c >= '0' && c <= '9') colour = colour << 4 | (c - '0');
        else if (c >= 'a' && c <= 'f') colour = colour << 4 | (c - 'a' + 10);
        else return -1;
    }
    return text[6] ? -1 : colour;
}

__attribute__((noreturn, used)) static void begin(long *stack) {
    long argc = stack[0];
    char **argv = (char **)(stack + 1);
    long colour = argc >= 2 && argc <= 3 ? colour_of(argv[1]) : -1;
    if (colour < 0) {
        say("usage: painter RRGGBB [DEVICE]   (a colour in hexadecimal digits, in lower case)");
        for (;;) call(231, 2, 0, 0, 0, 0, 0);
    }
    paint(argc == 3 ? argv[2] : "/dev/dri/card0", (uint32_t)colour);
}

__asm__(".globl _start\n_start:\n xor %ebp, %ebp\n mov %rsp, %rdi\n and $-16, %rsp\n call begin\n");
