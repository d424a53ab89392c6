//! Data that can be recognised: each byte follows from a seed and from where it lies, so that what was written in
//! one piece can be verified in another.

/// The bytes of one seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern(pub u64);

const WORD: u64 = 8;

impl Pattern {
    /// Fills `data` with what belongs at `offset`.
    pub fn fill(self, offset: u64, data: &mut [u8]) {
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let skip = (at % WORD) as usize;
            let len = rest.len().min(WORD as usize - skip);
            let (piece, left) = rest.split_at_mut(len);
            piece.copy_from_slice(&self.word(at / WORD)[skip..skip + len]);
            at = at.wrapping_add(len as u64);
            rest = left;
        }
    }

    /// SplitMix64 of the word's number.
    fn word(self, number: u64) -> [u8; WORD as usize] {
        let mut z = self.0.wrapping_add(number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)).to_le_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_the_whole_wherever_they_are_cut() {
        let mut whole = [0; 100];
        Pattern(7).fill(1000, &mut whole);
        for cut in 0..100 {
            let mut pieces = [0; 100];
            let (first, second) = pieces.split_at_mut(cut);
            Pattern(7).fill(1000, first);
            Pattern(7).fill(1000 + cut as u64, second);
            assert_eq!(pieces, whole);
        }
    }

    #[test]
    fn seeds_and_places_differ() {
        let bytes = |seed, offset| {
            let mut data = [0; 64];
            Pattern(seed).fill(offset, &mut data);
            data
        };
        assert_ne!(bytes(1, 0), bytes(2, 0));
        assert_ne!(bytes(1, 0), bytes(1, 64));
    }
}
