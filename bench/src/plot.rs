//! Bar charts as SVG, readable on light and on dark ground.

use std::{fmt::Write as _, fs, path::Path};

/// Groups of bars, one bar a series.
#[derive(Debug)]
pub struct Bars<'a> {
    pub title: &'a str,
    pub unit: &'a str,
    pub groups: Vec<String>,
    /// Name, and a value for each group; NaN where there is none.
    pub series: Vec<(&'a str, Vec<f64>)>,
    /// Whether the axis is logarithmic.
    pub log: bool,
    /// A line across at this value, and what it means.
    pub mark: Option<(f64, &'a str)>,
}

const COLOURS: [&str; 8] = ["#8c8c8c", "#bdbdbd", "#d62728", "#1f77b4", "#2ca02c", "#ff7f0e", "#9467bd", "#17becf"];
const WIDTH: f64 = 880.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 200.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = 56.0;

impl Bars<'_> {
    /// Where on the axis a value is, from 0 (bottom) to 1.
    fn scale(&self) -> (f64, f64) {
        let values = self.series.iter().flat_map(|(_, values)| values).copied().chain(self.mark.map(|(value, _)| value));
        let values: Vec<f64> = values.filter(|value| value.is_finite() && *value > 0.0).collect();
        let high = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        if !self.log {
            return (0.0, high * 1.08);
        }
        let low = values.iter().copied().fold(f64::MAX, f64::min);
        (10_f64.powf((low * 0.7).log10().floor()), 10_f64.powf(high.log10().ceil()))
    }

    fn place(&self, value: f64) -> f64 {
        let (low, high) = self.scale();
        let share = if self.log { (value / low).log10() / (high / low).log10() } else { value / high };
        HEIGHT - BOTTOM - share.clamp(0.0, 1.0) * (HEIGHT - TOP - BOTTOM)
    }

    fn ticks(&self) -> Vec<f64> {
        let (low, high) = self.scale();
        if self.log {
            return std::iter::successors(Some(low), |tick| Some(tick * 10.0)).take_while(|tick| *tick <= high * 1.001).collect();
        }
        let step = 10_f64.powf(high.log10().floor());
        let step = [step / 5.0, step / 2.0, step, step * 2.0].into_iter().find(|step| high / step <= 7.0).unwrap_or(step);
        std::iter::successors(Some(0.0), |tick| Some(tick + step)).take_while(|tick| *tick <= high).collect()
    }

    /// The picture.
    pub fn to_svg(&self) -> String {
        let mut svg = String::new();
        let mut add = |text: std::fmt::Arguments<'_>| {
            svg.write_fmt(text).expect("memory takes everything");
            svg.push('\n');
        };
        add(format_args!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif" font-size="12">"#
        ));
        add(format_args!(r##"<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>"##));
        add(format_args!(r#"<text x="{LEFT}" y="20" font-size="15" font-weight="600">{}</text>"#, self.title));
        add(format_args!(r##"<text x="{LEFT}" y="38" fill="#555">{}</text>"##, self.unit));
        let right = WIDTH - RIGHT;
        for tick in self.ticks() {
            let y = self.place(tick);
            add(format_args!(r##"<line x1="{LEFT}" x2="{right}" y1="{y:.1}" y2="{y:.1}" stroke="#ddd"/>"##));
            let label = label(tick);
            add(format_args!(r##"<text x="{:.1}" y="{:.1}" text-anchor="end" fill="#555">{label}</text>"##, LEFT - 6.0, y + 4.0));
        }
        self.bars(&mut add);
        if let Some((value, meaning)) = self.mark {
            let y = self.place(value);
            add(format_args!(
                r##"<line x1="{LEFT}" x2="{right}" y1="{y:.1}" y2="{y:.1}" stroke="#000" stroke-dasharray="5 4"/>"##
            ));
            add(format_args!(r#"<text x="{:.1}" y="{:.1}">{meaning}</text>"#, right + 8.0, y + 4.0));
        }
        svg += "</svg>\n";
        svg
    }

    #[expect(clippy::cast_precision_loss, reason = "a handful of bars")]
    fn bars(&self, add: &mut impl FnMut(std::fmt::Arguments<'_>)) {
        let group = (WIDTH - LEFT - RIGHT) / self.groups.len().max(1) as f64;
        let bar = group * 0.84 / self.series.len().max(1) as f64;
        for (index, name) in self.groups.iter().enumerate() {
            let x = LEFT + group * (index as f64 + 0.5);
            add(format_args!(r#"<text x="{x:.1}" y="{:.1}" text-anchor="middle">{name}</text>"#, HEIGHT - BOTTOM + 18.0));
        }
        for (series, (name, values)) in self.series.iter().enumerate() {
            let colour = COLOURS[series % COLOURS.len()];
            for (index, value) in values.iter().enumerate().filter(|(_, value)| value.is_finite()) {
                let x = LEFT + group * (index as f64 + 0.08) + bar * series as f64;
                let (y, width) = (self.place(*value), (bar - 1.0).max(1.0));
                let height = HEIGHT - BOTTOM - y;
                add(format_args!(
                    r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill="{colour}"><title>{name}: {}</title></rect>"#,
                    super::report::number(*value)
                ));
            }
            let y = HEIGHT - BOTTOM - 18.0 * (self.series.len() - series) as f64;
            let x = WIDTH - RIGHT + 12.0;
            add(format_args!(r#"<rect x="{x}" y="{:.1}" width="12" height="12" fill="{colour}"/>"#, y - 10.0));
            add(format_args!(r#"<text x="{}" y="{y:.1}">{name}</text>"#, x + 18.0));
        }
    }

    pub fn write(&self, out: &Path, name: &str) -> anyhow::Result<()> {
        fs::create_dir_all(out)?;
        let path = out.join(format!("{name}.svg"));
        fs::write(&path, self.to_svg())?;
        eprintln!("drawn: {}", path.display());
        Ok(())
    }
}

fn label(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{} M", value / 1e6),
        value if value >= 1e3 => format!("{} k", value / 1e3),
        value => format!("{}", (value * 1000.0).round() / 1000.0),
    }
}
