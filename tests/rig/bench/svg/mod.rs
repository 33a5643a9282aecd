//! A drawing: what was measured as [`bars`] or [`curves`], and the bounds on it. One file, no dependency, readable
//! without a program of its own.

pub(super) mod bars;
pub(super) mod curves;

use std::fmt::Write;

use bars::Bars;
use curves::Curves;

/// A group of panels under one title.
#[derive(Debug)]
pub(super) struct Drawing {
    pub(super) title: String,
    pub(super) subtitle: String,
    /// Names and colours of bars and curves.
    pub(super) legend: Vec<(&'static str, &'static str)>,
    pub(super) panels: Vec<Panel>,
}

#[derive(Debug)]
pub(super) struct Panel {
    pub(super) title: String,
    pub(super) plot: Plot,
}

#[derive(Debug)]
pub(super) enum Plot {
    Bars(Bars),
    Curves(Curves),
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
            out += &text(INSET[0], INSET[1] - 22.0, "font-weight=\"bold\"", &panel.title);
            match &panel.plot {
                Plot::Bars(bars) => bars.draw(&mut out),
                Plot::Curves(curves) => curves.draw(&mut out),
            }
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
    pub(super) fn is_empty(&self) -> bool {
        match &self.plot {
            Plot::Bars(bars) => bars.groups.is_empty(),
            Plot::Curves(curves) => curves.curves.iter().all(|curve| curve.points.is_empty()),
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
    fn a_title_cannot_break_the_drawing() {
        let panel =
            Panel { title: "a < b & c".to_owned(), plot: Plot::Bars(Bars { groups: Vec::new() }) };
        assert!(panel.is_empty());
        let drawing = Drawing {
            title: "x > y".to_owned(),
            subtitle: String::new(),
            legend: Vec::new(),
            panels: vec![panel],
        };
        let svg = drawing.svg();
        assert!(svg.contains("a &lt; b &amp; c") && svg.contains("x &gt; y"));
    }
}
