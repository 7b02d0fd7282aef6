//! Words for people to compare: proquints (Wilkerson 2009), 16 bits a word, pronounceable in most languages, no list needed.

const CONSONANTS: &[u8; 16] = b"bdfghjklmnprstvz";
const VOWELS: &[u8; 4] = b"aiou";

/// The first 12 bytes of a hash as six words: 96 bits.
#[must_use]
pub fn words(hash: &[u8; 32]) -> Vec<String> {
    hash.as_chunks::<2>().0.iter().take(6).map(|[high, low]| word(u16::from(*high) << 8 | u16::from(*low))).collect()
}

fn word(bits: u16) -> String {
    let consonant = |shift: u16| char::from(CONSONANTS[usize::from(bits >> shift & 0xf)]);
    let vowel = |shift: u16| char::from(VOWELS[usize::from(bits >> shift & 0x3)]);
    [consonant(12), vowel(10), consonant(6), vowel(4), consonant(0)].iter().collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_papers_example() {
        // 127.0.0.1 is "lusab-babad".
        assert_eq!((super::word(0x7f00), super::word(0x0001)), ("lusab".to_owned(), "babad".to_owned()));
    }
}
