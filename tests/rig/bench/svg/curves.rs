//! Curves over an axis, each a line through its points.

use super::{INSET, PANEL, add, line, text};

#[derive(Debug)]
pub(in crate::bench) struct Curves {
    pub(in crate::bench) x: Axis,
    pub(in crate::bench) y: Axis,
    pub(in crate::bench) curves: Vec<Curve>,
}

/// From its first tick to its last. What lies beyond is drawn at the edge.
#[derive(Debug)]
pub(in crate::bench) struct Axis {
    pub(in crate::bench) scale: Scale,
    /// At least two, in order, and above 0 where the scale is logarithmic.
    pub(in crate::bench) ticks: Vec<(f64, String)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::bench) enum Scale {
    Linear,
    Log,
}

#[derive(Debug)]
pub(in crate::bench) struct Curve {
    pub(in crate::bench) colour: &'static str,
    pub(in crate::bench) dashed: bool,
    pub(in crate::bench) points: Vec<(f64, f64)>,
}

/// Room for the numbers at the left.
const NUMBERS: f64 = 30.0;

impl Axis {
    pub(in crate::bench) fn new(scale: Scale, ticks: impl IntoIterator<Item = f64>) -> Self {
        let ticks: Vec<_> = ticks.into_iter().map(|tick| (tick, format!("{tick}"))).collect();
        Self { scale, ticks }
    }

    /// Which part of the way along the axis `value` is, in `0.0..=1.0`.
    fn place(&self, value: f64) -> f64 {
        let on = |value: f64| match self.scale {
            Scale::Linear => value,
            Scale::Log => value.max(f64::MIN_POSITIVE).ln(),
        };
        let [Some((first, _)), Some((last, _))] = [self.ticks.first(), self.ticks.last()] else {
            return 0.0;
        };
        let (from, to) = (on(*first), on(*last));
        ((on(value) - from) / (to - from)).clamp(0.0, 1.0)
    }
}

impl Curves {
    pub(super) fn draw(&self, out: &mut String) {
        let [left, top, right, bottom] = INSET;
        let (left, right, floor) = (left + NUMBERS, PANEL.0 - right, PANEL.1 - bottom);
        let x = |value| left + self.x.place(value) * (right - left);
        let y = |value| floor - self.y.place(value) * (floor - top);
        for (tick, label) in &self.y.ticks {
            *out += &line([left, y(*tick), right, y(*tick)], "#ddd", 1.0);
            *out +=
                &text(left - 5.0, y(*tick) + 4.0, "text-anchor=\"end\" font-size=\"10\"", label);
        }
        for (tick, label) in &self.x.ticks {
            *out += &line([x(*tick), floor, x(*tick), floor + 4.0], "#888", 1.0);
            let style = "text-anchor=\"middle\" font-size=\"10\"";
            *out += &text(x(*tick), floor + 16.0, style, label);
        }
        *out += &line([left, floor, right, floor], "#888", 1.0);
        for Curve { colour, dashed, points } in &self.curves {
            let way: Vec<_> =
                points.iter().map(|&(at, value)| format!("{:.1},{:.1}", x(at), y(value))).collect();
            let dashes = if *dashed { " stroke-dasharray=\"5 4\"" } else { "" };
            add(
                out,
                format_args!(
                    "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" \
                     stroke-width=\"2\"{dashes}/>\n",
                    way.join(" ")
                ),
            );
            if !dashed {
                for &(at, value) in points {
                    let (x, y) = (x(at), y(value));
                    add(
                        out,
                        format_args!(
                            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>\n"
                        ),
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_a_log_scale_every_decade_is_as_long() {
        let axis = Axis::new(Scale::Log, [1.0, 10.0, 100.0, 1000.0]);
        for (value, place) in [(1.0, 0.0), (10.0, 1.0 / 3.0), (100.0, 2.0 / 3.0), (1000.0, 1.0)] {
            assert!((axis.place(value) - place).abs() < 1e-9, "{value}");
        }
    }

    #[test]
    fn what_lies_beyond_an_axis_is_drawn_at_its_edge() {
        let axis = Axis::new(Scale::Log, [1.0, 10.0]);
        assert_eq!([0.0, 0.5, 99.0].map(|value| axis.place(value)), [0.0, 0.0, 1.0]);
        let axis = Axis::new(Scale::Linear, [0.0, 4.0]);
        assert_eq!([-1.0, 1.0, 9.0].map(|value| axis.place(value)), [0.0, 0.25, 1.0]);
    }

    #[test]
    fn every_point_is_within_the_panel() {
        let curve = Curve { colour: "#000", dashed: false, points: vec![(0.0, 0.0), (1e9, 1e9)] };
        let axis = || Axis::new(Scale::Log, [1.0, 1e3]);
        let mut out = String::new();
        Curves { x: axis(), y: axis(), curves: vec![curve] }.draw(&mut out);
        for (attribute, most) in [("cx", PANEL.0), ("cy", PANEL.1)] {
            for value in out.split(&format!(" {attribute}=\"")).skip(1) {
                let value: f64 = value.split('"').next().unwrap().parse().unwrap();
                assert!((0.0..=most).contains(&value), "{attribute}={value}");
            }
        }
        assert!(!out.contains("NaN"));
    }
}
