/* Stands in for a slot's program: says on the console which it is, and restarts. WHICH and VERSION are put in by the test. */

#define RELEASE "ID=alpine-spine\nVERSION_ID=VERSION\nPRETTY_NAME=stand-in\n"
__attribute__((section(".osrel"), used)) static const char release[sizeof RELEASE - 1] = RELEASE;

struct text_out { void *reset; unsigned long long(__attribute__((ms_abi)) *write)(struct text_out *, const unsigned short *); };
struct runtime { unsigned char head[24]; void *other[10]; void(__attribute__((ms_abi)) *reset)(unsigned, unsigned long long, unsigned long long, void *); };
struct system { unsigned char head[24]; void *vendor; unsigned long long revision; void *in_handle, *in, *out_handle; struct text_out *out; void *error_handle, *error; struct runtime *runtime; };

__attribute__((ms_abi)) unsigned long long efi_main(void *own, struct system *system)
{
	(void)own;
	system->out->write(system->out, (const unsigned short *)u"started WHICH\r\n");
	system->runtime->reset(0, 0, 0, (void *)0);
	return 0;
}
