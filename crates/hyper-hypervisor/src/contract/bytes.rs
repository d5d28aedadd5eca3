//! Bytes that tell where they belong.

/// `count` bytes of a sequence that `seed` chooses (SplitMix64): no two seeds or places are alike.
pub fn pattern(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut out = Vec::with_capacity(count + 8);
    while out.len() < count {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        out.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    out.truncate(count);
    out
}

/// Where two sequences first differ, in words.
pub fn difference(got: &[u8], wanted: &[u8]) -> Option<String> {
    if got == wanted {
        return None;
    }
    let at = got.iter().zip(wanted).position(|(a, b)| a != b).unwrap_or(got.len());
    Some(format!("{} bytes for {}, differ at {at}", got.len(), wanted.len()))
}
