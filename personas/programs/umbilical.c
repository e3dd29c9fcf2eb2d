/* umbilical: a persona's own client of the spine, for shells and scripts in a room.
 *
 * One request, its answer, an exit code: `umbilical --help` tells all of it. It speaks schemas/umbilical.capnp in
 * the standard Cap'n Proto stream framing, by hand: a persona that holds nothing but a shell needs no runtime for it.
 *
 * Touches: /run/umbilical, its own standard input, output and error, the file of an update. It makes nine system calls.
 * Never:   allocates, reads beyond what the kernel delivered, believes a length or an offset before it was compared
 *          with what is there, walks a message further than its own size.
 * Fails:   with one line on standard error and an exit code. After 7 nobody knows whether the request was done.
 *
 * Shipped without a C library, so its bytes depend on this file and the compiler alone. With -DHOSTED it is built on
 * the C library instead, for sanitizers; -DSOCKET_PATH names another socket for tests. The shipped one reads neither.
 */

#include <stddef.h>
#include <stdint.h>

#ifndef SOCKET_PATH
#define SOCKET_PATH "/run/umbilical"
#endif

/* The limits of the spine: a longer value or key would be refused there, this one is refused before it travels. */
#define VALUE_MAX (1024 * 1024)
#define KEY_MAX 1024
#define NAME_MAX_BYTES 64
/* An update: a word that says what it is, the manifest block of its slot, the slot. */
#define UPDATE_MAGIC "SPINE-UPDATE-1\0"
#define MANIFEST_BYTES 16384
#define CHUNK_BYTES (512 * 1024)
/* What the spine takes and gives: a value and what goes with it. */
#define MESSAGE_MAX (VALUE_MAX + 64 * 1024)
#define SEGMENTS_MAX 64
/* Keys asked for at a time; `list` asks again until there are no more. */
#define PAGE 256
/* News that may come before the answer; the spine sends one for each time the room stood still. */
#define NEWS_MAX 1000
#define WORD 8

enum exit_code { OK = 0, FAILED = 1, USAGE = 2, NO_SPINE = 3, NOT_FOUND = 4, REFUSED = 5, NOBODY_KNOWS = 7 };

/* ---- the kernel ------------------------------------------------------------------------------------------------ */

#define EINTR_ 4
#define AF_UNIX_ 1
#define SOCK_STREAM_CLOEXEC_ (1 | 02000000)

struct address {
    uint16_t family;
    char path[108];
};

#ifdef HOSTED

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static long kernel_read(int fd, void *to, size_t n) {
    long got = read(fd, to, n);
    return got < 0 ? -errno : got;
}
static long kernel_write(int fd, const void *from, size_t n) {
    long got = send(fd, from, n, MSG_NOSIGNAL);
    if (got < 0 && errno == ENOTSOCK) got = write(fd, from, n);
    return got < 0 ? -errno : got;
}
static long kernel_socket(void) {
    long fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    return fd < 0 ? -errno : fd;
}
static long kernel_open(const char *path) {
    long fd = open(path, O_RDONLY | 02000000);
    return fd < 0 ? -errno : fd;
}
static long kernel_seek(int fd, long offset, int whence) {
    long at = lseek(fd, offset, whence);
    return at < 0 ? -errno : at;
}
static long kernel_connect(int fd, const struct address *to) {
    return connect(fd, (const struct sockaddr *)to, sizeof *to) < 0 ? -errno : 0;
}
static _Noreturn void leave(int code) { exit(code); }

#else

#ifndef __x86_64__
#error "the system call instruction below is that of x86-64"
#endif

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

static long kernel_read(int fd, void *to, size_t n) { return call(0, fd, (long)to, (long)n, 0, 0, 0); }
static long kernel_write(int fd, const void *from, size_t n) {
    /* sendto with MSG_NOSIGNAL: a spine that went away is an answer, not a signal. ENOTSOCK: a pipe or file. */
    long got = call(44, fd, (long)from, (long)n, 0x4000, 0, 0);
    return got == -88 ? call(1, fd, (long)from, (long)n, 0, 0, 0) : got;
}
static long kernel_socket(void) { return call(41, AF_UNIX_, SOCK_STREAM_CLOEXEC_, 0, 0, 0, 0); }
static long kernel_open(const char *path) { return call(2, (long)path, 02000000, 0, 0, 0, 0); }
static long kernel_seek(int fd, long offset, int whence) { return call(8, fd, offset, whence, 0, 0, 0); }
static long kernel_connect(int fd, const struct address *to) {
    return call(42, fd, (long)to, sizeof *to, 0, 0, 0);
}
static _Noreturn void leave(int code) {
    for (;;) call(231, code, 0, 0, 0, 0, 0);
}

/* The compiler may turn a loop or an assignment into a call of these, C library or not. */
void *memset(void *to, int byte, size_t n) {
    void *t = to;
    __asm__ volatile("rep stosb" : "+D"(t), "+c"(n) : "a"(byte) : "memory");
    return to;
}
void *memcpy(void *to, const void *from, size_t n) {
    unsigned char *t = to;
    const unsigned char *f = from;
    __asm__ volatile("rep movsb" : "+D"(t), "+S"(f), "+c"(n) : : "memory");
    return to;
}

int main(int argc, char **argv);
__attribute__((noreturn, used)) static void begin(long *stack) {
    leave(main((int)stack[0], (char **)(stack + 1)));
}
__asm__(".globl _start\n_start:\n xor %ebp, %ebp\n mov %rsp, %rdi\n and $-16, %rsp\n call begin\n");

#endif

/* ---- small words ----------------------------------------------------------------------------------------------- */

static size_t length(const char *text) {
    size_t n = 0;
    while (text[n]) n++;
    return n;
}

static int same(const char *one, const char *other) {
    size_t i = 0;
    while (one[i] && one[i] == other[i]) i++;
    return one[i] == other[i];
}

/* Writes all of it; 0, or the kernel's negative number. */
static long write_all(int fd, const void *from, size_t n) {
    const unsigned char *at = from;
    while (n) {
        long done = kernel_write(fd, at, n);
        if (done == -EINTR_) continue;
        if (done <= 0) return done ? done : -5;
        at += done;
        n -= (size_t)done;
    }
    return 0;
}

static unsigned char out_buffer[4096];
static size_t out_used;
static int out_fd = 1;

static _Noreturn void fail(int code, const char *what);

static void flush(void) {
    size_t n = out_used;
    out_used = 0;
    if (write_all(out_fd, out_buffer, n) == 0) return;
    if (out_fd == 2) leave(FAILED);
    fail(FAILED, "standard output cannot be written");
}

static void put_byte(unsigned char byte) {
    if (out_used == sizeof out_buffer) flush();
    out_buffer[out_used++] = byte;
}

static void put_text(const char *text) {
    while (*text) put_byte((unsigned char)*text++);
}

/* Foreign bytes, so that neither a line nor a terminal is broken by them: \xNN for all but printable ASCII. */
static void put_shown(const unsigned char *bytes, size_t n) {
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < n; i++) {
        if (bytes[i] < 0x20 || bytes[i] > 0x7e || bytes[i] == '\\') {
            put_text("\\x");
            put_byte((unsigned char)digits[bytes[i] >> 4]);
            put_byte((unsigned char)digits[bytes[i] & 15]);
        } else {
            put_byte(bytes[i]);
        }
    }
}

static void put_number(uint64_t number) {
    unsigned char digits[20];
    size_t n = 0;
    do {
        digits[n++] = (unsigned char)('0' + number % 10);
        number /= 10;
    } while (number);
    while (n) put_byte(digits[--n]);
}

static _Noreturn void end(void) {
    flush();
    leave(OK);
}

static const char *verb_name = "";

/* One line on standard error, then the end. What was waiting for standard output goes out first. */
static void complain(const char *what) {
    if (out_fd == 1 && out_used) {
        size_t n = out_used;
        out_used = 0;
        write_all(1, out_buffer, n);
    }
    out_fd = 2;
    put_text("umbilical: ");
    put_text(verb_name);
    if (*verb_name) put_text(": ");
    put_text(what);
}

static _Noreturn void fail(int code, const char *what) {
    complain(what);
    put_byte('\n');
    flush();
    leave(code);
}

static _Noreturn void fail_number(int code, const char *what, long number) {
    complain(what);
    put_text(" (error ");
    put_number((uint64_t)-number);
    put_text(")\n");
    flush();
    leave(code);
}

/* ---- the request ----------------------------------------------------------------------------------------------- */

enum verb { PUT, GET, DELETE, LIST, STATUS, FOCUS, UPDATE, UPDATE_CHUNK, UPDATE_COMMIT };

static void put16(unsigned char *at, uint16_t n) {
    at[0] = (unsigned char)n;
    at[1] = (unsigned char)(n >> 8);
}
static void put32(unsigned char *at, uint32_t n) {
    put16(at, (uint16_t)n);
    put16(at + 2, (uint16_t)(n >> 16));
}
static void put64(unsigned char *at, uint64_t n) {
    put32(at, (uint32_t)n);
    put32(at + 4, (uint32_t)(n >> 32));
}

/* Frame (1 word), root pointer, Request (5 data words, 3 pointers), then key, value and persona, whole words each. */
static unsigned char request[8 + 9 * WORD + VALUE_MAX + WORD + KEY_MAX + WORD + NAME_MAX_BYTES + 2 * WORD];
static unsigned char value[VALUE_MAX + 1];

#define REQUEST_WORDS 9
#define POINTERS_AT 6

/* The fields that only an update has. */
static struct {
    uint64_t ticket, bytes, offset;
    int reboot;
} update;

/* A list of bytes behind what is there already, and the pointer to it; the words used now. */
static size_t put_list(size_t words, size_t pointer, const unsigned char *bytes, size_t n, size_t closing) {
    unsigned char *content = request + 8;
    if (n + closing == 0) return words;
    put32(content + pointer * WORD, (uint32_t)(words - pointer - 1) << 2 | 1);
    put32(content + pointer * WORD + 4, (uint32_t)(n + closing) << 3 | 2);
    size_t all = (n + closing + WORD - 1) / WORD;
    for (size_t i = n; i < all * WORD; i++) content[words * WORD + i] = 0;
    for (size_t i = 0; i < n; i++) content[words * WORD + i] = bytes[i];
    return words + all;
}

/* The request's bytes in `request`; how many. */
static size_t encode(uint64_t id, enum verb verb, const unsigned char *key, size_t key_n, size_t value_n,
                     const char *persona) {
    unsigned char *content = request + 8;
    for (size_t i = 0; i < 8 + REQUEST_WORDS * WORD; i++) request[i] = 0;
    put32(content + 4, 5 | 3 << 16); /* the root: five data words and three pointers right behind it */
    put64(content + WORD, id);
    put16(content + 2 * WORD, (uint16_t)verb);
    content[2 * WORD + 2] = (unsigned char)update.reboot;
    if (verb == LIST) put32(content + 2 * WORD + 4, PAGE);
    put64(content + 3 * WORD, update.ticket);
    put64(content + 4 * WORD, update.bytes);
    put64(content + 5 * WORD, update.offset);
    size_t words = REQUEST_WORDS;
    words = put_list(words, POINTERS_AT, key, key_n, 0);
    words = put_list(words, POINTERS_AT + 1, value, value_n, 0);
    if (persona) words = put_list(words, POINTERS_AT + 2, (const unsigned char *)persona, length(persona), 1);
    put32(request, 0);
    put32(request + 4, (uint32_t)words);
    return 8 + words * WORD;
}

/* ---- the response ---------------------------------------------------------------------------------------------- */

static unsigned char message[MESSAGE_MAX];
static struct {
    uint32_t words;
    const unsigned char *at;
} segments[SEGMENTS_MAX];
static uint32_t segment_count;

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
/* For tests: what was not delivered may not be read, though it lies in the same array. */
static void delivered(size_t n) {
    __asan_unpoison_memory_region(message, sizeof message);
    __asan_poison_memory_region(message + n, sizeof message - n);
}
#else
static void delivered(size_t n) { (void)n; }
#endif

static uint16_t get16(const unsigned char *at) { return (uint16_t)(at[0] | at[1] << 8); }
static uint32_t get32(const unsigned char *at) { return get16(at) | (uint32_t)get16(at + 2) << 16; }
static uint64_t get64(const unsigned char *at) { return get32(at) | (uint64_t)get32(at + 4) << 32; }

static _Noreturn void nonsense(void) { fail(FAILED, "the answer cannot be read"); }

/* `n` words of a segment from word `from`; the only way to any byte of a message. */
static const unsigned char *words_at(uint32_t segment, int64_t from, uint64_t n) {
    if (segment >= segment_count || from < 0 || (uint64_t)from > segments[segment].words ||
        n > segments[segment].words - (uint64_t)from)
        nonsense(); /* INV-PERSONA-23 */
    return segments[segment].at + from * WORD;
}

struct place {
    uint64_t pointer; /* a struct or list pointer whose own offset no longer matters, or 0: nothing is there */
    uint32_t segment;
    int64_t word; /* where the content begins */
};

/* Where the pointer at a word leads. A far pointer is followed once, as the format has it: so this always ends. */
static struct place follow(uint32_t segment, int64_t word) {
    uint64_t pointer = get64(words_at(segment, word, 1));
    if ((pointer & 3) == 2) {
        uint32_t there = (uint32_t)(pointer >> 32);
        int64_t pad = (uint32_t)pointer >> 3;
        if (pointer & 4) {
            const unsigned char *both = words_at(there, pad, 2);
            uint64_t far = get64(both), tag = get64(both + WORD);
            if ((far & 7) != 2 || (tag & 3) > 1 || (uint32_t)tag >> 2) nonsense();
            return (struct place){tag, (uint32_t)(far >> 32), (uint32_t)far >> 3};
        }
        segment = there;
        word = pad;
        pointer = get64(words_at(segment, word, 1));
        if ((pointer & 3) == 2) nonsense();
    }
    if (!pointer) return (struct place){0, 0, 0};
    /* A signed offset of 30 bits, in words, from the end of the pointer. */
    int64_t offset = (int64_t)((uint32_t)pointer >> 2);
    if (offset >= 1 << 29) offset -= 1 << 30;
    return (struct place){pointer, segment, word + 1 + offset};
}

struct bytes {
    const unsigned char *at;
    size_t n;
};

/* A Data or Text; empty when it is not there. */
static struct bytes bytes_of(struct place place) {
    if (!place.pointer) return (struct bytes){message, 0};
    size_t n = (size_t)(place.pointer >> 35);
    if ((place.pointer & 3) != 1 || (place.pointer >> 32 & 7) != 2) nonsense();
    return (struct bytes){words_at(place.segment, place.word, (n + WORD - 1) / WORD), n};
}

static struct bytes text_of(struct place place) {
    struct bytes text = bytes_of(place);
    if (text.n && text.at[text.n - 1]) nonsense();
    if (text.n) text.n--;
    return text;
}

struct response {
    uint64_t id, seq, used, quota, ticket;
    uint16_t code;
    int existed, more, thawed;
    struct bytes text, value, persona, slot, version;
    struct place keys;
};

/* The pointer of a struct with this number, or nothing where the writer's schema did not have it yet. */
static struct place pointer_of(struct place root, size_t data, size_t pointers, size_t number) {
    if (number >= pointers) return (struct place){0, 0, 0};
    return follow(root.segment, root.word + (int64_t)(data + number));
}

static struct response decode(void) {
    struct place root = follow(0, 0);
    if (!root.pointer || (root.pointer & 3) != 0) nonsense();
    size_t data = root.pointer >> 32 & 0xffff, pointers = root.pointer >> 48;
    const unsigned char *at = words_at(root.segment, root.word, data + pointers);
    unsigned char fields[7 * WORD];
    for (size_t i = 0; i < sizeof fields; i++) fields[i] = i < data * WORD ? at[i] : 0;
    return (struct response){
        .id = get64(fields),
        .code = get16(fields + 8),
        .existed = fields[10] & 1,
        .more = fields[10] >> 1 & 1,
        .thawed = fields[10] >> 2 & 1,
        .seq = get64(fields + 16),
        .used = get64(fields + 24),
        .quota = get64(fields + 32),
        .ticket = get64(fields + 48),
        .text = text_of(pointer_of(root, data, pointers, 0)),
        .value = bytes_of(pointer_of(root, data, pointers, 1)),
        .keys = pointer_of(root, data, pointers, 2),
        .persona = text_of(pointer_of(root, data, pointers, 3)),
        .slot = text_of(pointer_of(root, data, pointers, 4)),
        .version = text_of(pointer_of(root, data, pointers, 5)),
    };
}

/* ---- the conversation ------------------------------------------------------------------------------------------ */

static int line;

static void read_all(unsigned char *to, size_t n) {
    while (n) {
        long got = kernel_read(line, to, n);
        if (got == -EINTR_) continue;
        if (got < 0) fail_number(NOBODY_KNOWS, "the spine cannot be heard any more", got);
        if (got == 0) fail(NOBODY_KNOWS, "the spine closed the connection before it answered");
        to += got;
        n -= (size_t)got;
    }
}

/* The next message, whole, and where its segments are. */
static void receive(void) {
    unsigned char head[4 + 4 * SEGMENTS_MAX + 4];
    read_all(head, 8);
    uint32_t more = get32(head);
    if (more >= SEGMENTS_MAX) nonsense();
    segment_count = more + 1;
    size_t table = (4 + 4 * (size_t)segment_count + WORD - 1) / WORD * WORD;
    read_all(head + 8, table - 8);
    size_t all = 0;
    for (uint32_t i = 0; i < segment_count; i++) {
        uint32_t words = get32(head + 4 + 4 * i);
        if (words > (sizeof message - all) / WORD) nonsense();
        segments[i].words = words;
        segments[i].at = message + all;
        all += (size_t)words * WORD;
    }
    delivered(all);
    read_all(message, all);
}

static const struct {
    const char *word;
    int exit;
} CODES[] = {
    /* the order of `Code` in the schema */
    {"ok", OK},
    {"the spine did not understand the request", FAILED},
    {"the spine has no such verb", FAILED},
    {"that is not allowed", REFUSED},
    {"no answer came in time; nobody knows whether it was done", NOBODY_KNOWS},
    {"the spine was restarted meanwhile; it was not done", FAILED},
    {"that is too large", REFUSED},
    {"the spine is busy; it was not done", REFUSED},
    {"the spine was restarted meanwhile; nobody knows whether it was done", NOBODY_KNOWS},
    {"something went wrong in the spine", FAILED},
    {"that cannot be asked like this", REFUSED},
    {"there is no such thing", NOT_FOUND},
    {"refused", REFUSED},
    {"this persona has used up its room for records", REFUSED},
    {"the disk is full", REFUSED},
    {"this persona writes too fast; it was not done", REFUSED},
    {"what is stored is damaged", FAILED},
    {"there is no such thing", NOT_FOUND},
    {"this room was frozen meanwhile; nobody knows whether it was done", NOBODY_KNOWS},
};

/* Sends what `encode` has made and returns the answer, which is `ok`. */
static struct response ask(uint64_t id, size_t n) {
    long sent = write_all(line, request, n);
    if (sent < 0) fail_number(NOBODY_KNOWS, "the spine does not take the request", sent);
    for (int news = 0; news < NEWS_MAX; news++) {
        receive();
        struct response response = decode();
        if (response.thawed) continue; /* news that nobody asked for */
        if (response.id != id) nonsense();
        if (response.code == OK) return response;
        if (response.code >= sizeof CODES / sizeof *CODES) fail(FAILED, "refused for a reason of later times");
        complain(CODES[response.code].word);
        if (response.text.n) {
            put_text(": ");
            put_shown(response.text.at, response.text.n);
        }
        put_byte('\n');
        flush();
        leave(CODES[response.code].exit);
    }
    nonsense();
}

static void open_line(void) {
    static struct address there = {AF_UNIX_, SOCKET_PATH};
    long fd = kernel_socket();
    if (fd < 0) fail_number(NO_SPINE, "no socket can be made", fd);
    line = (int)fd;
    long done;
    while ((done = kernel_connect(line, &there)) == -EINTR_) {}
    if (done < 0) fail_number(NO_SPINE, SOCKET_PATH " cannot be reached", done);
}

/* All of standard input, into `value`. */
static size_t read_value(void) {
    size_t n = 0;
    while (n < sizeof value) {
        long got = kernel_read(0, value + n, sizeof value - n);
        if (got == -EINTR_) continue;
        if (got < 0) fail_number(FAILED, "standard input cannot be read", got);
        if (got == 0) return n;
        n += (size_t)got;
    }
    fail(REFUSED, "the value is larger than a mebibyte");
}

/* As much of a file as there is, at most `n` bytes, into `value`. */
static size_t read_some(int fd, size_t n) {
    size_t have = 0;
    while (have < n) {
        long got = kernel_read(fd, value + have, n - have);
        if (got == -EINTR_) continue;
        if (got < 0) fail_number(FAILED, "the file cannot be read", got);
        if (got == 0) break;
        have += (size_t)got;
    }
    return have;
}

/* Brings a file with a new version of the system, piece by piece; says where it lies then. */
static void bring(const char *path) {
    static const char magic[] = UPDATE_MAGIC;
    long fd = kernel_open(path), size = fd < 0 ? fd : kernel_seek((int)fd, 0, 2);
    if (size < 0 || kernel_seek((int)fd, 0, 0) < 0) fail_number(FAILED, "the file cannot be opened", size);
    if (size <= (long)sizeof magic + MANIFEST_BYTES || read_some((int)fd, sizeof magic) < sizeof magic)
        fail(REFUSED, "that file is no update");
    for (size_t i = 0; i < sizeof magic; i++)
        if (value[i] != (unsigned char)magic[i]) fail(REFUSED, "that file is no update");
    if (read_some((int)fd, MANIFEST_BYTES) < MANIFEST_BYTES) fail(FAILED, "the file became shorter");
    open_line();
    int reboot = update.reboot;
    update.reboot = 0;
    update.bytes = (uint64_t)size - sizeof magic - MANIFEST_BYTES;
    uint64_t id = 1, left = update.bytes;
    update.ticket = ask(id, encode(id, UPDATE, NULL, 0, MANIFEST_BYTES, NULL)).ticket;
    update.bytes = 0;
    while (left) {
        size_t n = read_some((int)fd, left < CHUNK_BYTES ? (size_t)left : CHUNK_BYTES);
        if (!n) fail(FAILED, "the file became shorter");
        id++;
        ask(id, encode(id, UPDATE_CHUNK, NULL, 0, n, NULL));
        update.offset += n;
        left -= n;
    }
    update.offset = 0;
    update.reboot = reboot;
    id++;
    struct response response = ask(id, encode(id, UPDATE_COMMIT, NULL, 0, 0, NULL));
    put_text("slot ");
    put_shown(response.slot.at, response.slot.n);
    put_text(" has ");
    put_shown(response.version.at, response.version.n);
    put_text(reboot ? " now; the machine starts anew with it\n" : " now; it runs after the next start\n");
}

/* -1, 0 or 1, in byte order. */
static int compare(struct bytes one, struct bytes other) {
    for (size_t i = 0; i < one.n && i < other.n; i++)
        if (one.at[i] != other.at[i]) return one.at[i] < other.at[i] ? -1 : 1;
    return one.n == other.n ? 0 : one.n < other.n ? -1 : 1;
}

/* All keys after `after`, a line each, page by page. Every key is greater than the one before, so this ends. */
static void list(struct bytes after) {
    static unsigned char last[KEY_MAX];
    for (uint64_t id = 1;; id++) {
        struct response response = ask(id, encode(id, LIST, after.at, after.n, 0, NULL));
        uint64_t count = 0;
        if (response.keys.pointer) {
            if ((response.keys.pointer & 3) != 1 || (response.keys.pointer >> 32 & 7) != 6) nonsense();
            count = response.keys.pointer >> 35;
            words_at(response.keys.segment, response.keys.word, count);
        }
        if (count > PAGE || (response.more && !count)) nonsense();
        for (uint64_t i = 0; i < count; i++) {
            struct bytes key = bytes_of(follow(response.keys.segment, response.keys.word + (int64_t)i));
            if (key.n == 0 || key.n > KEY_MAX || (after.n && compare(after, key) >= 0)) nonsense();
            put_shown(key.at, key.n);
            put_byte('\n');
            for (size_t j = 0; j < key.n; j++) last[j] = key.at[j];
            after = (struct bytes){last, key.n};
        }
        if (!response.more) return;
    }
}

/* ---- the command line ------------------------------------------------------------------------------------------ */

static const char HELP[] =
    "usage: umbilical VERB ...      (asks the spine, on " SOCKET_PATH ")\n"
    "\n"
    "  put KEY          store standard input under KEY; done when it is on stable storage\n"
    "  get KEY          the value under KEY, on standard output\n"
    "  delete KEY       remove KEY; 4 when there is none\n"
    "  list [AFTER]     all keys (greater than AFTER), a line each; what is not plain ASCII as \\xNN\n"
    "  status           who this room is to the spine, and what it has stored\n"
    "  focus PERSONA    pass the focus to PERSONA\n"
    "  update FILE [reboot]   bring a new version of the system, and start the machine anew with it\n"
    "\n"
    "A value has at most a mebibyte, a key 1 to 1024 bytes. Exit codes: 0 done, 1 failed, 2 usage, 3 no spine,\n"
    "4 no such thing, 5 refused, 7 nobody knows whether it was done: the room was frozen or the spine restarted.\n";

static const struct {
    const char *name;
    int least, most; /* arguments */
} VERBS[] = {{"put", 1, 1}, {"get", 1, 1}, {"delete", 1, 1}, {"list", 0, 1}, {"status", 0, 0}, {"focus", 1, 1},
             {"update", 1, 2}};

int main(int argc, char **argv) {
    if (argc >= 2 && (same(argv[1], "--help") || same(argv[1], "-h") || same(argv[1], "help"))) {
        put_text(HELP);
        end();
    }
    int verb = argc >= 2 ? 0 : UPDATE + 1;
    while (verb <= UPDATE && !same(argv[1], VERBS[verb].name)) verb++;
    if (verb > UPDATE) fail(USAGE, "no such verb; umbilical --help lists them");
    verb_name = VERBS[verb].name;
    if (argc - 2 < VERBS[verb].least || argc - 2 > VERBS[verb].most)
        fail(USAGE, "other arguments are needed; umbilical --help lists them");
    const char *word = argc > 2 ? argv[2] : "";
    struct bytes key = {(const unsigned char *)word, length(word)};
    if (verb <= DELETE && (key.n == 0 || key.n > KEY_MAX)) fail(USAGE, "a key has 1 to 1024 bytes");
    if (verb == LIST && key.n > KEY_MAX) fail(USAGE, "a key has 1 to 1024 bytes");
    if (verb == FOCUS && (key.n == 0 || key.n > NAME_MAX_BYTES)) fail(USAGE, "no persona has such a name");
    if (argc > 3 && !same(argv[3], "reboot")) fail(USAGE, "behind the file only `reboot` may stand");
    if (verb == UPDATE) {
        update.reboot = argc > 3;
        bring(word);
        end();
    }
    size_t value_n = verb == PUT ? read_value() : 0;
    open_line();
    if (verb == LIST) {
        list(key);
        end();
    }
    size_t n = verb == FOCUS ? encode(1, FOCUS, NULL, 0, 0, word) : encode(1, (enum verb)verb, key.at, key.n, value_n, NULL);
    struct response response = ask(1, n);
    switch (verb) {
    case GET:
        if (write_all(1, response.value.at, response.value.n) < 0) fail(FAILED, "standard output cannot be written");
        break;
    case DELETE:
        if (!response.existed) fail(NOT_FOUND, "there is no such key");
        break;
    case STATUS:
        put_text("persona ");
        put_shown(response.persona.at, response.persona.n);
        put_text("\nused ");
        put_number(response.used);
        put_text(" bytes\nquota ");
        put_number(response.quota);
        put_text(" bytes\n");
        break;
    default:
        break;
    }
    end();
}
