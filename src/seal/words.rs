//! Words for people to compare: proquints (Wilkerson 2009), 16 bits a word, pronounceable in most languages, no list needed.

const CONSONANTS: &[u8; 16] = b"bdfghjklmnprstvz";
const VOWELS: &[u8; 4] = b"aiou";

/// The first 12 bytes of a hash as six words: 96 bits.
#[must_use]
pub fn words(hash: &[u8; 32]) -> Vec<String> {
    hash.as_chunks::<2>().0.iter().take(6).map(|[high, low]| word(u16::from(*high) << 8 | u16::from(*low))).collect()
}

fn word(bits: u16) -> String {
    let letter =
        |letters: &[u8], shift: u32| letters.get(usize::from(bits >> shift) % letters.len()).copied().unwrap_or_default();
    let letters = [letter(CONSONANTS, 12), letter(VOWELS, 10), letter(CONSONANTS, 6), letter(VOWELS, 4), letter(CONSONANTS, 0)];
    letters.into_iter().map(char::from).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_papers_example() {
        // 127.0.0.1 is "lusab-babad".
        assert_eq!((super::word(0x7f00), super::word(0x0001)), ("lusab".to_owned(), "babad".to_owned()));
    }
}
