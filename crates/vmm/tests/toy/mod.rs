//! A guest for Firecracker of a few hundred bytes, with everything a test of the control path looks at: it prints,
//! counts in memory, and writes some pages once and others again and again.
//!
//! It is not Linux because a machine whose KVM is itself emulated runs a guest's kernel mode a thousand times slower
//! than its user mode, and not every instruction there. So this guest leaves ring 0 with its tenth instruction and
//! never comes back: no interrupt is let through, nothing is called, nothing needs a stack. With I/O privilege level 3
//! the serial port is ring 3's to write. Whatever goes wrong in it is a triple fault, and Firecracker ends.
//!
//! What it does:
//!
//! - writes [`HELLO`] to the serial port, and [`ONCE`] into the first byte of each of [`TOUCHED`];
//! - for ever counts up the 32-bit number at [`COUNTER`], and writes [`TICK`] each [`TICK_EVERY`] counts.
//!
//! Words in the kernel command line change that:
//!
//! - `flood` - every count is a tick: serial output without pause;
//! - `touch` - after every tick the first byte of each page of [`SWEPT`] becomes the ticks' number, cut to a byte.

#![allow(dead_code, reason = "each test program uses its part of it")]

use std::ops::Range;

use asm::Code;

mod asm;

/// The first byte on the serial port.
pub const HELLO: u8 = b'!';
/// What comes on the serial port for ever.
pub const TICK: u8 = b'.';
/// Where the guest counts.
pub const COUNTER: u32 = 0x20_0000;
/// A power of two; 1 to 5 milliseconds on processors of the last ten years.
pub const TICK_EVERY: u32 = 1 << 10;
/// Pages written once, at the start.
pub const TOUCHED: [u32; 3] = [0x30_0000, 0x30_1000, 0x80_0000];
/// What is written there.
pub const ONCE: u8 = 0x5a;
/// Where `touch` writes into each page.
pub const SWEPT: Range<u32> = 16 << 20..24 << 20;
/// Everything above is below this.
pub const MEMORY_MIB: u32 = 32;

const PAGE: u32 = 4096;

/// Where the image is loaded: Firecracker takes no kernel that is entered below 1 MiB.
const BASE: u32 = 1 << 20;
/// One page of code and descriptors, then the page tables.
const GDT: u32 = BASE + 0xf00;
const GDT_POINTER: u32 = BASE + 0xf80;
const PML4: u32 = BASE + PAGE;
const PDPT: u32 = PML4 + PAGE;
const PAGE_DIRECTORY: u32 = PDPT + PAGE;

/// Turns on the spot before each count: so that the counter, which a later look must find larger, takes an hour to wrap.
const SPIN: u32 = 1 << 13;

const SERIAL_PORT: u32 = 0x3f8;
/// `boot_params.hdr.cmd_line_ptr`, from the address in RSI (Linux's x86 boot protocol).
const CMD_LINE_PTR: u32 = 0x228;

/// Selectors in [`descriptors`], with privilege level 3.
const USER_DATA: u8 = 0x08 | 3;
const USER_CODE: u8 = 0x10 | 3;
/// Bit 1 is always set; IOPL 3; no interrupts.
const USER_FLAGS: u32 = 0x3002;

/// The guest as an ELF kernel, for Firecracker's `kernel_image_path`.
///
/// Without a PVH note, so that it is entered in long mode, with the first GiB mapped and RSI at `boot_params`.
pub fn elf() -> Vec<u8> {
    let image = image();
    let size = image.len() as u64;
    let mut elf = Vec::new();
    // The file's header: 64 bits, little-endian; executable, x86-64, ELF version 1.
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend([2u16, 62].map(u16::to_le_bytes).concat());
    elf.extend(1u32.to_le_bytes());
    // Entry; where the program headers are; no sections.
    elf.extend([u64::from(BASE), 64, 0].map(u64::to_le_bytes).concat());
    elf.extend(0u32.to_le_bytes());
    // Sizes: this header; a program header, one of them; a section header, none of them.
    elf.extend([64u16, 56, 1, 64, 0, 0].map(u16::to_le_bytes).concat());
    // The program header: loaded; everything allowed; at a page's offset in the file, for its alignment.
    elf.extend([1u32, 7].map(u32::to_le_bytes).concat());
    elf.extend([u64::from(PAGE), BASE.into(), BASE.into(), size, size, PAGE.into()].map(u64::to_le_bytes).concat());
    elf.resize(PAGE as usize, 0);
    elf.extend(image);
    elf
}

/// What is in memory from [`BASE`].
fn image() -> Vec<u8> {
    let mut image = code();
    assert!(image.len() <= (GDT - BASE) as usize);
    image.resize((GDT - BASE) as usize, 0);
    let descriptors = descriptors();
    let limit = (descriptors.len() * 8 - 1) as u16;
    image.extend(descriptors.map(u64::to_le_bytes).concat());
    image.resize((GDT_POINTER - BASE) as usize, 0);
    image.extend(limit.to_le_bytes());
    image.extend(u64::from(GDT).to_le_bytes());
    for table in page_tables() {
        image.resize(image.len().next_multiple_of(PAGE as usize), 0);
        image.extend(table.into_iter().flat_map(u64::to_le_bytes));
    }
    image.resize(image.len().next_multiple_of(PAGE as usize), 0);
    image
}

/// Nothing, user data, 64-bit user code: marked as accessed, so that the processor writes nothing here.
fn descriptors() -> [u64; 3] {
    [0, 0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff]
}

/// The first GiB one to one, open to ring 3.
///
/// Pages and tables are marked as accessed and dirty: the processor then never writes here, and a page of the guest
/// changes when its code changes it.
fn page_tables() -> [Vec<u64>; 3] {
    const PRESENT_WRITABLE_USER: u64 = 0b111;
    const ACCESSED: u64 = 1 << 5;
    const DIRTY: u64 = 1 << 6;
    const TWO_MIB_PAGE: u64 = 1 << 7;
    let table = PRESENT_WRITABLE_USER | ACCESSED;
    let page = table | DIRTY | TWO_MIB_PAGE;
    [
        vec![u64::from(PDPT) | table],
        vec![u64::from(PAGE_DIRECTORY) | table],
        (0..512).map(|number| number << 21 | page).collect(),
    ]
}

/// Without SSE, POPCNT and their like, which not every emulated KVM has.
fn code() -> Vec<u8> {
    let mut code = Code::default();
    enter_ring_3(&mut code);
    greet(&mut code);
    read_command_line(&mut code);
    count(&mut code);
    code.bytes()
}

fn enter_ring_3(code: &mut Code) {
    // The length of what follows here.
    let user = BASE + 0x22;
    code.with(&[0xb8], PML4); // mov eax, PML4
    code.op(&[0x0f, 0x22, 0xd8]); // mov cr3, rax
    code.with(&[0x0f, 0x01, 0x14, 0x25], GDT_POINTER); // lgdt [GDT_POINTER]
    // What IRETQ takes, in the order it is pushed: SS, RSP, RFLAGS, CS, RIP.
    code.op(&[0x6a, USER_DATA]); // push USER_DATA
    code.op(&[0x6a, 0]); // push 0
    code.with(&[0x68], USER_FLAGS); // push USER_FLAGS
    code.op(&[0x6a, USER_CODE]); // push USER_CODE
    code.with(&[0x68], user); // push user
    code.op(&[0x48, 0xcf]); // iretq
    assert_eq!(code.here() as u32, user - BASE);
}

/// Leaves the port in DX.
fn greet(code: &mut Code) {
    code.with(&[0xba], SERIAL_PORT); // mov edx, SERIAL_PORT
    code.op(&[0xb0, HELLO]); // mov al, HELLO
    code.op(&[0xee]); // out dx, al
    for page in TOUCHED {
        code.with(&[0xc6, 0x04, 0x25], page); // mov byte [page], ...
        code.op(&[ONCE]);
    }
}

/// Leaves in EBX which bits of the counter are nought at a tick, in EBP how long to spin, in ECX whether to sweep.
fn read_command_line(code: &mut Code) {
    code.with(&[0xbb], TICK_EVERY - 1); // mov ebx, TICK_EVERY - 1
    code.with(&[0xbd], SPIN); // mov ebp, SPIN
    code.op(&[0x31, 0xc9]); // xor ecx, ecx
    code.with(&[0x8b, 0xb6], CMD_LINE_PTR); // mov esi, [rsi + CMD_LINE_PTR]
    let next = code.here();
    code.op(&[0x8b, 0x06]); // mov eax, [rsi]
    code.op(&[0x84, 0xc0]); // test al, al
    let end = code.jump_ahead(0x74); // jz end
    // The first four letters are enough to tell the words from each other.
    code.with(&[0x3d], u32::from_le_bytes(*b"floo")); // cmp eax, 'floo'
    let no_flood = code.jump_ahead(0x75); // jne no_flood
    code.op(&[0x31, 0xdb]); // xor ebx, ebx
    code.with(&[0xbd], 1); // mov ebp, 1
    code.land(no_flood);
    code.with(&[0x3d], u32::from_le_bytes(*b"touc")); // cmp eax, 'touc'
    let no_touch = code.jump_ahead(0x75); // jne no_touch
    code.op(&[0xb1, 1]); // mov cl, 1
    code.land(no_touch);
    code.op(&[0xff, 0xc6]); // inc esi
    code.jump_back(0xeb, next); // jmp next
    code.land(end);
}

fn count(code: &mut Code) {
    let next = code.here();
    code.op(&[0x89, 0xe8]); // mov eax, ebp
    let spin = code.here();
    code.op(&[0xff, 0xc8]); // dec eax
    code.jump_back(0x75, spin); // jnz spin
    code.with(&[0xff, 0x04, 0x25], COUNTER); // inc dword [COUNTER]
    code.with(&[0x85, 0x1c, 0x25], COUNTER); // test [COUNTER], ebx
    code.jump_back(0x75, next); // jnz next
    code.op(&[0xb0, TICK]); // mov al, TICK
    code.op(&[0xee]); // out dx, al
    code.jump_back(0xe3, next); // jrcxz next
    code.with(&[0x8b, 0x04, 0x25], COUNTER); // mov eax, [COUNTER]
    code.op(&[0xc1, 0xe8, TICK_EVERY.ilog2() as u8]); // shr eax, log2(TICK_EVERY)
    code.with(&[0xbf], SWEPT.start); // mov edi, SWEPT.start
    let page = code.here();
    code.op(&[0x88, 0x07]); // mov [rdi], al
    code.with(&[0x81, 0xc7], PAGE); // add edi, PAGE
    code.with(&[0x81, 0xff], SWEPT.end); // cmp edi, SWEPT.end
    code.jump_back(0x72, page); // jb page
    code.jump_back(0xeb, next); // jmp next
}
