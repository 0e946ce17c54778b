/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/*
 * What the keeper leaves in memory, for whoever reads the dump.
 *
 * All numbers are little-endian. A reader takes sizes and offsets from the
 * head and from the record, never from this file: fields are only ever added
 * at an end, and `version` changes when one changes its meaning.
 */
#ifndef VMRESTORE_KEEPER_H
#define VMRESTORE_KEEPER_H

#define KEEPER_HEAD_MAGIC "VMRESTORE KEEPER"	/* 16 bytes, no NUL */
#define KEEPER_RECORD_MAGIC 0x4345524b50454556ULL /* "VEEPKREC" */
#define KEEPER_VERSION 1

/* The symbol `vmrestore_keeper`, aligned to 64 bytes. */
struct keeper_head {
	u8 magic[16];
	u32 version;
	u32 head_size;		/* sizeof(struct keeper_head) */
	u32 record_size;	/* sizeof(struct keeper_record) */
	u32 area_offset;	/* of the XSAVE area, from the record's start */
	u32 area_size;		/* bytes of the XSAVE area; 0: no XSAVE */
	u32 cpus;		/* entries of `records` */
	u64 xcr0;		/* the host's, as read at load */
	u64 records;		/* address of u64[cpus]: addresses of records, or 0 */
};

/* keeper_record.state */
#define KEEPER_EMPTY 0
#define KEEPER_WRITING 1
#define KEEPER_DONE 2

/* keeper_record.valid: what was read beside what every CPU has */
#define KEEPER_HAS_AREA (1 << 0)	/* the XSAVE area */
#define KEEPER_HAS_XCR0 (1 << 1)
#define KEEPER_HAS_XSS (1 << 2)
#define KEEPER_HAS_XFD (1 << 3)
#define KEEPER_HAS_PKRU (1 << 4)
#define KEEPER_HAS_APIC_TIMER (1 << 5)
#define KEEPER_HAS_TIME (1 << 6)
/* thread_info.flags of `task` had TIF_NEED_FPU_LOAD: the FPU registers were not its own */
#define KEEPER_FPU_IN_MEMORY (1 << 16)

struct keeper_record {
	u64 magic;
	u32 state;
	u32 cpu;
	u32 valid;
	s32 pid;		/* of the thread that the CPU ran, in the initial PID namespace */
	u64 task;		/* its task_struct */
	u64 xcr0;		/* as it was loaded when the CPU was stopped */
	u64 saved;		/* components that XSAVE was asked for */
	u64 xss;
	u64 xfd;
	u64 pkru;
	u64 tsc;
	u64 monotonic_ns;
	u64 fs_base;
	u64 gs_base;		/* MSR_GS_BASE: the kernel's, as a rule */
	u64 kernel_gs_base;	/* MSR_KERNEL_GS_BASE: user mode's, or on Intel a loaded guest's */
	u64 dr[4];
	u64 dr6;
	u64 dr7;		/* 0 in an NMI: its handler clears the register */
	u64 apic_timer;		/* current count */
};

#endif
