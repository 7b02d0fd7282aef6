//! Codes for cameras (ISO/IEC 18004): what a screen shows for another device to scan, and what that one makes of its camera's pictures.
//! How they are drawn, and where pictures come from, is a shell's.

mod modules;
mod picture;

use picture::Picture;
use qrcodegen::{QrCode, QrCodeEcc};

/// Light modules around a code (ISO/IEC 18004 §9.1).
const QUIET: i32 = 4;
/// A text with more bytes is written with less to repair it by: on a screen nothing is torn off, and larger modules are worth more.
const LARGE: usize = 500;
/// The largest picture that is read, in pixels.
const PIXELS_MAX: usize = 4 << 20;

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
    let least = if text.len() > LARGE { QrCodeEcc::Low } else { QrCodeEcc::Medium };
    QrCode::encode_text(text, least).ok().map(Code)
}

/// The text of a code in a picture; `None` where none can be read. A picture is shades from 0, which is dark, row by row, `width` in each;
/// what is left over of a row is not looked at.
#[must_use]
pub fn read(shades: &[u8], width: usize) -> Option<String> {
    let height = shades.len().checked_div(width)?;
    let is_picture = width.min(height) >= modules::size(1) && shades.len() <= PIXELS_MAX;
    is_picture.then(|| Picture::new(shades, width, height).text())?
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
#[expect(clippy::cast_possible_truncation, reason = "pixels and random numbers are cut to size")]
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

    /// What a camera of this size makes of a code that fills so much of its picture, turned by so much: each pixel sees the middle of nine
    /// points around it.
    fn seen(code: &Code, (width, height): (u32, u32), fills: f64, turned: f64) -> Vec<u8> {
        let module = f64::from(height) * fills / f64::from(code.size());
        let (sin, cos) = turned.to_radians().sin_cos();
        let at = |x: f64, y: f64| {
            let (x, y) = (x - f64::from(width) / 2.0, y - f64::from(height) / 2.0);
            let middle = f64::from(code.size()) / 2.0;
            code.is_dark(
                ((cos * x + sin * y) / module + middle).floor() as i32,
                ((cos * y - sin * x) / module + middle).floor() as i32,
            )
        };
        let around = [0.0, 0.5, 1.0];
        let shade = |x: u32, y: u32| {
            let points = around.iter().flat_map(|dx| around.iter().map(move |dy| (f64::from(x) + dx, f64::from(y) + dy)));
            let dark = points.filter(|(x, y)| at(*x, *y)).count();
            u8::try_from(210 - 19 * dark).unwrap()
        };
        (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).map(|(x, y)| shade(x, y)).collect()
    }

    #[test]
    fn what_one_screen_shows_the_camera_of_another_device_reads() {
        let device = format!("waxwing:device:{}", "Ab0_-zQ9".repeat(213));
        for (text, fills) in [("https://localhost:4433/#rAAAA", 0.3), (&"x".repeat(170), 0.5), (&device, 0.95)] {
            let code = encode(text).unwrap();
            for turned in [0.0, 2.0, 90.0, 185.0] {
                let picture = seen(&code, (1280, 720), fills, turned);
                assert_eq!(read(&picture, 1280).as_deref(), Some(text), "{} modules, turned by {turned}", code.size());
            }
        }
    }

    #[test]
    fn whatever_a_picture_is_there_is_an_answer() {
        let code = encode("waxwing:verify:person:AAAA").unwrap();
        let whole = seen(&code, (320, 240), 0.9, 3.0);
        assert!(read(&whole, 320).is_some());
        for cut in [0, 1, 319, 320, 321, 40_000, whole.len() - 1] {
            assert_eq!(read(&whole[..cut], 320).filter(|_| cut < 40_000), None, "{cut} of {}", whole.len());
        }
        for width in [0, 1, 2, 7, 319, 321, 640, whole.len(), usize::MAX] {
            let _ = read(&whole, width);
        }
        assert_eq!(read(&vec![0; PIXELS_MAX + 1], 2048), None);
        // xorshift64
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for round in 0..40 {
            let width = 1 + random() % 300;
            let noise: Vec<u8> = (0..width * (1 + random() % 200)).map(|_| random() as u8).collect();
            assert_eq!(read(&noise, width as usize), None);
            // A code of which a part is noise.
            let mut spoilt = whole.clone();
            let from = random() as usize % spoilt.len();
            let spoilt_pixels = (random() as usize % 20_000).min(spoilt.len() - from);
            spoilt[from..from + spoilt_pixels].iter_mut().for_each(|pixel| *pixel = random() as u8);
            assert!(read(&spoilt, 320).is_none_or(|text| text == "waxwing:verify:person:AAAA"), "round {round}");
        }
    }
}
