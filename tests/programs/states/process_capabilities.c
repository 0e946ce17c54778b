/* Capabilities: the bounding, inheritable and ambient sets, and secure bits.
 * expect: exact
 * live: no: procfs does not tell secure bits */
#include "look.h"
#include <linux/capability.h>
#include <linux/securebits.h>
static char before[5][20];
static const char *const sets[5] = { "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb" };
static void make(void)
{
	struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2];
	MUST(syscall(SYS_capget, &head, data));
	MUST(prctl(PR_CAPBSET_DROP, CAP_SYS_TIME, 0, 0, 0));
	MUST(prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NO_SETUID_FIXUP));
	data[0].inheritable = 1 << CAP_NET_RAW | 1 << CAP_CHOWN;
	data[0].effective = 1 << CAP_NET_RAW | 1 << CAP_KILL;
	data[0].permitted = 1 << CAP_NET_RAW | 1 << CAP_CHOWN | 1 << CAP_KILL;
	data[1].inheritable = data[1].effective = data[1].permitted = 0;
	MUST(syscall(SYS_capset, &head, data));
	MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_CHOWN, 0, 0));
	for (int i = 0; i < 5; i++)
		strcpy(before[i], line_of("/proc/thread-self/status", sets[i]));
}
static void check(void)
{
	for (int i = 0; i < 5; i++)
		if (strcmp(before[i], line_of("/proc/thread-self/status", sets[i])))
			FAIL("%s was %s", sets[i], before[i]);
	SAME(prctl(PR_GET_SECUREBITS), SECBIT_NOROOT | SECBIT_NO_SETUID_FIXUP);
}
