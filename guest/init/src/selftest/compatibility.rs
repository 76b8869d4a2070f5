//! 32-bit code in compatibility mode: a sort and a checksum with calls, a stack and operands as compilers make them for such programs.
//!
//! No 32-bit program is needed, and no kernel that starts them: Linux has the code segment in any case. What the code touches has to lie below 4 GiB.

#![expect(
    unsafe_code,
    reason = "assembly in memory below 4 GiB is the only 32-bit code that a 64-bit program can have"
)]

use std::arch::global_asm;
use std::num::NonZero;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

use super::expect;

/// Numbers that are sorted.
const COUNT: usize = 1 << 12;

/// Bytes of the stack: a sort that always divides in the worst way needs 32 for each number.
const STACK: usize = 1 << 18;

/// Bytes for the code.
const CODE: usize = 4096;

// `begin` is a function (stack's end, numbers, count) -> checksum that may be copied anywhere below 4 GiB. It keeps what a function has to keep: in 32-bit code the
// upper halves of all registers are lost. 0x23 and 0x2b are Linux's selectors for 32-bit code and for data, 0x33 is that for 64-bit code.
global_asm!(
    r#"
    .pushsection .text.compatibility, "ax"
compatibility_begin:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov rax, rsp
    mov rsp, rdi
    push rax
    lea rbx, [rip + 50f]
    lea rax, [rip + 20f]
    push 0x23
    push rax
    retfq
    .code32
20: mov eax, 0x2b
    mov ds, eax
    mov es, eax
    push edx
    push esi
    call 30f
    call 40f
    add esp, 8
    mov ecx, eax
    xor eax, eax
    mov ds, eax
    mov es, eax
    push 0x33
    push ebx
    retf

    # sort(numbers, count): by the last number into smaller and larger ones, and then these.
30: push ebp
    mov ebp, esp
    push ebx
    push esi
    push edi
    mov esi, [ebp + 8]
    mov ecx, [ebp + 12]
    cmp ecx, 2
    jb 34f
    mov edx, [esi + ecx * 4 - 4]
    xor ebx, ebx
    xor edi, edi
31: lea eax, [ecx - 1]
    cmp edi, eax
    jae 33f
    mov eax, [esi + edi * 4]
    cmp eax, edx
    jae 32f
    push dword ptr [esi + ebx * 4]
    pop dword ptr [esi + edi * 4]
    mov [esi + ebx * 4], eax
    inc ebx
32: inc edi
    jmp 31b
33: mov eax, [esi + ebx * 4]
    mov [esi + ecx * 4 - 4], eax
    mov [esi + ebx * 4], edx
    dec ecx
    sub ecx, ebx
    push ecx
    lea eax, [esi + ebx * 4 + 4]
    push eax
    push ebx
    push esi
    call 30b
    add esp, 8
    call 30b
34: lea esp, [ebp - 12]
    pop edi
    pop esi
    pop ebx
    leave
    ret

    # checksum(numbers, count)
40: mov edx, [esp + 4]
    mov ecx, [esp + 8]
    xor eax, eax
41: rol eax, 5
    add eax, [edx]
    add edx, 4
    dec ecx
    jnz 41b
    ret

    .code64
50: mov eax, ecx
    pop rsp
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
compatibility_end:
    .popsection
    "#
);

// SAFETY: they are the two ends of the code above.
unsafe extern "C" {
    static compatibility_begin: u8;
    static compatibility_end: u8;
}

/// Memory below 4 GiB.
struct LowMemory {
    start: NonNull<u8>,
    size: usize,
}

impl LowMemory {
    fn new(size: usize) -> Result<Self, String> {
        let length = NonZero::new(size).ok_or("no size")?;
        let (access, flags) =
            (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE | MapFlags::MAP_32BIT);
        // SAFETY: a new mapping at a place that the kernel chooses.
        let start = unsafe { mmap_anonymous(None, length, access, flags) };
        let start = start.map_err(|error| format!("memory below 4 GiB: {error}"))?.cast();
        Ok(Self { start, size })
    }
}

impl Drop for LowMemory {
    fn drop(&mut self) {
        // SAFETY: it is this mapping, and whoever used it borrowed `self`. A failure leaves the mapping, which harms nobody.
        let _ = unsafe { munmap(self.start.cast(), self.size) };
    }
}

/// Sorts numbers by 32-bit code and compares their checksum with that of numbers which Rust has sorted.
pub(super) fn sort() -> Result<(), String> {
    let mut numbers = numbers();
    let code = LowMemory::new(CODE)?;
    let data = LowMemory::new(STACK + COUNT * 4)?;
    // SAFETY: `numbers` and the code are shorter than what they are copied to. The code is a function of this type, wherever it lies below 4 GiB, and touches only its
    // stack, the first part of `data`, and the numbers, the rest of it.
    let found = unsafe {
        let begin = &raw const compatibility_begin;
        let length = (&raw const compatibility_end).offset_from_unsigned(begin);
        expect("room for code", length <= CODE, true)?;
        code.start.copy_from_nonoverlapping(NonNull::from_ref(&*begin), length);
        mprotect(code.start.cast(), CODE, ProtFlags::PROT_READ | ProtFlags::PROT_EXEC)
            .map_err(|error| format!("executable memory: {error}"))?;
        let stack_end = data.start.add(STACK);
        stack_end.cast().copy_from_nonoverlapping(NonNull::from_ref(&numbers[0]), COUNT);
        let function: extern "sysv64" fn(*mut u8, *mut u8, usize) -> u32 = std::mem::transmute(code.start);
        function(stack_end.as_ptr(), stack_end.as_ptr(), COUNT)
    };
    numbers.sort_unstable();
    let expected = numbers.iter().fold(0_u32, |sum, number| sum.rotate_left(5).wrapping_add(*number));
    expect("checksum", found, expected)
}

/// Numbers in no order.
fn numbers() -> Vec<u32> {
    let next = |last: &u32| Some(last.wrapping_mul(0x0019_660d).wrapping_add(0x3c6e_f35f));
    std::iter::successors(Some(1), next).take(COUNT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_processor_sorts_in_32_bit_code() {
        assert_eq!(sort(), Ok(()));
    }
}
