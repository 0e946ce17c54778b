/* What procfs says of the program that asks. */
#pragma once
#include "state.h"

/* What stands behind `NAME:` in a file of procfs; empty where it does not. */
UNUSED static char *line_of(const char *path, const char *name)
{
	static char line[1024];
	FILE *file = fopen(path, "re");
	size_t len = strlen(name);
	while (file && fgets(line, sizeof line, file))
		if (!strncmp(line, name, len) && line[len] == ':') {
			fclose(file);
			line[strcspn(line, "\n")] = 0;
			return line + len + 1 + strspn(line + len + 1, " \t");
		}
	if (file)
		fclose(file);
	return "";
}

/* Whether the mapping at an address has a flag (two letters) in smaps. */
UNUSED static int has_flag(void *at, const char *flag)
{
	char line[1024], found = 0, wanted[8];
	unsigned long start, end;
	FILE *file = fopen("/proc/self/smaps", "re");
	snprintf(wanted, sizeof wanted, " %s ", flag);
	for (int in = 0; file && fgets(line, sizeof line, file);) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			in = start <= (unsigned long)at && (unsigned long)at < end;
		else if (in && !strncmp(line, "VmFlags:", 8))
			found = strstr(line, wanted) != NULL;
	}
	if (file)
		fclose(file);
	return found;
}
