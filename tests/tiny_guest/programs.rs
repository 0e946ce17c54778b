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

    // Waits with interrupts on; the handlers count at EBX+8·k and say a letter.
    sleeper = r#"
    sti
1:
    hlt
    mov edx, 0x3f9
    mov al, 'w'
    out dx, al
    jmp 1b
"#;

    // Handler: says 'T' and ends the interrupt (x2APIC EOI).
    timer_handler = r#"
    inc dword ptr [ebx + 8]
    mov edx, 0x3f8
    mov al, 'T'
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

    // The same, for a device's interrupt.
    device_handler = r#"
    inc dword ptr [ebx + 16]
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

    // Rings an ioeventfd's doorbell (no exit), then says so.
    ringer = r#"
    mov edx, 0x10001000
    mov eax, 1
1:
    mov [edx], eax
    mov ecx, edx
    mov edx, 0x3f8
    mov al, 'R'
    out dx, al
    mov edx, ecx
    mov eax, 1
    jmp 1b
"#;
}
