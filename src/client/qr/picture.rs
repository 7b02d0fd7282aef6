//! From a camera's picture to the modules of a code: three finders, then alignment patterns one after the other, each of which says
//! better where the next one is.
#![expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float's conversion to an integer saturates")]
#![expect(clippy::indexing_slicing, reason = "indices come from the length of what they are used on")]
#![expect(clippy::cast_precision_loss, reason = "places in a picture are small numbers")]

use super::modules::{Modules, alignment, size};

/// Finders that are looked at together, the most often seen ones: the number of their triples is what a hostile picture costs.
const FINDERS_MAX: usize = 10;
/// What may be one and is remembered; what has more is no picture of a code.
const SIGHTS_MAX: usize = 256;
/// Beyond every picture.
const PLACE_MAX: f64 = 1e7;
/// Triples of them that are tried, the likeliest first.
const TRIPLES_MAX: usize = 6;
/// By how much darker than its surroundings a module is, in shades.
const DARKER: u32 = 6;

type Point = (f64, f64);

/// A picture, with the sums that tell how bright a part of it is.
pub(super) struct Picture<'a> {
    shades: &'a [u8],
    width: usize,
    height: usize,
    sums: Vec<u32>,
}

/// One of the three large squares.
#[derive(Clone, Copy)]
struct Finder {
    at: Point,
    /// Pixels a module, along the picture's rows and columns.
    module: f64,
    seen: u32,
}

impl<'a> Picture<'a> {
    /// Whole rows of pixels.
    pub(super) fn new(shades: &'a [u8], width: usize, height: usize) -> Self {
        let mut sums = vec![0; width + 1];
        for row in shades.chunks_exact(width).take(height) {
            let above = sums.len() - width - 1;
            sums.push(0);
            let mut sum = 0;
            for (x, shade) in row.iter().enumerate() {
                sum += u32::from(*shade);
                sums.push(sum + sums.get(above + x + 1).copied().unwrap_or_default());
            }
        }
        Self { shades, width, height, sums }
    }

    fn shade(&self, x: usize, y: usize) -> u8 {
        let (x, y) = (x.min(self.width - 1), y.min(self.height - 1));
        self.shades.get(y * self.width + x).copied().unwrap_or(u8::MAX)
    }

    /// Between pixels.
    fn shade_at(&self, (x, y): Point) -> f64 {
        // What is nowhere, because a plane is degenerate, is at the edge.
        let (x, y) = ((x - 0.5).clamp(0.0, PLACE_MAX), (y - 0.5).clamp(0.0, PLACE_MAX));
        let (left, top) = (x as usize, y as usize);
        let (right, below) = (x - left as f64, y - top as f64);
        let shade = |x, y| f64::from(self.shade(x, y));
        let upper = shade(left, top) * (1.0 - right) + shade(left + 1, top) * right;
        let lower = shade(left, top + 1) * (1.0 - right) + shade(left + 1, top + 1) * right;
        upper * (1.0 - below) + lower * below
    }

    /// Which pixels are darker than what is around them.
    fn dark(&self) -> Vec<bool> {
        let around = (self.width.min(self.height) / 8).max(8);
        let sum = |x: usize, y: usize| self.sums.get(y * (self.width + 1) + x).copied().unwrap_or_default();
        let mut dark = Vec::with_capacity(self.width * self.height);
        for y in 0..self.height {
            let (top, bottom) = (y.saturating_sub(around), (y + around + 1).min(self.height));
            for x in 0..self.width {
                let (left, right) = (x.saturating_sub(around), (x + around + 1).min(self.width));
                let total = sum(right, bottom) + sum(left, top) - sum(left, bottom) - sum(right, top);
                let pixels = ((right - left) * (bottom - top)) as u32;
                dark.push((u32::from(self.shade(x, y)) + DARKER) * pixels < total);
            }
        }
        dark
    }

    /// The text of the first code that can be read.
    pub(super) fn text(&self) -> Option<String> {
        let finders = self.finders();
        triples(&finders).into_iter().take(TRIPLES_MAX).find_map(|triple| self.text_between(triple))
    }

    fn finders(&self) -> Vec<Finder> {
        let dark = self.dark();
        let is_dark = |x: usize, y: usize| dark.get(y * self.width + x).copied().unwrap_or_default();
        let mut finders: Vec<Finder> = Vec::new();
        for y in 0..self.height {
            let mut runs = [0_u32; 5];
            let mut was = false;
            for x in 0..=self.width {
                let now = x < self.width && is_dark(x, y);
                if now != was {
                    if was && let Some(module) = finder_runs(&runs) {
                        let [.., third, fourth, fifth] = runs;
                        let middle = x as f64 - f64::from(fourth + fifth) - f64::from(third) / 2.0;
                        let down = |step: isize| {
                            y.checked_add_signed(step).filter(|y| *y < self.height).map(|y| is_dark(middle as usize, y))
                        };
                        if let Some((below, module_down)) = crossed(down, 3.0 * module) {
                            note(&mut finders, (middle, y as f64 + below), f64::midpoint(module, module_down));
                        }
                    }
                    runs.rotate_left(1);
                    runs[4] = 0;
                    was = now;
                }
                runs[4] += 1;
            }
        }
        finders.retain(|finder| finder.seen > 1);
        finders.sort_by_key(|finder| core::cmp::Reverse(finder.seen));
        finders.truncate(FINDERS_MAX);
        finders
    }

    /// The size that the finders' distance speaks of, and those beside it: a module more or less between them is soon mistaken.
    fn text_between(&self, [corner, right, below]: [Finder; 3]) -> Option<String> {
        let modules = |one: Finder, other: Finder| {
            let (x, y) = (other.at.0 - one.at.0, other.at.1 - one.at.1);
            // A square that is turned is wider along rows and columns.
            let upright = x.abs().max(y.abs()) / x.hypot(y);
            x.hypot(y) / (f64::midpoint(one.module, other.module) * upright)
        };
        let guess = (f64::midpoint(modules(corner, right), modules(corner, below)) + 7.0 - 17.0) / 4.0;
        let mut versions: Vec<usize> = (1..=40).filter(|version| (*version as f64 - guess).abs() <= 3.0).collect();
        versions.sort_by(|one, other| (*one as f64 - guess).abs().total_cmp(&(*other as f64 - guess).abs()));
        versions.into_iter().find_map(|version| self.text_of(version, [corner.at, right.at, below.at]))
    }

    fn text_of(&self, version: usize, [corner, right, below]: [Point; 3]) -> Option<String> {
        let far = size(version) as f64 - 3.5;
        let near = 3.5;
        let mut known = vec![((near, near), corner), ((far, near), right), ((near, far), below)];
        // Without perspective; it stands for the fourth corner until something better is found.
        let guess = ((far, far), (right.0 + below.0 - corner.0, right.1 + below.1 - corner.1));
        let mut plane = Plane::through(known.iter().chain([&guess]))?;
        let contrast = [corner, right, below].map(|at| self.contrast(at, &plane)).into_iter().fold(f64::MAX, f64::min);
        let places = alignment(version);
        let last = places.last().copied().unwrap_or_default();
        let mut wanted: Vec<Point> = places
            .iter()
            .flat_map(|y| places.iter().map(|x| (*x, *y)))
            .filter(|place| ![(6, 6), (6, last), (last, 6)].contains(place))
            .map(|(x, y)| (x as f64 + 0.5, y as f64 + 0.5))
            .collect();
        let (all, mut found) = (wanted.len(), 0);
        while !wanted.is_empty() {
            // The nearest to what is known is the least mistaken.
            let distance =
                |place: &Point| known.iter().map(|(at, _)| (at.0 - place.0).hypot(at.1 - place.1)).fold(f64::MAX, f64::min);
            let nearest = (0..wanted.len()).min_by(|one, other| distance(&wanted[*one]).total_cmp(&distance(&wanted[*other])))?;
            let place = wanted.swap_remove(nearest);
            let reach = (1.0 + distance(&place) / 20.0).min(4.0);
            if let Some(at) = self.aligned(place, &plane, reach, contrast) {
                known.push((place, at));
                found += 1;
                let guess = (known.len() < 5).then_some(&guess);
                plane = Plane::through(known.iter().chain(guess))?;
            }
        }
        if 2 * found < all {
            return None;
        }
        self.modules(version, &plane).and_then(|modules| modules.text())
    }

    /// How much darker than its ring a finder's middle is.
    fn contrast(&self, at: Point, plane: &Plane) -> f64 {
        let (u, v) = plane.back(at);
        let ring = [(2.0, 0.0), (-2.0, 0.0), (0.0, 2.0), (0.0, -2.0)].map(|(du, dv)| self.shade_at(plane.at((u + du, v + dv))));
        ring.iter().sum::<f64>() / 4.0 - self.shade_at(at)
    }

    /// Where the alignment pattern is that should be at a place, at most `reach` modules away from where it seems to be.
    fn aligned(&self, place: Point, plane: &Plane, reach: f64, contrast: f64) -> Option<Point> {
        let score = |middle: Point| {
            let (mut dark, mut light) = (0.0, 0.0);
            for (du, dv) in (-2..=2).flat_map(|du: i32| (-2..=2).map(move |dv: i32| (du, dv))) {
                let shade = self.shade_at(plane.at((middle.0 + f64::from(du), middle.1 + f64::from(dv))));
                *(if du.abs().max(dv.abs()) == 1 { &mut light } else { &mut dark }) += shade;
            }
            light / 8.0 - dark / 17.0
        };
        let best_around = |middle: Point, reach: f64, step: f64| {
            let steps = (reach / step).ceil() as i32;
            let offsets =
                (-steps..=steps).flat_map(|du| (-steps..=steps).map(move |dv| (f64::from(du) * step, f64::from(dv) * step)));
            offsets
                .map(|(du, dv)| (middle.0 + du, middle.1 + dv))
                .map(|at| (score(at), at))
                .max_by(|one, other| one.0.total_cmp(&other.0))
        };
        let (_, roughly) = best_around(place, reach, 0.5)?;
        let (score, at) = best_around(roughly, 0.375, 0.125)?;
        (score > 0.4 * contrast).then(|| plane.at(at))
    }

    /// Each module is compared with those around it, and sharpened by its neighbours, of whose light a camera's lens gives it a part.
    fn modules(&self, version: usize, plane: &Plane) -> Option<Modules> {
        let size = size(version);
        let shades: Vec<f64> =
            (0..size * size).map(|at| self.shade_at(plane.at(((at % size) as f64 + 0.5, (at / size) as f64 + 0.5)))).collect();
        let shade = |x: usize, y: usize| shades.get(y.min(size - 1) * size + x.min(size - 1)).copied().unwrap_or_default();
        Modules::new(version, |x, y| {
            let (mut sum, mut count) = (0.0, 0.0);
            for (x, y) in (y.saturating_sub(4)..(y + 5).min(size))
                .flat_map(|y| (x.saturating_sub(4)..(x + 5).min(size)).map(move |x| (x, y)))
            {
                sum += shade(x, y);
                count += 1.0;
            }
            let beside = shade(x.saturating_sub(1), y) + shade(x + 1, y) + shade(x, y.saturating_sub(1)) + shade(x, y + 1);
            shade(x, y) + 0.15 * (4.0 * shade(x, y) - beside) < sum / count
        })
    }
}

/// Whether five runs are those across a finder, 1 : 1 : 3 : 1 : 1; how long a module is.
fn finder_runs(runs: &[u32; 5]) -> Option<f64> {
    let module = f64::from(runs.iter().sum::<u32>()) / 7.0;
    let fits = |run: u32, modules: f64| (f64::from(run) - modules * module).abs() <= module * (0.4 + 0.2 * modules);
    let [first, second, third, fourth, fifth] = *runs;
    (module >= 1.0 && fits(first, 1.0) && fits(second, 1.0) && fits(third, 3.0) && fits(fourth, 1.0) && fits(fifth, 1.0))
        .then_some(module)
}

/// Goes from a point within a finder's middle both ways, until the picture ends or a run is longer than `longest`; says how far from that
/// point the middle is, and how long a module.
fn crossed(dark: impl Fn(isize) -> Option<bool>, longest: f64) -> Option<(f64, f64)> {
    let limit = (2.0 * longest) as isize + 2;
    let run = |from: isize, way: isize, wanted: bool| {
        let mut at = from;
        while dark(at) == Some(wanted) && (at - from).abs() <= limit {
            at += way;
        }
        at
    };
    let [up, down] = [-1, 1].map(|way| {
        let middle = run(0, way, true);
        let ring = run(middle, way, false);
        [middle, ring, run(ring, way, true)]
    });
    let lengths = [up[1] - up[2], up[0] - up[1], down[0] - up[0] - 1, down[1] - down[0], down[2] - down[1]];
    let runs = lengths.map(|length| u32::try_from(length).unwrap_or_default());
    let module = finder_runs(&runs)?;
    Some(((up[0] + down[0] + 1) as f64 / 2.0, module))
}

/// Adds a sight of a finder to the one that it is of.
fn note(finders: &mut Vec<Finder>, at: Point, module: f64) {
    let is_same = |known: &&mut Finder| (known.at.0 - at.0).abs().max((known.at.1 - at.1).abs()) < 3.0 * known.module;
    if let Some(known) = finders.iter_mut().find(is_same) {
        let (before, now) = (f64::from(known.seen), f64::from(known.seen) + 1.0);
        let mean = |old: f64, new: f64| (old * before + new) / now;
        *known = Finder {
            at: (mean(known.at.0, at.0), mean(known.at.1, at.1)),
            module: mean(known.module, module),
            seen: known.seen + 1,
        };
    } else if finders.len() < SIGHTS_MAX {
        finders.push(Finder { at, module, seen: 1 });
    }
}

/// Three finders that may be one code's, the likeliest first: corner, the one to its right, the one below.
fn triples(finders: &[Finder]) -> Vec<[Finder; 3]> {
    let mut found = Vec::new();
    for corner in 0..finders.len() {
        for one in 0..finders.len() {
            for other in 0..one {
                let (Some(corner), Some(one), Some(other)) = (finders.get(corner), finders.get(one), finders.get(other)) else {
                    continue;
                };
                let leg = |to: &Finder| (to.at.0 - corner.at.0, to.at.1 - corner.at.1);
                let ((x1, y1), (x2, y2)) = (leg(one), leg(other));
                let (first, second) = (x1.hypot(y1), x2.hypot(y2));
                let longest = first.max(second);
                if first.min(second) < 10.0 * corner.module {
                    continue;
                }
                let modules = [corner.module, one.module, other.module];
                let spread = modules.iter().copied().fold(0.0, f64::max) / modules.iter().copied().fold(f64::MAX, f64::min) - 1.0;
                let unlikely = (first - second).abs() / longest + (x1 * x2 + y1 * y2).abs() / (first * second) + spread;
                if unlikely < 1.0 {
                    let turns_right = x1 * y2 - y1 * x2 > 0.0;
                    found.push((unlikely, if turns_right { [*corner, *one, *other] } else { [*corner, *other, *one] }));
                }
            }
        }
    }
    found.sort_by(|one, other| one.0.total_cmp(&other.0));
    found.into_iter().map(|(_, triple)| triple).collect()
}

/// How a flat code lies in a picture: a projective map from modules to pixels, both in units in which the equations are well conditioned.
struct Plane([f64; 8]);

const MODULES: f64 = 64.0;
const PIXELS: f64 = 512.0;

impl Plane {
    /// The map that comes nearest to all pairs of a module's place and a pixel's, of which there are at least four.
    fn through<'a>(pairs: impl Iterator<Item = &'a (Point, Point)>) -> Option<Self> {
        // Normal equations, with the right side as the last column.
        let mut rows = [[0.0; 9]; 8];
        for ((u, v), (x, y)) in pairs {
            let (u, v, x, y) = (u / MODULES, v / MODULES, x / PIXELS, y / PIXELS);
            for row in [[u, v, 1.0, 0.0, 0.0, 0.0, -u * x, -v * x, x], [0.0, 0.0, 0.0, u, v, 1.0, -u * y, -v * y, y]] {
                for (sums, one) in rows.iter_mut().zip(row) {
                    sums.iter_mut().zip(row).for_each(|(sum, other)| *sum += one * other);
                }
            }
        }
        solve(rows).map(Self)
    }

    fn at(&self, (u, v): Point) -> Point {
        let [a, b, c, d, e, f, g, h] = self.0;
        let (u, v) = (u / MODULES, v / MODULES);
        let scale = PIXELS / (g * u + h * v + 1.0);
        ((a * u + b * v + c) * scale, (d * u + e * v + f) * scale)
    }

    /// From a pixel to a module.
    fn back(&self, (x, y): Point) -> Point {
        let [a, b, c, d, e, f, g, h] = self.0;
        let (x, y) = (x / PIXELS, y / PIXELS);
        let (a, b, c) = (a - g * x, b - h * x, x - c);
        let (d, e, f) = (d - g * y, e - h * y, y - f);
        let scale = MODULES / (a * e - b * d);
        ((c * e - b * f) * scale, (a * f - c * d) * scale)
    }
}

/// Elimination by Gauß, with pivots; `None` where the equations do not say enough.
fn solve(mut rows: [[f64; 9]; 8]) -> Option<[f64; 8]> {
    for at in 0..8 {
        let pivot = (at..8).max_by(|one, other| rows[*one][at].abs().total_cmp(&rows[*other][at].abs()))?;
        rows.swap(at, pivot);
        let row = rows[at];
        if row[at].abs() < 1e-12 || !row[at].is_finite() {
            return None;
        }
        for (_, other) in rows.iter_mut().enumerate().filter(|(other, _)| *other != at) {
            let factor = other[at] / row[at];
            other.iter_mut().zip(row).for_each(|(value, of_row)| *value -= factor * of_row);
        }
    }
    Some(core::array::from_fn(|at| rows[at][8] / rows[at][at]))
}
