//! Bars in groups, each with its bound drawn over it.

use super::{FAILS, HOLDS, INSET, PANEL, add, line, short, text};

/// They share a unit and a scale, which begins at 0.
#[derive(Debug)]
pub(in crate::bench) struct Bars {
    pub(in crate::bench) groups: Vec<Group>,
}

#[derive(Debug)]
pub(in crate::bench) struct Group {
    pub(in crate::bench) label: String,
    pub(in crate::bench) bars: Vec<Bar>,
}

#[derive(Debug)]
pub(in crate::bench) struct Bar {
    pub(in crate::bench) colour: &'static str,
    pub(in crate::bench) value: f64,
    /// Drawn over the bar.
    pub(in crate::bench) limit: Option<Limit>,
}

#[derive(Clone, Copy, Debug)]
pub(in crate::bench) struct Limit {
    pub(in crate::bench) at: f64,
    pub(in crate::bench) holds: bool,
}

impl Bars {
    pub(super) fn draw(&self, out: &mut String) {
        let [left, top, right, bottom] = INSET;
        let (width, height) = (PANEL.0 - left - right, PANEL.1 - top - bottom);
        let floor = top + height;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bar_and_no_bound_reaches_beyond_its_panel() {
        let bar = |value, at| Bar { colour: "#000", value, limit: Some(Limit { at, holds: true }) };
        let bars = vec![bar(5.0, 9.0), bar(10.0, 0.5), bar(0.0, 2.0)];
        let groups = vec![Group { label: "a".to_owned(), bars }];
        let mut out = String::new();
        Bars { groups }.draw(&mut out);
        for attribute in ["y", "y1", "height"] {
            for value in out.split(&format!(" {attribute}=\"")).skip(1) {
                let value: f64 = value.split('"').next().unwrap().parse().unwrap();
                assert!((0.0..=PANEL.1).contains(&value), "{attribute}={value}");
            }
        }
    }

    #[test]
    fn a_panel_without_bars_draws_nothing_odd() {
        let mut out = String::new();
        Bars { groups: Vec::new() }.draw(&mut out);
        assert!(!out.contains("NaN") && !out.contains("inf"));
    }
}
