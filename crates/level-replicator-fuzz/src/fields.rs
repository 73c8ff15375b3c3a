//! Numbers and pieces out of an input.
//!
//! The rule: an input never runs out. Where it ends, zeros follow, so every cut of an input is an
//! input too, and a shorter one can show the same finding.

/// Numbers at which something turns: ends of varints, of blocks, of stamps, of the number itself.
pub const TURNING_NUMBERS: [u64; 16] = [
    0,
    1,
    127,
    128,
    255,
    256,
    4_095,
    4_096,
    65_535,
    65_536,
    u32::MAX as u64,
    1 << 32,
    (1 << 56) - 1,
    1 << 56,
    u64::MAX - 1,
    u64::MAX,
];

/// Reads an input from its front.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Begins at the front of `input`.
    pub fn new(input: &'a [u8]) -> Fields<'a> {
        Fields { rest: input }
    }

    /// Whether only zeros follow.
    pub fn is_over(&self) -> bool {
        self.rest.is_empty()
    }

    /// One byte.
    pub fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.rest.split_first() else {
            return 0;
        };
        self.rest = rest;
        first
    }

    /// A number below `count`.
    pub fn below(&mut self, count: u8) -> u8 {
        self.byte() % count
    }

    /// Whether the next byte is odd.
    pub fn is_odd(&mut self) -> bool {
        self.byte() & 1 != 0
    }

    /// Two bytes, big-endian.
    pub fn short(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    /// Any number: most often a small one, sometimes one at which something turns.
    pub fn number(&mut self) -> u64 {
        let byte = self.byte();
        match byte {
            0..=0xdf => u64::from(byte),
            0xe0..=0xef => TURNING_NUMBERS[usize::from(byte & 0x0f)],
            _ => (0..8).fold(0, |number, _| number << 8 | u64::from(self.byte())),
        }
    }

    /// The next `len` bytes, or all that are left.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        self.bytes(usize::MAX)
    }
}
