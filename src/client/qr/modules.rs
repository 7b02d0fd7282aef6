//! From the modules of a code to its text (ISO/IEC 18004 §7): format, codewords, repair, segments.
#![expect(clippy::indexing_slicing, reason = "indices are computed from the size of a code, which `Modules::new` bounds")]
#![expect(clippy::cast_possible_truncation, reason = "what is cut to a byte is below 256")]

/// Codewords for repair in each block, by level (L, M, Q, H) and version (table 9).
const REPAIR: [[u8; 40]; 4] = [
    [
        7, 10, 15, 20, 26, 18, 20, 24, 30, 18, 20, 24, 26, 30, 22, 24, 28, 30, 28, 28, 28, 28, 30, 30, 26, 28, 30, 30, 30, 30,
        30, 30, 30, 30, 30, 30, 30, 30, 30, 30,
    ],
    [
        10, 16, 26, 18, 24, 16, 18, 22, 22, 26, 30, 22, 22, 24, 24, 28, 28, 26, 26, 26, 26, 28, 28, 28, 28, 28, 28, 28, 28, 28,
        28, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    ],
    [
        13, 22, 18, 26, 18, 24, 18, 22, 20, 24, 28, 26, 24, 20, 30, 24, 28, 28, 26, 30, 28, 30, 30, 30, 30, 28, 30, 30, 30, 30,
        30, 30, 30, 30, 30, 30, 30, 30, 30, 30,
    ],
    [
        17, 28, 22, 16, 22, 28, 26, 26, 24, 28, 24, 28, 22, 24, 24, 30, 28, 28, 26, 28, 30, 24, 30, 30, 30, 30, 30, 30, 30, 30,
        30, 30, 30, 30, 30, 30, 30, 30, 30, 30,
    ],
];
/// Blocks, by level and version (table 9).
const BLOCKS: [[u8; 40]; 4] = [
    [
        1, 1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 4, 4, 6, 6, 6, 6, 7, 8, 8, 9, 9, 10, 12, 12, 12, 13, 14, 15, 16, 17, 18, 19, 19, 20,
        21, 22, 24, 25,
    ],
    [
        1, 1, 1, 2, 2, 4, 4, 4, 5, 5, 5, 8, 9, 9, 10, 10, 11, 13, 14, 16, 17, 17, 18, 20, 21, 23, 25, 26, 28, 29, 31, 33, 35, 37,
        38, 40, 43, 45, 47, 49,
    ],
    [
        1, 1, 2, 2, 4, 4, 6, 6, 8, 8, 8, 10, 12, 16, 12, 17, 16, 18, 21, 20, 23, 23, 25, 27, 29, 34, 34, 35, 38, 40, 43, 45, 48,
        51, 53, 56, 59, 62, 65, 68,
    ],
    [
        1, 1, 2, 4, 4, 4, 5, 6, 8, 8, 11, 11, 16, 16, 18, 16, 19, 21, 25, 25, 25, 34, 30, 32, 35, 37, 40, 42, 45, 48, 51, 54, 57,
        60, 63, 66, 70, 74, 77, 81,
    ],
];
/// Which row of these a level's two bits mean.
const LEVELS: [usize; 4] = [1, 0, 3, 2];
/// The letters of alphanumeric segments (table 5).
const LETTERS: &[u8; 45] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ $%*+-./:";

/// Modules a side.
pub(super) const fn size(version: usize) -> usize {
    17 + 4 * version
}

/// Where alignment patterns have their middle, in both directions (annex E). Empty in the first version.
pub(super) fn alignment(version: usize) -> Vec<usize> {
    if version == 1 {
        return Vec::new();
    }
    let count = version / 7 + 2;
    let step = if version == 32 { 26 } else { (version * 4 + count * 2 + 1) / (count * 2 - 2) * 2 };
    let mut places: Vec<usize> = (0..count - 1).map(|at| size(version) - 7 - at * step).collect();
    places.push(6);
    places.reverse();
    places
}

/// The modules of a code, as a camera saw them.
pub(super) struct Modules {
    version: usize,
    size: usize,
    dark: Vec<bool>,
}

impl Modules {
    /// `dark` is asked for each module, by x and y.
    pub(super) fn new(version: usize, dark: impl Fn(usize, usize) -> bool) -> Option<Self> {
        let size = (1..=40).contains(&version).then(|| size(version))?;
        let dark = (0..size * size).map(|at| dark(at % size, at / size)).collect();
        Some(Self { version, size, dark })
    }

    fn is_dark(&self, x: usize, y: usize) -> bool {
        self.dark[y * self.size + x]
    }

    /// The text, if what is damaged can be repaired.
    pub(super) fn text(&self) -> Option<String> {
        let (level, mask) = self.format()?;
        let data = self.repaired(level, &self.codewords(mask))?;
        String::from_utf8(segments(&data, self.version)?).ok()
    }

    /// The row of the tables and the mask: the nearest of the 32 formats to either of two copies, at most 3 bits away.
    fn format(&self) -> Option<(usize, usize)> {
        let end = self.size;
        let first = (0..6).map(|at| (8, at)).chain([(8, 7), (8, 8), (7, 8)]).chain((9..15).map(|at| (14 - at, 8)));
        let second = (0..8).map(|at| (end - 1 - at, 8)).chain((8..15).map(|at| (8, end - 15 + at)));
        let bits = |places: &mut dyn Iterator<Item = (usize, usize)>| {
            places.enumerate().fold(0_u32, |bits, (at, (x, y))| bits | u32::from(self.is_dark(x, y)) << at)
        };
        let seen = [bits(&mut first.into_iter()), bits(&mut second.into_iter())];
        let away = |format: u32| seen.iter().map(|bits| (bits ^ protected(format)).count_ones()).min();
        let (distance, format) = (0..32).filter_map(|format| Some((away(format)?, format))).min()?;
        (distance <= 3).then(|| (LEVELS[(format >> 3) as usize], (format & 7) as usize))
    }

    /// Whether a module belongs to a pattern and has no data.
    fn is_pattern(&self, x: usize, y: usize, alignment: &[usize]) -> bool {
        let end = self.size;
        let finder = (x < 9 && (y < 9 || y >= end - 8)) || (x >= end - 8 && y < 9);
        let version = self.version >= 7 && ((x < 6 && y >= end - 11) || (y < 6 && x >= end - 11));
        let near = |at: usize| alignment.iter().find(|place| place.abs_diff(at) <= 2);
        let aligned = near(x).zip(near(y)).is_some_and(|(x, y)| {
            let last = end - 7;
            !matches!((*x, *y), (6, 6)) && (*x, *y) != (6, last) && (*x, *y) != (last, 6)
        });
        finder || version || x == 6 || y == 6 || aligned
    }

    /// All codewords in the order in which they stand, without the mask.
    fn codewords(&self, mask: usize) -> Vec<u8> {
        let places = alignment(self.version);
        let mut bits = Vec::with_capacity(self.dark.len());
        let columns = (0..self.size).rev().filter(|x| *x != 6).collect::<Vec<_>>();
        for (pair, columns) in columns.chunks(2).enumerate() {
            for row in 0..self.size {
                let y = if pair % 2 == 0 { self.size - 1 - row } else { row };
                for &x in columns.iter().filter(|x| !self.is_pattern(**x, y, &places)) {
                    bits.push(self.is_dark(x, y) ^ is_masked(mask, x, y));
                }
            }
        }
        bits.chunks_exact(8).map(|byte| byte.iter().fold(0, |byte, bit| byte << 1 | u8::from(*bit))).collect()
    }

    /// The data of all blocks, one after the other, repaired.
    fn repaired(&self, level: usize, codewords: &[u8]) -> Option<Vec<u8>> {
        let blocks = usize::from(BLOCKS[level][self.version - 1]);
        let repair = usize::from(REPAIR[level][self.version - 1]);
        let short = codewords.len() / blocks;
        let longer = codewords.len() % blocks;
        // Longer blocks have one byte of data more, and come last.
        let data_of = |block: usize| short - repair + usize::from(block >= blocks - longer);
        let data_total: usize = (0..blocks).map(data_of).sum();
        let mut data = Vec::with_capacity(data_total);
        for block in 0..blocks {
            let of_data = (0..data_of(block)).map(|at| match at < short - repair {
                true => codewords[at * blocks + block],
                false => codewords[at * blocks + block - (blocks - longer)],
            });
            let of_repair = (0..repair).map(|at| codewords[data_total + at * blocks + block]);
            let mut whole: Vec<u8> = of_data.chain(of_repair).collect();
            repair_block(&mut whole, repair)?;
            data.extend_from_slice(&whole[..whole.len() - repair]);
        }
        Some(data)
    }
}

/// A format's five bits with the ten that protect them, masked (§7.9).
const fn protected(format: u32) -> u32 {
    let (mut rest, mut round) = (format, 0);
    while round < 10 {
        rest = (rest << 1) ^ ((rest >> 9) * 0x537);
        round += 1;
    }
    (format << 10 | rest) ^ 0x5412
}

/// Whether a mask inverts a module (table 10).
const fn is_masked(mask: usize, x: usize, y: usize) -> bool {
    0 == match mask {
        0 => (x + y) % 2,
        1 => y % 2,
        2 => x % 3,
        3 => (x + y) % 3,
        4 => (x / 3 + y / 2) % 2,
        5 => x * y % 2 + x * y % 3,
        6 => (x * y % 2 + x * y % 3) % 2,
        _ => ((x + y) % 2 + x * y % 3) % 2,
    }
}

/// Powers of 2 in GF(2⁸) modulo x⁸ + x⁴ + x³ + x² + 1, and what is a power of what.
const POWERS: ([u8; 255], [u8; 256]) = {
    let (mut powers, mut logs) = ([0; 255], [0; 256]);
    let (mut value, mut at) = (1_u32, 0);
    while at < 255 {
        powers[at] = value as u8;
        logs[value as usize] = at as u8;
        value = (value << 1) ^ ((value >> 7) * 0x11d);
        at += 1;
    }
    (powers, logs)
};

fn power(of: usize) -> u8 {
    POWERS.0[of % 255]
}

fn times(a: u8, b: u8) -> u8 {
    let log = |value: u8| usize::from(POWERS.1[usize::from(value)]);
    if a == 0 || b == 0 { 0 } else { power(log(a) + log(b)) }
}

fn inverse(of: u8) -> u8 {
    power(255 - usize::from(POWERS.1[usize::from(of)]))
}

/// The value of a polynomial, its lowest coefficient first.
fn value(polynomial: &[u8], at: u8) -> u8 {
    polynomial.iter().rev().fold(0, |sum, coefficient| times(sum, at) ^ coefficient)
}

/// Reed-Solomon (annex B), by Berlekamp and Massey, Chien and Forney. `None` where there are too many errors.
fn repair_block(block: &mut [u8], repair: usize) -> Option<()> {
    let syndromes =
        |block: &[u8]| (0..repair).map(|at| block.iter().fold(0, |sum, byte| times(sum, power(at)) ^ byte)).collect::<Vec<u8>>();
    let wrong = syndromes(block);
    if wrong.iter().all(|syndrome| *syndrome == 0) {
        return Some(());
    }
    let (mut locator, mut former) = (vec![1_u8], vec![1_u8]);
    let (mut errors, mut gap, mut former_step) = (0, 1, 1_u8);
    for at in 0..repair {
        let step = (0..=errors.min(locator.len() - 1)).fold(0, |sum, back| sum ^ times(locator[back], wrong[at - back]));
        if step == 0 {
            gap += 1;
            continue;
        }
        let factor = times(step, inverse(former_step));
        let mut next = locator.clone();
        next.resize(locator.len().max(former.len() + gap), 0);
        former.iter().enumerate().for_each(|(place, value)| next[place + gap] ^= times(factor, *value));
        if 2 * errors <= at {
            errors = at + 1 - errors;
            (former, former_step, gap) = (locator, step, 1);
        } else {
            gap += 1;
        }
        locator = next;
    }
    let mut evaluator: Vec<u8> = vec![0; repair];
    for (place, value) in locator.iter().enumerate() {
        (place..repair).for_each(|at| evaluator[at] ^= times(*value, wrong[at - place]));
    }
    let slope: Vec<u8> = locator.iter().enumerate().skip(1).map(|(at, value)| if at % 2 == 1 { *value } else { 0 }).collect();
    for place in 0..block.len() {
        let root = power(255 - place);
        if value(&locator, root) == 0 {
            let divisor = Some(value(&slope, root)).filter(|divisor| *divisor != 0)?;
            let at = block.len() - 1 - place;
            block[at] ^= times(power(place), times(value(&evaluator, root), inverse(divisor)));
        }
    }
    syndromes(block).iter().all(|syndrome| *syndrome == 0).then_some(())
}

/// The bytes of all segments (§7.4): digits, letters and bytes. Of others there is no text.
fn segments(data: &[u8], version: usize) -> Option<Vec<u8>> {
    let mut at = 0;
    let mut take = |count: usize| {
        let end = Some(at + count).filter(|end| *end <= 8 * data.len())?;
        let value = (at..end).fold(0, |value, bit| value << 1 | usize::from(data[bit / 8] >> (7 - bit % 8) & 1));
        at = end;
        Some(value)
    };
    let class = usize::from(version > 9) + usize::from(version > 26);
    let mut text = Vec::new();
    while let Some(mode) = take(4).filter(|mode| *mode != 0) {
        let (letters, bits) = match mode {
            1 => (3, [10, 12, 14]),
            2 => (2, [9, 11, 13]),
            4 => (1, [8, 16, 16]),
            _ => return None,
        };
        let mut left = take(bits[class])?;
        while left > 0 {
            let now = left.min(letters);
            left -= now;
            match mode {
                1 => {
                    let value = take([0, 4, 7, 10][now])?;
                    text.extend_from_slice(format!("{value:0now$}").as_bytes());
                }
                2 => {
                    let value = take([0, 6, 11][now])?;
                    let letter = |value: usize| LETTERS.get(value).copied();
                    if now == 2 {
                        text.push(letter(value / 45)?);
                    }
                    text.push(letter(value % 45)?);
                }
                _ => text.push(take(8)? as u8),
            }
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use qrcodegen::{Mask, QrCode, QrCodeEcc, QrSegment, Version};

    use super::*;

    fn modules(code: &QrCode, is_wrong: impl Fn(usize, usize) -> bool) -> Modules {
        let dark = |x, y| code.get_module(i32::try_from(x).unwrap(), i32::try_from(y).unwrap());
        Modules::new(usize::from(code.version().value()), |x, y| dark(x, y) ^ is_wrong(x, y)).unwrap()
    }

    #[test]
    fn every_version_and_level_is_read_and_repaired() {
        let levels = [(QrCodeEcc::Low, 1), (QrCodeEcc::Medium, 2), (QrCodeEcc::Quartile, 3), (QrCodeEcc::High, 4)];
        for version in 1..=40 {
            for (number, (level, strength)) in levels.into_iter().enumerate() {
                let mask = (usize::from(version) + number) % 8;
                let segments = [
                    QrSegment::make_numeric("31415926"),
                    QrSegment::make_alphanumeric("A:/Z9"),
                    QrSegment::make_bytes("é".as_bytes()),
                ];
                let segments = if version < 3 { &segments[..1] } else { &segments[..] };
                let exactly = Version::new(version);
                let code =
                    QrCode::encode_segments_advanced(segments, level, exactly, exactly, Some(Mask::new(mask as u8)), false)
                        .unwrap();
                let text = if version < 3 { "31415926" } else { "31415926A:/Z9é" };
                assert_eq!(modules(&code, |_, _| false).text().as_deref(), Some(text), "version {version}, mask {mask}");
                // A stroke of a pen in a corner, longer where there is more for repair.
                let end = size(version.into()) - 1;
                let stroke = modules(&code, |x, y| x == end && y > end - 4 * strength);
                assert_eq!(stroke.text().as_deref(), Some(text), "version {version}, {strength}");
                // All of it is too much.
                assert_eq!(modules(&code, |x, y| x > 8 && y > 8).text(), None, "version {version}");
            }
        }
        assert!(Modules::new(0, |_, _| true).is_none() && Modules::new(41, |_, _| true).is_none());
    }

    #[test]
    fn whatever_was_written_there_is_an_answer() {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for round in 0..4000 {
            let data: Vec<u8> = (0..random() % 60).map(|_| random() as u8).collect();
            let _ = segments(&data, 1 + round % 40);
            let mut block: Vec<u8> = (0..1 + random() % 150).map(|_| random() as u8).collect();
            let repair = (random() as usize % 31).min(block.len());
            let _ = repair_block(&mut block, repair);
        }
        for version in 1..=40 {
            let noise: Vec<bool> = (0..size(version) * size(version)).map(|_| random() & 1 == 0).collect();
            assert_eq!(Modules::new(version, |x, y| noise[y * size(version) + x]).unwrap().text(), None, "version {version}");
        }
    }
}
