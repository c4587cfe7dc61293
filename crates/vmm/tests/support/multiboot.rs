//! A guest of a few bytes for QEMU: counts in memory, and prints a dot each 2^18 counts.

/// Where the guest counts: a 32-bit number.
pub const COUNTER: u64 = 0x20_0000;
/// Pages the guest writes once, some way from each other.
pub const TOUCHED: [u64; 3] = [0x30_0000, 0x30_1000, 0x80_0000];

/// Header, then 32-bit code without paging.
pub fn guest() -> Vec<u8> {
    const BASE: u32 = 0x10_0000;
    const FLAGS: u32 = 1 << 16;
    const MAGIC: u32 = 0x1BAD_B002;
    let mut image = Vec::new();
    for word in [
        MAGIC,
        FLAGS,
        0u32.wrapping_sub(MAGIC).wrapping_sub(FLAGS),
        BASE,      // where this header goes
        BASE,      // where the image goes
        0,         // all of it is loaded
        0,         // no bss
        BASE + 32, // entry
    ] {
        image.extend(word.to_le_bytes());
    }
    for page in TOUCHED {
        // mov byte [page], 0x5a
        image.extend([0xc6, 0x05]);
        image.extend((page as u32).to_le_bytes());
        image.push(0x5a);
    }
    let start = image.len();
    // inc dword [COUNTER]
    image.extend([0xff, 0x05]);
    image.extend((COUNTER as u32).to_le_bytes());
    // test dword [COUNTER], 0x3ffff
    image.extend([0xf7, 0x05]);
    image.extend((COUNTER as u32).to_le_bytes());
    image.extend(0x3ffffu32.to_le_bytes());
    // jnz start
    image.push(0x75);
    image.push((start as i64 - image.len() as i64 - 1) as i8 as u8);
    // mov dx, 0x3f8; mov al, '.'; out dx, al
    image.extend([0x66, 0xba, 0xf8, 0x03, 0xb0, b'.', 0xee]);
    // jmp start
    image.push(0xeb);
    image.push((start as i64 - image.len() as i64 - 1) as i8 as u8);
    image
}
