/* D-Bus by sd-bus, both ends in C, over a daemon: `dbus_c serve ADDRESS NAME` and `dbus_c call ADDRESS NAME`.
 *
 * Speaks the same lines as the other programs of the bench; reads only the three numbers of a question. */

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-bus.h>
#include <time.h>
#include <poll.h>

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void must(int r, const char *what) {
    if (r < 0) {
        fprintf(stderr, "%s: %s\n", what, strerror(-r));
        exit(1);
    }
}

static sd_bus *connected(const char *address) {
    sd_bus *bus = NULL;
    must(sd_bus_new(&bus), "new");
    must(sd_bus_set_address(bus, address), "address");
    must(sd_bus_set_bus_client(bus, 1), "client");
    must(sd_bus_start(bus), "start");
    return bus;
}

static int same(sd_bus_message *asked, void *data, sd_bus_error *error) {
    const void *bytes;
    size_t length;
    sd_bus_message *reply = NULL;
    int r = sd_bus_message_read_array(asked, 'y', &bytes, &length);
    if (r < 0) return r;
    if ((r = sd_bus_message_new_method_return(asked, &reply)) < 0) return r;
    r = sd_bus_message_append_array(reply, 'y', bytes, length);
    if (r >= 0) r = sd_bus_send(NULL, reply, NULL);
    sd_bus_message_unref(reply);
    return r;
}

static const sd_bus_vtable table[] = {
    SD_BUS_VTABLE_START(0),
    SD_BUS_METHOD("Same", "ay", "ay", same, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_VTABLE_END,
};

static void serve(const char *address, const char *name) {
    sd_bus *bus = connected(address);
    must(sd_bus_add_object_vtable(bus, NULL, "/echo", "bench.Echo", table, NULL), "vtable");
    must(sd_bus_request_name(bus, name, 0), "name");
    puts("{\"ready\": true}");
    fflush(stdout);
    for (;;) {
        int r = sd_bus_process(bus, NULL);
        must(r, "process");
        if (r > 0) continue;
        /* The bench ends us by closing our input. */
        struct pollfd fds[2] = {{sd_bus_get_fd(bus), sd_bus_get_events(bus), 0}, {0, POLLIN, 0}};
        if (poll(fds, 2, -1) < 0 && errno != EINTR) exit(1);
        if (fds[1].revents) exit(0);
    }
}

struct slot {
    int64_t began;
};

static int64_t *took;
static long done, started, wanted, size;
static sd_bus *client;
static const char *service;
static char *payload;

static void send_one(struct slot *slot);

static int answered(sd_bus_message *reply, void *data, sd_bus_error *error) {
    const void *bytes;
    size_t length;
    struct slot *slot = data;
    took[done++] = now() - slot->began;
    if (sd_bus_message_is_method_error(reply, NULL) || sd_bus_message_read_array(reply, 'y', &bytes, &length) < 0 ||
        length != (size_t)size) {
        fprintf(stderr, "a wrong answer\n");
        exit(1);
    }
    if (started < wanted) send_one(slot);
    return 0;
}

static void send_one(struct slot *slot) {
    sd_bus_message *m = NULL;
    started++;
    slot->began = now();
    must(sd_bus_message_new_method_call(client, &m, service, "/echo", "bench.Echo", "Same"), "message");
    must(sd_bus_message_append_array(m, 'y', payload, size), "array");
    must(sd_bus_call_async(client, NULL, m, answered, slot, 60000000), "call");
    sd_bus_message_unref(m);
}

static long number(const char *line, const char *name) {
    const char *at = strstr(line, name);
    return at ? strtol(at + strlen(name) + 2, NULL, 10) : 0;
}

static void call(const char *address, const char *name) {
    static char line[4096];
    client = connected(address);
    service = name;
    puts("{\"ready\": true}");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        long callers = number(line, "\"callers\"");
        wanted = number(line, "\"calls\"");
        size = number(line, "\"bytes\"");
        done = started = 0;
        took = calloc(wanted, sizeof *took);
        payload = calloc(1, size ? size : 1);
        struct slot *slots = calloc(callers, sizeof *slots);
        int64_t began = now();
        for (long i = 0; i < callers && started < wanted; i++) send_one(&slots[i]);
        while (done < wanted) {
            int r = sd_bus_process(client, NULL);
            must(r, "process");
            if (r == 0) must(sd_bus_wait(client, UINT64_MAX), "wait");
        }
        int64_t wall = now() - began;
        printf("{\"ns\": [");
        for (long i = 0; i < done; i++) printf("%s%lld", i ? "," : "", (long long)took[i]);
        printf("], \"wall_ns\": %lld}\n", (long long)wall);
        fflush(stdout);
        free(took);
        free(payload);
        free(slots);
    }
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    if (!strcmp(argv[1], "serve")) serve(argv[2], argv[3]);
    else call(argv[2], argv[3]);
    return 0;
}
