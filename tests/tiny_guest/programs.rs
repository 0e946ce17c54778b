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

    // MMIO that comes in pieces: over the end of a page, of 16 bytes, of a
    // string, and of instructions that make two accesses. EBP as in `exits`.
    pieces = r#"
1:
    inc dword ptr [ebx]
    imul ebp, ebp, 33
    add ebp, [ebx]
    mov edx, 0x10000ffd
    mov [edx], ebp          // 3 | 1
    mov eax, [edx]
    add ebp, eax
    mov edx, 0x10001fff
    mov [edx], bp           // 1 | 1
    add dword ptr [edx - 1], 5  // 2 | 2, read, then written

    mov [ebx + 0x100], ebp
    imul eax, ebp, 77
    mov [ebx + 0x104], eax
    imul eax, eax, 77
    mov [ebx + 0x108], eax
    imul eax, eax, 77
    mov [ebx + 0x10c], eax
    movdqu xmm2, [ebx + 0x100]
    mov edx, 0x10003000
    movdqu [edx + 0x20], xmm2   // 8, 8
    movdqu [edx - 10], xmm2     // 8, 2 | 6
    movdqu [edx - 3], xmm2      // 3 | 8, 5
    movdqu xmm3, [edx + 0x40]   // 8, 8
    movdqu [ebx + 0x200], xmm3
    movdqu xmm3, [edx - 3]      // 3 | 8, 5
    movdqu [ebx + 0x210], xmm3
    mov ecx, 8
2:
    add ebp, [ebx + 0x1fc + ecx*4]
    imul ebp, ebp, 33
    dec ecx
    jnz 2b

    cld
    mov edi, 0x10004004     // a port's string into MMIO: 20, then 8, 8, 4
    mov ecx, 20
    mov edx, 0x514
    rep insb
    mov esi, 0x10005000
    mov edi, 0x10006000
    cmpsd                   // two reads of one instruction
    sbb eax, eax
    add ebp, eax
    movsd                   // a read and a write
    jmp 1b
"#;

    // Reads and writes an MSR that KVM does not know.
    msrs = r#"
1:
    inc dword ptr [ebx]
    mov ecx, 0x12345678
    rdmsr
    imul ebp, ebp, 33
    add ebp, eax
    add ebp, edx
    mov eax, ebp
    imul edx, ebp, 77
    wrmsr
    mov edx, 0x500
    out dx, eax
    jmp 1b
"#;

    // Asks the VMM by a hypercall (KVM_HC_MAP_GPA_RANGE: EBX is the address,
    // ECX the number of pages), and says what it answered.
    hypercalls = r#"
1:
    inc dword ptr [ebx]
    imul ebp, ebp, 33
    add ebp, [ebx]
    mov eax, 12
    movzx ecx, bp
    inc ecx
    movzx edx, bp
    vmmcall
    add ebp, eax
    mov eax, ebp
    mov edx, 0x500
    out dx, eax
    jmp 1b
"#;

    // Two writes that are batched, then one that is not.
    batcher = r#"
1:
    inc dword ptr [ebx]
    mov eax, [ebx]
    mov edx, 0x10002000
    mov [edx], eax
    mov [edx + 4], eax
    mov edx, 0x500
    out dx, eax
    jmp 1b
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

    // Sends a byte of EBP in each loop, which is a sum over the loop's number
    // and what it reads of two devices; resets the machine after 200 loops.
    // Where EBX+4 says so, the counter at EBX+0 is seen at 0x20010000 as well;
    // if it is not, the CPU halts.
    alone = r#"
1:
    inc dword ptr [ebx]
    imul ebp, ebp, 33
    add ebp, [ebx]
    mov edx, 0x1f0
    in eax, dx
    add ebp, eax
    mov edx, 0x10000008
    mov eax, [edx]
    add ebp, eax
    cmp dword ptr [ebx + 4], 0
    je 2f
    mov edx, 0x20010000
    mov eax, [edx]
    cmp eax, [ebx]
    jne 9f
2:
    mov edx, 0x3f8
    mov eax, ebp
    and al, 0x3f
    add al, 0x20
    out dx, al
    cmp dword ptr [ebx], 200
    jb 1b
    mov al, 0xfe
    out 0x64, al
9:
    cli
    hlt
"#;

    // Handler of a serial port's interrupt: sends each byte that it receives,
    // plus one, until the port has nothing more to say.
    serial_handler = r#"
1:
    mov edx, 0x3fa
    in al, dx
    test al, 1
    jnz 2f
    and al, 0xe
    cmp al, 4
    jne 1b
    mov edx, 0x3f8
    in al, dx
    inc al
    out dx, al
    jmp 1b
2:
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

    // A serial driver such as Linux has: ten times it has 20 bytes to send,
    // turns the port's interrupt for an empty transmitter on, and sleeps until
    // they are sent; then it resets the machine. EBX+0: rounds; +4: bytes to
    // send; +8: the next byte's number; +12: what it believes of the port's
    // interrupts.
    driver = r#"
    mov ecx, 0x80f
    xor edx, edx
    mov eax, 0x1ff
    wrmsr
1:
    mov dword ptr [ebx + 4], 20
    mov dword ptr [ebx + 12], 7
    mov edx, 0x3f9
    mov al, 7
    out dx, al
2:
    sti
    hlt
    cli
    cmp dword ptr [ebx + 4], 0
    jne 2b
    inc dword ptr [ebx]
    cmp dword ptr [ebx], 10
    jb 1b
    mov al, 0xfe
    out 0x64, al
    hlt
"#;

    // Its interrupt handler: three bytes each time that the port is empty.
    driver_handler = r#"
1:
    mov edx, 0x3fa
    in al, dx
    test al, 1
    jnz 4f
    and al, 0xe
    cmp al, 2
    jne 1b
    cmp dword ptr [ebx + 12], 7
    jne 1b
    mov ecx, 3
2:
    cmp dword ptr [ebx + 4], 0
    je 3f
    mov eax, [ebx + 8]
    inc dword ptr [ebx + 8]
    and al, 0x3f
    add al, 0x20
    mov edx, 0x3f8
    dec dword ptr [ebx + 4]
    out dx, al
    dec ecx
    jnz 2b
    jmp 1b
3:
    mov dword ptr [ebx + 12], 5
    mov edx, 0x3f9
    mov al, 5
    out dx, al
    jmp 1b
4:
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
}
