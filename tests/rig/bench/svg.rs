//! A drawing of bars: what was measured, and the bounds on it. One file, no dependency, readable without a
//! program of its own.

use std::fmt::Write;

/// A group of panels under one title.
#[derive(Debug)]
pub(super) struct Drawing {
    pub(super) title: String,
    pub(super) subtitle: String,
    /// Names and colours of the bars.
    pub(super) legend: Vec<(&'static str, &'static str)>,
    pub(super) panels: Vec<Panel>,
}

/// Bars that share a unit and a scale, which begins at 0.
#[derive(Debug)]
pub(super) struct Panel {
    pub(super) title: String,
    pub(super) groups: Vec<Group>,
}

#[derive(Debug)]
pub(super) struct Group {
    pub(super) label: String,
    pub(super) bars: Vec<Bar>,
}

#[derive(Debug)]
pub(super) struct Bar {
    pub(super) colour: &'static str,
    pub(super) value: f64,
    /// Drawn over the bar.
    pub(super) limit: Option<Limit>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    pub(super) at: f64,
    pub(super) holds: bool,
}

const COLUMNS: usize = 2;
const PANEL: (f64, f64) = (500.0, 270.0);
/// Around the plot within a panel: left, top, right, bottom.
const INSET: [f64; 4] = [24.0, 44.0, 16.0, 34.0];
const HEAD: f64 = 96.0;
const HOLDS: &str = "#111111";
const FAILS: &str = "#d00000";

impl Drawing {
    pub(super) fn svg(&self) -> String {
        let rows = self.panels.len().div_ceil(COLUMNS);
        let width = PANEL.0 * COLUMNS as f64;
        let height = HEAD + PANEL.1 * rows as f64 + 12.0;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
             font-family=\"sans-serif\" font-size=\"12\" fill=\"#222\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
        );
        out += &text(24.0, 30.0, "font-size=\"18\" font-weight=\"bold\"", &self.title);
        out += &text(24.0, 50.0, "fill=\"#555\"", &self.subtitle);
        out += &self.legend();
        for (number, panel) in self.panels.iter().enumerate() {
            let left = PANEL.0 * (number % COLUMNS) as f64;
            let top = HEAD + PANEL.1 * (number / COLUMNS) as f64;
            add(&mut out, format_args!("<g transform=\"translate({left} {top})\">\n"));
            panel.draw(&mut out);
            out += "</g>\n";
        }
        out + "</svg>\n"
    }

    fn legend(&self) -> String {
        let mut out = String::new();
        let mut x = 24.0;
        for (name, colour) in &self.legend {
            add(
                &mut out,
                format_args!(
                    "<rect x=\"{x}\" y=\"66\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\n"
                ),
            );
            out += &text(x + 18.0, 76.0, "", name);
            x += 44.0 + 7.0 * name.len() as f64;
        }
        for (name, colour) in [("bound, holds", HOLDS), ("bound, fails", FAILS)] {
            out += &line([x, 72.0, x + 14.0, 72.0], colour, 2.0);
            out += &text(x + 20.0, 76.0, "", name);
            x += 110.0;
        }
        out
    }
}

impl Panel {
    fn draw(&self, out: &mut String) {
        let [left, top, right, bottom] = INSET;
        let (width, height) = (PANEL.0 - left - right, PANEL.1 - top - bottom);
        let floor = top + height;
        *out += &text(left, top - 22.0, "font-weight=\"bold\"", &self.title);
        *out += &line([left, floor, left + width, floor], "#888", 1.0);
        // Room above the highest bar for its value.
        let most = self.groups.iter().flat_map(|group| &group.bars).map(Bar::reach);
        let scale = height / (most.fold(0.0, f64::max) * 1.08).max(f64::MIN_POSITIVE);
        let share = width / self.groups.len().max(1) as f64;
        for (number, group) in self.groups.iter().enumerate() {
            let middle = left + share * (number as f64 + 0.5);
            *out += &text(middle, floor + 18.0, "text-anchor=\"middle\"", &group.label);
            let each = (share * 0.82 / group.bars.len().max(1) as f64).min(64.0);
            let mut x = middle - each * group.bars.len() as f64 / 2.0;
            for bar in &group.bars {
                bar.draw(out, [x, each], floor, scale);
                x += each;
            }
        }
    }
}

impl Bar {
    fn reach(&self) -> f64 {
        self.limit.map_or(self.value, |limit| limit.at.max(self.value))
    }

    /// `place` is its left edge and its width.
    fn draw(&self, out: &mut String, place: [f64; 2], floor: f64, scale: f64) {
        let [x, each] = place;
        let height = self.value * scale;
        let (left, top, width) = (x + 2.0, floor - height, each - 4.0);
        add(
            out,
            format_args!(
                "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" \
                 fill=\"{}\"/>\n",
                self.colour
            ),
        );
        let style = "text-anchor=\"middle\" font-size=\"10\"";
        *out += &text(x + each / 2.0, top - 4.0, style, &short(self.value));
        if let Some(Limit { at, holds }) = self.limit {
            let y = floor - at * scale;
            *out += &line([x, y, x + each, y], if holds { HOLDS } else { FAILS }, 2.0);
        }
    }
}

/// Three digits that say something.
pub(super) fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn line([x1, y1, x2, y2]: [f64; 4], colour: &str, width: f64) -> String {
    format!(
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\" \
         stroke-width=\"{width}\"/>\n"
    )
}

fn text(x: f64, y: f64, style: &str, what: &str) -> String {
    let what = what.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" {style}>{what}</text>\n")
}

fn add(out: &mut String, what: std::fmt::Arguments<'_>) {
    out.write_fmt(what).expect("a string takes any text");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bar_and_no_bound_reaches_beyond_its_panel() {
        let bar = |value, at| Bar { colour: "#000", value, limit: Some(Limit { at, holds: true }) };
        let bars = vec![bar(5.0, 9.0), bar(10.0, 0.5), bar(0.0, 2.0)];
        let group = Group { label: "a < b & c".to_owned(), bars };
        let panel = Panel { title: "t".to_owned(), groups: vec![group] };
        let drawing = Drawing {
            title: String::new(),
            subtitle: String::new(),
            legend: Vec::new(),
            panels: vec![panel],
        };
        let svg = drawing.svg();
        assert!(svg.contains("a &lt; b &amp; c"));
        for attribute in ["y", "y1", "height"] {
            for value in svg.split(&format!(" {attribute}=\"")).skip(1) {
                let value = value.split('"').next().unwrap();
                let Ok(value) = value.parse::<f64>() else { continue };
                assert!((0.0..=PANEL.1).contains(&value), "{attribute}={value}");
            }
        }
    }

    #[test]
    fn a_panel_without_bars_draws_nothing_odd() {
        let panel = Panel { title: String::new(), groups: Vec::new() };
        let mut out = String::new();
        panel.draw(&mut out);
        assert!(!out.contains("NaN") && !out.contains("inf"));
    }
}
