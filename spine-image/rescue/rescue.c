/* Two UEFI programs of one text: the first one that a firmware starts from our disk, and the rescue.
 *
 * With FIRST it is the first program (EFI/BOOT/BOOTX64.EFI): it starts systemd-boot from its own volume, or from
 * the other one when that cannot be loaded. Where systemd-boot comes back, it could not start what it chose;
 * firmware would give up there. If a try was counted for it the machine restarts, which the counters bound;
 * if not, what follows is the rescue.
 *
 * The rescue is what a machine ends in when neither pair of slot and boot volume can be started. No kernel, and
 * nothing from the disk once it runs. It says on the screen and on the serial line which pair is in what state
 * and what a person can do, then waits for a key for as long as it takes: `a` and `b` start that pair once
 * more, `r` restarts.
 *
 * Touches: the volumes of the disk it came from, to read; consoles; the firmware's watchdog.
 * Never: writes to a disk, restarts without a key or a counted try, starts a pair without a key, looks at another
 * disk, shows a byte from the disk that is not of a name as we make them.
 * Fails: what cannot be read or started is said, and the next key is waited for.
 *
 * No address stands in its data, so that it runs wherever the firmware puts it (spine/image/rescue.py).
 */

#ifndef FIRST
/* INV-RESCUE-1. How the boot loader sorts it: behind every pair that has a try left, whatever its version, and
 * before all that have none. It has no counter in its name: a rescue that could be used up would be none. */
#define RELEASE "ID=alpine-spine-rescue\nVERSION_ID=0\nPRETTY_NAME=\"Alpine-Spine rescue\"\n"
__attribute__((section(".osrel"), used)) static const char release[sizeof RELEASE - 1] = RELEASE;
#endif

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef u64 status;
typedef void *handle;
#define API __attribute__((ms_abi))
#define NULL ((void *)0)
/* Answers of the firmware. */
#define NOT_FOUND (14 | 1ull << 63)
#define TOO_SMALL (5 | 1ull << 63)

/* What we look at: no disk of ours comes near. A name is as long as FORM, with its end. */
enum { VOLUMES_MAX = 64, ENTRIES_MAX = 256, PATH_BYTES_MAX = 1024, PROGRAM_BYTES_MAX = 256 << 20 };
enum { BLOCK = 1 << 20, NAME = 16, DIRECTORY = 0x10 };
/* The longest of our own folders and file names, with some room. */
enum { FOLDER = 16, FILE = 24 };
#define FORM "spine-?+0-0.efi"
/* How long a pair that was started has to leave the firmware: as long as the boot loader gives it. */
enum { WATCHDOG_S = 5 * 60 };
/* How long a person can read why the machine restarts. */
enum { RESTART_US = 3 * 1000 * 1000 };

typedef struct { u32 a; u16 b, c; u8 d[8]; } guid;
static const guid LOADED_IMAGE = { 0x5b1b31a1, 0x9562, 0x11d2, { 0x8e, 0x3f, 0, 0xa0, 0xc9, 0x69, 0x72, 0x3b } };
static const guid DEVICE_PATH = { 0x09576e91, 0x6d3f, 0x11d2, { 0x8e, 0x39, 0, 0xa0, 0xc9, 0x69, 0x72, 0x3b } };
static const guid FILE_SYSTEM = { 0x964e5b22, 0x6459, 0x11d2, { 0x8e, 0x39, 0, 0xa0, 0xc9, 0x69, 0x72, 0x3b } };
static const guid TEXT_OUT = { 0x387477c2, 0x69c7, 0x11d2, { 0x8e, 0x39, 0, 0xa0, 0xc9, 0x69, 0x72, 0x3b } };
#ifdef FIRST
/* Where systemd-boot says what it did, as long as the machine is not restarted. */
static const guid LOADER = { 0x4a67b082, 0x0a4c, 0x41cf, { 0xb6, 0xc7, 0x44, 0x0b, 0x29, 0xbb, 0x8c, 0x4f } };
#endif
static const guid SERIAL_IO = { 0xbb25cf6f, 0xf1d4, 0x11d2, { 0x9a, 0x0c, 0, 0x90, 0x27, 0x3f, 0xc1, 0xfd } };

/* As the UEFI specification has them; what is not used is only counted. */
struct text_out {
	void *reset;
	status(API *write)(struct text_out *, const u16 *);
	void *test, *query, *set_mode, *attribute;
	status(API *clear)(struct text_out *);
};
struct key { u16 scan, letter; };
struct text_in {
	status(API *reset)(struct text_in *, u8);
	status(API *read)(struct text_in *, struct key *);
	void *wait;
};
struct runtime {
	u8 head[24];
	void *clocks[6];
	status(API *variable)(const u16 *, const guid *, u32 *attributes, u64 *bytes, void *);
	void *variables[3];
	void(API *reset)(u32 kind, status, u64 bytes, void *);
};
struct boot {
	u8 head[24];
	void *memory[5];
	status(API *allocate)(u32 kind, u64 bytes, void **);
	status(API *release)(void *);
	void *timers[2];
	status(API *wait)(u64 count, void **events, u64 *which);
	void *events[6];
	status(API *protocol)(handle, const guid *, void **);
	void *handles[5];
	status(API *load)(u8 policy, handle parent, void *path, void *source, u64 bytes, handle *);
	status(API *start)(handle, u64 *bytes, u16 **data);
	void *exit;
	status(API *unload)(handle);
	void *leave[2];
	status(API *stall)(u64 microseconds);
	status(API *watchdog)(u64 seconds, u64 code, u64 bytes, u16 *);
	void *drivers[6];
	status(API *locate)(u32 by, const guid *, void *key, u64 *count, handle **);
};
struct system {
	u8 head[24];
	u16 *vendor;
	u64 revision;
	handle in_handle;
	struct text_in *in;
	handle out_handle;
	struct text_out *out;
	handle error_handle;
	struct text_out *error;
	struct runtime *runtime;
	struct boot *boot;
};
struct loaded_image { u64 revision; handle parent; void *system; handle device; };
struct file {
	u64 revision;
	status(API *open)(struct file *, struct file **, const u16 *, u64 mode, u64 attributes);
	status(API *close)(struct file *);
	void *erase;
	status(API *read)(struct file *, u64 *bytes, void *);
};
struct file_system { u64 revision; status(API *open)(struct file_system *, struct file **); };
struct serial { u64 revision; void *other[4]; status(API *write)(struct serial *, u64 *bytes, const void *); };
/* An entry of a directory: the name follows three sizes, three times and the attributes. */
struct info { u64 bytes, file_bytes, stored; u8 times[48]; u64 attributes; u16 name[264]; };

struct pair { handle volume; int left, readable; u64 bytes; u16 name[NAME]; };
static struct pair pairs[2];
static struct system *st;
static struct boot *bs;
static int serial_is_a_console;

static void serial_write(const char *text)
{
	handle *found;
	u64 count, length = 0;
	struct serial *line;

	if (serial_is_a_console || bs->locate(2, &SERIAL_IO, NULL, &count, &found))
		return;
	while (text[length])
		length++;
	for (u64 at = 0; at < count && at < VOLUMES_MAX; at++) {
		u64 bytes = length;
		if (!bs->protocol(found[at], &SERIAL_IO, (void **)&line))
			line->write(line, &bytes, text);
	}
	bs->release(found);
}

static void say(const char *text)
{
	u16 wide[2] = { 0, 0 };

	for (const char *at = text; *at; at++) {
		wide[0] = (u16)*at;
		st->out->write(st->out, wide);
	}
	serial_write(text);
}

static void say_digit(u64 digit)
{
	char text[2] = { (char)('0' + digit % 10), 0 };

	say(text);
}

static void say_name(const struct pair *pair)
{
	char text[NAME];

	for (int at = 0; at < NAME; at++)
		text[at] = (char)pair->name[at];
	say(text);
}

/* The device path of a handle and its length without the end; 0 where it has none that we can follow. */
static u64 path_of(handle device, u8 **path)
{
	u64 at = 0;

	if (bs->protocol(device, &DEVICE_PATH, (void **)path))
		return 0;
	while ((*path)[at] != 0x7f) {
		u64 length = (*path)[at + 2] | (u64)(*path)[at + 3] << 8;
		if (length < 4 || (at += length) > PATH_BYTES_MAX)
			return 0;
	}
	return at;
}

/* How much of the path of a partition names its disk: all but its last node, which must be a partition. */
static u64 disk_part(const u8 *path, u64 length)
{
	for (u64 at = 0, step; at < length; at += step) {
		step = path[at + 2] | (u64)path[at + 3] << 8;
		if (at + step == length)
			return path[at] == 4 && path[at + 1] == 1 ? at : 0;
	}
	return 0;
}

static int same_disk(handle one, handle other)
{
	u8 *first, *second;
	u64 disk = path_of(one, &first), also = path_of(other, &second);

	disk = disk ? disk_part(first, disk) : 0;
	also = also ? disk_part(second, also) : 0;
	for (u64 at = 0; at < disk && disk == also; at++)
		if (first[at] != second[at])
			return 0;
	return disk && disk == also;
}

/* Which pair a name is of, 0 or 1, and its tries; below 0 for a name of any other form. */
static int pair_of(const u16 *name, int *left)
{
	int pair = -1;

	for (int at = 0; at < NAME; at++) {
		char form = FORM[at];
		u16 letter = name[at] >= 'A' && name[at] <= 'Z' ? name[at] + 32 : name[at];
		if (form == '?' && (letter == 'a' || letter == 'b'))
			pair = letter - 'a';
		else if (form == '0' && letter >= '0' && letter <= '9')
			*left = FORM[at - 1] == '+' ? letter - '0' : *left;
		else if (form == '?' || form == '0' || letter != form)
			return -1;
	}
	return pair;
}

/* Whether a program can be read to its end, and begins as one. */
static int can_be_read(struct file *directory, const u16 *name, u64 wanted)
{
	struct file *file;
	u8 *block;
	u64 total = 0, bytes = BLOCK;
	int begins = 0;

	if (wanted > PROGRAM_BYTES_MAX || bs->allocate(2, BLOCK, (void **)&block))
		return 0;
	if (!directory->open(directory, &file, name, 1, 0)) {
		while (!file->read(file, &bytes, block) && bytes && total <= PROGRAM_BYTES_MAX) {
			if (!total)
				begins = bytes > 2 && block[0] == 'M' && block[1] == 'Z';
			total += bytes;
			bytes = BLOCK;
		}
		file->close(file);
	}
	bs->release(block);
	return begins && total == wanted;
}

static void look_at_volume(handle volume)
{
	struct file_system *system;
	struct file *root, *directory;
	struct info entry;
	int left = 0, which;

	if (bs->protocol(volume, &FILE_SYSTEM, (void **)&system) || system->open(system, &root))
		return;
	if (!root->open(root, &directory, (const u16 *)u"\\EFI\\Linux", 1, 0)) {
		for (int count = 0; count < ENTRIES_MAX; count++) {
			u64 bytes = sizeof entry;
			if (directory->read(directory, &bytes, &entry) || !bytes)
				break;
			which = pair_of(entry.name, &left);
			/* Of two names the one with more tries left: a rename that was cut short leaves both. */
			if (which < 0 || entry.attributes & DIRECTORY || (pairs[which].volume && pairs[which].left >= left))
				continue;
			pairs[which] = (struct pair){ .volume = volume, .left = left, .bytes = entry.file_bytes };
			for (int at = 0; at < NAME; at++)
				pairs[which].name[at] = entry.name[at];
		}
		for (which = 0; which < 2; which++)
			if (pairs[which].volume == volume)
				pairs[which].readable = can_be_read(directory, pairs[which].name, pairs[which].bytes);
		directory->close(directory);
	}
	root->close(root);
}

static void look(handle own)
{
	handle *found;
	u64 count;

	pairs[0] = pairs[1] = (struct pair){ 0 };
	if (bs->locate(2, &FILE_SYSTEM, NULL, &count, &found))
		return;
	for (u64 at = 0; at < count && at < VOLUMES_MAX; at++)
		if (same_disk(own, found[at]))
			look_at_volume(found[at]);
	bs->release(found);
}

static void tell(void)
{
	int tries = 0;

	say("\r\nAlpine-Spine: rescue\r\n\r\n");
	for (int which = 0; which < 2; which++) {
		const struct pair *pair = &pairs[which];
		say(which ? "  pair b   " : "  pair a   ");
		if (!pair->volume) {
			say("no program of it on any volume of this disk that can be read\r\n");
			continue;
		}
		say_name(pair);
		if (pair->left) {
			say("   tries left: ");
			say_digit((u64)pair->left);
		} else {
			say("   no try left");
		}
		say(pair->readable ? "   its program can be read\r\n" : "   ITS PROGRAM CANNOT BE READ\r\n");
		tries += pair->readable ? pair->left : 0;
	}
	if (tries)
		say("\r\nA restart tries the pair that has tries left.\r\n");
	else
		say("\r\nNeither pair came up in the tries it had. Nothing durable was touched: what\r\n"
		    "is kept (persist) and the installed personas are as they were.\r\n"
		    "To write the image anew: ./spine usb, on another computer.\r\n");
	say("\r\n  a, b   start that pair once more\r\n  r      restart\r\n\r\n"
	    "Nothing happens by itself. Waiting for a key.\r\n");
}

/* Load a program from a volume; 0 when it can be started. */
static u64 load(handle own, handle volume, const u16 *folder, const u16 *name, handle *program)
{
	u8 *device, path[PATH_BYTES_MAX + 4 + 2 * (FOLDER + FILE) + 4];
	u64 length = volume ? path_of(volume, &device) : 0, node = length, failed;

	if (!length)
		return NOT_FOUND;
	for (u64 at = 0; at < length; at++)
		path[at] = device[at];
	path[length] = path[length + 1] = 4; /* a file on a medium */
	length += 4;
	for (int part = 0; part < 2; part++)
		for (const u16 *at = part ? name : folder; *at; at++) {
			path[length++] = (u8)*at;
			path[length++] = (u8)(*at >> 8);
		}
	path[length++] = 0;
	path[length++] = 0;
	path[node + 2] = (u8)(length - node);
	path[node + 3] = (u8)((length - node) >> 8);
	path[length] = 0x7f; /* the end */
	path[length + 1] = 0xff;
	path[length + 2] = 4;
	path[length + 3] = 0;
	*program = NULL;
	failed = bs->load(0, own, path, NULL, 0, program);
	if (failed && *program)
		bs->unload(*program);
	return failed;
}

/* Start a pair once more; back here only when that failed. */
static void start(handle own, const struct pair *pair)
{
	handle program;
	u64 failed;

	if (!pair->volume) {
		say("There is no program to start.\r\n");
		return;
	}
	say("Starting ");
	say_name(pair);
	say(" ...\r\n");
	failed = load(own, pair->volume, (const u16 *)u"\\EFI\\Linux\\", pair->name, &program);
	if (!failed) {
		bs->watchdog(WATCHDOG_S, 0x10000, 0, NULL);
		failed = bs->start(program, NULL, NULL);
		bs->watchdog(0, 0, 0, NULL);
	}
	say("It did not start: error ");
	say_digit(failed / 10);
	say_digit(failed);
	say("\r\n");
}

#ifdef FIRST
/* Start the boot loader of this disk, from our own volume if it can be; back here when nothing was started. */
static void begin(handle own, handle volume)
{
	handle *found, program;
	u64 count, bytes = 0;
	const u16 *folder = (const u16 *)u"\\EFI\\systemd\\", *name = (const u16 *)u"systemd-bootx64.efi";
	int loaded = !load(own, volume, folder, name, &program);

	if (!loaded && !bs->locate(2, &FILE_SYSTEM, NULL, &count, &found)) {
		for (u64 at = 0; at < count && at < VOLUMES_MAX && !loaded; at++)
			loaded = same_disk(volume, found[at]) && !load(own, found[at], folder, name, &program);
		bs->release(found);
	}
	if (!loaded)
		return;
	bs->start(program, NULL, NULL);
	/* INV-RESCUE-4. It is set when a try was taken from a name on the disk, and the next start takes one more: no loop. */
	if (st->runtime->variable((const u16 *)u"LoaderBootCountPath", &LOADER, NULL, &bytes, NULL) != TOO_SMALL)
		return;
	say("\r\nAlpine-Spine: that did not start, and the try was counted. Restarting.\r\n");
	bs->stall(RESTART_US);
	st->runtime->reset(0, 0, 0, NULL);
}
#endif

/* Whether a serial line is among the firmware's own consoles: else we write to the lines ourselves. */
static void find_consoles(void)
{
	handle *found;
	u64 count, length;
	u8 *path;

	if (bs->locate(2, &TEXT_OUT, NULL, &count, &found))
		return;
	for (u64 each = 0; each < count && each < VOLUMES_MAX; each++) {
		length = path_of(found[each], &path);
		for (u64 at = 0; at < length; at += path[at + 2] | (u64)path[at + 3] << 8)
			serial_is_a_console |= path[at] == 3 && path[at + 1] == 14;
	}
	bs->release(found);
}

API status efi_main(handle own, struct system *system)
{
	struct loaded_image *image;
	struct key key;
	u64 which;

	st = system;
	bs = system->boot;
	find_consoles();
#ifdef FIRST
	if (!bs->protocol(own, &LOADED_IMAGE, (void **)&image))
		begin(own, image->device);
#endif
	/* INV-RESCUE-2. The firmware would restart a program that is still here after five minutes. */
	bs->watchdog(0, 0, 0, NULL);
	st->out->clear(st->out);
	for (;;) {
		if (!bs->protocol(own, &LOADED_IMAGE, (void **)&image))
			look(image->device);
		tell();
		/* What was typed before this could be read answers nothing. */
		st->in->reset(st->in, 0);
		for (;;) {
			bs->wait(1, &st->in->wait, &which);
			key.letter = 0;
			st->in->read(st->in, &key);
			key.letter |= 32;
			if (key.letter == 'a' || key.letter == 'b')
				break;
			if (key.letter == 'r')
				st->runtime->reset(0, 0, 0, NULL);
		}
		start(own, &pairs[key.letter - 'a']);
	}
}
