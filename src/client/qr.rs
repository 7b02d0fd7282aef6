//! Codes for cameras (ISO/IEC 18004): what a screen shows for another device to scan. How they are drawn is a shell's.

use qrcodegen::{QrCode, QrCodeEcc};

/// Light modules around a code (ISO/IEC 18004 §9.1).
const QUIET: i32 = 4;

/// A code.
#[derive(Clone)]
pub struct Code(QrCode);

impl core::fmt::Debug for Code {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Code({} modules a side)", self.size())
    }
}

/// Makes the code of a text; `None` when it is longer than a code can be.
#[must_use]
pub fn encode(text: &str) -> Option<Code> {
    QrCode::encode_text(text, QrCodeEcc::Medium).ok().map(Code)
}

impl Code {
    /// Modules a side, with the quiet zone.
    #[must_use]
    pub fn size(&self) -> i32 {
        self.0.size() + 2 * QUIET
    }

    /// Whether a module is dark; what lies outside is light.
    #[must_use]
    pub fn is_dark(&self, x: i32, y: i32) -> bool {
        self.0.get_module(x - QUIET, y - QUIET)
    }

    /// Lines of text with two rows of modules each. Light modules are inked, as on a dark terminal.
    #[must_use]
    pub fn half_blocks(&self) -> Vec<String> {
        let inked = |x, y| y < self.size() && !self.is_dark(x, y);
        let block = |x, y| match (inked(x, y), inked(x, y + 1)) {
            (true, true) => '\u{2588}',
            (true, false) => '\u{2580}',
            (false, true) => '\u{2584}',
            (false, false) => ' ',
        };
        (0..self.size()).step_by(2).map(|y| (0..self.size()).map(|x| block(x, y)).collect()).collect()
    }

    /// An SVG path of the dark modules, in a box of [`Code::size`] a side.
    #[must_use]
    pub fn path(&self) -> String {
        let dark = (0..self.size()).flat_map(|y| (0..self.size()).map(move |x| (x, y))).filter(|(x, y)| self.is_dark(*x, *y));
        dark.map(|(x, y)| format!("M{x} {y}h1v1h-1z")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_drawn_alike_as_blocks_and_as_a_path() {
        let code = encode("waxwing:verify:person:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").unwrap();
        let lines: Vec<Vec<char>> = code.half_blocks().iter().map(|line| line.chars().collect()).collect();
        let light = |x: usize, y: usize| matches!((lines[y / 2][x], y % 2), ('\u{2588}', _) | ('\u{2580}', 0) | ('\u{2584}', 1));
        let path = code.path();
        let mut dark = 0;
        for (y, x) in (0..code.size()).flat_map(|y| (0..code.size()).map(move |x| (y, x))) {
            let is_dark = path.contains(&format!("M{x} {y}h"));
            assert_eq!(is_dark, !light(usize::try_from(x).unwrap(), usize::try_from(y).unwrap()), "{x} {y}");
            dark += usize::from(is_dark);
        }
        assert!(dark > 300);
        // A finder's corner, inside the quiet zone.
        assert!(code.is_dark(4, 4) && !code.is_dark(3, 3) && !code.is_dark(5, 5) && code.is_dark(6, 6));
        assert!(encode(&"x".repeat(3_000)).is_none());
    }
}
