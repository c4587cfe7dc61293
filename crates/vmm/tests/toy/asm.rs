//! Machine code put together a line at a time.
//!
//! By hand, because what the compiler's assembler makes can be read as bytes by `unsafe` code only, and tests have none.

/// Code that grows; places in it are offsets from its start.
#[derive(Default)]
pub struct Code(Vec<u8>);

/// A jump whose target is not known yet.
#[must_use = "a jump has to land"]
pub struct Jump(usize);

impl Code {
    /// An instruction, or what is left of one.
    pub fn op(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    /// An instruction that ends in 32 bits of address or number.
    pub fn with(&mut self, bytes: &[u8], last: u32) {
        self.op(bytes);
        self.op(&last.to_le_bytes());
    }

    pub fn here(&self) -> usize {
        self.0.len()
    }

    /// A short jump to a place before it.
    pub fn jump_back(&mut self, opcode: u8, to: usize) {
        let next = self.here() + 2;
        let distance = i8::try_from(to as isize - next as isize).expect("a short jump");
        self.op(&[opcode, distance as u8]);
    }

    /// A short jump to where [`Self::land`] is called.
    pub fn jump_ahead(&mut self, opcode: u8) -> Jump {
        self.op(&[opcode, 0]);
        Jump(self.here())
    }

    pub fn land(&mut self, Jump(next): Jump) {
        let distance = i8::try_from(self.here() - next).expect("a short jump");
        self.0[next - 1] = distance as u8;
    }

    pub fn bytes(self) -> Vec<u8> {
        self.0
    }
}
