//! The guest's programs: bare machine code, assembled with the test.
//!
//! Each is written once, with 32-bit registers alone, and assembled for long
//! mode and for flat protected mode without paging. All of them find EBX at
//! their data page.

/// How the guest's CPU runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 64 bits, paging with 2 MiB pages.
    Long,
    /// 32 bits, no paging.
    Protected,
}

macro_rules! programs {
    ($($name:ident = $body:expr;)*) => {
        $(
            core::arch::global_asm!(
                ".pushsection .rodata",
                concat!("tiny_", stringify!($name), "_64:"),
                ".code64",
                ".set WIDE, 1",
                $body,
                concat!("tiny_", stringify!($name), "_64_end:"),
                concat!("tiny_", stringify!($name), "_32:"),
                ".code32",
                ".set WIDE, 0",
                $body,
                concat!("tiny_", stringify!($name), "_32_end:"),
                ".code64",
                ".popsection",
            );
        )*

        /// The machine code of a program.
        pub fn program(name: &str, mode: Mode) -> &'static [u8] {
            match (name, mode) {
                $((stringify!($name), mode) => {
                    unsafe extern "C" {
                        #[link_name = concat!("tiny_", stringify!($name), "_64")]
                        static WIDE: u8;
                        #[link_name = concat!("tiny_", stringify!($name), "_64_end")]
                        static WIDE_END: u8;
                        #[link_name = concat!("tiny_", stringify!($name), "_32")]
                        static NARROW: u8;
                        #[link_name = concat!("tiny_", stringify!($name), "_32_end")]
                        static NARROW_END: u8;
                    }
                    let (start, end) = match mode {
                        Mode::Long => (&raw const WIDE, &raw const WIDE_END),
                        Mode::Protected => (&raw const NARROW, &raw const NARROW_END),
                    };
                    // SAFETY: both labels are of one section, in this order,
                    // with the program between them.
                    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
                })*
                _ => panic!("no program {name}"),
            }
        }
    };
}

/// Port on which a program says that it found a fault, and its number in AL.
pub const FAULT_PORT: u16 = 0x5ff;

programs! {
    // Every kind of exit that KVM finishes later, in a loop. EBP is a checksum
    // over the loop's number and everything that the device answered; so an
    // answer that is lost, doubled or stale changes all output after it.
    // EBX+0 counts the loops, and so does XMM0 where EBX+4 says that the CPU
    // has it (a KVM that interprets every instruction does not know PADDD).
    exits = r#"
1:
    inc dword ptr [ebx]
    cmp dword ptr [ebx + 4], 0
    je 2f
    paddd xmm0, xmm1
    movd eax, xmm0
    cmp eax, [ebx]
    mov al, 1
    jne 9f
2:
    imul ebp, ebp, 33
    add ebp, [ebx]
    mov eax, [ebx]
    and eax, 0xff
    mov [ebx + eax*4 + 0x1000], ebp

    mov edx, 0x3f8          // out, 1 byte
    mov eax, ebp
    out dx, al
    mov edx, 0x500          // out, 4 bytes
    out dx, eax
    mov edx, 0x504          // in, 1 byte
    xor eax, eax
    in al, dx
    add ebp, eax
    mov edx, 0x508          // in, 4 bytes
    in eax, dx
    add ebp, eax
    out 0x7e, al            // KVM moves RIP before this exit

    mov edx, 0x10000000     // MMIO write and read, 4 bytes
    mov [edx], ebp
    mov eax, [edx + 8]
    add ebp, eax
    movzx eax, byte ptr [edx + 16]  // and 1 byte
    add ebp, eax
    add dword ptr [edx + 24], 5     // read, then write, of one instruction

    cld
    mov [ebx + 0x100], ebp  // string out: 12 bytes
    lea esi, [ebx + 0x100]
    mov ecx, 12
    mov edx, 0x510
    rep outsb
    lea edi, [ebx + 0x200]  // string in: 8 × 1 byte
    mov ecx, 8
    mov edx, 0x514
    rep insb
    add ebp, [ebx + 0x200]
    add ebp, [ebx + 0x204]
    jmp 1b
9:
    mov edx, 0x5ff
    out dx, al
    hlt
"#;

    // Arms what EBX+8 says (1: LAPIC timer, one shot; 2: TSC deadline), says
    // 'A', then reports by a 4-byte OUT each change of the requested vectors
    // 0x40 to 0x5f, with interrupts off. EBX+12: the one-shot count.
    poller = r#"
    mov ecx, 0x80f          // spurious vector: LAPIC on
    xor edx, edx
    mov eax, 0x1ff
    wrmsr
    mov ecx, 0x83e          // divide by 16
    mov eax, 3
    wrmsr
    cmp dword ptr [ebx + 8], 1
    jne 2f
    mov ecx, 0x832          // LVT timer: one shot, vector 0x40
    mov eax, 0x40
    wrmsr
    mov ecx, 0x838
    mov eax, [ebx + 12]
    wrmsr
2:
    cmp dword ptr [ebx + 8], 2
    jne 3f
    mov ecx, 0x832          // LVT timer: TSC deadline, vector 0x40
    mov eax, 0x40040
    wrmsr
    rdtsc
    add eax, [ebx + 12]
    adc edx, 0
    mov ecx, 0x6e0
    wrmsr
3:
    mov edx, 0x3f8
    mov al, 'A'
    out dx, al
4:
    mov ecx, 0x822          // IRR, vectors 0x40 to 0x5f
    rdmsr
    cmp eax, [ebx + 16]
    je 4b
    mov [ebx + 16], eax
    mov edx, 0x500
    out dx, eax
    jmp 4b
"#;

    // Says 'A', then sends vector 0x42 to the CPU with APIC id 1, for ever.
    sender = r#"
    mov ecx, 0x80f
    xor edx, edx
    mov eax, 0x1ff
    wrmsr
1:
    mov edx, 0x3f8
    mov al, 'A'
    out dx, al
    mov ecx, 0x830
    mov eax, 0x42
    mov edx, 1
    wrmsr
    jmp 1b
"#;

    // Sleeps with interrupts on, and says 'w' after each that woke it.
    sleeper = r#"
    mov ecx, 0x80f
    xor edx, edx
    mov eax, 0x1ff
    wrmsr
    sti
1:
    hlt
    mov edx, 0x3f8
    mov al, 'w'
    out dx, al
    jmp 1b
"#;

    // Handler of vector 0x41: says 'D' and ends the interrupt.
    device_handler = r#"
    mov edx, 0x3f8
    mov al, 'D'
    out dx, al
    mov ecx, 0x80b
    xor eax, eax
    xor edx, edx
    wrmsr
.if WIDE
    iretq
.else
    iretd
.endif
"#;

    // Rings two doorbells that make no exit, then does what makes one.
    ringer = r#"
1:
    mov edx, 0x10001000     // ioeventfd, any value
    mov [edx], eax
    mov edx, 0x700          // ioeventfd, for 7 alone
    mov eax, 7
    out dx, eax
    mov eax, 8
    out dx, eax
    jmp 1b
"#;
}
